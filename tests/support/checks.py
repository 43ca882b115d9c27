"""What a check says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evergreen.cli.doctor.seen import Wrong


def wrong(look: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[str, str]:
    """What a check says is wrong, and the way out."""
    with pytest.raises(Wrong) as caught:
        look(*arguments, **named)
    return caught.value.what, caught.value.way_out
