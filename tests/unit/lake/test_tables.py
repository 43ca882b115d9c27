"""Tables follow the manifests: whatever was published, replaced, removed, interrupted or written by others."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, TableFeatures, write_deltalake
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from evergreen.errors import SettingsError, TableError
from evergreen.lake import tables
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.delta import DeltaFormat
from evergreen.settings import settings

pytestmark = pytest.mark.unit

DELTA = DeltaFormat()
INT32, INT64 = pa.int32(), pa.int64()
FIRST, SECOND, THIRD = "day=2013-01-01", "day=2013-01-02", "day=2013-01-03"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "features")


def publish(dataset: Dataset, partition: str, value: int, kind: pa.DataType = INT32, **columns: pa.Array) -> Manifest:
    """Publish one row of the table `rates`; its column `n` is of the type `kind`."""
    table = pa.table({"n": pa.array([value], kind), **columns})
    return publish_tables(dataset, partition, f"{value:016x}{0:048x}", rates=table)


def publish_tables(dataset: Dataset, partition: str, fingerprint: str, **contents: pa.Table) -> Manifest:
    folder = dataset.stage(partition, fingerprint)
    for name, table in contents.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return dataset.publish(partition, fingerprint, {name: folder / f"{name}.parquet" for name in contents}, {})


def sync(dataset: Dataset, *partitions: str) -> tables.SyncedTable:
    """Bring the table `rates` up to date as after publishing `partitions`."""
    (synced,) = tables.sync_tables(dataset, DELTA, partitions)
    return synced


def open_table(dataset: Dataset, name: str = "rates", version: int | None = None) -> DeltaTable:
    return DeltaTable(str(dataset.root / name), version=version)


def rows(dataset: Dataset, name: str = "rates", version: int | None = None) -> list[dict[str, Any]]:
    """Return what a reader of the table gets, by partition."""
    table = open_table(dataset, name, version)
    return table.to_pyarrow_table().sort_by(table.metadata().partition_columns[0]).to_pylist()


def values(dataset: Dataset, version: int | None = None) -> dict[str, int]:
    """Return `n` by day; of each day, there is one row."""
    found = [(f"day={row['day']}", row["n"]) for row in rows(dataset, version=version)]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_table_is_the_published_files(dataset: Dataset) -> None:
    manifests = [publish(dataset, FIRST, 1), publish(dataset, SECOND, 2)]
    before = set(dataset.root.rglob("*.parquet"))
    assert sync(dataset) == ("rates", 2, 2, 0, {})
    table = open_table(dataset)
    assert {Path(uri) for uri in table.file_uris()} == {dataset.file_path(m, "rates") for m in manifests}
    assert set(dataset.root.rglob("*.parquet")) == before
    ds = table.to_pyarrow_dataset()
    query = "SELECT n, day FROM ds WHERE day >= DATE '2013-01-02'"
    assert duckdb.sql(query).fetchall() == [(2, dt.date(2013, 1, 2))]
    assert ds.count_rows() == 2


def test_sync_without_a_change_commits_nothing(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    for partitions in ((), (FIRST,), ()):
        sync(dataset, *partitions)
    assert tables.sync_tables(dataset, DELTA) == [("rates", 1, 0, 0, {})]
    assert open_table(dataset).version() == 0


def test_sync_reads_only_what_has_changed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [f"day=2013-01-{day:02}" for day in range(1, 11)]
    for value, day in enumerate(days):
        publish(dataset, day, value)
    sync(dataset)
    publish(dataset, days[3], 33)
    read: list[str] = []
    read_manifest = Dataset.manifest
    monkeypatch.setattr(Dataset, "manifest", lambda self, name: read.append(name) or read_manifest(self, name))
    assert sync(dataset).added == 1
    assert sorted(read) == [days[3], days[-1]]  # the newest has the types
    assert values(dataset)[days[3]] == 33


def test_replaced_and_removed_partitions_are_one_commit(dataset: Dataset) -> None:
    for value, day in enumerate((FIRST, SECOND, THIRD)):
        publish(dataset, day, value)
    sync(dataset)
    publish(dataset, FIRST, 10)
    (dataset.root / "_manifests" / f"{SECOND}.json").unlink()
    assert sync(dataset, FIRST) == ("rates", 2, 1, 2, {})
    assert values(dataset) == {FIRST: 10, THIRD: 2}
    assert values(dataset, version=0) == {FIRST: 0, SECOND: 1, THIRD: 2}
    assert open_table(dataset).version() == 1


def test_all_partitions_may_be_removed(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    sync(dataset)
    (dataset.root / "_manifests" / f"{FIRST}.json").unlink()
    assert sync(dataset).removed == 1
    assert values(dataset) == {}


def test_manifest_copied_from_a_backup_adds_no_row(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    sync(dataset)
    os.utime(dataset.root / "_manifests" / f"{FIRST}.json", (1, 1))
    assert sync(dataset).added == 1
    assert sync(dataset).added == 0
    assert values(dataset) == {FIRST: 1}
    *_, last = (json.loads(line) for line in (dataset.root / f"rates/_delta_log/{1:020}.json").open())
    assert not last["add"]["dataChange"]  # so no stream of the table has it twice


def test_published_partitions_are_read_whatever_their_time(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    sync(dataset)
    manifest = dataset.root / "_manifests" / f"{FIRST}.json"
    written_ns = manifest.stat().st_mtime_ns
    publish(dataset, FIRST, 2)
    os.utime(manifest, ns=(written_ns, written_ns))  # as clocks of file systems may have it
    sync(dataset, FIRST)
    assert values(dataset) == {FIRST: 2}


def test_added_column_is_null_in_older_partitions(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    sync(dataset)
    wind = pa.array([0.5])
    publish(dataset, SECOND, 2, wind=wind)
    sync(dataset, SECOND)
    assert [row["wind"] for row in rows(dataset)] == [None, 0.5]
    publish(dataset, FIRST, 3)  # and one that is gone again stays, as null
    publish(dataset, SECOND, 3)
    sync(dataset)
    assert [row["wind"] for row in rows(dataset)] == [None, None]


def test_partitions_of_another_type_are_left_out(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    publish(dataset, SECOND, 2)
    sync(dataset)
    publish(dataset, THIRD, 3, INT64)
    reason = "n is integer, and long in newer partitions"
    assert sync(dataset, THIRD).left_out == {SECOND: reason, FIRST: reason}
    assert values(dataset) == {THIRD: 3}
    publish(dataset, FIRST, 4, INT64)
    assert sync(dataset, FIRST).left_out == {SECOND: reason}
    assert values(dataset) == {FIRST: 4, THIRD: 3}
    publish(dataset, THIRD, 5)  # the code of before again
    assert list(sync(dataset, THIRD).left_out) == [FIRST]
    assert values(dataset) == {SECOND: 2, THIRD: 5}


def test_partitions_return_when_what_left_them_out_is_gone(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1, wind=pa.array([0.5]))
    publish(dataset, SECOND, 2, wind=pa.array([5]))
    publish(dataset, THIRD, 3)
    assert sync(dataset).left_out == {FIRST: "wind is double, and long in newer partitions"}
    publish(dataset, SECOND, 4)
    assert sync(dataset, SECOND).left_out == {}
    assert [row["wind"] for row in rows(dataset)] == [0.5, None, None]


def test_column_of_a_type_that_tables_lack_clashes_too(dataset: Dataset) -> None:
    steps = pa.array([[1, 2]])
    publish(dataset, FIRST, 1, steps=pa.array([1]))
    sync(dataset)
    publish(dataset, THIRD, 3, steps=steps)
    reason = "steps is long, and of a type that tables do not have in newer partitions"
    assert sync(dataset, THIRD).left_out == {FIRST: reason}
    assert rows(dataset) == [{"n": 3, "day": dt.date(2013, 1, 3)}]
    version = open_table(dataset).version()
    sync(dataset)
    assert open_table(dataset).version() == version


def test_new_column_is_compared_with_all_partitions(dataset: Dataset) -> None:
    publish(dataset, SECOND, 2, steps=pa.array([[1, 2]]))
    publish(dataset, THIRD, 3)
    sync(dataset)
    publish(dataset, FIRST, 1, steps=pa.array([1]))
    reason = "steps is long, and of a type that tables do not have in newer partitions"
    assert sync(dataset, FIRST).left_out == {FIRST: reason}
    assert values(dataset) == {SECOND: 2, THIRD: 3}


def test_columns_have_the_declared_types(dataset: Dataset) -> None:
    instant = dt.datetime(2013, 1, 1, 12, tzinfo=dt.UTC)
    columns = {
        "carrier": pa.array(["AA"]),
        "event_timestamp": pa.array([instant], pa.timestamp("us", "UTC")),
        "local": pa.array([instant.replace(tzinfo=None)], pa.timestamp("us")),
        "price": pa.array([1], pa.decimal128(10, 2)),
        "rate": pa.array([0.5], pa.float32()),
        "late": pa.array([True]),
        "steps": pa.array([[1, 2]]),  # no column of the table: a list
    }
    publish(dataset, FIRST, 1, **columns)
    sync(dataset)
    (row,) = rows(dataset)
    expected = {name: column[0].as_py() for name, column in columns.items() if name != "steps"}
    assert row == {"n": 1, **expected, "day": dt.date(2013, 1, 1)}
    sync(dataset)
    assert open_table(dataset).version() == 0


def test_hours_are_partitions_by_name(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)  # before the model became hourly
    sync(dataset)
    publish(dataset, "period=2013-01-01T0600Z", 6)
    assert list(sync(dataset).left_out) == [FIRST]
    assert rows(dataset) == [{"n": 6, "period": "2013-01-01T06:00Z"}]


def test_each_table_of_a_dataset_is_followed(dataset: Dataset) -> None:
    one = pa.table({"n": [1]})
    publish_tables(dataset, FIRST, "a" * 64, rates=one, orders=one)
    tables.sync_tables(dataset, DELTA, [FIRST])
    publish_tables(dataset, SECOND, "b" * 64, rates=one, weather=one)
    tables.sync_tables(dataset, DELTA, [SECOND])
    assert {name: len(rows(dataset, name)) for name in ("rates", "orders", "weather")} == {
        "rates": 2,
        "orders": 1,
        "weather": 1,
    }
    publish_tables(dataset, FIRST, "c" * 64, rates=one)
    tables.sync_tables(dataset, DELTA, [FIRST])
    assert rows(dataset, "orders") == []


def test_table_of_long_ago_is_made_by_the_command_only(dataset: Dataset) -> None:
    one = pa.table({"n": [1]})
    publish_tables(dataset, FIRST, "a" * 64, rates=one, orders=one)
    publish_tables(dataset, SECOND, "b" * 64, rates=one)
    assert [synced.table for synced in tables.sync_tables(dataset, DELTA, [SECOND])] == ["rates"]
    assert [synced.table for synced in tables.sync_tables(dataset, DELTA)] == ["orders", "rates"]


def append_rows(dataset: Dataset) -> None:
    strange = pa.table({"n": pa.array([7], INT32), "day": pa.array([dt.date(2013, 1, 9)])})
    write_deltalake(open_table(dataset), strange, mode="append")


def append_to_a_published_day(dataset: Dataset) -> None:
    strange = pa.table({"n": pa.array([7], INT32), "day": pa.array([dt.date(2013, 1, 1)])})
    write_deltalake(open_table(dataset), strange, mode="append")


def delete_rows(dataset: Dataset) -> None:
    open_table(dataset).delete("n = 2")


def add_column(dataset: Dataset) -> None:
    strange = pa.table({"n": pa.array([7], INT32), "x": ["x"], "day": pa.array([dt.date(2013, 1, 1)])})
    write_deltalake(open_table(dataset), strange, mode="append", schema_mode="merge")


def change_types(dataset: Dataset) -> None:
    strange = pa.table({"n": ["x"], "day": pa.array([dt.date(2013, 1, 1)])})
    write_deltalake(open_table(dataset), strange, mode="overwrite", schema_mode="overwrite")


def enable_deletion_vectors(dataset: Dataset) -> None:
    table = open_table(dataset)
    table.alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)


def set_property(dataset: Dataset) -> None:
    open_table(dataset).alter.set_table_properties({"delta.enableChangeDataFeed": "true"})


def compact(dataset: Dataset) -> None:
    append_to_a_published_day(dataset)
    open_table(dataset).optimize.compact()


@pytest.mark.parametrize(
    "write",
    [
        append_rows,
        append_to_a_published_day,
        delete_rows,
        add_column,
        change_types,
        enable_deletion_vectors,
        set_property,
        compact,
    ],
)
def test_what_others_wrote_is_undone(dataset: Dataset, write: Callable[[Dataset], None]) -> None:
    publish(dataset, FIRST, 1)
    publish(dataset, SECOND, 2)
    sync(dataset)
    properties = open_table(dataset).metadata().configuration
    write(dataset)
    assert open_table(dataset).version() > 0
    publish(dataset, THIRD, 3)
    sync(dataset, THIRD)
    assert values(dataset) == {FIRST: 1, SECOND: 2, THIRD: 3}
    assert open_table(dataset).metadata().configuration == properties
    assert properties["delta.deletedFileRetentionDuration"] == "interval 36500 days"
    version = open_table(dataset).version()
    sync(dataset)
    assert open_table(dataset).version() == version


def test_a_table_that_refuses_commits_names_the_way_out(dataset: Dataset) -> None:
    one, two = pa.table({"n": [1]}), pa.table({"n": [2]})
    publish_tables(dataset, FIRST, "a" * 64, orders=one, rates=one, weather=one)
    tables.sync_tables(dataset, DELTA)
    open_table(dataset).alter.set_table_properties({"delta.appendOnly": "true"})
    publish_tables(dataset, FIRST, "b" * 64, orders=two, rates=two, weather=two)
    with pytest.raises(TableError, match="rates refuses a commit: .*append-only.*: move _delta_log in it away"):
        tables.sync_tables(dataset, DELTA, [FIRST])
    assert [rows(dataset, name)[0]["n"] for name in ("orders", "rates", "weather")] == [2, 1, 2]
    (dataset.root / "rates/_delta_log").rename(dataset.root / "log")
    tables.sync_tables(dataset, DELTA)
    assert values(dataset) == {FIRST: 2}


def truncate_commit(log: Path) -> None:
    file = log / f"{1:020}.json"
    file.write_bytes(file.read_bytes()[:-40])


def lose_first_commit(log: Path) -> None:
    (log / f"{0:020}.json").unlink()


def spoil_checkpoint(log: Path) -> None:
    DeltaTable(str(log.parent)).create_checkpoint()
    next(log.glob("*.checkpoint.parquet")).write_bytes(b"x")


@pytest.mark.parametrize("damage", [truncate_commit, lose_first_commit, spoil_checkpoint])
def test_damaged_log_keeps_no_other_table_from_its_days(dataset: Dataset, damage: Callable[[Path], None]) -> None:
    one = pa.table({"n": [1]})
    for day in (FIRST, SECOND):
        publish_tables(dataset, day, "a" * 64, orders=one, rates=one, weather=one)
        tables.sync_tables(dataset, DELTA, [day])
    damage(dataset.root / "rates/_delta_log")
    publish_tables(dataset, THIRD, "a" * 64, orders=one, rates=one, weather=one)
    with pytest.raises(TableError, match=r"rates/_delta_log is damaged: .*`evergreen tables sync`, which makes a new"):
        tables.sync_tables(dataset, DELTA, [THIRD])
    assert len(rows(dataset, "orders")) == len(rows(dataset, "weather")) == 3
    (dataset.root / "rates/_delta_log").rename(dataset.root / "rates/log")
    tables.sync_tables(dataset, DELTA)
    assert len(rows(dataset)) == 3


def test_a_commit_that_is_empty_is_repaired(dataset: Dataset) -> None:
    for value, day in enumerate((FIRST, SECOND)):
        publish(dataset, day, value)
        sync(dataset, day)
    (dataset.root / "rates/_delta_log" / f"{1:020}.json").write_bytes(b"")  # as a disk that lost what it had promised
    assert values(dataset) == {FIRST: 0}
    sync(dataset)
    assert values(dataset) == {FIRST: 0, SECOND: 1}


class RivalledFormat(DeltaFormat):
    """Between the read and the first commits of a writer, rivals do something."""

    def __init__(self, *rivals: Callable[[], object]):
        self.rivals = list(rivals)

    def commit(self, *arguments: Any) -> bool:
        if self.rivals:
            self.rivals.pop(0)()
        return super().commit(*arguments)


@pytest.mark.parametrize("has_table", [True, False])
def test_a_slow_writer_overwrites_no_newer_partition(dataset: Dataset, has_table: bool) -> None:
    publish(dataset, FIRST, 1)
    if has_table:
        sync(dataset)
    publish(dataset, SECOND, 2)

    def rival() -> None:
        publish(dataset, SECOND, 20)
        sync(dataset, SECOND)

    tables.sync_tables(dataset, RivalledFormat(rival), [SECOND])
    assert values(dataset) == {FIRST: 1, SECOND: 20}
    history = [values(dataset, version) for version in range(open_table(dataset).version() + 1)]
    assert all(version.get(SECOND, 20) == 20 for version in history)


def test_a_slow_writer_does_not_undo_a_change_of_types(dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    sync(dataset)
    publish(dataset, SECOND, 2, INT64)

    def rival() -> None:
        publish(dataset, SECOND, 3, INT64)
        publish(dataset, FIRST, 4, INT64)
        sync(dataset, FIRST, SECOND)

    tables.sync_tables(dataset, RivalledFormat(rival, rival), [SECOND])
    assert values(dataset) == {FIRST: 4, SECOND: 3}


def test_a_writer_that_never_wins_gives_up(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MAX_COMMITS", 3)
    publish(dataset, FIRST, 1)
    sync(dataset)
    publish(dataset, SECOND, 2)
    numbers = iter(range(1, 10))

    def rival() -> None:
        open_table(dataset).alter.set_table_properties({"delta.checkpointInterval": str(next(numbers))})

    with pytest.raises(TableError, match="others have written to this table 3 times meanwhile: run it again"):
        tables.sync_tables(dataset, RivalledFormat(*[rival] * 9), [SECOND])


DAYS = st.sampled_from([FIRST, SECOND, THIRD])
ACTIONS = st.one_of(
    st.tuples(st.just("publish"), DAYS, st.sampled_from([INT32, INT64]), st.booleans()),
    st.tuples(st.just("remove"), DAYS),
    st.tuples(st.just("touch"), DAYS),
    st.tuples(st.just("append")),
    st.tuples(st.just("sync all")),
    st.tuples(st.just("sync")),
)


@hypothesis_settings(max_examples=25)
@given(actions=st.lists(ACTIONS, min_size=4, max_size=14))
def test_table_is_a_function_of_the_manifests(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[Any, ...]]
) -> None:
    dataset = Dataset(tmp_path_factory.mktemp("lake") / "features")
    for number, (action, *arguments) in enumerate([*actions, ("sync",)]):
        match action, arguments:
            case "publish", [day, kind, has_wind]:
                publish(dataset, day, number, kind, **({"wind": pa.array([float(number)])} if has_wind else {}))
            case "remove", [day]:
                (dataset.root / "_manifests" / f"{day}.json").unlink(missing_ok=True)
            case "touch", [day]:
                with suppress(FileNotFoundError):
                    os.utime(dataset.root / "_manifests" / f"{day}.json", (number, number))
            case "append", _:
                if (dataset.root / "rates/_delta_log").exists():
                    append_to_a_table_of_any_type(dataset)
            case _:
                tables.sync_tables(dataset, DELTA, None if action == "sync all" else ())
                check_table(dataset)


def append_to_a_table_of_any_type(dataset: Dataset) -> None:
    table = open_table(dataset)
    kind = pa.schema(table.schema().to_arrow()).field("n").type
    write_deltalake(
        table,
        pa.table({"n": pa.array([7], kind), "day": pa.array([dt.date(2013, 1, 2)])}),
        mode="append",
        schema_mode="merge",
    )


def check_table(dataset: Dataset) -> None:
    """Check that the table has the rows of all files that have the newest one's type."""
    manifests = dataset.manifests()
    expected = {}
    for manifest in manifests:
        if manifest.files["rates"].schema["n"] == manifests[-1].files["rates"].schema["n"]:
            row = pq.read_table(dataset.file_path(manifest, "rates")).to_pylist()[0]
            expected[manifest.partition] = (row["n"], row.get("wind"))
    if not (dataset.root / "rates/_delta_log").exists():
        assert not expected
        return
    found = [(f"day={row['day']}", (row["n"], row.get("wind"))) for row in rows(dataset)]
    assert sorted(found) == sorted(expected.items())


