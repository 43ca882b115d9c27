"""Expected failures of checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evergreen.cli.doctor.outcomes import CheckFailedError


def failure(check: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, str]:
    """Return the problem and the fix that a failing check reports."""
    with pytest.raises(CheckFailedError) as caught:
        check(*arguments, **options)
    return caught.value.problem, caught.value.fix
