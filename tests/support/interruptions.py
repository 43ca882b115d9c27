"""Attempts at training that are asked to leave."""

from __future__ import annotations

from pathlib import Path

from upath import UPath

from evergreen.training import Checkpoints
from evergreen.training.checkpoints import StateProvider


class LeavesAfter(Checkpoints):
    """Those of a job in `folder`, asked to stop after a step, as by a signal, or never; then one is written."""

    def __init__(self, folder: Path, step: int | None = None):
        super().__init__(UPath(folder / "checkpoints"), "f" * 64, 3600)
        self._last = step

    def record_step(self, step: int, state: StateProvider) -> None:
        if step == self._last:
            self.request_stop()
        super().record_step(step, state)
