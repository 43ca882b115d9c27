"""The DAG that trains a candidate, judges it against the champion, and promotes it if the evidence says so.

`plan → materialize → training_set → train → evaluate → judge → register → (approve) → promote`

**A backfill is a walk-forward backtest:** `plan → training_set → train → backtest`. Each run trains as of its
date with only what was known then; the report in `backtest`'s log tells what the gates would have decided and
how each policy of retraining would have fared. The champion and the online features are left alone.

**When `promote` is skipped,** the champion stays: its log says why, and the button *Gate report* on `judge` leads
to all the evidence. That is an answer, not a failure.

**When `approve` waits,** a person is asked, under *Required actions*; a no, or no answer in time, keeps the champion.

**When a run ends after `plan`,** features arrived, but fewer days than the model waits for.

**When `training_set` fails,** days of features are missing; it names them. Run the features DAG for them.

**Running it again** is always safe: what is published with the same inputs, code and parameters is found.
A window that is not newer than the champion's never promotes.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from airflow.sdk import (
    DAG,
    AssetOrTimeSchedule,
    BaseOperatorLink,
    CronDataIntervalTimetable,
    Param,
    get_current_context,
)
from airflow.sdk.exceptions import AirflowSkipException

from evergreen.orchestration.dag_run import (
    RETRY_ARGS,
    dag_kwargs,
    dag_run_info,
    data_range_kwargs,
    model_retrain_window,
    requester,
    skip_tasks,
    step,
)
from evergreen.orchestration.dags.features import features_asset
from evergreen.orchestration.operators.train import TrainOperator, delete_leftover_pods
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window


def retrain_dag(model: ModelSpec) -> DAG:
    """`<model>.retrain`."""
    with DAG(
        **dag_kwargs(model, "retrain", "From published features to a promoted champion", __doc__),
        **data_range_kwargs(model),
        schedule=_schedule(model),
        on_failure_callback=delete_leftover_pods,
        max_active_runs=1,  # two at once would each judge against a champion that the other replaces
        default_args={
            "owner": model.owner,
            **RETRY_ARGS,
            "execution_timeout": timedelta(minutes=model.resources.timeout_minutes),
        },
        params={
            "as_of": Param(
                None,
                type=["null", "string"],
                format="date",
                description="Know only what was known at the start of this day; empty: as of today",
            ),
            _PROMOTE_PARAM: Param(
                False,
                type="boolean",
                description="For a backfill: judge and promote as scheduled runs do, instead of a backtest",
            ),
        },
    ) as dag:
        planned = plan(model.name)
        materialized = materialize(model.name, planned)
        examples = training_set(model.name, planned)
        candidate = TrainOperator(task_id="train", model=model, training_set_reference=examples).output
        backtest(model.name, planned, candidate)
        evaluation = evaluate(model.name, planned, candidate)
        judged = judge(model.name, planned, evaluation)
        judged.operator.operator_extra_links = (GateReportLink(),)
        version = register(model.name, planned, judged)
        answer = None
        if model.approval:
            from evergreen.orchestration.operators.approval import (
                PromotionApprovalOperator,  # which only such models pay for
            )

            approve = PromotionApprovalOperator(
                task_id="approve",
                model=model.name,
                judge_output=judged,
                version=version,
                approval=model.approval,
            )
            answer = approve.output
        materialized >> examples
        promote(model.name, planned, judged, version, answer)
    return dag


def _schedule(model: ModelSpec) -> Any:
    """The clock; and, if the model asks for it, new features."""
    clock = CronDataIntervalTimetable(model.schedule, timezone=feature_spec(model).timezone)
    if model.retrain_after_days is None:
        return clock
    return AssetOrTimeSchedule(timetable=clock, assets=[features_asset(model.feature_model)])


@step()
def plan(name: str) -> dict[str, Any]:
    """Resolve the window, and which champion the candidate will be judged against; nothing later asks again."""
    from evergreen.feature_store import training_sets
    from evergreen.registry import versions

    context = get_current_context()
    model = loader.load_spec(name)
    window = model_retrain_window(model, dag_run_info(context, excluded_conf_keys=(_PROMOTE_PARAM,)))
    print(f"{window.run_reason}: days {window.start} until {window.end}")
    planned: dict[str, Any] = {
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "origin": window.run_reason.value,
        "timezone": window.timezone,
        "champion": None,
        "promotes": window.run_reason is RunReason.BACKFILL and bool(context["params"].get(_PROMOTE_PARAM)),
    }
    if window.run_reason is RunReason.BACKFILL and not planned["promotes"]:
        return skip_tasks(context, planned, _DECISION_TASKS)
    news = training_sets.changed_feature_partitions(model, window)
    print(f"{len(news)} days are new or corrected since the last training set")
    if window.run_reason is RunReason.ARRIVAL and len(news) < (model.retrain_after_days or 0):
        print(f"{name} retrains on arrival once there are {model.retrain_after_days}: nothing to do")
        return skip_tasks(context, planned, _ALL_TASKS)
    if champion := versions.get_champion_version(model):
        planned["champion"] = {
            "version": str(champion.version),
            "seen_until": versions.holdout_start(champion).isoformat(),
        }
    print(f"judged against version {champion.version}" if champion else "there is no champion yet")
    return skip_tasks(context, planned, ["backtest"])


_PROMOTE_PARAM = "promote"  # key of the conf
_DECISION_TASKS = ["materialize", "evaluate", "judge", "register", "promote"]
_ALL_TASKS = [*_DECISION_TASKS, "training_set", "train", "backtest"]


@step()
def materialize(name: str, plan: dict[str, Any]) -> dict[str, str]:
    """Bring the online store up to the window (Feast)."""
    from evergreen.feature_store import online_store

    return online_store.materialize_features(loader.load_spec(name), _load_window(plan))


# Materializing serves online readers, training does not read it: skipping the one must not skip the other.
@step(trigger_rule="none_failed")
def training_set(name: str, plan: dict[str, Any]) -> dict[str, str]:
    """Join every labelled example with the features known when it was predicted (Feast, point in time)."""
    from evergreen.feature_store import training_sets

    return training_sets.build_training_set(loader.load_spec(name), _load_window(plan)).reference


@step()
def backtest(name: str, plan: dict[str, Any], train_output: dict[str, Any]) -> str:
    """Add the candidate to the model's backtest, and bring its report up to date; gives where it lies."""
    from evergreen import backtest as backtests
    from evergreen.feature_store import training_sets
    from evergreen.promotion import service
    from evergreen.training import candidates

    model = loader.load_spec(name)
    as_of, candidate = (
        _load_window(plan).end,
        candidates.candidate_dataset(model).resolve(train_output["candidate"]),
    )
    report = backtests.add_candidate(
        model,
        as_of,
        training_sets.training_set_dataset(model).resolve(train_output["training_set"]),
        candidate,
    )
    service.record_backtest(model, as_of, candidate, report, actor=requester(get_current_context()))
    print("\n".join(backtests.summary_lines(backtests.BacktestResults.read(report.with_name("results.json")))))
    print(f"report: {report}")
    return str(report)


