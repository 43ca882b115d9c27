"""When a served value is another than the one learned from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from evergreen.evaluation.serving_inputs import compare_feature_values, sample_entities, values_equal

pytestmark = pytest.mark.unit

NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, None),
        (None, NAN),
        (NAN, None),
        (3, 3.0),
        (0.1, float(np.float32(0.1))),
        ("a", "a"),
        (True, True),
    ],
)
def test_the_same(one: object, other: object) -> None:
    assert values_equal(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0, None),
        (NAN, 0.0),
        (1.0, 1.00001),
        (0.0, 1e-9),
        (1_000_000, 1_000_002),
        ("1", 1),
        ("a", "A"),
        ("", None),
    ],
)
def test_not_the_same(one: object, other: object) -> None:
    assert not values_equal(one, other)
    assert not values_equal(other, one)


def test_differences_are_counted_and_the_first_is_told() -> None:
    entities = [{"dest": "ATL", "origin": "JFK"}, {"dest": "BOS", "origin": "LGA"}]
    offline = {"flights": [1, 2], "rate": [None, 0.5], "gone": [None, 3]}
    online = {"rate": [0.25, 0.5], "flights": [1, 2]}
    found = compare_feature_values(entities, offline, online, datetime(2013, 1, 18, 4, tzinfo=UTC))
    assert (found.value_count, found.mismatch_count) == (6, 2)
    assert found.first_mismatch == (
        "rate of dest=ATL, origin=JFK is 0.25 online, nothing offline as of 2013-01-18 04:00:00+00:00"
    )


@pytest.mark.parametrize("size", [1, 40, 3_000, 100_000])
def test_entities_of_the_last_day_are_sampled_by_content(tmp_path: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    names = pa.array([["", "B6", "é", "a'b", "Z", None][code] for code in rng.integers(0, 6, 50_000)])
    day = pa.array(np.datetime64("2013-01-01") + rng.integers(0, 3, 50_000))
    numbers = pa.array(rng.integers(-500, 500, 50_000).astype(np.int32), mask=rng.random(50_000) < 0.1)
    table = pa.table({"day": day, "carrier": names, "flight number": numbers, "label": rng.random(50_000)})
    pq.write_table(table, tmp_path / "holdout.parquet", row_group_size=1_000)
    keys = ["carrier", "flight number"]
    entities = sample_entities(tmp_path / "holdout.parquet", keys, size, "0123456789abcdef" * 4)
    last = table.filter(pc.equal(table["day"], pc.max(table["day"]))).select(keys).drop_null()
    possible = last.group_by(keys).aggregate([]).sort_by([(key, "ascending") for key in keys])
    if possible.num_rows > size:
        places = np.random.default_rng(0x0123456789ABCDEF).choice(possible.num_rows, size, replace=False)
        possible = possible.take(np.sort(places))
    assert entities.equals(possible)
    assert entities.num_rows == min(size, 4_578)


def test_without_a_complete_key_no_entity_is_sampled(tmp_path: Path) -> None:
    table = pa.table({"day": pa.array([1], pa.date32()), "plane": pa.array([None], pa.string())})
    pq.write_table(table, tmp_path / "holdout.parquet")
    assert sample_entities(tmp_path / "holdout.parquet", ["plane"], 5, "0" * 64) == table.select(["plane"]).slice(1)
