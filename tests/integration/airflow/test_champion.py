"""People change the champion through a real Airflow: they approve, reject and roll back, and see the report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from evergreen import ledger
from evergreen.ledger import ChampionRolledBack, PromotionRejected, VerdictRecorded, VersionPromoted
from evergreen.promotion import service
from evergreen.registry import versions
from evergreen.spec import loader
from integration.airflow.conftest import METRICS_TOKEN, Chain

pytestmark = pytest.mark.integration

NAME = "cautious"
DAG = f"{NAME}.retrain"


def request_approval(chain: Chain, run_id: str, as_of: str) -> dict[str, Any]:
    """Start a run, and return the form of its approval."""
    chain.airflow.set_dag_paused(DAG, False)
    chain.airflow.trigger_dag_run(DAG, run_id, {"as_of": as_of})
    deadline = time.monotonic() + 180
    while chain.states(DAG, run_id).get("approve") not in ("awaiting_input", "deferred"):
        assert time.monotonic() < deadline, chain.states(DAG, run_id)
        time.sleep(1)
    # Nobody is as quick as a test: an answer in the first tenth of a second finds Airflow still busy with pausing
    # the task, and it asks once more.
    time.sleep(3)
    return chain.airflow._request("GET", f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails")


def answer(chain: Chain, run_id: str, option: str) -> None:
    """Respond to the approval, as the buttons under Required actions do."""
    chain.airflow._request(
        "PATCH",
        f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails",
        json={"chosen_options": [option], "params_input": {}},
    )
    assert chain.wait(DAG, run_id=run_id) == ["success"]


def last(kind: type) -> Any:
    return next(entry.event for entry in reversed(ledger.read_state(NAME).entries) if isinstance(entry.event, kind))


def test_a_person_approves_rolls_back_and_rejects(chain: Chain) -> None:
    model = loader.load_spec(NAME)
    form = request_approval(chain, "one", "2013-01-12")
    assert "auc_threshold" in form["body"], "the table of gates is what one decides by"
    assert "There is no champion yet" in form["body"]
    assert form["defaults"] == ["Reject"]
    assert versions.get_champion_version(model) is None, "nothing is promoted before the answer"
    answer(chain, "one", "Approve")
    assert ledger.read_state(NAME).champion == "1"
    assert last(VersionPromoted).approved_by

    request_approval(chain, "two", "2013-01-15")
    answer(chain, "two", "Approve")
    assert ledger.read_state(NAME).champion == "2"
    assert last(VerdictRecorded).champion_version == "1"

    rollback = f"{NAME}.rollback"
    chain.airflow.set_dag_paused(rollback, False)
    with pytest.raises(Exception, match="reason"):
        chain.airflow.trigger_dag_run(rollback, "without", {})
    # As the form asks for it: today, long after the last day of this model's data.
    requested_at = datetime.now(UTC).isoformat()
    conf = {"reason": "it was seen to be wrong"}
    body = {"dag_run_id": "back", "logical_date": requested_at, "conf": conf}
    chain.airflow._request("POST", f"/api/v2/dags/{rollback}/dagRuns", json=body)
    assert chain.wait(rollback, run_id="back") == ["success"]
    act = last(ChampionRolledBack)
    assert (act.restored_version, act.barred_version, act.reason) == ("1", "2", "it was seen to be wrong")
    champion = versions.get_champion_version(model)
    assert champion is not None
    assert str(champion.version) == "1"
    # Cleared and run again, it does not go back once more: there is no other version that is not barred.
    chain.clear(rollback, "back")
    assert chain.wait(rollback, run_id="back") == ["failed"]
    assert ledger.read_state(NAME).champion == "1"

    request_approval(chain, "three", "2013-01-18")
    answer(chain, "three", "Reject")
    assert chain.states(DAG, "three")["promote"] == "skipped"
    assert last(PromotionRejected).reason == "rejected"
    assert ledger.read_state(NAME).champion == "1"


@pytest.mark.slow
def test_the_cli_reaches_the_registry_of_the_running_stack(chain: Chain) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "EVERGREEN_MLFLOW"}

    def evergreen(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("evergreen")), *arguments]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    evergreen("release", NAME, "2", "--reason", "it was the weather")
    evergreen("rollback", NAME, "--to-version", "2", "--reason", "it was better after all")
    assert ledger.read_state(NAME).champion == "2"
    champion = versions.get_champion_version(loader.load_spec(NAME))
    assert champion is not None
    assert "champion" in champion.aliases
    assert "it was better after all" in " ".join(evergreen("history", NAME).split())
    assert "as the ledger says" in evergreen("ledger", "repair", NAME)


def test_approval_is_not_requested_for_a_blocked_version(chain: Chain) -> None:
    chain.airflow.trigger_dag_run(DAG, "old", {"as_of": "2013-01-11"})
    assert chain.wait(DAG, run_id="old") == ["success"]
    states = chain.states(DAG, "old")
    assert states["approve"] == states["promote"] == "skipped"
    assert "approval is not requested" in chain.log(DAG, "old", "register")


def test_a_frozen_model_trains_nothing_and_says_why(chain: Chain) -> None:
    service.freeze_promotions(loader.load_spec(NAME), "an audit", actor="grace")
    before = ledger.read_state(NAME).head_number
    chain.airflow.trigger_dag_run(DAG, "frozen", {"as_of": "2013-01-18"})
    assert chain.wait(DAG, run_id="frozen") == ["success"]
    states = chain.states(DAG, "frozen")
    assert {states.pop("plan"), states.pop("materialize")} == {"success"}, "the online store stays fresh"
    assert set(states.values()) == {"skipped"}
    reason = "the model was frozen by grace: an audit; unfreeze it, then clear this run"
    assert f"nothing is trained or compared: {reason}" in chain.log(DAG, "frozen", "plan")
    assert ledger.read_state(NAME).head_number == before

    service.unfreeze_promotions(loader.load_spec(NAME), "it is over", actor="grace")


def test_the_gate_report_is_linked_and_needs_a_login(chain: Chain) -> None:
    links = chain.airflow._request("GET", f"/api/v2/dags/{DAG}/dagRuns/one/taskInstances/judge/links")
    path = links["extra_links"]["Gate report"]
    page = httpx.get(chain.airflow.url + path, headers=chain.airflow._headers(), trust_env=False)
    assert page.status_code == 200
    assert "cautious: gates for a candidate" in page.text
    assert "sandbox" in page.headers["Content-Security-Policy"]
    # This Airflow lets everybody in who shows no token; who shows a wrong one is refused, here as everywhere.
    stranger = {"Authorization": "Bearer forged"}
    refused = httpx.get(chain.airflow.url + path, headers=stranger, trust_env=False)
    assert refused.status_code in (401, 403)
    nowhere = httpx.get(
        f"{chain.airflow.url}/evergreen/{DAG}/verdicts/99999",
        headers=chain.airflow._headers(),
        trust_env=False,
    )
    assert nowhere.status_code == 404


def test_prometheus_reads_metrics_with_its_token(chain: Chain) -> None:
    url = f"{chain.airflow.url}/evergreen/metrics"
    assert httpx.get(url, headers=chain.airflow._headers(), trust_env=False).status_code == 403
    page = httpx.get(url, headers={"Authorization": f"Bearer {METRICS_TOKEN}"}, trust_env=False)
    assert page.status_code == 200
    assert 'evergreen_champion{model="cautious",team="' in page.text
    assert not re.findall(r"^evergreen_scrape_error.* 1\.0$", page.text, re.MULTILINE)
