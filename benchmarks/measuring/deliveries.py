"""A made-up model for benchmarks: which parcels will be delivered late, by what is known when they are handed in.

Raw data has two sources, a file of each per day: parcels, and what sensors in the depots read each hour. Days differ:
each has weather, a weekday and a mix of parcels of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pandas as pd

from evergreen.periods import Calendar

NAME = "deliveries"
FIRST = "2024-01-01"
CALENDAR = Calendar("1d", "UTC")
LABEL_DELAY_DAYS = 2
TRAIN_DAYS, HOLDOUT_DAYS = 56, 28
REFERENCE_DAYS = TRAIN_DAYS + HOLDOUT_DAYS + LABEL_DELAY_DAYS
DEPOTS, PARCELS = 6, 2000
SERVICES = ("standard", "economy", "freight")
_SHARES = (0.6, 0.3, 0.1)
_MEMORY = 0.3  # of what days differ by
_HOUR = np.timedelta64(3600, "s")

SPEC = f"""
from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="{NAME}", owner="bench", feature_service="{NAME}", label="late", kind="binary", schedule="0 0 * * 1",
    request_columns=["weight", "distance", "service"],
    features=dict(
        timezone="UTC", first_day="{FIRST}", spine="parcels", views=["depots"],
        sources=[
            dict(name="parcels", columns=dict(
                parcel=dict(type="int64", nullable=False), made_at="timestamp[us, tz=UTC]", depot="int64",
                weight=dict(type="float64", unit="kg"), distance=dict(type="float64", unit="miles"), service="string",
                late="float64", known_at="timestamp[us, tz=UTC]")),
            dict(name="readings", columns=dict(
                depot="int64", read_at="timestamp[us, tz=UTC]", temperature=dict(type="float64", unit="°C"),
                load="float64")),
        ],
    ),
    train="{TRAIN_DAYS}d", holdout="{HOLDOUT_DAYS}d", label_delay="{LABEL_DELAY_DAYS}d",
    parameters=dict(rounds=40, max_depth=4, learning_rate=0.1),
    gates=[
        dict(kind="threshold", metric="auc", at_least=0.6),
        dict(kind="against_champion", metric="log_loss", must_be="not_worse", margin=0.05),
    ],
)
"""
FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables

PARCEL_COLUMNS = ("event_timestamp", "parcel", "depot", "weight", "distance", "service", "late", "label_known_at")
DEPOT_COLUMNS = ("event_timestamp", "depot", "temperature", "load")

def build(spark, raw, days, calendar):
    def of_days(table, time):
        rows = table.withColumn("day", F.date_format(time, "yyyy-MM-dd")).where(F.col("day").isin(list(days)))
        return rows.withColumn("event_timestamp", F.col(time))
    parcels = of_days(raw["parcels"], "made_at").withColumn("label_known_at", F.col("known_at"))
    parcels = parcels.withColumn("late", F.col("late").cast("int"))
    return [FeatureTables({"parcels": PARCEL_COLUMNS}, parcels.select("day", *PARCEL_COLUMNS)),
            FeatureTables({"depots": DEPOT_COLUMNS}, of_days(raw["readings"], "read_at").select("day", *DEPOT_COLUMNS))]
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe

def between(column, low, high):
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)

def raw_expectations(source, period):
    if source == "readings":
        return [gxe.ExpectTableRowCountToBeBetween(min_value=72, max_value=144), between("temperature", -40, 60)]
    return [gxe.ExpectTableRowCountToBeBetween(min_value=600, max_value=5000),
            gxe.ExpectColumnValuesToBeUnique(column="parcel"),
            between("weight", 0, 200), between("distance", 0, 4000)]

def feature_expectations(table):
    return [gxe.ExpectTableRowCountToBeBetween(min_value=50),
            gxe.ExpectColumnValuesToNotBeNull(column="depot")]
"""
TRAIN = """
import pyarrow as pa
import xgboost as xgb
from evergreen.training import open_training_rows
from evergreen.training.categories import Categories
from evergreen.training.xgboost_rows import XGBoostRows

def fit(job, output, checkpoints):
    with open_training_rows(job) as rows:
        texts = [name for name in job.features if pa.types.is_string(rows.schema.field(name).type)]
        categories = Categories.find(rows, texts, unseen="other", min_rows=10)
        data = xgb.QuantileDMatrix(XGBoostRows(rows, job, categories), nthread=job.threads, enable_categorical=True)
    options = {name: value for name, value in job.parameters.items() if name != "rounds"}
    options |= {"objective": "binary:logistic", "tree_method": "hist", "nthread": job.threads, "seed": job.seed}
    booster = xgb.train(options, data, num_boost_round=int(job.parameters["rounds"]))
    categories.save_xgboost(booster, output / "model.ubj")
    return {"rows": float(rows.count)}
"""
DEFINITIONS = f"""
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

depot = Entity(name="depot", join_keys=["depot"], value_type=ValueType.INT64)
depots = FeatureView(
    name="depots", entities=[depot], ttl=timedelta(days=2), source=feature_source("{NAME}", "depots"),
    schema=[Field(name="temperature", dtype=Float64), Field(name="load", dtype=Float64)],
)
deliveries = FeatureService(name="{NAME}", features=[depots])
"""
MODULES: Mapping[str, str] = {"model": SPEC, "features": FEATURES, "expectations": EXPECTATIONS, "train": TRAIN}


