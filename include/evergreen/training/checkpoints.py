"""Checkpoints of a training job: the state that an attempt saved, for the next attempt to resume from.

They belong to the job, by its fingerprint, and not to the attempt::

    checkpoints/step-000000012/trees.ubj
    checkpoints/step-000000012.json       names each file with its hash; written last: without it there is no checkpoint

The interval is measured from the start of one write to the start of the next. A write that takes longer delays no
step: the next checkpoint is due once it is complete.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

from pydantic import Field, ValidationError

from evergreen import storage
from evergreen.errors import TrainingDataError, first_line, validation_problem
from evergreen.storage import FileName, Sha256, UPath
from evergreen.training.job import MAX_FILES, JsonFile, jobs_root
from evergreen.training.outcome import TrainingPreempted

CheckpointState = Mapping[str, bytes | Callable[[], bytes]]
StateProvider = Callable[[], CheckpointState]
"""Returns the content of a checkpoint by file name. It is called between two steps; a value that is a function is
called later, in another thread, so that slow work such as serializing a copy delays no step."""

MAX_CHECKPOINTS = 2

_MANIFEST_NAME = re.compile(r"step-(\d{9,})\.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps."""

    step: int
    files: Mapping[str, bytes]


class _CheckpointManifest(JsonFile):
    fingerprint: str
    step: int = Field(ge=0)
    files: Mapping[FileName, Sha256] = Field(max_length=MAX_FILES, description="SHA-256 of each file")


class Checkpoints:
    """The checkpoints of the job with this fingerprint, for one attempt.

    Attributes:
        resumed_step: the step of the checkpoint that the attempt resumed from; 0 without one.
        last_step: the last step that `record_step` was given.
        is_writer: whether this process writes them; of several that train together one does.
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
        """Return the newest valid checkpoint, or None. Damaged ones are logged and skipped.

        Raises:
            TrainingDataError: a checkpoint belongs to another job.
        """
        for step in reversed(self._steps()):
            try:
                checkpoint = self._read(step)
            except (OSError, ValueError) as error:
                # A second attempt that is further along may have removed it. The one before serves as well.
                problem = validation_problem(error) if isinstance(error, ValidationError) else first_line(error)
                log.warning("checkpoint of step %s is skipped: %s", step, problem)
                continue
            self.resumed_step = self.last_step = step
            log.info("resuming after step %s, from its checkpoint", step)
            return checkpoint
        return None

    def record_step(self, step: int, state_provider: StateProvider) -> None:
        """Write a checkpoint in the background if one is due. To be called after each step.

        Raises:
            TrainingPreempted: the attempt was asked to stop; a checkpoint of this step is written.
        """
        self.last_step = step
        if self._stop_requested.is_set():
            self.flush()
            if self.is_writer:
                self._write(step, state_provider())
            raise TrainingPreempted(f"asked to leave; stopped after step {step} and wrote a checkpoint of it")
        if not self.is_writer or time.monotonic() - self._last_write_started < self._interval_seconds:
            return
        if self._pending_write and not self._pending_write.done():
            return
        self.flush()  # raises what the last state provider raised
        self._last_write_started = time.monotonic()
        self._pending_write = self._writer.submit(self._write_in_background, step, state_provider())

    def request_stop(self) -> None:
        """Ask the attempt to stop after its current step. Safe in a signal handler."""
        self._stop_requested.set()

    def flush(self) -> None:
        """Wait until nothing is being written; raises what a function of the last state raised."""
        if self._pending_write:
            self._pending_write.result()

    def _write_in_background(self, step: int, state: CheckpointState) -> None:
        start = time.monotonic()
        try:
            size = self._write(step, state)
        except OSError as error:
            # Training that continues loses nothing; to stop would lose the work since the last checkpoint.
            log.warning("no checkpoint of step %s, training continues: %s", step, error)
        else:
            log.info("checkpoint of step %s: %.1f MiB in %.1f s", step, size / 2**20, time.monotonic() - start)

    def _write(self, step: int, state: CheckpointState) -> int:
        """Write a checkpoint, remove old ones, and return its size in bytes.

        Raises:
            ValueError: it has too many files, or a name that is none.
        """
        if len(state) > MAX_FILES:
            raise ValueError(f"a checkpoint of {len(state):,} files: write {MAX_FILES:,} or fewer")
        for name in state:
            storage.check_file_name(name)
        hashes, size = {}, 0
        for name, value in state.items():
            data = value() if callable(value) else value
            storage.put(self._files_folder(step) / name, data)
            hashes[name] = hashlib.sha256(data).hexdigest()
            size += len(data)
        _CheckpointManifest(fingerprint=self._fingerprint, step=step, files=hashes).write(self._manifest_file(step))
        for old_step in self._steps()[:-MAX_CHECKPOINTS]:
            self._manifest_file(old_step).unlink(missing_ok=True)  # first: files without it are no checkpoint
            storage.remove(self._files_folder(old_step))
        return size

    def _read(self, step: int) -> Checkpoint:
        root = jobs_root(self._folder.parent)
        manifest = _CheckpointManifest.read(self._manifest_file(step), root)
        if manifest.fingerprint != self._fingerprint or manifest.step != step:
            raise TrainingDataError(
                f"{self._manifest_file(step)} is a checkpoint of step {manifest.step} of job "
                f"{manifest.fingerprint[:12]}, not of {self._fingerprint[:12]}, which has other data or code; remove it"
            )
        folder = self._files_folder(step)
        files = {name: storage.read_untrusted(folder / name, root) for name in manifest.files}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != manifest.files[name]:
                raise ValueError(f"the content of {name} does not match its hash")
        return Checkpoint(step, files)

    def _steps(self) -> list[int]:
        matches = map(_MANIFEST_NAME.fullmatch, storage.list_names(self._folder))
        return sorted(int(match[1]) for match in matches if match)

    def _files_folder(self, step: int) -> UPath:
        return self._folder / f"step-{step:09d}"

    def _manifest_file(self, step: int) -> UPath:
        return self._folder / f"step-{step:09d}.json"
