"""What tasks hand to one another survives XCom, and anything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evergreen.errors import Fault, HandoverError
from evergreen.evaluation import Champion
from evergreen.orchestration.handover import FeaturesPlan, Handover, JudgedCandidate, RetrainPlan, StepResult
from evergreen.periods import Calendar
from evergreen.window import RunReason, Window

pytestmark = pytest.mark.dag

DAY = "2013-01-02"
REFERENCE = {"partition": "as_of=2013-01-03", "fingerprint": "f" * 64}
FEATURES = FeaturesPlan(run_reason=RunReason.ARRIVAL, periods=(DAY,), build_periods=(DAY, "2013-01-03"))
RETRAIN = RetrainPlan(
    start=DAY,
    end="2013-01-09",
    run_reason=RunReason.SCHEDULE,
    calendar=Calendar("1d", "America/New_York"),
    champion_version="3",
    champion_content="c" * 64,
    champion_labels_until=DAY,
)
JUDGED = JudgedCandidate(
    training_set_reference=REFERENCE,
    candidate_reference=REFERENCE,
    evaluation_reference=REFERENCE,
    entry=7,
    report="report.html",
)


STEP = StepResult(
    periods={str(DAY): "f" * 64}, faults=(Fault("flights.parquet: distance", "2 rows", "deliver it again"),)
)


@pytest.mark.parametrize("handover", [FEATURES, STEP, RETRAIN, JUDGED], ids=lambda handover: type(handover).__name__)
def test_load_returns_what_was_dumped(handover: Handover) -> None:
    assert type(handover).load(json.loads(json.dumps(handover.dump()))) == handover


@pytest.mark.parametrize(
    "xcom",
    [
        None,
        {},
        FEATURES.dump() | {"periods": ["soon"]},
        FEATURES.dump() | {"origin": "arrival"},
        {"run_reason": "fate", "days": []},
    ],
)
def test_load_refuses_anything_else(xcom: Any) -> None:
    with pytest.raises(HandoverError, match="FeaturesPlan.*clear the run from the start"):
        FeaturesPlan.load(xcom)


def test_a_retrain_plan_has_the_window_and_the_champion() -> None:
    assert RETRAIN.window() == Window.from_range(DAY, "2013-01-09", RunReason.SCHEDULE, "America/New_York")
    assert RETRAIN.champion() == Champion("3", DAY, content="c" * 64)
    assert RETRAIN.model_copy(update={"champion_version": None}).champion() is None
    request = RETRAIN.promotion_request(7, "4", approved_by="Ada")
    assert (request.verdict_entry, request.version, request.approved_by) == (7, "4", "Ada")
    assert request.run_reason is RunReason.SCHEDULE
    assert not request.promote_backfill
