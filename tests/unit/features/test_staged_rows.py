"""What Spark wrote becomes one file with the declared types, or with those that it has where a value would change."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.features import build

pytestmark = pytest.mark.unit


def test_a_column_has_one_type_in_all_rows(tmp_path: Path) -> None:
    """Also if only the last of many rows would change."""
    parts = [tmp_path / f"part-{number}.parquet" for number in range(2)]
    pq.write_table(pa.table({"age": [2.0, None], "share": [2.0, 1.0], "day": ["b", "a"], "key": [2, 1]}), parts[0])
    pq.write_table(pa.table({"age": [3.0], "share": [0.5], "day": ["c"], "key": [3]}), parts[1])
    types = {"age": "int32", "share": "int32", "absent": "int32"}
    build._stage_rows(tmp_path / "rows.parquet", parts, ["key", "age", "share"], types, tmp_path)
    staged = pq.read_table(tmp_path / "rows.parquet")
    assert staged.equals(
        pa.table({"key": [1, 2, 3], "age": pa.array([None, 2, 3], pa.int32()), "share": [1.0, 2.0, 0.5]})
    )
