"""Peak memory of each step from raw files to the gates' evidence, each in a process of its own, at two sizes of a day.

    python benchmarks/memory.py [--rows 100000] [--times 10] [--steps validate,build] [--full]

A made-up model with three days: every raw row is an example and a row of features, and the training set has the rows of
all days. Of each step: the most resident memory of its process, and of the processes that it starts (the JVM of Spark,
the trainer), and its wall time and CPU seconds, with imports. Goal: at most 1.3 times the memory at the larger size, in
all steps but the trainer. `--full` is 1 million and 30 million rows a day, and needs less than 40 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from measuring.projects import write_project
from measuring.stack import environment

ROOT = Path(__file__).parents[1]
TRAINING = ROOT / "include/evergreen_models/flight_delay/train.py"
NAME = "events"
DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
AS_OF = "2024-01-04"
ROWS_PER_KEY = 10
LOOK_S = 0.1  # at the processes that a step starts; what is looked at is their peak

SPEC = """
from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="events", owner="bench", feature_service="events", label="is_late", schedule="0 0 * * *", train="2d",
    holdout="1d", request_columns=["amount"], parameters=dict(rounds=10, max_depth=4),
    training_libraries=["xgboost-cpu", "pyarrow"],
    features=dict(timezone="UTC", first_day="2024-01-01", spine="examples", views=["recent"], sources=[
        dict(name="events", columns=dict(
            key="int64", at="timestamp[us, tz=UTC]", amount="float64", place="string", is_late="int32"))]),
    gates=[dict(kind="threshold", metric="auc", at_least=0.5), dict(kind="threshold", metric="log_loss", at_most=1.0)],
)
"""
FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables
from evergreen.features.columns import period_of

EXAMPLES = ("event_timestamp", "key", "amount", "is_late", "label_known_at")
RECENT = ("event_timestamp", "key", "last_amount", "last_place", "seconds")

def build(spark, raw, periods, calendar):
    events = raw["events"].withColumn(calendar.partition_key, period_of(F.col("at"), calendar))
    events = events.withColumn("event_timestamp", F.col("at"))
    yield FeatureTables({"examples": EXAMPLES}, events.select(
        calendar.partition_key, *EXAMPLES[:-1], F.col("at").alias("label_known_at")))
    yield FeatureTables({"recent": RECENT}, events.select(
        calendar.partition_key, "event_timestamp", "key", F.col("amount").alias("last_amount"),
        F.col("place").alias("last_place"), F.unix_seconds("at").alias("seconds")))
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe

def raw_expectations(source, period):
    return [gxe.ExpectColumnValuesToNotBeNull(column="key"),
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["key", "at"]),
            gxe.ExpectColumnValuesToBeBetween(column="amount", min_value=0, max_value=1)]

def feature_expectations(table):
    return [gxe.ExpectColumnValuesToNotBeNull(column="key"),
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["key", "event_timestamp"])]
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64, Int64, String
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

recent = FeatureView(
    name="recent", entities=[Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)],
    ttl=timedelta(days=1), source=feature_source("events", "recent"),
    schema=[Field(name="last_amount", dtype=Float64), Field(name="last_place", dtype=String),
            Field(name="seconds", dtype=Int64)])
events = FeatureService(name="events", features=[recent[["last_amount", "seconds"]]])  # trees take no text
"""
# Rows come in no order, and each key has one about every two hours.
EVENTS = """
    SELECT (hash(i) % {keys})::BIGINT AS key,
        TIMESTAMPTZ '{day} 00:00:00+00' + to_microseconds((i * 86400000000 // {rows})::BIGINT) AS at,
        (hash(i, 1) % 1000000) / 1e6 AS amount, 'place ' || hash(i, 2) % 100 AS place,
        (hash(i, 3) % 100 < 10 + 40 * amount)::INTEGER AS is_late
    FROM range({rows}) AS rows(i) ORDER BY hash(i, 4) % 64
"""


@dataclass(frozen=True)
class Measurement:
    own_mib: float
    started_mib: float  # of the processes that the step started, the largest
    seconds: float
    cpu_seconds: float


def validate(model: Any) -> Any:
    from evergreen.features import checks

    return checks.validate_raw_files(model, DAYS)


def build(model: Any, fingerprints: dict[str, str]) -> Any:
    from evergreen.features import build

    return build.build_features(model, fingerprints)


def check(model: Any, folders: dict[str, str]) -> Any:
    from evergreen.features import checks

    return checks.validate_features(model, folders)


def publish(model: Any, fingerprints: dict[str, str], folders: dict[str, str]) -> Any:
    from evergreen.features import pipeline

    return pipeline.publish_features(model, fingerprints, folders)


def materialize(model: Any) -> Any:
    from evergreen.feature_store import online_store

    return online_store.materialize_features(model, window(model))


def training_set(model: Any) -> Any:
    from evergreen.feature_store import training_sets

    return training_sets.build_training_set(model, window(model)).reference


def train(model: Any, examples: dict[str, str]) -> Any:
    from evergreen.feature_store import training_sets
    from evergreen.training.backends import process

    source = training_sets.training_set_dataset(model)
    columns = training_sets.model_input_columns(model)
    return process.train_in_process(model, source.resolve(examples), source, columns).reference


def evaluate(model: Any, examples: dict[str, str], candidate: dict[str, str]) -> Any:
    from evergreen import evaluation
    from evergreen.feature_store import training_sets
    from evergreen.training import candidates

    examples_manifest = training_sets.training_set_dataset(model).resolve(examples)
    candidate_manifest = candidates.candidate_dataset(model).resolve(candidate)
    return evaluation.collect_evidence(model, examples_manifest, candidate_manifest, None).reference


