"""What checking raw data costs, next to a DuckDB pass over the same file: min, max, nulls and mean of every column.

    python benchmarks/checks.py [--rows 1000000,10000000] [--pandas] [--json FILE]

The rules are those of `flight_delay` for flights, and a regular expression: 27 expectations of 19 columns, one of them
that eight columns together are unique. Each measurement is a new process, in turns, so that a busy minute hits all of
them; medians. Imports are measured apart. `--pandas` adds Great Expectations' own engine, for up to a million rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

DAY = "2013-01-05"
RUNS = 5
MAX_PANDAS_ROWS = 1_000_000
PASS, CHECKS, PANDAS = "DuckDB pass", "Evergreen's checks", "Great Expectations in pandas"
COLUMNS = """
    2013 AS year, 1 AS month, 5 AS day,
    CASE WHEN hash(i) % 50 > 0 THEN (500 + hash(i, 1) % 1800)::DOUBLE END AS dep_time,
    (500 + i % 1800)::BIGINT AS sched_dep_time,
    CASE WHEN hash(i) % 50 > 0 THEN (hash(i, 2) % 200)::DOUBLE - 20 END AS dep_delay,
    CASE WHEN hash(i) % 40 > 0 AND hash(i) % 50 > 0 THEN (500 + hash(i, 3) % 1800)::DOUBLE END AS arr_time,
    (500 + hash(i, 4) % 1800)::BIGINT AS sched_arr_time,
    CASE WHEN hash(i) % 40 > 0 AND hash(i) % 50 > 0 THEN (hash(i, 5) % 200)::DOUBLE - 20 END AS arr_delay,
    ['UA', 'AA', 'DL', 'B6', 'EV', 'MQ', 'US', 'WN'][(1 + hash(i, 6) % 8)::BIGINT] AS carrier,
    i::BIGINT AS flight,
    'N' || hash(i, 7) % 4000 AS tailnum,
    ['EWR', 'JFK', 'LGA'][(1 + hash(i, 8) % 3)::BIGINT] AS origin,
    'D' || hash(i, 9) % 100 AS dest,
    CASE WHEN hash(i) % 40 > 0 AND hash(i) % 50 > 0 THEN (20 + hash(i, 10) % 500)::DOUBLE END AS air_time,
    (80 + hash(i, 11) % 4000)::BIGINT AS distance,
    (hash(i, 12) % 24)::BIGINT AS hour,
    (hash(i, 13) % 60)::BIGINT AS minute,
    TIMESTAMPTZ '2013-01-05 00:00:00+00' + to_seconds((hash(i, 14) % 86400)::BIGINT) AS time_hour
"""


@dataclass(frozen=True)
class Measurement:
    import_seconds: float
    seconds: float  # wall clock, without imports
    cpu_seconds: float
    peak_mb: float  # of the whole process


def write_flights(file: Path, rows: int) -> None:
    import duckdb

    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT {COLUMNS} FROM range({rows}) AS rows(i)) TO '{file}' (FORMAT parquet)")


def duckdb_pass(file: Path) -> Callable[[], Any]:
    import duckdb

    def scan() -> None:
        with duckdb.connect() as con:
            described = con.execute(f"DESCRIBE FROM '{file}'").fetchall()
            aggregates = [
                f"min({name}), max({name}), count(*) - count({name})"
                + ("" if kind in ("VARCHAR", "TIMESTAMP WITH TIME ZONE") else f", avg({name})")
                for name, kind, *_ in described
            ]
            con.execute(f"SELECT {', '.join(aggregates)} FROM '{file}'").fetchall()

    return scan


def flight_rules() -> list[Any]:
    import great_expectations.expectations as gxe

    from evergreen_models.flight_delay import expectations

    rules = [
        rule
        for rule in expectations.raw_expectations("flights", DAY)
        if not isinstance(rule, gxe.ExpectTableRowCountToBeBetween)  # of a day of New York
    ]
    return [
        *rules,
        gxe.ExpectTableRowCountToBeBetween(min_value=300),
        gxe.ExpectColumnValuesToMatchRegex(column="tailnum", regex=r"^N\w+$"),
    ]


def evergreen_checks(file: Path) -> Callable[[], Any]:
    from evergreen.ingest import databases, expectations

    rules = flight_rules()

    def check() -> None:
        with databases.open_database() as database:
            report = expectations.validate_file(database, file, "flights", rules)
        assert not report.faults, report.faults

    return check


def pandas_checks(file: Path) -> Callable[[], Any]:
    import pandas as pd

    from evergreen.ingest import expectations

    rules = flight_rules()
    expectations._batch_definition()
    return lambda: expectations._run_expectations(pd.read_parquet(file), rules)


ENGINES: dict[str, Callable[[Path], Callable[[], Any]]] = {
    PASS: duckdb_pass,
    CHECKS: evergreen_checks,
    PANDAS: pandas_checks,
}


def measure(engine: str, file: Path) -> Measurement:
    start = time.perf_counter()
    run = ENGINES[engine](file)
    imported, cpu = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - imported, time.process_time() - cpu
    return Measurement(imported - start, wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_apart(engine: str, file: Path) -> Measurement:
    command = [sys.executable, __file__, "--measure", engine, "--file", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def compare(rows: int, pandas: bool) -> list[dict[str, Any]]:
    engines = [PASS, CHECKS, *([PANDAS] if pandas and rows <= MAX_PANDAS_ROWS else [])]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "flights.parquet")
        write_flights(file, rows)
        measure_apart(PASS, file)  # warms the page cache
        runs = [{engine: measure_apart(engine, file) for engine in engines} for _ in range(RUNS)]
    lines = []
    for engine in engines:
        fields = ("import_seconds", "seconds", "cpu_seconds", "peak_mb")
        medians = {name: median(getattr(run[engine], name) for run in runs) for name in fields}
        wall = median(run[engine].seconds / run[PASS].seconds for run in runs)
        cpu = median(run[engine].cpu_seconds / run[PASS].cpu_seconds for run in runs)
        lines.append({"engine": engine, "rows": rows, **medians, "wall_to_pass": wall, "cpu_to_pass": cpu})
    return lines


def show(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(flight_rules())} expectations of 19 columns, next to a pass over them")
    for name in ("", "rows", "imports, s", "wall, s", "÷ pass", "CPU, s", "÷ pass", "peak MB"):
        table.add_column(name, justify="right" if name else "left")
    for line in lines:
        table.add_row(
            line["engine"],
            f"{line['rows']:,}",
            f"{line['import_seconds']:.1f}",
            f"{line['seconds']:.2f}",
            f"{line['wall_to_pass']:.2f}",
            f"{line['cpu_seconds']:.2f}",
            f"{line['cpu_to_pass']:.2f}",
            f"{line['peak_mb']:,.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", default="1000000,10000000", help="rows of the file, comma separated")
    parser.add_argument("--pandas", action="store_true", help="also Great Expectations' own engine")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(asdict(measure(args.measure, args.file))))
        return
    lines = [line for size in args.rows.split(",") for line in compare(int(size), args.pandas)]
    show(lines)
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
