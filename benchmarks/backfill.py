"""A backfill of features: many days in one Spark job, against one Spark job per day.

    python benchmarks/backfill.py [--days 90]

Both through Airflow, scheduler and all, on engines that are up already; wall time and the CPU seconds of every
process of the stack. The reference makes a day per run, as Airflow users do (EVERGREEN_MAX_DAYS_PER_RUN=1), on fewer
days, and is compared per day. Beside them, a process of its own with a Spark of its own per day: what a nightly
spark-submit costs. Goal: ten times cheaper. Every partition must be computed once, by a second backfill none,
and the peak memory must not grow with the days.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evergreen.client.airflow import AirflowClient
from evergreen.periods import Calendar
from measuring.stack import Meter, backfill, deliver, environment, metered, running

NAME, ZONE = "flight_delay", "America/New_York"
DAG = f"{NAME}.features"
CALENDAR = Calendar("1d", "America/New_York")
FIRST = "2013-01-01"


@dataclass(frozen=True)
class Cost:
    days: int
    wall: float
    cpu: float
    computed: int
    peak: float  # GiB

    def line(self, name: str) -> str:
        return (
            f"{name:<44}{self.days:>6}{self.wall:>9.1f}{self.cpu:>9.1f}{self.wall / self.days:>11.2f}"
            f"{self.cpu / self.days:>11.2f}{self.computed:>10}{self.peak:>10.2f}"
        )


@contextmanager
def stack_of(home: Path, days: int, **more: str) -> Iterator[tuple[AirflowClient, Meter]]:
    """Engines that are up over a home with raw days, whose arrival is dealt with."""
    deliver(home, days)
    with running(home, DAG, **more) as airflow, metered(home) as meter:
        yield airflow, meter
    shutil.rmtree(home)


def backfill_days(airflow: AirflowClient, meter: Meter, days: Sequence[str]) -> Cost:
    """From the call that the UI makes to the end of the last run."""
    wall, cpu, runs = backfill(airflow, meter, DAG, CALENDAR, days, 10)
    built = {i["dag_run_id"] for i in airflow.task_instances(DAG, states=["success"]) if i["task_id"] == "build"}
    computed = sum(
        len(airflow.xcom(DAG, r["dag_run_id"], "build")["periods"]) for r in runs if r["dag_run_id"] in built
    )
    return Cost(len(days), wall, cpu, computed, meter.peak / 2**30)


def by_spark_submit(home: Path, days: Sequence[str]) -> Cost:
    """A process and a Spark for each day, one after the other; no Airflow."""
    deliver(home, len(days))
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for day in days:
        code = (
            "from evergreen.spec import loader;"
            "from evergreen.features.pipeline import run_feature_pipeline;"
            f"run_feature_pipeline(loader.load_spec({NAME!r}), ['{day}'])"
        )
        command = [sys.executable, "-c", code]
        subprocess.run(command, env=environment(home), check=True, capture_output=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    wall = time.monotonic() - began
    shutil.rmtree(home)
    return Cost(len(days), wall, cpu, len(days), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--reference-days", type=int, default=12)
    arguments = parser.parse_args()
    days = [CALENDAR.shift(FIRST, n) for n in range(arguments.days)]
    few, third = days[: arguments.reference_days], days[: arguments.days // 3]
    scratch = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))

    lines = [("a process with its Spark per day", by_spark_submit(scratch / "submit", few[:5]))]
    with stack_of(scratch / "single", len(few), EVERGREEN_MAX_DAYS_PER_RUN="1") as (airflow, meter):
        lines.append(("Airflow, one day per Spark job", backfill_days(airflow, meter, few)))
    with stack_of(scratch / "many", len(days)) as (airflow, meter):
        lines.append((f"Airflow, many days per job, {len(third)} days", backfill_days(airflow, meter, third)))
    with stack_of(scratch / "many", len(days)) as (airflow, meter):
        lines.append((f"Airflow, many days per job, {len(days)} days", backfill_days(airflow, meter, days)))
        lines.append(("the same backfill again", backfill_days(airflow, meter, days)))
    shutil.rmtree(scratch, ignore_errors=True)

    print(
        f"\n{'':<44}{'days':>6}{'wall s':>9}{'CPU s':>9}{'wall/day':>11}{'CPU/day':>11}{'computed':>10}{'peak GiB':>10}"
    )
    for name, cost in lines:
        print(cost.line(name))
    submit, single, some, many, again = (cost for _, cost in lines)
    print(f"\npartitions computed ÷ missing: {many.computed / many.days:.2f}; by the second backfill: {again.computed}")
    for name, reference in (("one day per Spark job", single), ("a process with its Spark per day", submit)):
        wall = (reference.wall / reference.days) / (many.wall / many.days)
        cpu = (reference.cpu / reference.days) / (many.cpu / many.days)
        print(f"{name} ÷ many days per job: wall {wall:.1f}, CPU {cpu:.1f}")
    print(f"peak memory, {many.days} days ÷ {some.days} days: {many.peak / some.peak:.2f}")


if __name__ == "__main__":
    main()
