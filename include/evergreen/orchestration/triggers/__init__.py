"""Triggers: raw days that arrive, DAG runs that finish, pods that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from inspect import signature
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

ACTIVE_STATES = ["queued", "running"]
_POLL_S = 2


def serialize_trigger(trigger: BaseTrigger) -> tuple[str, dict[str, Any]]:
    """Return path and arguments of a trigger that has an attribute for each argument of its class."""
    trigger_class = type(trigger)
    arguments = {name: getattr(trigger, name) for name in signature(trigger_class).parameters}
    return f"{trigger_class.__module__}.{trigger_class.__name__}", arguments


class DagRunsFinishedTrigger(BaseTrigger):
    """Fires once none of the runs is active, whatever its state, or deleted.

    (Airflow's own DagStateTrigger waits forever for a deleted run.)
    """

    def __init__(self, dag_id: str, run_ids: list[str]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.dag_id, self.run_ids = dag_id, run_ids

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return serialize_trigger(self)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        count_runs = sync_to_async(RuntimeTaskInstance.get_dr_count)
        while await count_runs(dag_id=self.dag_id, run_ids=self.run_ids, states=ACTIVE_STATES):
            await asyncio.sleep(_POLL_S)
        yield TriggerEvent(self.run_ids)  # type: ignore[no-untyped-call]