@step()
def evaluate(name: str, plan: dict[str, Any], train_output: dict[str, Any]) -> dict[str, Any]:
    """Score candidate and champion on the same holdout, which neither has seen."""
    from evergreen import evaluation
    from evergreen.feature_store import training_sets
    from evergreen.training import candidates

    model = loader.load_spec(name)
    champion = plan["champion"] and evaluation.Champion(
        plan["champion"]["version"], date.fromisoformat(plan["champion"]["seen_until"])
    )
    scores = evaluation.collect_evidence(
        model,
        training_sets.training_set_dataset(model).resolve(train_output["training_set"]),
        candidates.candidate_dataset(model).resolve(train_output["candidate"]),
        champion,
    )
    return {**train_output, "evaluation": scores.reference}


@step()
def judge(name: str, plan: dict[str, Any], evaluate_output: dict[str, Any]) -> dict[str, Any]:
    """Hold the evidence against the gates, and write the verdict into the ledger before anything acts on it."""
    from evergreen import evaluation, ledger
    from evergreen.feature_store import training_sets
    from evergreen.promotion import service
    from evergreen.training import candidates

    context = get_current_context()
    model = loader.load_spec(name)
    number = service.judge_candidate(
        model,
        service.EvaluationContext(
            run=f"{context['dag_run'].dag_id} {context['dag_run'].run_id}",
            run_reason=RunReason(plan["origin"]),
            training_set=training_sets.training_set_dataset(model).resolve(evaluate_output["training_set"]),
            candidate=candidates.candidate_dataset(model).resolve(evaluate_output["candidate"]),
            evaluation=evaluation.evaluation_dataset(model).resolve(evaluate_output["evaluation"]),
            champion_version=plan["champion"] and plan["champion"]["version"],
        ),
    )
    verdict = ledger.read_verdict_event(name, number).verdict
    for record in verdict.results:
        print(f"{record.outcome.upper():>12}  {record.gate}: {record.reason}")
    print(verdict.reason)
    report = str(service.verdict_report_path(model, number))
    print(f"report: {report}")
    return {**evaluate_output, "entry": number, "report": report}


