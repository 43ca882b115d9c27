"""A complete day is announced, whatever is killed when; and once, unless the announcement is lost."""

from __future__ import annotations

import json
import logging
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from evergreen import storage
from evergreen.errors import WindowError
from evergreen.ingest import announcements, watcher
from evergreen.ingest.announcements import Announcement, AnnouncementStore
from evergreen.ingest.watcher import (
    ANNOUNCEMENT_TIMEOUT,
    REANNOUNCE_AFTER,
    SETTLE_TIME,
    RawDataWatcher,
    WatchedSource,
)
from evergreen.periods import Calendar
from support.calendars import later

pytestmark = pytest.mark.unit

SOURCES: Mapping[str, int | None] = {"flights": None, "weather": None}
FIRST, SECOND, THIRD = "2013-01-01", "2013-01-02", "2013-01-03"


def parquet(mark: str = "data") -> bytes:
    return b"PAR1" + mark.encode() + b"\0\0\0\0PAR1"


class Bench:
    """A raw prefix, its records, a clock that tests set, and the present watcher."""

    def __init__(self, prefix: str, records: Path, sources: Mapping[str, int | None] = SOURCES):
        self.prefix, self.records, self.sources = prefix, AnnouncementStore(records), sources
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.fs, self.root = fsspec.core.url_to_fs(prefix)
        self.restart()

    def restart(self) -> None:
        sources = {name: WatchedSource(absence_hours=hours) for name, hours in self.sources.items()}
        self.watch = RawDataWatcher(self.prefix, sources, self.records, clock=lambda: self.now)

    def write(self, day: str, source: str, content: bytes, name: str = "") -> str:
        """Write a file as a store does: complete at once, under its name."""
        path = f"{self.root}/{source}/day={day}/{name or source + '.parquet'}"
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if self.prefix.startswith("memory"):
            self.fs.pipe_file(path, content)
        else:
            Path(f"{path}.tmp").write_bytes(content)
            os.replace(f"{path}.tmp", path)
        return path

    def deliver(self, *days: str, mark: str = "data") -> None:
        for day in days:
            for source in self.sources:
                self.write(day, source, parquet(mark))

    def look(self, after: timedelta = SETTLE_TIME) -> dict[str, str]:
        self.now += after
        return self.watch.poll()

    def settled(self) -> list[str]:
        """The days that are announced after two polls have seen the same files."""
        assert self.look() == {}
        return list(self.look())


@pytest.fixture(params=["local", "memory"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    memory = request.param == "memory"
    yield Bench("memory://lake/raw" if memory else str(tmp_path / "raw"), tmp_path / "records")
    if memory:
        fsspec.filesystem("memory").store.clear()


def test_an_empty_prefix_has_nothing_to_announce(bench: Bench) -> None:
    assert bench.settled() == []
    assert not bench.records.folder.exists()


def test_all_complete_days_are_announced_together_and_once(bench: Bench) -> None:
    bench.deliver(SECOND, FIRST, THIRD)
    assert bench.settled() == [FIRST, SECOND, THIRD]
    assert bench.look() == {}
    assert bench.look(10 * ANNOUNCEMENT_TIMEOUT) == {}


def test_new_changed_and_late_days_are_announced_alone(bench: Bench) -> None:
    bench.deliver(FIRST, THIRD)
    assert bench.settled() == [FIRST, THIRD]
    bench.deliver(SECOND)
    assert bench.settled() == [SECOND]
    bench.write(FIRST, "weather", parquet("corrected"))
    assert bench.settled() == [FIRST]


def test_a_day_waits_for_all_of_its_sources(bench: Bench) -> None:
    bench.write(FIRST, "flights", parquet())
    bench.write(SECOND, "weather", parquet())
    assert bench.settled() == []
    bench.write(FIRST, "weather", parquet())
    assert bench.settled() == [FIRST]


def test_a_file_that_still_changes_is_not_announced(bench: Bench) -> None:
    bench.deliver(FIRST)
    for size in range(1, 5):
        bench.write(FIRST, "flights", parquet("x" * size))
        assert bench.look() == {}
    assert list(bench.look()) == [FIRST]


def test_two_polls_in_quick_succession_do_not_settle_a_file(bench: Bench) -> None:
    bench.deliver(FIRST)
    assert [bench.look(timedelta(seconds=1)) for _ in range(2)] == [{}] * 2
    assert list(bench.look(timedelta(seconds=1))) == [FIRST]


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1 half a file", b"no Parquet but it ends so PAR1", parquet()[:-1]]
)
def test_an_incomplete_parquet_file_waits(bench: Bench, content: bytes) -> None:
    bench.deliver(FIRST, SECOND)
    bench.write(FIRST, "flights", content)
    assert bench.settled() == [SECOND]
    bench.write(FIRST, "flights", parquet())
    assert bench.settled() == [FIRST]


def test_a_broken_file_is_logged_once_and_read_again_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(str(tmp_path / "raw"), tmp_path / "records")
    bench.deliver(FIRST)
    path = bench.write(FIRST, "weather", b"PAR1 half a file")
    with caplog.at_level(logging.WARNING):
        assert bench.settled() == []
        assert [bench.look() for _ in range(30)] == [{}] * 30
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is not a complete Parquet file. The period is announced once all of its files can be read."
    ]


