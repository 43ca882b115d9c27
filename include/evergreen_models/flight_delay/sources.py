"""The raw data of flights out of New York, as it is delivered: its sources, and the columns of each."""

_INTEGER = dict(type="int64", nullable=False)
_TEXT = dict(type="string", nullable=False)
_HOUR = dict(type="timestamp[us, tz=UTC]", nullable=False)
_DATE = dict.fromkeys(("year", "month", "day"), _INTEGER)  # of the calendar in New York
# Clock times are local to each airport, as in 1745 for a quarter to six. Pandas has no integers with nulls.
_CLOCK = dict(type="float64", unit="hhmm")
_PLANNED_CLOCK = dict(type="int64", nullable=False, unit="hhmm")
_MINUTES = dict(type="float64", unit="minutes")

FLIGHTS = dict(
    name="flights",
    # Trailing rates look back seven days from each hour, at flights scheduled up to two days earlier.
    trailing="9d",
    extra_columns="refuse",
    columns={
        **_DATE,
        "dep_time": _CLOCK,
        "sched_dep_time": _PLANNED_CLOCK,
        "dep_delay": _MINUTES,
        "arr_time": _CLOCK,
        "sched_arr_time": _PLANNED_CLOCK,
        "arr_delay": dict(_MINUTES, description="null for a flight that was cancelled or diverted"),
        "carrier": _TEXT,
        "flight": _INTEGER,
        "tailnum": "string",
        "origin": _TEXT,
        "dest": _TEXT,
        "air_time": _MINUTES,
        "distance": dict(_INTEGER, unit="miles"),
        "hour": dict(_INTEGER, description="of the planned departure"),
        "minute": dict(_INTEGER, description="of the planned departure"),
        "time_hour": dict(_HOUR, description="the planned departure, at its full hour"),
    },
)
WEATHER = dict(
    name="weather",
    trailing="1d",
    # Hours may be missing, even a whole day: the features then have no weather.
    empty_periods="delivered",
    columns={
        "origin": _TEXT,
        **_DATE,
        "hour": _INTEGER,
        "temp": dict(type="float64", unit="°F"),
        "dewp": dict(type="float64", unit="°F"),
        "humid": dict(type="float64", unit="%"),
        "wind_dir": dict(type="float64", unit="degrees"),
        "wind_speed": dict(type="float64", unit="mph"),
        "wind_gust": dict(type="float64", unit="mph"),
        "precip": dict(type="float64", unit="inches"),
        "pressure": dict(type="float64", unit="millibars"),
        "visib": dict(type="float64", unit="miles"),
        "time_hour": _HOUR,
    },
)
PLANES = dict(
    name="planes",
    is_register=True,
    columns={
        "tailnum": _TEXT,
        "year": dict(type="float64", description="in which it was built"),
        **dict.fromkeys(("type", "manufacturer", "model"), "string"),
        **dict.fromkeys(("engines", "seats"), "int64"),
        "speed": dict(type="float64", unit="mph"),
        "engine": "string",
    },
)
AIRPORTS = dict(
    name="airports",
    is_register=True,
    columns={"faa": _TEXT, "tzone": dict(_TEXT, description="IANA time zone")},
)
SOURCES = (FLIGHTS, WEATHER, PLANES, AIRPORTS)
