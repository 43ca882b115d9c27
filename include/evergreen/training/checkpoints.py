"""Checkpoints of a training job: where an attempt that was ended left off, for the next one.

They belong to the job, by its fingerprint, and never to the attempt::

    checkpoints/step-000000012/trees.ubj
    checkpoints/step-000000012.json       names each file with its hash; written last, so a half one is none

An interval passes from the start of one write to the start of the next, and a write that is still going on when
it has passed is waited for by nobody: the next step tries again.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

from pydantic import Field, ValidationError

from evergreen import storage
from evergreen.errors import TrainingDataError
from evergreen.spec import Frozen
from evergreen.storage import UPath
from evergreen.training.outcome import TrainingPreempted

StateProvider = Callable[[], Mapping[str, bytes | Callable[[], bytes]]]
"""Gives what a checkpoint holds, by file name. It is called between two steps; a part that is a function is called
later, in another thread, so that what takes long, such as serialising a copy, holds up no step."""

MAX_CHECKPOINTS = 2

_MANIFEST_NAME = re.compile(r"step-(\d{9,})\.json")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` steps."""

    step: int
    files: Mapping[str, bytes]


class _CheckpointManifest(Frozen):
    fingerprint: str
    step: int = Field(ge=0)
    files: Mapping[str, str] = Field(description="SHA-256 of each file")


class Checkpoints:
    """The checkpoints of the job with this fingerprint, for one attempt.

    Attributes:
        resumed_at: the step of the checkpoint that the attempt went on from; 0 without one.
        step: the last step that `after` was told of.
        writes: whether this process writes them; of several that train together one does.
    """

    def __init__(self, folder: UPath, fingerprint: str, interval_seconds: float, *, is_writer: bool = True):
        self._folder, self._fingerprint, self._interval_seconds = folder, fingerprint, interval_seconds
        self.is_writer = is_writer
        self.resumed_step = self.last_step = 0
        self._stop_requested = Event()
        self._last_write_started = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending_write: Future[None] | None = None

    def load_latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. One that is damaged is told about, and the one before is taken.

        Raises:
            TrainingDataError: one belongs to another job: somebody has put it there.
        """
        for step in reversed(self._steps()):
            try:
                found = self._read(step)
            except (OSError, ValidationError, _CorruptCheckpointError) as error:
                # A twin that is further may have removed it; whatever it is, the one before does as well.
                print(f"checkpoint of step {step} is passed over: {str(error).splitlines()[0]}", flush=True)
                continue
            self.resumed_step = self.last_step = step
            print(f"going on after step {step}, from its checkpoint", flush=True)
            return found
        return None

    def record_step(self, step: int, state_provider: StateProvider) -> None:
        """To be called after each step. Writes a checkpoint in the background if it is time for one.

        Raises:
            Preempted: the attempt was asked to stop; a checkpoint of this step is written.
        """
        self.last_step = step
        if self._stop_requested.is_set():
            self.flush()
            if self.is_writer:
                self._write(step, state_provider())
            raise TrainingPreempted(f"asked to leave, and left after step {step}, of which there is a checkpoint")
        if not self.is_writer or time.monotonic() - self._last_write_started < self._interval_seconds:
            return
        if self._pending_write and not self._pending_write.done():
            return
        self.flush()  # what `state` gave may have failed
        self._last_write_started = time.monotonic()
        self._pending_write = self._writer.submit(self._write_in_background, step, state_provider())

    def request_stop(self) -> None:
        """Ask the attempt to leave after the step that it is at. Safe in a signal handler."""
        self._stop_requested.set()

    def flush(self) -> None:
        """Until nothing is being written.

        Raises:
            Exception: what a function of the last state's raised.
        """
        if self._pending_write:
            self._pending_write.result()

    def _write_in_background(self, step: int, parts: Mapping[str, bytes | Callable[[], bytes]]) -> None:
        begun = time.monotonic()
        try:
            size = self._write(step, parts)
            took = time.monotonic() - begun
            print(f"checkpoint of step {step}: {size / 2**20:.1f} MiB in {took:.1f} s", flush=True)
        except OSError as error:
            # Training that goes on loses nothing; leaving would lose what was done since the last one.
            print(f"no checkpoint of step {step}, training goes on: {error}", flush=True)

    def _write(self, step: int, parts: Mapping[str, bytes | Callable[[], bytes]]) -> int:
        """Gives its size in bytes."""
        hashes, size = {}, 0
        for name, part in parts.items():
            data = part() if callable(part) else part
            storage.put(self._folder / _checkpoint_name(step) / name, data)
            hashes[name] = hashlib.sha256(data).hexdigest()
            size += len(data)
        manifest = _CheckpointManifest(fingerprint=self._fingerprint, step=step, files=hashes)
        storage.put(self._folder / f"{_checkpoint_name(step)}.json", manifest.model_dump_json().encode())
        for old in self._steps()[:-MAX_CHECKPOINTS]:
            (self._folder / f"{_checkpoint_name(old)}.json").unlink(missing_ok=True)  # first: half a checkpoint is none
            storage.remove(self._folder / _checkpoint_name(old))
        return size

    def _read(self, step: int) -> Checkpoint:
        manifest = _CheckpointManifest.model_validate_json(
            (self._folder / f"{_checkpoint_name(step)}.json").read_bytes()
        )
        if manifest.fingerprint != self._fingerprint or manifest.step != step:
            raise TrainingDataError(
                f"{self._folder / _checkpoint_name(step)}.json is a checkpoint of step {manifest.step} of job "
                f"{manifest.fingerprint[:12]}, and this is {self._fingerprint[:12]}: other data or code; "
                "somebody has put it there: remove it"
            )
        files = {name: (self._folder / _checkpoint_name(step) / name).read_bytes() for name in manifest.files}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != manifest.files[name]:
                raise _CorruptCheckpointError(f"its file {name} is not what was written")
        return Checkpoint(step, files)

    def _steps(self) -> list[int]:
        return sorted(
            int(match[1]) for match in map(_MANIFEST_NAME.fullmatch, storage.list_names(self._folder)) if match
        )


class _CorruptCheckpointError(Exception):
    pass


def _checkpoint_name(step: int) -> str:
    return f"step-{step:09d}"
