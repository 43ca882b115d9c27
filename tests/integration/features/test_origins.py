"""A model of parts in CSV, a query and a table: from what is delivered to published features, faults apart."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from evergreen.errors import FaultyPeriodsError
from evergreen.features.inputs import compute_period_fingerprints, features_dataset
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.features.planning import refresh_raw_data
from evergreen.ingest.raw_files import raw_folder
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from support.small_models import write_small_model

pytestmark = pytest.mark.integration

DAYS = [date(2013, 3, n) for n in (1, 2, 3)]
PERIODS = [str(day) for day in DAYS]
SPEC = """
from evergreen.spec.model import ModelSpec
SQL = "SELECT item, count(*) AS returned FROM returns WHERE sold_at >= :start AND sold_at < :end GROUP BY item"
MODEL = ModelSpec(
    name="mixed", owner="tests", feature_service="mixed", label="price", schedule="0 0 * * 1",
    features=dict(
        timezone="UTC", first_day="2013-03-01", spine="sold", views=["items"],
        sources=[
            dict(name="sales", columns=dict(sold_at="timestamp[us, tz=UTC]", item="string", price="int64"),
                 files=dict(path="sales/dt=%Y-%m-%d/", format="csv", marker="_SUCCESS")),
            dict(name="returns", empty_periods="delivered", columns=dict(item="string", returned="int64"),
                 query=dict(connection="shop", sql=SQL)),
            dict(name="stock", columns=dict(day="date32", item="string", amount="int64"),
                 table=dict(format="delta", location="stock", time_column="day")),
        ],
    ),
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables

def build(spark, raw, days, calendar):
    rows = raw["sales"].withColumn("day", F.to_date("sold_at")).where(F.col("day").isin(list(days)))
    rows = rows.join(raw["stock"], ["day", "item"], "left").join(raw["returns"], "item", "left")
    rows = rows.select("day", F.col("sold_at").alias("event_timestamp"), "item", "amount", "price")
    sold = ("event_timestamp", "item", "amount", "price")
    return [FeatureTables({"sold": sold}, rows), FeatureTables({"items": sold[:3]}, rows.drop("price"))]
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe

def raw_expectations(source, day):
    return [gxe.ExpectColumnValuesToNotBeNull(column="item")]

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
items = FeatureView(name="items", entities=[item], ttl=timedelta(days=3), source=feature_source("mixed", "items"),
                    schema=[Field(name="amount", dtype=Int64)])
mixed = FeatureService(name="mixed", features=[items])
"""


@pytest.fixture
def mixed(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__SHOP", f"duckdb:///{tmp_path}/shop.db")
    modules = {"model": SPEC, "features": FEATURES, "expectations": EXPECTATIONS}
    model = write_small_model("mixed", tmp_path, monkeypatch, use_models, DEFINITIONS, **modules)
    with duckdb.connect(str(tmp_path / "shop.db")) as shop:
        shop.execute("CREATE TABLE returns AS SELECT 'tea' AS item, TIMESTAMPTZ '2013-03-01 10:00Z' AS sold_at")
    table = pa.table({"day": pa.array(DAYS), "item": ["tea"] * 3, "amount": [10, 20, 30]})
    for number in range(3):
        write_deltalake(str(raw_folder() / "stock"), table.slice(number, 1), mode="append")
    for day in DAYS:
        deliver(day, "1")
    return model


def deliver(day: date, price: str) -> None:
    folder = raw_folder() / f"sales/dt={day}"
    folder.mkdir(parents=True, exist_ok=True)
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC).isoformat()
    (folder / "a.csv").write_text(f"sold_at,item,price\n{noon},tea,7\n")
    (folder / "b.csv").write_text(f"item,price,sold_at\ntea,{price},{noon}\n")
    (folder / "_SUCCESS").touch()


def published(model: ModelSpec, day: date) -> list[dict[str, object]]:
    dataset = features_dataset(model)
    manifest = dataset.manifest(f"day={day}")
    return pq.read_table(dataset.file_path(manifest, "sold")).to_pylist() if manifest else []


def test_a_faulty_part_fails_its_day_alone_and_corrections_are_built(mixed: ModelSpec) -> None:
    deliver(DAYS[1], "1,5")
    (raw_folder() / f"sales/dt={DAYS[2]}/_SUCCESS").unlink()
    with pytest.raises(FaultyPeriodsError) as raised:
        run_feature_pipeline(mixed, PERIODS)
    text = str(raised.value)
    assert "dt=2013-03-02/b.csv: 1 rows cannot be read, such as row 1: 4 values instead of 3" in text
    assert "dt=2013-03-03: is not complete: 2 parts, and no _SUCCESS" in text
    assert len(raised.value.faults) == 2
    assert [row["price"] for row in published(mixed, DAYS[0])] == [1, 7]
    assert published(mixed, DAYS[1]) == published(mixed, DAYS[2]) == []

    for day in DAYS[1:]:
        deliver(day, "2")
    first = features_dataset(mixed).manifest(f"day={DAYS[0]}")
    # Without the database, whose answers are in the lake for the days that were read.
    (settings().home.parent / "shop.db").rename(settings().home.parent / "moved.db")
    run_feature_pipeline(mixed, PERIODS)
    assert [row["amount"] for row in published(mixed, DAYS[2])] == [30, 30]

    DeltaTable(str(raw_folder() / "stock")).update(new_values={"amount": 99}, predicate=f"day = '{DAYS[2]}'")
    before = compute_period_fingerprints(mixed, PERIODS)
    assert refresh_raw_data(feature_spec(mixed), PERIODS) == {}
    after = compute_period_fingerprints(mixed, PERIODS)
    assert [day for day in after if after[day] != before[day]] == [str(DAYS[2])]
    run_feature_pipeline(mixed, PERIODS)
    assert [row["amount"] for row in published(mixed, DAYS[2])] == [99, 99]
    assert features_dataset(mixed).manifest(f"day={DAYS[0]}") == first
