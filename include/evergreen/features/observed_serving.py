"""When features were really published, compared with when their views declare that they are served."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from itertools import pairwise

from evergreen.errors import Fault
from evergreen.features.served_after import ServedAfter
from evergreen.periods import Calendar

_NEWEST = 30
"""Publications that are compared with what is declared."""
_FEWEST = 5
_TOLERATED_SHARE = 0.1
"""Of them may be later: a source that failed once is no reason to learn from older features."""


def publication_delays(published_at: Mapping[str, datetime], calendar: Calendar) -> list[timedelta]:
    """Return how long after their end the newest periods were published, oldest first, one for each publication.

    Args:
        published_at: When each period was last published.
        calendar: That of the periods.

    Periods that were published together, such as those of a backfill, are one publication: that of the first of them.
    A period that was published again, after later ones, says nothing about when it was first.
    """
    publications: list[tuple[str, datetime]] = []  # newest first
    for period in sorted(published_at, reverse=True):
        if not publications or published_at[period] <= publications[-1][1]:
            publications.append((period, published_at[period]))
    delays = []
    # The oldest one counts for nothing: it may be the start of a backfill.
    for (period, instant), (_, instant_before) in pairwise(publications):
        start, end = calendar.start(period), calendar.end(period)
        if instant - instant_before >= (end - start) / 2:
            delays.append(instant - end)
    return delays[:_NEWEST][::-1]


def find_views_served_late(
    declared: Mapping[str, ServedAfter], delays: Collection[timedelta], feature_model: str
) -> list[Fault]:
    """Return the views that are served later than they declare: a training row had features that no request has.

    Args:
        declared: By view.
        delays: How long after the end of their period features were published: see `publication_delays`.
        feature_model: The model folder that declares and publishes them.

    Fewer than five publications say nothing, and one of ten may be later.
    """
    faults: list[Fault] = []
    if len(delays) < _FEWEST:
        return faults
    for view, served_after in declared.items():
        late = [delay for delay in delays if delay > served_after.delay.length]
        if len(late) <= _TOLERATED_SHARE * len(delays):
            continue
        usual = sorted(delays)[len(delays) - 1 - int(_TOLERATED_SHARE * len(delays))]
        problem = (
            f"declares served_after={str(served_after.delay)!r}, and {len(late)} of the last {len(delays)} "
            f"publications were later, the latest {_text(max(late))} after the end of the period"
        )
        fix = (
            f"declare served_after={_round_up(usual)!r} in feature_repo/{feature_model}.py, or have its data delivered "
            "and built earlier"
        )
        faults.append(Fault(f"view {view}", problem, fix))
    return faults


def _text(delay: timedelta) -> str:
    return str(timedelta(seconds=round(delay.total_seconds())))


def _round_up(delay: timedelta) -> str:
    """Return the next length of time that is a whole number of quarters of an hour, or of hours."""
    minutes = -(-delay // timedelta(minutes=1))
    if minutes <= 60:
        return f"{-(-minutes // 15) * 15}min"
    return f"{-(-minutes // 60)}h"
