"""The rebuild of stale features: runs of the features DAG, one batch of days after the other."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import takewhile
from typing import Any

from airflow.sdk import BaseOperator

from evergreen.errors import StaleFeaturesError
from evergreen.features import inputs, staleness
from evergreen.features.staleness import StaleFeatures
from evergreen.orchestration.handover import RetrainPlan, XCom
from evergreen.orchestration.triggers import DagRunsFinishedTrigger
from evergreen.settings import settings
from evergreen.spec import loader

log = logging.getLogger(__name__)


class RebuildFeaturesOperator(BaseOperator):
    """Have the features DAG build again the days of the window that are stale; wait for it without a worker slot.

    What is left to do is read from the published features each time, so a try that was killed is just repeated. A
    day that another run builds meanwhile is waited for by the features DAG: two runs never build the same day.
    """

    template_fields: Sequence[str] = ("plan",)
    ui_color = "#e8f7e4"

    def __init__(self, *, model: str, plan: XCom, **kwargs: Any):
        super().__init__(doc_md=RebuildFeaturesOperator.__doc__, **kwargs)
        self.model, self.plan = model, plan

    def execute(self, context: Any, run_id: str = "", batch: Sequence[str] = (), **_: Any) -> None:
        """Start the next run; called again after it has ended, with its `run_id` and the days of its `batch`.

        Raises:
            StaleFeaturesError: the features DAG is paused, or a run of it has ended and its days are stale still.
        """
        from evergreen.feature_store import training_sets

        model = loader.load_spec(self.model)
        features_dag_id = f"{model.feature_model}.features"
        read_days = training_sets.days_to_read(model, RetrainPlan.load(self.plan).window())
        stale = staleness.find_stale_features(model, inputs.published_manifests(model, read_days))
        log.info("%s", stale.summary)
        if not stale.days:
            return
        problem, fix = "", ""
        if unchanged := set(batch) & {day.isoformat() for day in stale.days}:
            problem = f"its run {run_id} has ended, and {len(unchanged)} of its days are stale still"
            fix = "the log of that run says why; correct it, then clear this task"
        elif context["ti"].get_dag(features_dag_id).is_paused:
            problem, fix = "it is paused, and has to rebuild them", "unpause it, then clear this task"
        if problem:
            raise StaleFeaturesError(f"{self.model}: features of {features_dag_id}: {problem}", stale.faults(fix))
        days = _next_batch(stale)
        new_run_id = f"rebuild__{context['dag_run'].dag_id}__{days[0]}__{uuid.uuid4().hex[:12]}"
        _trigger_dag_run(features_dag_id, new_run_id, days)
        log.info("waiting for the run %s of %s: %s", new_run_id, features_dag_id, inputs.format_days(days))
        self.defer(
            trigger=DagRunsFinishedTrigger(features_dag_id, [new_run_id]),
            method_name="execute",
            kwargs={"run_id": new_run_id, "batch": [day.isoformat() for day in days]},
        )


def _next_batch(stale: StaleFeatures) -> list[date]:
    """Return the first stale days that one run builds in one job, with no unpublished day between them."""
    first = stale.days[0]
    end = first + timedelta(settings().max_days_per_run)
    published = {day for day in stale.published if first <= day < end}
    span = takewhile(published.__contains__, (first + timedelta(n) for n in range(len(published))))
    return [day for day in span if day in set(stale.days)]


def _trigger_dag_run(dag_id: str, run_id: str, days: Sequence[date]) -> None:
    # As Airflow's own TriggerDagRunOperator does, whose wait does not end when the run is deleted.
    from airflow.sdk.execution_time.comms import TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    conf = {"start": days[0].isoformat(), "end": days[-1].isoformat(), "announce": False}
    SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag_id, run_id=run_id, conf=conf))
