"""The simulated ledger follows the rules of real runs and records the alpha that comparisons spend."""

from datetime import date, timedelta

import pytest

from evergreen.backtest.simulated_ledger import SimulatedLedger
from evergreen.backtest.walk_forward import BacktestPoint
from evergreen.gates import EarlierComparison, GateResult, decide_verdict
from evergreen.spec import loader

pytestmark = pytest.mark.unit

MODEL = loader.load_spec("flight_delay").model_copy(update={"cooldown_days": 10})


def verdict(outcome, alpha=None):
    return decide_verdict(
        [GateResult(gate="g", outcome=outcome, candidate=0.7, threshold=0.6, alpha=alpha, rows=9, reason="so")]
    )


def point(week):
    as_of = date(2013, 3, 1) + timedelta(7 * week)
    return BacktestPoint(as_of, as_of - timedelta(7))


def test_simulated_ledger_promotes_defers_and_spends_alpha():
    ledger = SimulatedLedger(MODEL)

    def propose(week, fingerprint, verdict):
        days = (point(week).holdout_start, point(week).holdout_end)
        return ledger.propose(point(week), fingerprint, verdict, days)

    assert propose(0, "a", verdict("passed")) == (True, "the only gate passed: g")
    assert ledger.comparisons == ()  # the first champion has no comparison

    promoted, reason = propose(1, "b", verdict("passed", 0.02))
    assert not promoted
    assert "cooldown_days is 10" in reason

    assert propose(2, "c", verdict("failed", 0.01)) == (False, "g: so")
    assert propose(3, "d", verdict("passed", 0.005))[0]
    assert ledger.comparisons == tuple(
        EarlierComparison((point(week).holdout_start, point(week).as_of), (("g", alpha, passed),), promoted=passed)
        for week, alpha, passed in ((1, 0.02, True), (2, 0.01, False), (3, 0.005, True))
    )


def test_simulated_ledger_pauses_as_runs_do():
    ledger = SimulatedLedger(MODEL)
    assert ledger.find_pause(point(0)) is None
    ledger.propose(point(0), "a", verdict("passed"), (date(2013, 2, 22), date(2013, 3, 1)))
    assert "cooldown_days is 10" in ledger.find_pause(point(1))
    assert ledger.find_pause(point(2)) is None
    ready = SimulatedLedger(MODEL.model_copy(update={"keep_candidates_ready": True}))
    ready.propose(point(0), "a", verdict("passed"), (date(2013, 2, 22), date(2013, 3, 1)))
    assert ready.find_pause(point(1)) is None
