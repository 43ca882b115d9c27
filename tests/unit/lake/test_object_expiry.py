"""In an object store a partition expires only as it was read, and a tombstone never takes a publication with it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from evergreen import object_store
from evergreen.errors import InputsChangedError
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.object_datasets import ObjectDataset
from evergreen.lake.retention import Removal, RetentionRule, apply_removals, plan_removals, take_inventory
from evergreen.settings import settings
from evergreen.storage import UPath
from support.interleaving import before_store_change, killed_before_store_change
from support.object_stores import STORES, open_store
from support.s3_server import S3

pytestmark = pytest.mark.unit

DAY = "day=2013-01-01"
DAY_S = 24 * 3600.0
RACERS = 8
RULE = RetentionRule(leftovers_after=7 * DAY_S, expires_after=30 * DAY_S, is_needed=lambda _: False)
ANY = RetentionRule(1000 * DAY_S, 0.0, is_needed=lambda _: False)
OLD_ONLY = RetentionRule(1000 * DAY_S, 0.0, is_needed=lambda manifest: manifest.inputs["value"] != "old")
"""Lets the partition with the value `old` expire whenever it was published, and no file go."""


class Server:
    """Our server, whose clock a test sets. It begins in the past: what a step finds there is never young."""

    def __init__(self, s3: S3):
        self.s3, self.now = s3, time.time() - 4000 * DAY_S
        s3.clock = lambda: self.now

    def pass_days(self, days: float) -> None:
        self.now += days * DAY_S

    def clean(self, dataset: Dataset, rule: RetentionRule = RULE) -> list[str]:
        """Return the kinds of what went."""
        return [removal.kind for removal in clean(dataset, rule, self.now)]

    def paths(self) -> set[str]:
        """Return the paths of all objects in the dataset."""
        [bucket] = self.s3.buckets.values()
        prefix = "lake/features/tills/"
        return {key.removeprefix(prefix) for key in bucket if key.startswith(prefix)}


@pytest.fixture
def server(home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with open_store("own", monkeypatch) as (uri, s3):
        assert s3
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        use_home(home)
        object_store.deletes_on_condition.cache_clear()
        yield Server(s3)
    object_store.deletes_on_condition.cache_clear()


@pytest.fixture
def dataset(server: Server) -> ObjectDataset:
    return cast(ObjectDataset, datasets.open_dataset("features/tills"))


@pytest.fixture(params=STORES)
def stored(
    request: pytest.FixtureRequest, home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectDataset]:
    """A dataset of a lake in our server, and in a real one."""
    with open_store(request.param, monkeypatch) as (uri, _):
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        use_home(home)
        object_store.deletes_on_condition.cache_clear()
        yield cast(ObjectDataset, datasets.open_dataset("features/tills"))
    object_store.deletes_on_condition.cache_clear()


def publish(dataset: Dataset, value: str, partition: str = DAY) -> Manifest:
    """Publish a partition of two files with this value, which is its fingerprint, too."""
    folder = dataset.stage(partition, value)
    files = {name: folder / f"{name}.json" for name in ("carriers", "origins")}
    for name, file in files.items():
        file.write_text(f"{name} {value}")
    return dataset.publish(partition, value, files, {"value": value})


def clean(dataset: Dataset, rule: RetentionRule, now: float) -> list[Removal]:
    return list(apply_removals(dataset, plan_removals(take_inventory(dataset), rule, now), rule, now))


def read(dataset: Dataset, manifest: Manifest | None) -> str | None:
    """Return the value in the files of a manifest, as another machine reads them."""
    if manifest is None:
        return None
    shutil.rmtree(settings().cache / "objects", ignore_errors=True)
    values = {dataset.file_path(manifest, name).read_text().partition(" ")[2] for name in manifest.files}
    assert values == {manifest.inputs["value"]}
    return values.pop()


def test_an_expired_partition_is_none_and_readers_keep_its_files(dataset: ObjectDataset, server: Server) -> None:
    old = publish(dataset, "a")
    publish(dataset, "a", "day=2013-01-02")
    server.pass_days(31)
    assert dataset.find("day=2013-01-02", "a")
    assert server.clean(dataset) == ["expired"]
    assert (dataset.manifest(DAY), dataset.find(DAY, "a")) == (None, None)
    assert dataset.partitions() == list(dataset.publication_stamps()) == ["day=2013-01-02"]
    assert [manifest.partition for manifest in dataset.manifests()] == ["day=2013-01-02"]
    with pytest.raises(InputsChangedError, match="maintenance has removed it"):
        dataset.resolve(old.reference)
    server.pass_days(6)
    assert plan_removals(take_inventory(dataset), RULE, server.now) == []
    assert read(dataset, old) == "a", "a task that has read the manifest reads its files"
    server.pass_days(2)
    assert server.clean(dataset) == ["replaced"] * 2
    assert f"_manifests/{DAY}.json" in server.paths(), "the tombstone goes after them"
    assert server.clean(dataset) == ["tombstone"]
    assert {key for key in server.paths() if DAY in key} == set()
    assert server.clean(dataset) == []


def test_an_expired_partition_is_published_again(stored: ObjectDataset) -> None:
    for value in ("a", "b", "a"):
        manifest = publish(stored, value)
        assert read(stored, stored.manifest(DAY)) == value
        assert [removal.kind for removal in clean(stored, ANY, time.time() + DAY_S)] == ["expired"]
        assert stored.partitions() == []
        assert read(stored, manifest) == value


def test_what_a_step_finds_stays(dataset: ObjectDataset, server: Server) -> None:
    old = publish(dataset, "a")
    for _ in range(3):
        server.pass_days(31)
        planned = plan_removals(take_inventory(dataset), RULE, server.now)
        stored = dataset.read_published(DAY)
        assert stored
        assert dataset.resolve(old.reference) == old
        assert list(apply_removals(dataset, planned, RULE, server.now)) == []
        assert not dataset.expire(DAY, stored.version), "what was read before has another version"
    assert dataset.manifest(DAY) == old
    count = len(server.s3.requests)
    server.now = time.time()
    dataset.find(DAY, "a")
    dataset.find(DAY, "a")
    puts = [request for request in server.s3.requests[count:] if request[0] == "PUT"]
    assert len(puts) == 1, "it is renewed once an hour"


def test_who_may_not_write_finds_it_nevertheless(dataset: ObjectDataset, server: Server) -> None:
    old = publish(dataset, "a")
    server.s3.refuses = {"PUT"}
    assert dataset.find(DAY, "a") == old


def test_what_expires_while_a_plan_is_made_keeps_its_files(
    dataset: ObjectDataset, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, read_all = publish(dataset, "a"), ObjectDataset.read_all_published

    def read_late(place: ObjectDataset, partitions: list[str]) -> object:
        server.pass_days(31)
        published = place.read_published(DAY)
        assert published
        place.expire(DAY, published.version)
        return read_all(place, partitions)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectDataset, "read_all_published", read_late)
        inventory = take_inventory(dataset)
    plan = plan_removals(inventory, RULE, server.now)
    assert list(apply_removals(dataset, plan, RULE, server.now)) == []
    assert read(dataset, old) == "a"


@pytest.mark.parametrize("is_expired", [False, True])
def test_removal_at_any_moment_of_a_publish(dataset: ObjectDataset, server: Server, is_expired: bool) -> None:
    """The old version expires meanwhile, or its tombstone goes; what is published stays."""
    number, has_more, removed = 0, True, set[str]()
    while has_more:
        place = datasets.dataset_at(dataset.root.with_name(f"tills{number}"))
        publish(place, "old")
        server.pass_days(31)
        if is_expired:
            server.clean(place)
            server.pass_days(8)
            server.clean(place)
        with before_store_change(number, lambda place=place: removed.update(server.clean(place))) as count_changes:
            manifest = publish(place, "new")
        assert place.manifest(DAY) == manifest
        assert read(place, manifest) == "new"
        has_more = count_changes() > number
        number += 1
    assert number > 3
    assert removed == {"tombstone" if is_expired else "expired"}


@pytest.mark.slow
def test_publish_and_use_at_any_moment_of_a_removal(dataset: ObjectDataset, server: Server) -> None:
    events: dict[str, Callable[[Dataset], Manifest | None]] = {
        "new": lambda place: publish(place, "new"),
        "old": lambda place: place.find(DAY, "old") or publish(place, "old"),
    }
    for value, event in events.items():
        for days in (31, 8, 8):  # it expires; its files go; its tombstone goes
            number, has_more = 0, True
            while has_more:
                place = datasets.dataset_at(dataset.root.with_name(f"{value}{days}{number}{time.time_ns()}"))
                publish(place, "old")
                server.pass_days(31)
                if days == 8:
                    assert server.clean(place) == ["expired"]
                    server.pass_days(8)
                with before_store_change(number, partial(event, place)) as count_changes:
                    server.clean(place)
                    if days == 8:
                        server.clean(place)
                has_more = count_changes() > number
                assert read(place, place.manifest(DAY)) == (value if has_more else None)
                number += 1
            assert number > 1


def test_a_killed_removal_leaves_nothing_half(dataset: ObjectDataset, server: Server) -> None:
    number, is_killed = 0, True

    def remove_all(place: Dataset) -> None:
        for days in (31, 8, 8):
            server.pass_days(days)
            server.clean(place)

    while is_killed:
        place = datasets.dataset_at(dataset.root.with_name(f"tills{number}"))
        for day in (DAY, "day=2013-01-02"):
            publish(place, "old", day)
        is_killed = killed_before_store_change(number, lambda place=place: remove_all(place))
        for manifest in place.manifests():
            assert read(place, manifest) == "old"
        remove_all(place)
        assert list(object_store.list_objects(cast(ObjectDataset, place).root)) == []
        number += 1
    assert number > 8


def test_racing_publishers_and_removals_lose_nothing(stored: ObjectDataset) -> None:
    """Many expire the old version, and delete its tombstone, while others publish."""
    for attempt in range(4):
        partition = f"{DAY}-{attempt}"
        publish(stored, "old", partition)
        stored.expire(partition, stored.read_published(partition).version)  # type: ignore[union-attr]

        def run(number: int, partition: str = partition) -> Manifest | None:
            if number % 2:
                return publish(stored, f"new{number}", partition)
            clean(stored, OLD_ONLY, time.time() + 60)
            stored.delete_tombstone(partition)
            return None

        with ThreadPoolExecutor(RACERS) as pool:
            manifests = [manifest for manifest in pool.map(run, range(RACERS)) if manifest]
        in_force = stored.manifest(partition)
        assert in_force in manifests
        assert stored.partitions(partition) == [partition]
        for manifest in manifests:
            assert read(stored, manifest) == manifest.inputs["value"]


@pytest.mark.parametrize("conditions", ["ignored", "late", "refused"])
def test_tombstones_stay_where_a_store_does_not_delete_on_condition(
    dataset: ObjectDataset, server: Server, conditions: str
) -> None:
    server.s3.delete_conditions = conditions
    publish(dataset, "a")
    for days in (31, 8, 8):
        server.pass_days(days)
        server.clean(dataset)
    assert server.paths() == {f"_manifests/{DAY}.json"}
    assert not [key for bucket in server.s3.buckets.values() for key in bucket if "_doctor" in key]
    assert read(dataset, publish(dataset, "b")) == "b"


def test_a_store_that_deletes_late_shows_it_to_a_slow_client(
    dataset: ObjectDataset, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement that is sent at once would always arrive before the deletion."""
    remove_version = object_store.remove_version

    def remove_slowly(file: UPath, version: str) -> bool:
        time.sleep(0.05)
        return remove_version(file, version)

    monkeypatch.setattr(object_store, "remove_version", remove_slowly)
    server.s3.delete_conditions = "late"
    assert not object_store.deletes_on_condition(settings().lake)


