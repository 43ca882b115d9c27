"""What a check says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evergreen.cli.doctor.seen import CheckFailedError


def wrong(look: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[str, str]:
    """What a check says is wrong, and the way out."""
    with pytest.raises(CheckFailedError) as caught:
        look(*arguments, **named)
    return caught.value.problem, caught.value.fix
