"""The table that a retrain ends with says everything that the verdict holds."""

from io import StringIO

import pytest
from rich.console import Console

from evergreen.cli.progress import Progress
from evergreen.gates import GateResult, decide_verdict
from evergreen_local import report

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


def printed(tell, width=160):
    text = StringIO()
    tell(Progress(Console(file=text, width=width)))
    return text.getvalue()


def test_every_gate_has_its_numbers_and_its_reason():
    verdict = decide_verdict([PASSED, FAILED, NOT_COMPUTED])
    text = printed(lambda progress: report.show_gate_table(progress, "flight_delay as of 2013-03-08", verdict))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    for told in ("0.7123", "0.6", "✓ passed", "0.7123 ≥ 0.6"):
        assert told in rows["auc_threshold"]
    for told in ("0.7000", "0.7500", "−0.0610 … −0.0430", "−0.02", "✗ failed", "worse [sic], at most"):
        assert told in rows["auc_against_champion"]
    for told in ("–", "? not computed", "3 rows are too few"):
        assert told in rows["brier_threshold"]
    assert "flight_delay as of 2013-03-08" in text


def test_a_narrow_terminal_loses_no_number_and_no_reason():
    verdict = decide_verdict([PASSED, FAILED, NOT_COMPUTED])
    text = printed(lambda progress: report.show_gate_table(progress, "flight_delay", verdict), width=80)
    for told in ("0.7123", "0.7500", "−0.0610 … −0.0430", "not computed", FAILED.reason, NOT_COMPUTED.reason):
        assert told in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith(("auc_", "brier_")))


@pytest.mark.parametrize(
    ("records", "promoted", "says"),
    [
        ([PASSED], True, "promoted: the only gate passed"),
        ([PASSED], False, "the gates passed, but the champion stays"),
        ([FAILED], False, "the champion stays: auc_against_champion: may be 0.061 worse"),
    ],
)
def test_the_outcome_says_what_followed(records, promoted, says):
    text = printed(lambda progress: report.show_promotion_outcome(progress, decide_verdict(records), promoted, "3"))
    assert says in text
    assert "champion: version 3" in text


def test_no_champion_is_said():
    text = printed(lambda progress: report.show_promotion_outcome(progress, decide_verdict([FAILED]), False, None))
    assert "champion: none yet" in text
