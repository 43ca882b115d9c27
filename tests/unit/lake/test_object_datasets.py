"""A dataset in an object store is published whole or not at all, whoever races, is killed, or hears no answer."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from obstore.store import LocalStore

from evergreen import object_store, storage
from evergreen.errors import DatasetError, InputsChangedError, StoreError
from evergreen.lake import datasets, retention, tables
from evergreen.lake.datasets import Dataset
from evergreen.lake.delta import DeltaFormat
from evergreen.lake.retention import RetentionRule
from evergreen.settings import settings
from support import gcs_server
from support.interleaving import killed_before_store_change
from support.object_stores import STORES, open_store
from support.s3_server import S3

pytestmark = pytest.mark.unit

DAY = "day=2013-01-01"
RACERS = 16


@pytest.fixture
def dataset(home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset of a lake in the memory of this process."""
    monkeypatch.setenv("EVERGREEN_LAKE", f"memory://{uuid.uuid4().hex}/lake")
    use_home(home)
    return datasets.open_dataset("features/tills")


@pytest.fixture(params=STORES)
def stored(
    request: pytest.FixtureRequest, home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Dataset, S3 | None]]:
    """A dataset of a lake in a server, and our server if it is that."""
    with open_store(request.param, monkeypatch) as (uri, server):
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        use_home(home)
        yield datasets.open_dataset("features/tills"), server


