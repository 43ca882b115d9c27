"""Evidence to verdict: what passes, what fails, and that nothing unusable ever promotes or raises."""

import doctest
import json
import re
import sys
import time
from dataclasses import replace
from datetime import date, timedelta
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import t
from sklearn.metrics import brier_score_loss, roc_auc_score

import evergreen.gates
from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    CustomGate,
    EarlierComparison,
    Evidence,
    MissingEvidence,
    NoChampion,
    ServingGate,
    SignatureGate,
    ThresholdGate,
    Verdict,
    judge_evidence,
)
from evergreen.gates.alpha_spending import next_alpha
from evergreen.gates.metrics import METRICS
from support.clusters import day_clusters, row_clusters

pytestmark = pytest.mark.unit

AUC = ThresholdGate(metric="auc", at_least=0.6)
BRIER = ThresholdGate(metric="brier", at_most=0.2)
NOT_WORSE = AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.05)
WEEK = (date(2013, 3, 1), date(2013, 3, 8))


def week_evidence(label, candidate, champion, days=WEEK):
    return Evidence(label, candidate, champion, days, row_clusters(label))


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


def only(gate, evidence, past=()):
    (record,) = judge_evidence([gate], evidence, past).results
    return record


def test_a_good_candidate_is_promoted():
    label, candidate, champion = good()
    verdict = judge_evidence([AUC, BRIER, NOT_WORSE], week_evidence(label, candidate, champion))
    assert verdict.promote
    auc, brier, not_worse = verdict.results
    assert auc.candidate == pytest.approx(roc_auc_score(label, candidate))
    assert brier.candidate == pytest.approx(brier_score_loss(label, candidate))
    assert not_worse.champion == pytest.approx(roc_auc_score(label, champion))
    low, high = not_worse.interval
    assert -0.05 <= low < not_worse.candidate - not_worse.champion < high
    assert not_worse.alpha == next_alpha(1 - 0.95, NOT_WORSE.name, WEEK, [])
    assert [r.alpha for r in (auc, brier)] == [None, None]
    assert [r.threshold for r in verdict.results] == [0.6, 0.2, -0.05]
    assert {r.rows for r in verdict.results} == {400}


def test_thresholds_hold_to_the_last_digit_and_say_so():
    label, candidate, _ = good()
    exact = only(AUC, week_evidence(label, candidate, NoChampion())).candidate
    at = ThresholdGate(metric="auc", at_least=exact)
    above = ThresholdGate(metric="auc", at_least=float(np.nextafter(exact, 1)))
    assert only(at, week_evidence(label, candidate, NoChampion())).outcome == "passed"
    missed = only(above, week_evidence(label, candidate, NoChampion()))
    assert missed.outcome == "failed"
    shown = float(missed.reason.split()[1])
    assert shown < above.limit  # not rounded onto the limit
    assert f"at least {above.limit} is required" in missed.reason

    brier = only(BRIER, week_evidence(label, candidate, NoChampion())).candidate
    for limit, outcome in [(brier, "passed"), (np.nextafter(brier, 0), "failed")]:
        gate = ThresholdGate(metric="brier", at_most=float(limit))
        assert only(gate, week_evidence(label, candidate, NoChampion())).outcome == outcome


def amounts(n=600, seed=0):
    """Labels, a good candidate, and a champion about as good, in minutes."""
    random = np.random.default_rng(seed)
    label = random.gamma(2, 20, size=n)
    return label, label + random.normal(scale=5, size=n), label + random.normal(scale=5.2, size=n)


