"""Which times on a clock fall into a period: where clocks change, some exist twice, and some do not exist."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from evergreen.periods import Calendar

_LONGEST_GAP = timedelta(hours=3)  # that a clock has skipped, anywhere since 1970, but for a date line that was moved
_SECOND = timedelta(seconds=1)


def clock_times_of(calendar: Calendar, period: str) -> tuple[datetime, datetime]:
    """Return the first time on a clock that is read as an instant of `period`, and the end of them, exclusive.

    Both are without a zone. A time that exists twice, when clocks are set back, may be of either period. One that does
    not exist, when they are set forward, is read as if they had not been yet: 02:30 as 03:30. So do Spark and DuckDB.
    """
    start, end = calendar.start(period).astimezone(UTC), calendar.end(period).astimezone(UTC)
    zone = ZoneInfo(calendar.timezone)
    old, new = _offset(start - _LONGEST_GAP, zone), _offset(end, zone)
    change = _change_of_offset(start - _LONGEST_GAP, end, zone)
    spans = []  # of instants, with the offset by which they are read
    if start < change:
        spans.append((start, min(end, change), old))
    if change < end:
        spans.append((max(start, change), end, new))
        skipped_until = min(end, change + max(new - old, timedelta(0)))
        if start < skipped_until:
            spans.append((max(start, change), skipped_until, old))
    first = min(begin + offset for begin, _, offset in spans)
    last = max(finish + offset for _, finish, offset in spans)
    return first.replace(tzinfo=None), last.replace(tzinfo=None)


def _change_of_offset(start: datetime, end: datetime, zone: ZoneInfo) -> datetime:
    """Return the first instant of `start` < instant ≤ `end` with the offset of `end`, to the second.

    Clocks change at most once in between.
    """
    if _offset(start, zone) == _offset(end, zone):
        return end
    while end - start > _SECOND:
        middle = start + (end - start) // 2
        if _offset(middle, zone) == _offset(start, zone):
            start = middle
        else:
            end = middle
    return end.replace(microsecond=0)


def _offset(instant: datetime, zone: ZoneInfo) -> timedelta:
    offset = instant.astimezone(zone).utcoffset()
    assert offset is not None
    return offset