def test_a_file_listed_while_incomplete_is_read_again(tmp_path: Path) -> None:
    """As with stores whose listings are ahead of what can be read."""
    bench = Bench("memory://late/raw", tmp_path / "records", {"flights": None})
    path = bench.write(FIRST, "flights", parquet()[:-1] + b"?")
    assert bench.settled() == []
    content = bench.fs.store[path]
    content.seek(-1, os.SEEK_END)
    content.write(b"1")
    assert bench.look() == {}
    assert list(bench.look(ANNOUNCEMENT_TIMEOUT)) == [FIRST]
    bench.fs.store.clear()


def test_an_unreadable_file_delays_its_day_other_errors_are_raised(tmp_path: Path) -> None:
    gone = watcher.RawFileInfo("flights", str(tmp_path / "gone"), 20, "")
    fs = fsspec.filesystem("file")
    assert watcher._find_unreadable(fs, [gone]) == {gone: f"{gone.path} cannot be read (FileNotFoundError)"}
    with pytest.raises(IsADirectoryError):
        watcher._find_unreadable(fs, [gone, gone._replace(path=str(tmp_path))])


class Caching(MemoryFileSystem):
    """An object store that remembers its listings, as s3fs and gcsfs may."""

    protocol = "caching"
    listings: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("caching://", "memory://"))

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if path not in self.listings:
            self.listings[path] = super().find(path, *args, **kwargs)
        return self.listings[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listings.clear()


def test_every_poll_lists_the_store(tmp_path: Path) -> None:
    fsspec.register_implementation("caching", Caching, clobber=True)
    bench = Bench("caching://lake/raw", tmp_path / "records", {"flights": None})
    assert bench.settled() == []
    bench.fs.pipe_file(f"/lake/raw/flights/day={FIRST}/flights.parquet", parquet())
    assert bench.settled() == [FIRST]
    bench.fs.store.clear()


@pytest.mark.parametrize(
    ("source", "day", "name"),
    [
        ("flights", FIRST, ".flights.parquet.Xy12"),
        ("flights", FIRST, "_flights.parquet"),
        ("flights", FIRST, "flights.parquet.tmp"),
        ("flights", FIRST, "flights_2.parquet"),
        ("flights", "2013-02-30", ""),
        ("flights", "20130101", ""),
        ("flights", "foo", ""),
        ("flights", f"{FIRST}/old", ""),
    ],
)
def test_other_names_are_ignored(bench: Bench, source: str, day: str, name: str) -> None:
    bench.sources = {source: None}
    bench.restart()
    bench.write(day, source, parquet(), name)
    bench.write(SECOND, source, parquet())
    assert bench.settled() == [SECOND]


def test_a_folder_that_is_not_named_day_is_ignored(bench: Bench) -> None:
    bench.deliver(FIRST, SECOND)
    for source in SOURCES:
        bench.fs.mv(f"{bench.root}/{source}/day={FIRST}", f"{bench.root}/{source}/{FIRST}", recursive=True)
    assert bench.settled() == [SECOND]


def test_links_and_strange_things_among_local_drops(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "raw"), tmp_path / "records", {"flights": None})
    bench.deliver(FIRST)
    (tmp_path / "raw/flights/day=2013-01-02").write_text("a file")
    (tmp_path / "raw/flights/day=2013-01-03/flights.parquet").mkdir(parents=True)
    (tmp_path / "raw/flights/day=2013-01-04").mkdir()
    (tmp_path / "raw/flights/day=2013-01-04/flights.parquet").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw/flights/day=2013-01-05").symlink_to(tmp_path / "raw/flights/day=2013-01-01")
    assert bench.settled() == [FIRST, "2013-01-05"]


