"""The DAG that looks after promotion: at the champion's data, and at a challenger that may replace it.

`plan → watch → measure → (request_retrain)`, and beside it `plan → examples → evaluate → judge → (approve) → conclude`.
If the spec has `auto_rollback`, also `measure → compare_previous → (approve_rollback) → roll_back`

**The champion's data.** `watch` publishes histograms of the inputs of each period that the champion has not learned
from, and of its batch predictions, and compares days with those of the data that it was made from. Its log, `evergreen
status` and the monitoring report name alarms: a *break*, on the first day of a column that is gone, frozen, or has
another unit; or a *drift*, of some columns by what days usually differ by. There is at most one false alarm per model
and year, in expectation. An alarm changes nothing by itself. If `retrain_on` in the spec names its kind,
`request_retrain` starts a run of the retrain DAG: once for an alarm, and again after a cooldown if it is still open.
When that task is skipped, its log says why: no alarm is open, or cooldown, budget, a pause of training, or features
that are not published hold it back.

**The champion's performance.** `measure` measures periods whose labels have matured, by what was predicted then, and
compares days with those of the holdout that the champion was judged on: the alarm is called *performance*. Periods
whose labels come late or are corrected are measured again, which the monitoring report lists. It begins with none after
ten minutes: the next runs measure the others. If it fails, `request_retrain` acts on the alarms that are known, and the
next run measures what it did not.

**What servers did.** If servers write a [log](../reference/serving-logs.md) of features and predictions, `measure` then
compares a sample of each period with the offline store, with the model, and with what the champion learned from: the
alarm is called *skew*. A file of another schema is named, and the others are compared. A retrain would change nothing,
so no skew asks for one.

**Before labels mature.** The report also shows what metrics of probabilities are expected to be, by predictions alone:
an estimate, which nothing acts on.

**A rollback.** If `auto_rollback` in the spec asks for it, `compare_previous` compares the champion, for some time
after its promotion, with the version that it replaced, on the same rows of matured labels. If that is shown to do
better, it records a request, and `roll_back` makes that version champion again and bars the other: after a person has
approved, if the model needs approval. When `compare_previous` is skipped, its log says why: too few days, no loss that
is shown, the end of that time, a freeze, a challenger that gathers evidence, or a budget that is spent. What a rollback
has restored is compared with nothing, so nothing is rolled back in turn.

**A challenger.** A candidate that no gate rejects, but that cannot prove itself on its holdout yet, is the challenger.
As the labels of later days become known, this DAG compares it with the champion again, on all days so far. Neither has
learned from any of them.

**A new DAG is paused.** Unpause it together with the retrain DAG: until then, a challenger gathers no evidence, and the
retrain DAG trains no other candidate.

**When all but `watch` and `measure` is skipped,** there is no challenger, or too few days are new since the last look.
The log of `plan` says which.

**When `conclude` is skipped,** the champion stays, and the log says why: the challenger needs more days, its promotion
waits for the end of a freeze or a cooldown, or it was withdrawn. The button *Gate report* on `judge` opens the evidence
so far.

**A backfill tells what was seen then:** `judge` logs the verdict that a look would have had then, and `watch` and
`measure` the alarms that the periods until then would have raised, with today's champion and the labels that were known
then. Nothing is recorded, promoted or rolled back, and no retrain is asked for.

**Running it again** is always safe: a look, and an alarm, is recorded once.
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
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowSkipException

from evergreen.errors import PromotionRefusedError
from evergreen.orchestration.dag_run import (
    RETRY_ARGS,
    dag_kwargs,
    dag_run_info,
    dag_run_name,
    data_range_kwargs,
    period_param,
    requester,
    skip_tasks,
    trigger_dag_run,
)
from evergreen.orchestration.dags.features import features_asset
from evergreen.orchestration.dags.retrain import REQUEST_PARAM, GateReportLink, request_approval
from evergreen.orchestration.handover import JudgedVerdict, LookPlan, ScoredLook, XCom
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, resolve_retrain_window

_LOOK_TASKS = ("examples", "evaluate", "judge")

log = logging.getLogger(__name__)


def monitor_dag(model: ModelSpec) -> DAG:
    """`<model>.monitor`."""
    assert model.monitor
    # Also when features are published: a look that is due then comes before the retrain of that time, as a rule. Where
    # both start at once either order is right, and the next candidate is trained a week later at most.
    clock = CronDataIntervalTimetable(model.monitor.schedule or model.schedule, timezone=feature_spec(model).timezone)
    with DAG(
        **dag_kwargs(model, "monitor", "A challenger's evidence as it grows", __doc__),
        **data_range_kwargs(model),
        schedule=AssetOrTimeSchedule(timetable=clock, assets=[features_asset(model.feature_model)]),
        max_active_runs=1,  # a look continues the one before
        default_args={
            "owner": model.owner,
            **RETRY_ARGS,
            "execution_timeout": timedelta(minutes=30),
        },
        params={
            "as_of": period_param(model, "Use only what was known at its start; empty: as of now"),
        },
    ) as dag:
        planned = plan(model.name)
        watched = watch(model.name, planned)
        dag.get_task("watch").operator_extra_links = (MonitoringReportLink(),)
        published = examples(model.name, planned)
        evaluated = evaluate(model.name, planned, published)
        judged = judge(model.name, planned, evaluated)
        dag.get_task("judge").operator_extra_links = (GateReportLink(),)
        approved = None
        if model.approval:
            version = "{{ ti.xcom_pull(task_ids='plan')['challenger_version'] }}"
            approved = request_approval(model.name, model.approval, judged, version)
        concluded = conclude(model.name, planned, judged, approved)

        measured = measure(model.name, watched)
        planned >> watched >> measured
        if model.retrain_on.alarms:
            measured >> request_retrain(model.name, watched)
        if model.auto_rollback:
            compared = compare_previous(model.name, watched)
            approved_rollback = _request_rollback_approval(model, compared) if model.approval else None
            rolled_back = roll_back(model.name, compared, approved_rollback)
            measured >> compared >> rolled_back
            if approved_rollback is not None:
                compared >> approved_rollback >> rolled_back
        planned >> published >> evaluated >> judged >> concluded
        if approved is not None:
            judged >> approved >> concluded
    return dag


def _request_rollback_approval(model: ModelSpec, compared: Any) -> Any:
    """Return the output of a task that asks about the rollback that `compare_previous` asks for."""
    # Imported only for models that need it, because it makes parsing slower.
    from evergreen.orchestration.operators.approval import RollbackApprovalOperator

    assert model.approval
    return RollbackApprovalOperator(
        task_id="approve_rollback", model=model.name, request_entry=compared, approval=model.approval
    ).output


@task
def plan(name: str) -> XCom:
    """Decide whether a look is due, once for all tasks."""
    from evergreen import ledger
    from evergreen.feature_store import training_sets
    from evergreen.promotion import challengers, service
    from evergreen.registry import anchors

    context, model = get_current_context(), loader.load_spec(name)
    spec = feature_spec(model)
    window = resolve_retrain_window(
        dag_run_info(context),
        calendar=spec.calendar,
        first_day=spec.first_day,
        last_day=spec.last_day,
        history=model.history,
    )
    anchors.check_anchor(name)
    state = ledger.read_state(name)
    look_plan = LookPlan(start=window.start, end=window.end, run_reason=window.run_reason, calendar=window.calendar)
    event, is_backfill = state.challenger_event, window.run_reason is RunReason.BACKFILL
    obsolete = challengers.withdrawal_reason(state, model)
    acts = ("approve", "conclude") if model.approval else ("conclude",)
    look_tasks = (*_LOOK_TASKS, "approve") if model.approval else _LOOK_TASKS
    if event is None or (is_backfill and (obsolete or not state.open_comparison or window.end <= event.as_of)):
        log.info("there is no challenger%s", " that gathered evidence then" if event else "")
        service.sync_champion_aliases(model)  # an earlier run may have died before they followed
        return skip_tasks(context, look_plan.dump(), (*_LOOK_TASKS, *acts))
    log.info("version %s is the challenger: %s", state.challenger, challengers.challenger_wait(state, model))
    start = event.holdout[0]
    look_plan = look_plan.model_copy(
        update={
            "start": min(window.start, start),
            "first_entry": state.open_comparison,
            "periods": (start, training_sets.look_end(model, window, start)),
            "challenger_version": state.challenger,
            "challenger_content": event.candidate_content,
            "champion_version": state.champion,
            "champion_content": event.champion_content,
            "labels_until": start,
            "verdict_entry": None if state.open_comparison else state.challenger_verdict,
        }
    )
    if is_backfill:
        return skip_tasks(context, look_plan.dump(), acts)
    if obsolete:
        log.info("it is withdrawn: %s", obsolete)
        return skip_tasks(context, look_plan.dump(), look_tasks)
    if look_plan.verdict_entry:
        return skip_tasks(context, look_plan.dump(), ("examples", "evaluate"))
    assert look_plan.periods
    if reason := challengers.look_wait(state, model, window.end, look_plan.periods[1]):
        log.info("no look is taken: %s", reason)
        is_over = challengers.withdrawal_reason(state, model, window.end) is not None
        return skip_tasks(context, look_plan.dump(), look_tasks if is_over else (*_LOOK_TASKS, *acts))
    return look_plan.dump()


@task
def watch(name: str, plan: XCom) -> XCom:
    """Publish what is new of the champion's data, and what that shows; hand the plan on."""
    from evergreen.monitoring import service

    model, look_plan = loader.load_spec(name), LookPlan.load(plan)
    is_backfill = look_plan.run_reason is RunReason.BACKFILL
    if is_backfill:
        record = service.preview_record(model, look_plan.end)
    else:
        record = service.monitor_periods(model, look_plan.end, dag_run_name(get_current_context()))
    if record is None:
        raise AirflowSkipException(f"{name} has no champion: there is nothing to compare with")
    if is_backfill:
        log.info("nothing is recorded: this is what was known at the start of %s", look_plan.end)
    for problem in record.problems:
        log.warning("%s", problem)
    for alarm in record.open_alarms:
        log.warning("ALARM %s", alarm.describe())
    log.info(
        "version %s: %s periods from %s on, %s alarms, %s of them open",
        record.champion_version,
        record.periods,
        record.as_of,
        len(record.alarms),
        len(record.open_alarms),
    )
    return plan


