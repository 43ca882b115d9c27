"""How fast point-in-time features are, next to DuckDB by hand, and by hand with what ours promises, and to Feast's
stock stores.

    python benchmarks/point_in_time.py [--rows 100000,300000] [--runs 5] [--pairs] [--stock] [--json FILE]

Three views with 12 features, generated from a seed: 2 million rows, in 365 day partitions per view. Every
measurement is a fresh process that is timed from the call to the Arrow table, without imports; the answer is
then compared with that of the query by hand, so nobody is fast by being wrong. Goal: at least 0.8 of its
rows/s. On a busy machine trust the ratio of CPU seconds more than that of rows/s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
DAYS = 365
START = np.datetime64("2013-01-01", "us")
SECONDS = 86_400


@dataclass(frozen=True)
class View:
    """What is generated: every key has `per_day` rows a day, at random seconds, with four features."""

    name: str
    keys: tuple[str, ...]
    count: int  # of keys
    per_day: int
    ttl: timedelta

    @property
    def features(self) -> list[str]:
        return [f"{self.name}_{what}" for what in ("flights", "late_share", "delay", "last_type")]


VIEWS = (
    View("plane", ("tailnum",), 3_000, 1, timedelta(days=30)),
    View("airport", ("airport_id",), 500, 4, timedelta(days=2)),
    View("route", ("origin", "dest"), 250, 2, timedelta(0)),
)
REFS = [f"{view.name}:{feature}" for view in VIEWS for feature in view.features]
FEATURES = [feature for view in VIEWS for feature in view.features]


def key_columns(view: View, key: np.ndarray) -> dict[str, np.ndarray]:
    if view.name == "plane":
        return {"tailnum": np.char.add("N", (10_000 + key).astype(str))}
    if view.name == "airport":
        return {"airport_id": key.astype(np.int64)}
    return {
        "origin": np.array(["EWR", "JFK", "LGA", "BOS", "ORD"])[key % 5],
        "dest": np.char.add("D", (key // 5).astype(str)),
    }


def build(data: Path) -> None:
    """Write the partitions, and a Feast repository for each kind of source over them."""
    rng = np.random.default_rng(2013)
    for view in VIEWS:
        for day in range(DAYS):
            key = np.repeat(np.arange(view.count), view.per_day)
            slot = SECONDS // view.per_day
            second = np.tile(np.arange(view.per_day), view.count) * slot + rng.integers(0, slot, len(key))
            order = np.argsort(second, kind="stable")
            key, second = key[order], second[order]
            flights, share, delay, kind = view.features
            folder = data / view.name / f"day={START.astype('M8[D]') + day}"
            folder.mkdir(parents=True)
            table = {
                **key_columns(view, key),
                "event_timestamp": pa.array(
                    START + (day * SECONDS + second).astype("m8[s]"), pa.timestamp("us", "UTC")
                ),
                flights: rng.integers(0, 400, len(key)),
                share: rng.random(len(key)),
                delay: pa.array(rng.normal(7, 40, len(key)), mask=rng.random(len(key)) < 0.05),
                kind: np.array(["jet", "turboprop", "piston"])[rng.integers(0, 3, len(key))],
            }
            pq.write_table(pa.table(table), folder / "part-0.parquet")


def entity_rows(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(rows)
    columns: dict[str, Any] = {"row": np.arange(rows)}
    for view in VIEWS:
        # A few keys that no feature row has.
        columns |= key_columns(view, rng.integers(0, round(view.count * 1.02), rows))
    seconds = rng.integers(0, DAYS * SECONDS, rows)
    columns["event_timestamp"] = pd.DatetimeIndex(START + seconds.astype("m8[s]"), tz="UTC")
    return pd.DataFrame(columns)


def by_hand(data: Path, entities: pd.DataFrame, ties: bool = False, order: bool = False) -> Callable[[], pa.Table]:
    """What one would write without Feast: one ASOF join per view, no check, no order.

    With `ties`, rows of the same instant are decided by their place in the files, as ours are; with `order`, rows
    come out as they went in.
    """
    import duckdb

    instant = 2**64
    place = f"file_index * {2**40}::HUGEINT + file_row_number"
    rank = f"epoch_us(event_timestamp) * {instant}::HUGEINT + {place}"

    def source(view: View) -> str:
        files = f"'{data}/{view.name}/*/*.parquet'"
        columns = ", ".join([*view.keys, *view.features, "event_timestamp"])
        return f"(SELECT {columns}, {rank} AS rank FROM read_parquet({files}))" if ties else files

    def reached(view: View) -> str:
        if ties:
            return f"(epoch_us(e.event_timestamp) + 1) * {instant}::HUGEINT > {view.name}.rank"
        return f"e.event_timestamp >= {view.name}.event_timestamp"

    shown = [
        f"CASE WHEN e.event_timestamp <= {view.name}.event_timestamp + INTERVAL {view.ttl.days} DAY "
        f"THEN {view.name}.{feature} END AS {feature}"
        if view.ttl
        else f"{view.name}.{feature}"
        for view in VIEWS
        for feature in view.features
    ]
    joins = [
        f"ASOF LEFT JOIN {source(view)} AS {view.name} ON "
        + " AND ".join(f"e.{key} = {view.name}.{key}" for key in view.keys)
        + f" AND {reached(view)}"
        for view in VIEWS
    ]
    query = f"SELECT e.*, {', '.join(shown)} FROM entities AS e {' '.join(joins)}"
    query += " ORDER BY e.row" if order else ""

    def retrieve() -> pa.Table:
        with duckdb.connect() as con:
            con.execute("SET TimeZone = 'UTC'")
            con.register("entities", entities)
            return con.sql(query).to_arrow_table()

    return retrieve


def through_feast(offline_store: str, data: Path, entities: pd.DataFrame) -> Callable[[], pa.Table]:
    import feast.metrics  # noqa: F401 - to_arrow() imports it
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Float64, Int64, String

    def source(view: View) -> Any:
        folder = str(data / view.name)
        if offline_store != "spark":
            return FileSource(path=folder, file_format=ParquetFormat(), timestamp_field="event_timestamp")
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        return SparkSource(name=view.name, path=folder, file_format="parquet", timestamp_field="event_timestamp")

    settings: dict[str, Any] = {"type": offline_store}
    if offline_store == "spark":
        settings["spark_conf"] = {
            "spark.master": "local[2]",
            "spark.driver.memory": "2g",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.shuffle.partitions": "2",
        }
    scratch = Path(tempfile.mkdtemp(dir=data))
    store = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{scratch}/registry.db"},
            online_store={"type": "sqlite", "path": f"{scratch}/online.db"},
            offline_store=settings,
            entity_key_serialization_version=3,
        )
    )
    types = {"airport_id": (Int64, ValueType.INT64)}
    text = (String, ValueType.STRING)
    named = {
        key: Entity(name=key, join_keys=[key], value_type=types.get(key, text)[1])
        for view in VIEWS
        for key in view.keys
    }
    views = [
        FeatureView(
            name=view.name,
            entities=[named[key] for key in view.keys],
            ttl=view.ttl,
            schema=[Field(name=key, dtype=types.get(key, text)[0]) for key in view.keys]
            + [
                Field(name=name, dtype=dtype)
                for name, dtype in zip(view.features, (Int64, Float64, Float64, String), strict=True)
            ],
            source=source(view),
        )
        for view in VIEWS
    ]
    store.apply([*named.values(), *views])
    # As a task of a pipeline does it: another process applied, this one only opens the repository.
    store = FeatureStore(config=store.config)
    if offline_store == "spark":
        from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
            get_spark_session_or_start_new_with_repoconfig,
        )

        get_spark_session_or_start_new_with_repoconfig(store.config.offline_store).range(1).count()
    return lambda: store.get_historical_features(entities, REFS).to_arrow()


ENGINES: dict[str, Callable[[Path, pd.DataFrame], Callable[[], pa.Table]]] = {
    "evergreen": lambda data, df: through_feast("evergreen.feature_store.offline_store.AsofOfflineStore", data, df),
    "by hand": by_hand,
    "by hand, ties": lambda data, df: by_hand(data, df, ties=True),
    "by hand, ties, order": lambda data, df: by_hand(data, df, ties=True, order=True),
    "stock duckdb": lambda data, df: through_feast("duckdb", data, df),
    "stock spark": lambda data, df: through_feast("spark", data, df),
    "stock dask": lambda data, df: through_feast("file", data, df),
}


@dataclass(frozen=True)
class Measurement:
    seconds: float  # wall clock
    cpu_seconds: float
    peak_mb: float  # of the whole process
    rows: int
    answer: dict[str, list[float]]  # per feature: non-null values, and a sum that depends on their rows


def measure(engine: str, rows: int, data: Path) -> Measurement:
    retrieve = ENGINES[engine](data, entity_rows(rows))
    wall, cpu = time.perf_counter(), time.process_time()
    table = retrieve()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measurement(wall, cpu, peak, table.num_rows, digest(table))


def digest(table: pa.Table) -> dict[str, list[float]]:
    weight = pc.add(pc.cast(table["row"], pa.float64()), 1.0)
    numbers = {name: table[name] for name in FEATURES}
    numbers = {
        name: pc.utf8_length(column) if pa.types.is_string(column.type) else column for name, column in numbers.items()
    }
    return {
        name: [len(column) - column.null_count, pc.sum(pc.multiply(column, weight)).as_py() or 0.0]
        for name, column in numbers.items()
    }


def measure_apart(engine: str, rows: int, data: Path) -> Measurement | str:
    """The measurement of a fresh process, or the last line of what it died of."""
    command = [sys.executable, __file__, "--measure", engine, "--rows", str(rows), "--data", str(data)]
    path = os.pathsep.join([str(ROOT / "include"), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "FEAST_USAGE": "False"},
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        return (ran.stderr.strip() or f"exit status {ran.returncode}").splitlines()[-1]
    return Measurement(**json.loads(ran.stdout.splitlines()[-1]))


def compare(rows: int, engines: dict[str, int], data: Path) -> list[dict[str, Any]]:
    """Medians of each engine (name → runs), each next to the query by hand."""
    runs: dict[str, list[Measurement]] = {engine: [] for engine in engines}
    errors: dict[str, str] = {}
    for turn in range(max(engines.values())):  # in turns, so that a busy minute hits all of them
        for engine, times in engines.items():
            if turn < times and engine not in errors:
                found = measure_apart(engine, rows, data)
                if isinstance(found, str):
                    errors[engine] = found
                else:
                    runs[engine].append(found)
    base = runs["by hand"]
    lines = []
    for engine, done in runs.items():
        if not done:
            lines.append({"engine": engine, "rows": rows, "error": errors[engine]})
            continue
        seconds = median(run.seconds for run in done)
        cpu = median(run.cpu_seconds for run in done)
        lines.append(
            {
                "engine": engine,
                "rows": rows,
                "runs": len(done),
                "seconds": seconds,
                "rows_per_second": rows / seconds,
                "cpu_seconds": cpu,
                "peak_mb": median(run.peak_mb for run in done),
                "speed_to_by_hand": median(run.seconds for run in base) / seconds,
                "cpu_speed_to_by_hand": median(run.cpu_seconds for run in base) / cpu,
                "rows_out": done[0].rows,
                "same_answer": same(done[0], base[0]),
            }
        )
    return lines


def same(one: Measurement, other: Measurement) -> bool:
    return one.rows == other.rows and all(
        np.allclose(one.answer[name], other.answer[name], rtol=1e-9) for name in FEATURES
    )


def show(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Point-in-time features: 3 views, 12 features, 1,095 files, 2 M feature rows")
    for name in ("engine", "rows", "runs", "seconds", "rows/s", "× by hand", "CPU s", "× by hand", "peak MB"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    table.add_column("answer")
    for line in lines:
        if "error" in line:
            table.add_row(line["engine"], f"{line['rows']:,}", *["–"] * 7, f"failed: {line['error'][:60]}")
            continue
        table.add_row(
            line["engine"],
            f"{line['rows']:,}",
            str(line["runs"]),
            f"{line['seconds']:.2f}",
            f"{line['rows_per_second']:,.0f}",
            f"{line['speed_to_by_hand']:.3g}",
            f"{line['cpu_seconds']:.2f}",
            f"{line['cpu_speed_to_by_hand']:.3g}",
            f"{line['peak_mb']:,.0f}",
            "same" if line["same_answer"] else f"DIFFERS ({line['rows_out']:,} rows)",
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", default="100000,300000", help="entity rows, comma separated")
    parser.add_argument("--runs", type=int, default=5, help="of each engine but the stock stores")
    parser.add_argument("--pairs", action="store_true", help="only Evergreen's store and the query by hand")
    parser.add_argument("--stock", action="store_true", help="also Feast's stores; spark and dask 1,000 rows")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [int(size) for size in args.rows.split(",")]
    if args.measure:
        print(json.dumps(asdict(measure(args.measure, sizes[0], args.data))))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        build(data)
        lines = []
        engines = ["evergreen", "by hand"] + ([] if args.pairs else ["by hand, ties", "by hand, ties, order"])
        ours = dict.fromkeys(engines, args.runs)
        for rows in sizes:
            lines += compare(rows, ours | ({"stock duckdb": 3} if args.stock else {}), data)
        if args.stock:
            # Once: they take a minute for a thousand rows, and more memory than most machines for more.
            lines += compare(1_000, ours | {"stock duckdb": 3, "stock spark": 1, "stock dask": 1}, data)
    show(lines)
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
