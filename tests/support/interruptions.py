"""Attempts at training that are asked to stop."""

from __future__ import annotations

from pathlib import Path

from upath import UPath

from evergreen.training import Checkpoints
from evergreen.training.checkpoints import StateProvider


class StopAfter(Checkpoints):
    """Checkpoints of a job in `folder`, asked to stop after `step`, as by a signal, or never."""

    def __init__(self, folder: Path, step: int | None = None):
        super().__init__(UPath(folder / "checkpoints"), "f" * 64, 3600)
        self._stop_step = step

    def record_step(self, step: int, state: StateProvider) -> None:
        if step == self._stop_step:
            self.request_stop()
        super().record_step(step, state)