# The next run measures what this one does not, and alarms of data wait for it.
@task(retries=1)
def measure(name: str, plan: XCom) -> None:
    """Publish how the champion does in periods whose labels have matured, and what that shows."""
    from evergreen.monitoring import service

    model, look_plan = loader.load_spec(name), LookPlan.load(plan)
    if look_plan.run_reason is RunReason.BACKFILL:
        record = service.preview_record(model, look_plan.end, with_performance=True)
    else:
        record = service.measure_performance(model, look_plan.end, dag_run_name(get_current_context()))
    if record is None:
        raise AirflowSkipException(f"{name} has no champion any more")
    for problem in record.problems:
        log.warning("%s", problem)
    for metric in record.performance:
        values = (metric.gate, metric.mean, metric.low, metric.high, metric.days, metric.holdout)
        log.info("%s on matured labels: %s (%s – %s), %s days; on the holdout %s", *values)
    for alarm in record.open_alarms:
        if alarm.rule in ("performance", "skew"):
            log.warning("ALARM %s", alarm.describe())


# Its upstream tasks are `watch`, which has to succeed, and `measure`, which may fail: an alarm of data is acted on
# nevertheless. So it gets the plan from `watch`: `plan` would be a third one, whose success would be enough.
@task(trigger_rule="all_done_min_one_success")
def request_retrain(name: str, plan: XCom) -> str:
    """Start the run of the retrain DAG that open alarms ask for, if the spec lets them; return its id."""
    from evergreen import ledger
    from evergreen.features.inputs import published_periods
    from evergreen.ledger import RetrainRefused
    from evergreen.monitoring.record import read_record
    from evergreen.promotion import retraining

    context, model, look_plan = get_current_context(), loader.load_spec(name), LookPlan.load(plan)
    if look_plan.run_reason is RunReason.BACKFILL:
        raise AirflowSkipException("a backfill asks for no retrain")
    champion = ledger.read_state(name).champion_content
    record = read_record(name, champion) if champion else None
    if record is None:
        raise AirflowSkipException(f"nothing is known of the data of the champion of {name}")
    published = set(published_periods(model, look_plan.start))
    unpublished = [period for period in look_plan.window().periods if period not in published]
    entry = retraining.request_retrain(model, record, look_plan.end, unpublished, actor=dag_run_name(context))
    state = ledger.read_state(name)
    if entry and isinstance(entry.event, RetrainRefused):
        log.warning("open alarms do not ask for a retrain: %s", entry.event.reason)
    request = retraining.find_pending_request(state, model, look_plan.end)
    if request is None:
        raise AirflowSkipException(
            f"no alarm asks for a retrain: as of {look_plan.end}, {len(record.open_alarms)} of version "
            f"{record.champion_version} are open"
        )
    assert isinstance(request.event, ledger.RetrainRequested)
    run_id = retraining.retrain_run_id(state, request)
    conf = {"as_of": request.event.as_of, REQUEST_PARAM: request.number}
    is_new = trigger_dag_run(f"{name}.retrain", run_id, conf)
    log.info("%s: run %s of %s.retrain %s", request.event.cause, run_id, name, "starts" if is_new else "exists")
    return run_id


