"""The columns of many files, which are asked for once per schema, are those of each file by itself."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource
from feast.data_format import ParquetFormat
from feast.repo_config import RepoConfig

from evergreen.feature_store.offline_store import SourceFiles

pytestmark = pytest.mark.unit

COLUMNS = {
    "whole": pa.array([1], pa.int64()),
    "short": pa.array([1], pa.int32()),
    "unsigned": pa.array([1], pa.uint32()),
    "float": pa.array([1], pa.float32()),
    "text": pa.array(["1"]),
    "bytes": pa.array([b"1"]),
    "coded": pa.array(["1"]).dictionary_encode(),
    "decimal": pa.array([1], pa.decimal128(9, 2)),
    "wide decimal": pa.array([1], pa.decimal128(9, 3)),
    "millis": pa.array([1], pa.timestamp("ms", "UTC")),
    "naive": pa.array([1], pa.timestamp("us")),
    "list": pa.array([[1]], pa.list_(pa.int64())),
    "struct": pa.array([{"rate": 1}], pa.struct({"rate": pa.int64()})),
    "struct of text": pa.array([{"rate": "1"}], pa.struct({"rate": pa.string()})),
}


def test_columns_are_those_of_each_file(tmp_path: Path) -> None:
    for name, column in COLUMNS.items():
        for copy in "12":
            pq.write_table(pa.table({"rate": column}), tmp_path / f"{name} {copy}.parquet")
    rate, key = COLUMNS["whole"], COLUMNS["text"]
    for folder, table in {
        "a": pa.table({"rate": rate, "key": key}),
        "b": pa.table({"key": key, "rate": rate}),
        "day=2013-01-01": pa.table({"rate": rate}),
        "day=2013-01-02": pa.table({"rate": rate}),
        "hour=1": pa.table({"rate": rate}),
        "shard=1": pa.table({"rate": rate}),
        "shard=north": pa.table({"rate": rate}),
        "shard=2013-01-01": pa.table({"rate": rate}),
        "shard=2013-01-01 06%3A00%3A00": pa.table({"rate": rate}),
        "shard=1=2": pa.table({"rate": rate}),
    }.items():
        (tmp_path / folder).mkdir()
        pq.write_table(table, tmp_path / folder / "part.parquet")
    source = FileSource(
        name="rates", path=f"{tmp_path}/**/*.parquet", file_format=ParquetFormat(), timestamp_field="event_timestamp"
    )
    config = RepoConfig(
        project="ponds", provider="local", registry=str(tmp_path / "registry.db"), entity_key_serialization_version=3
    )
    with duckdb.connect() as con:
        schemas = SourceFiles.find(con, source, config).schemas
        expected = {}
        for file in sorted(map(str, tmp_path.glob("**/*.parquet"))):
            schema = con.sql(f"FROM read_parquet('{file}') LIMIT 0").to_arrow_table().schema
            expected[file] = {field.name: str(field.type) for field in schema}
    assert dict(schemas) == expected
    assert list(schemas) == list(expected)
    assert [list(columns) for columns in schemas.values()] == [list(columns) for columns in expected.values()]
