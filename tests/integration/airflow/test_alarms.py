"""An alarm under a real Airflow: data in another unit starts a retrain, once, that knows why it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest
from mlflow import MlflowClient

from evergreen import ledger
from evergreen.ledger import AlarmRaised, LedgerEvent, LedgerState, RetrainRequested, VerdictRecorded
from evergreen.settings import settings
from evergreen.spec import loader
from integration.airflow.conftest import Chain
from support import pumps

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RETRAIN, MONITOR = f"{pumps.NAME}.retrain", f"{pumps.NAME}.monitor"
LEARNED = 38
"""Days that the champion was made of and judged on."""

Event = TypeVar("Event", bound=LedgerEvent)


@pytest.fixture(autouse=True)
def _unpaused(chain: Chain) -> Iterator[None]:
    with chain.unpaused(RETRAIN, MONITOR):
        yield


def look_at(chain: Chain, day: str) -> str:
    """Tell of published features of a day, as the features DAG does; return the run of the monitor DAG that follows."""
    known = chain.run_ids(MONITOR)
    chain.post_event(f"{pumps.NAME}.features", {"periods": [day]})
    [run] = chain.new_runs(MONITOR, known, "asset_triggered")
    assert run["state"] == "success"
    return str(run["dag_run_id"])


def events_of(state: LedgerState, kind: type[Event]) -> list[Event]:
    return [entry.event for entry in state.entries if isinstance(entry.event, kind)]


def test_an_alarm_starts_one_retrain_that_knows_why(chain: Chain) -> None:
    model = loader.load_spec(pumps.NAME)
    pumps.publish(model, pumps.days(0, LEARNED + 2))
    as_of = pumps.days(LEARNED, 1)[0]
    chain.airflow.trigger_dag_run(RETRAIN, as_of, {"as_of": as_of})
    assert chain.wait(RETRAIN, run_id=as_of) == ["success"]
    assert ledger.read_state(pumps.NAME).champion == "1"
    run_id = look_at(chain, pumps.days(LEARNED + 1, 1)[0])
    assert chain.states(MONITOR, run_id)["request_retrain"] == "skipped"
    assert "no alarm asks for a retrain" in chain.log(MONITOR, run_id, "request_retrain")
    assert chain.run_ids(RETRAIN) == {as_of}

    changed = pumps.days(LEARNED + 2, 1)[0]
    pumps.publish(model, [changed], pressure_unit=14.5)
    run_id = look_at(chain, changed)
    assert chain.states(MONITOR, run_id)["request_retrain"] == "success"
    state = ledger.read_state(pumps.NAME)
    [alarm] = events_of(state, AlarmRaised)
    assert (alarm.rule, alarm.day.isoformat()) == ("break", changed)
    [request] = events_of(state, RetrainRequested)
    assert "pressure" in request.cause
    [started] = chain.run_ids(RETRAIN) - {as_of}
    assert started.startswith(f"alarm__{request.as_of}__")
    assert chain.wait(RETRAIN, run_id=started) == ["success"]

    state = ledger.read_state(pumps.NAME)
    [_, verdict] = events_of(state, VerdictRecorded)
    assert verdict.cause == request.cause
    client = MlflowClient(settings().mlflow.get_secret_value())
    assert request.cause in client.get_model_version(pumps.NAME, "2").tags.values()

    # Run again, and told of the same day again, it starts nothing twice.
    chain.clear(MONITOR, run_id)
    assert chain.wait(MONITOR, run_id=run_id) == ["success"]
    look_at(chain, changed)
    assert chain.run_ids(RETRAIN) == {as_of, started}
    assert len(events_of(ledger.read_state(pumps.NAME), RetrainRequested)) == 1
