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
    TRIES,
    asked_by,
    days_of_data,
    facts,
    of_family,
    retrain_window,
    skip,
    step,
)
from evergreen.orchestration.dags.features import published_asset
from evergreen.orchestration.operators.train import Train, leave_no_pod
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import Model
from evergreen.window import Origin, Window


def retrain_dag(model: Model) -> DAG:
    """`<model>.retrain`."""
    with DAG(
        **of_family(model, "retrain", "From published features to a promoted champion", __doc__),
        **days_of_data(model),
        schedule=_schedule(model),
        on_failure_callback=leave_no_pod,
        max_active_runs=1,  # two at once would each judge against a champion that the other replaces
        default_args={
            "owner": model.owner,
            **TRIES,
            "execution_timeout": timedelta(minutes=model.resources.minutes),
        },
        params={
            "as_of": Param(
                None,
                type=["null", "string"],
                format="date",
                description="Know only what was known at the start of this day; empty: as of today",
            ),
            _PROMOTES: Param(
                False,
                type="boolean",
                description="For a backfill: judge and promote as scheduled runs do, instead of a backtest",
            ),
        },
    ) as dag:
        planned = plan(model.name)
        materialized = materialize(model.name, planned)
        examples = training_set(model.name, planned)
        candidate = Train(task_id="train", model=model, examples=examples).output
        backtest(model.name, planned, candidate)
        evaluation = evaluate(model.name, planned, candidate)
        judged = judge(model.name, planned, evaluation)
        judged.operator.operator_extra_links = (GateReport(),)
        version = register(model.name, planned, judged)
        answer = None
        if model.approval:
            from evergreen.orchestration.operators.approval import Approval  # which only such models pay for

            approve = Approval(
                task_id="approve",
                model=model.name,
                judged=judged,
                version=version,
                asks=model.approval,
            )
            answer = approve.output
        materialized >> examples
        promote(model.name, planned, judged, version, answer)
    return dag


def _schedule(model: Model) -> Any:
    """The clock; and, if the model asks for it, new features."""
    clock = CronDataIntervalTimetable(model.schedule, timezone=feature_spec(model).timezone)
    if model.retrain_after_days is None:
        return clock
    return AssetOrTimeSchedule(timetable=clock, assets=[published_asset(model.features_of)])


@step()
def plan(name: str) -> dict[str, Any]:
    """Resolve the window, and which champion the candidate will be judged against; nothing later asks again."""
    from evergreen.feature_store import training_sets
    from evergreen.registry import versions

    context = get_current_context()
    model = loader.load(name)
    window = retrain_window(model, facts(context, not_dates=(_PROMOTES,)))
    print(f"{window.origin}: days {window.start} until {window.end}")
    planned: dict[str, Any] = {
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "origin": window.origin.value,
        "timezone": window.timezone,
        "champion": None,
        "promotes": window.origin is Origin.BACKFILL and bool(context["params"].get(_PROMOTES)),
    }
    if window.origin is Origin.BACKFILL and not planned["promotes"]:
        return skip(context, planned, _DECIDING)
    news = training_sets.news(model, window)
    print(f"{len(news)} days are new or corrected since the last training set")
    if window.origin is Origin.ARRIVAL and len(news) < (model.retrain_after_days or 0):
        print(f"{name} retrains on arrival once there are {model.retrain_after_days}: nothing to do")
        return skip(context, planned, _ALL)
    if champion := versions.champion(model):
        planned["champion"] = {
            "version": str(champion.version),
            "seen_until": versions.holdout_start(champion).isoformat(),
        }
    print(f"judged against version {champion.version}" if champion else "there is no champion yet")
    return skip(context, planned, ["backtest"])


_PROMOTES = "promote"  # key of the conf
_DECIDING = ["materialize", "evaluate", "judge", "register", "promote"]
_ALL = [*_DECIDING, "training_set", "train", "backtest"]


@step()
def materialize(name: str, planned: dict[str, Any]) -> dict[str, str]:
    """Bring the online store up to the window (Feast)."""
    from evergreen.feature_store import online_store

    return online_store.materialize(loader.load(name), _window(planned))


# Materializing serves online readers, training does not read it: skipping the one must not skip the other.
@step(trigger_rule="none_failed")
def training_set(name: str, planned: dict[str, Any]) -> dict[str, str]:
    """Join every labelled example with the features known when it was predicted (Feast, point in time)."""
    from evergreen.feature_store import training_sets

    return training_sets.build(loader.load(name), _window(planned)).reference


