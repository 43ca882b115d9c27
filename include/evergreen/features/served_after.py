"""When features are in the online store: how long after the end of their period, as a view's source declares it.

A row is served from the end of its period on, and the declared time. Rows that are dated at the end of their period or
later are loaded with the period that they fall in: what is loaded ends where its last period does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Self

from pydantic import Field

from evergreen.errors import Fault
from evergreen.periods import Calendar, Duration
from evergreen.spec import DurationText, Frozen

_TAG, _PERIOD_TAG, _TIMEZONE_TAG = "served_after", "period", "timezone"


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
