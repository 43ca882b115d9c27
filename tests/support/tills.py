"""A model folder as small as one may be: receipts of a shop with keys that are numbers, and a register of its tills."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.features import inputs
from evergreen.lake import datasets, fingerprints
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from support.calendars import DAYS, later

FIRST = "2024-01-01"
TILLS = 4

_SPEC = """
from evergreen.spec.model import ModelSpec
from support.calendars import DAYS, later
MODEL = ModelSpec(
    name="tills", owner="tests", feature_service="tills", label="late",
    features=dict(timezone="UTC", first_day="2024-01-01", spine="receipts", views=["takings"],
                  sources=[
                      dict(name="sales", trailing="1d", columns=dict(day="date32", till="int64", dollars="float64")),
                      dict(name="tills", daily=False, columns=dict(till="int64", floor="int64")),
                  ]),
    schedule="0 0 * * 1", train="5d", holdout="2d",
    gates=[dict(kind="threshold", metric="rmse", at_most=100.0)],
)
"""
_FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables
from evergreen_models.tills.units import PER_DOLLAR


def build(spark, raw, days, timezone):
    sales = raw["sales"].where(F.col("day").isin(list(days))).join(raw["tills"], "till")
    at = F.to_timestamp("day").alias("event_timestamp")
    late = (F.col("dollars") > 5).cast("int").alias("late")
    receipts = sales.select("day", "till", at, late, at.alias("label_known_at"))
    takings = sales.select("day", "till", at, (F.col("dollars") * PER_DOLLAR).alias("takings"), "floor")
    return [FeatureTables({"receipts": ("till", "event_timestamp", "late", "label_known_at")}, receipts),
            FeatureTables({"takings": ("till", "event_timestamp", "takings", "floor")}, takings)]
"""
_EXPECTATIONS = """
import great_expectations.expectations as gxe


def raw_expectations(source, day):
    return [gxe.ExpectColumnValuesToNotBeNull(column="till")]


def feature_expectations(table):
    return [gxe.ExpectColumnValuesToNotBeNull(column="till")]
"""
_DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64, Int64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

till = Entity(name="till", join_keys=["till"], value_type=ValueType.INT64)
takings = FeatureView(name="takings", entities=[till], ttl=timedelta(days=1), source=feature_source("tills", "takings"),
                      schema=[Field(name="takings", dtype=Float64), Field(name="floor", dtype=Int64)])
tills = FeatureService(name="tills", features=[takings])
"""


def write_model(folder: Path) -> Path:
    """Write the folder `tills` of the model into `folder`, and return it."""
    model = folder / "tills"
    model.mkdir(parents=True)
    files = {
        "__init__.py": "",
        "model.py": _SPEC,
        "features.py": _FEATURES,
        "units.py": "PER_DOLLAR = 1.0\n",
        "expectations.py": _EXPECTATIONS,
    }
    for name, text in files.items():
        (model / name).write_text(text)
    return model


def write_definitions(feature_repo: Path) -> None:
    """Write the model's file in a feature repository."""
    (feature_repo / "tills.py").write_text(_DEFINITIONS)


def change_spec(model: Path, old: str, new: str) -> ModelSpec:
    """Replace text of the spec in a model folder, and return the spec as it is now."""
    file = model / "model.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return reload_spec(model)


def reload_spec(model: Path) -> ModelSpec:
    """Return the spec in a model folder, read again."""
    import sys

    loader.load_spec.cache_clear()
    for name in [name for name in sys.modules if name.startswith(f"evergreen_models.{model.name}")]:
        del sys.modules[name]
    return loader.load_spec(model.name)


def days(count: int) -> list[str]:
    """Return the first days of the data."""
    return [later(FIRST, n) for n in range(count)]


def deliver(count: int, floors: int = 2, raise_by: float = 0.0) -> None:
    """Deliver the raw files of the first days: one sale per till and day, in an order of their own."""
    for file in inputs.raw_files_for_periods(feature_spec(loader.load_spec("tills")), days(count)):
        file.path.parent.mkdir(parents=True, exist_ok=True)
        tills = [(n * 7 + 3) % TILLS for n in range(TILLS)]
        if file.period is None:
            table = pa.table({"till": tills, "floor": [till % floors for till in tills]})
        else:
            number = DAYS.count(FIRST, file.period)
            dollars = [float(till + number) + raise_by for till in tills]
            table = pa.table(
                {"day": pa.array([date.fromisoformat(file.period)] * TILLS), "till": tills, "dollars": dollars}
            )
        pq.write_table(table, file.path)


def publish(model: ModelSpec, days_: list[date]) -> None:
    """Publish days without rows, with manifests as the features DAG makes them now."""
    dataset = inputs.features_dataset(model)
    for day, parts in inputs.feature_inputs(model, days_).items():
        partition = datasets.period_partition(day)
        fingerprint = fingerprints.compute_fingerprint(parts)
        staged = dataset.stage(partition, fingerprint)
        files = {name: staged / f"{name}.parquet" for name in feature_spec(model).tables}
        for file in files.values():
            pq.write_table(pa.table({"event_timestamp": pa.array([], pa.timestamp("us", "UTC"))}), file)
        dataset.publish(partition, fingerprint, files, parts)