@pytest.fixture
def server(home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Our server, whose faults a test sets, with a lake in it that nobody has used yet."""
    with open_store("own", monkeypatch) as (uri, s3):
        assert s3
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        use_home(home)
        yield s3


def stage(dataset: Dataset, fingerprint: str, value: int, partition: str = DAY) -> dict[str, Path]:
    folder = dataset.stage(partition, fingerprint)
    files = {name: folder / f"{name}.parquet" for name in ("takings", "tills")}
    for file in files.values():
        pq.write_table(pa.table({"n": [value] * 3}), file)
    return files


def publish(dataset: Dataset, fingerprint: str, value: int, partition: str = DAY) -> datasets.Manifest:
    return dataset.publish(partition, fingerprint, stage(dataset, fingerprint, value, partition), {"value": value})


def values(dataset: Dataset, manifest: datasets.Manifest | None) -> list[int]:
    """Return what another machine reads of a manifest: the value in each file."""
    shutil.rmtree(settings().cache / "objects", ignore_errors=True)
    assert manifest
    return [pq.read_table(dataset.file_path(manifest, name))["n"][0].as_py() for name in manifest.files]


def names(dataset: Dataset) -> set[str]:
    return {item.path for item in object_store.list_objects(dataset.root)}  # type: ignore[arg-type]


def test_a_replaced_partition_stays_readable(stored: tuple[Dataset, S3 | None]) -> None:
    dataset, _ = stored
    assert (dataset.partitions(), dataset.manifest(DAY), dataset.newest()) == ([], None, None)
    first = publish(dataset, "a" * 64, 1)
    assert (dataset.find(DAY, "a" * 64), dataset.partitions()) == (first, [DAY])
    second = publish(dataset, "b" * 64, 2)
    assert (values(dataset, first), values(dataset, second), dataset.manifest(DAY)) == ([1, 1], [2, 2], second)
    with pytest.raises(InputsChangedError, match="clear this run"):
        dataset.resolve(first.reference)
    files = datasets.published_files(str(dataset.root / "takings"))
    assert files
    assert [pq.read_table(file)["n"][0].as_py() for file in files] == [2]
    assert not list((settings().cache / "staging").rglob("*.parquet"))


def test_of_equal_attempts_at_once_one_is_published(stored: tuple[Dataset, S3 | None], tmp_path: Path) -> None:
    dataset, _ = stored
    # As on so many machines: on one, the winner removes what the others have staged.
    staged = [
        {name: file.rename(tmp_path / f"{number}-{name}.parquet") for name, file in stage(dataset, "a" * 64, 1).items()}
        for number in range(RACERS)
    ]
    together = threading.Barrier(RACERS)

    def run(files: dict[str, Path]) -> datasets.Manifest:
        together.wait()
        return dataset.publish(DAY, "a" * 64, files, {"value": 1})

    with ThreadPoolExecutor(RACERS) as pool:
        manifests = list(pool.map(run, staged))
    published = dataset.manifest(DAY)
    assert published
    assert all(manifest == published for manifest in manifests)
    assert values(dataset, published) == [1, 1]
    assert names(dataset) == {f"_manifests/{DAY}.json", *(file.path for file in published.files.values())}


def test_of_different_attempts_at_once_none_is_half(stored: tuple[Dataset, S3 | None]) -> None:
    dataset, _ = stored
    partitions = [DAY, "day=2013-01-02"]

    def run(number: int) -> datasets.Manifest:
        return publish(dataset, f"{number:02x}" * 32, number, partitions[number % 2])

    with ThreadPoolExecutor(RACERS) as pool:
        manifests = list(pool.map(run, range(RACERS)))
    for number, manifest in enumerate(manifests):
        assert values(dataset, manifest) == [number, number], "what was published stays readable"
    in_force = [dataset.manifest(partition) for partition in partitions]
    assert all(manifest in manifests[number::2] for number, manifest in enumerate(in_force))


def test_delta_tables_follow_in_a_store(stored: tuple[Dataset, S3 | None]) -> None:
    dataset, _ = stored
    publish(dataset, "a" * 64, 1)
    assert [synced.table for synced in tables.sync_tables(dataset, DeltaFormat(), [DAY])] == ["takings", "tills"]
    publish(dataset, "b" * 64, 2)
    publish(dataset, "c" * 64, 3, "day=2013-01-02")
    tables.sync_tables(dataset, DeltaFormat())
    place = dataset.root / "tills"
    table = DeltaTable(str(place), storage_options=object_store.client_variables(place.protocol))  # type: ignore[union-attr]
    files = table.get_add_actions(flatten=True)
    manifests = [dataset.manifest(partition) for partition in dataset.partitions()]
    assert sorted(pa.table(files)["path"].to_pylist()) == [
        manifest.files["tills"].path.removeprefix("tills/") for manifest in manifests if manifest
    ]
    assert dataset.partitions("day=2013-01-02") == ["day=2013-01-02"]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_answer_loses_nothing(server: S3, lost: int) -> None:
    dataset = datasets.open_dataset("features/tills")
    first = publish(dataset, "a" * 64, 1)
    server.lost_answers = lost
    second = publish(dataset, "b" * 64, 2)
    assert server.lost_answers == 0
    assert (values(dataset, first), dataset.manifest(DAY)) == ([1, 1], second)


@pytest.mark.parametrize("conditions", ["ignored", "late"])
def test_a_store_that_ignores_conditions_is_refused(server: S3, conditions: str) -> None:
    server.conditions = conditions
    with pytest.raises(StoreError, match="of 16 writers created the same object"):
        datasets.open_dataset("features/tills")
    assert not any(server.buckets.values())
    server.conditions = "kept"
    publish(datasets.open_dataset("features/tills"), "a" * 64, 1)
    count = len(server.requests)
    datasets.open_dataset("features/tills")
    assert len(server.requests) == count, "it is proved once"


@pytest.mark.parametrize("lost", [1, 3])
def test_a_lost_answer_is_no_broken_promise(server: S3, lost: int) -> None:
    server.lost_answers = lost
    publish(datasets.open_dataset("features/tills"), "a" * 64, 1)
    assert server.lost_answers == 0


def test_conditions_of_google_cloud_storage_name_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs_server.running() as account:
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", account)
        object_store.open_bucket.cache_clear()
        file = storage.storage_path("gs://bucket/lake/manifest")
        assert object_store.write(file, b"first", None)
        assert not object_store.write(file, b"other", None)
        first = object_store.read(file)
        assert first
        assert object_store.write(file, b"second", first.version)
        assert not object_store.write(file, b"stale", first.version)
        assert object_store.read(file).data == b"second"  # type: ignore[union-attr]
    object_store.open_bucket.cache_clear()


def test_a_store_that_replaces_anything_is_refused(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    put = obstore.put
    monkeypatch.setattr(
        obstore,
        "put",
        lambda store, key, data, mode=None, **options: put(
            store, key, data, mode="overwrite" if isinstance(mode, dict) else mode, **options
        ),
    )
    with pytest.raises(StoreError, match="of 16 writers replaced the same object"):
        object_store.prove_conditions(dataset.root)  # type: ignore[arg-type]


def test_what_one_machine_builds_another_publishes(stored: tuple[Dataset, S3 | None]) -> None:
    dataset, _ = stored
    assert dataset.find_cached(DAY, "a" * 64) is None
    folder = str(dataset.cache_staged(DAY, "a" * 64, stage(dataset, "a" * 64, 1)["tills"].parent))
    assert dataset.partitions() == []
    # A second attempt comes too late, and leaves nothing.
    before = names(dataset)
    dataset.cache_staged(DAY, "a" * 64, stage(dataset, "a" * 64, 1)["tills"].parent)
    assert names(dataset) == before
    shutil.rmtree(settings().cache)
    assert str(dataset.find_cached(DAY, "a" * 64)) == folder
    staged = datasets.open_staged(folder)
    manifest = dataset.publish(DAY, "a" * 64, {"tills": staged / "tills.parquet"}, {})
    assert values(dataset, manifest) == [1]
    assert names(dataset) == {f"_manifests/{DAY}.json", manifest.files["tills"].path}
    assert not datasets.open_staged(folder).exists(), "published meanwhile"


def test_partitions_with_equal_bytes_are_two_files(dataset: Dataset) -> None:
    for number, partition in enumerate((DAY, "day=2013-01-02")):
        publish(dataset, f"{number}" * 64, 1, partition)
    assert len(datasets.published_files(str(dataset.root / "tills")) or {}) == 2
    shutil.rmtree(settings().cache)
    assert len(datasets.published_files(str(dataset.root / "tills")) or {}) == 2


def test_a_changed_object_is_not_read(dataset: Dataset) -> None:
    manifest = publish(dataset, "a" * 64, 1)
    shutil.rmtree(settings().cache)
    file = dataset.root / manifest.files["tills"].path
    stored = object_store.read(file)  # type: ignore[arg-type]
    assert stored
    assert object_store.write(file, b"other bytes", stored.version)
    with pytest.raises(DatasetError, match="changed after it was published"):
        dataset.file_path(manifest, "tills")
    assert not [path for path in (settings().cache / "objects").rglob("*") if path.suffix == ".parquet"]


def test_hostile_staged_names_are_refused(dataset: Dataset) -> None:
    folder = dataset.cache_staged(DAY, "a" * 64, stage(dataset, "a" * 64, 1)["tills"].parent)
    stored = object_store.read(folder / "staged.json")  # type: ignore[arg-type]
    assert stored
    object_store.write(folder / "staged.json", stored.data.replace(b"tills.", b"../../x."), stored.version)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="damaged"):
        datasets.open_staged(str(folder))


def build_and_publish(dataset: Dataset) -> datasets.Manifest:
    fingerprint = "b" * 64
    folder = dataset.find_cached(DAY, fingerprint)
    if folder is None:
        folder = dataset.cache_staged(DAY, fingerprint, stage(dataset, fingerprint, 2)["tills"].parent)
    staged = datasets.open_staged(str(folder))
    files = {name: staged / f"{name}.parquet" for name in ("takings", "tills")}
    return dataset.publish(DAY, fingerprint, files, {"value": 2})


def test_a_kill_at_any_change_leaves_nothing_half(dataset: Dataset) -> None:
    is_killed, number = True, 0
    while is_killed:
        place = datasets.dataset_at(dataset.root.with_name(f"tills{number}"))
        old = publish(place, "a" * 64, 1)
        is_killed = killed_before_store_change(number, lambda place=place: build_and_publish(place))
        if is_killed:
            shutil.rmtree(settings().cache)
        seen = place.manifest(DAY)
        assert seen
        assert values(place, seen) in ([1, 1], [2, 2])
        new = build_and_publish(place)
        assert (values(place, place.manifest(DAY)), values(place, old)) == ([2, 2], [1, 1])
        # What was left goes, and nothing else.
        rule, later = RetentionRule(leftovers_after=60), storage_time(place) + 3600
        plan = retention.plan_removals(retention.take_inventory(place), rule, later)
        assert list(retention.apply_removals(place, plan, rule, later)) == plan
        assert names(place) == {f"_manifests/{DAY}.json", *(file.path for file in new.files.values())}
        number += 1
    assert number > 7


def storage_time(dataset: Dataset) -> float:
    return max(item.changed_at for item in object_store.list_objects(dataset.root))  # type: ignore[arg-type]


def test_leftovers_stay_as_long_as_somebody_may_read_them(dataset: Dataset) -> None:
    old = publish(dataset, "a" * 64, 1)
    publish(dataset, "b" * 64, 2)
    rule, now = RetentionRule(leftovers_after=60), storage_time(dataset) + 30
    assert retention.plan_removals(retention.take_inventory(dataset), rule, now) == []
    # A plan of long ago: what has changed since stays.
    plan = retention.plan_removals(retention.take_inventory(dataset), rule, now + 60)
    assert {item.path for item in plan} == {file.path for file in old.files.values()}
    pinned = RetentionRule(leftovers_after=60, pinned_files=frozenset(item.path for item in plan))
    assert list(retention.apply_removals(dataset, plan, pinned, now + 60)) == []
    assert values(dataset, old) == [1, 1]


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_no_concurrent_update_is_lost(tmp_path: Path, kind: str) -> None:
    folder = str(tmp_path) if kind == "folder" else f"memory://{uuid.uuid4().hex}/records"
    file = storage.storage_path(folder) / "counter"

    def count(_: int) -> None:
        storage.update_file(file, lambda data: b"%d" % (int(data or 0) + 1))

    with ThreadPoolExecutor(RACERS) as pool:
        list(pool.map(count, range(100)))
    stored = storage.read_version(file)
    assert stored
    assert stored.data == b"100"
    assert not storage.replace_version(file, b"100", "another version"), "equal content, and not by this call"
    assert not storage.replace_version(file, b"7", "another version")
    assert not storage.replace_version(file, b"7", None)
    assert storage.replace_version(file, b"7", stored.version)


def test_what_is_gone_keeps_nothing_from_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)  # one that reports what is gone
    monkeypatch.setattr(object_store, "open_bucket", lambda *_: store)
    folder = storage.storage_path("memory://bucket/lake")
    for name in ("a", "b", "c"):
        object_store.put_file(Path(__file__), folder / name)
    object_store.delete([folder / name for name in ("none", "a", "gone", "b", "lost", "c")])
    assert list(object_store.list_objects(folder)) == []


def test_long_listings_have_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store("own", monkeypatch) as (uri, server):
        assert server
        server.page_length = 7
        folder = storage.storage_path(uri)
        for number in range(30):
            object_store.write(folder / f"day={number:02d}", b"", None)
        assert [item.path for item in object_store.list_objects(folder)] == [f"day={n:02d}" for n in range(30)]


def test_unused_copies_are_removed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    old, new = publish(dataset, "a" * 64, 1), publish(dataset, "b" * 64, 2)
    copy = dataset.file_path(old, "tills")
    os.utime(copy, (0, 0))
    (settings().cache / "objects" / ".pruned").unlink(missing_ok=True)
    dataset.file_path(new, "tills").unlink()
    dataset.file_path(new, "tills")  # copies it again
    assert not copy.exists()
    assert dataset.file_path(old, "tills").exists()
