"""The DAG that trains a candidate, judges it against the champion, and promotes it if the evidence says so.

`plan → materialize → training_set → train → evaluate → judge → register → promote`

**A backfill is a walk-forward backtest:** `plan → training_set → train → backtest`. Each run trains as of its
date with only what was known then; the report in `backtest`'s log tells what the gates would have decided and
how each policy of retraining would have fared. The champion and the online features are left alone.

**When `promote` is skipped,** the champion stays: the log of `judge` has the table of gates and the reason.
That is an answer, not a failure.

**When a run ends after `plan`,** features arrived, but fewer days than the model waits for.

**When `training_set` fails,** days of features are missing; it names them. Run the features DAG for them.

**Running it again** is always safe: what is published with the same inputs, code and parameters is found.
A window that is not newer than the champion's never promotes.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, CronDataIntervalTimetable, Param, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from evergreen import model as models
from evergreen.model import Model, feature_spec
from evergreen.orchestration.features import published_asset
from evergreen.orchestration.run import facts, of_family, retrain_window, skip, step
from evergreen.window import Origin, Window


def retrain_dag(model: Model) -> DAG:
    """`<model>.retrain`."""
    with DAG(
        **of_family(model, "retrain", "From published features to a promoted champion", __doc__),
        schedule=_schedule(model),
        max_active_runs=1,  # two at once would each judge against a champion that the other replaces
        default_args={
            "owner": model.owner,
            "retries": 2,
            "retry_delay": timedelta(seconds=5),
            "execution_timeout": timedelta(minutes=model.resources.minutes),
        },
        params={
            "as_of": Param(
                None,
                type=["null", "string"],
                format="date",
                description="Know only what was known at the start of this day; empty: as of today",
            ),
        },
    ) as dag:
        planned = plan(model.name)
        materialized = materialize(model.name, planned)
        examples = training_set(model.name, planned)
        candidate = train(model.name, examples)
        backtest(model.name, planned, candidate)
        evaluation = evaluate(model.name, planned, candidate)
        judged = judge(model.name, evaluation)
        version = register(model.name, judged)
        materialized >> examples
        promote(model.name, planned, judged, version)
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
    from evergreen import registry
    from evergreen.store import training_set as training_sets

    context = get_current_context()
    model = models.load(name)
    window = retrain_window(model, facts(context))
    print(f"{window.origin}: days {window.start} until {window.end}")
    planned: dict[str, Any] = {
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "origin": window.origin.value,
        "timezone": window.timezone,
        "champion": None,
    }
    if window.origin is Origin.BACKFILL:
        return skip(context, planned, _DECIDING)
    news = training_sets.news(model, window)
    print(f"{len(news)} days are new or corrected since the last training set")
    if window.origin is Origin.ARRIVAL and len(news) < (model.retrain_after_days or 0):
        print(f"{name} retrains on arrival once there are {model.retrain_after_days}: nothing to do")
        return skip(context, planned, _ALL)
    if champion := registry.champion(model):
        planned["champion"] = {
            "version": str(champion.version),
            "seen_until": registry.holdout_start(champion).isoformat(),
            "as_of": registry.as_of(champion).isoformat(),
        }
    print(f"judged against version {champion.version}" if champion else "there is no champion yet")
    return skip(context, planned, ["backtest"])


_DECIDING = ["materialize", "evaluate", "judge", "register", "promote"]
_ALL = [*_DECIDING, "training_set", "train", "backtest"]


@step()
def materialize(name: str, planned: dict[str, Any]) -> dict[str, str]:
    """Bring the online store up to the window (Feast)."""
    from evergreen.store import online

    return online.materialize(models.load(name), _window(planned))


# Materializing serves online readers, training does not read it: skipping the one must not skip the other.
@step(trigger_rule="none_failed")
def training_set(name: str, planned: dict[str, Any]) -> dict[str, str]:
    """Join every labelled example with the features known when it was predicted (Feast, point in time)."""
    from evergreen.store import training_set as training_sets

    return training_sets.build(models.load(name), _window(planned)).reference


@step()
def train(name: str, examples: dict[str, str]) -> dict[str, Any]:
    """Train a candidate in a process of its own, from a job file."""
    from evergreen.store import training_set as training_sets
    from evergreen.training import local

    model = models.load(name)
    source = training_sets.dataset(model)
    features = training_sets.feature_columns(model)
    candidate = local.train(model, source.get(examples), source, features)
    return {"training_set": examples, "candidate": candidate.reference}


@step()
def backtest(name: str, planned: dict[str, Any], trained: dict[str, Any]) -> str:
    """Add the candidate to the model's backtest, and bring its report up to date; gives where it lies."""
    from evergreen import backtest as backtests
    from evergreen.store import training_set as training_sets
    from evergreen.training import local

    model = models.load(name)
    report = backtests.add(
        model,
        _window(planned).end,
        training_sets.dataset(model).get(trained["training_set"]),
        local.dataset(model).get(trained["candidate"]),
    )
    print("\n".join(backtests.lines(backtests.Results.read(report.with_name("results.json")))))
    print(f"report: {report}")
    return str(report)


