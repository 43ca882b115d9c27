"""Evidence to verdict: what passes, what fails, and that nothing unusable ever promotes or raises."""

import doctest
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import brier_score_loss, roc_auc_score

import evergreen.gates
from evergreen.gates import (
    Evidence,
    NoChampion,
    NotComparable,
    NotWorseThanChampion,
    Threshold,
    Verdict,
    judge,
)

pytestmark = pytest.mark.unit

AUC = Threshold(metric="auc", at_least=0.6)
BRIER = Threshold(metric="brier", at_most=0.2)
NOT_WORSE = NotWorseThanChampion(metric="auc", margin=0.05, resamples=200)


def good(n=400, seed=0):
    """Labels, a good candidate, and a champion about as good."""
    random = np.random.default_rng(seed)
    truth = random.beta(1, 2, size=n)
    label = (random.random(n) < truth).astype(float)
    return label, truth.copy(), np.clip(truth + random.normal(scale=0.02, size=n), 0, 1)


def strict_json(verdict):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = verdict.model_dump_json()
    assert Verdict.model_validate_json(text) == verdict
    return json.loads(text, parse_constant=refuse)


def only(gate, evidence):
    (record,) = judge([gate], evidence).records
    return record


def test_a_good_candidate_is_promoted():
    label, candidate, champion = good()
    verdict = judge([AUC, BRIER, NOT_WORSE], Evidence(label, candidate, champion))
    assert verdict.promote
    auc, brier, not_worse = verdict.records
    assert auc.candidate == pytest.approx(roc_auc_score(label, candidate))
    assert brier.candidate == pytest.approx(brier_score_loss(label, candidate))
    assert not_worse.champion == pytest.approx(roc_auc_score(label, champion))
    low, high = not_worse.interval
    assert -0.05 <= low < not_worse.candidate - not_worse.champion < high
    assert [r.threshold for r in verdict.records] == [0.6, 0.2, -0.05]
    assert {r.rows for r in verdict.records} == {400}


def test_thresholds_hold_to_the_last_digit_and_say_so():
    label, candidate, _ = good()
    exact = only(AUC, Evidence(label, candidate, NoChampion())).candidate
    at = Threshold(metric="auc", at_least=exact)
    above = Threshold(metric="auc", at_least=float(np.nextafter(exact, 1)))
    assert only(at, Evidence(label, candidate, NoChampion())).outcome == "passed"
    missed = only(above, Evidence(label, candidate, NoChampion()))
    assert missed.outcome == "failed"
    shown = float(missed.reason.split()[1])
    assert shown < above.limit  # not rounded onto the limit
    assert f"at least {above.limit} is required" in missed.reason

    brier = only(BRIER, Evidence(label, candidate, NoChampion())).candidate
    for limit, outcome in [(brier, "passed"), (np.nextafter(brier, 0), "failed")]:
        gate = Threshold(metric="brier", at_most=float(limit))
        assert only(gate, Evidence(label, candidate, NoChampion())).outcome == outcome


@pytest.mark.parametrize("metric", ["auc", "log_loss", "brier"])
def test_worse_and_better_are_told_apart_on_every_scale(metric):
    label, candidate, _ = good(n=2000)
    random = np.random.default_rng(1)
    blurred = np.clip(candidate + random.normal(scale=0.4, size=label.size), 0.01, 0.99)
    gate = NotWorseThanChampion(metric=metric, margin=0.01, resamples=400)

    better = only(gate, Evidence(label, candidate, blurred))
    assert better.outcome == "passed"
    assert better.interval[0] > 0
    assert "% confidence it is at least" in better.reason

    worse = only(gate, Evidence(label, blurred, candidate))
    assert worse.outcome == "failed"
    assert worse.interval[1] < 0
    assert "% confidence it may be" in worse.reason

    same = only(gate.model_copy(update={"margin": 0.0}), Evidence(label, candidate, candidate))
    assert (same.outcome, same.interval) == ("passed", (0.0, 0.0))
    assert "it is no worse" in same.reason


