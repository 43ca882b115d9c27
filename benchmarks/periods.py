"""A backfill of hourly periods, against one of daily periods over the same rows.

    python benchmarks/periods.py [--hours 720] [--rows 2000]

Both through Airflow, scheduler and all, with a run per day, on engines that are up already: wall time and the CPU
seconds of every process of the stack. The two models differ in their period alone, and look back over the same day.
Goal: at most three times the CPU per row of daily periods, and a peak memory that does not grow with the hours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from evergreen.periods import Calendar
from measuring.stack import backfill, environment, metered, running

ROOT = Path(__file__).parents[1]
FIRST = "2024-01-01"
DAYS = Calendar("1d", "UTC")

SPEC = """
from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="{name}", owner="bench", feature_service="{name}", label="value", schedule="0 0 * * 1",
    features=dict(period="{period}", timezone="UTC", first_day="2024-01-01", schedule="0 0 * * *", spine="examples",
                  views=["recent"],
                  sources=[dict(name="{name}", trailing="1d", empty_periods="absent",
                                columns=dict(sensor="int64", read_at="timestamp[us, tz=UTC]", value="float64"))]),
    gates=[dict(kind="threshold", metric="rmse", at_most=1e9)],
)
"""
FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables
from evergreen.features.columns import period_of

def build(spark, raw, periods, calendar):
    [readings] = raw.values()
    key = calendar.partition_key
    rows = readings.withColumn(key, period_of(F.col("read_at"), calendar)).where(F.col(key).isin(list(periods)))
    examples = rows.select(key, F.col("read_at").alias("event_timestamp"), "sensor", "value",
                           F.col("read_at").alias("label_known_at"))
    recent = rows.groupBy(key, "sensor", F.date_trunc("hour", "read_at").alias("event_timestamp")).agg(
        F.avg("value").alias("mean_value"))
    return [FeatureTables({"examples": ("event_timestamp", "sensor", "value", "label_known_at")}, examples),
            FeatureTables({"recent": ("event_timestamp", "sensor", "mean_value")}, recent)]
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe

def raw_expectations(source, period):
    return [gxe.ExpectColumnValuesToBeBetween(column="value", min_value=0, max_value=1)]

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
recent = FeatureView(name="recent", entities=[sensor], ttl=timedelta(hours=1),
                     source=feature_source("{name}", "recent"),
                     schema=[Field(name="mean_value", dtype=Float64)])
{name} = FeatureService(name="{name}", features=[recent])
"""
DELIVER = """
import sys
from datetime import timedelta
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from evergreen.ingest.raw_files import raw_file
from evergreen.periods import Calendar

hours, rows = map(int, sys.argv[1:])
calendar = Calendar("1h", "UTC")
names = list(calendar.periods_between("2024-01-01T00:00Z", calendar.shift("2024-01-01T00:00Z", hours)))
by_day = {}
for number, hour in enumerate(names):
    random = np.random.default_rng(number)
    start = np.datetime64(calendar.start(hour).replace(tzinfo=None), "us")
    read_at = pa.array(start + np.arange(rows) * (3_600_000_000 // rows), pa.timestamp("us", "UTC"))
    table = pa.table({"sensor": np.arange(rows) % 100, "read_at": read_at, "value": random.random(rows)})
    by_day.setdefault(hour[:10], []).append(table)
    for model, period, content in (("hours", hour, table), ("days", hour[:10], None)):
        if model == "days":
            if hour[11:13] != "23":
                continue
            content = pa.concat_tables(by_day.pop(period)).combine_chunks()
        file = raw_file(model, period)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, file)
"""


@dataclass(frozen=True)
class Cost:
    wall: float
    cpu: float
    peak: float  # GiB


def write_project(folder: Path) -> dict[str, str]:
    """Write the two models, and return the variables that select them."""
    for name in ("dags", "models", "feature_repo"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "feature_repo/feature_store.yaml", folder / "feature_repo")
    dag_file = (ROOT / "dags/flight_delay.py").read_text()
    for name, period in (("days", "1d"), ("hours", "1h")):
        model = folder / "models" / name
        model.mkdir()
        (model / "__init__.py").touch()
        (model / "model.py").write_text(SPEC.format(name=name, period=period))
        (model / "features.py").write_text(FEATURES)
        (model / "expectations.py").write_text(EXPECTATIONS)
        (folder / "feature_repo" / f"{name}.py").write_text(DEFINITIONS.format(name=name))
        (folder / "dags" / f"{name}.py").write_text(dag_file.replace("flight_delay", name))
    models = os.pathsep.join([str(folder / "models"), os.environ.get("EVERGREEN_MODELS", "")]).rstrip(os.pathsep)
    return {
        "EVERGREEN_PROJECT": str(folder),
        "EVERGREEN_MODELS": models,
        "EVERGREEN_FEATURE_REPO": str(folder / "feature_repo"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, default=720, help="a multiple of 24")
    parser.add_argument("--rows", type=int, default=2_000, help="per hour")
    arguments = parser.parse_args()
    days = arguments.hours // 24
    scratch = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    variables = write_project(scratch / "project")

    def measure(name: str, days: int) -> Cost:
        home = scratch / f"{name}-{days}"
        command = [sys.executable, "-c", DELIVER, str(24 * days), str(arguments.rows)]
        subprocess.run(command, env=environment(home, **variables), check=True)
        with running(home, f"{name}.features", **variables) as airflow, metered(home) as meter:
            names = [DAYS.shift(FIRST, number) for number in range(days)]
            wall, cpu, _ = backfill(airflow, meter, f"{name}.features", DAYS, names, 4)
            cost = Cost(wall, cpu, meter.peak / 2**30)
        shutil.rmtree(home)
        return cost

    lines = {
        f"daily periods, {days} days": (days, measure("days", days)),
        f"hourly periods, {days // 3} days": (days // 3, measure("hours", days // 3)),
        f"hourly periods, {days} days": (days, measure("hours", days)),
    }
    shutil.rmtree(scratch, ignore_errors=True)

    print(f"\n{'':<32}{'wall s':>9}{'CPU s':>9}{'CPU s per million rows':>25}{'peak GiB':>10}")
    for name, (count, cost) in lines.items():
        per_million = 1e6 * cost.cpu / (24 * count * arguments.rows)
        print(f"{name:<32}{cost.wall:>9.1f}{cost.cpu:>9.1f}{per_million:>25.1f}{cost.peak:>10.2f}")
    (_, daily), (_, third), (_, hourly) = lines.values()
    print(f"\nhourly ÷ daily periods, CPU per row: {hourly.cpu / daily.cpu:.2f}")
    print(f"peak memory, {days} days of hours ÷ {days // 3}: {hourly.peak / third.peak:.2f}")


if __name__ == "__main__":
    main()
