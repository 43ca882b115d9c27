"""What a call of `evergreen retrain` has to do, from what was done before. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta

FIRST = date(2013, 3, 1)
"""The first retrain: two months of days are behind it. The second faces its champion, a week later."""

STEP = timedelta(days=7)


def as_of_dates(finished: Collection[date], last_day: date | None) -> list[date]:
    """As-of dates to retrain at now: the first two weeks, later the week after the last `finished` one.

    Empty when the data ends before: a retrain as of midnight needs the day before it.
    """
    wanted = [max(finished) + STEP] if finished else [FIRST, FIRST + STEP]
    return [day for day in wanted if last_day is None or day <= last_day + timedelta(days=1)]
