"""A model whose features are published without its features DAG: hundreds of readings a day, of 45 days."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.features import inputs
from evergreen.lake import datasets, fingerprints
from evergreen.periods import Calendar
from evergreen.spec.model import ModelSpec
from support.calendars import later
from support.small_models import expect_not_null

NAME = "pumps"
FIRST, LAST = "2024-01-01", "2024-02-14"
_CALENDAR = Calendar("1d", "UTC")
_ROWS, _PUMPS = 240, 12

_SPEC = f"""
from evergreen.spec.model import ModelSpec

MODEL = ModelSpec(
    name="{NAME}", owner="tests", feature_service="{NAME}", label="flow", schedule="0 0 * * 1", kind="regression",
    features=dict(
        timezone="UTC", first_day="{FIRST}", last_day="{LAST}", spine="asked", views=["readings"],
        sources=[dict(name="pump_log", columns={{"at": "timestamp[us, tz=UTC]", "pump": "int64"}})],
    ),
    train="30d", holdout="7d", training_libraries=["xgboost-cpu"], parameters={{"rounds": 20}},
    gates=[dict(kind="threshold", metric="rmse", at_most=5.0)],
    monitor=dict(), retrain_on=dict(alarms=["break"], cooldown="2d", budget=1, schedule=False),
)
"""
_FEATURES = """
def build(spark, raw, days, calendar):
    return []  # `publish` publishes them
"""
_TRAIN = """
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=table[job.label].to_pylist(), nthread=1)
    options = {"max_depth": 3, "nthread": 1, "seed": job.seed}
    xgb.train(options, data, job.parameters["rounds"]).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
_DEFINITIONS = f"""
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType

from evergreen.feature_store.repository import feature_source

pump = Entity(name="pump", join_keys=["pump"], value_type=ValueType.INT64)
readings = FeatureView(
    name="readings", entities=[pump], ttl=timedelta(days=2), source=feature_source("{NAME}", "readings"),
    schema=[Field(name="pressure", dtype=Float64), Field(name="heat", dtype=Float64)],
)
service = FeatureService(name="{NAME}", features=[readings])
"""


def write_model(models: Path, feature_repo: Path) -> None:
    """Write the model folder below `models`, and its definitions into `feature_repo`."""
    folder = models / NAME
    folder.mkdir()
    modules = {
        "__init__": "",
        "model": _SPEC,
        "features": _FEATURES,
        "expectations": expect_not_null("pump"),
        "train": _TRAIN,
    }
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    (feature_repo / f"{NAME}.py").write_text(_DEFINITIONS)


def days(first: int, count: int) -> list[str]:
    return [later(FIRST, first + number) for number in range(count)]


def publish(model: ModelSpec, days_: Iterable[str], pressure_unit: float = 1.0) -> None:
    """Publish features of days, whose pressure is in a unit of this size."""
    dataset = inputs.features_dataset(model)
    for day, parts in inputs.feature_inputs(model, list(days_)).items():
        random = np.random.default_rng(_CALENDAR.count(FIRST, day))
        start = _CALENDAR.start(day)
        at = pa.array([start + timedelta(minutes=6 * row) for row in range(_ROWS)], pa.timestamp("us", "UTC"))
        pressure, heat = 3 + random.normal(0, 1, _ROWS) + random.normal(0, 0.1), random.normal(60, 5, _ROWS)
        shared = {
            "pump": pa.array([row % _PUMPS for row in range(_ROWS)], pa.int64()),
            "event_timestamp": at,
        }
        tables = {
            "asked": shared | {"flow": 2 * pressure + random.normal(0, 0.1, _ROWS), "label_known_at": at},
            "readings": shared | {"pressure": pressure * pressure_unit, "heat": heat},
        }
        partition, fingerprint = datasets.period_partition(day), fingerprints.compute_fingerprint(parts)
        staged = dataset.stage(partition, fingerprint)
        files = {name: staged / f"{name}.parquet" for name in tables}
        for name, file in files.items():
            pq.write_table(pa.table(tables[name]), file)
        dataset.publish(partition, fingerprint, files, parts)