@pytest.mark.parametrize(
    ("metric", "margin", "fields"),
    [
        ("auc", 0.01, {}),
        ("log_loss", 0.01, {}),
        ("brier", 0.01, {}),
        ("accuracy", 0.01, {"cut": 0.5}),
        ("precision", 0.01, {"cut": 0.5}),
        ("recall", 0.01, {"cut": 0.4}),
        ("rmse", 0.2, {}),
        ("mae", 0.2, {}),
        ("quantile_loss", 0.1, {"quantile": 0.9}),
        ("poisson_deviance", 0.2, {}),
        ("sklearn.metrics:max_error", 1.0, {"higher_is_better": False}),
    ],
)
def test_worse_and_better_are_told_apart_on_every_scale(metric, margin, fields):
    of_amounts = metric not in METRICS or metric in ("rmse", "mae", "quantile_loss", "poisson_deviance")
    label, candidate, _ = amounts(n=2000) if of_amounts else good(n=2000)
    noise = np.random.default_rng(1).normal(scale=0.4, size=label.size)
    blurred = candidate + 50 * noise if of_amounts else np.clip(candidate + noise, 0.01, 0.99)
    about = {"metric": metric, **fields}
    if metric == "poisson_deviance":  # of counts
        candidate, blurred = (np.maximum(score, 1) for score in (candidate, blurred))
    not_worse = AgainstChampionGate(must_be="not_worse", margin=margin, **about)
    better = AgainstChampionGate(must_be="better", **about)

    for gate in (not_worse, better):
        found = only(gate, week_evidence(label, candidate, blurred))
        assert found.outcome == "passed"
        assert found.interval[0] > 0
        assert "it is at least" in found.reason
        assert "better; spends 0.0219 for a rate of 0.05" in found.reason

    for gate, says in ((not_worse, "it may be up to"), (better, "it must be better, and may be up to")):
        found = only(gate, week_evidence(label, blurred, candidate))
        assert found.outcome == "failed"
        assert found.interval[1] < 0
        assert says in found.reason

    same = week_evidence(label, candidate, candidate)
    alike, not_better = only(not_worse, same), only(better, same)
    assert (alike.outcome, alike.interval) == ("passed", (0.0, 0.0))
    assert "it is no worse;" in alike.reason
    assert (not_better.outcome, not_better.interval) == ("failed", (0.0, 0.0))
    assert "it must be better, and may be no better;" in not_better.reason


def test_better_by_a_margin_needs_the_margin():
    label, candidate, _ = good(n=3000)
    blurred = np.clip(candidate + np.random.default_rng(1).normal(scale=0.3, size=3000), 0, 1)
    evidence = week_evidence(label, candidate, blurred)
    low, _ = only(AgainstChampionGate(metric="auc", must_be="better"), evidence).interval
    for margin, outcome in ((low * 0.99, "passed"), (low, "passed"), (low * 1.01, "failed")):
        gate = AgainstChampionGate(metric="auc", must_be="better", margin=margin)
        found = only(gate, evidence)
        assert (found.outcome, found.threshold) == (outcome, margin)
    assert "it must be at least" in found.reason
    assert "and may be only" in found.reason


def test_as_good_is_not_enough_when_there_are_too_few_rows_to_show_it():
    gate = AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.01)

    def evidence(n):
        label, truth, _ = good(n=n)
        blur = np.random.default_rng(1).normal(scale=0.1, size=(2, n))
        return week_evidence(label, *np.clip(truth + blur, 0, 1))

    few, many = only(gate, evidence(120)), only(gate, evidence(20_000))
    assert (few.outcome, many.outcome) == ("failed", "passed")
    assert few.interval[1] > 0  # nor was it shown to be worse


def test_the_bound_is_that_of_the_level_spent():
    """Brier scores are means: their difference has the error of a mean, and the bound lies as many errors off as the
    level says, at the first comparison and at the thirtieth."""
    label, candidate, champion = good(n=900)
    champion = np.clip(champion + np.random.default_rng(8).normal(scale=0.3, size=900), 0, 1)
    gains = (label - champion) ** 2 - (label - candidate) ** 2
    gate = AgainstChampionGate(metric="brier", must_be="better")
    for past in ((), tuple(failures(29))):
        record = only(gate, week_evidence(label, candidate, champion), past)
        assert record.alpha == next_alpha(1 - 0.95, gate.name, WEEK, past)
        width = t.isf(record.alpha, 899) * gains.std() / 30
        assert record.interval == pytest.approx((gains.mean() - width, gains.mean() + width), rel=0.1)


def failures(count, *, until=WEEK[0]):
    weeks = [until - timedelta(7 * number) for number in range(count, 0, -1)]
    return [
        EarlierComparison((start, start + timedelta(7)), (("brier_against_champion", 0.001, False),)) for start in weeks
    ]


