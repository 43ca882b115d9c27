"""What the day's run costs as history and rows grow.

    python benchmarks/growth.py [--plot docs/images/growth.svg]

One process with a Spark of its own makes days one at a time, as a run of the features DAG does (plan, check raw,
build, check, publish), with 30, 180 and 365 days published before it; then with 1, 10 and 30 times the flights per
day. CPU seconds of the process and its JVM, median of five days. Cost should grow with new data, not with history.
The most rows that a day may have is not checked in the second part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from statistics import median

import pandas as pd
import psutil

HISTORY, ROWS = (30, 180, 365), (1, 10, 30)
RUNS = 5
FIRST = date(2013, 1, 1)


def cpu_seconds() -> float:
    """Of this process and of the JVM that it has started."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children(recursive=True)))


def days(first: int, last: int) -> list[date]:
    """Day `first` to before day `last` of the year, from 0."""
    return [FIRST + timedelta(n) for n in range(first, last)]


def measure(some: Sequence[date]) -> tuple[float, float]:
    """Median wall and CPU seconds of a day's run."""
    from evergreen.features import inputs
    from evergreen.features.pipeline import run_feature_pipeline
    from evergreen.spec import loader

    model = loader.load_spec("flight_delay")
    walls, cpus = [], []
    for day in some:
        began, used = time.monotonic(), cpu_seconds()
        assert not inputs.stale_days(model, [day])  # what `plan` asks first
        run_feature_pipeline(model, [day])
        walls.append(time.monotonic() - began)
        cpus.append(cpu_seconds() - used)
    return median(walls), median(cpus)


def by_history() -> Iterator[tuple[int, float, float]]:
    from evergreen.features.pipeline import run_feature_pipeline
    from evergreen.spec import loader
    from evergreen_models.flight_delay.raw import deliver

    model = loader.load_spec("flight_delay")
    deliver(days(0, 365))
    done = 0
    for history in HISTORY:
        until = min(history, 365 - RUNS)
        run_feature_pipeline(model, days(done, until))
        yield until, *measure(days(until, until + RUNS))
        done = until + RUNS


def by_rows(home: Path) -> Iterator[tuple[int, float, float]]:
    import great_expectations.expectations as gxe

    from evergreen import storage
    from evergreen.ingest import raw_files
    from evergreen_models.flight_delay import expectations
    from evergreen_models.flight_delay.raw import deliver

    asked = expectations.raw_expectations
    expectations.raw_expectations = lambda source, day: [
        rule for rule in asked(source, day) if not isinstance(rule, gxe.ExpectTableRowCountToBeBetween)
    ]
    some = days(90, 105)
    for times in ROWS:
        shutil.rmtree(home / "lake")
        deliver(some)
        for day in some:
            file = raw_files.raw_file("flights", day)
            table = pd.read_parquet(file)
            many = pd.concat([table.assign(flight=table.flight + 10_000 * n) for n in range(times)])
            with storage.atomic_write(file) as scratch:
                many.to_parquet(scratch, index=False, coerce_timestamps="us")
        yield times, *measure(some[-RUNS:])


def plot(history: list[tuple[int, float, float]], rows: list[tuple[int, float, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "evergreen"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, points, label in zip(
        axes, (history, rows), ("days of history", "times the flights of a day"), strict=True
    ):
        axis.plot([p[0] for p in points], [p[2] for p in points], marker="o", label="CPU")
        axis.plot([p[0] for p in points], [p[1] for p in points], marker="o", label="wall")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)  # once both are drawn: the axis is shared
    axes[0].set_ylabel("seconds for a day")
    axes[0].legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="draw the figure into this file too")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    os.environ["EVERGREEN_HOME"] = str(home)
    try:
        history = list(by_history())
        rows = list(by_rows(home))
    finally:
        shutil.rmtree(home)
    print(f"\n{'days of history':<24}{'wall s':>9}{'CPU s':>9}{'CPU ÷ first':>13}")
    for points, label in ((history, "{} days"), (rows, "{} × flights per day")):
        for n, wall, cpu in points:
            print(f"{label.format(n):<24}{wall:>9.2f}{cpu:>9.2f}{cpu / points[0][2]:>13.2f}")
    if arguments.plot:
        plot(history, rows, arguments.plot)


if __name__ == "__main__":
    main()
