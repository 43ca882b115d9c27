"""When features are in the online store: how long after the end of their period, as a view's source declares it.

A row is served from the end of its period on, and the declared time. Rows that are dated at the end of their period or
later are loaded with the period that they fall in: what is loaded ends where its last period does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple, Self

from pydantic import Field

from evergreen.errors import Fault
from evergreen.periods import Calendar, Duration
from evergreen.spec import DurationText, Frozen

_TAG, _PERIOD_TAG, _TIMEZONE_TAG = "served_after", "period", "timezone"
_NEWEST = 30
"""Publications that are compared with what is declared."""
_FEWEST = 5
_TOLERATED_SHARE = 0.1
"""Of them may be later: a source that failed once is no reason to learn from older features."""


class ServingInstants(NamedTuple):
    """When the rows of a published period are served."""

    end: datetime
    """The end of the period."""
    served_at: datetime
    """From when on rows before the end are served."""
    later_served_at: datetime
    """From when on the others are, which fall in the next period."""


class ServedAfter(Frozen):
    """The time after the end of a period after which its rows are in the online store. A day has 24 hours."""

    delay: DurationText = Field(description="time after the end of a period")
    period: str = Field(description="of the features that it is about")
    timezone: str = Field(description="in which days begin")

    @classmethod
    def declare(cls, delay: str, calendar: Calendar) -> Self:
        """Return it for features of this calendar.

        Raises:
            ValueError: `delay` is no length of time.
        """
        return cls(delay=Duration.parse(delay), period=calendar.period, timezone=calendar.timezone)

    @classmethod
    def from_tags(cls, tags: Mapping[str, str] | None) -> Self | None:
        """Return what the tags of a source declare; None: nothing, so its rows count from their event timestamp on.

        Raises:
            ValueError: one of the tags is missing.
        """
        if not tags or _TAG not in tags:
            return None
        if missing := [name for name in (_PERIOD_TAG, _TIMEZONE_TAG) if name not in tags]:
            raise ValueError(f"the tag {_TAG} needs {' and '.join(missing)}: use feature_source(…, served_after=…)")
        return cls(delay=Duration.parse(tags[_TAG]), period=tags[_PERIOD_TAG], timezone=tags[_TIMEZONE_TAG])

    def to_tags(self) -> dict[str, str]:
        """Return the tags that `from_tags` reads."""
        return {_TAG: str(self.delay), _PERIOD_TAG: self.period, _TIMEZONE_TAG: self.timezone}

    @property
    def calendar(self) -> Calendar:
        return Calendar(self.period, self.timezone)

    def instants(self, period: str) -> ServingInstants:
        """Return when the rows of a period are served."""
        calendar, delay = self.calendar, self.delay.length
        end, later_end = calendar.end(period), calendar.end(calendar.shift(period, 1))
        return ServingInstants(end, end + delay, later_end + delay)

    def known_at(self, period: str, event_timestamp: datetime) -> datetime:
        """Return from when on a row of a period is served."""
        instants = self.instants(period)
        served_at = instants.served_at if event_timestamp < instants.end else instants.later_served_at
        return max(event_timestamp, served_at)


def find_serving_faults(views: Sequence[Any]) -> list[Fault]:
    """Return what Feast's `views` declare about serving and what cannot be."""
    faults, declared = [], dict[str, tuple[str, ServedAfter | None]]()
    for view in views:
        if view.batch_source is None:
            continue
        served_after = ServedAfter.from_tags(view.batch_source.tags)
        name, first = declared.setdefault(view.batch_source.name, (view.name, served_after))
        if first != served_after:
            problem = f"declares another served_after than view {name}, which reads the same table"
            faults.append(Fault(f"view {view.name}", problem, "declare one: the table is loaded at once"))
        if served_after and view.ttl and view.ttl < served_after.delay.length:
            problem = f"has a ttl of {view.ttl}, and is served {served_after.delay} after its period: no row ever holds"
            faults.append(Fault(f"view {view.name}", problem, "declare a longer ttl, or an earlier served_after"))
    return faults


def publication_delays(published_at: Mapping[str, datetime], calendar: Calendar) -> list[timedelta]:
    """Return how long after their end the newest periods were published, oldest first, one for each publication.

    Args:
        published_at: When each period was last published.
        calendar: That of the periods.

    Periods that were published together, such as those of a backfill, are one publication: that of the first of them.
    A period that was published again, after later ones, says nothing about when it was first.
    """
    kept: list[tuple[str, datetime]] = []  # newest first
    for period in sorted(published_at, reverse=True):
        if not kept or published_at[period] <= kept[-1][1]:
            kept.append((period, published_at[period]))
    delays = []
    for (period, instant), (_, instant_before) in pairwise(kept):  # not the first: it may be the start of a backfill
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

    Less than five publications say nothing, nor does one of ten that is late.
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
