"""Expectations of the raw files, and of the features built from them; if one fails, nothing is published."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation

from evergreen_models.departure_counts.features import ORIGINS, RECENT_COLUMNS


def raw_expectations(source: str, hour: str | None) -> list[Expectation]:
    """Return the expectations of the raw file of `source` for `hour`."""
    assert hour
    start = datetime.fromisoformat(hour).astimezone(UTC)
    instant, rows = {"takeoffs": ("departed_at", 150), "stations": ("read_at", len(ORIGINS))}[source]
    return [
        gxe.ExpectTableRowCountToBeBetween(max_value=rows),
        gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=list(ORIGINS)),
        gxe.ExpectColumnValuesToBeBetween(
            column=instant, min_value=start, max_value=start + timedelta(hours=1), strict_max=True
        ),
        *([gxe.ExpectColumnValuesToBeUnique(column="origin")] if source == "stations" else []),
    ]


def feature_expectations(table: str) -> list[Expectation]:
    """Return the expectations of one computed hour of `table`, the spine or a view."""
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeUnique(column="origin"),
        gxe.ExpectColumnValuesToNotBeNull(column="event_timestamp"),
    ]
    if table == "airport_weather":
        return [*expectations, gxe.ExpectColumnValuesToBeBetween(column="wind_speed", min_value=0, max_value=200)]
    columns = ("departures",) if table == "hours" else RECENT_COLUMNS
    return [
        *expectations,
        gxe.ExpectTableRowCountToEqual(value=len(ORIGINS)),
        *(gxe.ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=2_000) for column in columns),
        *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns),
    ]
