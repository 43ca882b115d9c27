"""What is private to Airflow's providers changes with any release, and nothing of it is used here."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import pytest

from evergreen import orchestration

pytestmark = pytest.mark.dag

PROVIDERS = "airflow.providers."


def classes() -> Iterator[type]:
    for module in pkgutil.walk_packages(orchestration.__path__, f"{orchestration.__name__}."):
        for _, member in inspect.getmembers(import_module(module.name), inspect.isclass):
            if member.__module__ == module.name:
                yield member


def private_names(owner: type) -> set[str]:
    """The names with an underscore that a class gives to its methods, or that these use on whatever object."""
    functions = [inspect.unwrap(member) for member in vars(owner).values() if inspect.isfunction(member)]
    own = [function for function in functions if function.__module__ == owner.__module__]
    names = {name for function in own for name in (function.__name__, *function.__code__.co_names)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_no_class_uses_a_private_member_of_a_provider() -> None:
    shared = {
        f"{owner.__name__}: {name} of {base.__module__}"
        for owner in classes()
        for base in owner.__mro__[1:]
        if base.__module__.startswith(PROVIDERS)
        for name in private_names(owner) & private_names(base)
    }
    assert shared == set()
