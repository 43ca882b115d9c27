"""As of which periods `evergreen retrain` retrains, from spec, raw data and what is finished. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta

from croniter import croniter

from evergreen.errors import EvergreenError
from evergreen.periods import Calendar, Duration
from evergreen.spec.model import FeatureSpec, ModelSpec

_FIRST_HISTORY = Duration(59, "d")  # two months of data before the first retrain, or all of a shorter history


def simulated_as_of_periods(model: ModelSpec, features: FeatureSpec, finished: Collection[str]) -> list[str]:
    """Return the periods to retrain as of now if data is simulated: two at first, later the one that follows the last.

    The second of the two has a champion to beat. Empty if the data ends earlier: a retrain needs the period before it.

    Raises:
        EvergreenError: There is not enough data for the first retrain.
    """
    calendar, end = features.calendar, features.end_period
    if finished:
        periods = [next_as_of(model, calendar, max(finished))]
    else:
        delays = (model.label_delay, model.label_delay)
        histories = (model.history, (_FIRST_HISTORY, *delays))
        first = min(_after_all(features.first_period, history, calendar) for history in histories)
        periods = [first, next_as_of(model, calendar, first)]
    periods = [period for period in periods if end is None or period <= end]
    if not periods and not finished:
        raise EvergreenError(
            f"the data of {model.name} is too short: its features end on {features.last_day}, and a first retrain as "
            f"of {first} needs the {calendar.unit}s {features.first_period} to {calendar.shift(first, -1)}. Move "
            "last_day, or reduce train"
        )
    return periods


def newest_as_of_period(
    model: ModelSpec, calendar: Calendar, delivered: Collection[str], finished: Collection[str]
) -> list[str]:
    """Return the newest period for which all raw data is delivered; empty if it is finished.

    Raises:
        EvergreenError: Too little is delivered to train on and to hold out.
    """
    newest = calendar.shift(max(delivered), 1) if delivered else ""
    *untrained, _ = model.history
    start = newest
    for duration in untrained if newest else ():
        start = calendar.before(start, duration)
    if not newest or len(delivered) <= calendar.count(start, newest):
        delay = f", with its label delay of {model.label_delay}," if model.label_delay else ""
        raise EvergreenError(
            f"{len(delivered)} {calendar.unit}s of raw data are delivered for {model.name}, and its holdout{delay} "
            f"alone takes {model.holdout}: deliver more, or reduce holdout"
        )
    return [newest] if newest not in finished else []


def parse_as_of(features: FeatureSpec, as_of: str) -> str:
    """Return the period that `as_of` names, if there can be data before it, and not only after it.

    Raises:
        WindowError: It is no period.
        EvergreenError: It is not after the first period of the features, or it is after the one that follows the last.
    """
    calendar, end = features.calendar, features.end_period
    calendar.parse(as_of)
    if as_of <= features.first_period or (end and as_of > end):
        until = f", up to {end}" if end else ""
        raise EvergreenError(
            f"there is no data for a retrain as of {as_of}: choose a {calendar.unit} after "
            f"{features.first_period}{until}, or correct first_day and last_day in the spec"
        )
    return as_of


def next_as_of(model: ModelSpec, calendar: Calendar, as_of: str) -> str:
    """Return as of when the schedule retrains next; at least a period later."""
    runs = croniter(model.schedule, datetime(2001, 1, 1, tzinfo=UTC))
    first, second = runs.get_next(datetime), runs.get_next(datetime)
    minutes = (second - first) // timedelta(minutes=1)
    interval = Duration(minutes // 1440, "d") if minutes >= 1440 else Duration(minutes, "min")
    return max(calendar.after(as_of, interval), calendar.shift(as_of, 1))


def _after_all(period: str, durations: Iterable[Duration], calendar: Calendar) -> str:
    for duration in durations:
        period = calendar.after(period, duration)
    return period
