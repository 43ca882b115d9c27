"""Files of training jobs, in a folder or an object store: a reader sees a file whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from upath import UPath

from evergreen.storage.local import atomic_write


def storage_path(uri: str) -> UPath:
    """The file or folder at `uri`: a local path, or whatever fsspec knows, such as `s3://bucket/key`."""
    if _is_local_uri(uri):
        return UPath(uri.removeprefix("file://"))
    # Stores remember what they listed, and deny what others have written since.
    return UPath(uri, use_listings_cache=False)


def is_local(path: UPath) -> bool:
    return isinstance(path, Path)


def put(file: UPath | Path, data: bytes) -> None:
    """Write `file` in one step: a put is atomic in an object store, and a rename in a folder.

    Raises:
        OSError: it could not be written.
    """
    if isinstance(file, Path):
        with atomic_write(file) as scratch:
            scratch.write_bytes(data)
    else:
        with _translate_to_os_error(file):
            file.fs.pipe_file(file.path, data)


def upload(source: Path, file: UPath) -> None:
    """`put` what the local file `source` holds, however much it is."""
    if isinstance(file, Path):
        with atomic_write(file) as scratch:
            shutil.copyfile(source, scratch)
    else:
        with _translate_to_os_error(file):
            file.fs.put_file(str(source), file.path)


def download(file: UPath, target: Path) -> None:
    """The other way; `target` is a local file.

    Raises:
        OSError: it could not be read.
    """
    if isinstance(file, Path):
        shutil.copyfile(file, target)
    else:
        with _translate_to_os_error(file):
            file.fs.get_file(file.path, str(target))


def list_names(folder: UPath) -> list[str]:
    """What lies in `folder`, in order; nothing if there is no such folder."""
    try:
        with _translate_to_os_error(folder):
            return sorted(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove(folder: UPath) -> None:
    """Remove `folder` and all in it; others may be at it too."""
    with suppress(FileNotFoundError), _translate_to_os_error(folder):
        folder.fs.rm(folder.path, recursive=True)


@contextmanager
def _translate_to_os_error(path: UPath) -> Iterator[None]:
    """Clients of object stores have errors of their own, one kind for each; here a file is a file."""
    try:
        yield
    except OSError as error:
        if str(path) not in str(error):
            error.add_note(str(path))
        raise
    except Exception as error:
        raise OSError(f"{path}: {type(error).__name__}: {error}") from error


def _is_local_uri(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")
