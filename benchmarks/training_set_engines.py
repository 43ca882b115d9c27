"""What each engine takes to join a training set: DuckDB in the task, Spark, and a query of DuckDB by hand.

    python benchmarks/training_set_engines.py [--rows 300000] [--runs 3] [--engines duckdb,spark,hand] [--json FILE]

Examples of four days, and as many rows of features in each of two views: by number with a TTL of a day, and by two
texts without. There is a key for ten examples, and a tenth of all has the same one. Each run is a process of its own,
in turns: wall and CPU seconds without imports, the peak memory of the process and of those that it starts (the JVM),
and the most that lay in scratch folders. The query by hand joins, orders and writes the same columns, and neither
checks anything nor decides ties. Files of both engines have to have the same bytes. Goal: at least 0.85 of the rows per
CPU second of the query by hand, at 3 million rows. `--full` is 1 and 10 million rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from measuring.stack import environment

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04")
KNOWN_BEFORE = datetime(2024, 1, 5, tzinfo=UTC)
LOOK_S = 0.05  # at scratch folders and processes, whose peaks these looks find
VIEWS: Mapping[str, tuple[str, ...]] = {"recent": ("key",), "route": ("origin", "dest")}
FEATURES = ("amount", "count")
# Rows come in no order. Each event is one row of every table; features are known an hour before.
EVENTS = """
    SELECT CASE WHEN hash(i, 9) % 10 = 0 THEN 0 ELSE hash(i) % ({rows} // 10) END::BIGINT AS key,
        'airport ' || hash(i, 1) % 500 AS origin, 'airport ' || hash(i, 2) % 40 AS dest,
        TIMESTAMPTZ '{day} 00:00:00+00' + to_microseconds((hash(i, 3) % 86400000000)::BIGINT) AS event_timestamp,
        (hash(i, 4) % 1000000) / 1e6 AS amount, (hash(i, 5) % 100)::BIGINT AS count,
        (hash(i, 6) % 2)::INTEGER AS late, TIMESTAMPTZ '{day} 23:59:59+00' AS label_known_at
    FROM range({first}, {first} + {rows}) AS rows(i)
"""


@dataclass(frozen=True)
class Measurement:
    seconds: float
    cpu_seconds: float
    own_mib: float
    started_mib: float
    scratch_mib: float
    answer: str


def build(lake: Path, rows: int) -> None:
    """Publish the examples, `rows` in all, and the features."""
    import duckdb

    from evergreen.lake.datasets import Dataset

    dataset = Dataset(lake)
    shift = "event_timestamp - INTERVAL 1 HOUR AS event_timestamp"
    tables = {"examples": "key, origin, dest, event_timestamp, amount, late, label_known_at"} | {
        view: ", ".join([*keys, shift, *FEATURES]) for view, keys in VIEWS.items()
    }
    for number, day in enumerate(DAYS):
        staged = dataset.stage(f"day={day}", "f")
        files = {name: staged / f"{name}.parquet" for name in tables}
        size = rows // len(DAYS)
        events = EVENTS.format(rows=size, first=number * size, day=day)
        with duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(lake / "spill")}) as con:
            con.execute("SET TimeZone = 'UTC'")
            for name, columns in tables.items():
                con.execute(f"COPY (SELECT {columns} FROM ({events})) TO '{files[name]}' (FORMAT parquet)")
        dataset.publish(f"day={day}", "f", files, {})


def join_by_engine(engine: str, lake: Path, scratch: Path) -> str:
    """Return the hash of the file that an engine of Evergreen's writes."""
    from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Float64, Int64, String

    from evergreen.feature_store.duckdb_examples import DuckDBExamples
    from evergreen.feature_store.examples import Examples, Selection
    from evergreen.feature_store.offline_store import open_scratch_database
    from evergreen.lake.datasets import Dataset
    from evergreen.periods import Calendar
    from evergreen.storage import file_sha256

    config = RepoConfig(
        project="benchmark",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{scratch}/registry.db"},
        online_store={"type": "sqlite", "path": f"{scratch}/online.db"},
        offline_store={"type": "evergreen.feature_store.offline_store.AsofOfflineStore"},
        entity_key_serialization_version=3,
    )
    views = []
    for name, keys in VIEWS.items():
        kind, value_type = (Int64, ValueType.INT64) if name == "recent" else (String, ValueType.STRING)
        source = FileSource(
            name=name, path=str(lake / name), file_format=ParquetFormat(), timestamp_field="event_timestamp"
        )
        view = FeatureView(
            name=name,
            entities=[Entity(name=key, join_keys=[key], value_type=value_type) for key in keys],
            ttl=timedelta(days=1 if name == "recent" else 0),
            schema=[*(Field(name=key, dtype=kind) for key in keys)]
            + [Field(name=feature, dtype=dtype) for feature, dtype in zip(FEATURES, (Float64, Int64), strict=True)],
            source=source,
        )
        views.append(view)
    references = [f"{view}:{feature}" for view in VIEWS for feature in FEATURES]
    dataset = Dataset(lake)
    manifests = dataset.manifests()
    selections = {"train": Selection("", "9", KNOWN_BEFORE)}
    spine, calendar = ("benchmark", "examples", "late"), Calendar("1d", "UTC")

    def write(examples: Examples) -> str:
        examples.count_labels(KNOWN_BEFORE)
        examples.select(selections)
        examples.join(config, views, references)
        return file_sha256(examples.write_files(scratch)["train"])

    if engine == "duckdb":
        with open_scratch_database(config) as con:
            paths = [dataset.file_path(manifest, "examples") for manifest in manifests]
            return write(DuckDBExamples.from_files(con, *spine, dict(zip(DAYS, paths, strict=True)), calendar))
    from evergreen.feature_store.spark_examples import SparkExamples, open_join_session, provide_files
    from evergreen.lake.exchange import open_exchange

    with open_exchange(scratch / "exchange") as exchange, open_join_session() as session:
        files = dict(zip(DAYS, provide_files(exchange, dataset, "examples", manifests), strict=True))
        return write(SparkExamples.from_files(session, *spine, files, calendar, exchange))


def join_by_hand(lake: Path, scratch: Path) -> str:
    """Return the number of examples that the query by hand writes."""
    import duckdb
    import pyarrow.parquet as pq

    ttl = "CASE WHEN e.event_timestamp <= recent.event_timestamp + INTERVAL 1 DAY THEN recent.{0} END AS recent__{0}"
    shown = [ttl.format(feature) for feature in FEATURES]
    shown += [f"route.{feature} AS route__{feature}" for feature in FEATURES]
    joins = [
        f"ASOF LEFT JOIN '{lake}/{view}/*/*.parquet' AS {view} ON "
        + " AND ".join(f"e.{key} = {view}.{key}" for key in keys)
        + f" AND e.event_timestamp >= {view}.event_timestamp"
        for view, keys in VIEWS.items()
    ]
    query = (
        f"SELECT e.*, {', '.join(shown)} FROM '{lake}/examples/*/*.parquet' AS e {' '.join(joins)} "
        f"WHERE late IS NOT NULL AND label_known_at < TIMESTAMPTZ '{KNOWN_BEFORE.isoformat()}' ORDER BY event_timestamp"
    )
    limits: dict[str, Any] = {
        "memory_limit": "1GB",
        "temp_directory": str(scratch),
    }  # the default of EVERGREEN_DUCKDB_MEMORY
    with duckdb.connect(config=limits) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute(f"COPY ({query}) TO '{scratch}/by_hand.parquet' (FORMAT parquet)")
    return str(pq.read_metadata(scratch / "by_hand.parquet").num_rows)


def measure(engine: str, lake: Path, scratch: Path) -> Measurement:
    import evergreen.feature_store.training_sets  # noqa: F401 - imports are not measured

    peaks, stopped = {"scratch": 0.0, "started": 0.0}, threading.Event()

    def look() -> None:
        while not stopped.wait(LOOK_S):
            sizes = []
            for folder, _, files in os.walk(scratch):
                for file in files:
                    with suppress(OSError):
                        sizes.append(os.stat(os.path.join(folder, file)).st_size)
            peaks["scratch"] = max(peaks["scratch"], sum(sizes) / 2**20)
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    peaks["started"] = max(peaks["started"], process.memory_info().rss / 2**20)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    join: Callable[[], str] = lambda: join_by_hand(lake, scratch)  # noqa: E731
    if engine != "hand":
        join = lambda: join_by_engine(engine, lake, scratch)  # noqa: E731
    wall, cpu = time.perf_counter(), cpu_seconds()
    answer = join()
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    stopped.set()
    looking.join()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measurement(wall, cpu, own, peaks["started"], peaks["scratch"], answer)


def cpu_seconds() -> float:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return sum(spent.user + spent.system for spent in times) + times[0].children_user + times[0].children_system


def compare(rows: int, engines: list[str], runs: int, folder: Path) -> list[dict[str, Any]]:
    """Return medians of each engine, which run in turns."""
    lake = folder / "lake"
    build(lake, rows)
    measured: dict[str, list[Measurement]] = {engine: [] for engine in engines}
    for _ in range(runs):
        for engine in engines:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                variables = environment(folder / "home", EVERGREEN_DUCKDB_SCRATCH=scratch, SPARK_LOCAL_DIRS=scratch)
                command = [sys.executable, __file__, "--measure", engine, "--lake", str(lake), "--scratch", scratch]
                done = subprocess.run(command, env=variables, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{engine} at {rows:,} rows: {done.stderr[-3000:]}")
                measured[engine].append(Measurement(**json.loads(done.stdout.splitlines()[-1])))
                print(f"{rows:>12,} {engine:<7} {measured[engine][-1]}", file=sys.stderr, flush=True)
    lines = []
    for engine, done_runs in measured.items():
        line: dict[str, Any] = {"engine": engine, "rows": rows, "runs": len(done_runs)}
        for name in ("seconds", "cpu_seconds", "own_mib", "started_mib", "scratch_mib"):
            line[name] = median(getattr(run, name) for run in done_runs)
        lines.append(line)
    hashes = {run.answer for engine in ("duckdb", "spark") for run in measured.get(engine, [])}
    if len(hashes) > 1:
        raise SystemExit(f"engines write different files at {rows:,} rows: {hashes}")
    if any(run.answer != str(rows) for run in measured.get("hand", [])):
        raise SystemExit(f"the query by hand loses rows at {rows:,} rows")
    return lines


def show(lines: list[dict[str, Any]]) -> None:
    names = ("engine", "rows", "runs", "seconds", "CPU s", "CPU µs a row", "MiB", "started, MiB", "scratch, MiB")
    print("".join(f"{name:>14}" for name in (*names, "CPU ÷ by hand")))
    by_hand = {line["rows"]: line["cpu_seconds"] for line in lines if line["engine"] == "hand"}
    for line in lines:
        cpu = line["cpu_seconds"]
        ratio = f"{by_hand[line['rows']] / cpu:.2f}" if line["rows"] in by_hand else ""
        print(
            f"{line['engine']:>14}{line['rows']:>14,}{line['runs']:>14}{line['seconds']:>14.1f}{cpu:>14.1f}"
            f"{1e6 * cpu / line['rows']:>14.1f}{line['own_mib']:>14,.0f}{line['started_mib']:>14,.0f}"
            f"{line['scratch_mib']:>14,.0f}{ratio:>14}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="300000", help="examples, comma separated")
    parser.add_argument("--runs", type=int, default=3, help="of each engine")
    parser.add_argument("--engines", default="duckdb,spark,hand", help="comma separated")
    parser.add_argument("--full", action="store_true", help="1 and 10 million examples")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--lake", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print("\n" + json.dumps(asdict(measure(arguments.measure, arguments.lake, arguments.scratch))))
        return
    lines = []
    for rows in [1_000_000, 10_000_000] if arguments.full else [int(size) for size in arguments.rows.split(",")]:
        with tempfile.TemporaryDirectory(prefix="evergreen-bench-") as folder:
            lines += compare(rows, arguments.engines.split(","), arguments.runs, Path(folder))
    show(lines)
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