@task
def compare_previous(name: str, plan: XCom) -> XCom:
    """Compare the champion with the one before on matured labels; return the entry that asks for a rollback."""
    from evergreen import ledger
    from evergreen.monitoring.record import read_record
    from evergreen.promotion import auto_rollback

    model, look_plan = loader.load_spec(name), LookPlan.load(plan)
    if look_plan.run_reason is RunReason.BACKFILL:
        raise AirflowSkipException("a backfill rolls nothing back")
    champion = ledger.read_state(name).champion_content
    record = read_record(name, champion) if champion else None
    if record is None:
        raise AirflowSkipException(f"nothing is known of the data of the champion of {name}")
    actor = dag_run_name(get_current_context())
    try:
        entry = auto_rollback.request_rollback(model, record, look_plan.end, actor=actor)
    except PromotionRefusedError as error:
        raise AirflowSkipException(f"nothing is rolled back: {error}") from None
    assert isinstance(entry.event, ledger.RollbackRequested)
    log.warning("entry %s asks for a rollback: %s", entry.number, entry.event.reason)
    return entry.number


@task
def roll_back(name: str, request_entry: XCom, approval_output: XCom) -> str:
    """Make the version before champion again, in the ledger and in MLflow; return it."""
    from evergreen.orchestration.operators.approval import responder
    from evergreen.promotion import auto_rollback

    try:
        event = auto_rollback.roll_back(
            loader.load_spec(name),
            int(request_entry),
            actor=requester(get_current_context()),
            approved_by=responder(approval_output) if approval_output else None,
        )
    except PromotionRefusedError as error:
        raise AirflowSkipException(f"the champion stays: {error}") from None
    restored, barred = event.restored_version, event.barred_version
    log.warning("%s: version %s is champion again, version %s is barred until it is released", name, restored, barred)
    return restored


