"""An approval that times out is a rejection, which the ledger records."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import DownstreamTasksSkipped

from evergreen import ledger
from evergreen.errors import PromotionRefusedError
from evergreen.ledger import PromotionRejected
from evergreen.orchestration.handover import JudgedCandidate
from evergreen.orchestration.operators.approval import PromotionApprovalOperator
from evergreen.promotion.rules import decide_promotion
from evergreen.spec.model import ApprovalPolicy
from support.calendars import cooldown
from support.ledger_events import MODEL, request, verdict_event

pytestmark = pytest.mark.integration

REFERENCE = {"partition": "as_of=2013-01-11", "fingerprint": "f" * 64}


def test_approval_timeout_records_rejection(home: Path) -> None:
    number = ledger.append_decision(MODEL, "a run", lambda _: verdict_event(10)).number
    with DAG("a_dag", schedule=None):
        approve = PromotionApprovalOperator(
            task_id="approve",
            model=MODEL,
            judge_output=JudgedCandidate(
                training_set_reference=REFERENCE,
                candidate_reference=REFERENCE,
                evaluation_reference=REFERENCE,
                entry=number,
                report="none.html",
            ).dump(),
            version="1",
            approval=ApprovalPolicy(timeout_hours=1),
        )
    assert approve.defaults == ["Reject"]
    run = SimpleNamespace(dag_id="a_dag", run_id="a_run", triggering_user_name=None)
    context: Any = {"dag_run": run, "ti": SimpleNamespace(task=approve), "task": approve}
    # What the scheduler resumes the task with once the hour is over.
    event = {
        "chosen_options": ["Reject"],
        "params_input": {},
        "responded_at": ledger.read_state(MODEL).entries[0].recorded_at,
        "responded_by_user": None,
        "timedout": True,
    }
    with suppress(DownstreamTasksSkipped):  # how the operator ends where something comes after it
        approve.execute_complete(context, event)

    event = ledger.read_state(MODEL).entries[-1].event
    assert isinstance(event, PromotionRejected)
    assert (event.rejected_by, event.reason) == ("nobody", "nobody responded in time")
    with pytest.raises(PromotionRefusedError, match="nobody did not approve: nobody responded in time"):
        decide_promotion(
            ledger.read_state(MODEL),
            request(ledger.read_state(MODEL), "1", number, approved_by="ada"),
            **cooldown(0),
        )
