"""What a call of `evergreen retrain` has to do, from what was done before. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta

FIRST_AS_OF = date(2013, 3, 1)
"""The first retrain: two months of days are behind it. The second faces its champion, a week later."""

RETRAIN_INTERVAL = timedelta(days=7)


def as_of_dates(finished_dates: Collection[date], last_day: date | None) -> list[date]:
    """As-of dates to retrain at now: the first two weeks, later the week after the last `finished` one.

    Empty when the data ends before: a retrain as of midnight needs the day before it.
    """
    wanted = (
        [max(finished_dates) + RETRAIN_INTERVAL] if finished_dates else [FIRST_AS_OF, FIRST_AS_OF + RETRAIN_INTERVAL]
    )
    return [day for day in wanted if last_day is None or day <= last_day + timedelta(days=1)]
