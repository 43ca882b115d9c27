"""What a day costs after ten years: CPU, and requests to an object store, with 3,650 days published and with 30.

    python benchmarks/history.py [--days 3650] [--runs 20] [--store]

One process for each length of history, with a Spark of its own, makes the days that follow one at a time, as a run
of the features DAG does: plan, claim, check raw, build, check, publish, and then materialization. The processes take
turns. CPU seconds of a process and its JVM, median of the runs. With `--store`, also with the lake in the S3 server of
the tests, which counts the requests. The model is as small as one may be, so that history shows.

Goals: the same number of requests, and at most 1.1 times the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from measuring.projects import write_project

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.s3_server import S3, running

FIRST = "2014-01-01"
ROWS = 100
SPEC = """
from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="sensors", owner="bench", feature_service="sensors", label="value", schedule="0 0 * * 1",
    features=dict(timezone="UTC", first_day="2014-01-01", spine="examples", views=["recent"],
                  sources=[dict(name="readings", trailing="1d", columns=dict(
                      sensor="int64", read_at="timestamp[us, tz=UTC]", value="float64"))]),
    gates=[dict(kind="threshold", metric="rmse", at_most=1e9)],
)
"""
FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables

def build(spark, raw, periods, calendar):
    rows = raw["readings"].withColumn("day", F.date_format("read_at", "yyyy-MM-dd"))
    rows = rows.where(F.col("day").isin(list(periods)))
    at = F.col("read_at").alias("event_timestamp")
    examples = rows.select("day", at, "sensor", "value", F.col("read_at").alias("label_known_at"))
    recent = rows.select("day", at, "sensor", F.col("value").alias("last_value"))
    return [FeatureTables({"examples": ("event_timestamp", "sensor", "value", "label_known_at")}, examples),
            FeatureTables({"recent": ("event_timestamp", "sensor", "last_value")}, recent)]
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe

def raw_expectations(source, period):
    return [gxe.ExpectColumnValuesToBeBetween(column="value", min_value=0, max_value=100)]

def feature_expectations(table):
    return [gxe.ExpectColumnValuesToNotBeNull(column="sensor")]
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

sensor = Entity(name="sensor", join_keys=["sensor"], value_type=ValueType.INT64)
recent = FeatureView(name="recent", entities=[sensor], ttl=timedelta(days=1),
                     source=feature_source("sensors", "recent"), schema=[Field(name="last_value", dtype=Float64)])
sensors = FeatureService(name="sensors", features=[recent])
"""


def deliver(days: Sequence[str]) -> None:
    """Write the raw file of each day."""
    from evergreen.ingest.raw_files import raw_file

    start = pa.array([0] * ROWS, pa.timestamp("us", "UTC"))
    for day in days:
        table = pa.table(
            {
                "sensor": range(ROWS),
                "read_at": pa.array([f"{day}T06:00:00"] * ROWS).cast(pa.timestamp("us")).cast(start.type),
                "value": [float(len(day) + n % 7) for n in range(ROWS)],
            }
        )
        raw_file("readings", day).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, raw_file("readings", day))


def publish(days: Sequence[str]) -> None:
    """Publish days without rows, with the manifests that the features DAG would write."""
    from evergreen.features import inputs
    from evergreen.lake import datasets, fingerprints
    from evergreen.spec import loader

    model = loader.load_spec("sensors")
    dataset = inputs.features_dataset(model)
    keys = [("event_timestamp", pa.timestamp("us", "UTC")), ("sensor", pa.int64())]
    schemas = {
        "examples": pa.schema([*keys, ("value", pa.float64()), ("label_known_at", pa.timestamp("us", "UTC"))]),
        "recent": pa.schema([*keys, ("last_value", pa.float64())]),
    }
    for day, parts in inputs.feature_inputs(model, days).items():
        fingerprint = fingerprints.compute_fingerprint(parts)
        staged = dataset.stage(datasets.period_partition(day), fingerprint)
        files = {name: staged / f"{name}.parquet" for name in schemas}
        for name, schema in schemas.items():
            pq.write_table(schema.empty_table(), files[name])
        dataset.publish(datasets.period_partition(day), fingerprint, files, parts)


def cpu_seconds() -> float:
    """Return those of this process and of the JVM that it has started."""
    import psutil

    me = psutil.Process()
    return float(sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True))))


