"""The results of a retrain in the terminal."""

import json
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from evergreen.gates import GateResult, decide_verdict
from evergreen.orchestration.handover import RetrainPlan
from evergreen.periods import Calendar
from evergreen.spec import loader
from evergreen.window import RunReason
from evergreen_local import results, retraining
from evergreen_local.progress import Progress

pytestmark = pytest.mark.unit

PASSED = GateResult(
    gate="auc_threshold", outcome="passed", candidate=0.7123, threshold=0.6, rows=5000, reason="0.7123 ≥ 0.6"
)
FAILED = GateResult(
    gate="auc_against_champion",
    outcome="failed",
    candidate=0.7,
    champion=0.75,
    interval=(-0.061, -0.043),
    threshold=-0.02,
    rows=5000,
    reason="may be 0.061 worse [sic], at most 0.02 is allowed",
)
NOT_COMPUTED = GateResult(
    gate="brier_threshold", outcome="not_computed", threshold=0.2, rows=3, reason="3 rows are too few"
)


def output_of(show, width=160):
    text = StringIO()
    show(Progress(Console(file=text, width=width)))
    return text.getvalue()


def test_show_gate_table_has_values_and_reasons():
    verdict = decide_verdict([PASSED, FAILED, NOT_COMPUTED])
    text = output_of(lambda progress: results.show_gate_table(progress, "flight_delay as of 2013-03-08", verdict))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    for part in ("0.7123", "0.6", "✓ passed", "0.7123 ≥ 0.6"):
        assert part in rows["auc_threshold"]
    for part in ("0.7000", "0.7500", "−0.0610 … −0.0430", "−0.02", "✗ failed", "worse [sic], at most"):
        assert part in rows["auc_against_champion"]
    for part in ("–", "? not computed", "3 rows are too few"):
        assert part in rows["brier_threshold"]
    assert "flight_delay as of 2013-03-08" in text


def test_show_gate_table_fits_a_narrow_terminal():
    verdict = decide_verdict([PASSED, FAILED, NOT_COMPUTED])
    text = output_of(lambda progress: results.show_gate_table(progress, "flight_delay", verdict), width=80)
    for part in ("0.7123", "0.7500", "−0.0610 … −0.0430", "not computed", FAILED.reason, NOT_COMPUTED.reason):
        assert part in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith(("auc_", "brier_")))


@pytest.mark.parametrize(
    ("gate_results", "promoted", "expected"),
    [
        ([PASSED], True, "promoted: the only gate passed"),
        ([PASSED], False, "the gates passed, but the champion stays"),
        ([FAILED], False, "the champion stays: auc_against_champion: may be 0.061 worse"),
    ],
)
def test_show_promotion_outcome(gate_results, promoted, expected):
    text = output_of(
        lambda progress: results.show_promotion_outcome(progress, decide_verdict(gate_results), promoted, "3")
    )
    assert expected in text
    assert "champion: version 3" in text


def test_show_promotion_outcome_without_a_champion():
    text = output_of(lambda progress: results.show_promotion_outcome(progress, decide_verdict([FAILED]), False, None))
    assert "champion: none yet" in text


def test_what_a_run_has_used_otherwise_is_told():
    text = output_of(lambda progress: results.show_outdated(progress, "x.retrain as of 2013-01-18", ["a", "b"]))
    text = " ".join(text.split())
    assert "the verdict is not about what is here: x.retrain as of 2013-01-18 has run with other inputs: a; b." in text


def test_a_retrain_of_a_frozen_model_shows_why_nothing_was_trained(monkeypatch):
    plan = RetrainPlan(
        start="2013-01-01",
        end="2013-01-18",
        run_reason=RunReason.MANUAL,
        calendar=Calendar("1d", "UTC"),
        pause="the model was frozen by ada: an audit",
    )
    monkeypatch.setattr(results, "fetch_champion_version", lambda *_: "3")
    airflow = SimpleNamespace(xcom=lambda _dag, _run, task: json.dumps(plan.dump()) if task == "plan" else None)
    outcomes = []
    text = output_of(
        lambda progress: outcomes.append(
            retraining._show_results(
                airflow,
                "flight_delay.retrain",
                "as_of_2013-01-18",
                loader.load_spec("flight_delay"),
                "2013-01-18",
                SimpleNamespace(mlflow=None),
                progress,
            )
        )
    )
    assert "nothing was trained or compared: the model was frozen by ada: an audit" in text
    assert "champion: version 3" in text
    [outcome] = outcomes
    assert (outcome["promoted"], outcome["verdict"], outcome["pause"]) == (False, None, plan.pause)
    assert outcome["champion"] == "3"
