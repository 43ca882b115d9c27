"""A draft of a declaration reads the files that it was drafted from."""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.errors import RawDataError
from evergreen.ingest.declared_files import read_as_declared
from evergreen.ingest.drafts import draft_source
from evergreen.ingest.raw_files import RawFile, hash_raw_files
from evergreen.lake.datasets import Dataset
from evergreen.spec.model import RawSource

pytestmark = pytest.mark.unit

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
COLUMNS: dict[str, tuple[pa.Array, pa.Array, Any]] = {
    "same": (pa.array([1]), pa.array([2]), dict(type="int64", nullable=False)),
    "nulls": (pa.array(["a"]), pa.array([None], pa.string()), "string"),
    "no_type": (pa.nulls(1), pa.array([2.5]), "float64"),
    "never": (pa.nulls(1), pa.nulls(1), "string"),
    "wider": (pa.array([1], pa.int32()), pa.array([2**40]), dict(type="int64", nullable=False)),
    "fraction": (pa.array([1]), pa.array([2.5]), dict(type="float64", nullable=False)),
    "small": (pa.array([1], pa.int8()), pa.array([2.5], pa.float32()), dict(type="float32", nullable=False)),
    "unsigned": (pa.array([1], pa.uint8()), pa.array([1], pa.uint16()), dict(type="int32", nullable=False)),
    "decimals": (
        pa.array([Decimal("1.25")]),
        pa.array([Decimal("100.5")]),
        dict(type="decimal128(5, 2)", nullable=False),
    ),
    "text": (
        pa.array(["a"]).dictionary_encode(),
        pa.array(["b"], pa.large_string()),
        dict(type="string", nullable=False),
    ),
    "instant": (
        pa.array([NOON], pa.timestamp("ns", "UTC")),
        pa.array([NOON], pa.timestamp("ms", "Asia/Tokyo")),
        dict(type="timestamp[us, tz=UTC]", nullable=False),
    ),
    "lists": (
        pa.array([[1]], pa.list_(pa.int32())),
        pa.array([[2]], pa.large_list(pa.int64())),
        dict(type="list<int64>", nullable=False),
    ),
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "Orders-2013.parquet", tmp_path / "second.parquet"]
    for number, path in enumerate(paths):
        pq.write_table(pa.table({name: values[number] for name, values in COLUMNS.items()}), path)
    return paths


def test_a_draft_reads_all_files_it_is_from(files: list[Path], tmp_path: Path, home: Path) -> None:
    draft = eval(draft_source(files))
    assert draft["columns"] == {name: declared for name, (_, _, declared) in COLUMNS.items()}
    source = RawSource(**draft)
    assert source.name == "orders"
    for file in files:
        delivery = RawFile.from_source(source, date(2013, 3, 1))
        delivery.path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, delivery.path)
        sha256 = hash_raw_files([delivery])[delivery]
        assert read_as_declared(source, delivery, sha256, Dataset(tmp_path / "copies")).faults == ()


def test_what_cannot_be_declared_is_a_comment(files: list[Path]) -> None:
    pq.write_table(pa.table({"a": [{"x": 1}], "b": ["x"], "c": [1]}), files[0])
    pq.write_table(pa.table({"a": [{"x": 1}], "b": [1]}), files[1])
    draft = draft_source(files)
    assert "# 'a' has types that no declaration holds: struct<x: int64>" in draft
    assert "# 'b' has types that no declaration holds: string, int64" in draft
    assert "# 'c' is missing in 1 of 2 files" in draft
    assert eval(draft) == {"name": "orders", "columns": {}}


def test_the_command_prints_the_draft(files: list[Path]) -> None:
    result = CliRunner().invoke(app, ["draft-source", *map(str, files)])
    assert result.stdout.strip() == draft_source(files)


def test_a_damaged_sample_is_named(files: list[Path]) -> None:
    files[1].write_bytes(b"PAR1")
    with pytest.raises(RawDataError, match=r"second\.parquet: is not a readable Parquet file"):
        draft_source(files)
