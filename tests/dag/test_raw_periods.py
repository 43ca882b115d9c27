"""The event trigger, driven as the triggerer drives it: real folders, real time, short polls."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from airflow.triggers.base import BaseEventTrigger
from fsspec.implementations.memory import MemoryFileSystem

from evergreen.errors import SpecError
from evergreen.ingest.announcements import AnnouncementStore
from evergreen.ingest.watcher import SETTLE_TIME, WatchedSource
from evergreen.orchestration.triggers.raw_periods import RawDataTrigger
from evergreen.spec.origins import RawFiles

pytestmark = pytest.mark.dag

SOURCES = {
    "flights": WatchedSource().to_json(),
    "clicks": WatchedSource(RawFiles(path="clicks/%Y/%m/%d/", format="csv", nulls=("", "NA")), 24).to_json(),
}
PARQUET = b"PAR1 data\0\0\0\0PAR1"
FIRST, SECOND = "2013-01-01", "2013-01-02"
POLL, SETTLE = 0.02, 0.03
BOUND = 2 * POLL + SETTLE
SLOW = 5.0  # what a busy machine may add


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def trigger(raw: Path | str, tmp_path: Path) -> RawDataTrigger:
    return RawDataTrigger(
        str(raw),
        dict.fromkeys(("flights", "weather"), WatchedSource(RawFiles(quiet_seconds=SETTLE)).to_json()),
        str(tmp_path / "records"),
        poll_seconds=POLL,
    )


def deliver(raw: Path, *days: str) -> None:
    for day in days:
        for source in ("flights", "weather"):
            file = raw / source / f"day={day}" / f"{source}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(PARQUET)


@asynccontextmanager
async def events(trigger: RawDataTrigger) -> AsyncIterator[asyncio.Queue[dict[str, str]]]:
    """Events that the trigger fires inside the block; it is cancelled at the end, as by the triggerer."""
    fired: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def listen() -> None:
        async for event in trigger.run():
            assert json.loads(json.dumps(event.payload)) == event.payload
            fired.put_nowait(event.payload["periods"])

    listener = asyncio.create_task(listen())
    try:
        yield fired
        assert not listener.done(), "the watcher ended"
    finally:
        listener.cancel()
        await asyncio.wait([listener])


async def next_event(fired: asyncio.Queue[dict[str, str]], within: float = BOUND + SLOW) -> list[str]:
    return list(await asyncio.wait_for(fired.get(), within))


def test_an_event_follows_the_last_byte_within_the_bound(raw: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async with events(trigger(raw, tmp_path)) as fired:
            await asyncio.sleep(2 * POLL)
            deliver(raw, FIRST, SECOND)
            began = time.monotonic()
            assert await next_event(fired) == [FIRST, SECOND]
            assert SETTLE <= time.monotonic() - began <= BOUND + SLOW
            deliver(raw, "2013-01-03")
            assert await next_event(fired) == ["2013-01-03"]
            await asyncio.sleep(2 * BOUND)
            assert fired.empty()

    asyncio.run(story())


def test_the_next_watcher_does_not_fire_acknowledged_days(raw: Path, tmp_path: Path) -> None:
    async def first() -> None:
        async with events(trigger(raw, tmp_path)) as fired:
            AnnouncementStore(tmp_path / "records").acknowledge(await fired.get())

    async def second() -> None:
        async with events(trigger(raw, tmp_path)) as fired:
            await asyncio.sleep(2 * BOUND)
            assert fired.empty()
            deliver(raw, SECOND)
            assert await next_event(fired) == [SECOND]

    deliver(raw, FIRST)
    asyncio.run(first())
    asyncio.run(second())


def test_an_event_is_recorded_before_it_is_fired(raw: Path, tmp_path: Path) -> None:
    async def story() -> None:
        async for event in trigger(raw, tmp_path).run():
            announced = AnnouncementStore(tmp_path / "records").read_announcements()
            assert {day: was.delivery_id for day, was in announced.items()} == event.payload["periods"]
            break

    deliver(raw, FIRST)
    asyncio.run(story())


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == RawDataTrigger.__module__]


def test_a_folder_that_cannot_be_listed_is_logged_once(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with events(trigger(raw, tmp_path)) as fired:
            await asyncio.sleep(15 * POLL)  # tries at 0, 2, 6 and 14 polls; the next one is at 30
            assert fired.empty()
            assert len(messages(caplog)) == 1
            (raw / "weather").unlink()
            deliver(raw, FIRST)
            assert await next_event(fired, within=15 * POLL + BOUND + SLOW) == [FIRST]
            deliver(raw, SECOND)  # the watcher has its old pace back: two looks at the slow one take longer
            assert await next_event(fired, within=30 * POLL) == [SECOND]

    (raw / "flights").mkdir(parents=True)
    (raw / "weather").write_text("a file where a folder belongs")
    with caplog.at_level(logging.INFO):
        asyncio.run(story())
    failure, works_again = messages(caplog)
    assert f"Cannot look for arrivals in {raw}" in failure
    assert "NotADirectoryError" in failure
    assert "works again" in works_again


class Unreliable(MemoryFileSystem):
    """An object store that can be unreachable."""

    protocol = "unreliable"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    out_of_reach = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("unreliable://", "memory://"))

    def find(self, *args: Any, **kwargs: Any) -> Any:
        if Unreliable.out_of_reach:
            raise ConnectionError("no route to host")
        return super().find(*args, **kwargs)


@pytest.fixture
def unreliable() -> Iterator[Unreliable]:
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    yield Unreliable()
    Unreliable.store.clear()
    Unreliable.out_of_reach = False


def test_a_store_out_of_reach_is_retried(
    unreliable: Unreliable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with events(trigger("unreliable://lake/raw", tmp_path)) as fired:
            for day in (FIRST, SECOND):
                for source in ("flights", "weather"):
                    unreliable.pipe_file(f"/lake/raw/{source}/day={day}/{source}.parquet", PARQUET)
                if day == FIRST:
                    assert await next_event(fired) == [FIRST]
                    Unreliable.out_of_reach = True
            await asyncio.sleep(4 * POLL)
            assert fired.empty()
            Unreliable.out_of_reach = False
            assert await next_event(fired, within=8 * POLL + BOUND + SLOW) == [SECOND]

    asyncio.run(story())
    assert [text for text in messages(caplog) if "ConnectionError: no route to host" in text]


def test_the_trigger_is_identified_after_a_round_trip(tmp_path: Path) -> None:
    path, kwargs = RawDataTrigger("raw", SOURCES, "records", poll_seconds=2).serialize()
    stored = json.loads(json.dumps(kwargs))
    assert stored == kwargs
    module, _, name = path.rpartition(".")
    assert (RawDataTrigger.__module__, RawDataTrigger.__name__) == (module, name)
    again = RawDataTrigger(**stored).serialize()
    same = RawDataTrigger("raw", SOURCES, "records", poll_seconds=2.0).serialize()
    assert BaseEventTrigger.hash(*again) == BaseEventTrigger.hash(*same) == BaseEventTrigger.hash(path, kwargs)


def test_the_bound_holds_at_default_settings() -> None:
    trigger = RawDataTrigger("raw", SOURCES, "records")
    assert SETTLE_TIME.total_seconds() + 2 * trigger.poll_seconds <= 4


def test_a_trigger_without_daily_sources_is_refused() -> None:
    with pytest.raises(SpecError, match="all are registers"):
        RawDataTrigger("raw", {}, "records")