def make_day(day: str) -> None:
    """Run the steps of the features DAG for a day, and materialize it."""
    from datetime import UTC, datetime

    from evergreen.feature_store import online_store
    from evergreen.features import planning
    from evergreen.features.pipeline import run_feature_pipeline
    from evergreen.periods import Calendar
    from evergreen.spec import loader
    from evergreen.window import DagRunInfo, RunReason, Window

    calendar, model = Calendar("1d", "UTC"), loader.load_spec("sensors")
    window = Window.from_range(day, calendar.shift(day, 1), RunReason.MANUAL, calendar)
    run = DagRunInfo(run_id=f"manual__{day}", run_type="manual", requested_at=datetime.now(UTC))
    periods = planning.periods_to_publish(model, run, window)
    claimed, _ = planning.claim_periods_to_build(model, run, periods, lambda **_: 0)
    assert claimed == [day]
    assert list(run_feature_pipeline(model, periods)) == [day]
    online_store.materialize_features(model, window)


def work(history: int, runs: int) -> None:
    """Publish `history` days; then make the next day for each line of the input, and print its CPU seconds."""
    from evergreen.periods import Calendar

    names = [Calendar("1d", "UTC").shift(FIRST, n) for n in range(history + runs)]
    deliver(names)
    publish(names[:history])
    print("ready", flush=True)
    for day in names[history:]:
        sys.stdin.readline()
        before = cpu_seconds()
        make_day(day)
        print(cpu_seconds() - before, flush=True)


@contextmanager
def worker(home: Path, history: int, runs: int, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, **variables, "EVERGREEN_HOME": str(home), "EVERGREEN_RAW": str(home / "raw")}
    command = [sys.executable, __file__, "--worker", str(history), "--runs", str(runs)]
    with open(home.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                raise SystemExit(home.with_suffix(".log").read_text())
            yield process
        finally:
            process.kill()
            process.wait()


def next_day(process: subprocess.Popen[str]) -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(
    lengths: Sequence[int], runs: int, scratch: Path, variables: dict[str, str], server: S3 | None
) -> list[Any]:
    """Return for each length of history the CPU seconds and the requests of each run."""
    figures: list[Any] = [[] for _ in lengths]
    scratch.mkdir()
    places = [scratch / str(length) for length in lengths]
    lakes = [{"EVERGREEN_LAKE": f"s3://bench/{length}"} if server else {} for length in lengths]
    with (
        worker(places[0], lengths[0], runs + 1, variables | lakes[0]) as few,
        worker(places[1], lengths[1], runs + 1, variables | lakes[1]) as many,
    ):
        for number in range(runs + 1):
            for process, figure in zip((few, many), figures, strict=True):
                first = len(server.requests) if server else 0
                cpu = next_day(process)
                requests = Counter(method for method, _ in server.requests[first:]) if server else Counter[str]()
                if number:  # the first warms up
                    figure.append((cpu, requests))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=3650)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--store", action="store_true", help="also with the lake in an S3 server")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.worker, arguments.runs)
        return
    scratch = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    modules = {"model": SPEC, "features": FEATURES, "expectations": EXPECTATIONS}
    variables = write_project(scratch / "project", "sensors", modules, DEFINITIONS)
    lengths = (30, arguments.days)

    def print_figures(name: str, figures: list[Any]) -> None:
        medians = [median(cpu for cpu, _ in runs) for runs in figures]
        requests = [sorted({json.dumps(dict(sorted(kinds.items()))) for _, kinds in runs}) for runs in figures]
        for length, cpu, kinds in zip(lengths, medians, requests, strict=True):
            print(f"{name:<16}{length:>8,} days{cpu:>8.2f} CPU s a day   {' or '.join(kinds)}")
        print(f"{name:<16}CPU, {lengths[1]:,} ÷ {lengths[0]} days: {medians[1] / medians[0]:.2f}", flush=True)

    print_figures("folder", measure(lengths, arguments.runs, scratch / "folder", variables, None))
    if arguments.store:
        with running("bench") as server:
            keys = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
            keys["AWS_DEFAULT_REGION"] = "us-east-1"
            print_figures("object store", measure(lengths, arguments.runs, scratch / "store", variables | keys, server))
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
