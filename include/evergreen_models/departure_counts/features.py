"""Builds the features of hours in Spark: what was known at the start of each.

No row uses anything that became known after its `event_timestamp`:

- A departure counts when its hour is over: in its last microsecond.
- The weather of an hour is known when that hour is over.
- The number of departures of an hour is predicted one hour before it begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from evergreen.features import FeatureTables
from evergreen.periods import Calendar

ORIGINS = ("EWR", "JFK", "LGA")
# Also used by the feature repository and the expectations.
SPINE_COLUMNS = ("event_timestamp", "origin", "hour_of_day", "weekday", "departures", "label_known_at")
RECENT_COLUMNS = ("last_hour", "same_hour_yesterday", "last_day")
WEATHER_COLUMNS = ("temperature", "wind_speed", "precipitation", "visibility")


def build(
    spark: SparkSession, raw: Mapping[str, DataFrame], hours: Sequence[str], calendar: Calendar
) -> list[FeatureTables]:
    """Return the spine and all views for `hours`; every table has the columns `period` and `event_timestamp` (UTC).

    `raw` contains the rows of each source, for `hours` and the time before them that the source names.
    """
    grid = _grid(spark, hours, calendar)
    counts = (
        raw["takeoffs"]
        .groupBy(F.date_trunc("hour", "departed_at").alias("counted_hour"), F.col("origin").alias("counted_origin"))
        .agg(F.count(F.lit(1)).cast("int").alias("count"))
    )
    return [
        FeatureTables({"hours": SPINE_COLUMNS}, _spine(grid, counts, calendar.timezone)),
        FeatureTables({"recent_departures": ("event_timestamp", "origin", *RECENT_COLUMNS)}, _recent(grid, counts)),
        FeatureTables(
            {"airport_weather": ("event_timestamp", "origin", *WEATHER_COLUMNS)}, _weather(grid, raw["stations"])
        ),
    ]


def _hours(count: int) -> Column:
    return F.expr(f"interval {count} hours")


def _grid(spark: SparkSession, hours: Sequence[str], calendar: Calendar) -> DataFrame:
    """Return one row per hour and airport, whether or not anybody left."""
    rows = [(hour, calendar.start(hour), origin) for hour in hours for origin in ORIGINS]
    return spark.createDataFrame(rows, "period string, starts_at timestamp, origin string")


def _spine(grid: DataFrame, counts: DataFrame, timezone: str) -> DataFrame:
    local = F.from_utc_timestamp("starts_at", timezone)
    is_same = (F.col("counted_hour") == F.col("starts_at")) & (F.col("counted_origin") == F.col("origin"))
    return grid.join(counts, is_same, "left").select(
        "period",
        (F.col("starts_at") - _hours(1)).alias("event_timestamp"),
        "origin",
        F.hour(local).alias("hour_of_day"),
        F.weekday(local).alias("weekday"),
        F.coalesce("count", F.lit(0)).alias("departures"),
        # What is known as of an hour was known before it begins.
        (F.col("starts_at") + _hours(1) - F.expr("interval 1 microsecond")).alias("label_known_at"),
    )


def _recent(grid: DataFrame, counts: DataFrame) -> DataFrame:
    """Return counts of the day before each hour. Of the hour that is predicted then, the one yesterday is 23 h ago."""
    ago = F.col("starts_at") - F.col("counted_hour")
    is_recent = (F.col("counted_origin") == F.col("origin")) & ago.between(_hours(1), _hours(24))

    def total(condition: Column) -> Column:
        return F.coalesce(F.sum(F.when(condition, F.col("count"))), F.lit(0)).cast("int")

    return (
        grid.join(counts, is_recent, "left")
        .groupBy("period", F.col("starts_at").alias("event_timestamp"), "origin")
        .agg(
            total(ago == _hours(1)).alias("last_hour"),
            total(ago == _hours(23)).alias("same_hour_yesterday"),
            total(F.lit(True)).alias("last_day"),
        )
    )


def _weather(grid: DataFrame, stations: DataFrame) -> DataFrame:
    readings = stations.select(
        (F.date_trunc("hour", "read_at") + _hours(1)).alias("starts_at"),
        "origin",
        F.col("temp").alias("temperature"),
        "wind_speed",
        F.col("precip").alias("precipitation"),
        F.col("visib").alias("visibility"),
    )
    return grid.join(readings, ["starts_at", "origin"]).select(
        "period", F.col("starts_at").alias("event_timestamp"), "origin", *WEATHER_COLUMNS
    )
