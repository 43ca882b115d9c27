"""Which as-of dates `evergreen retrain` takes, from spec, raw data and finished dates. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta

from croniter import croniter

from evergreen.errors import EvergreenError
from evergreen.spec.model import FeatureSpec, ModelSpec

_FIRST_HISTORY = timedelta(days=59)  # two months of data before the first retrain, or all of a shorter history


def simulated_as_of_dates(model: ModelSpec, features: FeatureSpec, finished_dates: Collection[date]) -> list[date]:
    """Return the dates to retrain at now if data is simulated: two at first, later the one that follows the last.

    The second of the two has a champion to beat. Empty if the data ends earlier: a retrain as of midnight needs the day
    before it.

    Raises:
        EvergreenError: There is not enough data for the first retrain.
    """
    interval = retrain_interval(model)
    if finished_dates:
        dates = [max(finished_dates) + interval]
    else:
        delays = timedelta(2 * model.label_delay)
        first = features.first_day + min(timedelta(days=model.history_days), _FIRST_HISTORY + delays)
        dates = [first, first + interval]
    last_day = features.last_day
    dates = [day for day in dates if last_day is None or day <= last_day + timedelta(1)]
    if not dates and not finished_dates:
        raise EvergreenError(
            f"the data of {model.name} is too short: its features end on {last_day}, and a first retrain as of {first} "
            f"needs the days {features.first_day} to {first - timedelta(1)}. Move last_day, or reduce train_days"
        )
    return dates


def newest_as_of_date(
    model: ModelSpec, delivered_days: Collection[date], finished_dates: Collection[date]
) -> list[date]:
    """Return the newest date for which all raw data is delivered; empty if it is finished.

    Raises:
        EvergreenError: Too few days are delivered to train on and to hold out.
    """
    untrained_days = model.history_days - model.train_days
    if len(delivered_days) <= untrained_days:
        delay = f", with its label delay, {untrained_days}" if model.label_delay else f" {untrained_days}"
        raise EvergreenError(
            f"{len(delivered_days)} days of raw data are delivered for {model.name}, and its holdout alone takes"
            f"{delay}: deliver more, or reduce holdout_days"
        )
    newest = max(delivered_days) + timedelta(1)
    return [newest] if newest not in finished_dates else []


def check_as_of(features: FeatureSpec, as_of: date) -> None:
    """Check that there can be data before `as_of`, and not only after it.

    Raises:
        EvergreenError: It is not after the first day of the features, or it is after the day that follows the last.
    """
    if as_of <= features.first_day or (features.last_day and as_of > features.last_day + timedelta(1)):
        end = f", up to {features.last_day + timedelta(1)}" if features.last_day else ""
        raise EvergreenError(
            f"there is no data for a retrain as of {as_of}: choose a day after {features.first_day}{end}, "
            "or correct first_day and last_day in the spec"
        )


def retrain_interval(model: ModelSpec) -> timedelta:
    """Return the days between two retrains on the model's schedule; at least one."""
    runs = croniter(model.schedule, datetime(2001, 1, 1, tzinfo=UTC))
    first, second = runs.get_next(datetime), runs.get_next(datetime)
    return max(timedelta(days=(second - first).days), timedelta(1))