def test_touched_files_are_announced_and_read_files_are_not(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "raw"), tmp_path / "records", {"flights": None})
    bench.deliver(FIRST, SECOND)
    assert bench.settled() == [FIRST, SECOND]
    first, second = (tmp_path / f"raw/flights/day={day}/flights.parquet" for day in (FIRST, SECOND))
    os.utime(first)
    kept = second.stat()
    os.utime(second, ns=(0, kept.st_mtime_ns))  # the time of reading; and the change time tells of this
    assert bench.settled() == [FIRST, SECOND]
    first.read_bytes()
    assert bench.settled() == []


def test_a_replaced_file_of_equal_size_and_time_is_announced(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "raw"), tmp_path / "records", {"flights": None})
    bench.deliver(FIRST, mark="one")
    assert bench.settled() == [FIRST]
    file = tmp_path / f"raw/flights/day={FIRST}/flights.parquet"
    times = file.stat()
    file.write_bytes(parquet("two"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert bench.settled() == [FIRST]


def test_a_day_that_vanishes_and_returns_is_not_announced(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "raw"), tmp_path / "records")
    bench.deliver(FIRST)
    assert bench.settled() == [FIRST]
    os.rename(tmp_path / "raw", tmp_path / "unmounted")
    assert bench.settled() == []
    os.rename(tmp_path / "unmounted", tmp_path / "raw")
    assert bench.settled() == []


def test_a_day_that_is_not_over_is_still_arriving(bench: Bench) -> None:
    """The clock says 1 January 2026, 0:00 UTC: in New York the day before lasts five more hours."""
    bench.watch.calendar = Calendar("1d", "America/New_York")
    bench.deliver("2025-12-30", "2025-12-31")
    assert bench.look() == {}
    bench.records.acknowledge(bench.look())
    assert bench.records.read_announcements().keys() == {"2025-12-30"}
    assert bench.look(timedelta(hours=4)) == {}
    assert list(bench.look(timedelta(hours=1))) == ["2025-12-31"]


HOURS = timedelta(hours=1)
YESTERDAY = "2025-12-31"  # over since 0:00 UTC, when the clock of the bench starts


def quiet_bench(bench: Bench, sources: Mapping[str, int | None]) -> Bench:
    bench.sources = sources
    bench.restart()
    bench.watch.first = "2025-12-30"
    return bench


def test_an_absent_file_is_awaited_until_its_deadline(bench: Bench) -> None:
    quiet_bench(bench, {"flights": None, "weather": 6})
    bench.write(YESTERDAY, "flights", parquet())
    assert bench.settled() == []
    assert bench.look(5 * HOURS) == {}
    assert bench.look(1 * HOURS) == {}, "the day is done since now, and settles"
    (delivery,) = bench.look().items()
    assert delivery[0] == YESTERDAY
    bench.write(YESTERDAY, "weather", parquet())
    assert bench.look() == {}
    (late,) = bench.look().items()
    assert late[0] == YESTERDAY
    assert late[1] != delivery[1], "the late file is another delivery of its day"


def test_a_file_that_arrives_in_time_ends_the_wait(bench: Bench) -> None:
    quiet_bench(bench, {"flights": None, "weather": 6})
    bench.deliver(YESTERDAY)
    assert bench.settled() == [YESTERDAY]


def test_a_file_that_has_to_arrive_is_awaited_for_ever(bench: Bench) -> None:
    quiet_bench(bench, {"flights": None, "weather": 6})
    bench.write(YESTERDAY, "weather", parquet())
    bench.look(1000 * HOURS)
    assert bench.look() == {}


def test_days_without_any_file_are_done_in_time(bench: Bench) -> None:
    """A shop with a single source that was closed on some days."""
    quiet_bench(bench, {"sales": 6})
    bench.write("2026-01-01", "sales", parquet())
    assert bench.look() == {}
    announced = bench.look()
    assert list(announced) == ["2025-12-30"]
    bench.records.acknowledge(announced)
    bench.look(6 * HOURS)
    announced = bench.look()
    assert list(announced) == [YESTERDAY]
    bench.records.acknowledge(announced)
    assert list(bench.look(24 * HOURS)) == ["2026-01-01"]
    assert bench.look() == {}
    bench.write(YESTERDAY, "sales", parquet())
    assert bench.settled() == [YESTERDAY], "the day had events, which came late"


def test_days_outside_the_models_range_are_not_announced(bench: Bench) -> None:
    bench.watch.first, bench.watch.end = "2013-01-02", "2013-01-04"
    bench.deliver("2013-01-01", "2013-01-02", "2013-01-03", "2013-01-04")
    assert bench.settled() == ["2013-01-02", "2013-01-03"]


def test_a_restart_does_not_reannounce_acknowledged_days(bench: Bench) -> None:
    bench.deliver(FIRST, SECOND)
    bench.look()
    announced = bench.look()
    bench.records.acknowledge_with_pending(announced)
    bench.records.acknowledge_with_pending(announced)
    bench.restart()
    assert bench.settled() == []
    assert bench.look(10 * ANNOUNCEMENT_TIMEOUT) == {}


def test_a_restart_reannounces_unacknowledged_days_after_a_while(bench: Bench) -> None:
    bench.deliver(FIRST, SECOND)
    bench.look()
    announced = bench.look()
    bench.records.acknowledge({SECOND: announced[SECOND]})
    bench.restart()
    assert bench.look() == {}
    assert bench.look(ANNOUNCEMENT_TIMEOUT - SETTLE_TIME - timedelta(seconds=1)) == {}
    assert bench.look(timedelta(seconds=1)) == {FIRST: announced[FIRST]}
    assert bench.look(10 * ANNOUNCEMENT_TIMEOUT) == {}


def test_a_watcher_reannounces_unacknowledged_days(bench: Bench) -> None:
    """The DAG was paused and unpaused between two parses: the watcher kept running, and its event was lost."""
    bench.deliver(FIRST, SECOND)
    bench.look()
    announced = bench.look()
    bench.records.acknowledge({SECOND: announced[SECOND]})
    assert bench.look(REANNOUNCE_AFTER - timedelta(seconds=1)) == {}
    assert bench.look(timedelta(seconds=1)) == {FIRST: announced[FIRST]}
    assert bench.look(timedelta(minutes=1)) == {}


def test_a_run_acknowledges_days_whose_events_airflow_dropped(bench: Bench) -> None:
    bench.deliver(FIRST)
    bench.look()
    first = bench.look()
    bench.deliver(SECOND, THIRD)
    bench.look()
    dropped = bench.look()
    records = bench.records
    assert records.acknowledge_with_pending(first, "run 1") == first | dropped
    # Killed and tried again, it finds them again; another run does not.
    assert records.acknowledge_with_pending(first, "run 1") == first | dropped
    assert records.acknowledge_with_pending(first, "run 2") == first
    assert records.acknowledge_with_pending({}, "run 2") == {}
    bench.restart()
    assert bench.settled() == []


def test_a_late_acknowledgement_prevents_reannouncement(bench: Bench) -> None:
    bench.deliver(FIRST)
    bench.look()
    announced = bench.look()
    bench.restart()
    assert bench.settled() == []
    bench.records.acknowledge(announced)
    assert bench.look(ANNOUNCEMENT_TIMEOUT) == {}


def test_a_late_acknowledgement_of_old_files_changes_nothing(bench: Bench) -> None:
    bench.deliver(FIRST)
    bench.look()
    old = bench.look()
    bench.deliver(FIRST, mark="corrected")
    bench.look()
    bench.records.acknowledge(bench.look())
    bench.records.acknowledge(old)
    bench.restart()
    assert bench.settled() == []
    assert bench.look(2 * ANNOUNCEMENT_TIMEOUT) == {}


def test_files_that_return_are_unacknowledged_again(tmp_path: Path) -> None:
    """As when the newest version of an object is deleted and the earlier one is visible again."""
    records, now = AnnouncementStore(tmp_path), datetime(2026, 1, 1, tzinfo=UTC)
    records.record_announcement({FIRST: "a" * 32}, now)
    records.acknowledge({FIRST: "a" * 32})
    records.record_announcement({FIRST: "b" * 32}, now)
    records.acknowledge({FIRST: "b" * 32})
    records.record_announcement({FIRST: "a" * 32}, now)
    assert not records.is_acknowledged(FIRST, "a" * 32)
    assert records.read_announcements() == {FIRST: Announcement("a" * 32, now)}


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_old_announcements_are_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    place = storage.storage_path(str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}/arrivals")
    records, now = AnnouncementStore(place), datetime(2026, 1, 1, tzinfo=UTC)
    deliveries = {later(FIRST, n): "a" * 32 for n in range(50)}
    records.record_announcement(deliveries, now)
    assert records.acknowledge_with_pending({}, "run 1") == deliveries
    reads = []

    def read(file: Path) -> storage.StoredFile | None:
        reads.append(file)
        return storage.read_version(file)

    monkeypatch.setattr(announcements, "read_version", read)
    assert records.acknowledge_with_pending({}, "run 2") == {}
    assert len(reads) == 1
    assert records.acknowledge_with_pending({}, "run 1") == deliveries, "tried again"
    records.record_announcement({FIRST: "a" * 32}, now)
    assert records.acknowledge_with_pending({}, "run 2") == {FIRST: "a" * 32}, "delivered again"


def test_a_clock_set_back_does_not_stop_the_watcher(bench: Bench) -> None:
    bench.deliver(FIRST)
    bench.look()
    assert list(bench.look(-timedelta(days=1))) == [FIRST]
    bench.restart()
    bench.look()
    assert list(bench.look(-timedelta(days=1))) == [FIRST]


def test_two_watchers_at_once_lose_no_record(bench: Bench) -> None:
    twin = Bench(bench.prefix, bench.records.folder)
    bench.deliver(FIRST)
    assert (bench.settled(), twin.settled()) == ([FIRST], [])
    bench.deliver(SECOND)
    assert (twin.settled(), bench.settled()) == ([SECOND], [])
    assert list(bench.records.read_announcements()) == [FIRST, SECOND]


def test_many_watchers_write_the_record_at_once(tmp_path: Path) -> None:
    days = [f"2013-01-{n:02}" for n in range(1, 29)]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda day: AnnouncementStore(tmp_path).record_announcement({day: "a" * 32}, now), days))
    assert list(AnnouncementStore(tmp_path).read_announcements()) == days


