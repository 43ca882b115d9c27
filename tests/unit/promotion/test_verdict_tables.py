"""Tables of verdicts say what the ledger says, whoever writes them, is killed, or has read less of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deltalake import DeltaTable

from evergreen import ledger, object_store, storage
from evergreen.lake import tables
from evergreen.lake.datasets import Dataset, PublicationStamp
from evergreen.lake.delta import DeltaFormat
from evergreen.ledger import VerdictRecorded
from evergreen.promotion import verdict_tables
from evergreen.promotion.verdict_tables import follow_verdicts, open_verdict_tables, publish_verdicts
from evergreen.settings import settings
from support.interleaving import killed_before_change
from support.ledger_events import verdict_event
from support.object_stores import open_store

pytestmark = pytest.mark.unit

MODEL = "flight_delay"


@pytest.fixture(params=["folder", "store"])
def lake(
    request: pytest.FixtureRequest, home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A deployment with tables, whose lake is in a folder, or in our server."""
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    if request.param == "folder":
        use_home(home)
        yield
        return
    with open_store("own", monkeypatch) as (uri, _):
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        use_home(home)
        yield


def record(as_of: int, passed: bool = True) -> int:
    return ledger.append_decision(MODEL, "a run", lambda _: verdict_event(as_of, passed=passed)).number


def rows(table: str, columns: list[str]) -> list[tuple[object, ...]]:
    folder = open_verdict_tables(MODEL).root / table
    options = None if storage.is_local(folder) else object_store.client_variables(folder.protocol)
    content = DeltaTable(str(folder), storage_options=options).to_pyarrow_dataset().to_table(columns=columns)
    return sorted(zip(*(content[name].to_pylist() for name in columns), strict=True))


def in_ledger() -> list[tuple[int, str, bool]]:
    return [
        (entry.number, entry.event.candidate_content, entry.event.verdict.promote)
        for entry in ledger.read_state(MODEL).entries
        if isinstance(entry.event, VerdictRecorded)
    ]


VERDICT = ["entry", "candidate_content", "promote"]


def test_each_verdict_is_a_row(lake: None) -> None:
    for as_of, passed in ((10, True), (20, False)):
        number = record(as_of, passed)
        follow_verdicts(MODEL)
    assert rows("verdicts", VERDICT) == in_ledger()
    assert rows("gates", ["entry", "gate", "outcome", "candidate", "threshold"]) == [
        (number - 1, "auc", "passed", 0.7, 0.6),
        (number, "auc", "failed", 0.7, 0.6),
    ]
    entry = ledger.read_state(MODEL).entries[-1]
    event = entry.event
    assert isinstance(event, VerdictRecorded)
    assert rows("verdicts", ["recorded_at", "as_of", "first_day", "end_day", "reason"])[-1] == (
        entry.recorded_at,
        event.as_of,
        *event.days,
        event.verdict.reason,
    )


def test_without_a_format_nothing_is_written(lake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERGREEN_TABLES")
    settings.cache_clear()
    record(10)
    follow_verdicts(MODEL)
    assert open_verdict_tables(MODEL).partitions() == []


def test_a_model_without_verdicts_has_no_tables(lake: None) -> None:
    ledger.append_decision(
        MODEL,
        "ada",
        lambda state: ledger.entries.PromotionsFrozen(reason="stocktaking"),  # type: ignore[attr-defined]
    )
    follow_verdicts(MODEL)
    assert open_verdict_tables(MODEL).partitions() == []


def test_pages_are_written_once_and_repaired(lake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict_tables, "_PAGE_LENGTH", 2)
    for as_of in range(10, 15):
        record(as_of)
        follow_verdicts(MODEL)
    dataset = open_verdict_tables(MODEL)
    assert dataset.partitions() == ["page=000000", "page=000001", "page=000002"]
    assert rows("verdicts", VERDICT) == in_ledger()
    before = dataset.publication_stamps()
    follow_verdicts(MODEL)
    assert dataset.publication_stamps() == before
    storage.remove_files([dataset.manifest_path("page=000000")])
    tables.sync_tables(publish_verdicts(MODEL), DeltaFormat())
    assert len(rows("verdicts", VERDICT)) == 3, "it stops at the first page that is complete"
    tables.sync_tables(publish_verdicts(MODEL, all_pages=True), DeltaFormat())
    assert rows("verdicts", VERDICT) == in_ledger()


def test_verdicts_of_the_same_second_are_followed(lake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store tells the second of a publication, and no less."""
    dataset = open_verdict_tables(MODEL)
    stamps = type(dataset).publication_stamps

    def stamps_of_one_second(self: Dataset) -> dict[str, PublicationStamp]:
        return {name: stamp._replace(time_ns=10**18) for name, stamp in stamps(self).items()}

    monkeypatch.setattr(type(dataset), "publication_stamps", stamps_of_one_second)
    for as_of in (10, 11):
        record(as_of)
        follow_verdicts(MODEL)
    assert len(in_ledger()) == 2
    assert rows("verdicts", VERDICT) == in_ledger()


def test_a_writer_that_has_read_less_does_not_have_the_last_word(lake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    record(10)
    read, publish = threading.Event(), Dataset.publish

    def publish_late(*arguments: object) -> object:
        if threading.current_thread() is slow:
            read.set()
            fast.join()
        return publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Dataset, "publish", publish_late)
    slow = threading.Thread(target=publish_verdicts, args=(MODEL,))

    def be_fast() -> None:
        read.wait()
        record(20)
        publish_verdicts(MODEL)

    fast = threading.Thread(target=be_fast)
    fast.start()
    slow.start()
    slow.join()
    tables.sync_tables(open_verdict_tables(MODEL), DeltaFormat())
    assert rows("verdicts", VERDICT) == in_ledger()
    assert len(in_ledger()) == 2


def test_a_writer_whose_page_is_published_by_another_is_done(lake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    record(10)
    write_rows, others = verdict_tables._write_rows, [publish_verdicts]

    def write_late(*arguments: object) -> None:
        while others:
            others.pop()(MODEL)  # and removes what is staged for the page
        write_rows(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(verdict_tables, "_write_rows", write_late)
    tables.sync_tables(publish_verdicts(MODEL), DeltaFormat())
    assert rows("verdicts", VERDICT) == in_ledger()


def test_writers_at_once_lose_no_verdict(lake: None) -> None:
    def judge(number: int) -> None:
        record(number)
        publish_verdicts(MODEL)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(judge, range(10, 18)))
    follow_verdicts(MODEL)
    assert rows("verdicts", VERDICT) == in_ledger()
    assert len(in_ledger()) == 8


def test_a_killed_writer_is_completed_by_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    settings.cache_clear()
    number = 0
    while True:
        record(10 + number)
        is_killed = killed_before_change(number, lambda: publish_verdicts(MODEL))
        follow_verdicts(MODEL)
        assert rows("verdicts", VERDICT) == in_ledger()
        if not is_killed:
            break
        number += 1
    assert number > 5
