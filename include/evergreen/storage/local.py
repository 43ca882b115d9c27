"""Files on a local disk: written whole or not at all, locked, flushed, hashed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a scratch path to write; on success it replaces `path` durably in one step, else it is removed."""
    with _scratch_file(path) as scratch:
        yield scratch
        fsync_path(scratch)
        os.replace(scratch, path)
        fsync_path(path.parent)


def link_if_absent(path: Path, data: bytes) -> bool:
    """Create `path` durably with `data` unless it exists; return whether this call created it."""
    is_new_folder = not path.parent.is_dir()
    with _scratch_file(path) as scratch:
        if is_new_folder:
            fsync_path(path.parent.parent)
        scratch.write_bytes(data)
        fsync_path(scratch)
        try:
            os.link(scratch, path)
        except FileExistsError:
            # A network file system may repeat a request that succeeded, and report that the name is taken.
            if not path.samefile(scratch):
                return False
        fsync_path(path.parent)
        return True


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock named `path`; other callers wait. The kernel releases it when the process ends.

    For short work on small files: a holder that hangs blocks every caller.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fsync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk: a rename must not survive its own content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _scratch_file(path: Path) -> Iterator[Path]:
    """Yield an unused path beside `path`, whose folder is created; a file left there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)