def test_many_days_are_announced_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "MAX_PERIODS_PER_ANNOUNCEMENT", 2)
    bench.deliver(THIRD, SECOND, FIRST)
    assert bench.settled() == [FIRST, SECOND]
    assert list(bench.look()) == [THIRD]
    assert bench.look() == {}


def test_the_order_of_sources_does_not_matter(bench: Bench) -> None:
    bench.deliver(FIRST)
    bench.look()
    announced = bench.look()
    bench.sources = dict(reversed(SOURCES.items()))
    bench.restart()
    bench.look()
    assert bench.look(ANNOUNCEMENT_TIMEOUT) == announced


def test_the_record_is_one_readable_line_a_day(bench: Bench) -> None:
    bench.deliver(SECOND, FIRST)
    bench.look()
    announced = bench.look()
    text = (bench.records.folder / "announcements.json").read_text()
    assert json.loads(text) == {day: [announced[day], bench.now.isoformat()] for day in (FIRST, SECOND)}
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize("days", [{"../2013-01-01": "a" * 32}, {FIRST: "../a"}, {FIRST: ""}])
def test_only_announced_days_can_be_acknowledged(tmp_path: Path, days: dict[str, str]) -> None:
    with pytest.raises(WindowError, match="is not an announced period"):
        AnnouncementStore(tmp_path / "records").acknowledge_with_pending(days)
    assert not list(tmp_path.iterdir())


