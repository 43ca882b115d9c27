"""How fast training data streams, next to a plain scan of the same columns of the same file.

    python benchmarks/streaming.py [--rows 2000000] [--train FILE] [--runs 7] [--json FILE]

The scan is pyarrow's, row group by row group, and what it reads is dropped. The stream is that of `flight_delay_net`:
the same rows shuffled, as arrays, in batches. The first pass, for means and vocabularies, is made once a training. All
take turns in one process, so that a busy minute hits all of them; medians. On a busy machine trust the ratio of CPU
seconds more than that of rows/s: what is done in threads beside the training that it feeds takes CPU from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq

from evergreen.spec import loader
from evergreen.training.rows import TrainingRows
from evergreen_models.flight_delay_net.column_statistics import compute_column_statistics
from evergreen_models.flight_delay_net.columns import InputColumns
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.stream import BatchPlan, BatchStream
from measuring.training import CATEGORIES, LABEL, NUMBERS, write_training_set

SCAN, FIRST_PASS, STREAM = "plain scan", "first pass", "stream"


@dataclass(frozen=True)
class Line:
    what: str
    rows_per_second: float
    cpu_ns_per_row: float
    speed_to_scan: float
    cpu_to_scan: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--train", type=Path, help="a training set of flight_delay's, instead of made-up data")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = asked.train or write_training_set(Path(folder, "train.parquet"), asked.rows)
        columns = of_real(file) if asked.train else of_made_up(file)
        lines = compare(ways(file, columns), asked.runs)
        metadata = pq.read_metadata(file)
    show(
        f"{metadata.num_rows:,} rows in {metadata.num_row_groups} row groups, {len(columns.numbers)} numbers and "
        f"{len(columns.categories)} categories",
        lines,
    )
    if asked.json:
        asked.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")


def of_made_up(file: Path) -> InputColumns:
    return InputColumns.from_schema(pq.read_schema(file), (*NUMBERS, *CATEGORIES), LABEL, CATEGORIES)


def of_real(file: Path) -> InputColumns:
    model, schema = loader.load_spec("flight_delay_net"), pq.read_schema(file)
    features = [name for name in schema.names if "__" in name]
    return InputColumns.from_schema(schema, (*model.request_columns, *features), "label", model.parameters["embedding"])


def ways(file: Path, columns: InputColumns) -> dict[str, Callable[[], int]]:
    """Each reads all rows and gives their number."""
    parameters = NetworkParameters.model_validate(loader.load_spec("flight_delay_net").parameters)
    metadata = pq.read_metadata(file)
    scales = compute_column_statistics(TrainingRows(file), columns, parameters.min_category_rows)
    groups = tuple(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
    order = BatchPlan(groups, parameters.batch_rows, parameters.shuffle_rows, seed=1)

    def scan() -> int:
        opened = pq.ParquetFile(file, pre_buffer=True)
        return sum(opened.read_row_group(n, columns=columns.names).num_rows for n in range(len(groups)))

    return {
        SCAN: scan,
        FIRST_PASS: lambda: compute_column_statistics(TrainingRows(file), columns, parameters.min_category_rows).rows,
        STREAM: lambda: sum(
            map(len, BatchStream(TrainingRows(file), columns, scales, order).batches(0, order.steps_per_epoch))
        ),
    }


def compare(how: dict[str, Callable[[], int]], runs: int) -> list[Line]:
    wall: dict[str, list[float]] = {what: [] for what in how}
    cpu: dict[str, list[float]] = {what: [] for what in how}
    for turn in range(runs + 1):
        for what, read in how.items():
            began, busy = time.perf_counter(), time.process_time()
            rows = read()
            if turn:  # the first warms the page cache and the allocators
                wall[what].append((time.perf_counter() - began) / rows)
                cpu[what].append((time.process_time() - busy) / rows)
    return [
        Line(
            what,
            rows_per_second=1 / median(wall[what]),
            cpu_ns_per_row=1e9 * median(cpu[what]),
            speed_to_scan=median(wall[SCAN]) / median(wall[what]),
            cpu_to_scan=median(cpu[what]) / median(cpu[SCAN]),
        )
        for what in how
    ]


def show(about: str, lines: list[Line]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=about)
    for name in ("", "rows/s", "× scan", "CPU ns/row", "CPU × scan"):
        table.add_column(name, justify="right" if name else "left")
    for line in lines:
        table.add_row(
            line.what,
            f"{line.rows_per_second:,.0f}",
            f"{line.speed_to_scan:.2f}",
            f"{line.cpu_ns_per_row:,.0f}",
            f"{line.cpu_to_scan:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
