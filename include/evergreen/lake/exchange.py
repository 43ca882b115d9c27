"""Where a task and Spark exchange files: raw files as declared in one direction, what Spark computes in the other.

Spark in the task's process, or on machines that share the task's folders, reads and writes the same files: nothing is
copied. Any other Spark has only the place that `EVERGREEN_SPARK_EXCHANGE` names::

    inputs/3f9a….parquet               a raw file as declared, named by its content: copied once, for all jobs
    inputs/3f9a….parquet.used          written when a job uses it again
    jobs/7c1e…/0/day=…/part-….parquet  what Spark writes for one job, which removes it

Nobody else reads a job's folder, so what a killed one leaves is visible to nobody, and goes by its age
(`remove_leftovers`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evergreen import object_store, storage
from evergreen.errors import Fault, SettingsError
from evergreen.lake.datasets import RENEW_AFTER_S, Dataset, Manifest
from evergreen.lake.retention import Removal, end_uploads
from evergreen.settings import settings, variable_name
from evergreen.storage import UPath, file_sha256

_INPUTS, _JOBS = "inputs", "jobs"
_USED = ".used"
_PART = ".parquet"
_SCHEMES = {"s3": "s3a", "s3a": "s3a", "gs": "gs", "gcs": "gs", "az": "abfss"}  # of Spark's clients
_JOB_FOLDER = re.compile(r"[0-9a-f]{32}")
_CHUNK_BYTES = 8 << 20

log = logging.getLogger(__name__)


class JobExchange(ABC):
    """What one job and its task exchange. Paths are relative to the job's folder, with `/`."""

    folder: UPath | Path

    @abstractmethod
    def provide(self, file: Path) -> str:
        """Return the URI at which Spark reads the local Parquet file `file`."""

    def provide_published(self, dataset: Dataset, manifest: Manifest, name: str) -> str:
        """Return the URI at which Spark reads the file `name` of a published partition."""
        return self.provide(dataset.file_path(manifest, name))

    @abstractmethod
    def uri(self, path: str) -> str:
        """Return the URI of a path, for Spark to write to."""

    @abstractmethod
    def list_parts(self, path: str) -> list[str]:
        """Return the paths of the Parquet files that Spark has written to the folder `path`, in order."""

    @abstractmethod
    @contextmanager
    def open_parts(self, paths: Sequence[str]) -> Iterator[list[Path]]:
        """Yield local files with the content of these parts."""


@dataclass(frozen=True)
class SharedFiles(JobExchange):
    """Spark sees the files of the task."""

    folder: Path

    def provide(self, file: Path) -> str:
        return str(file)

    def uri(self, path: str) -> str:
        return str(self.folder / path)

    def list_parts(self, path: str) -> list[str]:
        files = (file.relative_to(self.folder) for file in (self.folder / path).rglob(f"*{_PART}"))
        return sorted(file.as_posix() for file in files if _is_part(file.parts))

    @contextmanager
    def open_parts(self, paths: Sequence[str]) -> Iterator[list[Path]]:
        yield [self.folder / path for path in paths]


@dataclass(frozen=True)
class SharedFolder(SharedFiles):
    """Spark sees one folder of the task."""

    root: Path

    def provide(self, file: Path) -> str:
        if file.is_relative_to(self.root):
            return str(file)
        sha256 = file_sha256(file)
        copy = self.root / _INPUTS / f"{sha256}{_PART}"
        try:
            is_copied = copy.stat().st_size == file.stat().st_size
        except FileNotFoundError:
            is_copied = False
        if is_copied:
            os.utime(copy)
        else:
            with storage.atomic_write(copy) as scratch, scratch.open("wb") as stream:
                stream.writelines(_read_checked(file, sha256))
        return str(copy)


@dataclass(frozen=True)
class ObjectExchange(JobExchange):
    """Spark sees an object store; parts are downloaded to `scratch`, as many as are open at a time."""

    root: UPath
    folder: UPath
    scratch: Path

    def provide(self, file: Path) -> str:
        sha256 = file_sha256(file)
        copy = self.root / _INPUTS / f"{sha256}{_PART}"
        stored = object_store.find(copy)
        if stored is None or stored.size != file.stat().st_size:
            log.info("copying %s to %s, for Spark", file, copy)
            object_store.put_chunks(_read_checked(file, sha256), copy)
        elif time.time() - stored.changed_at > RENEW_AFTER_S:
            object_store.put_chunks(iter([b""]), copy.with_name(copy.name + _USED))
        return spark_uri(copy)

    def provide_published(self, dataset: Dataset, manifest: Manifest, name: str) -> str:
        published = dataset.published_path(manifest, name)
        if isinstance(published, Path) or _SCHEMES.get(published.protocol) != _SCHEMES.get(self.root.protocol):
            return super().provide_published(dataset, manifest, name)
        return spark_uri(published)

    def uri(self, path: str) -> str:
        return spark_uri(self.folder / path)

    def list_parts(self, path: str) -> list[str]:
        paths = (f"{path}/{item.path}" for item in object_store.list_objects(self.folder / path))
        return sorted(path for path in paths if path.endswith(_PART) and _is_part(path.split("/")))

    @contextmanager
    def open_parts(self, paths: Sequence[str]) -> Iterator[list[Path]]:
        with tempfile.TemporaryDirectory(prefix="parts-", dir=self.scratch) as folder:
            files = [Path(folder, f"{number:06}{_PART}") for number in range(len(paths))]
            for path, file in zip(paths, files, strict=True):
                object_store.copy_object(self.folder / path, file)
            yield files