def test_every_comparison_costs_and_the_same_days_cost_more():
    label, candidate, _ = good(n=900)
    blurred = np.clip(candidate + np.random.default_rng(1).normal(scale=0.08, size=900), 0, 1)
    gate = AgainstChampionGate(metric="brier", must_be="better")
    on_new_days = only(gate, week_evidence(label, candidate, blurred), failures(3))
    on_used_days = only(gate, week_evidence(label, candidate, blurred), failures(3, until=WEEK[1]))
    first = only(gate, week_evidence(label, candidate, blurred))
    assert first.alpha > on_new_days.alpha == pytest.approx(2 * on_used_days.alpha)
    assert first.interval[0] > on_new_days.interval[0] > on_used_days.interval[0]
    assert "spends 0.00238 for a rate of 0.05" in on_new_days.reason


def test_a_gain_may_fail_when_the_budget_is_nearly_spent():
    label, candidate, _ = good(n=900)
    blurred = np.clip(candidate + np.random.default_rng(1).normal(scale=0.1, size=900), 0, 1)
    gate = AgainstChampionGate(metric="brier", must_be="better")
    outcomes = [
        only(gate, week_evidence(label, candidate, blurred), failures(n)).outcome for n in (0, 30, 10**3, 10**5)
    ]
    assert outcomes == sorted(outcomes, reverse=True)
    assert {outcomes[0], outcomes[-1]} == {"passed", "failed"}


def test_first_champion():
    label, candidate, _ = good()
    verdict = judge_evidence([AUC, NOT_WORSE], week_evidence(label, candidate, NoChampion()))
    assert verdict.promote
    record = verdict.results[1]
    assert record.reason == "no champion yet: nothing to compare with"
    assert record.candidate == pytest.approx(roc_auc_score(label, candidate))
    assert (record.champion, record.interval, record.alpha) == (None, None, None)
    assert only(NOT_WORSE, week_evidence(label, candidate, NoChampion(), days=None)).outcome == "passed"


def test_a_champion_that_cannot_be_compared_blocks():
    label, candidate, _ = good()
    problem = "version 3 was trained on days up to 2013-02-25, the holdout starts 2013-02-22"
    verdict = judge_evidence([AUC, NOT_WORSE], week_evidence(label, candidate, MissingEvidence(problem)))
    assert [r.outcome for r in verdict.results] == ["passed", "not_computed"]
    assert problem in verdict.reason
    assert not verdict.promote


