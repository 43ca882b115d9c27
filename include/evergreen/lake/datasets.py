"""The lake: raw files as delivered, and datasets that are published partition by partition.

Layout under the lake's root, a folder or an object store::

    raw/flights/day=2013-01-01/flights.parquet         put there by the data's supplier
    features/flight_delay/                              a dataset
        _manifests/day=2013-01-01.json                  the partition exists when this file does
        carrier_delays/day=2013-01-01/3f9a….parquet     immutable, named by its content

Publishing links every file of a partition into place under its content hash, and then replaces the manifest by an
atomic rename. So a reader of manifests sees a partition whole or not at all, whichever process is killed; publishing
twice, also concurrently, has the same result; and files of a replaced manifest stay readable, until a deployment that
asks for it removes them (`evergreen.lake.retention`). Publishers share a lock that removal takes alone: a file is not
removed between the moment at which a publisher finds it in place and that at which its manifest names it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from evergreen.errors import DatasetError, InputsChangedError, validation_problem
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.settings import settings
from evergreen.storage import (
    FileName,
    RelativePath,
    Sha256,
    UPath,
    check_file_name,
    check_relative_path,
    file_lock,
    file_sha256,
    fsync_path,
    is_local,
    read_version,
    replace_version,
    storage_path,
)

ROW_COLUMN = "evergreen_row"
"""Numbers the rows of a table that passes through an engine which may reorder them."""

PERIOD_COLUMN = "evergreen_period"
"""Names the period of each row of a table that has rows of many, where it is not the row's `day`."""

RENEW_AFTER_S = 3600
"""Seconds: what was used more recently keeps its age, because it is no candidate for removal, by days."""

MAX_MANIFEST_BYTES = 2**24
MAX_PARTITION_FILES = 10_000

