"""Child processes that are forked, so that they run what a test has prepared in its own process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from evergreen.feature_store import repository

_PATIENCE = 120  # seconds, after which a child that hangs is ended: it would keep the output of the tests open


def fork(action: Callable[[], object]) -> int:
    """Start a child process that opens Feast itself and exits with 0 if `action` returns; return its id."""
    if child := os.fork():
        return child
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_PATIENCE)
    code = 1
    try:
        repository.open_feature_store.cache_clear()
        action()
        code = 0
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Return the exit code of a child, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
