"""What may be removed from a dataset: an inventory, a plan that is a pure function of it, and the removal.

Three things are removed, each only after its age exceeds what the rule says:

- a partition *expires*: its manifest goes, and its files become leftovers. Its age is that of the last step which
  published it or found it published.
- a file is a leftover when no manifest names it. Its age begins when it stops being named: whoever replaces or removes
  a manifest renews the folders of its files.
- a staged folder is a leftover when nothing in it has changed.

So whoever has read a manifest can read its files for as long as leftovers stay, which is longer than any task runs.
Removal has the dataset's lock alone, looks at each thing again, and then removes it: a concurrent publisher either has
published by then, and its manifest is seen, or finds the file gone, and links its own. Nobody waits for a publisher:
what it is in the way of goes the next time. Removal may be killed at any instruction.

In an object store there is no lock, and none is needed: nobody names a file of an earlier attempt again, and a manifest
is replaced by a *tombstone* on the condition that it is the one that was read. The tombstone tells when its files
stopped being named. It goes when they are gone, where the store deletes on that condition, too; else it stays.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from evergreen import object_store
from evergreen.lake.datasets import Dataset, Manifest, lake_root
from evergreen.lake.object_datasets import ObjectDataset, is_tombstone
from evergreen.storage import UPath, change_storage_class, fsync_path

_PUBLISHED_FILE_PATTERN = re.compile(r"[0-9a-f]{32}(\.\w+)*")
_OBJECT_PATTERN = re.compile(r"[0-9a-f]{32}-[0-9a-f]{12}(\.\w+)*")
_HIDDEN = ("_", ".")

RemovalKind = Literal["expired", "replaced", "staged", "tombstone", "cold"]


@dataclass(frozen=True)
class PublishedPartition:
    """A partition, and when (seconds since the epoch) a step last published it or found it published."""

    manifest: Manifest
    used_at: float


@dataclass(frozen=True)
class StoredItem:
    """A file of a partition, a folder of work in progress, or the tombstone of a partition.

    Attributes:
        path: in the dataset; of a tombstone the name of the partition.
        size: in bytes, of all files in it.
        changed_at: when it, or the folder of a file, last changed, in seconds since the epoch.
    """

    path: str
    size: int
    changed_at: float

    @property
    def partition(self) -> str:
        """The partition of a file."""
        return self.path.split("/")[1]


@dataclass(frozen=True)
class DatasetInventory:
    """Everything of a dataset that a plan is about, in order of names.

    Attributes:
        tombstones: names of expired partitions without a file, where tombstones can be deleted.
    """

    partitions: tuple[PublishedPartition, ...]
    files: tuple[StoredItem, ...]
    staged: tuple[StoredItem, ...]
    tombstones: tuple[StoredItem, ...] = ()


def _keep_all(_: Manifest) -> bool:
    return True


@dataclass(frozen=True)
class RetentionRule:
    """What stays of a dataset.

    Attributes:
        leftovers_after: seconds after which leftovers go.
        expires_after: seconds after which a partition expires; None: never.
        is_needed: whether a partition stays, whatever its age.
        pinned_files: paths in the dataset that something else names than the manifests in force.
        oldest_first: whether no partition expires before all earlier ones: there is no hole among those that stay.
        keeps_replaced: whether files that no manifest names stay, because they are data.
        cold_after: seconds after which files of a partition that stays get the storage class `cold_class`, in S3.
    """

    leftovers_after: float
    expires_after: float | None = None
    is_needed: Callable[[Manifest], bool] = _keep_all
    pinned_files: frozenset[str] = frozenset()
    oldest_first: bool = False
    keeps_replaced: bool = False
    cold_after: float | None = None
    cold_class: str = ""

    def lets_expire(self, partition: PublishedPartition, now: float) -> bool:
        """Return whether the partition is old enough, and nothing needs it."""
        is_old = self.expires_after is not None and partition.used_at < now - self.expires_after
        return is_old and not self.is_needed(partition.manifest)

    def lets_go(self, file: StoredItem, manifest: Manifest | None, now: float) -> bool:
        """Return whether a file is old enough, and neither pinned nor named by the manifest of its partition."""
        is_kept = self.keeps_replaced or file.path in self.pinned_files or self.is_recent(file, now)
        named = {entry.path for entry in manifest.files.values()} if manifest else ()
        return not is_kept and file.path not in named

    def lets_cool(self, file: StoredItem, partition: PublishedPartition | None, now: float) -> bool:
        """Return whether a file is one of a partition that is old enough, and was not moved since its last use."""
        if self.cold_after is None or partition is None or partition.used_at >= now - self.cold_after:
            return False
        named = {entry.path for entry in partition.manifest.files.values()}
        return file.path in named and file.changed_at <= partition.used_at  # a copy would be newer

    def is_recent(self, item: StoredItem, now: float) -> bool:
        """Return whether a leftover may still be in use."""
        return item.changed_at >= now - self.leftovers_after


@dataclass(frozen=True)
class Removal:
    """One thing that goes, or of kind `cold` moves to another storage class.

    The size of an expired partition is freed later, when its files are leftovers.
    """

    kind: RemovalKind
    path: str
    size: int
    changed_at: float


def take_inventory(dataset: Dataset) -> DatasetInventory:
    """Return what is stored in `dataset`.

    Raises:
        DatasetError: a manifest is damaged, so nobody can say which files it needs.
    """
    if isinstance(dataset, ObjectDataset):
        return _list_inventory(dataset)
    partitions = [_find_partition(dataset, partition) for partition in dataset.partitions()]
    folders = (folder for table in _subfolders(dataset.root) for folder in _subfolders(table))
    files = [_measure_file(dataset, file) for folder in folders for file in _published_files(folder)]
    return DatasetInventory(
        partitions=tuple(filter(None, partitions)),
        files=tuple(filter(None, files)),
        staged=tuple(_measure_folder(dataset, Path(entry.path)) for entry in _scan(dataset.staging)),
    )


def plan_removals(inventory: DatasetInventory, rule: RetentionRule, now: float) -> list[Removal]:
    """Return what goes by `rule` at the instant `now`. Files of a partition that expires are no leftovers yet."""

    def expires(partition: PublishedPartition) -> bool:
        return rule.lets_expire(partition, now)

    old = list((takewhile if rule.oldest_first else filter)(expires, inventory.partitions))
    manifests = {partition.manifest.partition: partition.manifest for partition in inventory.partitions}
    expiring = {item.manifest.partition for item in old}
    staying = {name: item for item in inventory.partitions if (name := item.manifest.partition) not in expiring}
    return [
        *(
            Removal("expired", item.manifest.partition, sum(f.size for f in item.manifest.files.values()), item.used_at)
            for item in old
        ),
        *(
            Removal("replaced", item.path, item.size, item.changed_at)
            for item in inventory.files
            if rule.lets_go(item, manifests.get(item.partition), now)
        ),
        *(
            Removal("staged", item.path, item.size, item.changed_at)
            for item in inventory.staged
            if not rule.is_recent(item, now)
        ),
        *(
            Removal("tombstone", item.path, item.size, item.changed_at)
            for item in inventory.tombstones
            if not rule.is_recent(item, now)
        ),
        *(
            Removal("cold", item.path, item.size, item.changed_at)
            for item in inventory.files
            if rule.lets_cool(item, staying.get(item.partition), now)
        ),
    ]


def apply_removals(dataset: Dataset, removals: Iterable[Removal], rule: RetentionRule, now: float) -> Iterator[Removal]:
    """Remove what still goes by `rule`, one after the other, and yield each. What was used since the plan stays."""
    for removal in removals:
        is_removed = False
        with suppress(BlockingIOError), dataset.lock_for_removal():
            if isinstance(dataset, ObjectDataset):
                is_removed = _OBJECT_REMOVERS[removal.kind](dataset, removal, rule, now)
            else:
                is_removed = _FILE_REMOVERS[removal.kind](dataset, removal, rule, now)
        if is_removed:
            yield removal
        elif removal.kind == "expired" and rule.oldest_first:
            return


def end_uploads(folder: UPath, cutoff: float, *, is_dry_run: bool) -> Iterator[Removal]:
    """End uploads below `folder` that began before `cutoff` and that nobody has completed; yield each.

    Those of S3: in other stores they end by themselves, after a week.
    """
    for upload in object_store.list_uploads(folder):
        if upload.started_at < cutoff:
            if not is_dry_run:
                object_store.abort_upload(folder, upload)
            yield Removal("staged", upload.path, upload.size, upload.started_at)


def _remove_partition(dataset: Dataset, removal: Removal, rule: RetentionRule, now: float) -> bool:
    partition = _find_partition(dataset, removal.path)
    if partition is None or not rule.lets_expire(partition, now):
        return False
    dataset.renew_folders(removal.path)
    manifest = dataset.manifest_path(removal.path)
    manifest.unlink()
    fsync_path(manifest.parent)
    return True


def _remove_file(dataset: Dataset, removal: Removal, rule: RetentionRule, now: float) -> bool:
    file = dataset.root / removal.path
    item = _measure_file(dataset, file)
    if item is None or not rule.lets_go(item, dataset.manifest(item.partition), now):
        return False
    # An age that unlinking renews would keep the other leftovers of the folder longer.
    folder = file.parent.stat()
    file.unlink()
    with suppress(OSError):
        file.parent.rmdir()  # of the last one
    with suppress(FileNotFoundError):
        os.utime(file.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    return True


def _remove_staged(dataset: Dataset, removal: Removal, rule: RetentionRule, now: float) -> bool:
    folder = dataset.root / removal.path
    if not folder.is_dir() or rule.is_recent(_measure_folder(dataset, folder), now):
        return False
    # In one step: nobody finds a half of it in the cache.
    doomed = folder.rename(folder.with_name(f".{uuid.uuid4().hex}"))
    shutil.rmtree(doomed)
    return True


_FILE_REMOVERS = {"expired": _remove_partition, "replaced": _remove_file, "staged": _remove_staged}


def _list_inventory(dataset: ObjectDataset) -> DatasetInventory:
    """Return what is stored, by one listing and a read of each manifest."""
    sizes: dict[str, int] = {}
    changes: dict[str, float] = {}
    files, tombstones, names = [], [], []
    manifests_folder = dataset.manifest_path("any").parent.name
    for item in object_store.list_objects(dataset.root):
        folder, _, rest = item.path.partition("/")
        if folder == dataset.staging.name:
            place = f"{folder}/{rest.partition('/')[0]}"
            sizes[place] = sizes.get(place, 0) + item.size
            changes[place] = max(changes.get(place, 0.0), item.changed_at)
        elif folder == manifests_folder and rest.endswith(".json"):
            if is_tombstone(item):
                tombstones.append(StoredItem(rest.removesuffix(".json"), item.size, item.changed_at))
            else:
                names.append(rest.removesuffix(".json"))
        elif not folder.startswith(_HIDDEN) and rest.count("/") == 1 and _OBJECT_PATTERN.fullmatch(rest.split("/")[1]):
            files.append(StoredItem(item.path, item.size, item.changed_at))
    published = dataset.read_all_published(names)
    # A file stops being named when the manifest of its partition changes.
    changed_at = {item.path: item.changed_at for item in tombstones}
    partitions = []
    for entry in published:
        if entry.manifest:
            partitions.append(PublishedPartition(entry.manifest, entry.changed_at))
            changed_at[entry.manifest.partition] = entry.changed_at
    used = {file.partition for file in files}
    unused = [item for item in tombstones if item.path not in used]
    return DatasetInventory(
        partitions=tuple(partitions),
        files=tuple(
            replace(file, changed_at=max(file.changed_at, changed_at.get(file.partition, 0.0))) for file in files
        ),
        staged=tuple(StoredItem(place, size, changes[place]) for place, size in sorted(sizes.items())),
        tombstones=tuple(unused) if unused and object_store.deletes_on_condition(lake_root()) else (),
    )


def _expire_partition(dataset: ObjectDataset, removal: Removal, rule: RetentionRule, now: float) -> bool:
    published = dataset.read_published(removal.path)
    if published is None or published.manifest is None:
        return False
    partition = PublishedPartition(published.manifest, published.changed_at)
    return rule.lets_expire(partition, now) and dataset.expire(removal.path, published.version)


def _delete_file(dataset: ObjectDataset, removal: Removal, rule: RetentionRule, now: float) -> bool:
    """Delete a leftover. No attempt names a file that another one has put, so what no manifest names stays so."""
    item = StoredItem(removal.path, removal.size, removal.changed_at)
    published = dataset.read_published(item.partition)
    if published:
        item = replace(item, changed_at=max(item.changed_at, published.changed_at))
    if not rule.lets_go(item, published and published.manifest, now):
        return False
    object_store.delete([dataset.root / removal.path])
    return True


def _delete_staged(dataset: ObjectDataset, removal: Removal, rule: RetentionRule, now: float) -> bool:
    folder = dataset.root / removal.path
    items = list(object_store.list_objects(folder))
    if max((item.changed_at for item in items), default=now) >= now - rule.leftovers_after:
        return False
    dataset.delete_staged(folder, [item.path for item in items])
    return True


def _delete_tombstone(dataset: ObjectDataset, removal: Removal, _: RetentionRule, __: float) -> bool:
    return dataset.delete_tombstone(removal.path)


def _cool_file(dataset: ObjectDataset, removal: Removal, rule: RetentionRule, now: float) -> bool:
    item = StoredItem(removal.path, removal.size, removal.changed_at)
    published = dataset.read_published(item.partition)
    if published is None or published.manifest is None:
        return False
    if not rule.lets_cool(item, PublishedPartition(published.manifest, published.changed_at), now):
        return False
    change_storage_class(dataset.root / removal.path, rule.cold_class)
    return True


_OBJECT_REMOVERS = {
    "cold": _cool_file,
    "expired": _expire_partition,
    "replaced": _delete_file,
    "staged": _delete_staged,
    "tombstone": _delete_tombstone,
}


def _find_partition(dataset: Dataset, name: str) -> PublishedPartition | None:
    try:
        used_at = dataset.manifest_path(name).stat().st_mtime
    except FileNotFoundError:
        return None
    manifest = dataset.manifest(name)
    return PublishedPartition(manifest, used_at) if manifest else None


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in `folder` that may hold published files, in order: no link, none of the lake's own."""
    return [Path(e.path) for e in _scan(folder) if e.is_dir(follow_symlinks=False) and not e.name.startswith(_HIDDEN)]


def _published_files(folder: Path) -> list[Path]:
    """Return the files in `folder` that have a name as `Dataset.publish` gives it, in order."""
    return [Path(entry.path) for entry in _scan(folder) if _PUBLISHED_FILE_PATTERN.fullmatch(entry.name)]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


def _measure_file(dataset: Dataset, file: Path) -> StoredItem | None:
    try:
        status, folder = file.lstat(), file.parent.stat()
    except FileNotFoundError:
        return None
    changed_at = max(status.st_mtime, folder.st_mtime)
    return StoredItem(str(file.relative_to(dataset.root)), status.st_size, changed_at)


def _measure_folder(dataset: Dataset, folder: Path) -> StoredItem:
    size, changed_at = 0, 0.0
    for parent, _, names in os.walk(folder):
        for path in (parent, *(f"{parent}/{name}" for name in names)):
            with suppress(FileNotFoundError):
                status = os.lstat(path)
                changed_at = max(changed_at, status.st_mtime)
                size += 0 if path == parent else status.st_size
    return StoredItem(str(folder.relative_to(dataset.root)), size, changed_at)
