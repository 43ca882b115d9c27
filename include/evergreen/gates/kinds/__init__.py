"""The kinds of gates: each function takes a gate and the evidence, and returns the result or raises."""

from collections.abc import Callable

from evergreen.gates.kinds import groups, metric, rows, serving
from evergreen.gates.verdict import GateResult

COMPUTE: dict[str, Callable[..., GateResult]] = {
    "threshold": metric.compute_threshold,
    "against_champion": metric.compute_against_champion,
    "baseline": metric.compute_baseline,
    "custom": metric.compute_custom,
    "by_slice": groups.compute_by_slice,
    "fairness": groups.compute_fairness,
    "serving": serving.compute_serving,
    "signature": serving.compute_signature,
    "online_equals_offline": serving.compute_online_equals_offline,
    "prediction_drift": serving.compute_prediction_drift,
    "labelled": rows.compute_labelled,
    "churn": rows.compute_churn,
}
