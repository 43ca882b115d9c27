"""The candidate's newest predictions are distributed like those that it was judged on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evergreen.gates.computation import format_against_limit, gate_result, to_float_array
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import PredictionDriftGate

DECILES = 10


def compute(gate: PredictionDriftGate, evidence: Evidence) -> GateResult:
    """Pass when the drift from the holdout to the recent day is at most `gate.at_most`. Rows are recent ones.

    The reason also states what chance alone stays below on 95 of 100 days without any drift: with few rows that may be
    more than `at_most`. It does not change the outcome.
    """
    holdout = to_float_array(evidence.candidate)
    faults = _prediction_faults("predictions for the holdout", holdout, gate.min_rows)
    recent = None
    if isinstance(evidence.recent_predictions, MissingEvidence):
        faults.append(f"there are no predictions for the most recent day: {evidence.recent_predictions.problem}")
    else:
        recent = to_float_array(evidence.recent_predictions)
        faults += _prediction_faults("predictions for the most recent day", recent, gate.min_rows)
    if faults or holdout is None or recent is None:
        raise NotComputedError(*faults, rows=0 if recent is None else recent.size)

    drift, chance_limit = psi(holdout, recent) if gate.statistic == "psi" else ks(holdout, recent)
    samples = f"{holdout.size:,} predictions of the holdout and {recent.size:,} of the most recent day"
    return gate_result(
        gate,
        passed=drift <= gate.at_most,
        candidate=drift,
        rows=recent.size,
        reason=f"{gate.statistic} {format_against_limit(drift, gate.at_most)} between {samples}, "
        f"at most {gate.at_most:g} is allowed; without drift it stays below {chance_limit:.2g} on 95 of 100 days",
    )


def psi(holdout: FloatArray, recent: FloatArray) -> tuple[float, float]:
    """Return the population stability index between (n,) and (m,) predictions, and its 95 % quantile without drift.

    Σ (pᵢ - qᵢ) ln(pᵢ / qᵢ) over the tenths of the holdout's predictions, where pᵢ is the share of the recent ones
    that fall into the i-th and qᵢ that of the holdout (Siddiqi 2006, "Credit risk scorecards", Wiley). Equal
    predictions share a tenth, so there may be fewer than ten. A tenth without recent rows counts as half a row, for
    the logarithm of nothing is infinite (the half of Haldane 1956, Annals of Human Genetics 20:309-311). A fixed
    small share, such as 0.0001, is often put there: then that choice weighs more than the rows do.

    Without drift, the index divided by (1/n + 1/m) follows about the χ² distribution with one degree of freedom less
    than there are tenths (Yurdakul and Naranjo 2020, Journal of Risk Model Validation 14(4):89-100).
    """
    cuts = np.unique(np.quantile(holdout, np.arange(1, DECILES) / DECILES, method="inverted_cdf"))
    cuts = cuts[cuts < holdout.max()]  # nothing of the holdout lies above its largest
    holdout_counts, recent_counts = (
        np.bincount(np.searchsorted(cuts, predictions, side="left"), minlength=cuts.size + 1)
        for predictions in (holdout, recent)
    )
    chance = float(stats.chi2.ppf(0.95, cuts.size)) * (1 / holdout.size + 1 / recent.size)
    return stability_index(holdout_counts, recent_counts), chance


def stability_index(holdout_counts: NDArray[np.integer], recent_counts: NDArray[np.integer]) -> float:
    """Return the index from the (bins,) rows in each bin; a bin without rows counts as half a row."""
    expected, actual = (np.maximum(rows, 0.5) / rows.sum() for rows in (holdout_counts, recent_counts))
    return float(((actual - expected) * np.log(actual / expected)).sum())


def ks(holdout: FloatArray, recent: FloatArray) -> tuple[float, float]:
    """Return the largest distance between the two distribution functions, and its 95 % quantile without drift.

    The two-sample statistic of Kolmogorov and Smirnov (Smirnov 1948, Annals of Mathematical Statistics
    19:279-281), by scipy; the quantile is that of the limiting distribution, times √(1/n + 1/m).
    """
    distance = float(stats.ks_2samp(holdout, recent, method="asymp").statistic)
    return distance, float(stats.kstwobign.ppf(0.95)) * float(np.sqrt(1 / holdout.size + 1 / recent.size))


def _prediction_faults(description: str, predictions: FloatArray | None, min_rows: int) -> list[str]:
    if predictions is None:
        return [f"the {description} are not one row of numbers"]
    faults = []
    if predictions.size < min_rows:
        faults.append(f"{predictions.size:,} {description} are too few, at least {min_rows:,} are needed")
    if invalid := int(np.count_nonzero(~np.isfinite(predictions))):
        faults.append(f"{invalid:,} of the {predictions.size:,} {description} are NaN or infinite")
    elif predictions.size and predictions.min() == predictions.max():
        faults.append(f"all {predictions.size:,} {description} are {predictions[0]:g}")
    return faults