def test_a_store_is_asked_once_how_it_deletes(stored: ObjectDataset) -> None:
    root = settings().lake
    assert object_store.deletes_on_condition(root)
    assert object_store.exists(root / "_store/deletes.json")


def test_memory_keeps_tombstones(monkeypatch: pytest.MonkeyPatch, home: Path, use_home: Callable[[Path], Path]) -> None:
    monkeypatch.setenv("EVERGREEN_LAKE", "memory://tombstones/lake")
    use_home(home)
    dataset = datasets.open_dataset("features/tills")
    publish(dataset, "a")
    later = time.time() + 31 * DAY_S
    assert [removal.kind for removal in clean(dataset, RULE, later)] == ["expired"]
    for days in (8, 16):
        clean(dataset, RULE, later + days * DAY_S)
    assert [item.path for item in object_store.list_objects(cast(ObjectDataset, dataset).root)] == [
        f"_manifests/{DAY}.json"
    ]


def test_cold_files_get_another_class_once(dataset: ObjectDataset, server: Server) -> None:
    rule = replace(RULE, expires_after=None, cold_after=90 * DAY_S, cold_class="STANDARD_IA")
    publish(dataset, "replaced")
    manifest = publish(dataset, "a")
    publish(dataset, "b", "day=2013-01-02")
    server.pass_days(91)
    assert dataset.find("day=2013-01-02", "b")
    assert server.clean(dataset, replace(rule, leftovers_after=1000 * DAY_S)) == ["cold"] * 2
    classes = {key.rpartition("tills/")[2]: kind for key, kind in server.s3.classes.items()}
    assert classes == {file.path: "STANDARD_IA" for file in manifest.files.values()}
    assert read(dataset, dataset.manifest(DAY)) == "a"
    assert dataset.manifest(DAY) == manifest
    server.pass_days(1)
    assert server.clean(dataset, rule) == ["replaced"] * 2
    assert dataset.find(DAY, "a"), "it is used, and cold again after that time"
    server.pass_days(88)
    assert server.clean(dataset, rule) == []
    server.pass_days(3)
    assert server.clean(dataset, rule) == ["cold"] * 4
    assert server.clean(dataset, replace(rule, expires_after=RULE.expires_after)) == ["expired"] * 2
    server.pass_days(8)
    assert server.clean(dataset, rule) == ["replaced"] * 4


