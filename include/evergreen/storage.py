"""Storage: files in a folder or an object store. A reader sees a file whole or not at all.

Only this module imports fsspec and universal_pathlib; others take paths from `storage_path`. A store that fails raises
OSError, whatever its client raises.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from inspect import signature
from pathlib import Path
from threading import Lock
from typing import Any

from fsspec import AbstractFileSystem as AbstractFileSystem
from fsspec.core import split_protocol
from upath import UPath as UPath

_MEMORY_LOCK = Lock()


def storage_path(uri: str, *, fail_fast: bool = False) -> UPath:
    """Return the file or folder at `uri`: a local path, or any URI that fsspec opens, such as `s3://bucket/key`.

    With `fail_fast` an S3 client gives up after seconds; by default it retries for minutes.
    """
    protocol, path = split_protocol(uri)
    if protocol in (None, "file"):
        return UPath(path)
    # Without a cache of listings: it would hide the files that other processes write.
    options: dict[str, Any] = {"use_listings_cache": False}
    if fail_fast and protocol in ("s3", "s3a"):
        options["config_kwargs"] = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}
    return UPath(uri, **options)


def is_local(path: UPath) -> bool:
    return isinstance(path, Path)


def put(file: UPath | Path, data: bytes) -> None:
    """Write `file` in one step: a put is atomic in an object store, and a rename in a folder."""
    if isinstance(file, Path):
        with atomic_write(file) as scratch:
            scratch.write_bytes(data)
    else:
        with _translate_to_os_error(file):
            file.fs.pipe_file(file.path, data)


def create_if_absent(file: UPath, data: bytes) -> bool:
    """Create `file` with `data` unless it exists; return whether this call created it.

    Of racing callers exactly one succeeds: by a hard link in a folder, by a conditional put in an object store. The
    file is on disk before the call returns.
    """
    if isinstance(file, Path):
        return _link_if_absent(file, data)
    # fsspec's memory:// checks first and writes then, so its threads must take turns.
    with _MEMORY_LOCK if file.protocol == "memory" else nullcontext(), _translate_to_os_error(file):
        try:
            file.fs.pipe_file(file.path, data, mode="create")
        except Exception:
            # The stored object decides, not the error: S3 reports that the object exists, MinIO only that a condition
            # failed, either may report a conflicting put. And a repeated request that succeeded finds its own object.
            with suppress(FileNotFoundError):
                return bool(file.fs.cat_file(file.path) == data)
            raise
        return True


def supports_create_if_absent(folder: UPath) -> bool:
    """Return whether the store of `folder` can create a file on the condition that it does not exist."""
    if isinstance(folder, Path):
        return True
    client = type(folder.fs)
    write = getattr(client, "_pipe_file", client.pipe_file)
    return write is not AbstractFileSystem.pipe_file and "mode" in signature(write).parameters


def read_files(files: Sequence[UPath]) -> list[bytes]:
    """Read small files of one store, many at once where the store can.

    Raises:
        FileNotFoundError: a file does not exist.
    """
    if not files or is_local(files[0]):
        return [file.read_bytes() for file in files]
    with _translate_to_os_error(files[0].parent):
        contents = files[0].fs.cat([file.path for file in files])
    return [contents[file.path] for file in files]


def upload(source: Path, file: UPath) -> None:
    """Write the local file `source`, of any size, to `file`, as `put` does."""
    if isinstance(file, Path):
        with atomic_write(file) as scratch:
            shutil.copyfile(source, scratch)
    else:
        with _translate_to_os_error(file):
            file.fs.put_file(str(source), file.path)


def download(file: UPath, target: Path) -> None:
    """Download `file` to the local path `target`."""
    if isinstance(file, Path):
        shutil.copyfile(file, target)
    else:
        with _translate_to_os_error(file):
            file.fs.get_file(file.path, str(target))


def list_names(folder: UPath) -> list[str]:
    """Return the names in `folder`, sorted; an empty list if there is no such folder."""
    try:
        with _translate_to_os_error(folder):
            return sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        if is_local(folder) and not folder.exists():  # a parent of it is a file, which a wrong setting names
            raise
        return []


def remove(folder: UPath) -> None:
    """Remove `folder` and everything in it. Other processes may remove it at the same time."""
    with suppress(FileNotFoundError), _translate_to_os_error(folder):
        folder.fs.rm(folder.path, recursive=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a scratch path to write; on success it replaces `path` durably in one step, else it is removed."""
    with _scratch_file(path) as scratch:
        yield scratch
        fsync_path(scratch)
        os.replace(scratch, path)
        fsync_path(path.parent)


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


def _link_if_absent(path: Path, data: bytes) -> bool:
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
def _scratch_file(path: Path) -> Iterator[Path]:
    """Yield an unused path beside `path`, whose folder is created; a file left there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _translate_to_os_error(path: UPath) -> Iterator[None]:
    """Raise errors of an object store's client as OSError: each client has its own kinds."""
    try:
        yield
    except OSError as error:
        if str(path) not in str(error):
            error.add_note(str(path))
        raise
    except Exception as error:
        raise OSError(f"{path}: {type(error).__name__}: {error}") from error
