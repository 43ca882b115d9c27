"""A model folder as small as one may be: receipts of a shop with keys that are numbers, and a register of its tills."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.features import inputs
from evergreen.ingest.raw_files import raw_file
from evergreen.lake import datasets, fingerprints
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from support import small_models
from support.calendars import DAYS, later
from support.small_models import UseModels, expect_not_null, write_small_model

FIRST = "2024-01-01"
TILLS = 4

_SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="tills", owner="tests", feature_service="tills", label="late",
    features=dict(timezone="UTC", first_day="2024-01-01", spine="receipts", views=["takings"],
                  sources=[
                      dict(name="sales", trailing="1d", columns=dict(day="date32", till="int64", dollars="float64")),
                      dict(name="tills", is_register=True, columns=dict(till="int64", floor="int64")),
                  ]),
    schedule="0 0 * * 1", train="5d", holdout="2d",
    gates=[dict(kind="threshold", metric="rmse", at_most=100.0)],
)
"""
_FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables
from evergreen_models.tills.units import PER_DOLLAR


def build(spark, raw, days, calendar):
    sales = raw["sales"].where(F.col("day").isin(list(days))).join(raw["tills"], "till")
    at = F.to_timestamp("day").alias("event_timestamp")
    late = (F.col("dollars") > 5).cast("int").alias("late")
    receipts = sales.select("day", "till", at, late, at.alias("label_known_at"))
    takings = sales.select("day", "till", at, (F.col("dollars") * PER_DOLLAR).alias("takings"), "floor")
    return [FeatureTables({"receipts": ("till", "event_timestamp", "late", "label_known_at")}, receipts),
            FeatureTables({"takings": ("till", "event_timestamp", "takings", "floor")}, takings)]
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


def write_model(root: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels, has_views: bool = False) -> Path:
    """Write the model `tills` below `root`, with its definitions if it `has_views`, and return its folder."""
    write_small_model(
        "tills",
        root,
        monkeypatch,
        use_models,
        _DEFINITIONS if has_views else None,
        model=_SPEC,
        features=_FEATURES,
        units="PER_DOLLAR = 1.0\n",
        expectations=expect_not_null("till"),
    )
    return root / "evergreen_models/tills"


def change_spec(model: Path, old: str, new: str) -> ModelSpec:
    """Replace text of the spec in a model folder, and return the spec as it is now."""
    file = model / "model.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return reload_spec()


def reload_spec() -> ModelSpec:
    """Return the spec of the model, read again."""
    return small_models.reload_spec("tills")


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


TillVersion = tuple[int, str, str | None, int]
"""A row of the register with history: till, first day, day after the last (None: open), floor."""


def declare_history(model: Path, kind: str = "date32", trailing: str = "0d") -> ModelSpec:
    """Make the tills a register with history, of this type of times, and let `build` ask it for the floor of a day."""
    features, sales = model / "features.py", 'raw["sales"].where(F.col("day").isin(list(days)))'
    text, join = features.read_text(), f'{sales}.join(raw["tills"], "till")'
    assert join in text
    features.write_text(text.replace(join, f'raw["tills"].join_as_of({sales}, "day")'))
    begins, key = (dict(type=type_, nullable=False) for type_ in (kind, "int64"))
    declared = dict(
        name="tills",
        is_register=True,
        trailing=trailing,
        columns=dict(till=key, since=begins, until=kind, floor="int64"),
        history=dict(keys=["till"], valid_from="since", valid_to="until"),
    )
    register = 'dict(name="tills", is_register=True, columns=dict(till="int64", floor="int64"))'
    return change_spec(model, register, repr(declared))


def deliver_history(versions: Iterable[TillVersion]) -> None:
    """Deliver the register with history. Its times are days, or the midnights at which they begin."""
    spec = feature_spec(loader.load_spec("tills"))

    def times(texts: Iterable[str | None]) -> pa.Array:
        days = [text and date.fromisoformat(text) for text in texts]
        if spec.source("tills").has_dates_of_validity:
            return pa.array(days, pa.date32())
        return pa.array([day and spec.calendar.start(day.isoformat()) for day in days], pa.timestamp("us", "UTC"))

    tills, since, until, floors = zip(*versions, strict=True)
    table = pa.table({"till": tills, "since": times(since), "until": times(until), "floor": floors})
    pq.write_table(table, raw_file("tills"))


NO_ROWS = pa.schema([("event_timestamp", pa.timestamp("us", "UTC"))])
NO_ROWS_OF_VIEWS = pa.schema([*NO_ROWS, ("till", pa.int64()), ("takings", pa.float64()), ("floor", pa.int64())])


def publish(model: ModelSpec, days_: list[str], schema: pa.Schema = NO_ROWS) -> None:
    """Publish days without rows, with manifests as the features DAG makes them now."""
    dataset = inputs.features_dataset(model)
    for day, parts in inputs.feature_inputs(model, days_).items():
        partition = datasets.period_partition(day)
        fingerprint = fingerprints.compute_fingerprint(parts)
        staged = dataset.stage(partition, fingerprint)
        files = {name: staged / f"{name}.parquet" for name in feature_spec(model).tables}
        for file in files.values():
            pq.write_table(schema.empty_table(), file)
        dataset.publish(partition, fingerprint, files, parts)
