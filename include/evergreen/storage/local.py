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
    """Give a scratch path to write; on success it replaces `path` durably in one step, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield scratch
        fsync_path(scratch)
        os.replace(scratch, path)
        fsync_path(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock named `path`; whoever else wants it waits. The kernel frees it when its process dies.

    For short work on small files: a holder that hangs keeps everybody waiting.
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
