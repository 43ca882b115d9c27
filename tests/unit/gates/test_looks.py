"""A comparison whose evidence grows: its three outcomes, and what is carried from look to look."""

from datetime import date, timedelta

import numpy as np
import pytest
from scipy.special import expit

from evergreen.gates import (
    AgainstChampionGate,
    EarlierComparison,
    Evidence,
    MissingEvidence,
    ThresholdGate,
    Verdict,
    judge_evidence,
    judge_next_look,
)
from evergreen.gates.alpha_spending import AlphaSpend, DayCorrelation
from evergreen.gates.comparisons import EstimatedGain
from evergreen.gates.day_correlation import weigh_correlated_days
from evergreen.gates.group_sequential import is_hopeless, look_levels
from evergreen.gates.looks import judge_gain

pytestmark = pytest.mark.unit

START = date(2013, 3, 1)
GATE = AgainstChampionGate(metric="auc", must_be="better")
THRESHOLD = ThresholdGate(metric="auc", at_least=0.55)


def rows(gain, days=28, of_day=150, seed=0):
    """Labels and scores of both models, by day; the candidate's AUC is better by about `gain`."""
    random = np.random.default_rng(seed)
    label = np.tile(np.arange(of_day) < of_day // 3, days).astype(float)
    shared, one, other = random.normal(size=(3, label.size))
    candidate, champion = (
        expit(0.9 * shared + 0.4 * own + strength * label) for own, strength in ((one, 0.7 + 3 * gain), (other, 0.7))
    )
    names = [str(START + timedelta(day)) for day in range(days) for _ in range(of_day)]
    return label, candidate, champion, names


def until(day, drawn):
    n = day * 150
    label, candidate, champion, names = (column[:n] for column in drawn)
    return Evidence(label, candidate, champion, (START, START + timedelta(day)), {"day": names})


def walk(gain, looks=(14, 21, 28), gates=(GATE,), seed=0):
    drawn, verdict, verdicts = rows(gain, seed=seed), None, []
    for day in looks:
        evidence = until(day, drawn)
        if verdict is None:
            verdict = judge_evidence(gates, evidence, accumulates=True)
        else:
            verdict = judge_next_look(gates, evidence, (), verdict)
        verdicts.append(verdict)
        if not verdict.is_inconclusive:
            break
    return verdicts


def test_a_much_better_candidate_is_promoted_at_once():
    [verdict] = walk(0.2)
    assert verdict.promote
    assert "at look 1, after 14 days: it suffices" in verdict.reason or verdict.results[0].looks


def test_a_worse_candidate_is_hopeless_at_once():
    [verdict] = walk(-0.1)
    assert not verdict.promote
    assert not verdict.is_inconclusive
    assert verdict.results[0].outcome == "failed"
    assert "it cannot suffice any more" in verdict.reason


def growing():
    """A candidate that is promoted, and not at its first look."""
    return next(verdicts for seed in range(40) if len(verdicts := walk(0.03, seed=seed)) > 1 and verdicts[-1].promote)


def test_evidence_grows_until_it_suffices():
    first, *_, last = growing()
    assert first.is_inconclusive
    assert not first.promote
    assert "it goes on, up to 28 days" in first.reason
    assert last.promote
    [result] = last.results
    assert result.alpha == first.results[0].alpha
    assert result.looks[0] == first.results[0].looks[0]
    assert [look.days for look in result.looks] == [14, 21, 28][: len(result.looks)]
    assert result.looks[-1].low == result.interval[0] > 0
    levels = look_levels(result.alpha, tuple(look.days for look in result.looks), 28)
    assert [look.level for look in result.looks] == pytest.approx(levels)


def test_the_last_look_decides():
    verdicts = next(found for seed in range(60) if len(found := walk(0.012, seed=seed)) == 3 and not found[-1].promote)
    assert verdicts[-1].results[0].outcome == "failed"
    assert "no days are left" in verdicts[-1].reason


def test_the_verdict_is_all_that_is_carried():
    first, *_ = growing()
    evidence = until(21, rows(0.03, seed=3))
    stored = Verdict.model_validate_json(first.model_dump_json())
    again, once = (judge_next_look([GATE], evidence, (), verdict) for verdict in (stored, first))
    assert again == once == judge_next_look([GATE], evidence, (), stored)


def test_the_order_of_rows_changes_no_bit():
    first, *_ = growing()
    evidence = until(21, rows(0.03))
    order = np.random.default_rng(1).permutation(evidence.label.size)
    shuffled = Evidence(
        evidence.label[order],
        evidence.candidate[order],
        evidence.champion[order],
        evidence.days,
        {"day": np.array(evidence.clusters["day"])[order].tolist()},
    )
    assert judge_next_look([GATE], evidence, (), first) == judge_next_look([GATE], shuffled, (), first)


@pytest.mark.parametrize("problem", ["no new day", "no champion's scores"])
def test_a_week_without_evidence_rejects_nobody(problem):
    first, *_ = growing()
    evidence = until(14, rows(0.03))
    if problem != "no new day":
        evidence = Evidence(evidence.label, evidence.candidate, MissingEvidence(problem), evidence.days)
    verdict = judge_next_look([GATE], evidence, (), first)
    assert verdict.is_inconclusive
    assert verdict.results[0].looks == first.results[0].looks
    assert "this look could not be computed" in verdict.reason


def test_gates_that_were_decided_are_not_judged_again():
    first, *_, last = (walk(0.03, gates=(THRESHOLD, GATE), seed=seed) for seed in [2]).__next__()
    for verdict in (first, last):
        assert verdict.results[0] == first.results[0]
    strict = ThresholdGate(metric="auc", at_least=0.99)
    rejected = judge_evidence([strict, GATE], until(14, rows(0.02)), accumulates=True)
    assert not rejected.is_inconclusive  # one gate has failed: it is no challenger


def test_one_look_decides_unless_evidence_accumulates():
    verdict = judge_evidence([GATE], until(14, rows(0.0)))
    [result] = verdict.results
    assert (result.outcome, result.looks) == ("failed", ())


def simulated_estimate(daily):
    deviations = daily - daily.mean()
    error = daily.std(ddof=1) / np.sqrt(daily.size)
    from evergreen.gates.day_correlation import measure_day_correlation

    return EstimatedGain(daily.mean(), error, daily.size - 1, daily.size, error**2, measure_day_correlation(deviations))


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_a_first_look_that_has_all_its_days_decides(gain):
    """It tells one bit, and so costs later comparisons no more than one without looks."""
    evidence = until(28, rows(gain))
    verdict = judge_evidence([GATE], evidence, accumulates=True)
    assert verdict == judge_evidence([GATE], evidence)
    assert verdict.results[0].looks == ()


@pytest.mark.parametrize("seed", range(20))
def test_bounds_decide_as_significance_does(seed):
    """The bound reaches the limit exactly where the p-value reaches the level: what benchmarks/gates.py rests on."""
    random = np.random.default_rng(seed)
    earlier = [
        EarlierComparison(
            (START - timedelta(70 * k), START - timedelta(70 * k - 14)),
            (AlphaSpend(GATE.name, 0.01, False),),
            day_correlations=(DayCorrelation(GATE.name, 14, float(random.normal(0.1, 0.2))),),
        )
        for k in range(3, 0, -1)
    ]
    estimate = simulated_estimate(random.normal(0.006, 0.0115, 14))
    judged = judge_gain(GATE, estimate, (START, START + timedelta(14)), 14, earlier, accumulates=True)
    own = DayCorrelation(GATE.name, 14, estimate.day_correlation)
    weight = weigh_correlated_days([*(c.day_correlations[0] for c in earlier), own])
    chance = estimate.significance(0.0, weight)
    level = look_levels(judged.alpha, (14,), judged.last_day)[-1]
    assert (judged.outcome == "passed") == (chance < level) == (judged.gain.low > 0)
    if judged.outcome != "passed":
        hopeless = is_hopeless(judged.alpha, (14,), judged.last_day, chance)
        assert (judged.outcome == "failed") == hopeless