@pytest.mark.parametrize(
    ("blocker", "outcome"),
    [
        (SignatureGate(), "not_computed"),
        (ServingGate(quantity="size_mib", at_most=1), "failed"),
        (BaselineGate(metric="log_loss"), "not_computed"),
        (AgainstChampionGate(metric="brier", must_be="better", min_rows=10_000, name="of_many_rows"), "not_computed"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
@pytest.mark.parametrize("is_first", [True, False])
def test_no_comparison_is_spent_on_a_candidate_that_is_blocked_anyway(blocker, outcome, is_first):
    evidence = replace(week_evidence(*good()), serving_costs={"size_mib": 2.0})
    gates = [blocker, NOT_WORSE] if is_first else [NOT_WORSE, blocker]
    verdict = judge_evidence(gates, evidence)
    assert [result.gate for result in verdict.results] == [gate.name for gate in gates], "in the order of the spec"
    results = {result.gate: result for result in verdict.results}
    assert results[blocker.name].outcome == outcome
    withheld = results[NOT_WORSE.name]
    assert (withheld.outcome, withheld.alpha, withheld.interval, withheld.rows) == ("not_computed", None, None, 400)
    assert withheld.reason == f"nothing was compared, and nothing is spent: {blocker.name} did not pass"
    assert not verdict.promote
    strict_json(verdict)


def test_gates_on_the_same_labels_choose_no_comparison():
    """They would choose those where the candidate was lucky: docs/decisions/0025-nothing-in-vain.md."""
    label, candidate, champion = good()
    unreachable = ThresholdGate(metric="auc", at_least=0.99)
    threshold, compared = judge_evidence([unreachable, NOT_WORSE], week_evidence(label, candidate, champion)).results
    assert threshold.outcome == "failed"
    assert compared.alpha is not None
    assert compared == only(NOT_WORSE, week_evidence(label, candidate, champion))


@pytest.mark.parametrize(
    ("days", "says"),
    [(None, "does not say of which days"), (WEEK[::-1], "of no day"), ((WEEK[0], WEEK[0]), "of no day")],
)
def test_a_comparison_on_unknown_days_is_not_made(days, says):
    record = only(NOT_WORSE, week_evidence(*good(), days=days))
    assert (record.outcome, record.alpha) == ("not_computed", None)
    assert says in record.reason


def test_days_that_are_no_dates_block_too():
    record = only(NOT_WORSE, week_evidence(*good(), days=("2013-03-01", 7)))
    assert record.outcome == "not_computed"
    assert "the gate broke with TypeError" in record.reason


def test_two_that_hardly_differ_are_not_compared():
    """Of 400 rows three are told differently. Their spread says that this is next to nothing, the rows that are not
    there may say otherwise."""
    label, candidate, _ = good()
    champion = candidate.copy()
    champion[:3] = 1 - champion[:3]
    for metric in ("recall", "accuracy"):
        gate = AgainstChampionGate(metric=metric, cut=0.5, must_be="not_worse", margin=0.3)
        record = only(gate, week_evidence(label, candidate, champion))
        assert record.outcome == "not_computed"
        assert "the two differ in 3 of 400 rows: too few" in record.reason


def clustered(clusters, n=400):
    return replace(week_evidence(*good(n=n)), clusters=clusters)


@pytest.mark.parametrize(
    ("clusters", "says"),
    [
        ({}, "the evidence does not say which rows may differ together: give its `clusters`"),
        (None, "does not say which rows may differ together"),
        ({name: ["x"] * 400 for name in "abcd"}, "rows have 4 kinds of clusters, at most three are possible"),
        ({"day": MissingEvidence("the column is gone")}, "the clusters by day are not known: the column is gone"),
        ({"day": "2013-03-01"}, "the clusters by day are not one row of names"),
        ({"day": 7}, "the clusters by day are not one row of names"),
        ({"day": ["x"] * 399}, "there are 399 clusters by day for 400 labels"),
        ({"plane": [None, *["x"] * 399]}, "1 of 400 rows have no name of plane: fill the column"),
        ({"day": ["2013-03-01"] * 400}, "1 day is too few to know the error of the gain: about 5 would do, so raise"),
        (
            day_clusters(400, 4),
            "4 days are too few to know the error of the gain: about [56] would do, so raise holdout",
        ),
        (
            {"plane": ["a"] * 397 + list("bcd")},
            "4 values of plane, which weigh like 1\\.[58] of equal size, are too few",
        ),
        (
            day_clusters(400, 14) | {"plane": ["a", "b"] * 200},
            "2 values of plane are too few to know the error of the gain: about [56] would do, so judge more rows",
        ),
    ],
)
def test_unusable_clusters_block_and_name_what_would_do(clusters, says):
    for gate in (NOT_WORSE, AgainstChampionGate(metric="brier", must_be="not_worse", margin=0.1)):
        record = only(gate, clustered(clusters))
        assert (record.outcome, record.alpha) == ("not_computed", None)
        assert re.search(says, record.reason)
        assert record.candidate is not None
    assert only(AUC, clustered(clusters)).outcome == "passed"  # a limit of a value needs no clusters


def test_a_result_names_its_clusters():
    days = day_clusters(400, 14)
    assert "on 400 rows of 14 days: " in only(NOT_WORSE, clustered(days)).reason
    both = clustered(days | {"plane": [str(row % 50) for row in range(400)]})
    assert "on 400 rows of 14 days and 50 values of plane: " in only(NOT_WORSE, both).reason


def test_no_value_is_named_and_blocks():
    label, candidate, champion = good()
    low = candidate / 10
    gate = ThresholdGate(metric="precision", cut=0.9, at_least=0.1)
    assert only(gate, week_evidence(label, low, champion)).reason == "the candidate has no precision on 400 rows"
    against = AgainstChampionGate(metric="precision", cut=0.9, must_be="better")
    assert "the candidate has no precision" in only(against, week_evidence(label, low, champion)).reason
    assert "the champion has no precision" in only(against, week_evidence(label, candidate, low)).reason


@pytest.fixture
def folder():
    """A model folder's module, with functions that are right and wrong."""
    module = ModuleType("folder_of_a_model")

    def broken(*_):
        raise RuntimeError("no such\nluck")

    module.broken = broken
    module.nothing = lambda label, score: None
    module.nan = lambda label, score: float("nan")
    module.bias = lambda label, score: abs(float((score - label).mean()))
    sys.modules[module.__name__] = module
    yield module.__name__
    del sys.modules[module.__name__]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("broken", "folder_of_a_model:broken raised RuntimeError: no such luck"),
        ("nothing", "folder_of_a_model:nothing raised TypeError: float() argument"),
        ("nan", "the candidate has no folder_of_a_model:nan on 400 rows"),
        ("missing", "folder_of_a_model:missing raised AttributeError"),
    ],
)
def test_a_function_of_the_users_that_fails_blocks(folder, function, says):
    about = {"metric": f"{folder}:{function}", "higher_is_better": False}
    for gate in (ThresholdGate(**about, at_most=1.0), AgainstChampionGate(**about, must_be="better")):
        record = only(gate, week_evidence(*good()))
        assert record.outcome == "not_computed"
        assert says in record.reason
        assert record.rows == 400


def test_a_function_of_the_users_that_is_right_is_judged_by(folder):
    label, candidate, _ = good()
    gate = ThresholdGate(metric=f"{folder}:bias", higher_is_better=False, at_most=0.05)
    assert only(gate, week_evidence(label, candidate, NoChampion())).outcome == "passed"
    assert only(gate, week_evidence(label, candidate / 2, NoChampion())).outcome == "failed"


def test_a_gate_of_a_module_that_is_not_there_blocks():
    record = only(CustomGate(function="no.such_module:gate"), week_evidence(*good()))
    assert record.outcome == "not_computed"
    assert "ModuleNotFoundError" in record.reason


def test_three_rows_are_said_to_be_too_few_by_every_metric():
    for gate in (
        AUC,
        NOT_WORSE,
        ThresholdGate(metric="rmse", at_most=1.0),
        AgainstChampionGate(metric="mae", must_be="better"),
    ):
        record = only(gate, week_evidence([0, 1, 1], [0.2, 0.3, 0.9], [0.1, 0.4, 0.8]))
        assert record.outcome == "not_computed"
        assert "3 rows are too few, at least 100 are needed" in record.reason


def test_amounts_may_be_anything_but_infinite_or_constant():
    label, candidate, champion = amounts()
    gates = [ThresholdGate(metric="mae", at_most=9.0), AgainstChampionGate(metric="mae", must_be="better")]
    shifted = week_evidence(label - 1e3, candidate - 1e3, champion - 1e3)
    assert [r.outcome != "not_computed" for r in judge_evidence(gates, shifted).results] == [True, True]
    for spoiled, says in (
        (np.where(np.arange(600) == 7, np.inf, label), "1 of 600 labels are NaN or infinite"),
        (None, "the labels are not one row of numbers"),
    ):
        evidence = week_evidence(spoiled, candidate, champion)
        assert [only(gate, evidence).reason for gate in gates] == [says, says]
    constant = [only(gate, week_evidence(label, np.full(600, 40.0), champion)) for gate in gates]
    assert {r.reason for r in constant} == {"the candidate scores every row 40: a constant ranks nothing"}
    with np.errstate(over="ignore"):
        huge = only(gates[1], week_evidence(label, candidate * 1e300, champion))
    assert huge.outcome == "not_computed"
    assert "infinite" in huge.reason


def test_counts_are_not_negative():
    label, candidate, champion = (np.maximum(values, 0).round() for values in amounts())
    gate = AgainstChampionGate(metric="poisson_deviance", must_be="better")
    assert only(gate, week_evidence(label, candidate, champion)).outcome != "not_computed"
    debt, below = label - (np.arange(600) == 7) * 1e4, -1 - champion
    assert only(gate, week_evidence(debt, candidate, champion)).reason.startswith(
        "1 of 600 labels are below 0, down to -"
    )
    assert "600 of the champion's 600 scores are below 0" in only(gate, week_evidence(label, candidate, below)).reason


@pytest.mark.parametrize(
    "gate",
    [
        AUC,
        NOT_WORSE,
        AgainstChampionGate(metric="accuracy", cut=0.3, must_be="not_worse", margin=0.1),
        AgainstChampionGate(metric="log_loss", must_be="better"),
    ],
    ids=lambda gate: f"{gate.metric}-{gate.kind}",
)
def test_rows_are_a_set_and_types_do_not_matter(gate):
    """The same bits from rows in another order and numbers in another type: a re-run finds what was found."""
    label, candidate, champion = (column.astype(np.float32) for column in good())
    candidate[:50] = -0.0
    first = only(gate, week_evidence(label, candidate, champion))
    order = np.random.default_rng(1).permutation(label.size)
    candidate[:50] = 0.0
    shuffled = week_evidence(
        label[order].astype(bool), candidate[order].astype(np.float64), list(map(float, champion[order]))
    )
    shuffled = replace(shuffled, clusters={"row": [str(row) for row in order]})
    assert only(gate, shuffled).model_dump_json() == first.model_dump_json()


def test_all_that_is_wrong_is_said_at_once():
    record = only(AUC, week_evidence([1, 1, 2], [0.5, float("nan")], NoChampion()))
    assert record.reason == (
        "3 rows are too few, at least 100 are needed; 1 of 3 labels are neither 0 nor 1; "
        "0 of 3 labels are 0, at least 2 are needed; the candidate has 2 scores for 3 labels; "
        "1 of the candidate's 2 scores are NaN or infinite"
    )


def test_min_rows_is_the_gates_own():
    label, candidate, _ = good(n=60)
    assert only(AUC, week_evidence(label, candidate, NoChampion())).outcome == "not_computed"
    assert only(AUC.model_copy(update={"min_rows": 60}), week_evidence(label, candidate, NoChampion())).candidate


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
    verdict = judge_evidence([AUC, BRIER, NOT_WORSE], week_evidence(**columns))
    assert not verdict.promote
    touched = verdict.results if where != "champion" else verdict.results[2:]
    assert {record.outcome for record in touched} == {"not_computed"}
    assert all(r.interval is None for r in touched)
    strict_json(verdict)
    if where != "champion":  # nor as the first champion
        first = judge_evidence(
            [AUC, BRIER, NOT_WORSE], week_evidence(columns["label"], columns["candidate"], NoChampion())
        )
        assert {record.outcome for record in first.results} == {"not_computed"}


anything = hnp.arrays(dtype=hnp.scalar_dtypes(), shape=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=6))
scores = hnp.arrays(np.float64, st.integers(4, 12), elements=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.5, np.nan]))
labels = hnp.arrays(np.int8, st.integers(4, 12), elements=st.sampled_from([0, 1, 1, 0, 2]))