def test_as_good_is_not_enough_when_there_are_too_few_rows_to_show_it():
    gate = NotWorseThanChampion(metric="auc", margin=0.01, resamples=400)

    def evidence(n):
        label, truth, _ = good(n=n)
        blur = np.random.default_rng(1).normal(scale=0.1, size=(2, n))
        return Evidence(label, *np.clip(truth + blur, 0, 1))

    few, many = only(gate, evidence(120)), only(gate, evidence(20_000))
    assert (few.outcome, many.outcome) == ("failed", "passed")
    assert few.interval[1] > 0  # nor was it shown to be worse


def test_the_bound_is_the_quantile_asked_for():
    """Against draws of its own: the bound of 90 % is nearer than that of 99 %, each in place."""
    label, candidate, champion = good(n=300)
    champion = np.clip(champion + np.random.default_rng(8).normal(scale=0.3, size=300), 0, 1)
    gain = (label - champion) ** 2 - (label - candidate) ** 2
    gains = gain[np.random.default_rng(9).integers(300, size=(10_000, 300))].mean(axis=1)
    for confidence in (0.9, 0.99):
        gate = NotWorseThanChampion(metric="brier", confidence=confidence)
        interval = only(gate, Evidence(label, candidate, champion)).interval
        assert interval == pytest.approx(
            np.quantile(gains, [1 - confidence, confidence]), abs=0.25 * np.std(gains)
        )


def test_first_champion():
    label, candidate, _ = good()
    verdict = judge([AUC, NOT_WORSE], Evidence(label, candidate, NoChampion()))
    assert verdict.promote
    record = verdict.records[1]
    assert record.reason == "no champion yet: nothing to compare with"
    assert record.candidate == pytest.approx(roc_auc_score(label, candidate))
    assert (record.champion, record.interval) == (None, None)


def test_a_champion_that_cannot_be_compared_blocks():
    label, candidate, _ = good()
    problem = "version 3 was trained on days up to 2013-02-25, the holdout starts 2013-02-22"
    verdict = judge([AUC, NOT_WORSE], Evidence(label, candidate, NotComparable(problem)))
    assert [r.outcome for r in verdict.records] == ["passed", "not_computed"]
    assert problem in verdict.reason
    assert not verdict.promote


def test_too_few_of_a_class_for_the_bootstrap_is_said():
    label, candidate, champion = good()
    label[:] = 0
    label[:3] = 1
    record = only(NOT_WORSE, Evidence(label, candidate, champion))
    assert record.outcome == "not_computed"
    assert "drew labels of one class only: 3 rows of the rarer class" in record.reason
    assert record.champion is not None


@pytest.mark.parametrize("gate", [AUC, NOT_WORSE])
def test_rows_are_a_set_and_types_do_not_matter(gate):
    """The same bits from rows in another order and numbers in another type: a re-run finds what was found."""
    label, candidate, champion = (column.astype(np.float32) for column in good())
    candidate[:50] = -0.0
    first = only(gate, Evidence(label, candidate, champion))
    order = np.random.default_rng(1).permutation(label.size)
    candidate[:50] = 0.0
    shuffled = Evidence(
        label[order].astype(bool), candidate[order].astype(np.float64), list(map(float, champion[order]))
    )
    assert only(gate, shuffled).model_dump_json() == first.model_dump_json()


def test_all_that_is_wrong_is_said_at_once():
    record = only(AUC, Evidence([1, 1, 2], [0.5, float("nan")], NoChampion()))
    assert record.reason == (
        "3 rows are too few, at least 100 are needed; 1 of 3 labels are neither 0 nor 1; "
        "0 of 3 labels are 0, at least 2 are needed; the candidate has 2 scores for 3 labels; "
        "1 of the candidate's 2 scores are NaN or infinite"
    )


def test_min_rows_is_the_gates_own():
    label, candidate, _ = good(n=60)
    assert only(AUC, Evidence(label, candidate, NoChampion())).outcome == "not_computed"
    assert only(AUC.model_copy(update={"min_rows": 60}), Evidence(label, candidate, NoChampion())).candidate