WRITER = """
import sys
sys.path[:0] = [{tests!r}, {include!r}]
from pathlib import Path
from unit.lake.test_tables import DELTA, FIRST, SECOND, publish, tables
from evergreen.lake.datasets import Dataset
dataset = Dataset(Path({root!r}))
for n in range(int(sys.argv[1]), 100_000, 2):
    day = (FIRST, SECOND)[n // 2 % 2]
    publish(dataset, day, n)
    tables.sync_tables(dataset, DELTA, [day])
    print(n, flush=True)
"""


def test_killed_writers_leave_a_table_that_is_whole(dataset: Dataset) -> None:
    root = Path(__file__).parents[3]
    code = WRITER.format(tests=str(root / "tests"), include=str(root / "include"), root=str(dataset.root))
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)], stdout=subprocess.PIPE) for n in (0, 1)]
    for _ in range(8):
        for writer in writers:
            assert writer.stdout
            assert writer.stdout.readline()
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    for version in range(open_table(dataset).version() + 1):
        uris = open_table(dataset, version=version).file_uris()
        assert max(Counter(Path(uri).parent for uri in uris).values()) == 1
        assert all(Path(uri).exists() for uri in uris)
    tables.sync_tables(dataset, DELTA)
    check_table(dataset)


@pytest.fixture
def use_tables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    settings.cache_clear()


