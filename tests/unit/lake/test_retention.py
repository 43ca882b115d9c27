"""Removal takes what is old and needed by nobody, and nothing else, whoever publishes or is killed meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.errors import DatasetError
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.retention import Removal, RetentionRule, apply_removals, plan_removals, take_inventory
from support.interleaving import before_change, killed_before_change

pytestmark = pytest.mark.unit

DAY_S = 24 * 3600.0
DAY = "day=2013-01-01"
RULE = RetentionRule(leftovers_after=7 * DAY_S)
EXPIRING = RetentionRule(leftovers_after=7 * DAY_S, expires_after=30 * DAY_S, is_needed=lambda _: False)


def publish(dataset: Dataset, value: str, partition: str = DAY) -> Manifest:
    """Publish a partition of two tables with this value, which is its fingerprint, too."""
    folder = dataset.stage(partition, value)
    files = {name: folder / f"{name}.json" for name in ("carriers", "origins")}
    for name, file in files.items():
        file.write_text(f"{name} {value}")
    return dataset.publish(partition, value, files, {"value": value})


def age(folder: Path, days: float) -> None:
    """Let everything in a folder be older."""
    for path in (folder, *folder.rglob("*")):
        instant = path.lstat().st_mtime - days * DAY_S
        os.utime(path, (instant, instant))


def clean(dataset: Dataset, rule: RetentionRule = RULE) -> list[Removal]:
    now = time.time()
    return list(apply_removals(dataset, plan_removals(take_inventory(dataset), rule, now), rule, now))


def kinds(removals: list[Removal]) -> list[str]:
    return [removal.kind for removal in removals]


def check_whole(dataset: Dataset) -> None:
    """Check that whatever is published has its files, and their content."""
    for manifest in dataset.manifests():
        for name in manifest.files:
            assert dataset.file_path(manifest, name).read_text() == f"{name} {manifest.inputs['value']}"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "features")


def test_replaced_files_go_when_they_are_old(dataset: Dataset) -> None:
    publish(dataset, "a")
    age(dataset.root, 100)
    new = publish(dataset, "b")
    assert clean(dataset) == [], "their age begins when they are replaced"
    age(dataset.root, 8)
    assert kinds(clean(dataset)) == ["replaced"] * 2
    check_whole(dataset)
    assert len(list(dataset.root.glob("*/*/*.json"))) == len(new.files)
    assert clean(dataset) == []


def test_replaced_files_are_young_if_no_file_is_new(dataset: Dataset) -> None:
    publish(dataset, "a")
    newer = publish(dataset, "b")
    age(dataset.root, 8)
    publish(dataset, "a")
    assert clean(dataset) == []
    assert dataset.file_path(newer, "carriers").exists()


def test_what_was_published_since_the_plan_stays(dataset: Dataset) -> None:
    publish(dataset, "a")
    age(dataset.root, 31)
    clean(dataset, EXPIRING)
    dataset.stage(DAY, "c")
    age(dataset.root, 8)
    now = time.time()
    planned = plan_removals(take_inventory(dataset), EXPIRING, now)
    assert kinds(planned) == ["replaced", "replaced", "staged"]
    publish(dataset, "a")
    dataset.stage(DAY, "c")
    assert list(apply_removals(dataset, planned, EXPIRING, now)) == []
    check_whole(dataset)


def test_old_partitions_expire_and_readers_keep_files(dataset: Dataset) -> None:
    old = publish(dataset, "a")
    age(dataset.root, 31)
    assert clean(dataset) == [], "without an age nothing expires"
    [removal] = clean(dataset, EXPIRING)
    assert (removal.kind, removal.path, removal.size) == ("expired", DAY, sum(f.size for f in old.files.values()))
    assert dataset.partitions() == []
    assert dataset.file_path(old, "carriers").exists(), "a task that has read the manifest reads its files"
    assert clean(dataset, EXPIRING) == []
    age(dataset.root, 8)
    assert kinds(clean(dataset, EXPIRING)) == ["replaced"] * 2
    assert not (dataset.root / "carriers" / DAY).exists()


def test_needed_and_pinned_things_stay(dataset: Dataset) -> None:
    old = publish(dataset, "a")
    publish(dataset, "b")
    age(dataset.root, 100)
    pinned = frozenset([old.files["carriers"].path])
    rule = RetentionRule(7 * DAY_S, 30 * DAY_S, lambda manifest: manifest.inputs["value"] == "b", pinned)
    assert [removal.path for removal in clean(dataset, rule)] == [old.files["origins"].path]
    assert dataset.file_path(old, "carriers").exists()
    check_whole(dataset)
    raw = RetentionRule(7 * DAY_S, keeps_replaced=True)
    assert clean(dataset, raw) == []


def test_what_a_step_finds_is_young_again(dataset: Dataset) -> None:
    old = publish(dataset, "a")
    age(dataset.root, 31)
    now = time.time()
    planned = plan_removals(take_inventory(dataset), EXPIRING, now)
    assert dataset.resolve(old.reference) == old
    assert list(apply_removals(dataset, planned, EXPIRING, now)) == []
    assert dataset.manifest(DAY) == old


def test_staged_folders_go_when_nothing_in_them_changes(dataset: Dataset) -> None:
    folder = dataset.stage(DAY, "a")
    (folder / "part").mkdir()
    (folder / "part/rows").write_text("half")
    cached = dataset.cache_staged(DAY, "b", dataset.stage(DAY, "b"))
    age(dataset.root, 8)
    (folder / "part/rows").write_text("more")
    assert dataset.find_cached(DAY, "b") == cached
    assert clean(dataset) == []
    age(dataset.root, 8)
    assert kinds(clean(dataset)) == ["staged"] * 2
    assert dataset.find_cached(DAY, "b") is None
    assert not list(dataset.staging.iterdir())


def test_oldest_first_leaves_no_hole(dataset: Dataset) -> None:
    days = [f"day=2013-01-0{number}" for number in (1, 2, 3, 4)]
    for day in days:
        publish(dataset, "a", day)
    age(dataset.root, 31)
    publish(dataset, "b", days[2])
    rule = RetentionRule(7 * DAY_S, 30 * DAY_S, lambda _: False, oldest_first=True)
    now = time.time()
    planned = plan_removals(take_inventory(dataset), rule, now)
    assert [removal.path for removal in planned] == days[:2]
    assert dataset.find(days[0], "a")
    assert list(apply_removals(dataset, planned, rule, now)) == []


def test_a_damaged_manifest_keeps_everything(dataset: Dataset) -> None:
    publish(dataset, "a")
    dataset.manifest_path(DAY).write_text("{")
    age(dataset.root, 100)
    with pytest.raises(DatasetError, match="is no manifest"):
        clean(dataset)


def test_foreign_files_and_links_stay(dataset: Dataset, tmp_path: Path) -> None:
    publish(dataset, "a")
    (tmp_path / "elsewhere" / DAY).mkdir(parents=True)
    name = f"{'0' * 32}.json"
    foreign = [dataset.root / path for path in ("report.html", "cache/scores.npy", f"_delta_log/x/{name}")]
    foreign += [dataset.root / "carriers" / DAY / "notes.md", tmp_path / "elsewhere" / DAY / name]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (dataset.root / "linked").symlink_to(tmp_path / "elsewhere")
    age(tmp_path, 100)
    assert clean(dataset) == []
    assert all(file.exists() for file in foreign)


def prepare_replaced(dataset: Dataset) -> None:
    """Let the files of `a` be old, and replaced by `b`."""
    publish(dataset, "a")
    publish(dataset, "b")


def prepare_expired(dataset: Dataset) -> None:
    """Let the files of `a` be old, and their manifest gone."""
    publish(dataset, "a")
    age(dataset.root, 31)
    clean(dataset, EXPIRING)


PREPARE = pytest.mark.parametrize("prepare", [prepare_replaced, prepare_expired])


def every_change(tmp_path: Path, prepare: Callable[[Dataset], None], run: Callable[[Dataset, int], bool]) -> int:
    """Call `run` with a prepared dataset and each number of a change, until it returns that there are no more."""
    number = 0
    while True:
        dataset = Dataset(tmp_path / str(number) / "features")
        prepare(dataset)
        staged = dataset.stage(DAY, "c")
        for name in ("carriers", "origins"):
            (staged / name).touch()
        dataset.cache_staged(DAY, "c", staged)
        age(dataset.root, 8)
        has_more = run(dataset, number)
        check_whole(dataset)
        if not has_more:
            return number
        number += 1


@PREPARE
def test_removal_at_any_moment_of_a_publish(tmp_path: Path, prepare: Callable[[Dataset], None]) -> None:
    """The publish links to files that nothing names, and that are old."""
    removed = set()

    def run(dataset: Dataset, number: int) -> bool:
        with before_change(number, lambda: removed.update(kinds(clean(dataset)))) as count_changes:
            publish(dataset, "a")
        assert [manifest.inputs["value"] for manifest in dataset.manifests()] == ["a"]
        return count_changes() > number

    assert every_change(tmp_path, prepare, run) > 10
    assert removed == {"replaced", "staged"}


@PREPARE
def test_publish_at_any_moment_of_a_removal(tmp_path: Path, prepare: Callable[[Dataset], None]) -> None:
    def run(dataset: Dataset, number: int) -> bool:
        # It waits where the removal has the lock, so it ends when that lets it.
        publisher = threading.Thread(target=publish, args=(dataset, "a"))
        with before_change(number, publisher.start) as count_changes:
            clean(dataset)
        has_more = count_changes() > number
        if not has_more:
            publisher.start()
        publisher.join()
        assert [manifest.inputs["value"] for manifest in dataset.manifests()] == ["a"]
        return has_more

    assert every_change(tmp_path, prepare, run) > 10


@PREPARE
def test_a_killed_removal_leaves_nothing_half(tmp_path: Path, prepare: Callable[[Dataset], None]) -> None:
    rule = RetentionRule(7 * DAY_S, 7 * DAY_S, lambda _: False)

    def run(dataset: Dataset, number: int) -> bool:
        is_killed = killed_before_change(number, lambda: clean(dataset, rule))
        check_whole(dataset)
        cached = dataset.find_cached(DAY, "c")
        assert cached is None or len(list(cached.iterdir())) == 2
        age(dataset.root, 8)
        clean(dataset, rule)
        age(dataset.root, 8)
        clean(dataset, rule)
        assert [
            path for path in dataset.root.rglob("*") if path.is_file() and path.name not in ("_lock", ".lock")
        ] == []
        return is_killed

    assert every_change(tmp_path, prepare, run) > 10


@PREPARE
def test_a_killed_publish_leaves_only_leftovers(tmp_path: Path, prepare: Callable[[Dataset], None]) -> None:
    def run(dataset: Dataset, number: int) -> bool:
        is_killed = killed_before_change(number, lambda: publish(dataset, "a"))
        assert not set(kinds(clean(dataset))) - {"replaced", "staged"}
        check_whole(dataset)
        assert publish(dataset, "a").inputs == {"value": "a"}
        age(dataset.root, 8)
        clean(dataset)
        assert len(list(dataset.root.glob("*/*/*.json"))) == 2
        return is_killed

    assert every_change(tmp_path, prepare, run) > 10
