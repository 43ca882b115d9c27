"""Features of a day of flights, in Spark: what was known at each full hour of that day.

No row uses anything that became known after its `event_timestamp`:

- a flight counts from the moment it has reached its gate. That moment is not in the raw data, whose
  clocks are local to each airport: it is the first instant after the wheels touched down at the earliest
  (departure + air time) at which the clock at the destination shows `arr_time`.
- the weather of an hour is known when that hour is over.
- cancelled and diverted flights never arrive: they have no label, and count in no rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

LATE_MINUTES = 15
TRAILING_HOURS = (6, 24, 168)
LEAD = "1 hour"  # a prediction is made this long before the scheduled departure

GROUPS = {
    "carrier_delays": ("carrier",),
    "origin_delays": ("origin",),
    "destination_delays": ("dest",),
    "route_delays": ("origin", "dest"),
}
# Feature columns, named once for the feature repository too.
DELAYS = tuple(name for n in TRAILING_HOURS for name in (f"flights_{n}h", f"late_rate_{n}h"))
WEATHER = ("temperature", "humidity", "wind_speed", "precipitation", "visibility", "pressure")

_HIGHEST_WIND = 200  # mph at the ground; the 2013 record holds one reading of 1,048


def build(
    spark: SparkSession, raw: Mapping[str, DataFrame], days: Sequence[date], timezone: str
) -> dict[str, DataFrame]:
    """The spine and all views for `days`; every table has the columns `day` and `event_timestamp` (UTC).

    `raw` holds the rows of each source: those of `days` and of the days they look back to.
    """
    flights = _with_instants(raw["flights"], raw["airports"])
    hours = _hours(spark, days, timezone)
    delays = _trailing_delays(flights, hours).persist()
    views = {
        name: delays.where(F.col("group") == _grouping_id(keys)).select("day", "event_timestamp", *keys, *DELAYS)
        for name, keys in GROUPS.items()
    }
    return {
        "departures": _departures(flights, days),
        **views,
        "origin_weather": _weather(raw["weather"], hours),
        "aircraft": _aircraft(raw["planes"], spark, days, timezone),
    }


def _with_instants(flights: DataFrame, airports: DataFrame) -> DataFrame:
    """Add `day`, `departs_at` (scheduled), `arrived_at` and `late`; the last two are null without an arrival."""
    minute = F.expr("interval 1 minute")
    departs_at = F.col("time_hour") + F.col("minute") * minute
    touchdown = departs_at + (F.col("dep_delay") + F.col("air_time")).cast("int") * minute
    clock = ((F.floor(F.col("arr_time") / 100) * 60 + F.col("arr_time") % 100) % 1440).cast("int")
    local_day = F.date_trunc("day", F.from_utc_timestamp("touchdown", F.col("tzone")))
    gate = F.to_utc_timestamp(local_day + clock * minute, F.col("tzone"))
    return (
        flights.join(F.broadcast(airports), flights["dest"] == airports["faa"], "left")
        .withColumn("day", F.make_date("year", "month", "day"))
        .withColumn("departs_at", departs_at)
        .withColumn("touchdown", touchdown)
        .withColumn("gate", gate)
        .withColumn(
            "arrived_at",
            F.when(F.col("gate") < F.col("touchdown"), F.col("gate") + F.expr("interval 1 day")).otherwise(
                F.col("gate")
            ),
        )
        .withColumn("late", (F.col("arr_delay") > LATE_MINUTES).cast("int"))
    )


def _departures(flights: DataFrame, days: Sequence[date]) -> DataFrame:
    """The spine: one row per scheduled flight of `days`."""
    return flights.where(F.col("day").isin(list(days))).select(
        "day",
        F.concat_ws("-", F.col("day").cast("string"), "carrier", "flight", "origin", "dest").alias("flight_id"),
        (F.col("departs_at") - F.expr(f"interval {LEAD}")).alias("event_timestamp"),
        "carrier",
        "origin",
        "dest",
        "tailnum",
        (F.col("hour") * 60 + F.col("minute")).cast("int").alias("departure_minute"),
        F.weekday("day").alias("weekday"),
        F.col("distance").cast("int").alias("distance"),
        "late",
        F.when(F.col("late").isNotNull(), F.col("arrived_at")).alias("label_known_at"),
    )


def _trailing_delays(flights: DataFrame, hours: DataFrame) -> DataFrame:
    """For every group and full hour: flights that reached their gate in the hours before, and the share of late ones.

    An arrival within (t − n hours, t] is one whose time, rounded up to the hour, lies in that range: so
    counts per hour are enough, and a range of hours over them gives the exact result. All groups share one
    pass over the flights; `group` tells them apart.
    """
    keys = ("group", "carrier", "origin", "dest")
    per_hour = (
        flights.where(F.col("late").isNotNull())
        .withColumn("hour_number", _hour_number(F.col("arrived_at")))
        .groupingSets(
            [[*(F.col(key) for key in group), F.col("hour_number")] for group in GROUPS.values()],
            "carrier",
            "origin",
            "dest",
            "hour_number",
        )
        .agg(F.grouping_id().alias("group"), F.count(F.lit(1)).alias("flights"), F.sum("late").alias("late"))
    )
    every_hour = (
        per_hour.select(*keys)
        .distinct()
        .crossJoin(F.broadcast(hours.select("hour_number")))
        .select("*", F.lit(0).alias("flights"), F.lit(0).alias("late"))
    )
    columns = []
    for n in TRAILING_HOURS:
        trailing = Window.partitionBy(*keys).orderBy("hour_number").rangeBetween(1 - n, 0)
        count = F.sum("flights").over(trailing)
        columns += [
            count.cast("int").alias(f"flights_{n}h"),
            F.try_divide(F.sum("late").over(trailing), count).alias(f"late_rate_{n}h"),
        ]
    return (
        per_hour.unionByName(every_hour)
        .select(*keys, "hour_number", *columns)
        .where(F.col(f"flights_{max(TRAILING_HOURS)}h") > 0)
        # an hour with arrivals stands twice, as its count and as a full hour, with equal sums
        .dropDuplicates([*keys, "hour_number"])
        .join(F.broadcast(hours), "hour_number")
    )


def _weather(weather: DataFrame, hours: DataFrame) -> DataFrame:
    known_at = (F.col("time_hour") + F.expr("interval 1 hour")).alias("event_timestamp")
    wind = F.when(F.col("wind_speed") <= _HIGHEST_WIND, F.col("wind_speed"))
    return (
        weather.select(
            known_at,
            "origin",
            F.col("temp").alias("temperature"),
            F.col("humid").alias("humidity"),
            wind.alias("wind_speed"),
            F.col("precip").alias("precipitation"),
            F.col("visib").alias("visibility"),
            "pressure",
        )
        .join(F.broadcast(hours.select("day", "event_timestamp")), "event_timestamp")
        .select("day", "event_timestamp", "origin", *WEATHER)
    )


def _aircraft(planes: DataFrame, spark: SparkSession, days: Sequence[date], timezone: str) -> DataFrame:
    """Age of every registered aircraft, in years, at the start of each day."""
    starts = spark.createDataFrame(
        [(day, instant, day.year) for day in days for instant in _full_hours(day, timezone)[:1]],
        "day date, event_timestamp timestamp, current_year int",
    )
    age = (F.col("current_year") - F.col("year")).cast("int").alias("aircraft_age")
    return planes.crossJoin(F.broadcast(starts)).select("day", "event_timestamp", "tailnum", age)


def _hours(spark: SparkSession, days: Sequence[date], timezone: str) -> DataFrame:
    """The full hours of `days`: 23, 24 or 25 a day, because clocks change."""
    rows = [
        (day, instant, int(instant.timestamp()) // 3600)
        for day in days
        for instant in _full_hours(day, timezone)
    ]
    return spark.createDataFrame(rows, "day date, event_timestamp timestamp, hour_number long")


def _full_hours(day: date, timezone: str) -> list[datetime]:
    zone, utc = ZoneInfo(timezone), ZoneInfo("UTC")
    start, end = (datetime.combine(d, time(), zone).astimezone(utc) for d in (day, day + timedelta(1)))
    return [start + timedelta(hours=n) for n in range(int((end - start) / timedelta(hours=1)))]


def _hour_number(instant: Column) -> Column:
    return F.ceil(F.unix_seconds(instant) / 3600)



def _grouping_id(group: Sequence[str]) -> int:
    """Spark's grouping_id over (carrier, origin, dest, hour): one bit per column, set where it is not grouped by."""
    return int("".join("0" if key in group else "1" for key in ("carrier", "origin", "dest")) + "0", 2)
