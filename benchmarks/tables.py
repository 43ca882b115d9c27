"""What it costs that other programs can read published features, too.

    python benchmarks/tables.py

A dataset with seven tables, as flight_delay has, and manifests of its size, with 1, 365 and 3,650 days published. All
are registered. Then a day is published, or published anew, and its tables are brought up to date as the task `publish`
does with EVERGREEN_TABLES=delta: median of 20 days. `evergreen tables sync` reads every manifest: median of five. CPU
is that of the process.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from evergreen.lake.datasets import Dataset
from evergreen.lake.delta import DeltaFormat
from evergreen.lake.tables import sync_tables

DAYS = (1, 365, 3_650)
RUNS = 20
TABLES = ("carrier", "destination", "origin", "route", "aircraft", "weather", "orders")
RAW_FILES, COLUMNS = 30, 12
DELTA = DeltaFormat()


def publish(dataset: Dataset, number: int, revision: int = 0) -> str:
    partition = f"day={date(2010, 1, 1) + timedelta(days=number)}"
    fingerprint = sha256(f"{partition} {revision}".encode()).hexdigest()
    folder = dataset.stage(partition, fingerprint)
    table = pa.table({f"column_{column}": [number + revision / 1000] for column in range(COLUMNS)})
    for name in TABLES:
        pq.write_table(table, folder / f"{name}.parquet")
    inputs = {"raw": {f"flights/{file}": fingerprint for file in range(RAW_FILES)}}
    dataset.publish(partition, fingerprint, {name: folder / f"{name}.parquet" for name in TABLES}, inputs)
    return partition


def measure(action: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return (time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000


def main() -> None:
    print("| days | | wall, ms | CPU, ms | CPU, ms a table |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        dataset = Dataset(Path(home) / "features")
        publish(dataset, 0)
        sync_tables(dataset, DELTA)  # what is loaded once
        count = 1
        for days in DAYS:
            for folder in dataset.root.glob("*/_delta_log"):
                folder.rename(dataset.root.parent / f"{folder.parent.name}-{days}")
            for number in range(count, days):
                publish(dataset, number)
            count = max(count, days)
            show(days, "first registration of all", [measure(lambda: sync_tables(dataset, DELTA))])
            added, replaced = [], []
            for _ in range(RUNS):
                partition = publish(dataset, count)
                count += 1
                added.append(measure(lambda partition=partition: sync_tables(dataset, DELTA, [partition])))
                partition = publish(dataset, 0, revision=count)
                replaced.append(measure(lambda partition=partition: sync_tables(dataset, DELTA, [partition])))
            show(days, "a new day", added)
            show(days, "a replaced day", replaced)
            show(days, "`evergreen tables sync`", [measure(lambda: sync_tables(dataset, DELTA)) for _ in range(5)])
            table = DeltaTable(str(dataset.root / TABLES[0]))
            size = sum(file.stat().st_size for file in (dataset.root / TABLES[0] / "_delta_log").iterdir())
            print(f"log of a table: {table.version() + 1} versions, {size / 2**20:.2f} MiB", file=sys.stderr)


def show(days: int, what: str, runs: list[tuple[float, float]]) -> None:
    wall, cpu = (median(values) for values in zip(*runs, strict=True))
    print(f"| {days:,} | {what} | {wall:.0f} | {cpu:.0f} | {cpu / len(TABLES):.1f} |", flush=True)


if __name__ == "__main__":
    main()
