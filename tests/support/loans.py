"""A tiny regression of loans, whose losses are known weeks later, in another time zone: all in one process."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evergreen.spec.model import ModelSpec
from evergreen.window import Window
from support.calendars import DAYS
from support.daily_features import publish_tables, retrain_window
from support.small_models import UseModels, write_small_model

ZONE = "Asia/Tokyo"
FIRST, LAST = "2024-01-01", "2024-04-30"
ROWS = 30
_SPEC = f"""
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="loans", owner="tests", feature_service="loans", label="loss", request_columns=["amount"],
    features=dict(timezone="{ZONE}", first_day="{FIRST}", spine="requests", views=["customers"],
                  sources=[dict(name="bookings", columns=dict(x="int64"))]),
    schedule="0 0 * * 1", train="21d", holdout="7d", label_delay="{{label_delay}}d",
    gates=[{{gates}}], {{options}}
)
"""
_TRAIN = """
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=table[job.label].to_numpy(), nthread=1)
    xgb.train({"max_depth": 3, "nthread": 1}, data, 20).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
_DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
customers = FeatureView(name="customers", entities=[customer], ttl=timedelta(days=1),
                        schema=[Field(name="debt", dtype=Float64)], source=feature_source("loans", "customers"))
loans = FeatureService(name="loans", features=[customers])
"""


def write_loans(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_models: UseModels,
    gates: str,
    label_delay: int,
    options: str = "",
    train: str = _TRAIN,
) -> ModelSpec:
    """Write the model `loans` with these gates, and publish features of all days from FIRST to LAST."""
    spec = _SPEC.format(label_delay=label_delay, gates=gates, options=options)
    model = write_small_model("loans", root, monkeypatch, use_models, _DEFINITIONS, model=spec, train=train)
    for day in DAYS.periods_between(FIRST, LAST):
        publish(day, label_delay)
    return model


def publish(day: str, label_delay: int) -> None:
    """Publish 30 requests of a day. Losses are known after `label_delay` days, large ones (the last rows) after ten."""
    random = np.random.default_rng(date.fromisoformat(day).toordinal())
    begins = DAYS.start(day)
    times = [begins + timedelta(minutes=30 * row) for row in range(ROWS)]
    debt, amount = np.sort(random.random(ROWS)) * 10, random.random(ROWS) * 10
    early = min(10, label_delay - 1)
    delays = [timedelta(days=early if row >= ROWS - 6 else label_delay - 1, hours=3) for row in range(ROWS)]
    instant = pa.timestamp("us", "UTC")
    keys = pa.array([1000 * date.fromisoformat(day).toordinal() + row for row in range(ROWS)], pa.int64())
    requests = {
        "event_timestamp": pa.array(times, instant),
        "customer": keys,
        "amount": amount,
        "loss": debt + amount + random.normal(size=ROWS),
        "label_known_at": pa.array([begins + delay for delay in delays], instant),
    }
    customers = {"event_timestamp": pa.array([begins] * ROWS, instant), "customer": keys, "debt": debt}
    publish_tables("loans", day, {"requests": requests, "customers": customers})


def window(model: ModelSpec, as_of: str) -> Window:
    return retrain_window(model, as_of, FIRST)
