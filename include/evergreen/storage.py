"""Storage: files in a folder or an object store. A reader sees a file whole or not at all.

Only this module imports fsspec and universal_pathlib; others take paths from `storage_path`. A store that fails raises
OSError, whatever its client raises.

Names that come from outside (a pod's result, a manifest) are of the types `FileName` and `RelativePath`. Files that a
pod wrote are read with `read_untrusted` and `download`, which follow no link.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from inspect import signature
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeGuard

from fsspec import AbstractFileSystem as AbstractFileSystem
from fsspec.core import split_protocol
from pydantic import AfterValidator, StringConstraints
from upath import UPath as UPath

MAX_NAME_LENGTH = 128
LAKE_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "memory")
"""Of the URIs that a lake may have: `evergreen.object_store` opens them."""

_MEMORY_LOCK = Lock()
_TIME_KEYS = ("LastModified", "last_modified", "updated", "created")  # of S3, Azure, Google, memory://
_VERSION_KEYS = ("ETag", "etag", "generation")  # of S3, Azure and Google, Google
_COPY_BYTES = 1 << 20
_MAX_WAIT_S = 0.5
# Not even `_`: the lake's own folders begin with it. Nor a dot: scratch files do.
_FILE_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_DEVICE_NAMES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))]
)  # of Windows, with any suffix


def check_file_name(name: str) -> str:
    """Return `name` if it can be the name of a file in any folder, and of nothing outside of it.

    Raises:
        ValueError: it is too long, has a separator or another character that is not allowed, or is reserved.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(
            f"{name[:24]!a}… is no file name: it has {len(name)} characters, not {MAX_NAME_LENGTH} or less"
        )
    if not _FILE_NAME_PATTERN.fullmatch(name) or name.endswith("."):
        raise ValueError(
            f"{name!a} is no file name: it has a letter or digit first, then letters, digits, or any of . _ - + =, "
            "and no dot last"
        )
    if name.partition(".")[0].lower() in _DEVICE_NAMES:
        raise ValueError(f"{name!a} is no file name: some systems reserve it for a device")
    return name


def check_relative_path(path: str) -> str:
    """Return `path` if it is file names joined by `/`: then it stays in the folder that it is relative to.

    Raises:
        ValueError: one of its parts is no file name.
    """
    for name in path.split("/"):
        check_file_name(name)
    return path


FileName = Annotated[str, AfterValidator(check_file_name)]
RelativePath = Annotated[str, AfterValidator(check_relative_path)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


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


def is_local(path: UPath | Path) -> TypeGuard[Path]:
    """Return whether `path` is of this machine's file system."""
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


class RefusedFileError(OSError):
    """A file that others wrote is none to be read: a link, no regular file, or too large. Its store is all right."""


class StoredFile(NamedTuple):
    """A file as it was read, and what tells it from those that replace it."""

    data: bytes
    version: str
    changed_at: float
    """Seconds since the epoch."""


def read_version(file: UPath | Path, max_bytes: int | None = None) -> StoredFile | None:
    """Return the content of `file` with its version, and without what exceeds `max_bytes`; None if there is none."""
    if not isinstance(file, Path):
        from evergreen import object_store

        return object_store.read(file, max_bytes)
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            data = stream.read(-1 if max_bytes is None else max_bytes)
    except FileNotFoundError:
        return None
    return StoredFile(data, _file_version(status), status.st_mtime)


class ObjectStatus(NamedTuple):
    """The size of an object in bytes, and what changes when the object is replaced."""

    size: int
    version: str


def object_status(file: UPath) -> ObjectStatus:
    """Return what the store says of an object, by the client that trainers have, too.

    Raises:
        FileNotFoundError: there is no such object.
    """
    with _translate_to_os_error(file):
        info = file.fs.info(file.path)
    if info["type"] != "file":  # a prefix of others
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    version = [f"{name}={info[name]}" for name in (*_VERSION_KEYS, *_TIME_KEYS) if info.get(name)]
    if not version:
        raise OSError(f"{file}: its store does not tell which version of the object it is")
    return ObjectStatus(int(info["size"]), ", ".join(version))


def read_range(file: UPath, start: int, stop: int) -> bytes:
    """Return the bytes of an object from `start` to `stop`, in one request."""
    with _translate_to_os_error(file):
        data: bytes = file.fs.cat_file(file.path, start=start, end=stop)
    return data


def file_exists(file: UPath | Path) -> bool:
    """Return whether there is a file, here or in the object store of a lake."""
    if isinstance(file, Path):
        return file.is_file()
    from evergreen import object_store

    return object_store.exists(file)


def replace_version(file: UPath | Path, data: bytes, version: str | None) -> bool:
    """Replace `file` if it is still `version`, or create it if that is None; return whether this call did.

    Of racing callers one succeeds. The file is on disk before the call returns.
    """
    if not isinstance(file, Path):
        from evergreen import object_store

        return object_store.write(file, data, version)
    if version is None:
        return _link_if_absent(file, data)
    with file_lock(file.with_name(".lock")):
        stored = read_version(file)
        if stored is None or stored.version != version:
            return False
        put(file, data)
        return True


def remove_version(file: UPath, version: str) -> bool:
    """Remove an object of S3 if it is still `version`; return whether this call did.

    `evergreen.object_store` has no such request. Not every store with the API of S3 keeps the condition:
    `object_store.deletes_on_condition` says which does.

    Raises:
        OSError: the store has no such request, or fails.
    """
    bucket, _, key = file.path.lstrip("/").partition("/")
    try:
        with _translate_to_os_error(file):
            file.fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=version)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EINVAL:  # the condition failed
            return False
        raise
    return True


