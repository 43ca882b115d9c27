"""Builds the features of a day of flights in Spark: the values that were known at each full hour of that day.

No row uses anything that became known after its `event_timestamp`:

- A flight counts from the moment it reached its gate. The raw data lacks this instant, because its clocks are local to
  each airport. It is the first instant after the earliest touchdown (departure + air time) at which the clock at the
  destination shows `arr_time`.
- The weather of an hour is known when that hour is over.
- Cancelled and diverted flights never arrive: they have no label, and count in no rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from evergreen.features import FeatureTables
from evergreen.periods import Calendar

LATE_MINUTES = 15
TRAILING_HOURS = (6, 24, 168)
PREDICTION_LEAD = "1 hour"  # a prediction is made this long before the scheduled departure

DELAY_VIEW_KEYS = {
    "carrier_delays": ("carrier",),
    "origin_delays": ("origin",),
    "destination_delays": ("dest",),
    "route_delays": ("origin", "dest"),
}
# Also used by the feature repository and the expectations.
SPINE_COLUMNS = (
    "flight_id",
    "event_timestamp",
    "carrier",
    "origin",
    "dest",
    "tailnum",
    "departure_minute",
    "weekday",
    "distance",
    "late",
    "label_known_at",
)
DELAY_COLUMNS = tuple(name for n in TRAILING_HOURS for name in (f"flights_{n}h", f"late_rate_{n}h"))
WEATHER_COLUMNS = ("temperature", "humidity", "wind_speed", "precipitation", "visibility", "pressure")

_MAX_WIND_MPH = 200  # at the ground; the data of 2013 contains one reading of 1,048


def build(
    spark: SparkSession, raw: Mapping[str, DataFrame], days: Sequence[str], calendar: Calendar
) -> list[FeatureTables]:
    """Return the spine and all views for `days`; every table has the columns `day` and `event_timestamp` (UTC).

    `raw` contains the rows of each source, for `days` and the trailing days of the source.
    """
    flights = _add_timestamps(raw["flights"], raw["airports"])
    hours = _hours(spark, days, calendar)
    return [
        FeatureTables({"departures": SPINE_COLUMNS}, _departures(flights, days)),
        FeatureTables(
            {view: ("event_timestamp", *keys, *DELAY_COLUMNS) for view, keys in DELAY_VIEW_KEYS.items()},
            _trailing_delays(flights, hours, days, calendar),
        ),
        FeatureTables(
            {"origin_weather": ("event_timestamp", "origin", *WEATHER_COLUMNS)}, _weather(raw["weather"], hours)
        ),
        FeatureTables(
            {"aircraft": ("event_timestamp", "tailnum", "aircraft_age")},
            _aircraft(raw["planes"], spark, days, calendar),
        ),
    ]


def _add_timestamps(flights: DataFrame, airports: DataFrame) -> DataFrame:
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


def _departures(flights: DataFrame, days: Sequence[str]) -> DataFrame:
    """Return the spine: one row per scheduled flight of `days`."""
    return flights.where(F.col("day").cast("string").isin(list(days))).select(
        "day",
        F.concat_ws("-", F.col("day").cast("string"), "carrier", "flight", "origin", "dest").alias("flight_id"),
        (F.col("departs_at") - F.expr(f"interval {PREDICTION_LEAD}")).alias("event_timestamp"),
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


def _trailing_delays(flights: DataFrame, hours: DataFrame, days: Sequence[str], calendar: Calendar) -> DataFrame:
    """Return, for every group and full hour, the arrivals in the hours before and the share of late ones.

    An arrival within (t − n hours, t] is one whose time, rounded up to the hour, is in that range: it enters the count
    at that hour and leaves it n hours later. So a running sum of entering and leaving arrivals gives all counts. Each
    count holds until the next hour at which one enters or leaves. All groups share one pass over the flights; the
    column `table` names the view of a row.
    """
    keys = ("carrier", "origin", "dest")
    per_hour = (
        flights.where(F.col("late").isNotNull())
        .withColumn("arrival_hour", F.ceil(F.unix_seconds("arrived_at") / 3600))
        .groupingSets(
            [[*(F.col(key) for key in group), F.col("arrival_hour")] for group in DELAY_VIEW_KEYS.values()],
            *keys,
            "arrival_hour",
        )
        .agg(F.grouping_id().alias("grouping"), F.count(F.lit(1)).alias("flights"), F.sum("late").alias("late"))
    )
    counts = [f"{column}_{n}h" for n in TRAILING_HOURS for column in ("flights", "late")]
    changes = per_hour.select(
        "grouping",
        *keys,
        F.explode(
            F.array(
                *(
                    F.struct(
                        (F.col("arrival_hour") + hours_later).alias("hour"),
                        *(
                            (sign * F.col(column)).alias(f"{column}_{n}h")
                            if n in changed_counts
                            else F.lit(0).cast("long").alias(f"{column}_{n}h")
                            for n in TRAILING_HOURS
                            for column in ("flights", "late")
                        ),
                    )
                    for hours_later, sign, changed_counts in [
                        (0, 1, TRAILING_HOURS),
                        *((n, -1, (n,)) for n in TRAILING_HOURS),
                    ]
                )
            )
        ).alias("change"),
    ).select("grouping", *keys, "change.*")
    first = _hour_number(_full_hours(min(days), calendar)[0])
    last = _hour_number(_full_hours(max(days), calendar)[-1])
    by_hour = Window.partitionBy("grouping", *keys).orderBy("hour")
    steps = (
        changes.groupBy("grouping", *keys, "hour")
        .agg(*(F.sum(count).alias(count) for count in counts))
        .select(
            "grouping",
            *keys,
            "hour",
            (F.lead("hour").over(by_hour) - 1).alias("last_hour"),
            *(F.sum(count).over(by_hour).alias(count) for count in counts),
        )
        # The last step of a group is the one with which everything has left.
        .where((F.col(f"flights_{max(TRAILING_HOURS)}h") > 0) & (F.col("last_hour") >= first) & (F.col("hour") <= last))
    )
    features = [
        column
        for n in TRAILING_HOURS
        for column in (
            F.col(f"flights_{n}h").cast("int"),
            F.try_divide(f"late_{n}h", f"flights_{n}h").alias(f"late_rate_{n}h"),
        )
    ]
    table = F.element_at(
        F.create_map(*(F.lit(part) for pair in _views_by_grouping() for part in pair)), F.col("grouping")
    )
    hours_held = F.sequence(F.greatest("hour", F.lit(first)), F.least("last_hour", F.lit(last)))
    return (
        steps.withColumn("hour_number", F.explode(hours_held))
        .join(F.broadcast(hours), "hour_number")
        .select(table.alias("table"), "day", "event_timestamp", *keys, *features)
    )


def _views_by_grouping() -> list[tuple[int, str]]:
    """Return Spark's grouping id of each view: a bit each for carrier, origin, dest and hour, set if not grouped by."""
    return [
        (int("".join("0" if key in keys else "1" for key in ("carrier", "origin", "dest")) + "0", 2), view)
        for view, keys in DELAY_VIEW_KEYS.items()
    ]


