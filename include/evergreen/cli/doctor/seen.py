"""What a check gives, or raises."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class CheckPassed:
    """Something that is right.

    Attributes:
        what: for people: a version, what may be done there.
        ahead: seconds that its clock was ahead of this machine's, if it tells the time.
    """

    message: str
    clock_skew: float | None = None


class CheckFailedError(Exception):
    """Something that is not right."""

    def __init__(self, what: str, way_out: str):
        super().__init__(what, way_out)
        self.problem, self.fix = what, way_out


class UnreachableError(CheckFailedError):
    """It does not answer: what has just been started may answer a moment later."""


class ClockProbe:
    """Compares another clock with ours. Made right before the other one is asked."""

    def __init__(self) -> None:
        self._request_time = time.time()

    def skew(self, remote_time: datetime | float) -> float:
        """Seconds that a clock is ahead which said `theirs` when it was asked; its answer has just arrived."""
        then = remote_time.timestamp() if isinstance(remote_time, datetime) else remote_time
        return then - (self._request_time + time.time()) / 2

    def skew_from_header(self, date: str | None) -> float | None:
        """The same by the header Date of an HTTP answer, which cuts off what is less than a second."""
        return self.skew(parsedate_to_datetime(date).timestamp() + 0.5) if date else None
