"""An hourly model, from raw files to training sets and the online store: 30 hours around a change of clocks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import RawDataError
from evergreen.feature_store import online_store, repository, training_sets
from evergreen.features import inputs, pipeline
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.periods import Calendar
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window
from support.small_models import write_small_model

pytestmark = pytest.mark.integration

CALENDAR = Calendar("1h", "America/New_York")
FIRST = "2013-03-09T05:00Z"  # midnight in New York; 10 March has 23 hours
HOURS = list(CALENDAR.periods_between(FIRST, CALENDAR.shift(FIRST, 30)))
SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="doors", owner="tests", feature_service="doors", label="count",
    features=dict(period="1h", timezone="America/New_York", first_day="2013-03-09", spine="counts", views=["visits"],
                  sources=[dict(name="visits", trailing="2h", columns=dict(at="timestamp[us, tz=UTC]", door="int64"))]),
    schedule="0 * * * *", train="1d", holdout="3h", label_delay="1h",
    gates=[dict(kind="threshold", metric="mae", at_most=100.0)],
)
"""
FEATURES = """
from pyspark.sql import functions as F
from evergreen.features import FeatureTables
from evergreen.features.columns import period_of


def build(spark, raw, periods, calendar):
    rows = [(period, calendar.shift(period, -2), calendar.end(period)) for period in periods]
    hours = spark.createDataFrame(rows, "period string, first string, at timestamp")
    visits = raw["visits"].withColumn("visited_in", period_of(F.col("at"), calendar)).drop("at")
    known = hours.join(visits, F.col("visited_in").between(F.col("first"), F.col("period")))
    views = known.groupBy("period", "door", F.col("at").alias("event_timestamp")).agg(F.count("*").alias("visits_3h"))
    counts = visits.join(hours, F.col("visited_in") == F.col("period")).groupBy("period", "door", "at").agg(
        F.count("*").cast("int").alias("count")
    ).select("period", "door", (F.col("at") - F.expr("interval 30 minutes")).alias("event_timestamp"), "count",
             (F.col("at") + F.expr("interval 10 minutes")).alias("label_known_at"))
    return [FeatureTables({"counts": ("door", "event_timestamp", "count", "label_known_at")}, counts),
            FeatureTables({"visits": ("door", "event_timestamp", "visits_3h")}, views)]
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe


def raw_expectations(source, period):
    assert period.endswith(":00Z")
    return [gxe.ExpectTableRowCountToBeBetween(min_value=1)]


def feature_expectations(table):
    return [gxe.ExpectTableRowCountToBeBetween(min_value=1)]
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Int64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

door = Entity(name="door", join_keys=["door"], value_type=ValueType.INT64)
visits = FeatureView(name="visits", entities=[door], ttl=timedelta(hours=2), source=feature_source("doors", "visits"),
                     schema=[Field(name="visits_3h", dtype=Int64)])
doors = FeatureService(name="doors", features=[visits])
"""


def deliver(hour: str, rows: int) -> None:
    """Deliver so many visits to the only door, one a minute."""
    file = raw_files.raw_file("visits", hour)
    file.parent.mkdir(parents=True, exist_ok=True)
    times = [CALENDAR.start(hour) + timedelta(minutes=n) for n in range(rows)]
    pq.write_table(pa.table({"at": pa.array(times, pa.timestamp("us", "UTC")), "door": [7] * rows}), file)


@pytest.fixture
def model(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    """The model, whose hour number n has n + 1 visits."""
    modules = {"model": SPEC, "features": FEATURES, "expectations": EXPECTATIONS}
    doors = write_small_model("doors", tmp_path, monkeypatch, use_models, DEFINITIONS, **modules)
    for number, hour in enumerate(HOURS):
        deliver(hour, number + 1)
    return doors


def table_of(dataset: datasets.Dataset, partition: str, name: str) -> pa.Table:
    manifest = dataset.manifest(partition)
    assert manifest is not None
    return pq.read_table(dataset.file_path(manifest, name), partitioning=None)


def test_hours_become_features_training_sets_and_online_values(model: ModelSpec) -> None:
    content = pipeline.run_feature_pipeline(model, HOURS)  # one job
    assert list(content) == HOURS
    features = inputs.features_dataset(model)
    assert features.partitions()[:2] == ["period=2013-03-09T0500Z", "period=2013-03-09T0600Z"]
    # Hour 10 has 11 visits, the two before 10 and 9.
    assert table_of(features, "period=2013-03-09T1500Z", "visits")["visits_3h"].to_pylist() == [11 + 10 + 9]
    assert table_of(features, "period=2013-03-09T0500Z", "counts")["count"].to_pylist() == [1]

    ends = {}
    for end in (HOURS[28], HOURS[29]):  # two hourly retrains are two training sets
        window = Window.from_range(FIRST, end, RunReason.SCHEDULE, CALENDAR)
        manifest = training_sets.build_training_set(model, window)
        ends[end] = manifest.inputs["holdout"], manifest.inputs["holdout_end"]
    assert ends == {HOURS[28]: (HOURS[24], HOURS[27]), HOURS[29]: (HOURS[25], HOURS[28])}
    dataset = training_sets.training_set_dataset(model)
    assert dataset.partitions() == ["as_of=2013-03-10T0900Z", "as_of=2013-03-10T1000Z"]
    holdout = table_of(dataset, dataset.partitions()[-1], "holdout")
    assert holdout["label"].to_pylist() == [26, 27, 28]
    assert holdout["day"].to_pylist() == [date(2013, 3, 10)] * 3, "clusters are days of New York"
    # Half an hour before the end of an hour, the values of the hour before are known.
    assert holdout["visits__visits_3h"].to_pylist() == [25 + 24 + 23, 26 + 25 + 24, 27 + 26 + 25]
    train = table_of(dataset, dataset.partitions()[-1], "train")
    assert train.num_rows == 24
    assert set(train["day"].to_pylist()) == {date(2013, 3, 9)}
    counts = table_of(dataset, dataset.partitions()[-1], "label_counts").to_pylist()
    assert counts == [{"day": date(2013, 3, 10), "rows": 3, "labelled": 3}]

    written = online_store.materialize_features(model, Window.from_range(FIRST, HOURS[29], RunReason.MANUAL, CALENDAR))
    assert written["end"] == HOURS[29]
    store = repository.open_feature_store("doors")
    served = store.get_online_features(store.get_feature_service("doors"), [{"door": 7}], full_feature_names=True)
    assert served.to_dict()["visits__visits_3h"] == [28 + 27 + 26], "that of the hour until then is known at its end"


def test_a_corrected_hour_rebuilds_those_that_look_back_to_it(model: ModelSpec) -> None:
    pipeline.run_feature_pipeline(model, HOURS[:6])
    deliver(HOURS[1], 9)
    assert inputs.stale_periods(model, [HOURS[1]]) == HOURS[2:4]
    assert not inputs.stale_periods(model, [HOURS[0]])


def test_a_missing_hour_is_named_and_the_others_are_published(model: ModelSpec) -> None:
    raw_files.raw_file("visits", HOURS[4]).unlink()
    with pytest.raises(Exception, match=r"period=2013-03-09T0900Z/visits\.parquet: missing"):
        pipeline.run_feature_pipeline(model, HOURS[:6])
    assert [datasets.partition_period(p) for p in inputs.features_dataset(model).partitions()] == HOURS[:4]
    window = Window.from_range(FIRST, HOURS[8], RunReason.MANUAL, CALENDAR)
    with pytest.raises(RawDataError, match="period=2013-03-09T0900Z: has no published features"):
        training_sets.build_training_set(model, window)
