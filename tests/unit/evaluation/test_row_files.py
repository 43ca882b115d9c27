"""Files are read and written in batches that depend on nothing but the number of rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.evaluation.row_files import EvidenceFile, RowColumn, iter_tables, write_column, write_rows

pytestmark = pytest.mark.unit

# Reads 160 MB, and prints how many of them it kept at a time.
PEAK_MEMORY = """
import sys, resource
from pathlib import Path
from evergreen.evaluation.row_files import EvidenceFile, iter_tables
read = {
    "tables": lambda file: iter_tables(file, ["x"]),
    "columns": lambda file: EvidenceFile(file).batches(["x"]),
}[sys.argv[2]]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
file = Path(sys.argv[1])
next(iter(read(file)))
before = peak()
for _ in read(file):
    pass
print(peak() - before)
"""


@pytest.mark.parametrize("group_rows", [1, 7, 100, 230, 1_000])
@pytest.mark.parametrize("batch_rows", [1, 100, 300])
def test_tables_have_the_same_rows_whatever_the_row_groups(tmp_path: Path, group_rows: int, batch_rows: int) -> None:
    file = tmp_path / "rows.parquet"
    table = pa.table({"n": np.arange(230), "text": pa.array(["a", None] * 115)})
    pq.write_table(table, file, row_group_size=group_rows)
    tables = list(iter_tables(file, None, batch_rows))
    whole, rest = divmod(230, batch_rows)
    assert [part.num_rows for part in tables] == [batch_rows] * whole + [rest] * bool(rest)
    assert pa.concat_tables(tables).equals(table)
    assert [part.column_names for part in iter_tables(file, ["text"], 200)] == [["text"]] * 2


def test_an_empty_file_is_one_empty_table(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    table = pa.table({"n": pa.array([], pa.int32()), "text": pa.array([], pa.string())})
    pq.write_table(table, file)
    assert list(iter_tables(file)) == [table]
    assert pq.read_table(write_rows(tmp_path / "copy.parquet", {"m": RowColumn(file, "n")})).equals(
        table.select(["n"]).rename_columns(["m"])
    )


def test_columns_of_several_files_become_one(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).random(150_000)
    one = write_column(tmp_path / "one.parquet", pa.float64(), map(pa.array, np.array_split(numbers, 11)))
    other = write_column(tmp_path / "other.parquet", pa.string(), [pa.array(numbers.round(2).astype(str))])
    table = pq.read_table(write_rows(tmp_path / "all.parquet", {"cluster:day": other, "candidate": one}))
    assert table.column_names == ["cluster:day", "candidate"]
    assert np.array_equal(table["candidate"].to_numpy(), numbers)
    assert table["cluster:day"].to_pylist() == numbers.round(2).astype(str).tolist()


def test_columns_of_different_length_are_refused(tmp_path: Path) -> None:
    columns = {
        str(rows): write_column(tmp_path / f"{rows}.parquet", pa.int64(), [pa.array(range(rows))])
        for rows in (10, 70_000)
    }
    with pytest.raises(ValueError, match="expected length 10|zip"):
        write_rows(tmp_path / "all.parquet", columns)


@pytest.mark.parametrize("group_rows", [10, 1_000])
def test_batches_hold_numbers_and_texts_of_every_row(tmp_path: Path, group_rows: int) -> None:
    texts = [None if n % 7 == 0 else f"N{n % 13}\n" for n in range(500)]
    table = pa.table(
        {"text": texts, "label": np.arange(500, dtype=np.int32), "none": pa.array([None] * 500, pa.string())}
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=group_rows)
    rows = EvidenceFile(tmp_path / "rows.parquet")
    assert rows.count == 500
    labels, names, nothing = [], [], []
    for [values], [text, none] in rows.batches(["label"], ["text", "none"]):
        labels += list(values)
        names += [None if code < 0 else text.names[code] for code in text.codes]
        nothing += list(none.codes)
    assert labels == list(range(500))
    assert names == texts
    assert nothing == [-1] * 500


@pytest.mark.parametrize("reader", ["tables", "columns"])
def test_reading_takes_the_memory_of_a_batch(tmp_path: Path, reader: str) -> None:
    file = tmp_path / "rows.parquet"
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(file, pa.schema([("x", pa.float64())]), compression="none") as writer:
        for _ in range(20):
            writer.write_table(pa.table({"x": rng.random(1_000_000)}), row_group_size=65_536)
    run = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, str(file), reader], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 50
