"""When a served value is another than the one learned from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.evaluation.online_comparison import (
    Comparison,
    OfflineValue,
    describe_moment,
    sample_entities,
    values_equal,
)
from evergreen.feature_store.online_features import OnlineValue
from evergreen.gates.evidence import OnlineSample

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


AS_OF = datetime(2013, 1, 18, 4, tzinfo=UTC)
HOUR = timedelta(hours=1)
KEYS = [{"dest": "ATL", "origin": "JFK"}, {"dest": "B'S\n", "origin": "LGA"}]


def at(value: object, hours_before: float) -> OnlineValue:
    return OnlineValue(value, AS_OF - hours_before * HOUR)


def row_of(value: object, hours_before: float) -> OfflineValue:
    return OfflineValue(value, AS_OF - hours_before * HOUR)


def compare(
    offline: dict[str, list[object]],
    online: dict[str, list[OnlineValue]],
    ttl: timedelta | None = 24 * HOUR,
    **last: OfflineValue,
) -> OnlineSample:
    """Compare two keys; a value that is no `OfflineValue` is of the row that the online store has."""
    absent = [OnlineValue(None)] * 2
    rows = {
        name: [
            value
            if isinstance(value, OfflineValue)
            else OfflineValue(value, None if value is None else served.event_timestamp)
            for value, served in zip(values, online.get(name, absent), strict=True)
        ]
        for name, values in offline.items()
    }
    comparison = Comparison(KEYS, AS_OF, dict.fromkeys(offline, ttl), "run `evergreen online rebuild trips`")
    differences = comparison.find_differences(rows, online)
    values = {(d.feature, d.row): last[d.feature] for d in differences if d.feature in last}
    return comparison.summarize(sum(map(len, offline.values())), differences, values, "keys of a day")


def test_the_first_difference_has_both_values_cause_and_fix() -> None:
    found = compare(
        {"flights": [1, 2], "rate": [0.5, 0.5], "gone": [None, 3]},
        {"rate": [at(0.25, 2), at(0.5, 2)], "flights": [at(1, 0), at(2, 0)]},
    )
    assert (found.value_count, found.mismatch_count, found.expired_count) == (6, 2, 0)
    assert found.first_mismatch == (
        "rate of dest=ATL, origin=JFK is 0.25 online, 0.5 offline as of 2013-01-18 04:00:00+00:00: "
        "the store has a row of 2013-01-18 02:00:00+00:00: run `evergreen online rebuild trips`"
    )


def test_a_key_that_was_never_materialized_is_named() -> None:
    found = compare({"rate": [None, 0.5]}, {"rate": [OnlineValue(None)] * 2})
    assert found.mismatch_count == 1
    assert "rate of dest=B'S\n, origin=LGA is nothing online, 0.5 offline" in found.first_mismatch
    assert "never materialized, or the store has lost it: run `evergreen online rebuild trips`" in found.first_mismatch


@pytest.mark.parametrize(
    ("hours", "ttl", "expired"), [(24.1, 24 * HOUR, 1), (24, 24 * HOUR, 0), (9_000, None, 0), (9_000, timedelta(0), 0)]
)
def test_a_key_has_left_when_its_row_is_older_than_the_ttl(hours: float, ttl: timedelta | None, expired: int) -> None:
    found = compare({"rate": [None, 0.5]}, {"rate": [at(0.25, hours), at(0.5, 1)]}, ttl, rate=row_of(0.25, hours))
    assert (found.expired_count, found.mismatch_count, found.changed_count) == (expired, 1 - expired, 0)
    if expired:
        assert "the key has left the view, its last row of 2013-01-17 03:54:00+00:00" in found.first_expired
        assert "older than the ttl of 1 day, 0:00:00" in found.first_expired
    else:
        assert "no published row has it any more" in found.first_mismatch
        assert "empty the online store, then run `evergreen online rebuild trips`" in found.first_mismatch


def test_an_expired_value_that_its_last_row_does_not_have_is_counted() -> None:
    found = compare({"rate": [None, None]}, {"rate": [at(0.25, 30), OnlineValue(None)]}, rate=row_of(0.75, 30))
    assert (found.mismatch_count, found.expired_count, found.changed_count) == (0, 1, 1)
    assert "is 0.25 online, but the key's last row, of 2013-01-16 22:00:00+00:00, has 0.75: e" in found.first_changed


@pytest.mark.parametrize("value", [0.75, 0.25, None])
def test_an_expired_value_of_an_older_row_than_the_last_is_counted(value: float | None) -> None:
    online = {"rate": [at(0.25, 40), OnlineValue(None)]}
    found = compare({"rate": [None, None]}, online, rate=row_of(value, 30))
    assert (found.mismatch_count, found.expired_count, found.changed_count) == (0, 1, 1)
    assert "of 2013-01-16 22:00:00+00:00, has " in found.first_changed
    assert "and the store has one of 2013-01-16 12:00:00+00:00: empty" in found.first_changed


def test_an_expired_value_whose_row_is_published_no_more_is_counted() -> None:
    found = compare({"rate": [None, None]}, {"rate": [at(0.25, 40), OnlineValue(None)]}, rate=OfflineValue(None))
    assert (found.expired_count, found.changed_count) == (1, 1)
    assert "but no row of 2013-01-16 12:00:00+00:00 is published any more: empty" in found.first_changed


@pytest.mark.parametrize(("hours", "ttl"), [(40, 24 * HOUR), (3, 24 * HOUR), (40, None)])
def test_a_value_that_an_older_row_has_by_chance_is_a_difference(hours: float, ttl: timedelta | None) -> None:
    found = compare({"rate": [row_of(0.5, 2), row_of(0.5, 2)]}, {"rate": [at(0.5, hours), at(0.5, 2)]}, ttl)
    assert (found.mismatch_count, found.expired_count) == (1, 0)
    assert "0.5 online, 0.5 offline" in found.first_mismatch
    assert "and the key's last one is of 2013-01-18 02:00:00+00:00: run `evergreen online" in found.first_mismatch


def test_a_newer_row_than_the_last_published_one_goes_with_the_store() -> None:
    found = compare({"rate": [row_of(0.5, 2), None]}, {"rate": [at(0.5, 1), OnlineValue(None)]})
    assert found.mismatch_count == 1
    assert found.first_mismatch.endswith(
        "the store has a row of 2013-01-18 03:00:00+00:00, and the key's last one is of 2013-01-18 02:00:00+00:00: "
        "empty the online store, then run `evergreen online rebuild trips`"
    )


def test_rows_are_the_same_within_what_stores_keep_of_their_instants() -> None:
    second = HOUR / 3600
    exact = OfflineValue(0.5, AS_OF - HOUR + 0.999999 * second)
    assert compare({"rate": [exact, None]}, {"rate": [at(0.5, 1), OnlineValue(None)]}).mismatch_count == 0
    later = OfflineValue(0.5, AS_OF - HOUR + second)
    assert compare({"rate": [later, None]}, {"rate": [at(0.5, 1), OnlineValue(None)]}).mismatch_count == 1
    unknown = {"rate": [OnlineValue(0.5), OnlineValue(None)]}  # of a store that keeps no instants
    assert compare({"rate": [later, None]}, unknown).mismatch_count == 0
    missing = {"rate": [at(None, 9), OnlineValue(None)]}  # whatever row says so
    assert compare({"rate": [row_of(NAN, 1), None]}, missing).mismatch_count == 0


def test_the_moment_says_how_the_store_relates_to_the_run() -> None:
    until = AS_OF + HOUR
    equal = describe_moment(AS_OF, until, until, "2013-01-17")
    assert equal == f"keys of 2013-01-17 as of {AS_OF}; the online store holds values until {until}"
    assert describe_moment(AS_OF, until, AS_OF, "d").endswith(f", after this run's as_of {AS_OF}")
    assert describe_moment(AS_OF, until, until + HOUR, "d").endswith(f", before this run's as_of {until + HOUR}")


@pytest.mark.parametrize("size", [1, 40, 3_000, 100_000])
def test_keys_are_sampled_by_themselves_alone(tmp_path: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    names = pa.array([["", "B6", "é", "a'b", "Z", None][code] for code in rng.integers(0, 6, 50_000)])
    numbers = pa.array(rng.integers(-500, 500, 50_000).astype(np.int32), mask=rng.random(50_000) < 0.1)
    table = pa.table({"carrier": names, "flight number": numbers, "label": rng.random(50_000)})
    keys = ["carrier", "flight number"]

    def sample(order: np.ndarray) -> pa.Table:
        rows = table.take(order)
        files = [tmp_path / "one.parquet", tmp_path / "it's another.parquet"]
        for file, part in zip(files, (rows.slice(0, 10_000), rows.slice(10_000)), strict=True):
            pq.write_table(part, file, row_group_size=1_000)
        return sample_entities(files, keys, size)

    entities = sample(np.arange(50_000))
    assert sample(rng.permutation(50_000)).equals(entities)
    possible = table.select(keys).drop_null().group_by(keys).aggregate([]).sort_by([(key, "ascending") for key in keys])
    assert entities.num_rows == min(size, possible.num_rows)
    if size >= possible.num_rows:
        assert entities.equals(possible)
    rows = list(map(str, entities.to_pylist()))
    assert len(set(rows) & set(map(str, possible.to_pylist()))) == len(rows)
    assert rows == list(map(str, entities.sort_by([(key, "ascending") for key in keys]).to_pylist()))


def test_without_a_complete_key_no_entity_is_sampled(tmp_path: Path) -> None:
    table = pa.table({"plane": pa.array([None], pa.string())})
    pq.write_table(table, tmp_path / "spine.parquet")
    assert sample_entities([tmp_path / "spine.parquet"], ["plane"], 5) == table.slice(1)
