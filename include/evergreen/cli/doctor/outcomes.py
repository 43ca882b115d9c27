"""Outcomes of a check, and the comparison of clocks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class CheckPassed:
    """A check has passed.

    Attributes:
        message: What was found: a version, permissions.
        clock_skew: Seconds that the server's clock is ahead of this machine's; None if unknown.
    """

    message: str
    clock_skew: float | None = None


class CheckFailedError(Exception):
    """A check has found a problem."""

    def __init__(self, problem: str, fix: str):
        super().__init__(problem, fix)
        self.problem, self.fix = problem, fix


class UnreachableError(CheckFailedError):
    """A server does not respond; it may do so later, if it was just started."""


class ClockProbe:
    """Measures the skew of a server's clock. Created right before the request to the server."""

    def __init__(self) -> None:
        self._request_time = time.time()

    def skew(self, remote_time: datetime | float) -> float:
        """Return the seconds that the server's clock is ahead; `remote_time` is from the response just received."""
        timestamp = remote_time.timestamp() if isinstance(remote_time, datetime) else remote_time
        return timestamp - (self._request_time + time.time()) / 2

    def skew_from_header(self, date: str | None) -> float | None:
        """Return the same for the Date header of an HTTP response, which has no fractions of a second."""
        return self.skew(parsedate_to_datetime(date).timestamp() + 0.5) if date else None
