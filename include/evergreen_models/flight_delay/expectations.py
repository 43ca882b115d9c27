"""Expectations of the raw files, and of the features built from them; if one fails, nothing is published."""

from __future__ import annotations

from datetime import date

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation

from evergreen_models.flight_delay.features import DELAY_COLUMNS, DELAY_VIEW_KEYS

ORIGINS = ["EWR", "JFK", "LGA"]


def raw_expectations(source: str, day: str | None) -> list[Expectation]:
    """Return the expectations of the raw file of `source` for `day` (None: a file for all days)."""
    return {"flights": _flights, "weather": _weather, "planes": _planes, "airports": _airports}[source](day)


def _flights(day: str | None) -> list[Expectation]:
    return [
        # The thinnest day of 2013, Thanksgiving, had 634: far fewer means that part of the day is missing.
        gxe.ExpectTableRowCountToBeBetween(min_value=300, max_value=5000),
        gxe.ExpectColumnDistinctValuesToEqualSet(column="origin", value_set=ORIGINS),
        gxe.ExpectCompoundColumnsToBeUnique(
            column_list=["year", "month", "day", "carrier", "flight", "origin", "dest", "sched_dep_time"]
        ),
        *_expect_day(day),
        *(_expect_range(clock, 1, 2400) for clock in ("dep_time", "arr_time")),
        *(_expect_range(clock, 0, 2359) for clock in ("sched_dep_time", "sched_arr_time")),
        _expect_range("hour", 0, 23),
        _expect_range("minute", 0, 59),
        _expect_range("distance", 1, 6000),
        _expect_range("air_time", 1, 1200),
        *(_expect_range(delay, -180, 2880) for delay in ("dep_delay", "arr_delay")),
        # No flight has an arrival without a departure, or a delay without an arrival.
        gxe.ExpectColumnValuesToNotBeNull(
            column="dep_time", row_condition="arr_delay.notnull()", condition_parser="pandas"
        ),
        gxe.ExpectColumnValuesToNotBeNull(
            column="air_time", row_condition="arr_delay.notnull()", condition_parser="pandas"
        ),
        # More than half of a day's flights may be cancelled, as in a blizzard, but never all of them.
        gxe.ExpectColumnValuesToNotBeNull(column="arr_delay", mostly=0.02),
    ]


def _weather(day: str | None) -> list[Expectation]:
    return [
        gxe.ExpectTableRowCountToBeBetween(max_value=3 * 25),
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["origin", "time_hour"]),
        gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=ORIGINS),
        *_expect_day(day),
        _expect_range("temp", -40, 130),
        _expect_range("humid", 0, 100),
        _expect_range("precip", 0, 20),
        _expect_range("visib", 0, 100),
    ]


def _planes(_: str | None) -> list[Expectation]:
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=1000),
        gxe.ExpectColumnValuesToBeUnique(column="tailnum"),
        _expect_range("year", 1930, 2013),
    ]


def _airports(_: str | None) -> list[Expectation]:
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=100),
        gxe.ExpectColumnValuesToBeUnique(column="faa"),
        gxe.ExpectColumnValuesToMatchRegex(column="tzone", regex=r"^\w+/\w+"),
    ]


def feature_expectations(table: str) -> list[Expectation]:
    """Return the expectations of one computed day of `table`, the spine or a view."""
    if table == "departures":
        return [
            gxe.ExpectTableRowCountToBeBetween(min_value=300),
            gxe.ExpectColumnValuesToBeUnique(column="flight_id"),
            *_expect_not_null("flight_id", "event_timestamp", "carrier", "origin", "dest"),
            gxe.ExpectColumnValuesToBeInSet(column="late", value_set=[0, 1]),
            _expect_range("departure_minute", 0, 1439),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="label_known_at", column_B="event_timestamp", ignore_row_if="either_value_is_missing"
            ),
        ]
    if table in DELAY_VIEW_KEYS:
        keys = list(DELAY_VIEW_KEYS[table])
        return [
            # On the very first day nothing has landed before the first departure, so a few rows are enough.
            gxe.ExpectTableRowCountToBeBetween(min_value=1),
            gxe.ExpectCompoundColumnsToBeUnique(column_list=[*keys, "event_timestamp"]),
            *_expect_not_null(*keys, "event_timestamp", *(c for c in DELAY_COLUMNS if c.startswith("flights"))),
            *(_expect_range(column, 0, 1) for column in DELAY_COLUMNS if column.startswith("late_rate")),
            *(_expect_range(column, 0, 100_000) for column in DELAY_COLUMNS if column.startswith("flights")),
        ]
    keys = {"origin_weather": ["origin"], "aircraft": ["tailnum"]}[table]
    values = {"origin_weather": _expect_range("wind_speed", 0, 200), "aircraft": _expect_range("aircraft_age", 0, 90)}
    return [
        gxe.ExpectCompoundColumnsToBeUnique(column_list=[*keys, "event_timestamp"]),
        *_expect_not_null(*keys, "event_timestamp"),
        values[table],
    ]


def _expect_day(day: str | None) -> list[Expectation]:
    assert day is not None
    numbers = date.fromisoformat(day)
    return [
        gxe.ExpectColumnValuesToBeInSet(column=part, value_set=[getattr(numbers, part)])
        for part in ("year", "month", "day")
    ]


def _expect_not_null(*columns: str) -> list[Expectation]:
    return [gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns]


def _expect_range(column: str, low: float, high: float) -> Expectation:
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)
