"""Columns that a model's `features.py` needs, whatever its period is. Imports Spark."""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

from evergreen.periods import Calendar, Duration


def period_of(instant: Column, calendar: Calendar) -> Column:
    """Return the period that contains each instant, named as `build` returns it: `day` or `period`.

    `instant` is a timestamp of Spark, in whose sessions the time zone is UTC.
    """
    length = Duration.parse(calendar.period).length
    if calendar.partition_key != "day":
        seconds = int(length.total_seconds())
        start = F.timestamp_seconds(F.floor(F.unix_seconds(instant) / seconds) * seconds)
        return F.date_format(start, "yyyy-MM-dd'T'HH:mm'Z'").alias("period")
    day = F.from_utc_timestamp(instant, calendar.timezone)
    return F.date_format(F.date_trunc("week", day) if length.days > 1 else day, "yyyy-MM-dd").alias("day")
