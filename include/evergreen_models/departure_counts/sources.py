"""The raw data of departures, as it is delivered: a file per hour and source, but none of takeoffs at silent hours."""

_TEXT = dict(type="string", nullable=False)
_INSTANT = dict(type="timestamp[us, tz=UTC]", nullable=False)

DEPARTURES = dict(
    name="takeoffs",
    trailing="1d",
    known_at="departed_at",
    # Nobody leaves at night.
    empty_periods="absent",
    absent_after_hours=4,
    columns={"departed_at": _INSTANT, "origin": _TEXT, "dest": _TEXT, "carrier": _TEXT},
)
STATIONS = dict(
    name="stations",
    trailing="1h",
    known_at="read_at",
    # Readings may be missing, even all of them: the features then have no weather.
    empty_periods="delivered",
    columns={
        "origin": _TEXT,
        "read_at": _INSTANT,
        "temp": dict(type="float64", unit="°F"),
        "wind_speed": dict(type="float64", unit="mph"),
        "precip": dict(type="float64", unit="inches"),
        "visib": dict(type="float64", unit="miles"),
    },
)
SOURCES = (DEPARTURES, STATIONS)