@contextmanager
def open_exchange(scratch: Path) -> Iterator[JobExchange]:
    """Yield the exchange of a new job, and remove what is in it. `scratch` is an unused local folder.

    Raises:
        SettingsError: Spark has no name for the place.
    """
    root, job = settings().spark_exchange, uuid.uuid4().hex
    if root is None:
        exchange: JobExchange = SharedFiles(scratch)
    elif isinstance(root, Path):
        exchange = SharedFolder(root / _JOBS / job, root.absolute())
    else:
        exchange = ObjectExchange(root, root / _JOBS / job, scratch)
    scratch.mkdir()
    try:
        yield exchange
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(exchange, SharedFolder):
            shutil.rmtree(exchange.folder, ignore_errors=True)
        elif isinstance(exchange, ObjectExchange):
            with suppress(OSError):  # goes by its age; and the job may have failed because of the store
                object_store.delete_folder(exchange.folder)


def spark_uri(file: UPath) -> str:
    """Return the URI by which Spark's file systems know an object.

    Raises:
        SettingsError: it is in Azure, and no variable names the storage account.
    """
    bucket, _, key = file.path.lstrip("/").partition("/")
    scheme, account = _SCHEMES.get(file.protocol), os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if scheme in ("s3a", "gs"):
        return f"{scheme}://{bucket}/{key}"
    if scheme == "abfss" and account:
        return f"abfss://{bucket}@{account}.dfs.core.windows.net/{key}"
    problem = f"is {file.protocol}://{bucket}, for which Spark has no name"
    fix = "set AZURE_STORAGE_ACCOUNT_NAME" if file.protocol == "az" else "use s3://, gs://, az://, or a folder"
    raise SettingsError("the environment", [Fault(variable_name("spark_exchange"), problem, fix)])


def remove_leftovers(cutoff: float, *, is_dry_run: bool) -> Iterator[Removal]:
    """Remove inputs that no job has used since `cutoff`, and what killed jobs have left; yield that.

    Of S3, uploads go that nobody has completed. In other stores these end by themselves, after a week.
    """
    root = settings().spark_exchange
    if root is None:
        return
    sizes: dict[str, int] = {}
    changes: dict[str, float] = {}
    for path, size, changed_at in _list_files(root):
        kind, _, rest = path.partition("/")
        name = rest.partition("/")[0].removesuffix(_USED)
        if kind == _INPUTS or (kind == _JOBS and _JOB_FOLDER.fullmatch(name)):
            place = f"{kind}/{name}"
            sizes[place] = sizes.get(place, 0) + size
            changes[place] = max(changes.get(place, 0.0), changed_at)
    for place, changed_at in sorted(changes.items()):
        if changed_at < cutoff:
            if not is_dry_run:
                _remove(root / place)
            yield Removal("staged", place, sizes[place], changed_at)
    if not isinstance(root, Path):
        yield from end_uploads(root, cutoff, is_dry_run=is_dry_run)


def _list_files(root: UPath | Path) -> Iterator[tuple[str, int, float]]:
    if isinstance(root, Path):
        for kind in (_INPUTS, _JOBS):
            for path, size, changed_at in storage.list_files(root / kind):
                yield f"{kind}/{path}", size, changed_at
        return
    for item in object_store.list_objects(root):
        yield item.path, item.size, item.changed_at


def _remove(place: UPath | Path) -> None:
    if isinstance(place, Path):
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
    elif place.parent.name == _INPUTS:
        object_store.delete([place, place.with_name(place.name + _USED)])
    else:
        object_store.delete_folder(place)


def _is_part(names: Sequence[str]) -> bool:
    """Whether Spark would read the file too: it hides work in progress by names such as `_temporary`."""
    return not any(name.startswith(("_", ".")) for name in names)


def _read_checked(file: Path, sha256: str) -> Iterator[bytes]:
    """Yield the content of `file`.

    Raises:
        OSError: it has changed since it was hashed: at the end, so that nobody stores it under the name of another.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != sha256:
        raise OSError(f"{file} was written while it was read: clear the run when it is complete")