def _weather(weather: DataFrame, hours: DataFrame) -> DataFrame:
    known_at = (F.col("time_hour") + F.expr("interval 1 hour")).alias("event_timestamp")
    wind = F.when(F.col("wind_speed") <= _MAX_WIND_MPH, F.col("wind_speed"))
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
        .select("day", "event_timestamp", "origin", *WEATHER_COLUMNS)
    )


def _aircraft(planes: DataFrame, spark: SparkSession, days: Sequence[str], calendar: Calendar) -> DataFrame:
    """Return the age of every registered aircraft, in years, at the start of each day."""
    starts = spark.createDataFrame(
        [(day, instant, int(day[:4])) for day in days for instant in _full_hours(day, calendar)[:1]],
        "day string, event_timestamp timestamp, current_year int",
    )
    age = (F.col("current_year") - F.col("year")).cast("int").alias("aircraft_age")
    return planes.crossJoin(F.broadcast(starts)).select("day", "event_timestamp", "tailnum", age)


def _hours(spark: SparkSession, days: Sequence[str], calendar: Calendar) -> DataFrame:
    """Return the full hours of `days`: 23, 24 or 25 a day, because clocks change."""
    rows = [(day, instant, _hour_number(instant)) for day in days for instant in _full_hours(day, calendar)]
    return spark.createDataFrame(rows, "day string, event_timestamp timestamp, hour_number long")


def _full_hours(day: str, calendar: Calendar) -> list[datetime]:
    start, end = calendar.start(day), calendar.end(day)
    return [start + timedelta(hours=n) for n in range(int((end - start) / timedelta(hours=1)))]


def _hour_number(full_hour: datetime) -> int:
    """Return the hours since 1970."""
    return int(full_hour.timestamp()) // 3600