def test_a_server_keeps_what_is_cold(stored: ObjectDataset) -> None:
    manifest = publish(stored, "a")
    time.sleep(1.1)  # times are whole seconds
    rule = replace(ANY, expires_after=None, cold_after=0.0, cold_class="STANDARD_IA")
    now = time.time() + DAY_S
    assert [removal.kind for removal in clean(stored, rule, now)] == ["cold"] * 2
    for file in manifest.files.values():
        place = stored.root / file.path
        bucket, _, key = place.path.lstrip("/").partition("/")
        assert place.fs.call_s3("head_object", Bucket=bucket, Key=key)["StorageClass"] == "STANDARD_IA"
    assert read(stored, stored.manifest(DAY)) == "a"
    assert clean(stored, rule, now) == []


@pytest.mark.parametrize("data", [b"", b"{}", b'{"expired": 1234}\n', b'{"expired": true}'])
def test_what_only_looks_like_a_tombstone_is_damaged(dataset: ObjectDataset, data: bytes) -> None:
    object_store.write(dataset.manifest_path(DAY), data, None)
    with pytest.raises(datasets.DatasetError, match="is no manifest"):
        dataset.manifest(DAY)
    assert not dataset.delete_tombstone(DAY)


def test_requests_for_old_tombstones_do_not_grow(dataset: ObjectDataset, server: Server) -> None:
    for number in range(1, 29):
        publish(dataset, "a", f"day=2013-01-{number:02}")
    server.pass_days(31)
    dataset.find("day=2013-01-28", "a")
    assert server.clean(dataset, RULE) == ["expired"] * 27
    server.s3.page_length = 5
    count = len(server.s3.requests)
    assert dataset.partitions("day=2013-01-28") == ["day=2013-01-28"]
    assert len(server.s3.requests) == count + 1