@task
def examples(name: str, plan: XCom) -> XCom:
    """Join the labelled rows of all periods so far with the features known at each (Feast, point in time)."""
    from evergreen.feature_store import training_sets

    look_plan = LookPlan.load(plan)
    assert look_plan.periods
    return training_sets.build_look_set(loader.load_spec(name), look_plan.window(), *look_plan.periods).reference


@task
def evaluate(name: str, plan: XCom, examples_reference: XCom) -> XCom:
    """Score challenger and champion, verified by their contents, on the same rows."""
    from evergreen import evaluation
    from evergreen.feature_store import training_sets

    model, look_plan = loader.load_spec(name), LookPlan.load(plan)
    rows = training_sets.look_dataset(model).resolve(examples_reference)
    evidence = evaluation.collect_look_evidence(model, rows, look_plan.challenger(), look_plan.champion())
    return ScoredLook(examples_reference=examples_reference, evaluation_reference=evidence.reference).dump()


# Where a challenger has passed its gates already, nothing is looked at, and its verdict is handed on.
@task(trigger_rule="none_failed")
def judge(name: str, plan: XCom, evaluate_output: XCom) -> XCom:
    """Record the verdict of the look in the ledger before anything acts on it."""
    from evergreen.promotion import looks, service

    context, model, look_plan = get_current_context(), loader.load_spec(name), LookPlan.load(plan)
    entry = look_plan.verdict_entry
    if entry is None:
        scored = ScoredLook.load(evaluate_output)
        assert look_plan.first_entry
        look = looks.LookContext(
            run=dag_run_name(context),
            run_reason=look_plan.run_reason,
            first_entry=look_plan.first_entry,
            examples=scored.examples(model),
            evaluation=scored.evaluation(model),
        )
        try:
            if look_plan.run_reason is RunReason.BACKFILL:
                log.info("a look then would have said: %s", looks.preview_look(model, look).reason)
                return None
            entry = looks.judge_look(model, look)
        except PromotionRefusedError as error:
            raise AirflowSkipException(str(error)) from None
    judged = JudgedVerdict(entry=entry, report=str(service.verdict_report_path(model, entry)))
    verdict = judged.verdict_event(name).verdict
    for result in verdict.results:
        log.info("%12s  %s: %s", result.outcome.upper(), result.gate, result.reason)
    log.info("report: %s", judged.report)
    assert look_plan.challenger_version
    request = look_plan.promotion_request(entry, look_plan.challenger_version)
    if model.approval and (blocker := service.promotion_blocker(model, request)):
        log.info("approval is not requested: %s", blocker)
        return skip_tasks(context, judged.dump(), ["approve"])
    return judged.dump()