def test_publication_is_followed_only_if_configured(home: Path, dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    tables.follow_publication(dataset, [FIRST])
    assert not (dataset.root / "rates/_delta_log").exists()


def test_publication_is_followed(use_tables: None, dataset: Dataset) -> None:
    publish(dataset, FIRST, 1)
    tables.follow_publication(dataset, [FIRST])
    assert values(dataset) == {FIRST: 1}


def test_failing_table_is_only_logged(use_tables: None, dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    publish(dataset, FIRST, 1)
    (dataset.root / "rates/_delta_log").write_text("")
    tables.follow_publication(dataset, [FIRST])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "what they hold is published; the next publication, or `evergreen tables sync`" in record.getMessage()


def test_slow_table_is_left_to_itself(use_tables: None, dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    publish(dataset, FIRST, 1)
    manifest = dataset.root / "_manifests" / f"{FIRST}.json"
    content = manifest.read_bytes()
    manifest.unlink()
    os.mkfifo(manifest)  # whoever opens it waits for a writer
    tables.follow_publication(dataset, [FIRST], timeout_s=0.01)
    assert "its tables are not complete after 0 s: what they hold is published" in caplog.text
    with manifest.open("wb") as writer:
        writer.write(content)


def test_missing_library_is_named(use_tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    monkeypatch.delitem(sys.modules, "evergreen.lake.delta")
    with pytest.raises(SettingsError, match=r"EVERGREEN_TABLES: deltalake is not installed → pip install 'evergreen\["):
        tables.configured_table_format()
