"""The DAG that trains a candidate, judges it against the champion, and promotes it if the evidence allows it.

`plan → (rebuild) → materialize → training_set → train → evaluate → judge → register → (approve) → promote`

**A new DAG is paused.** Unpause it: until then, neither the clock nor new features start it, and a run that is
triggered waits.

**`as_of`** is the period of a run: it uses only what was known when it began. Scheduled runs take the end of their
data interval.

**A backfill is a walk-forward backtest:** `plan → (rebuild) → training_set → train → backtest`. Each run trains as of
its date; the report that the log of `backtest` names shows what the gates would have decided, and how each rule for
deploying would have performed. The champion and the online store do not change.

**When `promote` is skipped,** the champion stays: its log says why, and the button *Gate report* on `judge` opens
all the evidence. This is a result, not a failure.

**When `approve` waits,** a person is asked, under *Required actions*; a rejection, or no response in time, keeps the
champion.

**When a run ends after `plan`,** features are new, but of less time than `retrain_after` in the model's spec.

**When a run ends after `materialize`,** the model is frozen or cooling down, or a challenger gathers evidence, and the
log of `plan` says why and until when. Nothing is trained or compared meanwhile, unless the spec says
`keep_candidates_ready`, or lets later candidates replace the challenger. The online store stays fresh. With
`schedule=False` in `retrain_on`, all scheduled runs end there once there is a champion.

**A run whose id begins with `alarm__`** was asked for by open alarms of the champion's data: `retrain_on` in the spec.
The log of `plan`, the gate report, the ledger and the tags in MLflow say which.

**When `plan` fails with `StaleFeaturesError`,** features were made by other code, parameters or registers than they
would be now: its log names the periods and what differs. Build them again by the features DAG, then clear the run.
With `stale_features="rebuild"` in the model's spec the task `rebuild` does that.

**When `training_set` fails,** periods of features are missing; the log names them. Run the features DAG for them.

**When a deadline is missed,** the run has taken longer than `deadline` in the model's spec. It goes on.

**Running it again** is always safe: what is published with the same inputs, code and parameters is reused. A
candidate is promoted only if its `as_of` is later than the champion's.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import (
    DAG,
    AssetOrTimeSchedule,
    BaseOperatorLink,
    CronDataIntervalTimetable,
    Param,
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowSkipException

from evergreen.errors import PromotionRefusedError, StaleFeaturesError
from evergreen.features.staleness import StaleFeatures
from evergreen.orchestration.dag_run import (
    RETRY_ARGS,
    dag_kwargs,
    dag_run_info,
    dag_run_name,
    data_range_kwargs,
    period_param,
    requester,
    skip_tasks,
)
from evergreen.orchestration.dags.features import features_asset
from evergreen.orchestration.deadlines import retrain_deadline
from evergreen.orchestration.handover import (
    EvaluatedCandidate,
    JudgedCandidate,
    JudgedVerdict,
    RetrainPlan,
    TrainedCandidate,
    XCom,
)
from evergreen.orchestration.operators.train import TrainOperator, delete_leftover_pods
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ApprovalPolicy, ModelSpec
from evergreen.window import RunReason, resolve_retrain_window

_PROMOTE_PARAM = "promote"  # key of the conf
REQUEST_PARAM = "request"
_REBUILD = "rebuild"  # task id
_DECISION_TASKS = ("materialize", "evaluate", "judge", "register", "promote")
_TRAINING_TASKS = ("training_set", "train", "backtest", *_DECISION_TASKS[1:])  # all but `rebuild` and `materialize`

log = logging.getLogger(__name__)


def retrain_dag(model: ModelSpec) -> DAG:
    """`<model>.retrain`."""
    with DAG(
        **dag_kwargs(model, "retrain", "From published features to a promoted champion", __doc__),
        **data_range_kwargs(model),
        schedule=_schedule(model),
        deadline=retrain_deadline(model),
        on_failure_callback=delete_leftover_pods,
        max_active_runs=1,  # two at once would each judge against a champion that the other replaces
        default_args={
            "owner": model.owner,
            **RETRY_ARGS,
            "execution_timeout": timedelta(minutes=model.resources.timeout_minutes),
        },
        params={
            "as_of": period_param(model, "Use only what was known at its start; empty: as of now"),
            _PROMOTE_PARAM: Param(
                False,
                type="boolean",
                description="For a backfill: judge and promote as scheduled runs do, instead of a backtest",
            ),
            REQUEST_PARAM: Param(
                None,
                type=["null", "integer"],
                description="Set by the monitor DAG: entry of the ledger in which alarms ask for this run",
            ),
        },
    ) as dag:
        planned = plan(model.name)
        rebuilt = _rebuild_stale_features(model, planned)
        materialized = materialize(model.name, planned)
        examples = training_set(model.name, planned)
        trained = TrainOperator(task_id="train", model=model, training_set_reference=examples).output
        backtested = backtest(model.name, planned, trained)
        evaluated = evaluate(model.name, planned, trained)
        judged = judge(model.name, planned, evaluated)
        dag.get_task("judge").operator_extra_links = (GateReportLink(),)
        registered = register(model.name, planned, judged)
        approved = request_approval(model.name, model.approval, judged, registered) if model.approval else None
        promoted = promote(model.name, planned, judged, registered, approved)

        if rebuilt is not None:
            planned >> rebuilt >> materialized
        planned >> materialized >> examples >> trained >> [backtested, evaluated]
        evaluated >> judged >> registered >> promoted
        if approved is not None:
            registered >> approved >> promoted
    return dag


def _schedule(model: ModelSpec) -> Any:
    """The clock, and new features if the model retrains on arrival."""
    clock = CronDataIntervalTimetable(model.schedule, timezone=feature_spec(model).timezone)
    if model.retrain_after is None:
        return clock
    return AssetOrTimeSchedule(timetable=clock, assets=[features_asset(model.feature_model)])


def _rebuild_stale_features(model: ModelSpec, planned: Any) -> Any:
    if model.stale_features != "rebuild":
        return None
    # Imported only for models that need it, because it makes parsing slower.
    from evergreen.orchestration.operators.rebuild import RebuildFeaturesOperator

    return RebuildFeaturesOperator(task_id=_REBUILD, model=model.name, plan=planned)


def request_approval(name: str, approval: ApprovalPolicy, judged: Any, version: Any) -> Any:
    """Return the output of a task `approve` that asks about the verdict of a task `judge`."""
    # Imported only for models that need it, because it makes parsing slower.
    from evergreen.orchestration.operators.approval import PromotionApprovalOperator

    return PromotionApprovalOperator(
        task_id="approve", model=name, judge_output=judged, version=version, approval=approval
    ).output


@task
def plan(name: str) -> XCom:
    """Resolve the window, and the champion that the candidate is judged against, once for all tasks."""
    from evergreen import ledger
    from evergreen.feature_store import training_sets
    from evergreen.features import inputs, staleness
    from evergreen.promotion import challengers, retraining
    from evergreen.registry import anchors, versions

    context, model = get_current_context(), loader.load_spec(name)
    spec, request = feature_spec(model), context["params"].get(REQUEST_PARAM)
    window = resolve_retrain_window(
        dag_run_info(
            context,
            excluded_conf_keys=(_PROMOTE_PARAM, REQUEST_PARAM),
            cause=retraining.read_cause(name, request) if request else None,
        ),
        calendar=spec.calendar,
        first_day=spec.first_day,
        last_day=spec.last_day,
        history=model.history,
    )
    log.info("%s: %ss %s until %s", window.run_reason, spec.calendar.unit, window.start, window.end)
    if window.cause:
        log.info("alarms ask for this run: %s", window.cause)
    published = inputs.published_manifests(model, training_sets.periods_to_read(model, window))
    stale = staleness.find_stale_features(model, published)
    if stale.periods:
        log.warning("%s", stale.summary)
    rebuild = [_REBUILD] if model.stale_features == "rebuild" else []
    is_backfill = window.run_reason is RunReason.BACKFILL
    retrain_plan = RetrainPlan(
        start=window.start,
        end=window.end,
        run_reason=window.run_reason,
        calendar=window.calendar,
        cause=window.cause,
        promotes=is_backfill and bool(context["params"].get(_PROMOTE_PARAM)),
    )
    if is_backfill and not retrain_plan.promotes:
        _check_features(model, stale)
        return skip_tasks(context, retrain_plan.dump(), _DECISION_TASKS)
    state = ledger.read_state(name)
    pause = challengers.training_pause(state, model, window.end)
    if window.run_reason is RunReason.SCHEDULE and not model.retrain_on.schedule and state.champion:
        pause = "the spec's retrain_on has schedule=False: alarms, new features or a person start a retrain"
    if pause:
        log.info("nothing is trained or compared: %s", pause)
        retrain_plan = retrain_plan.model_copy(update={"pause": pause})
    changed = training_sets.changed_feature_partitions(
        model, [manifest for period, manifest in published.items() if period >= window.start]
    )
    log.info("%s %ss are new or corrected since the last training set", len(changed), spec.calendar.unit)
    if (
        window.run_reason is RunReason.ARRIVAL
        and model.retrain_after
        and len(changed) < (spec.calendar.count_in(model.retrain_after))
    ):
        log.info("%s retrains on arrival of %s: nothing to do", name, model.retrain_after)
        return skip_tasks(context, retrain_plan.dump(), (*rebuild, "materialize", *_TRAINING_TASKS))
    if pause:
        return skip_tasks(context, retrain_plan.dump(), (*rebuild, *_TRAINING_TASKS))
    _check_features(model, stale)
    anchors.check_anchor(name)
    if champion := versions.find_champion(model):
        log.info("the candidate is judged against version %s", champion.version)
        retrain_plan = retrain_plan.model_copy(
            update={
                "champion_version": champion.version,
                "champion_content": champion.content,
                "champion_labels_until": champion.labels_until,
                "accepted_change": champion.accepted_change,
            }
        )
    else:
        log.info("there is no champion yet")
    return skip_tasks(context, retrain_plan.dump(), ["backtest"])


def _check_features(model: ModelSpec, stale: StaleFeatures) -> None:
    """Raise a StaleFeaturesError if there are stale features, and the spec does not say that they are rebuilt."""
    if stale.periods and model.stale_features == "refuse":
        subject = (
            f"{model.name}: {len(stale.periods)} of {len(stale.published)} {stale.calendar.unit}s of features are stale"
        )
        raise StaleFeaturesError(subject, stale.faults(stale.rebuild_advice))


# `rebuild` is skipped where nothing is trained, and readers of the online store need no rebuilt periods.
@task(trigger_rule="none_failed")
def materialize(name: str, plan: XCom) -> XCom:
    """Load the features of the window into the online store (Feast)."""
    from evergreen.feature_store import online_store

    return online_store.materialize_features(loader.load_spec(name), RetrainPlan.load(plan).window())


# Online readers need `materialize`, training does not: where it is skipped, training is not.
@task(trigger_rule="none_failed")
def training_set(name: str, plan: XCom) -> XCom:
    """Join every labelled example with the features known when it was predicted (Feast, point in time)."""
    from evergreen.feature_store import training_sets
    from evergreen.lake import tables

    model = loader.load_spec(name)
    examples = training_sets.build_training_set(model, RetrainPlan.load(plan).window())
    tables.follow_publication(training_sets.training_set_dataset(model), [examples.partition])
    return examples.reference


@task
def backtest(name: str, plan: XCom, train_output: XCom) -> str:
    """Add the candidate to the model's backtest and update the report; return the report's path."""
    from evergreen import backtest as backtests
    from evergreen.promotion import service

    model, trained, as_of = loader.load_spec(name), TrainedCandidate.load(train_output), RetrainPlan.load(plan).end
    candidate = trained.candidate(model)
    report = backtests.add_candidate(model, as_of, trained.training_set(model), candidate)
    service.record_backtest(model, as_of, candidate, report, actor=requester(get_current_context()))
    for line in backtests.summary_lines(backtests.BacktestResults.read(report.with_name("results.json"))):
        log.info("%s", line)
    log.info("report: %s", report)
    return str(report)


@task
def evaluate(name: str, plan: XCom, train_output: XCom) -> XCom:
    """Score candidate and champion on the same holdout, which neither was trained on."""
    from evergreen import evaluation

    model, trained = loader.load_spec(name), TrainedCandidate.load(train_output)
    evidence = evaluation.collect_evidence(
        model, trained.training_set(model), trained.candidate(model), RetrainPlan.load(plan).champion()
    )
    return EvaluatedCandidate(**trained.dump(), evaluation_reference=evidence.reference).dump()


@task
def judge(name: str, plan: XCom, evaluate_output: XCom) -> XCom:
    """Evaluate the gates on the evidence, and record the verdict in the ledger before anything acts on it."""
    from evergreen.promotion import service

    model, retrain_plan = loader.load_spec(name), RetrainPlan.load(plan)
    evaluated = EvaluatedCandidate.load(evaluate_output)
    entry = service.judge_candidate(
        model,
        service.EvaluationContext(
            run=dag_run_name(get_current_context()),
            run_reason=retrain_plan.run_reason,
            cause=retrain_plan.cause,
            training_set=evaluated.training_set(model),
            candidate=evaluated.candidate(model),
            evaluation=evaluated.evaluation(model),
            champion_version=retrain_plan.champion_version,
        ),
    )
    report = str(service.verdict_report_path(model, entry))
    judged = JudgedCandidate(**evaluated.dump(), entry=entry, report=report)
    verdict = judged.verdict_event(name).verdict
    for result in verdict.results:
        log.info("%12s  %s: %s", result.outcome.upper(), result.gate, result.reason)
    log.info("%s", verdict.reason)
    log.info("%.2g %% of the holdout's rows have no known label", 100 * (verdict.unlabelled_share or 0))
    log.info("report: %s", report)
    return judged.dump()


@task
def register(name: str, plan: XCom, judge_output: XCom) -> str:
    """Register the candidate with its verdict and fingerprints (MLflow), whatever the verdict; return its version."""
    from evergreen.promotion import service
    from evergreen.registry import anchors, versions

    model, judged = loader.load_spec(name), JudgedCandidate.load(judge_output)
    version = versions.register_candidate(
        model,
        judged.training_set(model),
        judged.candidate(model),
        judged.entry,
        service.verdict_report_path(model, judged.entry),
    )
    anchors.update_anchor(name)  # a verdict that promotes nothing has spent some of the model's budget all the same
    if judged.verdict_event(name).verdict.is_inconclusive:
        service.sync_champion_aliases(model)  # it is the challenger
    log.info("%s version %s", name, version)
    request = RetrainPlan.load(plan).promotion_request(judged.entry, version)
    if model.approval and (blocker := service.promotion_blocker(model, request)):
        log.info("approval is not requested: %s", blocker)
        return skip_tasks(get_current_context(), version, ["approve"])
    return version


# `approve` is skipped where nothing can be approved; this task then says what blocks the candidate.
@task(trigger_rule="none_failed")
def promote(
    name: str,
    plan: XCom,
    judge_output: XCom,
    version: XCom,
    approval_output: XCom,
) -> str:
    """Promote the candidate, in the ledger and then in MLflow, if the verdict and the rules allow it."""
    from evergreen import ledger
    from evergreen.orchestration.operators.approval import responder
    from evergreen.promotion import challengers, service

    approved_by = responder(approval_output) if approval_output else None
    entry = JudgedCandidate.load(judge_output).entry
    request = RetrainPlan.load(plan).promotion_request(entry, version, approved_by)
    model, state = loader.load_spec(name), ledger.read_state(name)
    if state.challenger_verdict == entry and state.open_comparison:
        wait = challengers.challenger_wait(state, model)
        raise AirflowSkipException(f"the champion stays, version {version} is its challenger: {wait}")
    try:
        blocker = service.promote_version(model, request, actor=requester(get_current_context()))
    except PromotionRefusedError as error:
        raise AirflowSkipException(f"the champion stays: {error}") from None
    if blocker:
        raise AirflowSkipException(f"the champion stays, version {version} is its challenger: {blocker}")
    log.info("%s version %s is champion", name, version)
    return version


class GateReportLink(BaseOperatorLink):
    """A button on the task that opens the page about its verdict (evergreen.plugin.verdicts)."""

    name = "Gate report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow passes it by name
        judge_output = ti_key.xcom_pull(task_ids=ti_key.task_id)
        if not judge_output:
            return ""
        return f"/evergreen/{ti_key.dag_id}/verdicts/{JudgedVerdict.from_judge(judge_output).entry}"
