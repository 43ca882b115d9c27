"""A challenger under a real Airflow: it gathers evidence, and is promoted by a run that published features start."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from evergreen import ledger
from evergreen.ledger import VerdictRecorded
from evergreen.settings import settings
from evergreen.window import midnight
from integration.airflow.conftest import FEATURES, ZONE, Chain, write_patient

pytestmark = pytest.mark.integration

NAME = "patient"
RETRAIN, MONITOR = f"{NAME}.retrain", f"{NAME}.monitor"
LOOK_TASKS = ("examples", "evaluate", "judge", "conclude")


@pytest.fixture(autouse=True)
def _unpaused(chain: Chain) -> Iterator[None]:
    """Only this model hears of the features that are published here."""
    chain.airflow.set_dag_paused("coin.retrain", True)
    chain.quiet(FEATURES)
    deadline = time.monotonic() + 120
    for dag_id in (RETRAIN, MONITOR):
        while chain.airflow.dag(dag_id) is None:
            assert time.monotonic() < deadline, chain.airflow.import_errors()
            time.sleep(1)
        chain.airflow.set_dag_paused(dag_id, False)
    yield
    for dag_id in (RETRAIN, MONITOR):
        chain.airflow.set_dag_paused(dag_id, True)
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
    runs = chain.new_runs(MONITOR, known, "asset_triggered", patience=120)
    assert {run["state"] for run in runs} == {"success"}
    return str(max(runs, key=lambda run: run["run_after"])["dag_run_id"])


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

    run_id = chain.scheduled(MONITOR, midnight("2013-01-07", ZONE), midnight("2013-01-14", ZONE))
    assert chain.wait(MONITOR, run_id=run_id) == ["success"]
    assert "2 days are new since the look before, of 4" in chain.log(MONITOR, run_id, "plan")
    assert {chain.states(MONITOR, run_id)[task] for task in LOOK_TASKS} == {"skipped"}

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