def put(index, bad):
    def spoil(column):
        column = column.copy()
        column[index % column.size] = bad
        return column

    return spoil


spoiled_score = st.one_of(
    st.builds(put, st.integers(0), st.sampled_from([np.nan, np.inf, -np.inf, -1e-9, 1 + 1e-9, 7.0])),
    st.builds(lambda c: lambda column: np.full_like(column, c), st.sampled_from([0.0, 0.2, 0.5, 1.0])),
    st.sampled_from(
        [
            lambda column: column[:-1],
            lambda column: column[:0],
            lambda column: np.r_[column, 0.5],
            lambda column: column[:, None],
            lambda column: np.float64(0.5),
            lambda column: None,
            lambda column: "scores",
            lambda column: [*column[:-1], None],
            lambda column: [*column[:-1], [0.5]],
            lambda column: column.astype(str),
            lambda column: column.astype(object),
            lambda column: column.astype(complex),
            lambda column: column.astype("datetime64[D]"),
            lambda column: np.ma.masked_less(column, 0.1),
        ]
    ),
)
spoiled_label = st.one_of(
    st.builds(put, st.integers(0), st.sampled_from([np.nan, np.inf, -1.0, 0.5, 2.0])),
    st.sampled_from(
        [
            lambda column: np.zeros_like(column),
            lambda column: np.ones_like(column),
            lambda column: np.r_[1.0, np.zeros(column.size - 1)],
            lambda column: column[:99],
            lambda column: column[:, None],
            lambda column: None,
            lambda column: column.astype(str),
        ]
    ),
)


@given(where=st.sampled_from(["label", "candidate", "champion"]), data=st.data())
def test_one_thing_wrong_is_never_promoted_and_never_raises(where, data):
    columns = dict(zip(("label", "candidate", "champion"), good(), strict=True))
    spoil = data.draw(spoiled_label if where == "label" else spoiled_score)
    columns[where] = spoil(columns[where])
    verdict = judge([AUC, BRIER, NOT_WORSE], Evidence(**columns))
    assert not verdict.promote
    touched = verdict.records if where != "champion" else verdict.records[2:]
    assert {record.outcome for record in touched} == {"not_computed"}
    assert all(r.interval is None for r in touched)
    strict_json(verdict)
    if where != "champion":  # nor as the first champion
        first = judge([AUC, BRIER, NOT_WORSE], Evidence(columns["label"], columns["candidate"], NoChampion()))
        assert {record.outcome for record in first.records} == {"not_computed"}


anything = hnp.arrays(
    dtype=hnp.scalar_dtypes(), shape=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=6)
)
scores = hnp.arrays(
    np.float64, st.integers(4, 12), elements=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.5, np.nan])
)
labels = hnp.arrays(np.int8, st.integers(4, 12), elements=st.sampled_from([0, 1, 1, 0, 2]))


@given(
    label=labels | anything,
    candidate=scores | anything,
    champion=scores | anything | st.builds(NoChampion) | st.builds(NotComparable, st.text(max_size=5)),
)
def test_whatever_comes_is_judged_and_a_pass_is_earned(label, candidate, champion):
    gates = [AUC, NotWorseThanChampion(metric="brier", margin=0.3, resamples=200)]
    gates = [gate.model_copy(update={"min_rows": 4}) for gate in gates]
    verdict = judge(gates, Evidence(label, candidate, champion))
    strict_json(verdict)
    assert len(verdict.records) == 2
    if verdict.promote:
        assert roc_auc_score(label, candidate) >= 0.6
        if not isinstance(champion, NoChampion):
            assert brier_score_loss(label, candidate) - brier_score_loss(label, champion) <= 0.3


def test_no_gates_and_two_of_one_name_block():
    evidence = Evidence(*good())
    assert not judge([], evidence).promote
    assert "two gates are named auc_threshold" in judge([AUC, AUC], evidence).reason


def test_the_example_of_the_package_runs():
    assert doctest.testmod(evergreen.gates).failed == 0
