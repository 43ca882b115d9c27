"""Something else happens in the middle of an action: at one of its calls of the operating system, chosen by number."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SYSTEM_MODULES = ("posix", "fcntl")
_CHANGES = frozenset(["flock", "link", "mkdir", "rename", "replace", "rmdir", "unlink", "utime"])


@contextmanager
def at_system_call(
    number: int, event: Callable[[], object], *, only_changes: bool = False
) -> Iterator[Callable[[], int]]:
    """Let `event` happen just before the system call `number`, from 0; yield what returns how many calls there were.

    With `only_changes`, those that read something do not count: a process that dies there leaves the same.
    """
    calls = 0

    def watch(_: Any, kind: str, function: Any) -> None:
        nonlocal calls
        if kind != "c_call" or getattr(function, "__module__", None) not in _SYSTEM_MODULES:
            return
        if only_changes and function.__name__ not in _CHANGES:
            return
        calls += 1
        if calls == number + 1:
            sys.setprofile(None)
            event()
            sys.setprofile(watch)

    sys.setprofile(watch)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(None)


def killed_before_change(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child process that dies just before its change `number`; return whether it made so many."""
    child = os.fork()
    if not child:
        try:
            with at_system_call(number, lambda: os._exit(9), only_changes=True):
                action()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), f"the action failed in its process: {code}"
    return code == 9
