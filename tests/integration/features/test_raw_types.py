"""Raw files of other types than declared, and days with faults or without events, from the file to the features."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import FaultyPeriodsError, FeatureError, RawDataError
from evergreen.features.inputs import features_dataset, stale_periods
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.ingest.raw_files import raw_file
from evergreen.spec.model import ModelSpec
from support.small_models import write_small_model

pytestmark = pytest.mark.integration

DAYS = [f"2013-03-{n:02d}" for n in (1, 2, 3)]
SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="till", owner="tests", feature_service="till", label="price", schedule="0 0 * * 1",
    features=dict(
        timezone="UTC", first_day="2013-03-01", spine="sold", views=["items"],
        sources=[
            dict(name="sales", trailing="1d", columns=dict(
                at=dict(type="timestamp[us, tz=UTC]", nullable=False), item="string", amount="int64",
                price="decimal128(10, 2)",
            )),
            dict(name="returns", empty_periods="absent", columns=dict(item="string")),
        ],
    ),
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables

def build(spark, raw, days, calendar):
    sales = raw["sales"].withColumn("day", F.when(F.coalesce("item", F.lit("")) != "lost", F.to_date("at")))
    sales = sales.where(F.col("day").isin(list(days)) | F.col("day").isNull())
    amount = F.when(F.col("item") == "broken", F.raise_error(F.lit("no amount of it"))).otherwise(F.col("amount"))
    rows = sales.select("day", F.col("at").alias("event_timestamp"), "item", amount.alias("amount"), "price")
    rows = rows.where(F.lit("returns" in raw))
    sold = ("event_timestamp", "item", "amount", "price")
    return [FeatureTables({"sold": sold}, rows), FeatureTables({"items": sold[:3]}, rows.drop("price"))]
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe

def raw_expectations(source, day):
    return [gxe.ExpectColumnValuesToBeInSet(column="item", value_set=["tea", "lost", "broken"])]

def feature_expectations(table):
    return [gxe.ExpectTableRowCountToBeBetween(min_value=1)]
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Int64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

item = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)
items = FeatureView(name="items", entities=[item], ttl=timedelta(days=3), source=feature_source("till", "items"),
                    schema=[Field(name="amount", dtype=Int64)])
till = FeatureService(name="till", features=[items])
"""


@pytest.fixture
def write_till(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> Callable[..., ModelSpec]:
    """Return a function that writes the model, or a module of it again."""
    return partial(write_small_model, "till", tmp_path, monkeypatch, use_models)


@pytest.fixture
def till(write_till: Callable[..., ModelSpec]) -> ModelSpec:
    return write_till(DEFINITIONS, model=SPEC, features=FEATURES, expectations=EXPECTATIONS)


def noon(day: str, unit: str = "us") -> pa.Array:
    at = datetime.fromisoformat(f"{day}T12:00Z")
    return pa.array([at, at + timedelta(minutes=1)], pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC"))


def deliver(day: str, source: str = "sales", **columns: Any) -> Path:
    """Write the sales of a day; `columns` replaces some."""
    good = {
        "at": noon(day),
        "item": ["tea", None],
        "amount": [1, None],
        "price": pa.array([None, None], pa.decimal128(10, 2)),
    }
    file = raw_file(source, day)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**good, **columns}), file)
    return file


def published(model: ModelSpec, name: str = "sold") -> dict[str, list[dict[str, Any]]]:
    dataset = features_dataset(model)
    return {
        manifest.partition.removeprefix("day="): pq.read_table(dataset.file_path(manifest, name)).to_pylist()
        for manifest in dataset.manifests()
    }


def test_days_of_different_types_are_built_in_one_run(till: ModelSpec) -> None:
    deliver(DAYS[0], at=noon(DAYS[0], "ns"), item=pa.array(["tea", "tea"]).dictionary_encode(), amount=[1.0, None])
    deliver(DAYS[1], item=pa.nulls(2), amount=pa.array([2**32 - 1, 7], pa.uint32()), price=[5, 6])
    deliver(DAYS[2], item=pa.array(["tea", None], pa.large_string()), amount=pa.nulls(2))
    run_feature_pipeline(till, DAYS)
    rows = published(till)
    assert [[row["amount"] for row in rows[str(day)]] for day in DAYS] == [[1, None], [2**32 - 1, 7], [None, None]]
    assert [row["item"] for row in rows[str(DAYS[1])]] == [None, None]
    assert [str(row["price"]) for row in rows[str(DAYS[1])]] == ["5.00", "6.00"]
    schemas = {str(manifest.files["sold"].schema) for manifest in features_dataset(till).manifests()}
    assert len(schemas) == 1, schemas