@step()
def evaluate(name: str, planned: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """Score candidate and champion on the same holdout, which neither has seen."""
    from evergreen import evaluation
    from evergreen.store import training_set as training_sets
    from evergreen.training import local

    model = models.load(name)
    champion = planned["champion"] and evaluation.Champion(
        planned["champion"]["version"], date.fromisoformat(planned["champion"]["seen_until"])
    )
    scores = evaluation.evaluate(
        model,
        training_sets.dataset(model).get(trained["training_set"]),
        local.dataset(model).get(trained["candidate"]),
        champion,
    )
    return {**trained, "evaluation": scores.reference}


@step()
def judge(name: str, evaluated: dict[str, Any]) -> dict[str, Any]:
    """Ask every gate, and store the verdict before anything acts on it."""
    from evergreen import evaluation

    model = models.load(name)
    verdict, file = evaluation.verdict(model, evaluation.dataset(model).get(evaluated["evaluation"]))
    for record in verdict.records:
        print(f"{record.outcome.upper():>12}  {record.gate}: {record.reason}")
    print(verdict.reason)
    return {**evaluated, "verdict": str(file)}


@step()
def register(name: str, judged: dict[str, Any]) -> str:
    """Register the candidate with its verdict and fingerprints (MLflow), whatever the verdict; gives its version."""
    from pathlib import Path

    from evergreen import registry
    from evergreen.gates import Verdict
    from evergreen.store import training_set as training_sets
    from evergreen.training import local

    model = models.load(name)
    file = Path(judged["verdict"])
    version = registry.register(
        model,
        training_sets.dataset(model).get(judged["training_set"]),
        local.dataset(model).get(judged["candidate"]),
        Verdict.model_validate_json(file.read_text()),
        file,
    )
    print(f"{name} version {version}")
    return version


@step()
def promote(name: str, planned: dict[str, Any], judged: dict[str, Any], version: str) -> str:
    """Move the alias `champion` to the candidate (MLflow), if the verdict and the rules of promotion allow it."""
    from pathlib import Path

    from evergreen import promotion, registry
    from evergreen.gates import Verdict

    window = _window(planned)
    decision = promotion.decide(
        Verdict.model_validate_json(Path(judged["verdict"]).read_text()),
        as_of=window.end,
        champion_as_of=planned["champion"] and date.fromisoformat(planned["champion"]["as_of"]),
        origin=window.origin,
    )
    if not decision.promote:
        raise AirflowSkipException(f"the champion stays: {decision.reason}")
    registry.promote(models.load(name), version)
    print(f"{name} version {version} is champion: {decision.reason}")
    return version


def _window(planned: dict[str, Any]) -> Window:
    return Window.between(
        start=date.fromisoformat(planned["start"]),
        end=date.fromisoformat(planned["end"]),
        origin=Origin(planned["origin"]),
        timezone=planned["timezone"],
    )
