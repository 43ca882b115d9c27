"""The rebuild of stale features: runs of the features DAG, one batch of periods after the other."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from airflow.sdk import BaseOperator

from evergreen.errors import StaleFeaturesError
from evergreen.features import inputs, staleness
from evergreen.features.staleness import StaleFeatures
from evergreen.orchestration.dag_run import trigger_dag_run
from evergreen.orchestration.handover import RetrainPlan, XCom
from evergreen.orchestration.triggers import DagRunsFinishedTrigger
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import Window

log = logging.getLogger(__name__)


class RebuildFeaturesOperator(BaseOperator):
    """Have the features DAG build again the stale periods that this run reads; wait for it without a worker slot.

    Those are the periods of its training set, and those that `materialize` loads, which may be later.

    What is left to do is read from the published features each time, so a try that was killed is just repeated. A
    period that another run builds meanwhile is waited for by the features DAG: two runs never build the same period.
    """

    template_fields: Sequence[str] = ("plan",)
    ui_color = "#e8f7e4"

    def __init__(self, *, model: str, plan: XCom, **kwargs: Any):
        super().__init__(doc_md=RebuildFeaturesOperator.__doc__, **kwargs)
        self.model, self.plan = model, plan

    def execute(self, context: Any, run_id: str = "", batch: Sequence[str] = (), **_: Any) -> None:
        """Start the next run; called again after it has ended, with its `run_id` and the periods of its `batch`.

        Raises:
            StaleFeaturesError: the features DAG is paused, or a run of it has ended and its periods are stale still.
        """
        model = loader.load_spec(self.model)
        features_dag_id = f"{model.feature_model}.features"
        read_periods = _periods_to_read(model, RetrainPlan.load(self.plan).window())
        stale = staleness.find_stale_features(model, inputs.published_manifests(model, read_periods))
        log.info("%s", stale.summary)
        if not stale.periods:
            return
        problem, fix = "", ""
        if unchanged := set(batch) & set(stale.periods):
            problem = f"its run {run_id} has ended, and {len(unchanged)} of its {stale.calendar.unit}s are stale still"
            fix = "the log of that run says why; correct it, then clear this task"
        elif context["ti"].get_dag(features_dag_id).is_paused:
            problem, fix = "it is paused, and has to rebuild them", "unpause it, then clear this task"
        if problem:
            raise StaleFeaturesError(f"{self.model}: features of {features_dag_id}: {problem}", stale.faults(fix))
        periods = _next_batch(stale, inputs.max_periods_per_run(feature_spec(model)))
        new_run_id = f"rebuild__{context['dag_run'].dag_id}__{periods[0]}__{uuid.uuid4().hex[:12]}"
        # The wait of Airflow's own TriggerDagRunOperator does not end when the run is deleted.
        conf = {"start": periods[0], "end": periods[-1], "announce": False}
        trigger_dag_run(features_dag_id, new_run_id, conf)
        log.info("waiting for the run %s of %s: %s", new_run_id, features_dag_id, stale.calendar.describe(periods))
        self.defer(
            trigger=DagRunsFinishedTrigger(features_dag_id, [new_run_id]),
            method_name="execute",
            kwargs={"run_id": new_run_id, "batch": list(periods)},
        )


def _periods_to_read(model: ModelSpec, window: Window) -> list[str]:
    """Return the periods whose features the training set or the online store of a run may have."""
    from evergreen.feature_store import online_store, training_sets

    periods = set(training_sets.periods_to_read(model, window))
    if not periods.issuperset(inputs.published_periods(model)):
        periods.update(online_store.periods_to_load(model, window))
    return sorted(periods)


def _next_batch(stale: StaleFeatures, limit: int) -> list[str]:
    """Return the first stale periods that one run builds in one job, with no unpublished period between them."""
    first = stale.periods[0]
    calendar = stale.calendar
    end = calendar.shift(first, limit)
    published = {period for period in stale.published if first <= period < end}
    span = takewhile(published.__contains__, calendar.periods_between(first, end))
    return [period for period in span if period in set(stale.periods)]
