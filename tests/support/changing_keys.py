"""Two models of other kinds, with features of their own, keys that come and go, and a period without rows.

`shelves` predicts one of three classes per day, `wards` three quantiles per week.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.ingest.raw_files import raw_file
from evergreen.periods import Calendar
from support.small_models import expect_not_null

CLASSES = ("full", 'it\'s "low"; <b>é', "o\\ut")
QUANTILES = (0.1, 0.5, 0.9)
ZONE = "Asia/Kolkata"
FIRST = "2024-01-01"
CALENDARS = {"shelves": Calendar("1d", ZONE), "wards": Calendar("1w", ZONE)}
PERIODS = 13
EMPTY = 10
"""The number of the period without rows."""
ROWS = 120
_STAY = 3  # periods that a key stays
_KEYS_PER_PERIOD = 4

_SPEC = """
from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="{name}", owner="tests", feature_service="{name}", label="outcome", schedule="0 0 * * 1", monitor=None,
    features=dict(
        period="{period}", timezone="{zone}", first_day="{first}", last_day="{last}", spine="{name}_asked",
        views=["{name}_sizes"],
        sources=[dict(name="{name}_rows", known_at="at", empty_periods="delivered", columns={{
            "at": dict(type="timestamp[us, tz=UTC]", nullable=False), "the key": "string", "size": "float64",
            "outcome": "{label_type}"}})],
    ),
    train="{train}", holdout="{holdout}", training_libraries=["xgboost-cpu"], {options}
    gates=[
        {gates}
        dict(kind="signature"),
        dict(kind="online_equals_offline", expired="last_value"),
    ],
)
"""
_FEATURES = """
from pyspark.sql import functions as F

from evergreen.features import FeatureTables
from evergreen.features.columns import period_of


def build(spark, raw, periods, calendar):
    rows = raw["{name}_rows"].select("*", F.col("at").alias("event_timestamp"), period_of(F.col("at"), calendar))
    asked = rows.select("day", "event_timestamp", "the key", "outcome", F.col("at").alias("label_known_at"))
    sizes = rows.select("day", "event_timestamp", "the key", "size")
    return [
        FeatureTables({{"{name}_asked": ("the key", "event_timestamp", "outcome", "label_known_at")}}, asked),
        FeatureTables({{"{name}_sizes": ("the key", "event_timestamp", "size")}}, sizes),
    ]
"""
_TRAIN = """
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    label = table[job.label].to_pylist()
    options = {"max_depth": 3, "nthread": 1, "seed": job.seed}
    if job.classes:
        label = [job.classes.index(value) for value in label]
        options |= {"objective": "multi:softprob", "num_class": len(job.classes)}
    else:
        options |= {"objective": "reg:quantileerror", "quantile_alpha": list(job.quantiles)}
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=label, nthread=1)
    xgb.train(options, data, 30).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
_DEFINITIONS = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType

from evergreen.feature_store.repository import feature_source

key = Entity(name="{name}_key", join_keys=["the key"], value_type=ValueType.STRING)
sizes = FeatureView(
    name="{name}_sizes", entities=[key], ttl=timedelta(days={ttl}), source=feature_source("{name}", "{name}_sizes"),
    schema=[Field(name="size", dtype=Float64)],
)
service = FeatureService(name="{name}", features=[sizes])
"""
_DETAILS = {
    "shelves": {
        "period": "1d",
        "label_type": "string",
        "train": "7d",
        "holdout": "6d",
        "options": f'kind="multiclass", classes={CLASSES!r},',
        "gates": 'dict(kind="threshold", metric="accuracy", at_least=0.6), dict(kind="baseline", metric="log_loss"),',
        "ttl": 3,
    },
    "wards": {
        "period": "1w",
        "label_type": "float64",
        "train": "8w",
        "holdout": "5w",
        "options": f'kind="quantile", quantiles={QUANTILES!r},',
        "gates": 'dict(kind="threshold", metric="quantile_loss", at_most=10.0),',
        "ttl": 21,
    },
}


def periods(name: str) -> Sequence[str]:
    """Return the periods that a model has raw data of, the empty one too."""
    calendar = CALENDARS[name]
    first = calendar.first_of(date.fromisoformat(FIRST))
    return list(calendar.periods_between(first, calendar.shift(first, PERIODS)))


def write_models(models: Path, feature_repo: Path) -> None:
    """Write the two folders below `models`, and their definitions into `feature_repo`."""
    for name, details in _DETAILS.items():
        calendar, names = CALENDARS[name], periods(name)
        last = calendar.end(names[-1]).astimezone(ZoneInfo(ZONE)).date() - timedelta(days=1)
        values = {"name": name, "zone": ZONE, "first": FIRST, "last": last, **details}
        modules = {
            "__init__": "",
            "model": _SPEC.format(**values),
            "features": _FEATURES.format(**values),
            "expectations": expect_not_null("the key"),
            "train": _TRAIN,
        }
        (models / name).mkdir()
        for module, text in modules.items():
            (models / name / f"{module}.py").write_text(text)
        (feature_repo / f"{name}.py").write_text(_DEFINITIONS.format(**values))


def keys_of(number: int) -> list[str]:
    """Return the keys of a period: each comes in one, stays for three, and goes."""
    first = max(0, number - _STAY + 1)
    return [f"k'e\"y;\n{come} é{place}" for come in range(first, number + 1) for place in range(_KEYS_PER_PERIOD)]


def deliver(name: str) -> None:
    """Deliver the raw files of all periods."""
    calendar = CALENDARS[name]
    for number, period in enumerate(periods(name)):
        random, count = np.random.default_rng(number), 0 if number == EMPTY else ROWS
        start, step = calendar.start(period), (calendar.end(period) - calendar.start(period)) / (ROWS + 1)
        size, keys = random.random(count) * 9, keys_of(number)
        outcomes: list[str] | list[float] = (size + random.gamma(2, 1, count)).tolist()
        if name == "shelves":
            outcomes = [CLASSES[int(value // 3)] for value in size]
        table = {
            "at": pa.array([start + row * step for row in range(count)], pa.timestamp("us", "UTC")),
            "the key": pa.array([keys[row % len(keys)] for row in range(count)], pa.string()),
            "size": pa.array(size, pa.float64()),
            "outcome": pa.array(outcomes, pa.string() if name == "shelves" else pa.float64()),
        }
        file = raw_file(f"{name}_rows", period)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), str(file))
