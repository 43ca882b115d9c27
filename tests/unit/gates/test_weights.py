"""Rows with weights: as scikit-learn weighs them, and as rows that occur so many times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    Evidence,
    FairnessGate,
    MissingEvidence,
    ThresholdGate,
    judge_evidence,
)
from evergreen.gates.judged_rows import open_rows
from evergreen.gates.verdict import evaluate_gate
from evergreen.reports.curves import cluster_gains
from evergreen.spec.gates import METRIC_SCALES, MetricGate
from evergreen.spec.prediction_type import PredictionType
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

DAYS = 8
OPTIONS: dict[str, Any] = {
    "precision": {"cut": 0.4},
    "recall": {"cut": 0.4},
    "precision_at_recall": {"recall": 0.8},
    "expected_cost": {"costs": ((0.0, 1.0), (5.0, 0.0))},
}
TYPES = {
    "binary": PredictionType(kind="binary"),
    "multiclass": PredictionType(kind="multiclass", classes=("a", "b", "c")),
    "regression": PredictionType(kind="regression"),
    "quantile": PredictionType(kind="quantile", quantiles=(0.1, 0.5, 0.9)),
    "forecast": PredictionType(kind="forecast"),
}
CASES = [(kind, metric) for metric, scale in METRIC_SCALES.items() for kind in scale.kinds if kind in TYPES]
STREAMED = [case for case in CASES if case[1] not in ("average_precision", "precision_at_recall", "auc_ovr")]
COMPARED = [
    case for case in CASES if case[1] not in ("calibration_error", "coverage", "coverage_error", "crossing_rate")
]


def rows(kind: str, seed: int = 0, count: int = 400) -> Evidence:
    random = np.random.default_rng(seed)
    truth = random.normal(size=count)

    def predict(noise: float) -> Any:
        guess = truth + random.normal(scale=noise, size=count)
        if kind == "binary":
            return 1 / (1 + np.exp(-guess))
        if kind == "multiclass":
            powers = np.exp(np.column_stack([guess, -guess, np.zeros(count)]))
            return powers / powers.sum(axis=1, keepdims=True)
        if kind == "quantile":
            return guess[:, None] + np.array([-1.2, 0.0, 1.3]) + random.normal(scale=0.5, size=(count, 3))
        return np.exp(guess)

    labels = {
        "binary": (truth + random.normal(size=count) > 0.3).astype(float),
        "multiclass": np.digitize(truth + random.normal(scale=0.5, size=count), [-0.6, 0.6]).astype(float),
        "quantile": truth + random.normal(size=count),
    }
    days = random.integers(0, DAYS, count)
    return Evidence(
        label=labels.get(kind, np.exp(truth)),
        candidate=predict(0.4),
        champion=predict(1.2),
        days=(date(2024, 1, 1), date(2024, 1, 1 + DAYS)),
        clusters={"day": [f"2024-01-{1 + day:02d}" for day in days.tolist()]},
        groups={"shop": [f"s{row % 2}" for row in range(count)]},
        baselines={"prior": predict(2.0)},
        weights=random.integers(0, 5, count).astype(float),
        horizons=random.integers(1, 3, count),
        scales=random.choice([0.5, 2.0, np.nan], size=count),
        prediction_type=TYPES[kind],
    )


def repeat(evidence: Evidence) -> Evidence:
    """Return each row as often as its weight says, without weights."""
    times = np.asarray(evidence.weights).astype(int)

    def of(column: Any) -> Any:
        if isinstance(column, Mapping):
            return {name: of(values) for name, values in column.items()}
        values = np.repeat(np.asarray(column), times, axis=0)
        return values.tolist() if values.dtype.kind == "U" else values

    names = ("label", "candidate", "champion", "clusters", "groups", "baselines", "horizons", "scales")
    return replace(evidence, weights=None, **{name: of(getattr(evidence, name)) for name in names})


def gate(case: tuple[str, str], kind: Any = ThresholdGate, **fields: Any) -> Any:
    metric = case[1]
    options = dict(OPTIONS.get(metric, {}))
    if case == ("binary", "accuracy"):
        options["cut"] = 0.4
    if metric == "quantile_loss" and case[0] != "quantile":
        options["quantile"] = 0.7
    if case == ("multiclass", "expected_cost"):
        options["costs"] = ((0.0, 1.0, 2.0), (3.0, 0.0, 1.0), (4.0, 1.0, 0.0))
    if kind is ThresholdGate:
        scale = METRIC_SCALES[metric]
        fields["at_least" if scale.higher_is_better else "at_most"] = 0.3
    return kind(metric=metric, **options, min_rows=20, **fields)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_weight_is_as_many_rows(case: tuple[str, str]) -> None:
    evidence = rows(case[0])
    repeated, unweighted = repeat(evidence), replace(evidence, weights=None)
    one, other, plain = (evaluate_gate(gate(case), each) for each in (evidence, repeated, unweighted))
    assert one.candidate == pytest.approx(other.candidate, rel=1e-9)
    assert one.candidate != pytest.approx(plain.candidate, rel=1e-6)
    fair = [
        evaluate_gate(gate(case, FairnessGate, group_by="shop", at_most=0.9), each) for each in (evidence, repeated)
    ]
    assert [part.candidate for part in fair[0].slices] == pytest.approx([part.candidate for part in fair[1].slices])


@pytest.mark.parametrize("case", COMPARED, ids=" ".join)
def test_gains_and_errors_are_those_of_as_many_rows(case: tuple[str, str]) -> None:
    compared = gate(case, AgainstChampionGate, must_be="better")
    evidence = rows(case[0])
    weighted, repeated = (
        open_rows(compared, each, {"champion": each.champion}).measure_gain("champion")
        for each in (evidence, repeat(evidence))
    )
    assert weighted.gain == pytest.approx(repeated.gain, rel=1e-9)
    if case[1] in ("auc", "auc_ovr"):  # without weights by placements, with weights by leaving out days
        assert 0.8 < weighted.standard_error / repeated.standard_error < 1.25
    else:
        assert weighted.standard_error == pytest.approx(repeated.standard_error, rel=1e-9)
        assert weighted.degrees_of_freedom == pytest.approx(repeated.degrees_of_freedom, rel=1e-9)
    by_day = [cluster_gains(compared, each)[1] for each in (evidence, repeat(evidence))]
    assert [part.gain for part in by_day[0]] == pytest.approx([part.gain for part in by_day[1]])
    if case[1] not in ("auc", "auc_ovr"):
        baseline = gate(case, BaselineGate)
        first, second = (evaluate_gate(baseline, each) for each in (evidence, repeat(evidence)))
        assert first.interval == pytest.approx(second.interval)


@pytest.mark.parametrize("case", STREAMED, ids=" ".join)
def test_batches_are_weighted_as_rows_in_memory(case: tuple[str, str]) -> None:
    evidence = rows(case[0])
    gates: list[MetricGate] = [gate(case), gate(case, FairnessGate, group_by="shop", at_most=0.9)]
    if case in COMPARED and case[1] != "auc":
        gates += [gate(case, BySliceGate, group_by="shop"), gate(case, BaselineGate)]
        gates += [gate(case, AgainstChampionGate, must_be="better")]
    loaded, streamed = (judge_evidence(gates, each) for each in (evidence, stream(evidence, 90)))
    for one, other in zip(loaded.results, streamed.results, strict=True):
        if case[1] in ("auc", "calibration_error"):
            assert "takes all labels and scores at once" in other.reason
            continue
        assert one.outcome == other.outcome != "not_computed", (one.reason, other.reason)
        assert other.candidate == pytest.approx(one.candidate, rel=1e-9)
        assert [part.candidate for part in one.slices] == pytest.approx([part.candidate for part in other.slices])
        if one.interval:
            assert other.interval == pytest.approx(one.interval, rel=1e-6, abs=1e-9)


SKLEARN: dict[str, Any] = {
    "auc": ("binary", sklearn_metrics.roc_auc_score),
    "average_precision": ("binary", sklearn_metrics.average_precision_score),
    "log_loss": ("binary", sklearn_metrics.log_loss),
    "brier": ("binary", sklearn_metrics.brier_score_loss),
    "accuracy": ("binary", lambda y, p, **w: sklearn_metrics.accuracy_score(y, p >= 0.4, **w)),
    "precision": ("binary", lambda y, p, **w: sklearn_metrics.precision_score(y, p >= 0.4, **w)),
    "recall": ("binary", lambda y, p, **w: sklearn_metrics.recall_score(y, p >= 0.4, **w)),
    "macro_f1": (
        "multiclass",
        lambda y, p, **w: sklearn_metrics.f1_score(y, p.argmax(axis=1), average="macro", **w),
    ),
    "weighted_f1": (
        "multiclass",
        lambda y, p, **w: sklearn_metrics.f1_score(y, p.argmax(axis=1), average="weighted", **w),
    ),
    "auc_ovr": ("multiclass", lambda y, p, **w: sklearn_metrics.roc_auc_score(y, p, multi_class="ovr", **w)),
    "rmse": ("regression", sklearn_metrics.root_mean_squared_error),
    "mae": ("regression", sklearn_metrics.mean_absolute_error),
    "r2": ("regression", sklearn_metrics.r2_score),
    "poisson_deviance": ("regression", sklearn_metrics.mean_poisson_deviance),
    "quantile_loss": ("regression", lambda y, p, **w: sklearn_metrics.mean_pinball_loss(y, p, alpha=0.7, **w)),
}


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(SKLEARN)), seed=st.integers(0, 2**32 - 1), power=st.floats(-3, 3))
def test_weighted_metrics_are_those_of_scikit_learn(name: str, seed: int, power: float) -> None:
    kind, reference = SKLEARN[name]
    evidence = rows(kind, seed % 1000, count=150)
    weights = np.random.default_rng(seed).random(150) ** 2 * 10**power
    weights[::11] = 0
    expected = reference(np.asarray(evidence.label), np.asarray(evidence.candidate), sample_weight=weights)
    result = evaluate_gate(gate((kind, name)), replace(evidence, weights=weights))
    assert result.candidate == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (np.r_[-0.5, -2.0, np.ones(398)], "2 of 400 weights are below 0, down to -2: fill the column"),
        (np.r_[np.nan, np.inf, np.ones(398)], "2 of 400 weights are missing, NaN or infinite"),
        (np.ones(399), "there are 399 weights for 400 labels"),
        (np.zeros(400), "all 400 weights are 0: no row counts"),
        (["1"] * 400, "the weights are not one row of numbers"),
        (MissingEvidence("no such column"), "the weights cannot be used: no such column"),
    ],
)
def test_weights_that_are_none_are_refused(weights: Any, says: str) -> None:
    evidence = replace(rows("regression"), weights=weights)
    for kind in (gate(("regression", "mae")), gate(("regression", "mae"), AgainstChampionGate, must_be="better")):
        result = evaluate_gate(kind, evidence)
        assert result.outcome == "not_computed"
        assert says in result.reason
    if not isinstance(weights, list) and np.size(weights) == 400:
        assert says in evaluate_gate(gate(("regression", "mae")), stream(evidence, 90)).reason


def test_weights_of_a_ranking_are_refused() -> None:
    ranking = replace(rows("regression"), prediction_type=PredictionType(kind="ranking"), queries=["a"] * 400)
    result = evaluate_gate(ThresholdGate(metric="mrr", at_least=0.1), ranking)
    assert "rows of a ranking have no weights" in result.reason


def without_unweighted(evidence: Evidence) -> Evidence:
    """Return only the rows with a weight above 0."""
    kept = np.flatnonzero(np.asarray(evidence.weights) > 0)

    def of(column: Any) -> Any:
        if isinstance(column, Mapping):
            return {name: of(values) for name, values in column.items()}
        return [column[row] for row in kept.tolist()] if isinstance(column, list) else np.asarray(column)[kept]

    names = ("label", "candidate", "champion", "clusters", "groups", "baselines", "horizons", "scales", "weights")
    return replace(evidence, **{name: of(getattr(evidence, name)) for name in names})


@pytest.mark.parametrize("case", [("regression", "mae"), ("binary", "log_loss"), ("forecast", "mase")], ids=" ".join)
def test_rows_of_weight_0_are_no_evidence(case: tuple[str, str]) -> None:
    """They are as if they were not there: no row of those that a gate takes at least, and no day or slice either."""
    evidence = rows(case[0], count=900)
    weights = np.asarray(evidence.weights).copy()
    days = np.asarray(evidence.clusters["day"])
    weights[days == days[0]] = 0
    weights[:60] = 0
    shops = ["closed" if row < 60 else shop for row, shop in enumerate(evidence.groups["shop"])]  # type: ignore[arg-type]
    evidence = replace(evidence, weights=weights, groups={"shop": shops})
    options: Any = {"horizon": 1} if case[0] == "forecast" else {}
    gates: list[MetricGate] = [
        gate(case, **options),
        gate(case, AgainstChampionGate, must_be="better", **options),
        gate(case, BaselineGate, **options),
        gate(case, BySliceGate, group_by="shop", **options),
        gate(case, FairnessGate, group_by="shop", at_most=0.9, **options),
    ]
    for one in (evidence, stream(evidence, 90)):
        fewer = without_unweighted(evidence)
        less = fewer if one is evidence else stream(fewer, 90)
        for kind in gates:
            found, expected = evaluate_gate(kind, one), evaluate_gate(kind, less)
            assert expected.outcome != "not_computed", expected.reason
            assert (found.outcome, found.rows, found.days) == (expected.outcome, expected.rows, expected.days)
            assert [part.name for part in found.slices] == [part.name for part in expected.slices]
            assert found.candidate == pytest.approx(expected.candidate, rel=1e-9)
            assert (found.interval or ()) == pytest.approx(expected.interval or (), rel=1e-9)


@pytest.mark.parametrize("kind", ["regression", "forecast"])
def test_one_row_that_counts_is_not_enough(kind: str) -> None:
    evidence = rows(kind)
    one_row = replace(evidence, weights=np.eye(400)[7], candidate=np.asarray(evidence.label))
    for each in (one_row, stream(one_row, 90)):
        assert "1 rows are too few" in evaluate_gate(gate((kind, "mae")), each).reason
    nothing = replace(rows("forecast"), weights=np.eye(400)[7], horizons=(np.arange(400) != 7).astype(int))
    for each in (nothing, stream(nothing, 90)):
        result = evaluate_gate(gate(("forecast", "mae"), horizon=1), each)
        assert "none of 400 rows has the horizon 1 and a weight above 0" in result.reason


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_a_class_that_few_days_have_counts_as_few_days(kind: str) -> None:
    """Weights of 1 say no more than none do: neither does a day without a row of a class, however many it has."""
    metric = "auc" if kind == "binary" else "auc_ovr"
    evidence = rows(kind, count=1_200)
    label = np.asarray(evidence.label).copy()
    days = np.asarray(evidence.clusters["day"])
    in_few = np.isin(days, np.unique(days)[:3])
    label[(label == 1) & ~in_few] = 0
    compared = gate((kind, metric), AgainstChampionGate, must_be="better")
    plain, ones, twos = (
        evaluate_gate(compared, replace(evidence, label=label, weights=weights))
        for weights in (None, np.ones(1_200), np.where(np.arange(1_200) % 2, 1.0, 2.0))
    )
    assert ones == plain
    if kind == "multiclass":  # of two classes, the other one's placements tell more
        assert "too few to know the error of the gain" in plain.reason
    assert "too few to know the error of the gain" in twos.reason
    # Of classes that all days have, it is as before.
    assert evaluate_gate(compared, evidence).outcome != "not_computed"