def test_the_delivery_id_follows_versions_of_object_stores() -> None:
    name = "bucket/raw/flights/day=2013-01-01/flights.parquet"

    def identity(**info: object) -> str:
        store = SimpleNamespace(
            find=lambda *_, **__: {name: {"name": name, "type": "file", **info}}, invalidate_cache=lambda: None
        )
        folder: Any = SimpleNamespace(fs=store, path="bucket/raw")
        files = watcher.list_complete_periods(
            folder, {"flights": WatchedSource()}, datetime.now(UTC), Calendar("1d", "UTC")
        )
        return watcher.compute_delivery_id(files[FIRST])

    at = datetime(2026, 1, 1, tzinfo=UTC)
    s3 = identity(size=20, ETag='"a"', LastModified=at, StorageClass="STANDARD")
    assert s3 == identity(size=20, ETag='"a"', LastModified=at, StorageClass="GLACIER_IR", atime=7)
    others = [
        identity(size=21, ETag='"a"', LastModified=at),
        identity(size=20, ETag='"b"', LastModified=at),
        identity(size=20, ETag='"a"', LastModified=at + timedelta(seconds=1)),
    ]
    assert len({s3, *others}) == 4


@given(
    st.sampled_from("ab"),
    st.none() | st.builds(Announcement, st.sampled_from("ab"), st.datetimes(timezones=st.just(UTC))),
    st.booleans(),
    st.datetimes(timezones=st.just(UTC)),
)
def test_decide_announcement_repeats_only_lost_ones(
    identity: str, announced: Announcement | None, taken: bool, now: datetime
) -> None:
    judged = watcher.decide_announcement(identity, announced, taken, now)
    if announced is None or announced.delivery_id != identity:
        assert judged == "announce"
    elif taken:
        assert judged == "skip"
    else:
        old = abs(now - announced.announced_at) >= timedelta(seconds=60)
        assert judged == ("announce" if old else "wait")


