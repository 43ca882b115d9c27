"""Something else happens in the middle of an action: before one of its changes of files or objects, by number."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from evergreen import object_store
from evergreen.lake import object_datasets, retention

_SYSTEM_MODULES = ("posix", "fcntl")
_STORE_CHANGES = (
    (object_store, "put_file"),
    (object_store, "write"),
    (object_store, "delete"),
    (object_datasets, "remove_version"),
    (retention, "change_storage_class"),
)
_CHANGES = frozenset(["flock", "link", "mkdir", "rename", "replace", "rmdir", "unlink", "utime"])


@contextmanager
def before_change(number: int, event: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """Let `event` happen just before change `number`, from 0, of the file system; yield what counts the changes.

    What happens between two changes happens as well just before the second: after all that was read for it.
    """
    changes = 0

    def watch(_: Any, kind: str, function: Any) -> None:
        nonlocal changes
        is_system_call = kind == "c_call" and getattr(function, "__module__", None) in _SYSTEM_MODULES
        if is_system_call and function.__name__ in _CHANGES:
            changes += 1
            if changes == number + 1:
                sys.setprofile(None)
                event()
                sys.setprofile(watch)

    sys.setprofile(watch)
    try:
        yield lambda: changes
    finally:
        sys.setprofile(None)


def killed_before_change(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child process that dies just before its change `number`; return whether it made so many."""
    child = os.fork()
    if not child:
        try:
            with before_change(number, lambda: os._exit(9)):
                action()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), f"the action failed in its process: {code}"
    return code == 9


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def before_store_change(number: int, event: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """Let `event` happen just before change `number`, from 0, of an object store; yield what counts the changes.

    An event that raises `Killed` does so before each later change as well: a process that has ended changes nothing.
    """
    changes = 0
    is_happening = False

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal changes, is_happening
            if not is_happening:
                changes += 1
                is_happening = changes == number + 1 or (is_dead and changes > number)
                if is_happening:
                    happen()
                    is_happening = False
            return function(*arguments)

        return run

    is_dead = False

    def happen() -> None:
        nonlocal is_dead, is_happening
        try:
            event()
        except Killed:
            is_dead, is_happening = True, False
            raise

    with pytest.MonkeyPatch.context() as patch:
        for module, name in _STORE_CHANGES:
            patch.setattr(module, name, watch(getattr(module, name)))
        yield lambda: changes


def killed_before_store_change(number: int, action: Callable[[], object]) -> bool:
    """Run `action` until just before its change `number` of an object store; return whether it made so many."""

    def kill() -> None:
        raise Killed

    try:
        with before_store_change(number, kill):
            action()
    except Killed:
        return True
    return False