@task(trigger_rule="none_failed")
def conclude(name: str, plan: XCom, judge_output: XCom, approval_output: XCom) -> str:
    """Promote the challenger if its verdict and the rules allow it, or withdraw it, or wait."""
    from evergreen import ledger
    from evergreen.orchestration.operators.approval import responder
    from evergreen.promotion import challengers, looks, service

    model, look_plan, actor = loader.load_spec(name), LookPlan.load(plan), requester(get_current_context())
    if event := looks.withdraw_obsolete_challenger(model, look_plan.end, actor=actor):
        raise AirflowSkipException(f"the champion stays, version {event.version} is withdrawn: {event.reason}")
    if judge_output is None:
        raise AirflowSkipException("the champion stays: nothing was judged")
    entry = JudgedVerdict.from_judge(judge_output).entry
    state = ledger.read_state(name)
    # An approval may take days: the version may have been deleted, and registered again, since it was planned.
    content, version = look_plan.challenger_content, look_plan.challenger_version
    assert content
    assert version
    version = state.name_of(content, version)
    if state.challenger_verdict == entry and state.open_comparison:
        wait = challengers.challenger_wait(state, model)
        raise AirflowSkipException(f"the champion stays, version {version} is its challenger: {wait}")
    request = look_plan.promotion_request(entry, version, responder(approval_output) if approval_output else None)
    try:
        blocker = service.promote_version(model, request, actor=actor)
    except PromotionRefusedError as error:
        raise AirflowSkipException(f"the champion stays: {error}") from None
    if blocker:
        raise AirflowSkipException(f"the champion stays, version {version} is its challenger: {blocker}")
    log.info("%s version %s is champion", name, version)
    return version


class MonitoringReportLink(BaseOperatorLink):
    """Opens the monitoring report of the champion (`evergreen.plugin.verdicts`)."""

    name = "Monitoring report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow passes it by name
        return f"/evergreen/{ti_key.dag_id}/monitoring"