class Story:
    """Random deliveries, polls, kills and runs; remembers which files exist and which days were announced."""

    DAYS = (FIRST, SECOND)

    def __init__(self, bench: Bench, dice: random.Random):
        self.bench, self.dice = bench, dice
        self.number = 0
        self.lies: dict[tuple[str, str], int] = {}  # (day, source) → number of the delivery if it is whole
        self.announced: dict[tuple[str, str], tuple[int, ...]] = {}  # (day, identity) → numbers of the deliveries
        self.open: dict[tuple[str, str], tuple[int, datetime]] = {}  # announced, not taken → by which life, when
        self.taken: set[tuple[str, str]] = set()
        self.life = 0
        self.reannounced = 0

    def write(self, day: str, source: str) -> None:
        self.number += 1
        content = parquet("x" * self.number)  # every delivery has its own size
        if self.dice.random() < 0.2:
            self.bench.write(day, source, content[:-1])
            self.lies.pop((day, source), None)
        else:
            self.bench.write(day, source, content)
            self.lies[day, source] = self.number

    def correct(self) -> None:
        self.write(self.dice.choice(self.DAYS), self.dice.choice(list(SOURCES)))

    def deliver(self) -> None:
        day = self.dice.choice(self.DAYS)
        for source in SOURCES:
            self.write(day, source)

    def look(self, killed: bool = False) -> None:
        events = self.bench.look(timedelta(seconds=self.dice.choice((0.5, 2, 4, 30, 70))))
        if killed:  # after the record was written, before anybody heard
            self.restart()
            return
        for version in events.items():
            deliveries = tuple(self.lies[version[0], source] for source in SOURCES)  # KeyError: not whole
            assert self.announced.setdefault(version, deliveries) == deliveries
            assert version not in self.taken
            if version in self.open:
                life, at = self.open[version]
                patience = REANNOUNCE_AFTER if life == self.life else ANNOUNCEMENT_TIMEOUT
                assert self.bench.now - at >= patience
                self.reannounced += 1
            self.open[version] = (self.life, self.bench.now)

    def look_and_be_killed(self) -> None:
        self.look(killed=True)

    def take(self) -> None:
        if self.open:
            version = self.dice.choice(sorted(self.open))
            self.bench.records.acknowledge(dict([version]))
            del self.open[version]
            self.taken.add(version)

    def restart(self) -> None:
        self.bench.restart()
        self.life += 1

    def end(self) -> None:
        for _ in range(3):
            self.bench.now += ANNOUNCEMENT_TIMEOUT
            self.look()
        announced = set(self.announced.values())
        for day in self.DAYS:
            deliveries = tuple(self.lies.get((day, source)) for source in SOURCES)
            assert None in deliveries or deliveries in announced, f"{day} was never announced"


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where possible: a disk would take most of the time of a thousand stories."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as folder:
        yield Path(folder)


def test_a_thousand_random_stories_end_well(fast_folder: Path) -> None:
    dice = random.Random(7)
    steps = [Story.deliver, Story.correct, Story.take, Story.restart, Story.look_and_be_killed]
    steps += [Story.look] * 3
    announced, reannounced = 0, 0
    for number in range(1000):
        bench = Bench("memory://story/raw", fast_folder / str(number))
        story = Story(bench, dice)
        for _ in range(dice.randrange(5, 25)):
            dice.choice(steps)(story)
        story.end()
        announced, reannounced = announced + len(story.announced), reannounced + story.reannounced
        bench.fs.store.clear()
    assert announced > 1000  # the stories were about something
    assert reannounced > 50
