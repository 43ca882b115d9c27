"""As-of dates of the demo, from the model's spec and from the dates that are finished. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta

from evergreen.errors import EvergreenError
from evergreen.spec.model import FeatureSpec, ModelSpec

RETRAIN_INTERVAL = timedelta(days=7)
_FIRST_HISTORY = timedelta(days=59)  # two months of data before the first retrain, or all of a shorter history


def as_of_dates(model: ModelSpec, features: FeatureSpec, finished_dates: Collection[date]) -> list[date]:
    """Return the as-of dates to retrain at now: at first two, a week apart; later one, a week after the last.

    The second of the two has a champion to beat. Empty if the data ends earlier: a retrain as of midnight needs the day
    before it.

    Raises:
        EvergreenError: There is not enough data for the first retrain.
    """
    if finished_dates:
        dates = [max(finished_dates) + RETRAIN_INTERVAL]
    else:
        first = features.first_day + min(timedelta(days=model.history_days), _FIRST_HISTORY)
        dates = [first, first + RETRAIN_INTERVAL]
    last_day = features.last_day
    dates = [day for day in dates if last_day is None or day <= last_day + timedelta(days=1)]
    if not dates and not finished_dates:
        raise EvergreenError(
            f"the data of {model.name} is too short: its features end on {last_day}, and a first retrain as of {first} "
            f"needs the days {features.first_day} to {first - timedelta(days=1)}. Move last_day, or reduce train_days"
        )
    return dates
