"""Spark joins what DuckDB joins: the rows of the contract, and the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView
from feast.types import Int64, String
from pyspark.sql import SparkSession

from evergreen.errors import SpecError
from evergreen.feature_store.duckdb_examples import DuckDBExamples
from evergreen.feature_store.examples import Selection
from evergreen.feature_store.offline_store import RetrievalError, open_scratch_database
from evergreen.feature_store.spark_examples import SparkExamples, SparkFile, open_join_session
from evergreen.lake.exchange import SharedFiles
from support.calendars import DAYS
from support.examples_contract import (
    FEATURES,
    START,
    Engine,
    ExamplesContract,
    Published,
    instants,
    repo_config,
    spine,
    view,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    with open_join_session() as session:
        yield session


@pytest.fixture
def engine(session: SparkSession, tmp_path: Path) -> Engine:
    def join(
        files: Mapping[str, Path],
        selections: Mapping[str, Selection],
        views: Sequence[FeatureView],
        references: Sequence[str],
        folder: Path,
    ) -> dict[str, Path]:
        exchange = SharedFiles(tmp_path)
        examples = SparkExamples.from_files(session, "loans", "requests", "loss", shown(files), DAYS, exchange)
        examples.select(selections)
        examples.join(repo_config(tmp_path), views, references)
        return examples.write_files(folder)

    return join


def shown(files: Mapping[str, Path]) -> dict[str, SparkFile]:
    """Return files of examples as a Spark reads them that sees those of the task."""
    footers = {period: pq.read_metadata(file) for period, file in files.items()}
    types = {
        period: {field.name: str(field.type) for field in footer.schema.to_arrow_schema()}
        for period, footer in footers.items()
    }
    return {
        period: SparkFile(str(file), file, types[period], footers[period].num_rows) for period, file in files.items()
    }


class TestSpark(ExamplesContract):
    """One session: what differs between tests are the files."""


def random_days(rows: int) -> list[dict[str, pa.Table]]:
    """Return three days with ties and nulls of every kind, and two fifths of all rows with one key."""
    rng = np.random.default_rng(18)

    def table(number: int, **columns: pa.Array) -> pa.Table:
        keys = [None, *["hot"] * 2, *(f"key {key}" for key in range(rows // 10))]
        picked = np.where(rng.random(rows) < 0.4, 1, rng.integers(0, len(keys), rows))
        seconds = [None if second == 0 else int(second) for second in rng.integers(0, 400, rows)]
        b = pa.array(rng.integers(0, 3, rows), mask=rng.random(rows) < 0.1)
        created = instants(*(None if second == 0 else int(second) for second in rng.integers(0, 9, rows)))
        return pa.table(
            {
                "a": [keys[key] for key in picked],
                "b": b.cast(pa.int32() if number else pa.int64()),
                "created": created,
                **columns,
                **({"ts": instants(*seconds)} if "v" in columns else {"event_timestamp": instants(*seconds)}),
            }
        )

    return [
        {
            "spine": table(
                number,
                row=pa.array(range(rows)),
                loss=pa.array(rng.random(rows), mask=rng.random(rows) < 0.1),
                label_known_at=instants(*map(int, rng.integers(0, 500, rows))),
            ),
            "rates": table(number, v=pa.array(range(number * rows, (number + 1) * rows))),
        }
        for number in range(3)
    ]


def test_spark_writes_the_bytes_of_duckdb(engine: Engine, tmp_path: Path, session: SparkSession) -> None:
    session.conf.set("spark.sql.shuffle.partitions", "5")  # which Spark would merge, they are so small
    session.conf.set("spark.sql.adaptive.coalescePartitions.enabled", "false")
    published = Published(tmp_path, random_days(20_000))
    path, ttl = published.path("rates"), timedelta(seconds=5)
    views = [
        view("none", path, {}, ttl),  # first: it leaves all rows in one partition
        view("one", path, {"a": String}, ttl, created="created"),
        view("pair", path, {"a": String, "b": Int64}),
        view("number", path, {"b": Int64}, ttl),
    ]
    selections = {
        "train": Selection("", "2024-03-02", START + timedelta(seconds=250)),
        "holdout": Selection("2024-03-02", "9", START + timedelta(seconds=400)),
        "recent": Selection("2024-03-03", "2024-03-04"),
        "made_late": Selection("2024-03-02", "9", START + timedelta(seconds=400), START + timedelta(seconds=6)),
    }
    files = published.join(engine, views, selections)
    config, expected = repo_config(tmp_path), tmp_path / "expected"
    expected.mkdir()
    with open_scratch_database(config) as con:
        examples = DuckDBExamples.from_files(con, "loans", "requests", "loss", published.spines, DAYS)
        counts = examples.count_labels(START + timedelta(seconds=250))
        late = examples.count_labels(START + timedelta(seconds=250), START + timedelta(seconds=6))
        examples.select(selections)
        examples.join(config, views, [f"{view.name}:v" for view in views])
        examples.write_files(expected)
    for name, file in files.items():
        assert file.read_bytes() == (expected / f"{name}.parquet").read_bytes(), name
    parts = [pq.read_metadata(part).num_rows for part in (tmp_path / "rows").glob("*.parquet")]
    assert len(parts) > 1, "or their order was not tested"
    files_of_spark = shown(published.spines), DAYS, SharedFiles(tmp_path / "none")
    by_spark = SparkExamples.from_files(session, "loans", "requests", "loss", *files_of_spark)
    assert by_spark.count_labels(START + timedelta(seconds=250)) == counts != late
    assert by_spark.count_labels(START + timedelta(seconds=250), START + timedelta(seconds=6)) == late


def test_rows_that_are_lost_doubled_or_moved_are_an_error(session: SparkSession, tmp_path: Path) -> None:
    table = spine([{"event_timestamp": START + timedelta(seconds=second), "a": "x"} for second in (2, 1, 1)])
    published = Published(tmp_path, [{"spine": table}])
    parts, files = tmp_path / "rows", shown(published.spines)
    examples = SparkExamples.from_files(session, "loans", "requests", "loss", files, DAYS, SharedFiles(tmp_path))
    examples.select({"all": Selection("", "9")})
    session.conf.set("spark.sql.shuffle.partitions", "1")
    examples.join(repo_config(tmp_path), [], [])
    [part] = parts.glob("*.parquet")
    rows = pq.read_table(part)
    assert rows["column_3"].to_pylist() == [None] * 3
    for wrong, problem in (
        ([0, 1], "3 entity rows in, 2 rows out"),
        ([0, 1, 1], "not in order, or not distinct"),
        ([1, 0, 2], "not in order, or not distinct"),
        ([0, 2, 1], "not in order, or not distinct"),
    ):
        pq.write_table(rows.take(wrong), part)
        with pytest.raises(RetrievalError, match=problem):
            examples.write_files(tmp_path)
    pq.write_table(rows, part)
    examples.write_files(tmp_path)
    shutil.rmtree(parts)
    with pytest.raises(
        RetrievalError, match="Spark wrote it, but it is not here → let Spark and this task see the lake"
    ):
        examples.write_files(tmp_path)


def test_what_spark_reads_in_another_way_is_refused(engine: Engine, tmp_path: Path) -> None:
    nanoseconds = instants(0, dtype=pa.timestamp("ns", "UTC"))
    table = spine([{"event_timestamp": START, "a": "x"}])
    rates = pa.Table.from_pylist([{"a": "x", "ts": START, "v": 1}], schema=FEATURES)
    fine = rates.set_column(2, "ts", nanoseconds)
    texts = rates.set_column(2, "ts", pa.array(["2024-03-01"]))
    published = Published(tmp_path / "a", [{"spine": table, "fine": fine, "texts": texts}])
    use_duckdb = "which Spark does not read → set EVERGREEN_TRAINING_SET_ENGINE=duckdb"
    for name in ("fine", "texts"):
        with pytest.raises(RetrievalError, match=f"ts: has type .*{use_duckdb}"):
            published.join(engine, [view(name, published.path(name), {"a": String})])
        shutil.rmtree(tmp_path / "a" / "joined")
    pq.write_table(rates, tmp_path / "rates.parquet")
    with pytest.raises(RetrievalError, match="source rates: is not published in the lake → set"):
        published.join(engine, [view("rates", tmp_path / "rates.parquet", {"a": String})])
    timed = Published(tmp_path / "b", [{"spine": table.append_column("lag", pa.array([1], pa.duration("us")))}])
    with pytest.raises(SpecError, match=rf"requests.lag: has type duration\[us\], {use_duckdb}"):
        timed.join(engine, [])
