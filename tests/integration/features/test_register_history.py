"""Registers with history in Spark: each event gets what was valid at its time, once, and nothing of the future."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from evergreen.errors import FeatureError
from evergreen.features.build import _read_raw
from evergreen.features.register_history import RegisterHistory
from evergreen.features.spark import spark_session
from evergreen.spec.model import RawSource
from support.histories import STEPS, Version, moment, tariff_source, valid_histories, valid_version, write_versions

pytestmark = pytest.mark.integration

KEYS = 8
SPAN = (-1, STEPS + 1)
EVENTS = "id int, station int, at timestamp"


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    with spark_session() as session:
        yield session


def open_register(
    spark: SparkSession,
    source: RawSource,
    versions: list[Version],
    folder: Path,
    spans: tuple[tuple[int, int], ...] = (SPAN,),
    zone: str = "UTC",
) -> RegisterHistory:
    file = write_versions(source, versions, folder / "tariffs.parquet")
    moments = [(moment(source, start), moment(source, end)) for start, end in spans]
    return RegisterHistory(source, _read_raw(spark, source, [str(file)]), moments, zone)


def instants(source: RawSource, zone: str) -> list[tuple[float, datetime]]:
    """Return times around each step, with their steps: just before, at the step, just and long after it."""
    tick = timedelta(microseconds=1)
    times = []
    for step in range(SPAN[0] + 1, SPAN[1]):
        at = moment(source, step)
        if source.has_dates_of_validity:
            at = datetime.combine(at, time(), ZoneInfo(zone)).astimezone(ZoneInfo("UTC"))
        times += [(step - 0.5, at - tick), (step, at), (step, at + tick), (step, at + timedelta(minutes=50))]
    return times


@pytest.mark.parametrize(
    ("form", "zone", "dates"),
    [
        ("to", "UTC", False),
        ("from", "UTC", False),
        ("to", "Asia/Beirut", True),
        ("from", "Europe/Berlin", True),
        ("to", "Pacific/Kiritimati", True),
    ],
)
def test_each_event_gets_what_was_valid_at_its_time(form: str, zone: str, dates: bool, spark: SparkSession) -> None:
    source = tariff_source(form, dates)
    times = instants(source, zone)
    events = [(key, step, at) for key in range(KEYS + 1) for step, at in times]
    rows: list[Any] = [(number, key, at) for number, (key, _, at) in enumerate(events)]
    rows += [(-1, None, times[3][1]), (-2, 0, None)]
    frame = spark.createDataFrame(rows, EVENTS).repartition(3)

    @settings(max_examples=2, suppress_health_check=list(HealthCheck))
    @given(valid_histories(form, KEYS))
    def check(versions: list[Version]) -> None:
        expected = {-1: None, -2: None}
        for number, (key, step, _) in enumerate(events):
            version = valid_version(versions, form, key, step)
            expected[number] = version.value if version else None
        with tempfile.TemporaryDirectory() as folder:
            register = open_register(spark, source, versions, Path(folder), zone=zone)
            joined = register.join_as_of(frame, "at")
            assert joined.columns == ["id", "station", "at", "price"]
            result = [(row["id"], row["price"]) for row in joined.collect()]
            assert sorted(result, key=repr) == sorted(expected.items(), key=repr)

            some = spark.createDataFrame(
                [(number, at) for number, (_, at) in enumerate(times)], "number int, at timestamp"
            )
            taken = [(row["number"], row["station"], row["price"]) for row in register.snapshot(some, "at").collect()]
            valid = [
                (number, key, valid_version(versions, form, key, step))
                for number, (step, _) in enumerate(times)
                for key in range(KEYS)
            ]
            expected_rows = [(number, key, version.value) for number, key, version in valid if version]
            assert sorted(taken, key=repr) == sorted(expected_rows, key=repr)

    check()


VERSIONS = [Version(0, 0, 5, "a"), Version(0, 5, None, "b")]


def events_at(spark: SparkSession, source: RawSource, *steps: int, key: int = 0) -> DataFrame:
    rows = [(number, key, moment(source, step)) for number, step in enumerate(steps)]
    return spark.createDataFrame(
        rows, f"id int, station int, at {'date' if source.has_dates_of_validity else 'timestamp'}"
    )


@pytest.mark.parametrize(("step", "dates", "key"), [(1, True, 0), (4, False, 9), (5, True, 9), (8, False, 0)])
def test_other_times_cannot_be_asked_for(step: int, dates: bool, key: int, spark: SparkSession, tmp_path: Path) -> None:
    """Between the days of a batch neither, and whether the register has the key or not."""
    source = tariff_source(dates=dates, trailing="1d")
    register = open_register(spark, source, VERSIONS, tmp_path, ((2, 4), (6, 7), (7, 8)))
    right = events_at(spark, source, 2, 3, 6, 7)
    assert [row["price"] for row in register.join_as_of(right, "at").orderBy("id").collect()] == ["a", "a", "b", "b"]
    wrong = right.unionAll(events_at(spark, source, step, key=key))
    words = r"tariffs is asked for 2024-0.*and the 1d before each: raise trailing of tariffs"
    for result in (register.join_as_of(wrong, "at"), register.snapshot(wrong.drop("station"), "at")):
        with pytest.raises(PySparkException, match=words):
            result.select("id").collect()


def test_events_that_were_left_out_are_not_asked_about(spark: SparkSession, tmp_path: Path) -> None:
    source = tariff_source()
    register = open_register(spark, source, VERSIONS, tmp_path, ((2, 4),))
    events = events_at(spark, source, 0, 2, 3, 9)
    wanted = spark.createDataFrame([(1,), (2,)], "id int")
    assert register.join_as_of(events.where("id IN (1, 2)"), "at").count() == 2
    assert register.join_as_of(events.join(wanted, "id"), "at").count() == 2


def test_keys_may_have_other_names(spark: SparkSession, tmp_path: Path) -> None:
    source = tariff_source()
    register = open_register(spark, source, VERSIONS, tmp_path)
    events = events_at(spark, source, 1).selectExpr("station AS start", "BIGINT(station + 1) AS stop", "at")
    first = register.join_as_of(events, "at", keys=["start"]).withColumnRenamed("price", "start_price")
    (row,) = register.join_as_of(first, "at", keys=["stop"]).collect()
    assert row.asDict() == {"start": 0, "stop": 1, "at": date(2024, 3, 25), "start_price": "a", "price": None}


@pytest.mark.parametrize(
    ("columns", "dates", "words"),
    [
        ("station, at, 'x' AS Price", False, "register tariffs: the events have columns price too"),
        ("DOUBLE(station) AS station, at", False, "station is double, and the key of the register bigint → cast it"),
        ("STRING(station) AS station, at", True, "station is string, and the key of the register bigint"),
        ("station, CAST(at AS TIMESTAMP_NTZ) AS at", False, "at is timestamp_ntz → ask at an instant"),
        ("station, DATE(at) AS at", False, "at is date → ask at an instant"),
        ("station, STRING(at) AS at", True, "at is string"),
    ],
)
def test_events_of_other_columns_are_refused(
    columns: str, dates: bool, words: str, spark: SparkSession, tmp_path: Path
) -> None:
    source = tariff_source(dates=dates)
    events = events_at(spark, source, 1).selectExpr(*columns.split(", "))
    register = open_register(spark, source, VERSIONS, tmp_path)
    with pytest.raises(FeatureError) as refused:
        register.join_as_of(events, "at")
    assert words in str(refused.value)
    with pytest.raises(FeatureError, match="keys has 2 columns → name a column for each of station"):
        register.join_as_of(events_at(spark, source, 1), "at", keys=["station", "station"])