@step()
def register(name: str, plan: dict[str, Any], judge_output: dict[str, Any]) -> str:
    """Register the candidate with its verdict and fingerprints (MLflow), whatever the verdict; gives its version."""
    from evergreen import ledger
    from evergreen.feature_store import training_sets
    from evergreen.promotion import service
    from evergreen.registry import versions
    from evergreen.training import candidates

    model = loader.load_spec(name)
    number = judge_output["entry"]
    version = versions.register_candidate(
        model,
        training_sets.training_set_dataset(model).resolve(judge_output["training_set"]),
        candidates.candidate_dataset(model).resolve(judge_output["candidate"]),
        ledger.read_verdict_event(name, number).verdict,
        service.verdict_report_path(model, number),
    )
    print(f"{name} version {version}")
    claim = service.PromotionRequest(number, version, RunReason(plan["origin"]), plan["promotes"])
    if model.approval and (why := service.promotion_blocker(model, claim)):
        print(f"nobody is asked to approve: {why}")
        return skip_tasks(get_current_context(), version, ["approve"])
    return version


# Approval is skipped where there is nothing to approve; what holds the candidate back is said here.
@step(trigger_rule="none_failed")
def promote(
    name: str,
    plan: dict[str, Any],
    judge_output: dict[str, Any],
    version: str,
    approval_output: dict[str, Any] | None,
) -> str:
    """Make the candidate champion, in the ledger and then in MLflow, if the verdict and the rules allow it."""
    from evergreen.errors import PromotionRefusedError
    from evergreen.orchestration.operators.approval import responder
    from evergreen.promotion import service

    claim = service.PromotionRequest(
        judge_output["entry"],
        version,
        RunReason(plan["origin"]),
        plan["promotes"],
        approved_by=responder(approval_output) if approval_output else None,
    )
    try:
        held_back = service.promote_version(loader.load_spec(name), claim, actor=requester(get_current_context()))
    except PromotionRefusedError as refusal:
        raise AirflowSkipException(f"the champion stays: {refusal}") from None
    if held_back:
        raise AirflowSkipException(f"the champion stays, version {version} is its challenger: {held_back}")
    print(f"{name} version {version} is champion")
    return version


class GateReportLink(BaseOperatorLink):
    """A button on the task that leads to the page about its verdict (evergreen.plugin.verdicts)."""

    name = "Gate report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        judged = ti_key.xcom_pull(task_ids=ti_key.task_id)
        return f"/evergreen/{ti_key.dag_id}/verdicts/{judged['entry']}" if judged else ""


def _load_window(plan: dict[str, Any]) -> Window:
    return Window.from_range(
        start=date.fromisoformat(plan["start"]),
        end=date.fromisoformat(plan["end"]),
        run_reason=RunReason(plan["origin"]),
        timezone=plan["timezone"],
    )
