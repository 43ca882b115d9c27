"""The deadline of a retrain: one that takes longer than `deadline` of the spec is reported, and goes on.

Airflow shows missed deadlines on its home page and under *Browse → Deadlines*. A deadline needs a run. That no run was
created, or that it changed nothing, is said by `fresh_within` instead (`evergreen.promotion.freshness`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from evergreen.spec.model import ModelSpec

log = logging.getLogger(__name__)


def retrain_deadline(model: ModelSpec) -> DeadlineAlert | None:
    """Return the alert for the DAG that retrains `model`; None if its spec sets no deadline."""
    if model.deadline is None:
        return None
    return DeadlineAlert(
        # Not the logical date: a run that an asset event starts has none, and would have no deadline.
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=model.deadline.length,
        callback=AsyncCallback(report_missed_deadline, kwargs={"model": model.name, "deadline": str(model.deadline)}),
        name=f"{model.name}.retrain within {model.deadline}",
    )


async def report_missed_deadline(model: str, deadline: str, context: Mapping[str, Any]) -> None:
    """Write a missed deadline to the log of the triggerer, which runs this: so it must be importable there.

    `context` has `dag_run` as Airflow's REST API returns it.
    """
    run = context.get("dag_run") or {}
    if run.get("run_type") == "backfill":
        log.info(
            "%s of the backfill of %s is not done after %s: its runs wait for one another", _name(run), model, deadline
        )
        return
    log.error("%s is not done after %s, the deadline of %s; it goes on", _name(run), deadline, model)


def _name(run: Mapping[str, Any]) -> str:
    return f"{run.get('dag_id', 'a run')} {run.get('dag_run_id', '')}".strip()