def change_storage_class(file: UPath, storage_class: str) -> None:
    """Give an object of S3 another storage class: a copy to its own place, within the store.

    Readers get the object as it was, whole, before and after.
    """
    with _translate_to_os_error(file):
        # With its metadata replaced a copy is allowed also where the class is that already.
        file.fs.cp_file(file.path, file.path, StorageClass=storage_class, MetadataDirective="REPLACE")


def update_file(file: UPath | Path, change: Callable[[bytes | None], bytes | None]) -> None:
    """Replace the content of `file` by what `change` makes of it; None leaves it. None is also what a new file has.

    Of concurrent updates none is lost: `change` is called again if another one came first.
    """
    wait_s = 0.01
    while True:
        stored = read_version(file)
        data = change(stored and stored.data)
        if data is None or replace_version(file, data, stored and stored.version):
            return
        time.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the writers
        wait_s = min(2 * wait_s, _MAX_WAIT_S)


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


def download(file: UPath, target: Path, root: UPath | Path) -> str:
    """Copy `file`, which a pod wrote below `root`, to the new local file `target`; return the SHA-256 of its content.

    Raises:
        OSError: as `read_untrusted`, or `target` exists.
    """
    digest = hashlib.sha256()
    with _open_untrusted(file, root) as source, target.open("xb") as copy:
        while chunk := source.read(_COPY_BYTES):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()


def read_untrusted(file: UPath | Path, root: UPath | Path, max_bytes: int | None = None) -> bytes:
    """Return the content of `file`, which a pod wrote below `root`; without `max_bytes`, of any size.

    Raises:
        OSError: it is larger than `max_bytes`, no regular file, has a second name, or is reached through a link.
    """
    with _open_untrusted(file, root) as source:
        content = source.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(content) > max_bytes:
        raise RefusedFileError(f"{file} is refused: it has more than {max_bytes:,} bytes")
    return content


def check_no_link(file: UPath | Path, root: UPath | Path) -> None:
    """Check that nothing on the way from `root` to `file`, as far as it exists, is a link.

    Raises:
        OSError: something is; it is named.
    """
    if isinstance(file, Path):
        for part in (file, *file.parents):
            if part == root:
                return
            if part.is_symlink():
                raise RefusedFileError(f"{part} is refused: it is a link, which a pod may have placed; remove it")


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


def list_files(folder: UPath | Path) -> Iterator[tuple[str, int, float]]:
    """Yield path in `folder`, size in bytes and time of the last change (seconds since the epoch) of each file in it.

    Links are not followed. A store that does not tell the time gives the present: such a file is never old.
    """
    if isinstance(folder, Path):
        for parent, _, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    status = os.lstat(f"{parent}/{name}")
                    yield os.path.relpath(f"{parent}/{name}", folder), status.st_size, status.st_mtime
        return
    root = folder.path.rstrip("/")
    with _translate_to_os_error(folder):
        listing: dict[str, dict[str, Any]] = folder.fs.find(root, detail=True)
    for key, info in listing.items():
        times = [info[name] for name in _TIME_KEYS if name in info]
        changed_at = times[0].timestamp() if times and hasattr(times[0], "timestamp") else time.time()
        yield key.removeprefix(f"{root}/"), int(info["size"] or 0), changed_at


def remove_files(files: Sequence[UPath | Path]) -> None:
    """Remove files of a folder or of a bucket of the lake. One that is gone already is no error."""
    remote = [file for file in files if not isinstance(file, Path)]
    if remote:
        from evergreen import object_store

        object_store.delete(remote)
    for file in files:
        if isinstance(file, Path):
            file.unlink(missing_ok=True)


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
def file_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock named `path`; other callers wait. The kernel releases it when the process ends.

    Callers that share it wait only for those that do not. For short work on small files: a holder that hangs blocks
    every caller.

    Raises:
        BlockingIOError: another caller holds it, and this one does not `wait`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield


def fsync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk: a rename must not survive its own content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_plain_file(path: Path) -> bool:
    """Return whether `path` is a regular file with this name only: no link of any kind, no device."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _open_untrusted(file: UPath | Path, root: UPath | Path) -> Iterator[BinaryIO]:
    if not isinstance(file, Path):
        with _translate_to_os_error(file), file.fs.open(file.path, "rb") as stream:
            yield stream
        return
    # Opened part by part: a path that is checked first could be replaced before it is opened.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    *folders, name = file.relative_to(str(root)).parts
    folder = os.open(str(root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            parent, folder = folder, os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(parent)
        descriptor = os.open(name, flags | os.O_NONBLOCK, dir_fd=folder)  # a pipe would block
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise RefusedFileError(f"{file} is refused: it is a link, a socket or a pipe, or below a link") from None
        raise type(error)(error.errno, error.strerror, str(file)) from None
    finally:
        os.close(folder)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # 0 if it was removed meanwhile
        os.close(descriptor)
        raise RefusedFileError(
            f"{file} is refused: it is a folder, a device or a pipe, or has a second name (a hard link)"
        )
    with open(descriptor, "rb") as stream:
        yield stream


def _file_version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


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