_MANIFESTS = "_manifests"
_STAGING = "_staging"
_LOCK = "_lock"
_CACHE = "cached"
_DATE_LENGTH = len("2013-01-01")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedFile:
    """One file of a partition. `path` is relative to the dataset; `rows` and `schema` only for Parquet."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    path: RelativePath
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=0)] | None = None
    schema: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Manifest:
    """The files of a partition and the inputs they were made from. No time stamps: same inputs, same bytes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    partition: FileName
    fingerprint: FileName
    inputs: Mapping[str, Any]
    files: Annotated[Mapping[FileName, PublishedFile], Field(max_length=MAX_PARTITION_FILES)]

    @property
    def content_hash(self) -> str:
        """Return the hash of all files' bytes: equal content means equal data, whatever the inputs."""
        return compute_fingerprint({name: file.sha256 for name, file in self.files.items()})

    @property
    def reference(self) -> dict[str, str]:
        """Return a small reference that tasks hand over; `Dataset.resolve` finds the manifest by it."""
        return {"partition": self.partition, "fingerprint": self.fingerprint}

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Return the manifest in `text`, which may come from anybody who can write to the lake.

        Raises:
            ValueError: it is no manifest, or the path of a file is not where `Dataset.publish` puts it.
        """
        try:
            manifest = _MANIFEST_ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ValueError(validation_problem(error)) from None
        for name, file in manifest.files.items():
            if file.path.split("/")[:-1] != [name, manifest.partition]:
                raise ValueError(f"the path of {name} is not below {name}/{manifest.partition}")
        return manifest


_MANIFEST_ADAPTER = TypeAdapter(Manifest)


class PublicationStamp(NamedTuple):
    """Changes whenever the partition is published anew."""

    time_ns: int
    """When it was, since the epoch."""
    identity: int | str


class PublishedManifest(NamedTuple):
    """A manifest as it is published, and what a replacement depends on."""

    manifest: Manifest | None
    """None: the partition has expired."""
    data: bytes
    version: str
    changed_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Dataset:
    """A folder of the lake whose partitions are published one by one, each atomically."""

    root: Path

    @property
    def staging(self) -> Path:
        """The folder of work in progress: a folder for each partition and fingerprint."""
        return self.root / _STAGING

    def manifest(self, partition: str) -> Manifest | None:
        """Return what is published under `partition`, or None.

        Raises:
            DatasetError: its manifest is damaged, too large, or names a file outside of the partition.
        """
        published = self.read_published(partition)
        return published and published.manifest

    def read_published(self, partition: str) -> PublishedManifest | None:
        """Return what is stored as the manifest of `partition`, with its version; raises as `manifest`."""
        path = self.manifest_path(partition)
        stored = read_version(path, MAX_MANIFEST_BYTES + 1)
        if stored is None:
            return None
        if self._is_tombstone(stored.data):
            return PublishedManifest(None, *stored)
        try:
            if len(stored.data) > MAX_MANIFEST_BYTES:
                raise ValueError(f"it has more than {MAX_MANIFEST_BYTES:,} bytes")
            manifest = Manifest.from_json(stored.data)
            if manifest.partition != partition:
                raise ValueError(f"it is that of {manifest.partition}")
        except ValueError as error:
            fix = "remove it and run what makes the partition again; find out who can write to the lake"
            raise DatasetError(f"{path} is no manifest: {error}: {fix}") from None
        return PublishedManifest(manifest, *stored)

    def find(self, partition: str, fingerprint: str) -> Manifest | None:
        """Return the manifest of `partition` if it has this `fingerprint`, or None.

        What is found is in use: its age for `evergreen.lake.retention` begins anew.
        """
        published = self.read_published(partition)
        while published and published.manifest and published.manifest.fingerprint == fingerprint:
            if self._renew_manifest(partition, published):
                return published.manifest
            published = self.read_published(partition)
        return None

    def resolve(self, reference: Mapping[str, str]) -> Manifest:
        """Return the manifest that an earlier task of the run published, by its reference.

        Raises:
            InputsChangedError: another run has replaced the partition since, or it has expired.
        """
        manifest = self.find(reference["partition"], reference["fingerprint"])
        if manifest is None:
            raise InputsChangedError(
                f"{self.root.name} {reference['partition']}: another run with other inputs has replaced what this run "
                "published, or maintenance has removed it; clear this run from the start"
            )
        return manifest

    def exists(self) -> bool:
        """Return whether anything may be published here."""
        return (self.root / _MANIFESTS).is_dir()

    def partitions(self, start: str = "") -> list[str]:
        """Return the names of published partitions, in order, from `start` on: what is before costs nothing."""
        return sorted(path.stem for path in (self.root / _MANIFESTS).glob("*.json") if path.stem >= start)

    def publication_stamps(self) -> dict[str, PublicationStamp]:
        """Return the stamp of each partition's manifest, by the name of the partition. No manifest is read."""
        stamps = {}
        with suppress(FileNotFoundError), os.scandir(self.root / _MANIFESTS) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        status = entry.stat()
                        stamps[entry.name.removesuffix(".json")] = PublicationStamp(status.st_mtime_ns, status.st_ino)
        return stamps

    def manifests(self) -> list[Manifest]:
        """Return all published manifests, in the order of the partitions' names."""
        return self.read_manifests(self.partitions())

    def folders(self) -> list[UPath | Path]:
        """Return the folder of each name that files are published under, in order; also of names of the past."""
        return [path for path in sorted(self.root.glob("[!_]*")) if path.is_dir()]

    def read_manifests(self, partitions: Sequence[str]) -> list[Manifest]:
        """Return those of `partitions` that are published, in their order."""
        return [manifest for partition in partitions if (manifest := self.manifest(partition))]

    def newest(self) -> Manifest | None:
        """Return the manifest of the last partition; None if nothing is published."""
        return next((self.manifest(partition) for partition in self.partitions()[-1:]), None)

    def file_path(self, manifest: Manifest, name: str) -> Path:
        """Return a local path of the file `name` of a published partition: of the file itself, or of a copy of it."""
        return self.root / manifest.files[name].path

    def published_path(self, manifest: Manifest, name: str) -> UPath | Path:
        """Return the path at which the file `name` of a published partition is stored, here or in an object store."""
        return self.root / manifest.files[name].path

    def stage(self, partition: str, fingerprint: str) -> Path:
        """Create and return an empty folder to prepare a partition in. Two attempts never share a folder."""
        folder = self._staging_folder(partition, fingerprint) / uuid.uuid4().hex
        with self._share_lock():
            folder.mkdir(parents=True)
        return folder

    def find_cached(self, partition: str, fingerprint: str) -> UPath | Path | None:
        """Return the folder that `cache_staged` has cached for this fingerprint, or None; `open_staged` opens it."""
        folder = self._staging_folder(partition, fingerprint) / _CACHE
        return folder if folder.is_dir() and self._renew(folder) else None

    def cache_staged(self, partition: str, fingerprint: str, staged: Path) -> UPath | Path:
        """Make a complete folder from `stage` available to `find_cached` until the partition is published.

        Of two attempts the first wins; their bytes are equal.
        """
        cached = self._staging_folder(partition, fingerprint) / _CACHE
        for file in staged.iterdir():
            fsync_path(file)
        fsync_path(staged)
        try:
            staged.rename(cached)
        except OSError:
            if not cached.is_dir():
                raise
            shutil.rmtree(staged, ignore_errors=True)
        return cached

    def publish(
        self,
        partition: str,
        fingerprint: str,
        files: Mapping[str, Path],
        inputs: Mapping[str, Any],
        *,
        keeps_published: bool = False,
    ) -> Manifest:
        """Make `files` (name → staged file) the content of `partition`, atomically; return what is published then.

        Does nothing if this fingerprint is published already: a concurrent attempt or a re-run succeeds even if its
        staged files are gone. With `keeps_published` any other that is published stays, too: the first one wins.
        """
        if manifest := self.find(partition, fingerprint):
            return manifest
        for name in files:
            _check_name(name)
        try:
            entries = {name: self._describe_file(name, partition, file) for name, file in sorted(files.items())}
            manifest = self._put_manifest(Manifest(partition, fingerprint, inputs, entries), files, keeps_published)
        except FileNotFoundError:
            # A concurrent attempt has published them, and removed the staged files.
            if published := self.find(partition, fingerprint):
                return published
            raise
        self._discard_staged(partition, fingerprint)
        return manifest

    def _put_manifest(self, manifest: Manifest, files: Mapping[str, Path], keeps_published: bool) -> Manifest:
        """Publish `manifest`, unless its fingerprint is published by now; return what is, as readers will get it."""
        path, data = self.manifest_path(manifest.partition), manifest.to_json().encode()
        replaced = self.read_published(manifest.partition)
        while not (
            replaced
            and replaced.manifest
            and (keeps_published or replaced.manifest.fingerprint == manifest.fingerprint)
        ):
            with self._share_lock():
                for name, entry in manifest.files.items():
                    self._store_file(files[name], entry)
                self.renew_folders(manifest.partition)
                if replace_version(path, data, replaced and replaced.version):
                    return Manifest.from_json(data)  # with lists for tuples
            log.info("%s: another run has published it at this moment", path)
            replaced = self.read_published(manifest.partition)
        self._withdraw_files(manifest)
        return replaced.manifest

    def lock_for_removal(self) -> AbstractContextManager[None]:
        """Hold the dataset's lock alone, so that nobody publishes; a BlockingIOError if somebody does just now."""
        return file_lock(self.root / _LOCK, wait=False)

    def _share_lock(self) -> AbstractContextManager[None]:
        return file_lock(self.root / _LOCK, shared=True)

    def renew_folders(self, partition: str) -> None:
        """Let the age of the files of a partition begin anew: nothing names them from now on, but readers have them."""
        manifest = self.manifest(partition)
        for file in manifest.files.values() if manifest else ():
            with suppress(FileNotFoundError):
                # The folder, not the file: whoever may publish may write to it, also where another user made the file.
                os.utime((self.root / file.path).parent)

    def _renew_manifest(self, partition: str, _: PublishedManifest) -> bool:
        """Let the age of a manifest begin anew; return False if it is not the one that was read any more."""
        return self._renew(self.manifest_path(partition))

    def _is_tombstone(self, _: bytes) -> bool:
        """Return whether what is stored as a manifest says that the partition has expired."""
        return False

    def _renew(self, path: Path) -> bool:
        """Let the age of a manifest, or of a staged folder, begin anew; return whether it is there."""
        try:
            if time.time() - path.stat().st_mtime < RENEW_AFTER_S:
                return True
            with self._share_lock():
                os.utime(path)
        except FileNotFoundError:
            return False
        except OSError as error:  # as of a reader that may not write, and so runs no step
            log.debug("%s keeps its age: %s", path, error)
        return True

    def _describe_file(self, name: str, partition: str, file: Path) -> PublishedFile:
        fsync_path(file)
        digest = file_sha256(file)
        rows, schema = None, None
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq  # here, so that reading manifests stays light

            metadata = pq.read_metadata(file)
            rows = metadata.num_rows
            schema = {column.name: str(column.type) for column in metadata.schema.to_arrow_schema()}
        path = f"{name}/{partition}/{digest[:32]}{file.suffix}"
        return PublishedFile(path, digest, file.stat().st_size, rows, schema)

    def _store_file(self, file: Path, entry: PublishedFile) -> None:
        target = self.root / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # the same bytes, from an earlier attempt
            os.link(file, target)
        fsync_path(target.parent)

    def _withdraw_files(self, manifest: Manifest) -> None:
        """Remove what was stored for a manifest that came too late. Here the files have the names of those in force."""

    def _discard_staged(self, partition: str, fingerprint: str) -> None:
        shutil.rmtree(self._staging_folder(partition, fingerprint), ignore_errors=True)

    def manifest_path(self, partition: str) -> Path:
        return self.root / _MANIFESTS / f"{_check_name(partition)}.json"

    def _staging_folder(self, partition: str, fingerprint: str) -> Path:
        return self.staging / _check_name(f"{partition}-{fingerprint[:16]}")


