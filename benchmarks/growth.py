"""What the day's run costs as history and rows grow, and what a ledger costs to open as its entries grow.

    python benchmarks/growth.py [--plot docs/images/growth.svg]
    python benchmarks/growth.py --ledger FOLDER_OR_URI

The ledger: what it costs to open it, and then to replay it all (`evergreen ledger verify`), in a new process whose
modules are imported; median of five seconds, most memory of five. Its verdicts have seven gates; in the second series
one of them has 4,000 slices. Two of three candidates fail. 10,099 entries is the worst case: no ledger of about this
length has more entries after its last snapshot.

The day's run: one process with a Spark of its own makes days one at a time, as a run of the features DAG does (plan,
check raw, build, check, publish), with 30, 180 and 365 days published before it; then with 1, 10 and 30 times the
flights per day. CPU seconds of the process and its JVM, median of five days. Cost should grow with new data, not with
history. The most rows that a day may have is not checked in the second part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pandas as pd
import psutil

from evergreen.periods import Calendar
from evergreen.window import RunReason

if TYPE_CHECKING:
    from evergreen.gates import Verdict

ENTRIES = (100, 1_000, 10_000, 10_099)
HISTORY, ROWS = (30, 180, 365), (1, 10, 30)
RUNS = 5
CALENDAR = Calendar("1d", "America/New_York")
FIRST = "2013-01-01"  # the year of the flights
MODEL = "flight_delay"
OPEN = """
import sys, time
from evergreen.ledger.journal import Journal

