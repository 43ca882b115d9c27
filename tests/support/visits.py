"""Visits to shops, several of them at each minute, whose features are as broken as a test wants them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.ingest.raw_files import raw_file
from evergreen.settings import REPOSITORY
from evergreen.spec.model import ModelSpec
from support.small_models import UseModels, write_small_model

DAY = "2024-03-05"
COUNT = 240
SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="visits", owner="tests", feature_service="visits", label="is_large", request_columns=["rank"],
    features=dict(timezone="UTC", first_day="2024-03-01", spine="examples", views=["spending"], sources=[
        dict(name="visits", known_at="at", columns={
            "visit": "int64", "at": dict(type="timestamp[us, tz=UTC]", nullable=False), "shop": "string",
            "amount": "float64", "it's \\"odd\\"": "string"})]),
    schedule="0 0 * * 1", train="5d", parameters=dict(rounds=3, max_depth=2), training_libraries=["xgboost-cpu"],
    holdout="2d", gates=[dict(kind="threshold", metric="auc", at_least=0.1)],
)
"""
_FEATURES = """
from pyspark.sql import Window, functions as F
from evergreen.features import FeatureTables

SEEN = Window.partitionBy("shop").orderBy("at", "visit")
DAY = Window.partitionBy("shop")

def build(spark, raw, days, calendar):
    visits = raw["visits"].withColumn("day", F.to_date("at").cast("string")).withColumn("event_timestamp", F.col("at"))
    examples = visits.select("day", "event_timestamp", "visit", ({rank}).alias("rank"),
                             (F.col("amount") > 5).cast("int").alias("is_large"), F.col("at").alias("label_known_at"))
    spending = visits.select("day", "event_timestamp", "shop", "visit", ({spent}).alias("spent"),
                             F.col("`it's \\"odd\\"`").alias("it's \\"odd\\""))
    return [FeatureTables({{"examples": ("event_timestamp", "visit", "rank", "is_large", "label_known_at")}}, examples),
            FeatureTables({{"spending": ("event_timestamp", "shop", "visit", "spent", "it's \\"odd\\"")}}, spending)]
"""
_EXPECTATIONS = """
import great_expectations.expectations as gxe
def raw_expectations(source, day): return [gxe.ExpectColumnValuesToNotBeNull(column="visit")]
def feature_expectations(table): return [gxe.ExpectColumnValuesToNotBeNull(column="event_timestamp")]
"""

RANK = "F.row_number().over(SEEN)"
SPENT = 'F.sum("amount").over(SEEN)'


_DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

visit = Entity(name="visit", join_keys=["visit"], value_type=ValueType.INT64)
spending = FeatureView(name="spending", entities=[visit], ttl=timedelta(days=1),
                       source=feature_source("visits", "spending"), schema=[Field(name="spent", dtype=Float64)])
visits = FeatureService(name="visits", features=[spending])
"""


def write_model(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_models: UseModels,
    *,
    rank: str = RANK,
    spent: str = SPENT,
    spec: str = SPEC,
) -> ModelSpec:
    """Write the model `visits` below `root`, with these expressions of Spark as its features; return its spec."""
    modules = {
        "model": spec,
        "features": _FEATURES.format(rank=rank, spent=spent),
        "expectations": _EXPECTATIONS,
        "train": (REPOSITORY / "include/evergreen_models/flight_delay/train.py").read_text(),
    }
    return write_small_model("visits", root, monkeypatch, use_models, _DEFINITIONS, **modules)


def deliver(rows: int = COUNT, day: str = DAY) -> None:
    """Write visits of three shops, several of them at each minute, in an order of their own."""
    numbers = sorted(range(rows), key=lambda n: n * 7919 % 104729)
    midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
    file = raw_file("visits", day)
    file.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "visit": pa.array(numbers, pa.int64()),
        "at": pa.array([midnight + timedelta(minutes=5 * (n // 3)) for n in numbers], pa.timestamp("us", "UTC")),
        "shop": pa.array([f"shop {n % 3}" for n in numbers], pa.string()),
        "amount": pa.array([(n * 37 % 101) / 7 for n in numbers], pa.float64()),
        'it\'s "odd"': pa.array([None if n % 4 else "é'\"" for n in numbers], pa.string()),
    }
    pq.write_table(pa.table(table), file)