def lake_root() -> UPath:
    """Return the root of the configured lake.

    Raises:
        StoreError: it is in an object store that does not keep the conditions of writes; what does is asked only once.
    """
    root = settings().lake
    if not is_local(root):
        from evergreen.lake.object_datasets import check_store

        check_store(root)
    return root


def open_dataset(name: str) -> Dataset:
    """Return the dataset `name`, such as `features/flight_delay`, of the configured lake."""
    return dataset_at(lake_root() / name)


def list_datasets(kind: str) -> list[Dataset]:
    """Return the datasets of a kind, such as `features`, in the configured lake, in order of their names."""
    folder = lake_root() / kind
    if isinstance(folder, Path):
        return [Dataset(path) for path in sorted(folder.glob("*")) if path.is_dir()]
    from evergreen import object_store

    return [dataset_at(folder / name) for name in object_store.list_children(folder)]


def dataset_at(root: UPath | Path) -> Dataset:
    """Return the dataset in a folder, here or in an object store."""
    if isinstance(root, Path):
        return Dataset(root)
    from evergreen.lake.object_datasets import ObjectDataset

    return ObjectDataset(root)


def check_published_hash(file: UPath | Path, sha256: str, expected: str) -> None:
    """Check the hash of a published file.

    Raises:
        DatasetError: it is not the one in the manifest.
    """
    if sha256 != expected:
        raise DatasetError(
            f"{file} is not what its manifest names: it was changed after it was published: find out who can write to "
            "the lake, and build its partition again"
        )


