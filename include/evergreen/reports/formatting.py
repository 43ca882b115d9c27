"""How reports, the terminal and the approval form write numbers and outcomes."""

from __future__ import annotations

import math
from datetime import date, timedelta
from typing import Any

OUTCOME_SYMBOLS = {"passed": "✓", "failed": "✗", "inconclusive": "…", "not_computed": "?"}
NO_VALUE = "–"


def format_number(value: Any) -> str:
    """Return four significant digits, and four decimals below 1; a value that is not a number is returned as text."""
    if value is None:
        return NO_VALUE
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value}"
    size = abs(value)
    style = ",.0f" if 1000 <= size < 1e9 else ".4f" if 0.001 <= size < 1 else ".3g" if 0 < size < 0.001 else ".4g"
    return format(value, style).replace("-", "−")


def format_signed(value: float) -> str:
    """Return the number with its sign, as differences are written."""
    return ("+" if value > 0 else "") + format_number(value)


def format_limit(value: float) -> str:
    """Return a limit as its author wrote it."""
    return f"{value:g}".replace("-", "−")


def format_interval(interval: tuple[float, float] | None) -> str:
    """Return both bounds of a difference."""
    return " … ".join(map(format_signed, interval)) if interval else NO_VALUE


def format_percent(share: float | None) -> str:
    """Return a share between 0 and 1 in percent."""
    return NO_VALUE if share is None else f"{100 * share:.3g} %"


def format_date_range(first: date, end: date) -> str:
    """Return the days `first` ≤ day < `end` in words."""
    days = (end - first).days
    return f"{first} to {end - timedelta(1)}, {days} days" if days > 1 else f"{first}"


def format_outcome(outcome: str) -> str:
    """Return an outcome of a gate with its symbol, which also tells it apart without colour."""
    return f"{OUTCOME_SYMBOLS[outcome]} {outcome.replace('_', ' ')}"
