"""Examples in DuckDB: each file has the rows, and the features, that a loop in Python finds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView, RepoConfig
from feast.types import Int64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evergreen.settings
from evergreen.errors import SpecError
from evergreen.feature_store import offline_store
from evergreen.feature_store.duckdb_examples import DuckDBExamples
from evergreen.feature_store.examples import Selection
from evergreen.feature_store.offline_store import RetrievalError, memory_limit, open_scratch_database
from support.calendars import DAYS
from support.examples_contract import (
    ALL,
    FEATURES,
    SPINE,
    START,
    TTL,
    Engine,
    ExamplesContract,
    Row,
    instant,
    latest_values,
    repo_config,
    spine,
    view,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def config(tmp_path: Path) -> RepoConfig:
    return repo_config(tmp_path)


class TestDuckDB(ExamplesContract):
    """With one bucket of keys, and with many."""

    @pytest.fixture(params=[False, True])
    def engine(self, config: RepoConfig, request: pytest.FixtureRequest) -> Engine:
        def join(
            files: Mapping[str, Path],
            selections: Mapping[str, Selection],
            views: Sequence[FeatureView],
            references: Sequence[str],
            folder: Path,
        ) -> dict[str, Path]:
            with open_scratch_database(config) as con:
                examples = DuckDBExamples.from_files(con, "loans", "requests", "loss", files, DAYS)
                rows = examples.select(selections)
                examples.join(config, views, references, 50 * (rows + 1) if request.param else None)
                return examples.write_files(folder)

        return join


@pytest.fixture
def con(config: RepoConfig) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_scratch_database(config) as con:
        yield con


def write_periods(folder: Path, periods: Sequence[pa.Table]) -> dict[str, Path]:
    """Write the spine of one day after the other; return the files by day."""
    folder.mkdir(exist_ok=True)
    files = {DAYS.shift("2024-03-01", number): folder / f"spine{number}.parquet" for number in range(len(periods))}
    for file, table in zip(files.values(), periods, strict=True):
        pq.write_table(table, file)
    return files


def read_all(
    con: duckdb.DuckDBPyConnection, folder: Path, periods: Sequence[pa.Table], config: RepoConfig, **join: Any
) -> pa.Table:
    """Return all examples of these periods, with the features of a `Examples.join`."""
    examples = DuckDBExamples.from_files(con, "loans", "requests", "loss", write_periods(folder, periods), DAYS)
    examples.select(ALL)
    examples.join(config, **join)
    return pq.read_table(examples.write_files(folder)["all"])


# Few keys, one of them hot, and few instants: ties, duplicates, and keys without a feature row.
KEYS_A = st.sampled_from(["hot", "hot", "hot", "x", "", None])
KEYS_B = st.sampled_from([1, 1, 2, None])
SECONDS = st.integers(0, 12)
SPINE_ROWS = st.lists(st.fixed_dictionaries({"event_timestamp": st.none() | SECONDS, "a": KEYS_A, "b": KEYS_B}))
FEATURE_ROWS = st.lists(st.fixed_dictionaries({"ts": SECONDS, "a": KEYS_A, "b": KEYS_B}), max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(SPINE_ROWS, min_size=1, max_size=3),
    FEATURE_ROWS,
    st.sampled_from([None, 4000, 500]),
    st.sampled_from([None, 1e-6, 1e-7]),
)
def test_any_number_of_buckets_and_sorted_ranges_joins_as_a_loop_does(
    config: RepoConfig,
    periods: list[list[Row]],
    features: list[Row],
    bucket_bytes: float | None,
    sorted_limits: float | None,
) -> None:
    features = [row | {"ts": instant(row["ts"]), "v": number} for number, row in enumerate(features)]
    rows = [row | {"event_timestamp": instant(row["event_timestamp"])} for period in periods for row in period]
    for number, row in enumerate(rows):
        row["row"] = number
    numbered = iter(rows)
    tables = [spine([next(numbered) for _ in period]) for period in periods]
    with (
        tempfile.TemporaryDirectory() as folder,
        open_scratch_database(config) as con,
        pytest.MonkeyPatch.context() as patch,
    ):
        if sorted_limits:  # so few that some rows are several ranges
            patch.setattr(offline_store, "_SORTED_LIMITS", sorted_limits)
        file = Path(folder, "features.parquet")
        pq.write_table(pa.Table.from_pylist(features, schema=FEATURES), file)
        views = [
            view("pair", file, {"a": String, "b": Int64}, TTL),
            view("one", file, {"a": String}),
            view("none", file, {}),
        ]
        references = ["pair:v", "one:v", "none:v"]
        options = {"views": views, "feature_refs": references, "bucket_bytes": bucket_bytes}
        table = read_all(con, Path(folder), tables, config, **options)
    ordered = sorted(rows, key=lambda row: (row["event_timestamp"] is None, row["event_timestamp"] or START))
    assert table["row"].to_pylist() == [row["row"] for row in ordered], "by time, and then as they were"
    assert table["pair__v"].to_pylist() == latest_values(ordered, features, "ab", TTL)
    assert table["one__v"].to_pylist() == latest_values(ordered, features, "a", None)
    assert table["none__v"].to_pylist() == latest_values(ordered, features, "", None)


@pytest.mark.parametrize("name", ["file_index", "File_Row_Number"])
def test_column_that_hides_the_position_is_refused(con: duckdb.DuckDBPyConnection, tmp_path: Path, name: str) -> None:
    files = write_periods(tmp_path, [spine([{name: 1}], pa.schema([*SPINE, (name, pa.int64())]))])
    with pytest.raises(SpecError, match=f"requests.{name}: has a name that DuckDB keeps .* rename it"):
        DuckDBExamples.from_files(con, "loans", "requests", "loss", files, DAYS)


def test_rows_out_of_place_are_an_error(con: duckdb.DuckDBPyConnection, tmp_path: Path, config: RepoConfig) -> None:
    pq.write_table(pa.Table.from_pylist([], schema=FEATURES), tmp_path / "features.parquet")
    files = write_periods(tmp_path, [spine([{"event_timestamp": START, "a": "x"}] * 3)])
    examples = DuckDBExamples.from_files(con, "loans", "requests", "loss", files, DAYS)
    examples.select(ALL)
    examples.join(config, [view("one", tmp_path / "features.parquet", {"a": String})], ["one:v"])
    con.execute("UPDATE view_0 SET row_number = 0 WHERE row_number = 1")
    with pytest.raises(RetrievalError, match=r"3 entity rows in, 3 rows out \(2 of them distinct\)"):
        examples.write_files(tmp_path)


def test_database_spills_within_the_limit_of_the_settings(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = home / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setenv("EVERGREEN_DUCKDB_MEMORY", "64MiB")
    monkeypatch.setenv("EVERGREEN_DUCKDB_SCRATCH", str(scratch))
    evergreen.settings.settings.cache_clear()
    with open_scratch_database(repo_config(tmp_path)) as con:
        assert memory_limit(con) == 2**26
        assert con.sql("SELECT current_setting('threads')").fetchall() == [(1,)]
        con.execute("CREATE TABLE numbers AS SELECT range AS n, hash(range) AS h FROM range(10_000_000)")
        assert sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file()) > 2**26
        assert con.sql("SELECT count(DISTINCT n) FROM numbers WHERE n % 1000 = 0").fetchall() == [(10_000,)]
    assert not list(scratch.iterdir())


def test_configuration_of_feast_goes_before_the_settings(tmp_path: Path) -> None:
    with open_scratch_database(repo_config(tmp_path, memory_limit="96MiB", threads=2)) as con:
        assert memory_limit(con) == 96 * 2**20
        assert con.sql("SELECT current_setting('threads')").fetchall() == [(2,)]
