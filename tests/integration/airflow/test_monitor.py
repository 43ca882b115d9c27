"""A challenger under a real Airflow: it gathers evidence, and is promoted by a run that published features start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from evergreen import batch_predictions, ledger
from evergreen.lake import datasets
from evergreen.ledger import VerdictRecorded
from evergreen.monitoring.record import read_record, read_report
from evergreen.periods import Calendar
from evergreen.settings import settings
from integration.airflow.conftest import FEATURES, ZONE, Chain, write_patient

pytestmark = pytest.mark.integration

NAME = "patient"
RETRAIN, MONITOR, SCORE = f"{NAME}.retrain", f"{NAME}.monitor", f"{NAME}.score"
LOOK_TASKS = ("examples", "evaluate", "judge", "conclude")


@pytest.fixture(autouse=True)
def _unpaused(chain: Chain) -> Iterator[None]:
    """Only this model hears of the features that are published here."""
    chain.airflow.set_dag_paused("coin.retrain", True)
    chain.quiet(FEATURES)
    with chain.unpaused(RETRAIN, MONITOR):
        yield
    chain.airflow.set_dag_paused("coin.retrain", False)


def retrain(chain: Chain, as_of: str) -> dict[str, str]:
    """Run until the end; return the states of the tasks."""
    chain.airflow.trigger_dag_run(RETRAIN, as_of, {"as_of": as_of})
    assert chain.wait(RETRAIN, run_id=as_of) == ["success"]
    return chain.states(RETRAIN, as_of)


def publish(chain: Chain, day: str) -> str:
    """Tell of published features of a day, as the features DAG does; return the run of the monitor DAG that follows."""
    known = chain.run_ids(MONITOR)
    chain.post_event(FEATURES, {"periods": [day]})
    runs = chain.new_runs(MONITOR, known, "asset_triggered")
    assert {run["state"] for run in runs} == {"success"}
    return str(max(runs, key=lambda run: run["run_after"])["dag_run_id"])


def check_scoring(chain: Chain) -> None:
    """Published features start the score DAG, and it does nothing twice."""
    chain.airflow.set_dag_paused(SCORE, False)
    known = chain.run_ids(SCORE)
    chain.post_event(FEATURES, {"periods": ["2013-01-16"]})
    [*_, run] = sorted(chain.new_runs(SCORE, known, "asset_triggered"), key=lambda run: run["run_after"])
    assert run["state"] == "success"
    dataset = batch_predictions.open_predictions(NAME)
    manifest = dataset.manifest("day=2013-01-16")
    assert manifest
    assert manifest.inputs["model"]["version"] == "2"
    flights = datasets.open_dataset("features/flight_delay").manifest("day=2013-01-16")
    assert flights
    assert manifest.files["predictions"].rows == flights.files["departures"].rows
    chain.clear(SCORE, run["dag_run_id"])
    assert chain.wait(SCORE, run_id=run["dag_run_id"]) == ["success"]
    assert chain.states(SCORE, run["dag_run_id"]) == {"plan": "success", "score": "skipped"}
    assert dataset.manifest("day=2013-01-16") == manifest
    chain.airflow.set_dag_paused(SCORE, True)


def registered_aliases() -> dict[str, str]:
    found = MlflowClient(settings().mlflow.get_secret_value()).get_registered_model(NAME).aliases
    return {name: str(version) for name, version in found.items() if name != "candidate"}


def test_a_challenger_is_promoted_when_published_features_suffice(chain: Chain) -> None:
    run_id = publish(chain, "2013-01-10")  # a first run also hears of all that was published before
    assert "there is no challenger" in chain.log(MONITOR, run_id, "plan")
    retrain(chain, "2013-01-11")
    assert registered_aliases() == {"champion": "1"}
    write_patient(chain.home.parent / "models", "rounds=5, max_depth=2")
    states = retrain(chain, "2013-01-12")
    assert (states["register"], states["promote"]) == ("success", "skipped")
    assert "version 2 is its challenger: it gathers evidence until" in chain.log(RETRAIN, "2013-01-12", "promote")
    first = ledger.read_state(NAME).challenger_event
    assert first
    assert first.verdict.is_inconclusive, first.verdict.reason
    assert registered_aliases() == {"champion": "1", "challenger": "2"}

    states = retrain(chain, "2013-01-13")
    assert states["materialize"] == "success"
    assert states["train"] == "skipped", "no other candidate meanwhile"
    assert "version 2 gathers evidence until" in chain.log(RETRAIN, "2013-01-13", "plan")

    run_id = chain.scheduled(
        MONITOR, Calendar("1d", ZONE).start("2013-01-07"), Calendar("1d", ZONE).start("2013-01-14")
    )
    assert chain.wait(MONITOR, run_id=run_id) == ["success"]
    assert "2 days are new since the look before, of 4" in chain.log(MONITOR, run_id, "plan")
    assert {chain.states(MONITOR, run_id)[task] for task in LOOK_TASKS} == {"skipped"}
    assert chain.states(MONITOR, run_id)["watch"] == "success", "the champion's data is watched in any case"
    assert chain.states(MONITOR, run_id)["request_retrain"] == "skipped"
    assert "no alarm asks for a retrain" in chain.log(MONITOR, run_id, "request_retrain")
    champion = ledger.read_state(NAME).champion_content
    assert champion
    assert read_record(NAME, champion)
    assert read_report(NAME, champion)

    count = ledger.read_state(NAME).head_number
    run_id = publish(chain, "2013-01-15")
    assert {chain.states(MONITOR, run_id)[task] for task in LOOK_TASKS} == {"success"}
    state = ledger.read_state(NAME)
    assert [entry.event.kind for entry in state.entries[count:]] == ["judged", "promoted"]
    look = state.entries[count].event
    assert isinstance(look, VerdictRecorded)
    assert look.later_look
    assert look.holdout == (first.holdout[0], "2013-01-16")
    assert [made.days for made in look.verdict.results[1].looks] == [6, 10]
    assert (state.champion, state.challenger) == ("2", None)
    assert registered_aliases() == {"champion": "2", "previous": "1"}

    # Run again, it promotes nothing twice.
    chain.clear(MONITOR, run_id)
    assert chain.wait(MONITOR, run_id=run_id) == ["success"]
    assert "there is no challenger" in chain.log(MONITOR, run_id, "plan")
    assert ledger.read_state(NAME).head_number == state.head_number
    check_scoring(chain)
