"""Datasets in an object store: what links, renames and locks do in a folder, done by names and conditional puts.

::

    features/flight_delay/
        _manifests/day=2013-01-01.json                      put on condition that it is the one that was read;
                                                            a tombstone if the partition has expired
        carrier_delays/day=2013-01-01/3f9a…-7c1e….parquet   named by its content and the attempt that has put it
        _staging/day=2013-01-01-5e0d…/staged.json           what a task has built for the next one; put if absent
        _staging/day=2013-01-01-5e0d…/7c1e…/flights.parquet

No attempt relies on a file that another one has put, so whatever no manifest names can be removed by its age alone.

Engines read local files: `ObjectDataset.file_path` copies an object into the folder that `EVERGREEN_CACHE` names, once
per machine, and compares the copy with the hash in the manifest. Copies that are unused for days are removed.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from evergreen import object_store
from evergreen.errors import DatasetError
from evergreen.lake.datasets import (
    RENEW_AFTER_S,
    Dataset,
    Manifest,
    PublicationStamp,
    PublishedFile,
    PublishedManifest,
    check_published_hash,
)
from evergreen.settings import settings
from evergreen.storage import FileName, Sha256, UPath, file_sha256, remove_version

log = logging.getLogger(__name__)

_PROOF = "_store/conditions.json"
_TOMBSTONE = b'{"expired": true}\n'  # shorter than any manifest
_STAGED = "staged.json"
_MAX_STAGED_BYTES = 2**20
_UNUSED_AFTER_S = 7 * 24 * 3600  # longer than any task uses a copy without asking for it again
_PRUNE_EVERY_S = 3600
_READERS = 16

_STAGED_ADAPTER = TypeAdapter(
    dict[FileName, tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")], Sha256]]  # name: attempt, hash
)


@dataclass(frozen=True)
class ObjectDataset(Dataset):
    """A dataset below a key of a bucket."""

    root: UPath  # type: ignore[assignment]

    def exists(self) -> bool:
        # Without a request: in a store, a dataset with nothing published is nothing at all.
        return self.root.path.startswith(f"{settings().lake.path}/")

    def partitions(self, start: str = "") -> list[str]:
        return sorted(self._list_stamps(start))

    def publication_stamps(self) -> dict[str, PublicationStamp]:
        return self._list_stamps("")

    def _list_stamps(self, start: str) -> dict[str, PublicationStamp]:
        stamps = {}
        for item in object_store.list_objects(self.manifest_path("any").parent, start):
            if item.path.endswith(".json") and not is_tombstone(item):
                stamp = PublicationStamp(int(item.changed_at * 1e9), item.version)
                stamps[item.path.removesuffix(".json")] = stamp
        return stamps

    def folders(self) -> list[UPath | Path]:
        return [self.root / name for name in object_store.list_children(self.root) if not name.startswith("_")]

    def read_manifests(self, partitions: Sequence[str]) -> list[Manifest]:
        return [entry.manifest for entry in self.read_all_published(partitions) if entry.manifest]

    def read_all_published(self, partitions: Sequence[str]) -> list[PublishedManifest]:
        """Return what is stored as the manifests of `partitions`, in their order."""
        with ThreadPoolExecutor(_READERS) as pool:  # each is a request that mostly waits
            return [entry for entry in pool.map(self.read_published, partitions) if entry]

    def file_path(self, manifest: Manifest, name: str) -> Path:
        entry = manifest.files[name]
        return _local_copy(self.root / entry.path, entry.sha256)

    def stage(self, partition: str, fingerprint: str) -> Path:
        folder = self._work_folder(partition, fingerprint) / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def find_cached(self, partition: str, fingerprint: str) -> UPath | None:
        folder = self._staging_folder(partition, fingerprint)
        stored = object_store.read(folder / _STAGED)
        if stored and time.time() - stored.changed_at > RENEW_AFTER_S:
            object_store.write(folder / _STAGED, stored.data, stored.version)  # its age begins anew
        return folder if stored else None

    def cache_staged(self, partition: str, fingerprint: str, staged: Path) -> UPath:
        folder, attempt = self._staging_folder(partition, fingerprint), uuid.uuid4().hex
        hashes = {}
        for file in sorted(staged.iterdir()):
            hashes[file.name] = (attempt, file_sha256(file))
            object_store.put_file(file, folder / attempt / file.name)
            _keep_copy(file, folder / attempt / file.name, hashes[file.name][1])
        if not object_store.write(folder / _STAGED, _STAGED_ADAPTER.dump_json(hashes), None):
            object_store.delete([folder / attempt / name for name in hashes])  # another attempt was first
        shutil.rmtree(staged, ignore_errors=True)
        return folder

    def renew_folders(self, partition: str) -> None:
        """Do nothing: the age of a replaced object begins with the change of its manifest."""

    def lock_for_removal(self) -> AbstractContextManager[None]:
        return nullcontext()

    def manifest_path(self, partition: str) -> UPath:  # type: ignore[override]
        path: UPath = super().manifest_path(partition)  # type: ignore[assignment]
        return path

    def _staging_folder(self, partition: str, fingerprint: str) -> UPath:  # type: ignore[override]
        folder: UPath = super()._staging_folder(partition, fingerprint)  # type: ignore[assignment]
        return folder

    def _share_lock(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _describe_file(self, name: str, partition: str, file: Path) -> PublishedFile:
        entry = super()._describe_file(name, partition, file)
        path = PurePosixPath(entry.path)
        path = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:12]}{path.suffix}")
        target = self.root / path.as_posix()
        object_store.put_file(file, target)
        _keep_copy(file, target, entry.sha256)
        return PublishedFile(path.as_posix(), entry.sha256, entry.size, entry.rows, entry.schema)

    def _store_file(self, file: Path, entry: PublishedFile) -> None:
        """Do nothing: `_describe_file` has put it under a name of its own."""

    def _withdraw_files(self, manifest: Manifest) -> None:
        object_store.delete([self.root / file.path for file in manifest.files.values()])

    def _discard_staged(self, partition: str, fingerprint: str) -> None:
        shutil.rmtree(self._work_folder(partition, fingerprint), ignore_errors=True)
        folder = self._staging_folder(partition, fingerprint)
        self.delete_staged(folder, [item.path for item in object_store.list_objects(folder)])

    def delete_staged(self, folder: UPath, names: Sequence[str]) -> None:
        """Delete the objects `names` of a folder of staged files."""
        # First what says that the others are complete.
        object_store.delete([folder / name for name in names if name == _STAGED])
        object_store.delete([folder / name for name in names if name != _STAGED])

    def expire(self, partition: str, version: str) -> bool:
        """Replace the manifest of a partition by a tombstone if it is still `version`; return whether this call did.

        A store need not be able to delete on a condition, but it replaces on one. So a publisher, or a step that finds
        the partition in use, comes either before and keeps it, or after and finds it gone.
        """
        return object_store.write(self.manifest_path(partition), _TOMBSTONE, version)

    def delete_tombstone(self, partition: str) -> bool:
        """Delete the tombstone of a partition unless a publisher has replaced it; return whether this call did."""
        stored = object_store.read(self.manifest_path(partition), len(_TOMBSTONE) + 1)
        if stored is None or not self._is_tombstone(stored.data):
            return False
        return remove_version(self.manifest_path(partition), stored.version)

    def _is_tombstone(self, data: bytes) -> bool:
        return data == _TOMBSTONE

    def _renew_manifest(self, partition: str, published: PublishedManifest) -> bool:
        if time.time() - published.changed_at < RENEW_AFTER_S:
            return True
        # With an empty line more: equal bytes would be the version that a removal has read before.
        data = published.data + b"\n"
        try:
            return object_store.write(self.manifest_path(partition), data, published.version)
        except PermissionError as error:  # as of a reader that may not write, and so runs no step
            log.debug("%s keeps its age: %s", self.manifest_path(partition), error)
            return True

    def _work_folder(self, partition: str, fingerprint: str) -> Path:
        return _work_folder(self._staging_folder(partition, fingerprint))


def is_tombstone(item: object_store.ListedObject) -> bool:
    """Return whether an object in a folder of manifests is a tombstone, by its size alone."""
    return item.size == len(_TOMBSTONE)


def copy_staged(folder: UPath) -> Path:
    """Return a local folder with the files of a staged one, each compared with its hash.

    There is no such folder if they are gone: published meanwhile by another attempt.

    Raises:
        DatasetError: what names them is damaged.
    """
    local = _work_folder(folder) / f"copy-{uuid.uuid4().hex}"
    stored = object_store.read(folder / _STAGED, _MAX_STAGED_BYTES)
    if stored is None:
        return local
    try:
        hashes = _STAGED_ADAPTER.validate_json(stored.data)
    except ValidationError:
        raise DatasetError(
            f"{folder / _STAGED} is damaged: remove it, and clear the run from its plan task on"
        ) from None
    local.mkdir(parents=True)
    for name, (attempt, sha256) in hashes.items():
        os.link(_local_copy(folder / attempt / name, sha256), local / name)
    return local


@cache
def check_store(root: UPath) -> None:
    """Check once in the life of a lake that its store keeps the conditions of writes.

    Raises:
        StoreError: it does not.
    """
    proof = root / _PROOF
    if object_store.exists(proof):
        return
    log.info("%s is new: racing writers show whether its store keeps the conditions of writes", root)
    try:
        object_store.prove_conditions(root)
    except PermissionError:
        return  # nor will it write anything else
    object_store.write(proof, b'{"conditional_writes": "kept"}\n', None)


def _work_folder(staging_folder: UPath) -> Path:
    return settings().cache / "staging" / staging_folder.path.lstrip("/")


def _local_copy(file: UPath, sha256: str) -> Path:
    copy = _copy_path(file, sha256)
    try:
        os.utime(copy)  # in use
        return copy
    except FileNotFoundError:
        _prune_copies()
    copy.parent.mkdir(parents=True, exist_ok=True)
    scratch = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
    try:
        object_store.copy_object(file, scratch)
        check_published_hash(file, file_sha256(scratch), sha256)
        os.replace(scratch, copy)
    finally:
        scratch.unlink(missing_ok=True)
    return copy


def _keep_copy(source: Path, file: UPath, sha256: str) -> None:
    """Keep what was written here as the copy of its object: the next step of a run is often here, too."""
    copy = _copy_path(file, sha256)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # there already; or the cache is on another file system
        os.link(source, copy)


def _copy_path(file: UPath, sha256: str) -> Path:
    # Not by content alone: partitions with equal bytes are two files to those who read both.
    folder = settings().cache / "objects" / file.parent.path.lstrip("/")
    return folder / f"{sha256[:32]}-{file.name}"


def _prune_copies() -> None:
    """Remove copies that are unused for long, now and then."""
    folder = settings().cache / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    marker, now = folder / ".pruned", time.time()
    with suppress(FileNotFoundError):
        if now - marker.stat().st_mtime < _PRUNE_EVERY_S:
            return
    marker.touch()
    for parent in (folder, settings().cache / "staging"):
        for path, _, names in os.walk(parent):
            for name in names:
                file = Path(path, name)
                with suppress(OSError):
                    if file != marker and now - file.stat().st_mtime > _UNUSED_AFTER_S:
                        file.unlink()