@step()
def backtest(name: str, planned: dict[str, Any], trained: dict[str, Any]) -> str:
    """Add the candidate to the model's backtest, and bring its report up to date; gives where it lies."""
    from evergreen import backtest as backtests
    from evergreen.feature_store import training_sets
    from evergreen.promotion import service
    from evergreen.training import candidates

    model = loader.load(name)
    as_of, candidate = _window(planned).end, candidates.dataset(model).get(trained["candidate"])
    report = backtests.add(model, as_of, training_sets.dataset(model).get(trained["training_set"]), candidate)
    service.backtested(model, as_of, candidate, report, by=asked_by(get_current_context()))
    print("\n".join(backtests.lines(backtests.Results.read(report.with_name("results.json")))))
    print(f"report: {report}")
    return str(report)


@step()
def evaluate(name: str, planned: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """Score candidate and champion on the same holdout, which neither has seen."""
    from evergreen import evaluation
    from evergreen.feature_store import training_sets
    from evergreen.training import candidates

    model = loader.load(name)
    champion = planned["champion"] and evaluation.Champion(
        planned["champion"]["version"], date.fromisoformat(planned["champion"]["seen_until"])
    )
    scores = evaluation.evaluate(
        model,
        training_sets.dataset(model).get(trained["training_set"]),
        candidates.dataset(model).get(trained["candidate"]),
        champion,
    )
    return {**trained, "evaluation": scores.reference}


@step()
def judge(name: str, planned: dict[str, Any], evaluated: dict[str, Any]) -> dict[str, Any]:
    """Hold the evidence against the gates, and write the verdict into the ledger before anything acts on it."""
    from evergreen import evaluation, ledger
    from evergreen.feature_store import training_sets
    from evergreen.promotion import service
    from evergreen.training import candidates

    context = get_current_context()
    model = loader.load(name)
    number = service.judge(
        model,
        service.Case(
            run=f"{context['dag_run'].dag_id} {context['dag_run'].run_id}",
            origin=Origin(planned["origin"]),
            training_set=training_sets.dataset(model).get(evaluated["training_set"]),
            candidate=candidates.dataset(model).get(evaluated["candidate"]),
            evaluation=evaluation.dataset(model).get(evaluated["evaluation"]),
            champion=planned["champion"] and planned["champion"]["version"],
        ),
    )
    verdict = ledger.judged(name, number).verdict
    for record in verdict.records:
        print(f"{record.outcome.upper():>12}  {record.gate}: {record.reason}")
    print(verdict.reason)
    report = str(service.report(model, number))
    print(f"report: {report}")
    return {**evaluated, "entry": number, "report": report}


@step()
def register(name: str, planned: dict[str, Any], judged: dict[str, Any]) -> str:
    """Register the candidate with its verdict and fingerprints (MLflow), whatever the verdict; gives its version."""
    from evergreen import ledger
    from evergreen.feature_store import training_sets
    from evergreen.promotion import service
    from evergreen.registry import versions
    from evergreen.training import candidates

    model = loader.load(name)
    number = judged["entry"]
    version = versions.register(
        model,
        training_sets.dataset(model).get(judged["training_set"]),
        candidates.dataset(model).get(judged["candidate"]),
        ledger.judged(name, number).verdict,
        service.report(model, number),
    )
    print(f"{name} version {version}")
    claim = service.Claim(number, version, Origin(planned["origin"]), planned["promotes"])
    if model.approval and (why := service.may_promote(model, claim)):
        print(f"nobody is asked to approve: {why}")
        return skip(get_current_context(), version, ["approve"])
    return version


# Approval is skipped where there is nothing to approve; what holds the candidate back is said here.
@step(trigger_rule="none_failed")
def promote(
    name: str, planned: dict[str, Any], judged: dict[str, Any], version: str, answer: dict[str, Any] | None
) -> str:
    """Make the candidate champion, in the ledger and then in MLflow, if the verdict and the rules allow it."""
    from evergreen.errors import PromotionRefused
    from evergreen.orchestration.operators.approval import person
    from evergreen.promotion import service

    claim = service.Claim(
        judged["entry"],
        version,
        Origin(planned["origin"]),
        planned["promotes"],
        approved_by=person(answer) if answer else None,
    )
    try:
        held_back = service.promote(loader.load(name), claim, by=asked_by(get_current_context()))
    except PromotionRefused as refusal:
        raise AirflowSkipException(f"the champion stays: {refusal}") from None
    if held_back:
        raise AirflowSkipException(f"the champion stays, version {version} is its challenger: {held_back}")
    print(f"{name} version {version} is champion")
    return version


class GateReport(BaseOperatorLink):
    """A button on the task that leads to the page about its verdict (evergreen.plugin.verdicts)."""

    name = "Gate report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        judged = ti_key.xcom_pull(task_ids=ti_key.task_id)
        return f"/evergreen/{ti_key.dag_id}/verdicts/{judged['entry']}" if judged else ""


def _window(planned: dict[str, Any]) -> Window:
    return Window.between(
        start=date.fromisoformat(planned["start"]),
        end=date.fromisoformat(planned["end"]),
        origin=Origin(planned["origin"]),
        timezone=planned["timezone"],
    )
