"""Logs come from others: what is foreign is named, what is delivered twice counts once, and the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from evergreen.errors import ScoringError
from evergreen.ingest.databases import open_database
from evergreen.monitoring.serving_logs import (
    LogFile,
    LoggedPeriod,
    iter_problems,
    list_log_files,
    log_columns,
    logs_folder,
    read_period,
    schema_faults,
    shorten,
)
from support.serving_logs import CONTENT, INPUTS, INSTANT, START, log_table, write_log

pytestmark = pytest.mark.unit

SCHEMA = log_columns(INPUTS)
END = START + timedelta(days=1)


def read(files: Mapping[str, Path], max_rows: int = 100) -> LoggedPeriod:
    with open_database() as database:
        return read_period(database, files, SCHEMA, CONTENT, START, END, max_rows)


def write(folder: Path, **tables: pa.Table) -> dict[str, Path]:
    return {name: write_log(folder / f"{name}.parquet", table) for name, table in tables.items()}


def sampled_ids(logged: LoggedPeriod) -> list[str]:
    assert logged.sample is not None
    return logged.sample["prediction_id"].to_pylist()


def test_a_file_that_is_delivered_twice_counts_once(tmp_path: Path) -> None:
    first, second = log_table(["b", "a", "c"]), log_table(["d"])
    logged = read(write(tmp_path, one=first, two=second, three=first))
    assert (logged.rows, logged.duplicates, logged.conflicts) == (4, 3, 0)
    assert sampled_ids(logged) == ["a", "b", "c", "d"]
    assert logged.sample is not None
    assert logged.sample["wind"].to_pylist() == [1.0, 0.0, 2.0, 0.0]
    again = read(write(tmp_path, four=second, five=first))
    assert again.sample == logged.sample, "however rows come in files"
    assert list(iter_problems(logged)) == []


def test_an_id_with_two_predictions_is_named(tmp_path: Path) -> None:
    other = log_table(["a", "z"], {"prediction": pa.array([0.75, 0.25])})
    logged = read(write(tmp_path, a=log_table(["a", "b"]), b=other))
    assert (logged.rows, logged.duplicates, logged.conflicts) == (3, 1, 1)
    assert logged.sample is not None
    assert logged.sample["prediction"].to_pylist() == [0.25, 0.25, 0.25]
    assert "1 prediction ids have several rows that differ" in "".join(iter_problems(logged))


def test_the_sample_is_bounded_and_depends_on_ids_only(tmp_path: Path) -> None:
    ids = [f"id-{number:04}" for number in range(500)]
    logged = read(write(tmp_path, a=log_table(ids[:300]), b=log_table(ids[300:])), max_rows=20)
    turned = read(write(tmp_path, c=log_table(ids[::-1])), max_rows=20)
    assert logged.rows == turned.rows == 500
    assert sampled_ids(logged) == sampled_ids(turned)
    assert len(set(sampled_ids(logged))) == 20
    assert sampled_ids(logged) != ids[:20]


def test_rows_of_others_are_counted_and_not_read(tmp_path: Path) -> None:
    """Another model has other inputs, and rows without an id, or of another period, say nothing."""
    others = log_table(["o1", "o2"], {"wind": None, "levels__level": None}, content="b" * 64)
    moments = [START - timedelta(seconds=1), START, END, None]
    times = {"request_time": pa.array(moments, INSTANT)}
    logged = read(write(tmp_path, others=others, mine=log_table([None, "", "x" * 201, "ok"]), late=log_table(
        ["before", "first", "after", "never"], times)))  # fmt: skip
    assert (logged.rows, logged.unidentified, logged.outside) == (2, 4, 2)
    assert sampled_ids(logged) == ["first", "ok"]
    assert logged.other_models == {"3": 2}
    assert not logged.foreign


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prediction_id": None}, "prediction_id: no such column is found, text is expected → write it as string"),
        ({"prediction_id": pa.array([1, 2])}, "prediction_id: int64 is found, text is expected"),
        (
            {"request_time": pa.array([datetime(2013, 1, 7, 6)] * 2, pa.timestamp("us"))},
            "request_time: timestamp[us] without a time zone is found, a timestamp with a time zone is expected → "
            "write it as timestamp[us, tz=UTC]",
        ),
        ({"levels__level": None}, "levels__level: no such column is found, a number is expected"),
        ({"levels__level": pa.array(["1.5", "2"])}, "levels__level: string is found, a number is expected"),
        ({"pond": pa.array([1, 2])}, "pond: int64 is found, text is expected"),
        ({"prediction": pa.array([[0.5], [0.5]])}, "is found, a number is expected"),
        ({"Wind": pa.array([1.0, 2.0])}, "occurs twice, if case does not count"),
        ({"file_row_number": pa.array([1, 2])}, "has a name that DuckDB keeps"),
    ],
)
def test_a_foreign_schema_is_named_and_the_rest_goes_on(tmp_path: Path, columns: dict[str, Any], expected: str) -> None:
    files = write(tmp_path, foreign=log_table(["f1", "f2"], columns), fine=log_table(["a"]))
    logged = read(files)
    (problem,) = logged.foreign
    assert problem.startswith("foreign: ")
    assert expected in problem
    assert (logged.rows, sampled_ids(logged)) == (1, ["a"])


def test_all_columns_that_are_foreign_are_named() -> None:
    faults = schema_faults(pa.schema([("x", pa.int64())]), (*SCHEMA.common, *SCHEMA.of_model))
    assert [fault.location for fault in faults] == [
        "prediction_id", "request_time", "model_version", "model_content", "pond", "wind", "levels__level", "prediction"
    ]  # fmt: skip
    assert all(fault.fix for fault in faults)


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, fine=log_table(["a"]))
    for name, data in {"empty": b"", "html": b"<script>alert(1)</script>"}.items():
        files[name] = tmp_path / name
        files[name].write_bytes(data)
    whole = write_log(tmp_path / "whole.parquet", log_table([f"{n}" for n in range(1000)])).read_bytes()
    files["torn"] = tmp_path / "torn.parquet"
    files["torn"].write_bytes(whole[:200] + bytes(len(whole) - 1200) + whole[-1000:])
    logged = read(files)
    assert [problem.partition(":")[0] for problem in logged.foreign] == ["empty", "html", "torn"]
    assert sampled_ids(logged) == ["a"]


def test_a_file_that_ends_too_early_for_its_columns_is_named(tmp_path: Path) -> None:
    """Its footer is whole, and says that columns are where the file has ended: other bytes were left out."""
    files = write(tmp_path, fine=log_table(["a"]))
    whole = write_log(tmp_path / "whole.parquet", log_table([f"{n}" for n in range(5000)])).read_bytes()
    files["short"] = tmp_path / "short.parquet"
    files["short"].write_bytes(whole[:4] + whole[-(int.from_bytes(whole[-8:-4], "little") + 8) :])
    logged = read(files)
    assert [problem.partition(":")[0] for problem in logged.foreign] == ["short"]
    assert sampled_ids(logged) == ["a"]


def test_what_is_no_fault_of_a_file_is_raised(tmp_path: Path) -> None:
    """Too little memory, and a file that the disk does not give: another run may read it."""
    table = log_table([f"{number:0150}" for number in range(30_000)])
    files = write(tmp_path, fine=table)
    with open_database() as database:
        database.execute("SET memory_limit = '1MB'; SET temp_directory = ''")
        with pytest.raises(duckdb.OutOfMemoryException):
            read_period(database, files, SCHEMA, CONTENT, START, END, 100)
    assert read(files).rows, "the file is whole"
    with pytest.raises(FileNotFoundError):
        read({"gone": tmp_path / "gone.parquet"})


def test_hostile_values_are_read_as_what_they_are(tmp_path: Path) -> None:
    """Infinity, NaN, decimals, whole numbers beyond 64 bits of a float, dictionaries, and instants out of range."""
    rows = ["<b>x</b>", "a\nb"]
    columns = {
        "wind": pa.array([float("nan"), float("inf")]),
        "levels__level": pa.array([2**63 + 1, 0], pa.uint64()),
        "pond": pa.array(["a", "b'; DROP TABLE logged; --"]).dictionary_encode(),
        "model_version": pa.array(["<script>" * 50, "\u202e"]),
        "extra": pa.array([{"x": 1}, {"x": 2}]),
    }
    logged = read(write(tmp_path, hostile=log_table(rows, columns)))
    assert logged.rows == 2
    assert logged.sample is not None
    by_id = {row["prediction_id"]: row for row in logged.sample.to_pylist()}
    assert by_id["<b>x</b>"]["wind"] != by_id["<b>x</b>"]["wind"]
    assert by_id["<b>x</b>"]["levels__level"] == pytest.approx(2.0**63)
    assert by_id["a\nb"]["pond"] == "b'; DROP TABLE logged; --"
    assert "extra" not in logged.sample.column_names
    distant = pa.array([2**62, START.timestamp() * 1_000_000], pa.int64()).cast(INSTANT)
    logged = read(write(tmp_path, distant=log_table(["x", "y"], {"request_time": distant})))
    assert (logged.rows, logged.outside + logged.unidentified) == (1, 1)


def test_rows_with_too_long_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    columns = {
        "pond": pa.array(["a", "b" * 1000, "c" * 1001, None]),
        "model_version": pa.array(["3", "3", "3", "3" * 5000]),
    }
    logged = read(write(tmp_path, long=log_table(["w", "x", "y", "z"], columns)))
    assert (logged.rows, logged.long_texts, sampled_ids(logged)) == (4, 2, ["w", "x"])
    assert list(iter_problems(logged)) == ["2 rows have a text of more than 1,000 characters: they are left out"]
    only = log_table(["y"], {"pond": pa.array(["c" * 1001])})
    logged = read(write(tmp_path, only=only))
    assert (logged.rows, logged.long_texts, logged.sample) == (1, 1, None)


def test_texts_of_others_are_shown_short_and_on_one_line() -> None:
    assert shorten("a\nb\u202e") == "a�b�"
    assert len(shorten("x" * 10_000)) == 121


def test_files_are_listed_by_period(home: Path) -> None:
    folder, problems = logs_folder("ponds"), list[str]()
    assert list_log_files("ponds", "2013-01-01", "2014-01-01", problems) == {}
    for path in (
        "day=2013-01-07/b.parquet", "day=2013-01-07/sub/a.parquet", "period=2013-01-08T0600Z/x.parquet",
        "day=2013-01-07/.part.parquet", "day=2013-01-07/_tmp/a.parquet", "day=2013-01-07/a.csv", "day=..%2f/x.parquet",
        "period=2013-01-08T06:00Z/x.parquet", "top.parquet", "_other/day=2013-01-07/a.parquet",
    ):  # fmt: skip
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    os.utime(folder / "day=2013-01-07/b.parquet", (5, 5))
    found = list_log_files("ponds", "2013-01-01", "2014-01-01", problems)
    assert list(found) == ["2013-01-07", "2013-01-08T06:00Z"]
    assert [file.path for file in found["2013-01-07"]] == ["day=2013-01-07/b.parquet", "day=2013-01-07/sub/a.parquet"]
    assert found["2013-01-07"][0] == LogFile("day=2013-01-07/b.parquet", 1, 5.0)
    assert list(list_log_files("ponds", "2013-01-07", "2013-01-08", problems)) == ["2013-01-07"]
    assert not list_log_files("ponds", "2013-01-01", "2013-01-07", problems), "the end is exclusive"
    assert problems == []


def test_the_folder_of_a_period_that_is_a_link_is_named_and_not_read(home: Path, tmp_path: Path) -> None:
    folder, problems = logs_folder("ponds"), list[str]()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.parquet").write_bytes(b"x")
    (folder / "day=2013-01-08").mkdir(parents=True)
    (folder / "day=2013-01-08" / "a.parquet").write_bytes(b"x")
    for link in (folder / "day=2013-01-07", folder / "day=2013-01-08" / "sub"):
        link.symlink_to(tmp_path / "elsewhere")
    found = list_log_files("ponds", "2013-01-01", "2014-01-01", problems)
    assert [file.path for file in found["2013-01-08"]] == ["day=2013-01-08/a.parquet"]
    assert list(found) == ["2013-01-08"]
    assert problems == ["day=2013-01-07 is a link, and is not read: put the files into the folder themselves"]


def test_inputs_that_are_named_like_columns_of_the_log_are_named() -> None:
    clashing = INPUTS.model_copy(update={"columns": (("prediction", "double"),)})
    with pytest.raises(ScoringError, match="prediction: the log has a column of that name, and so have the model's"):
        log_columns(clashing)
    assert log_columns(clashing, 2).inputs, "its predictions have other names"
    lists = INPUTS.model_copy(update={"columns": (("tags", "list<item: string>"),)})
    assert log_columns(lists).problems == ("tags is list<item: string>, which is not compared",)
    assert [column.name for column in log_columns(INPUTS, 3).predictions] == [f"prediction_{n}" for n in range(3)]