STEPS: Mapping[Callable[..., Any], tuple[str, ...]] = {
    validate: (),
    build: ("validate",),
    check: ("build",),
    publish: ("validate", "check"),
    materialize: (),
    training_set: (),
    train: ("training_set",),
    evaluate: ("training_set", "train"),
}
"""Each step, and the steps whose results it is given."""


def window(model: Any) -> Any:
    from evergreen.window import RunReason, Window

    return Window.from_range(DAYS[0], AS_OF, RunReason.MANUAL, model.features.calendar)


def run_step(name: str, results: Path) -> Measurement:
    """Run a step in this process, and keep its result for those that follow."""
    from evergreen.spec.loader import load_spec

    [step] = [step for step in STEPS if step.__name__ == name]
    peak, stopped = [0.0], threading.Event()

    def look() -> None:
        while not stopped.wait(LOOK_S):
            for process in psutil.Process().children(recursive=True):
                with suppress(OSError, StopIteration):
                    peak[0] = max(peak[0], peak_mib(process.pid))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    began = time.monotonic()
    result = step(load_spec(NAME), *(json.loads((results / f"{earlier}.json").read_text()) for earlier in STEPS[step]))
    wall = time.monotonic() - began
    (results / f"{name}.json").write_text(json.dumps(result))
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    cpu = sum(spent.user + spent.system for spent in times) + times[0].children_user + times[0].children_system
    stopped.set()
    looking.join()
    return Measurement(peak_mib(os.getpid()), peak[0], wall, cpu)


def peak_mib(process: int) -> float:
    """Return the most memory that was resident, of a process."""
    with open(f"/proc/{process}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def deliver(home: Path, rows: int) -> None:
    """Write the raw files of all days where the model looks for them."""
    import duckdb

    for day in DAYS:
        folder = home / "lake" / "raw" / NAME / f"day={day}"
        folder.mkdir(parents=True)
        query = EVENTS.format(rows=rows, keys=rows // ROWS_PER_KEY, day=day)
        with duckdb.connect(config={"memory_limit": "1GB", "temp_directory": str(home / "spill")}) as con:
            con.execute("SET TimeZone = 'UTC'")
            con.execute(f"COPY ({query}) TO '{folder / NAME}.parquet' (FORMAT parquet)")


def measure(rows: int, steps: Sequence[str], scratch: Path) -> dict[str, Measurement]:
    """Run the steps at `rows` a day; those that failed are left out, with all that follow."""
    home = scratch / "home"
    modules = {"model": SPEC, "features": FEATURES, "expectations": EXPECTATIONS, "train": TRAINING.read_text()}
    trainer = {
        "EVERGREEN_TRAINER": sys.executable,
        "EVERGREEN_TRAINER_REQUIREMENTS": str(ROOT / "trainer/requirements.txt"),
    }
    variables = environment(home, **write_project(scratch / "project", NAME, modules, DEFINITIONS), **trainer)
    subprocess.run([sys.executable, __file__, "--deliver", str(rows), "--home", str(home)], env=variables, check=True)
    measurements = {}
    for name in steps:
        command = [sys.executable, __file__, "--step", name, "--home", str(home)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} at {rows:,} rows a day ended with {done.returncode}:\n{done.stderr[-2000:]}")
            break
        measurements[name] = Measurement(**json.loads(done.stdout.splitlines()[-1]))
        print(f"{rows:>12,} {name:<14} {measurements[name]}", file=sys.stderr, flush=True)
    return measurements


def show(sizes: Mapping[int, Mapping[str, Measurement]]) -> None:
    (_, small), (_, large) = sizes.items()
    print(f"\n{'':<14}" + "".join(f"{f'{rows:,} rows a day':>44}" for rows in sizes) + f"{'memory ÷':>16}")
    header = f"{'MiB':>12}{'started, MiB':>14}{'s':>9}{'CPU s':>9}"
    print(f"{'step':<14}{header}{header}{'own':>8}{'started':>8}")
    for name in [name for name in small if name in large]:
        line = f"{name:<14}"
        for step in (small[name], large[name]):
            line += f"{step.own_mib:>12,.0f}{step.started_mib:>14,.0f}{step.seconds:>9.1f}{step.cpu_seconds:>9.1f}"
        started = large[name].started_mib / small[name].started_mib if small[name].started_mib else 0
        print(line + f"{large[name].own_mib / small[name].own_mib:>8.2f}" + (f"{started:>8.2f}" if started else ""))


def main() -> None:
    names = [step.__name__ for step in STEPS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a day at the smaller size")
    parser.add_argument("--times", type=int, default=10, help="rows of a day at the larger size ÷ at the smaller one")
    parser.add_argument("--steps", default=",".join(names), help="comma separated; each needs those before it")
    parser.add_argument("--full", action="store_true", help="1 million rows a day, and 30 times as many")
    parser.add_argument("--step", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--deliver", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.deliver:
        return deliver(arguments.home, arguments.deliver)
    if arguments.step:
        print("\n" + json.dumps(asdict(run_step(arguments.step, arguments.home))))
        return
    first, times = (1_000_000, 30) if arguments.full else (arguments.rows, arguments.times)
    sizes = {}
    for rows in (first, first * times):
        with tempfile.TemporaryDirectory(prefix="evergreen-bench-") as scratch:
            sizes[rows] = measure(rows, arguments.steps.split(","), Path(scratch))
    show(sizes)


if __name__ == "__main__":
    main()