def test_a_day_alone_and_in_a_batch_has_the_same_bytes(till: ModelSpec, home: Path) -> None:
    for day in DAYS:
        deliver(day, amount=pa.array([3, 1], pa.int32()))
    together = run_feature_pipeline(till, DAYS)
    shutil.rmtree(home / "lake/features")
    shutil.rmtree(home / "lake/declared")
    assert run_feature_pipeline(till, DAYS[1:2]) == {str(DAYS[1]): together[str(DAYS[1])]}


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4:40] = b"\xff" * 36
    file.write_bytes(bytes(content))


BAD = {
    "another type": (
        dict(amount=[0.5, 1.5]),
        "amount: 2 values of 2 rows cannot be read as int64 without loss, such as 0.5",
    ),
    "a null key": (dict(at=pa.array([None, None], pa.timestamp("us", "UTC"))), "at: 2 of 2 rows have no value"),
    "a bad value": (dict(item=["tea", "coffee"]), "column values to be in set"),
    "a row without a day": (dict(item=["tea", "lost"]), "sold: 1 rows have no day"),
    "a day that Spark cannot compute": (dict(item=["tea", "broken"]), "no amount of it"),
    "damaged pages": ({}, "is not a readable Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_day_fails_alone_in_its_own_words(till: ModelSpec, name: str) -> None:
    columns, words = BAD[name]
    for day in DAYS:
        file = deliver(day, **(columns if day == DAYS[2] else {}))
    if not columns:
        spoil(file)
    with pytest.raises(FaultyPeriodsError) as raised:
        run_feature_pipeline(till, DAYS)
    assert words in str(raised.value)
    assert str(DAYS[2]) in str(raised.value)
    assert not any(str(day) in str(raised.value) for day in DAYS[:2])
    assert published(till).keys() == {str(day) for day in DAYS[:2]}

    with pytest.raises(FaultyPeriodsError, match="1 fault") as alone:  # and is not built again and again
        run_feature_pipeline(till, DAYS[2:])
    assert isinstance(alone.value, RawDataError | FeatureError)
    deliver(DAYS[2])
    run_feature_pipeline(till, DAYS)
    assert published(till).keys() == set(map(str, DAYS))


def test_holes_are_named_with_all_other_faults(till: ModelSpec) -> None:
    deliver(DAYS[0], amount=[0.5, 1.5])
    deliver(DAYS[2], item=["tea", "coffee"])
    with pytest.raises(RawDataError, match="3 faults") as raised:
        run_feature_pipeline(till, DAYS)
    for words in ("cannot be read as int64", f"day={DAYS[1]}/sales.parquet: missing", "column values to be in set"):
        assert words in str(raised.value)


def test_days_without_events_are_done(till: ModelSpec, write_till: Callable[..., ModelSpec]) -> None:
    """Both sources may be absent: on the second day one file has no rows, on the third there is none."""
    shop = write_till(model=SPEC.replace('trailing="1d"', 'trailing="1d", empty_periods="absent"'))
    deliver(DAYS[0])
    deliver(DAYS[1], at=pa.nulls(0), item=pa.nulls(0), amount=pa.nulls(0), price=pa.nulls(0))
    run_feature_pipeline(shop, DAYS)
    assert [len(rows) for rows in published(shop).values()] == [2, 0, 0]
    assert features_dataset(shop).manifest(f"day={DAYS[2]}").inputs["raw"]["sales-2013-03-03"] is None

    deliver(DAYS[1])  # it had events after all, which came late
    assert stale_periods(shop, [DAYS[1]]) == [DAYS[2]]
    run_feature_pipeline(shop, DAYS[1:])
    assert [len(rows) for rows in published(shop).values()] == [2, 2, 0]