@dataclass(frozen=True)
class RawDay:
    """The rows of both sources of a day; None: the file is not delivered."""

    parcels: pd.DataFrame | None
    readings: pd.DataFrame | None


def days(first: int, end: int) -> list[str]:
    """Return the days from number `first` to before number `end`; 0 is the first one."""
    return [CALENDAR.shift(FIRST, number) for number in range(first, end)]


def draw_days(count: int, seed: int) -> list[RawDay]:
    """Return the first days, as they are without a fault."""
    rng = np.random.default_rng(seed)
    levels = rng.standard_normal((count, 5))
    for number in range(1, count):
        levels[number] = _MEMORY * levels[number - 1] + np.sqrt(1 - _MEMORY**2) * levels[number]
    return [_draw_day(number, levels[number], np.random.default_rng([seed, number])) for number in range(count)]


def _draw_day(number: int, levels: np.ndarray, rng: np.random.Generator) -> RawDay:
    day = date.fromisoformat(FIRST) + timedelta(number)
    midnight, is_weekend = np.datetime64(day, "us"), day.weekday() >= 5
    hours = np.arange(24)
    # Within a day, temperatures are near one another; days, and a slow wave, differ more.
    daily = 3 * np.sin(hours / 24 * 2 * np.pi - 2) + 8 + 5 * np.sin(number / 15) + 2 * levels[0]
    temperature = daily + rng.normal(0, 0.7, (DEPOTS, 24))
    load = np.exp(0.15 * levels[1] + 0.4 * np.sin(hours / 24 * 2 * np.pi - 1) + rng.normal(0, 0.4, (DEPOTS, 24)))
    readings = pd.DataFrame(
        {
            "depot": np.repeat(np.arange(DEPOTS), 24),
            "read_at": np.tile(midnight + hours * _HOUR, DEPOTS),
            "temperature": temperature.ravel().round(1),
            "load": load.ravel(),
        }
    )
    rows = int(rng.poisson(PARCELS * (0.7 if is_weekend else 1) * np.exp(0.05 * levels[2])))
    seconds = 3600 * (6 + 16 * rng.beta(2, 2.5, rows))
    depot, hour = rng.integers(0, DEPOTS, rows), (seconds // 3600).astype(int)
    weight, distance = rng.lognormal(0.5, 0.8, rows), rng.gamma(2, 60 * np.exp(0.05 * levels[3]), rows)
    odds = np.log(_SHARES) + 0.1 * levels[4] * np.array([1, 0, -1])
    service = rng.choice(SERVICES, rows, p=np.exp(odds) / np.exp(odds).sum())
    score = 0.02 * (distance - 120) + 1.2 * (load[depot, hour] - 1) + 1.0 * (service == "economy") - 1.2
    made_at = midnight + (seconds * 1e6).astype("timedelta64[us]")
    parcels = pd.DataFrame(
        {
            "parcel": 10_000 * number + np.arange(rows),
            "made_at": made_at,
            "depot": depot,
            "weight": weight.round(2).clip(0.05, 200),
            "distance": distance.round(1).clip(0.5, 4000),
            "service": service,
            "late": (rng.random(rows) < 1 / (1 + np.exp(-score))).astype(float),
            "known_at": made_at + (rng.uniform(8, 40, rows) * 3600e6).astype("timedelta64[us]"),
        }
    )
    return RawDay(parcels, readings)
