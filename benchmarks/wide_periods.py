"""What the histograms of a wide period cost, next to a hand-written DuckDB query for the same counts.

    python benchmarks/wide_periods.py [--rows 1000000] [--runs 3] [--full] [--json FILE]

A period is a Parquet file of 100 columns, on the bins of a reference of as many columns: 60 numbers with 2 % missing
values, 15 integers, 20 texts of 4 to 600 values and 5 booleans. By hand is one query without anything that the product
takes care of: a limit of memory, values that are not numbers, names that SQL would take for something else, several
files. Both take a period of a tenth of the rows, too: memory should not grow. Each measurement is a new process, in
turns, so that a busy minute hits all of them; medians. Imports are not timed. The counts of both are compared.

`--full` is 10 million rows: about 1.5 GB of disk while it runs.

Goals: at most twice the query, by wall clock and by CPU; memory that does not grow with rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

FULL_ROWS = 10_000_000
REFERENCE_ROWS = 200_000
BY_HAND, PRODUCT = "query by hand", "Evergreen's histograms"
COLUMNS = {
    **{f"number_{n}": f"CASE WHEN r(i, {n}) % 50 > 0 THEN v(i, {n}, 3000) / 7 END::FLOAT" for n in range(60)},
    **{f"integer_{n}": f"v(i, 100 + {n}, 200)::INTEGER" for n in range(15)},
    **{f"text_{n}": f"'value ' || v(i, 200 + {n}, {4 + 31 * n})" for n in range(20)},
    **{f"boolean_{n}": f"v(i, 300 + {n}, 3) = 0" for n in range(5)},
}
# Values are skewed: the product of two uniform ones.
MACROS = """
    CREATE MACRO r(i, n) AS hash(i, n);
    CREATE MACRO v(i, n, size) AS (r(i, n) % 1024 * (r(i, n) // 1024 % 1024) * size // 1048576)::INTEGER;
"""


@dataclass(frozen=True)
class Measurement:
    seconds: float  # wall clock, without imports
    cpu_seconds: float
    imports_mb: float  # peak memory of the process before
    peak_mb: float
    counts: str  # their hash


def write_period(file: Path, first: int, rows: int) -> None:
    import duckdb

    terms = ", ".join(f"{term} AS {name}" for name, term in COLUMNS.items())
    with duckdb.connect(config={"memory_limit": "2GB"}) as con:
        con.execute(MACROS)
        con.execute(
            f"COPY (SELECT {terms} FROM range({first}, {first + rows}) AS rows(i)) TO '{file}' (COMPRESSION zstd)"
        )


def read_bins(reference: Path) -> Any:
    from evergreen.ingest.databases import open_database
    from evergreen.monitoring.histograms import find_bins

    with open_database() as database:
        return find_bins(database, "t", [reference], list(COLUMNS), REFERENCE_ROWS)


def by_hand(bins: Sequence[Any], file: Path) -> Callable[[], dict[str, Any]]:
    import duckdb

    terms = ["count(*)"]
    for column in bins:
        # As bins are: a FLOAT would round them to its own digits.
        number = column.kind == "numeric"
        value = f"{column.column}::{'DOUBLE' if number else 'VARCHAR'}"
        function = f"{'histogram' if number else 'histogram_exact'}({value}, {list(column.bounds)})"
        terms += [f"count({column.column})", f"map_values({function})"]
    query = f"SELECT {', '.join(terms)} FROM '{file}'"

    def count() -> dict[str, Any]:
        with duckdb.connect() as con:
            rows, *values = con.execute(query).fetchone() or ()
        counted = {}
        for column, present, counts in zip(bins, values[::2], values[1::2], strict=True):
            counted[column.name] = [rows, rows - present, *[*counts, 0][: column.size]]
        return counted

    return count


def by_product(bins: Sequence[Any], file: Path) -> Callable[[], dict[str, Any]]:
    from evergreen.ingest.databases import open_database
    from evergreen.monitoring.histograms import count_by_bin

    def count() -> dict[str, Any]:
        with open_database() as database:
            _, histograms = count_by_bin(database, bins, {"period": file})["period"]
        return {name: [item.rows, item.missing, *item.counts.tolist()] for name, item in histograms.items()}

    return count


WAYS = {BY_HAND: by_hand, PRODUCT: by_product}


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def measure(way: str, bins_file: Path, file: Path) -> Measurement:
    from evergreen.monitoring.histograms import ColumnBins

    bins = [ColumnBins(**{**item, "bounds": tuple(item["bounds"])}) for item in json.loads(bins_file.read_text())]
    count = WAYS[way](bins, file)
    imports, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
    counted = count()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measurement(wall, cpu, imports, peak_mb(), sha256(json.dumps(counted).encode()).hexdigest())


def measure_apart(way: str, bins: Path, file: Path) -> Measurement:
    command = [sys.executable, __file__, "--measure", way, "--bins", str(bins), "--file", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def compare(rows: int, runs: int) -> list[dict[str, Any]]:
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_period(folder / "reference.parquet", 0, REFERENCE_ROWS)
        bins = folder / "bins.json"
        bins.write_text(json.dumps([vars(column) for column in read_bins(folder / "reference.parquet")]))
        for size in (rows // 10, rows):
            file = folder / f"{size}.parquet"
            write_period(file, REFERENCE_ROWS, size)
            measure_apart(BY_HAND, bins, file)  # warms the page cache
            measured = [{way: measure_apart(way, bins, file) for way in WAYS} for _ in range(runs)]
            if len({run[way].counts for run in measured for way in WAYS}) > 1:
                raise SystemExit("the counts of both differ")
            for way in WAYS:
                fields = ("seconds", "cpu_seconds", "imports_mb", "peak_mb")
                line = {field: median(getattr(run[way], field) for run in measured) for field in fields}
                line |= {
                    f"{field}_to_hand": median(
                        getattr(run[way], field) / getattr(run[BY_HAND], field) for run in measured
                    )
                    for field in ("seconds", "cpu_seconds")
                }
                lines.append({"way": way, "rows": size, "file_mb": file.stat().st_size / 2**20, **line})
            file.unlink()
    return lines


def show(lines: Sequence[dict[str, Any]]) -> None:
    table = Table(title=f"histograms of {len(COLUMNS)} columns; the counts of both are equal")
    for name in ("", "rows", "file, MB", "wall, s", "÷ by hand", "CPU, s", "÷ by hand", "peak MB", "of it imports"):
        table.add_column(name, justify="right" if name else "left")
    for line in lines:
        table.add_row(
            line["way"],
            f"{line['rows']:,}",
            f"{line['file_mb']:,.0f}",
            f"{line['seconds']:.2f}",
            f"{line['seconds_to_hand']:.2f}",
            f"{line['cpu_seconds']:.2f}",
            f"{line['cpu_seconds_to_hand']:.2f}",
            f"{line['peak_mb']:,.0f}",
            f"{line['imports_mb']:,.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--full", action="store_const", const=FULL_ROWS, dest="rows", help=f"{FULL_ROWS:,} rows")
    parser.add_argument("--runs", type=int, default=3, help="of each, in turns")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--bins", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(asdict(measure(options.measure, options.bins, options.file))))
        return
    lines = compare(options.rows, options.runs)
    show(lines)
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
