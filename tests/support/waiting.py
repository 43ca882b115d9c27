"""Wait for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def eventually(what: str, holds: Callable[[], Any], patience: float = 300) -> Any:
    """What `holds` gives once it is true. Other processes tell nobody, so it is asked again and again."""
    deadline = time.monotonic() + patience
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.05)
    return found