def open_staged(folder: str) -> Path:
    """Return the local folder with the files of `folder`, which `Dataset.cache_staged` or `find_cached` has returned.

    There is none if they are gone: another attempt has published them.
    """
    path = storage_path(folder)
    if isinstance(path, Path):
        return path
    from evergreen.lake.object_datasets import copy_staged

    return copy_staged(path)


def path_in_lake(path: UPath | Path) -> str:
    """Return `path` relative to the configured lake, for a record that outlives a move of the lake; see `lake_path`."""
    return storage_path(str(path)).relative_to(lake_root()).as_posix()


def lake_path(path: str) -> UPath:
    """Return the file or folder at `path`, relative to the configured lake.

    Raises:
        DatasetError: it would be outside of the lake.
    """
    try:
        return lake_root() / check_relative_path(path)
    except ValueError as error:
        raise DatasetError(f"{path[:80]!a} is no path in the lake: {error}") from None


def period_partition(period: str) -> str:
    """Return the partition of a period: `day=2013-01-01`, of a week its Monday, or `period=2013-01-01T0600Z`.

    A colon is none in the names of all file systems; and without it, readers of such folders see text, not an instant
    in a time zone of theirs.
    """
    return f"day={period}" if len(period) == _DATE_LENGTH else f"period={file_name_of_period(period)}"


def partition_period(partition: str) -> str:
    """Return the period of a partition that `period_partition` has named, or the value of another one's name."""
    name = partition.partition("=")[2]
    return f"{name[:-3]}:{name[-3:]}" if name.endswith("Z") else name


def file_name_of_period(period: str) -> str:
    """Return the name of a period without the colon that not all file systems have."""
    return period.replace(":", "")


def _check_name(name: str) -> str:
    try:
        return check_file_name(name)
    except ValueError as error:
        raise DatasetError(f"a partition or file of the lake: {error}") from None


def published_files(
    path: str, read_manifests: Callable[[Dataset], list[Manifest]] = Dataset.manifests
) -> dict[str, Mapping[str, str]] | None:
    """Return the files that are published under `<dataset>/<name>`, oldest partition first, each with its schema.

    Return None if `path` is not in a dataset, so that readers can treat it as an ordinary path. Whoever reads several
    tables passes a `read_manifests` that remembers, so that all are of one state, which is read once.
    """
    table = find_published_table(path, read_manifests)
    return table and table.local_files()


class PublishedTable(NamedTuple):
    """The files that are published under one name in a dataset."""

    dataset: Dataset
    name: str
    manifests: Sequence[Manifest]
    """Those that have such a file, oldest partition first."""

    @property
    def periods(self) -> list[str]:
        """The period of each manifest."""
        return [partition_period(manifest.partition) for manifest in self.manifests]

    def local_files(self) -> dict[str, Mapping[str, str]]:
        """Return a local path of each file, with its schema."""
        return {
            str(self.dataset.file_path(manifest, self.name)): manifest.files[self.name].schema or {}
            for manifest in self.manifests
        }


def find_published_table(
    path: str, read_manifests: Callable[[Dataset], list[Manifest]] = Dataset.manifests
) -> PublishedTable | None:
    """Return what is published under `<dataset>/<name>`, as `published_files` does, without a copy of any file."""
    folder = storage_path(path)
    dataset = dataset_at(folder.parent)
    if not dataset.exists():
        return None
    manifests = [manifest for manifest in read_manifests(dataset) if folder.name in manifest.files]
    return PublishedTable(dataset, folder.name, manifests)
