"""Whole queries of the offline store, to be read in `snapshots/`. `pytest --update-snapshots` writes them again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from feast import FileSource
from feast.data_format import ParquetFormat

from evergreen.feature_store.offline_store import (
    KeyBucket,
    ViewRequest,
    _asof_join_query,
    _may_skip_ranks,
    _pull_query,
)
from evergreen.features.served_after import ServedAfter

pytestmark = pytest.mark.unit

SNAPSHOTS = Path(__file__).parent / "snapshots"
RELATION = "read_parquet('delays.parquet')"
SPAN = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 8, tzinfo=UTC)
NO_TTL, ONE_HOUR = timedelta(0), timedelta(hours=1)
RAW_NAMES = {
    "origin": "origin",
    "dest": "dest",
    "rate": "late_rate",
    "event_timestamp": "event_timestamp",
    "made": "made",
}


def asof_join(
    *keys: str,
    ttl: timedelta,
    created: str = "",
    known_only: bool = False,
    bucket: KeyBucket | None = None,
    has_ties: bool = True,
    served_after: ServedAfter | None = None,
) -> str:
    source = FileSource(
        name="delays",
        path="delays.parquet",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column=created,
        field_mapping={"late_rate": "rate"},
    )
    names = {key: key for key in keys}
    request = ViewRequest("delays", source, names, ["rate"], ["rate"], [pa.float64()], ttl, served_after)
    return _asof_join_query(RELATION, request, RAW_NAMES, SPAN, known_only, ["VARCHAR"] * len(keys), bucket, has_ties)


QUERIES = {
    "asof_join": asof_join("origin", "dest", ttl=ONE_HOUR),
    "asof_join_of_a_bucket": asof_join("origin", "dest", ttl=ONE_HOUR, bucket=KeyBucket(2, 8)),
    "asof_join_without_ties": asof_join("origin", "dest", ttl=ONE_HOUR, has_ties=False),
    "asof_join_without_keys_and_ttl": asof_join(ttl=NO_TTL),
    "asof_join_latest_created": asof_join("origin", ttl=ONE_HOUR, created="made"),
    "asof_join_known_at_the_time": asof_join("origin", ttl=ONE_HOUR, created="made", known_only=True),
    "asof_join_when_served": asof_join(
        "origin", ttl=ONE_HOUR, served_after=ServedAfter(delay="6h", period="1d", timezone="UTC")
    ),
    "pull_all": _pull_query(RELATION, ["origin", "late_rate"], ["event_timestamp"], (None, None)),
    "pull_latest": _pull_query(RELATION, ["origin", "late_rate"], ["event_timestamp", "made"], SPAN, ["origin"]),
}


@pytest.mark.parametrize("name", QUERIES)
def test_query_matches_its_snapshot(name: str, pytestconfig: pytest.Config) -> None:
    file = SNAPSHOTS / f"{name}.sql"
    if pytestconfig.getoption("--update-snapshots"):
        file.write_text(QUERIES[name] + "\n")
    assert QUERIES[name] + "\n" == file.read_text(), "read the difference; if it is right, use --update-snapshots"


def test_every_snapshot_has_a_query() -> None:
    assert {file.stem for file in SNAPSHOTS.glob("*.sql")} == set(QUERIES)


@pytest.mark.parametrize("name", QUERIES)
def test_query_is_one_valid_statement(name: str) -> None:
    [statement] = duckdb.extract_statements(QUERIES[name])
    assert statement.type == duckdb.StatementType.SELECT


@pytest.mark.parametrize(
    ("entity_rows", "feature_rows", "expected"),
    [(1_000, 10, False), (1_000_000, 2_000_000, True), (1_000_000, 2_000_002, False)],
)
def test_ties_are_looked_for_where_it_pays(entity_rows: int, feature_rows: int, expected: bool) -> None:
    with duckdb.connect() as con:
        assert _may_skip_ranks(con, f"range({feature_rows})", entity_rows) == expected
