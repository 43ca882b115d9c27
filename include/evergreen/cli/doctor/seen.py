"""What a check gives, or raises."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Seen:
    """Something that is right.

    Attributes:
        what: for people: a version, what may be done there.
        ahead: seconds that its clock was ahead of this machine's, if it tells the time.
    """

    what: str
    ahead: float | None = None


class Wrong(Exception):
    """Something that is not right."""

    def __init__(self, what: str, way_out: str):
        super().__init__(what, way_out)
        self.what, self.way_out = what, way_out


class Silent(Wrong):
    """It does not answer: what has just been started may answer a moment later."""


class Clock:
    """Compares another clock with ours. Made right before the other one is asked."""

    def __init__(self) -> None:
        self._asked = time.time()

    def ahead(self, theirs: datetime | float) -> float:
        """Seconds that a clock is ahead which said `theirs` when it was asked; its answer has just arrived."""
        then = theirs.timestamp() if isinstance(theirs, datetime) else theirs
        return then - (self._asked + time.time()) / 2

    def ahead_by_header(self, date: str | None) -> float | None:
        """The same by the header Date of an HTTP answer, which cuts off what is less than a second."""
        return self.ahead(parsedate_to_datetime(date).timestamp() + 0.5) if date else None
