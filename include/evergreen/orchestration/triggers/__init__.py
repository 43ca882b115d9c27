"""Triggers: raw days that arrive, DAG runs that finish, pods that end."""

from inspect import signature
from typing import Any

from airflow.triggers.base import BaseTrigger


def serialize_trigger(trigger: BaseTrigger) -> tuple[str, dict[str, Any]]:
    """Return path and arguments of a trigger that has an attribute for each argument of its class."""
    trigger_class = type(trigger)
    arguments = {name: getattr(trigger, name) for name in signature(trigger_class).parameters}
    return f"{trigger_class.__module__}.{trigger_class.__name__}", arguments
