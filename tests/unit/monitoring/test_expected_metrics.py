"""The expectation of calibrated predictions is what labels show, within what rows by chance differ by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evergreen.gates.evidence import Evidence, NoChampion
from evergreen.gates.verdict import NotComputedError
from evergreen.monitoring.daily_metrics import metric_of_sums, sum_rows
from evergreen.monitoring.expected_metrics import estimate_problem, expected_sums
from evergreen.spec.gates import AgainstChampionGate, ThresholdGate
from evergreen.spec.loader import load_spec
from evergreen.spec.prediction_type import PredictionType

pytestmark = pytest.mark.unit

BINARY = PredictionType(kind="binary")
DRAWS, ROWS = 60, 4000


def gate(metric: str, **fields: Any) -> AgainstChampionGate:
    return AgainstChampionGate(**{"name": metric, "metric": metric, "must_be": "better", **fields})


def estimate(which: AgainstChampionGate, probabilities: np.ndarray) -> float:
    sums = expected_sums(which, probabilities)
    assert sums
    return metric_of_sums(which, sums, BINARY)


def realise(which: AgainstChampionGate, probabilities: np.ndarray, labels: np.ndarray) -> float:
    sums = sum_rows(which, Evidence(labels, probabilities, NoChampion(), prediction_type=BINARY))
    assert sums
    return metric_of_sums(which, sums, BINARY)


@pytest.mark.parametrize(
    "which",
    [
        gate("auc"), gate("log_loss"), gate("brier"), gate("accuracy", cut=0.5), gate("precision", cut=0.6),
        gate("recall", cut=0.4), gate("average_precision"),
    ],
    ids=lambda which: which.metric,
)  # fmt: skip
def test_calibrated_predictions_are_as_good_as_they_say(which: AgainstChampionGate) -> None:
    """The mean over draws of labels is within three of its standard errors, or a thousandth."""
    rng = np.random.default_rng(7)
    probabilities = rng.beta(1.2, 2.0, ROWS)
    expected = estimate(which, probabilities)
    realised = np.array(
        [realise(which, probabilities, (rng.random(ROWS) < probabilities).astype(float)) for _ in range(DRAWS)]
    )
    assert abs(expected - realised.mean()) < 3 * realised.std() / np.sqrt(DRAWS) + 1e-3
    assert abs(expected - realised[0]) < 4 * realised.std()


def test_auc_is_that_of_weighted_labels() -> None:
    probabilities = np.random.default_rng(1).random(500)
    weights = np.concatenate([probabilities, 1 - probabilities])
    labels = np.repeat([1, 0], 500)
    known = roc_auc_score(labels, np.tile(probabilities, 2), sample_weight=weights)
    assert estimate(gate("auc"), probabilities) == pytest.approx(known)


def test_a_shift_of_inputs_is_seen_and_a_wrong_model_is_not() -> None:
    rng = np.random.default_rng(3)
    which, before = gate("log_loss"), rng.beta(0.5, 0.5, ROWS)
    harder = rng.beta(5, 5, ROWS)
    assert estimate(which, harder) > estimate(which, before) + 0.2
    wrong = (rng.random(ROWS) < 1 - before).astype(float)
    assert realise(which, before, wrong) > estimate(which, before) + 0.5


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1, np.inf])
def test_what_are_no_probabilities_are_named(value: float) -> None:
    with pytest.raises(NotComputedError, match="1 of 200 predictions are no probabilities"):
        expected_sums(gate("auc"), np.append(np.full(199, 0.5), value))


def test_few_rows_of_a_short_period_have_sums() -> None:
    """Those of the hours of a day are added up, as those of matured labels are, however few each has."""
    few = np.array([0.25, 0.75, 0.5])
    assert expected_sums(gate("log_loss"), few)
    assert expected_sums(gate("log_loss"), few[:1])


@pytest.mark.parametrize(
    ("which", "changes", "problem"),
    [
        (gate("auc"), {}, None),
        (gate("rmse"), {}, "no probabilities"),
        (gate("rmse"), {"kind": "regression"}, "predictions of kind regression do not say how wrong they are"),
        (ThresholdGate(metric="calibration_error", at_most=0.1), {}, "is zero where probabilities are calibrated"),
        (gate("auc"), {"weight": "seats"}, "rows count by seats"),
        (gate("mine:error", name="mine", higher_is_better=True), {}, "mine:error is yours"),
        (gate("accuracy"), {"kind": "multiclass", "classes": ("a", "b")}, "predictions of kind multiclass"),
    ],
)
def test_of_what_nothing_can_be_expected(which: Any, changes: dict[str, Any], problem: str | None) -> None:
    found = estimate_problem(load_spec("flight_delay").model_copy(update=changes), which)
    assert (found is None) is (problem is None)
    assert (problem or "") in (found or "")