def memory_mib(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024

journal = Journal("flight_delay", sys.argv[1])
Journal("connects_to_the_store", sys.argv[1]).read()
idle, began, used = memory_mib("VmRSS"), time.perf_counter(), time.process_time()
state = getattr(journal, sys.argv[2])()
print(time.perf_counter() - began, time.process_time() - used, memory_mib("VmHWM") - idle)
"""


def cpu_seconds() -> float:
    """Of this process and of the JVM that it has started."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children(recursive=True)))


def days(first: int, last: int) -> list[str]:
    """Day `first` to before day `last` of the year, from 0."""
    return [CALENDAR.shift(FIRST, n) for n in range(first, last)]


def measure(some: Sequence[str]) -> tuple[float, float]:
    """Median wall and CPU seconds of a day's run."""
    from evergreen.features import inputs
    from evergreen.features.pipeline import run_feature_pipeline
    from evergreen.spec import loader

    model = loader.load_spec("flight_delay")
    walls, cpus = [], []
    for day in some:
        began, used = time.monotonic(), cpu_seconds()
        assert not inputs.stale_periods(model, [day])  # what `plan` asks first
        run_feature_pipeline(model, [day])
        walls.append(time.monotonic() - began)
        cpus.append(cpu_seconds() - used)
    return median(walls), median(cpus)


def ledger_verdict(slices: int) -> tuple[Verdict, dict[str, str]]:
    """Return a verdict of seven gates as the ledger holds it, and the file with its slices, if it has many."""
    from evergreen.gates import GateResult, SliceResult, decide_verdict
    from evergreen.lake import datasets
    from evergreen.promotion.slices import detach_slices

    parts = tuple(
        SliceResult(
            name=f"airport {n:04}",
            rows=212,
            candidate=0.7 + n / 1e5,
            champion=0.7,
            interval=(-0.1, 0.1),
            is_judged=True,
        )
        for n in range(slices)
    )
    reason = "auc 0.7123 against the champion's 0.7012 on 123,456 rows: a gain of -0.00123 to 0.00988, at least -0.005"
    results = [
        GateResult(
            gate=f"gate_{n}",
            outcome="passed",
            candidate=0.7123456789 + n,
            champion=0.7012345678,
            interval=(-0.00123456789, 0.00987654321),
            threshold=-0.005,
            alpha=0.0001234567 if n == 1 else None,
            rows=123_456,
            slices=parts if n == 2 else (),
            reason=reason,
        )
        for n in range(7)
    ]
    return detach_slices(decide_verdict(results), datasets.open_dataset(f"verdicts/{MODEL}"))


def write_ledger(place: str, lengths: Sequence[int], slices: int) -> Iterator[int]:
    """Write one ledger, and yield at each length."""
    from evergreen.gates import decide_verdict
    from evergreen.ledger import LedgerEvent, VerdictRecorded, VersionPromoted
    from evergreen.ledger.journal import Journal

    passed, slice_files = ledger_verdict(slices)
    failed = decide_verdict([passed.results[0].model_copy(update={"outcome": "failed"}), *passed.results[1:]])
    journal = Journal(MODEL, place)
    state = journal.read()
    hashes = [f"{n:064x}" for n in range(5)]
    candidates = 0
    while state.head_number < max(lengths):
        event: LedgerEvent
        last = state.entries[-1].event if state.entries else None
        if isinstance(last, VerdictRecorded) and last.verdict.promote:
            event = VersionPromoted(
                version=str(candidates),
                previous_champion=state.champion,
                as_of=last.as_of,
                verdict_entry=state.head_number,
            )
        else:
            candidates += 1
            as_of = CALENDAR.shift(FIRST, candidates)
            event = VerdictRecorded(
                run=f"{MODEL}.retrain scheduled__{as_of}T00:00:00+00:00",
                run_reason=RunReason.SCHEDULE,
                as_of=as_of,
                holdout=(CALENDAR.shift(as_of, -7), as_of),
                days=CALENDAR.dates(CALENDAR.shift(as_of, -7), as_of),
                candidate_fingerprint=sha256(str(candidates).encode()).hexdigest(),
                candidate_files={"model.ubj": sha256(f"model {candidates}".encode()).hexdigest()},
                candidate_inputs=("distance", "temperature"),
                champion_version=state.champion,
                champion_content=state.champion_content,
                verdict=passed if candidates % 3 == 1 else failed,
                evidence={
                    "evaluation": f"evaluations/{MODEL}/{hashes[0]}",
                    "report": f"verdicts/{MODEL}/{hashes[1]}.html",
                }
                | slice_files,
                fingerprints=dict(
                    zip(("evaluation", "gates", "training_set", "candidate", "judging"), hashes, strict=True)
                ),
            )
        journal.append(state, f"{MODEL}.retrain", event)
        state = journal.read()
        if state.head_number in lengths:
            yield state.head_number


def open_ledger(place: str, method: str, runs: int) -> tuple[float, float, float]:
    """Return the median wall and CPU seconds, and the most MiB, to read a ledger in a new process."""
    command = [sys.executable, "-c", OPEN, place, method]
    lines = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(runs)]
    walls, cpus, memory = zip(*(map(float, line) for line in lines), strict=True)
    return median(walls), median(cpus), max(memory)


def print_ledgers(place: str) -> None:
    if "://" not in place:
        os.fsync = lambda _: None  # while it is written: reading is what is measured
    print(f"{'entries':>10}{'slices of a gate':>18}" + f"{'wall, s':>10}{'CPU, s':>8}{'MiB':>7}" * 2)
    for slices in (0, 4000):
        ledger = f"{place}/{slices}"
        for length in write_ledger(ledger, ENTRIES, slices):
            figures = open_ledger(ledger, "read", RUNS), open_ledger(ledger, "verify", 1)
            columns = "".join(f"{wall:>10.3f}{cpu:>8.3f}{memory:>7.1f}" for wall, cpu, memory in figures)
            print(f"{length:>10,}{slices:>18,}{columns}", flush=True)


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
    parser.add_argument("--ledger", metavar="URI", help="measure ledgers only, which are written to this place")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    os.environ["EVERGREEN_HOME"] = str(home)
    try:
        print_ledgers(arguments.ledger or f"{home}/ledgers")
        if arguments.ledger:
            return
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
