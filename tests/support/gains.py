"""Gains with bounds, of rows in arrays."""

from __future__ import annotations

from evergreen.gates.clusters import RowClusters
from evergreen.gates.comparisons import MetricGain, measure_gain
from evergreen.gates.metrics import FloatArray
from evergreen.spec.gates import PairedComparisonGate


def estimate_gain(
    gate: PairedComparisonGate,
    label: FloatArray,
    candidate: FloatArray,
    reference: FloatArray,
    clusters: RowClusters,
    alpha: float,
) -> MetricGain:
    """Return the gain with bounds at `alpha`, where days are independent of one another."""
    return measure_gain(gate, label, candidate, reference, clusters).bounds(alpha, gate.scale.maximum)
