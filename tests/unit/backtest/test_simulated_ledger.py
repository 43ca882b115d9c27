"""The simulated ledger follows the rules of real runs and records the alpha that comparisons spend."""

import pytest

from evergreen.backtest.simulated_ledger import SimulatedLedger
from evergreen.backtest.walk_forward import BacktestPoint
from evergreen.gates import EarlierComparison, GateResult, decide_verdict
from evergreen.periods import Duration
from evergreen.spec import loader
from support.calendars import DAYS, later

pytestmark = pytest.mark.unit

MODEL = loader.load_spec("flight_delay").model_copy(update={"cooldown": Duration(10, "d")})


def verdict(outcome, alpha=None):
    return decide_verdict(
        [GateResult(gate="g", outcome=outcome, candidate=0.7, threshold=0.6, alpha=alpha, rows=9, reason="so")]
    )


def point(week):
    as_of = later("2013-03-01", 7 * week)
    return BacktestPoint(as_of, later(as_of, -7), as_of)


def test_simulated_ledger_promotes_defers_and_spends_alpha():
    ledger = SimulatedLedger(MODEL)

    def propose(week, fingerprint, verdict):
        days = (point(week).holdout_start, point(week).holdout_end)
        return ledger.propose(point(week), fingerprint, verdict, days)

    assert propose(0, "a", verdict("passed")) == (True, "the only gate passed: g")
    assert ledger.comparisons == ()  # the first champion has no comparison

    promoted, reason = propose(1, "b", verdict("passed", 0.02))
    assert not promoted
    assert "cooldown is 10d" in reason

    assert propose(2, "c", verdict("failed", 0.01)) == (False, "g: so")
    assert propose(3, "d", verdict("passed", 0.005))[0]
    assert ledger.comparisons == tuple(
        EarlierComparison(
            DAYS.dates(point(week).holdout_start, point(week).as_of), (("g", alpha, passed),), promoted=passed
        )
        for week, alpha, passed in ((1, 0.02, True), (2, 0.01, False), (3, 0.005, True))
    )


def test_simulated_ledger_pauses_as_runs_do():
    ledger = SimulatedLedger(MODEL)
    assert ledger.find_pause(point(0)) is None
    ledger.propose(point(0), "a", verdict("passed"), ("2013-02-22", "2013-03-01"))
    assert "cooldown is 10d" in ledger.find_pause(point(1))
    assert ledger.find_pause(point(2)) is None
    ready = SimulatedLedger(MODEL.model_copy(update={"keep_candidates_ready": True}))
    ready.propose(point(0), "a", verdict("passed"), ("2013-02-22", "2013-03-01"))
    assert ready.find_pause(point(1)) is None