@given(
    label=labels | anything,
    candidate=scores | anything,
    champion=scores | anything | st.builds(NoChampion) | st.builds(MissingEvidence, st.text(max_size=5)),
)
def test_whatever_comes_is_judged_and_a_pass_is_earned(label, candidate, champion):
    not_worse = AgainstChampionGate(metric="brier", must_be="not_worse", margin=0.3)
    amounts = AgainstChampionGate(metric="mae", must_be="not_worse", margin=0.5, name="continuous")
    gates = [AUC, not_worse, amounts]
    gates = [gate.model_copy(update={"min_rows": 4}) for gate in gates]
    verdict = judge_evidence(gates, week_evidence(label, candidate, champion))
    strict_json(verdict)
    assert len(verdict.results) == 3
    if verdict.promote:
        assert roc_auc_score(label, candidate) >= 0.6
        if not isinstance(champion, NoChampion):
            assert brier_score_loss(label, candidate) - brier_score_loss(label, champion) <= 0.3


def test_no_gates_and_two_of_one_name_block():
    evidence = week_evidence(*good())
    assert not judge_evidence([], evidence).promote
    assert "two gates are named auc_threshold" in judge_evidence([AUC, AUC], evidence).reason


def test_the_example_of_the_package_runs():
    assert doctest.testmod(evergreen.gates).failed == 0


def test_judging_is_quick():
    """Three gates on a week of 6,000 rows take a blink; a slow machine may take ten."""
    label, candidate, champion = good(n=6000)
    gates = [AUC, NOT_WORSE, AgainstChampionGate(metric="log_loss", must_be="better")]
    judge_evidence(gates, week_evidence(label, candidate, champion))  # loads what is loaded once
    started = time.process_time()
    judge_evidence(gates, week_evidence(label, candidate, champion))
    assert time.process_time() - started < 2


def test_a_comparison_that_a_person_did_without_says_so():
    label, candidate, _ = good()
    reason = "inputs of version 3 can no longer be made; ada accepted the change in entry 9: the source was closed"
    by_slice = BySliceGate(metric="auc", group_by="origin", min_rows=10)
    evidence = replace(week_evidence(label, candidate, NoChampion(reason)), groups={"origin": ["JFK"] * len(label)})
    verdict = judge_evidence([NOT_WORSE, by_slice], evidence)
    assert verdict.promote
    assert [(result.reason, result.alpha) for result in verdict.results] == [(reason, None)] * 2
