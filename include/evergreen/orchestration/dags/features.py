"""The DAG that turns arriving raw periods into published features.

`plan → check_raw → build → check_features → publish → [announce, materialize]`, and `report_faults` if periods were
left out

It runs by the clock, when raw periods arrive, in a backfill, or by hand for any range of periods. A period that
several runs need is built once: the first run builds the periods of waiting runs in the same job as its own, and the
waiting runs find them published.

**A new DAG is paused.** Unpause it: until then, neither the clock nor arriving data starts it, and a run that is
triggered waits.

**When a run ends after `plan`,** its periods were published already; the log names the fingerprint of each (the hash of
the inputs and code that they were built from).

**When a run fails at `check_raw`,** raw data is missing, has other types than declared, or breaks a rule; the log names
file, column, rule and count. Deliver the file again and clear the run. Published features have not changed.

**When a run fails at `build` or `check_features`,** the code in the model's `features.py` fails, or computed values
that break a rule.

**When a run fails at `report_faults`,** some of its periods have such faults; the others are published. The log names
all faults. Clear the whole run when they are fixed.

**When a run fails at `materialize`,** its features are published and announced, but the online store does not have
them; the log says why. Clear the task: it loads whatever the store lacks. The next run does so, too.

**A backfill starts no other DAG and does not load the online store,** unless its conf says `{"announce": true}`.

**Running it again** is always safe: a period that is published with the same inputs, code and parameters is not built
again. A corrected period is built again, together with the later periods that look back to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    AssetWatcher,
    BaseOperator,
    CronDataIntervalTimetable,
    Param,
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowSkipException

from evergreen.features import inputs, planning
from evergreen.features.steps import leave_out_faulty_periods, raise_faults
from evergreen.ingest import announcements, raw_files
from evergreen.ingest.watcher import WatchedSource
from evergreen.orchestration.dag_run import (
    RETRY_ARGS,
    dag_kwargs,
    dag_run_info,
    data_range_kwargs,
    period_param,
    skip_tasks,
)
from evergreen.orchestration.handover import FeaturesPlan, StepResult, XCom
from evergreen.orchestration.triggers import ACTIVE_STATES, DagRunsFinishedTrigger
from evergreen.orchestration.triggers.raw_periods import RawDataTrigger
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.window import AssetEvent, RunReason, Window, resolve_features_window

_ANNOUNCE = "announce"  # task id, and key of the conf
_MATERIALIZE = "materialize"
_REPORT_FAULTS = "report_faults"

log = logging.getLogger(__name__)


def features_dag(model: ModelSpec) -> DAG:
    """`<model>.features`."""
    spec = feature_spec(model)
    cron, timezone = spec.cron
    with DAG(
        **dag_kwargs(model, "features", "Raw periods to published features", __doc__),
        **data_range_kwargs(model),
        schedule=AssetOrTimeSchedule(
            timetable=CronDataIntervalTimetable(cron, timezone=timezone),
            assets=[_raw_asset(model.name, spec)],
        ),
        # Backfilled runs count too; at the limit, Airflow starts no run for an arrival.
        max_active_runs=16,
        default_args={
            "owner": model.owner,
            **RETRY_ARGS,
            # A Spark driver that runs out of memory hangs and does not exit.
            "execution_timeout": timedelta(minutes=30),
        },
        params={
            "start": period_param(model, "First period, if run by hand"),
            "end": period_param(model, "Last period, included"),
            _ANNOUNCE: Param(
                None,
                type=["null", "boolean"],
                description="Start DAGs that wait for these features, and load the online store; empty: yes, but not "
                "from a backfill",
            ),
        },
    ) as dag:
        planned = PlanFeaturesOperator(task_id="plan", model=model.name).output
        fingerprints = check_raw(model.name, planned)
        built = build(model.name, planned, fingerprints)
        checked = check_features(model.name, planned, built)
        published = publish(model.name, planned, fingerprints, checked)
        announced = announce.override(outlets=[features_asset(model.name)])(model.name, planned, published)
        materialized = materialize(model.name, planned, published)
        reported = report_faults(model.name, published)

        # Whoever waits for features does not depend on the online store.
        planned >> fingerprints >> built >> checked >> published >> [announced, materialized, reported]
    return dag


def features_asset(name: str) -> Asset:
    """The published features of the model `name`; other DAGs can be scheduled on it."""
    return Asset(name=f"{name}.features", uri=f"evergreen://features/{name}")


def _raw_asset(name: str, spec: FeatureSpec) -> Asset:
    """The raw periods of the model `name`. Systems that deliver data elsewhere can post an event of this asset."""
    trigger = RawDataTrigger(
        prefix=str(raw_files.raw_folder()),
        sources={
            source.name: WatchedSource.from_source(source).to_json()
            for source in spec.sources
            if not source.is_register
        },
        records_folder=str(announcements.announcement_store(name).folder),
        period=spec.period,
        timezone=spec.timezone,
        first=spec.first_period,
        end=spec.end_period,
    )
    watcher = AssetWatcher(name=f"{name}.raw", trigger=trigger)
    return Asset(name=f"{name}.raw", uri=f"evergreen://raw/{name}", watchers=[watcher])


class PlanFeaturesOperator(BaseOperator):
    """Resolve which periods the run is about, and which of them, and of waiting runs, it builds.

    Ends the run here if all periods are published already. Defers while other runs build its periods.
    """

    ui_color = "#e8f7e4"

    def __init__(self, *, model: str, **kwargs: Any):
        super().__init__(doc_md=PlanFeaturesOperator.__doc__, **kwargs)
        self.model = model

    def execute(self, context: Any, **_: Any) -> dict[str, Any]:
        model, run = loader.load_spec(self.model), dag_run_info(context, excluded_conf_keys=(_ANNOUNCE,))
        spec = feature_spec(model)
        window = resolve_features_window(run, calendar=spec.calendar, first_day=spec.first_day, last_day=spec.last_day)
        log.info("%s: %s", window.run_reason, ", ".join(window.periods))

        def count_active_runs(**filters: Any) -> int:
            count: int = context["ti"].get_dr_count(dag_id=self.dag_id, states=ACTIVE_STATES, **filters)
            return count

        periods = planning.periods_to_publish(model, run, window)
        build_periods, blocking_runs = planning.claim_periods_to_build(model, run, periods, count_active_runs)
        if blocking_runs:
            log.info("waiting for runs that build the same periods: %s", ", ".join(blocking_runs))
            self.defer(trigger=DagRunsFinishedTrigger(self.dag_id, blocking_runs), method_name="execute")
        plan = FeaturesPlan(run_reason=window.run_reason, periods=tuple(periods), build_periods=tuple(build_periods))
        if plan.build_periods:
            return plan.dump()
        # The run ends here. DAGs that wait for the features may still be started, and the online store loaded.
        tasks_to_run = {_ANNOUNCE, _MATERIALIZE} if _should_announce(context, window.run_reason) else set()
        downstream = {relative.task_id for relative in self.get_flat_relatives(upstream=False)}
        return skip_tasks(context, plan.dump(), sorted(downstream - tasks_to_run))


def _should_announce(context: Any, run_reason: RunReason) -> bool:
    announce = context["params"].get(_ANNOUNCE)
    return run_reason is not RunReason.BACKFILL if announce is None else bool(announce)


@task
def check_raw(name: str, plan: XCom) -> XCom:
    """Validate the raw files that the periods depend on (Great Expectations); return the periods' fingerprints.

    Leaves out periods with faults, and fails if none is left, with every broken rule of the run's own periods: file,
    column, rule, count. Faults of other runs' periods are left to those runs.
    """
    from evergreen.features import checks

    # `check_raw` may be cleared alone after a file was replaced, so it computes the fingerprints itself.
    features_plan = FeaturesPlan.load(plan)
    return _run_step(
        lambda: checks.validate_raw_files(loader.load_spec(name), features_plan.build_periods, features_plan.periods)
    )


@task
def build(name: str, plan: XCom, fingerprints: XCom) -> XCom:
    """Compute the features of the periods in one job (Spark), in folders that no reader looks into.

    Leaves out periods that fail alone, and fails if no period is left.
    """
    from evergreen.features.build import build_features

    validated, own_periods = StepResult.load(fingerprints), FeaturesPlan.load(plan).periods
    return _run_step(lambda: build_features(loader.load_spec(name), validated.periods, own_periods), validated)


@task
def check_features(name: str, plan: XCom, folders: XCom) -> XCom:
    """Validate the computed features (Great Expectations); nothing is published before this succeeds.

    Leaves out periods with faults, and fails if no period is left.
    """
    from evergreen.features import checks

    built, own_periods = StepResult.load(folders), FeaturesPlan.load(plan).periods
    return _run_step(lambda: checks.validate_features(loader.load_spec(name), built.periods, own_periods), built)


def _run_step(step: Callable[[], dict[str, str]], earlier: StepResult | None = None) -> XCom:
    periods, faults = leave_out_faulty_periods(step, earlier.faults if earlier else ())
    return StepResult(periods=periods, faults=faults).dump()


@task
def publish(name: str, plan: XCom, fingerprints: XCom, folders: XCom) -> XCom:
    """Publish each period in one atomic step, with its manifest: rows, schema, content hash, fingerprint."""
    from evergreen.features.pipeline import publish_features

    validated, checked = StepResult.load(fingerprints), StepResult.load(folders)
    periods = publish_features(
        loader.load_spec(name), validated.periods, checked.periods, FeaturesPlan.load(plan).periods
    )
    result = StepResult(periods=periods, faults=checked.faults).dump()
    return result if checked.faults else skip_tasks(get_current_context(), result, [_REPORT_FAULTS])


@task(task_id=_REPORT_FAULTS)
def report_faults(name: str, published: XCom) -> None:
    """Fail with the faults of all periods that were left out; the other periods of the run are published."""
    result = StepResult.load(published)
    raise_faults(loader.load_spec(name), result.faults, len(result.periods))


@task(trigger_rule="none_failed")
def announce(name: str, plan: XCom, published: XCom) -> XCom:
    """Start the DAGs that wait for these features, with the periods that are new or changed; not from a backfill."""
    context, features_plan = get_current_context(), FeaturesPlan.load(plan)
    if not _should_announce(context, features_plan.run_reason):
        raise AirflowSkipException("a backfill starts no other DAG unless its conf says announce: true")
    model = loader.load_spec(name)
    data_end = feature_spec(model).calendar.shift(inputs.newest_published_period(model), 1)
    periods = _published_periods(features_plan, published)
    extra = AssetEvent(periods, data_end, features_plan.run_reason).to_extra()
    context["outlet_events"][features_asset(name)].extra = extra
    log.info("announced: %s", extra)
    return list(periods)


# One at a time: a second one would hold a worker's slot while it waits for the first.
@task(task_id=_MATERIALIZE, trigger_rule="none_failed", max_active_tis_per_dag=1)
def materialize(name: str, plan: XCom, published: XCom) -> XCom:
    """Load features that are new or changed into the online store (Feast), never older values; not from a backfill."""
    context, features_plan = get_current_context(), FeaturesPlan.load(plan)
    if not _should_announce(context, features_plan.run_reason):
        raise AirflowSkipException("a backfill does not load the online store unless its conf says announce: true")
    model, periods = loader.load_spec(name), _published_periods(features_plan, published)
    if not periods:
        raise AirflowSkipException("all periods of the run were left out")
    from evergreen.feature_store import online_store

    return online_store.materialize_features(
        model, Window(periods, features_plan.run_reason, feature_spec(model).calendar)
    )


def _published_periods(plan: FeaturesPlan, published: XCom) -> tuple[str, ...]:
    """Return the periods that a run is about, without those that it has left out."""
    # Nothing was published by this run if all periods had been before.
    published_periods = set(StepResult.load(published).periods) if published else set()
    left_out = {period for period in plan.build_periods if period not in published_periods}
    return tuple(period for period in plan.periods if period not in left_out)
