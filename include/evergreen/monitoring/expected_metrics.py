"""What a metric is expected to be, by predictions alone, if they are calibrated. Pure.

Confidence-based performance estimation, CBPE in NannyML (Białek, Kuberski, Perrakis and Bifet 2024, "Estimating
model performance under covariate shift without labels", describe and extend it). Where a model says 0.8, four of five
labels are 1. So each row counts as label 1 with the weight of its probability, and as label 0 with the rest. Of metrics
that are means over rows this is the expectation; of ratios of sums, such as precision, and of AUC it is the value of
the expected counts, which comes near it as rows get many.

It holds while probabilities are calibrated. It follows a change of what is asked for, and sees none of what the labels
are: a model that has become wrong without knowing it is expected to be right.
"""

from __future__ import annotations

import numpy as np

from evergreen.gates.computation import label_type
from evergreen.gates.evidence import Evidence, NoChampion
from evergreen.gates.verdict import NotComputedError
from evergreen.monitoring.daily_metrics import sum_rows
from evergreen.monitoring.effect_sizes import FloatValues
from evergreen.spec.gates import MetricGate
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import PredictionType

_BY_ASSUMPTION = ("calibration_error",)


def estimate_problem(model: ModelSpec, gate: MetricGate) -> str | None:
    """Return why nothing can be expected of a gate's metric without labels, or None."""
    prediction = model.prediction_type
    if prediction and prediction.kind != "binary":
        return f"predictions of kind {prediction.kind} do not say how wrong they are: labels have to come"
    if ":" in gate.metric:
        return f"{gate.metric} is yours, and its expectation is not known"
    if label_type(gate, prediction) != "binary":
        return "predictions that are no probabilities do not say how wrong they are: labels have to come"
    if gate.metric in _BY_ASSUMPTION:
        return f"{gate.metric} is zero where probabilities are calibrated, which is what an estimate assumes"
    if model.weight:
        return f"rows count by {model.weight}, which predictions are not published with"
    return None


def expected_sums(gate: MetricGate, probabilities: FloatValues) -> tuple[float, ...] | None:
    """Return the expected sums of a gate's metric over rows (n,), as `daily_metrics`; None if it does not exist.

    Few rows are no error, as in `daily_metrics`: sums of short periods are added up.

    Raises:
        NotComputedError: they are no probabilities.
    """
    with np.errstate(invalid="ignore"):
        invalid = int((~((probabilities >= 0) & (probabilities <= 1))).sum())
    if invalid:
        raise NotComputedError(f"{invalid:,} of {probabilities.size:,} predictions are no probabilities")
    rows = probabilities.size
    evidence = Evidence(
        label=np.concatenate([np.ones(rows), np.zeros(rows)]),
        candidate=np.concatenate([probabilities, probabilities]),
        champion=NoChampion(),
        weights=np.concatenate([probabilities, 1 - probabilities]),
        prediction_type=PredictionType(kind="binary"),
    )
    return sum_rows(gate, evidence)
