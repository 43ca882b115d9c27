"""Names of days, for tests that count in days."""

from __future__ import annotations

from evergreen.periods import Calendar, Duration

DAYS = Calendar("1d", "America/New_York")


def later(day: str, days: int) -> str:
    """Return the day that is so many days later, or earlier if `days` is negative."""
    return DAYS.shift(day, days)


def cooldown(days: int) -> dict[str, Duration | Calendar]:
    """Return the arguments of rules about a cooldown of so many days."""
    return {"cooldown": Duration(days, "d"), "calendar": DAYS}
