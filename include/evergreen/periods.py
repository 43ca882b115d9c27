"""The periods that data comes in: minutes, hours, days or weeks, and the arithmetic of them.

A period has one name, wherever it is kept: in windows, partitions, the ledger and messages. Names of one calendar sort
as time does. Arithmetic with names is that of a `Calendar`.

    15min, 1h …   2013-03-10T06:15Z   an instant in UTC: such periods are equally long, whatever clocks show
    1d            2013-03-10          from midnight to midnight in the model's time zone: 23, 24 or 25 hours, or another
    1w            2013-03-04          seven such days, from a Monday on

Midnight is the first instant of a date. Where clocks skip it, the date begins later; where they show it twice, at the
first one. The date that Samoa skipped has no instant: its period is empty, and begins and ends where the next one
begins.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from evergreen.errors import WindowError

_DAY = timedelta(days=1)
_UNITS = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": _DAY, "w": timedelta(weeks=1)}
_WORDS = {timedelta(hours=1): "hour", _DAY: "day", timedelta(weeks=1): "week"}
_LENGTH = re.compile(r"(?P<count>0|[1-9]\d{0,5})(?P<unit>min|h|d|w)")
_INSTANT = "%Y-%m-%dT%H:%MZ"


@dataclass(frozen=True)
class Duration:
    """A length of time in one unit: `90d`, `36h`. Days and weeks are those of a calendar, so not equally long."""

    count: int
    unit: str

    @classmethod
    @lru_cache(maxsize=256)
    def parse(cls, text: str) -> Duration:
        """Parse a count and a unit: `min`, `h`, `d` or `w`.

        Raises:
            ValueError: it is nothing of this form.
        """
        match = _LENGTH.fullmatch(text) if isinstance(text, str) else None
        if not match:
            raise ValueError(
                f"{text!r} is no length of time: write a count and min, h, d or w, such as 15min, 1h or 90d"
            )
        return cls(int(match["count"]), match["unit"])

    @property
    def is_calendar(self) -> bool:
        """Whether it is one of days, so that a time zone says how long it is."""
        return self.unit in ("d", "w")

    @property
    def length(self) -> timedelta:
        """Its length, of days and weeks without a change of clocks."""
        return self.count * _UNITS[self.unit]

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


@dataclass(frozen=True)
class Calendar:
    """All periods of one length, in one time zone."""

    period: str
    timezone: str

    def __post_init__(self) -> None:
        """Check the length: 15min fits an hour, 6h fits a day, and there is no period of three days.

        Raises:
            ValueError: there are no such periods.
        """
        length = Duration.parse(self.period)
        if length.is_calendar and length.count != 1:
            raise ValueError(f"{self.period} is no period: write 1d or 1w")
        hour, minutes = _UNITS["h"], length.length
        if not length.is_calendar and not (length and (not hour % minutes or not (minutes % hour or _DAY % minutes))):
            problem = "neither is an hour a whole number of them, nor are they whole hours that fit a day"
            raise ValueError(f"{self.period} is no period, because {problem}: write one such as 15min, 1h or 6h")

    @property
    def unit(self) -> str:
        """The word for one period: `hour`, `day` or `week`, and `period` for others, such as 15min."""
        return _WORDS.get(self._length, "period") if self._is_calendar or self._length < _DAY else "period"

    def describe(self, periods: Collection[str]) -> str:
        """Return periods in a few words: `3 days, 2013-03-10 – 2013-03-14`, of which some may be left out."""
        return f"{len(periods)} {self.unit}s, {min(periods)} – {max(periods)}" if len(periods) > 1 else "".join(periods)

    def parse(self, name: str) -> str:
        """Return the name, if it is exactly that of a period.

        Raises:
            WindowError: it is not; names a period that is near.
        """
        key = _parse_key(name, self._is_calendar)
        if key is None:
            example = "2013-03-10" if self._is_calendar else "2013-03-10T06:00Z"
            raise WindowError(f"{name!r} is not a period of {self.period} like {example}")
        if (name_of_key := self._name(self._floor(key))) != name:
            raise WindowError(f"{name!r} is not the start of a period of {self.period}: {name_of_key} is one")
        return name

    def period_at(self, instant: datetime) -> str:
        """Return the period that contains the instant, which has a time zone."""
        if not self._is_calendar:
            return self._name(self._floor(instant.astimezone(UTC)))
        key = self._floor(instant.astimezone(self._zone).date())
        # A clock that is set back over midnight shows the date before once more.
        while self._begin(key) > instant:
            key -= self._length
        while self._begin(key + self._length) <= instant:
            key += self._length
        return self._name(key)

    def start(self, name: str) -> datetime:
        """Return the first instant of a period, in UTC."""
        return self._begin(self._key(name))

    def end(self, name: str) -> datetime:
        """Return the first instant after a period, in UTC: that at which the next one starts."""
        return self._begin(self._key(name) + self._length)

    def shift(self, name: str, periods: int) -> str:
        """Return the period that is so many later, or earlier if `periods` is negative."""
        return self._name(self._key(name) + periods * self._length)

    def between(self, first: str, end: str) -> Iterator[str]:
        """Yield all periods from `first` on, before `end`."""
        key, end_key = self._key(first), self._key(end)
        while key < end_key:
            yield self._name(key)
            key += self._length

    def count(self, first: str, end: str) -> int:
        """Return the number of periods from `first` on, before `end`; negative if `end` is earlier."""
        difference: timedelta = self._key(end) - self._key(first)
        return difference // self._length

    def before(self, name: str, duration: Duration) -> str:
        """Return the period with which the time of `duration` before the period `name` begins.

        Days and weeks are those of the time zone: 7d before 10:00 UTC of a summer's day is 10:00, or 11:00 in winter.
        With periods that are longer than what was asked for, it is a whole one more.
        """
        key = self._key(name)
        if duration.is_calendar and not isinstance(key, datetime):
            return self._name(self._floor(key - duration.length))
        return self.period_at(self._shift_instant(self.start(name), duration, -1))

    def after(self, name: str, duration: Duration) -> str:
        """Return the first period that does not begin within `duration` from the start of the period `name` on."""
        key = self._key(name)
        if duration.is_calendar and not isinstance(key, datetime):
            return self._name(self._ceil(key + duration.length))
        return self._first_from(self._shift_instant(self.start(name), duration, 1))

    def first_of(self, day: date) -> str:
        """Return the first period that begins on a date, or after it if none does."""
        if self._is_calendar:
            return self._name(self._ceil(day))
        return self._first_from(_first_instant(day, self.timezone))

    def is_multiple(self, duration: Duration) -> bool:
        """Whether a duration is a whole number of periods; a calendar day is one of any that are shorter."""
        if duration.is_calendar and not self._is_calendar:
            return True
        return duration.is_calendar == self._is_calendar and not duration.length % self._length

    def count_in(self, duration: Duration) -> int:
        """Return the number of periods in a duration without a change of clocks."""
        return duration.length // self._length

    def date_of(self, name: str) -> date:
        """Return the date, in the time zone, on which a period begins: its cluster in statistics."""
        key = self._key(name)
        return key if not isinstance(key, datetime) else key.astimezone(self._zone).date()

    def dates(self, first: str, end: str) -> tuple[date, date]:
        """Return the dates, in the time zone, first ≤ date < end, on which periods from `first` on, before `end`, begin."""
        return self.date_of(first), self.date_of(self.shift(end, -1)) + max(_DAY, self._length)

    @property
    def partition_key(self) -> str:
        """What names of partitions begin with, and the column of tables that says to which one a row belongs."""
        return "day" if self._is_calendar else "period"

    @property
    def clock_timezone(self) -> str:
        """The time zone in which a schedule of one run per period is written: UTC for periods shorter than a day."""
        return self.timezone if self._is_calendar else "UTC"

    @property
    def cron(self) -> str:
        """The schedule of one run per period, in `clock_timezone`."""
        length = Duration.parse(self.period).length
        minutes = length // _UNITS["min"]
        if length > _DAY:
            return "0 0 * * 1"
        if minutes < 60:
            return f"*/{minutes} * * * *"
        return "0 0 * * *" if length == _DAY else f"0 */{minutes // 60} * * *" if minutes > 60 else "0 * * * *"

    @property
    def _is_calendar(self) -> bool:
        return Duration.parse(self.period).is_calendar

    @property
    def _length(self) -> timedelta:
        return Duration.parse(self.period).length

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def _key(self, name: str) -> date | datetime:
        key = _parse_key(self.parse(name), self._is_calendar)
        assert key is not None
        return key

    def _floor(self, key: date | datetime) -> date | datetime:
        if isinstance(key, datetime):
            midnight = key.replace(hour=0, minute=0, second=0, microsecond=0)
            return midnight + (key - midnight) // self._length * self._length
        return key - timedelta(key.weekday()) if self._length > _DAY else key

    def _ceil(self, key: date | datetime) -> date | datetime:
        floor = self._floor(key)
        return floor if floor == key else floor + self._length

    def _first_from(self, instant: datetime) -> str:
        name = self.period_at(instant)
        return name if self.start(name) >= instant else self.shift(name, 1)

    def _shift_instant(self, instant: datetime, duration: Duration, sign: int) -> datetime:
        if not duration.is_calendar:
            return instant + sign * duration.length
        local = instant.astimezone(self._zone).replace(tzinfo=None) + sign * duration.length
        return local.replace(tzinfo=self._zone).astimezone(UTC)

    def _begin(self, key: date | datetime) -> datetime:
        return key if isinstance(key, datetime) else _first_instant(key, self.timezone)

    @staticmethod
    def _name(key: date | datetime) -> str:
        return key.strftime(_INSTANT) if isinstance(key, datetime) else key.isoformat()


def days_from(first: str, end: str) -> int:
    """Return the days from the date of one period to that of another, of any length; of instants, in UTC."""
    return (date.fromisoformat(end[:10]) - date.fromisoformat(first[:10])).days


def is_period(text: str) -> bool:
    """Whether `text` is the name of a period of any length."""
    return _parse_key(text, is_calendar=True) is not None or _parse_key(text, is_calendar=False) is not None


def _parse_key(name: str, is_calendar: bool) -> date | datetime | None:
    try:
        if is_calendar:
            key = date.fromisoformat(name)
            return key if key.isoformat() == name else None
        instant = datetime.strptime(name, _INSTANT).replace(tzinfo=UTC)
        return instant if instant.strftime(_INSTANT) == name else None
    except (TypeError, ValueError):
        return None


@lru_cache(maxsize=65_536)
def _first_instant(day: date, timezone: str) -> datetime:
    """Return the first instant at which clocks in `timezone` show the date, or a later one if none does."""
    zone = ZoneInfo(timezone)
    midnight = datetime.combine(day, time(), zone).astimezone(UTC)
    if midnight.astimezone(zone).replace(tzinfo=None) == datetime.combine(day, time()):
        return midnight  # of two, the first
    # Clocks were set forward over midnight. What the time before the change gives is an instant after it; what the
    # time after it gives is one before. The change is between them.
    before = datetime.combine(day, time(), zone).replace(fold=1).astimezone(UTC)
    low, high = sorted((before, midnight))
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        if middle.astimezone(zone).replace(tzinfo=None) < datetime.combine(day, time()):
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)
