"""The sums of a metric by day: they add up to the gate's own value, for every kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.judged_rows import open_rows
from evergreen.gates.verdict import NotComputedError
from evergreen.monitoring.daily_metrics import add_sums, metric_of_sums, sum_by_day, sum_rows
from evergreen.spec.gates import ThresholdGate
from evergreen.spec.prediction_type import PredictionType
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

DAYS, ROWS = 5, 40
KINDS: Mapping[str, PredictionType] = {
    "binary": PredictionType(kind="binary"),
    "multiclass": PredictionType(kind="multiclass", classes=("a", "b", "c")),
    "regression": PredictionType(kind="regression"),
    "quantile": PredictionType(kind="quantile", quantiles=(0.1, 0.9)),
    "forecast": PredictionType(kind="forecast"),
    "ranking": PredictionType(kind="ranking"),
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("binary", {"metric": "log_loss", "at_most": 9.0}),
    ("binary", {"metric": "accuracy", "cut": 0.4, "at_least": 0.1}),
    ("multiclass", {"metric": "log_loss", "at_most": 9.0}),
    ("multiclass", {"metric": "macro_f1", "at_least": 0.1}),
    ("regression", {"metric": "rmse", "at_most": 9.0}),
    ("regression", {"metric": "r2", "at_least": 0.1}),
    ("quantile", {"metric": "quantile_loss", "at_most": 9.0}),
    ("quantile", {"metric": "interval_score", "at_most": 9.0}),
    ("forecast", {"metric": "mase", "at_most": 9.0}),
    ("forecast", {"metric": "mae", "horizon": 1, "at_most": 9.0}),
    ("ranking", {"metric": "ndcg", "k": 3, "at_least": 0.1}),
]


def draw(kind: str, *, has_weights: bool = False, seed: int = 1) -> Evidence:
    rng, size = np.random.default_rng(seed), DAYS * ROWS
    days = np.repeat([f"2024-03-0{number + 1}" for number in range(DAYS)], ROWS).tolist()
    label: Any = rng.normal(5, 1, size)
    scores: Any = label + rng.normal(0, 0.5, size)
    if kind == "binary":
        scores = rng.random(size)
        label = (rng.random(size) < scores).astype(float)
    elif kind == "multiclass":
        scores = rng.dirichlet(np.ones(3), size)
        label = rng.integers(0, 3, size).astype(float)
    elif kind == "quantile":
        scores = np.stack([scores - 1, scores + 1], axis=1)
    elif kind == "ranking":
        label = rng.integers(0, 3, size).astype(float)
    return Evidence(
        label=label,
        candidate=scores,
        champion=NoChampion(),
        clusters={"day": days},
        queries=[f"query {row // 5}" for row in range(size)],
        horizons=np.arange(size) % 3,
        scales=np.where(np.arange(size) % 7 == 0, np.nan, 1 + np.arange(size) % 4),
        weights=rng.integers(0, 4, size).astype(float) if has_weights else None,
        prediction_type=KINDS[kind],
    )


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("has_weights", [False, True])
def test_days_add_up_to_the_value_of_the_gate(kind: str, options: dict[str, Any], has_weights: bool) -> None:
    if kind == "ranking" and has_weights:
        pytest.skip("queries have no weights")
    gate, evidence = ThresholdGate(**options), draw(kind, has_weights=has_weights)
    days = sum_by_day(gate, evidence)
    assert list(days) == [f"2024-03-0{number + 1}" for number in range(DAYS)]
    value = open_rows(gate, evidence).metric("candidate")
    assert value
    total = add_sums(list(days.values()))
    assert metric_of_sums(gate, total, evidence.prediction_type) == pytest.approx(value.value, rel=1e-9)
    whole = sum_rows(gate, evidence)
    assert whole
    assert whole == pytest.approx(total, rel=1e-9)
    assert metric_of_sums(gate, days["2024-03-01"], evidence.prediction_type) != pytest.approx(value.value, rel=1e-6)


@pytest.mark.parametrize(("kind", "options"), [*CASES[:-1], ("binary", {"metric": "auc", "at_least": 0.1})])
def test_streamed_rows_have_the_same_sums(kind: str, options: dict[str, Any]) -> None:
    gate, evidence = ThresholdGate(**options), draw(kind)
    streamed = stream(evidence)
    expected = sum_by_day(gate, evidence)
    found = sum_by_day(gate, streamed)
    assert {day: pytest.approx(sums, rel=1e-9) for day, sums in expected.items()} == dict(sorted(found.items()))
    assert sum_rows(gate, streamed) == pytest.approx(sum_rows(gate, evidence), rel=1e-9)


def test_ranks_are_those_within_a_day() -> None:
    from sklearn import metrics

    gate, evidence = ThresholdGate(metric="auc", at_least=0.1), draw("binary", seed=3)
    label, score = np.asarray(evidence.label).copy(), np.asarray(evidence.candidate)
    label[:ROWS] = 1  # a day of one class has no AUC
    days = sum_by_day(gate, Evidence(**{**vars(evidence), "label": label}))
    assert list(days) == [f"2024-03-0{number + 1}" for number in range(1, DAYS)]
    last = slice((DAYS - 1) * ROWS, DAYS * ROWS)
    assert metric_of_sums(gate, days["2024-03-05"]) == pytest.approx(metrics.roc_auc_score(label[last], score[last]))
    assert days["2024-03-05"][-1] == ROWS
    values = [metric_of_sums(gate, sums) for sums in days.values()]
    assert metric_of_sums(gate, add_sums(list(days.values()))) == pytest.approx(np.mean(values))


def test_a_day_may_have_one_row_or_one_class() -> None:
    gate = ThresholdGate(metric="log_loss", at_most=9.0)
    evidence = Evidence(label=[1.0], candidate=[0.5], champion=NoChampion(), clusters={"day": ["2024-03-01"]})
    assert sum_rows(gate, evidence) == pytest.approx((np.log(2), 1))
    assert np.isnan(metric_of_sums(gate, (0.0, 0.0)))
    assert np.isnan(metric_of_sums(ThresholdGate(metric="auc", at_least=0.1), (0.0, 0.0)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"label": [0.0, 2.0]}, "1 of 2 labels are neither 0 nor 1"),
        ({"label": [0.0, np.nan]}, "1 of 2 labels are NaN"),
        ({"candidate": [0.5, np.inf]}, "1 of 2 predictions are NaN or infinite"),
        ({"label": MissingEvidence("they are texts")}, "they are texts"),
        ({"clusters": {}}, "the days of the rows are not known"),
        ({"clusters": {"day": MissingEvidence("no such column")}}, "no such column"),
        ({"weights": [1.0, -1.0]}, "1 of 2 weights are below 0"),
        ({"candidate": [0.5]}, "not one row each"),
    ],
)
def test_invalid_rows_are_refused(changes: dict[str, Any], problem: str) -> None:
    fields = {"label": [0.0, 1.0], "candidate": [0.5, 0.6], "clusters": {"day": ["2024-03-01", "2024-03-02"]}}
    evidence = Evidence(**{"champion": NoChampion(), "prediction_type": KINDS["binary"], **fields, **changes})
    with pytest.raises(NotComputedError, match=problem):
        sum_by_day(ThresholdGate(metric="log_loss", at_most=9.0), evidence)


def test_classes_and_counts_are_checked() -> None:
    evidence = draw("multiclass")
    wrong = Evidence(**{**vars(evidence), "label": np.full(DAYS * ROWS, 3.0)})
    with pytest.raises(NotComputedError, match="not all numbers of the 3 classes"):
        sum_rows(ThresholdGate(metric="log_loss", at_most=9.0), wrong)
    negative = Evidence(**{**vars(draw("regression")), "label": np.full(DAYS * ROWS, -1.0)})
    with pytest.raises(NotComputedError, match="labels are below 0"):
        sum_rows(ThresholdGate(metric="poisson_deviance", at_most=9.0), negative)
