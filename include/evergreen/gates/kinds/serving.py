"""Gates on what serving will meet: its cost, its columns, its features, and the newest rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evergreen.gates.clusters import count_clusters, parse_clusters
from evergreen.gates.computation import (
    ColumnStats,
    finite_or_none,
    format_against_limit,
    gate_result,
    prediction_shape_fault,
    to_float_array,
    to_predictions,
)
from evergreen.gates.evidence import (
    ColumnTypes,
    Evidence,
    InputSignature,
    MissingEvidence,
    OnlineSample,
    StreamedColumn,
)
from evergreen.gates.metrics import FloatArray
from evergreen.gates.score_bins import DECILES, MetricValue, binned_distance, binned_stability_index
from evergreen.gates.streams import count_scores, scan_scores, select_output
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import DAY_CLUSTER, OnlineEqualsOfflineGate, PredictionDriftGate, ServingGate, SignatureGate
from evergreen.spec.prediction_type import PredictionType

_HOLDOUT, _RECENT = "predictions for the holdout", "predictions for the most recent day"


def compute_serving(gate: ServingGate, evidence: Evidence) -> GateResult:
    """Pass when the quantity was measured and is at most `gate.at_most`, in the unit that its name ends with."""
    costs = evidence.serving_costs
    if isinstance(costs, MissingEvidence):
        raise NotComputedError(f"the cost of serving is not known: {costs.problem}")
    if not isinstance(costs, Mapping):
        raise NotComputedError("the costs of serving are not a mapping of quantities")
    if gate.quantity not in costs:
        measured = ", ".join(sorted(map(str, costs))) or "nothing"
        raise NotComputedError(f"{gate.quantity} was not measured, but {measured}")
    value = finite_or_none(costs[gate.quantity])
    if value is None or value < 0:
        raise NotComputedError(f"{gate.quantity} was measured as {costs[gate.quantity]!r}")
    reason = f"{gate.quantity} is {format_against_limit(value, gate.at_most)}, at most {gate.at_most:g} is required"
    return gate_result(gate, passed=value <= gate.at_most, candidate=value, rows=0, reason=reason)


def compute_signature(gate: SignatureGate, evidence: Evidence) -> GateResult:
    """Pass when both list the same columns with the same types in the same order.

    The candidate's value is the number of columns that are missing, extra, of another type or in another place;
    the reason names each. Rows are the columns that the model takes.
    """
    signature = evidence.input_signature
    if isinstance(signature, MissingEvidence):
        raise NotComputedError(f"the inputs of the model and of serving are not known: {signature.problem}")
    if not isinstance(signature, InputSignature):
        raise NotComputedError("the inputs of the model and of serving are not a signature")
    model, serving = _parse_columns(signature.model_columns), _parse_columns(signature.serving_columns)
    faults = _column_faults("the model", model) + _column_faults("serving", serving)
    if faults or model is None or serving is None:
        raise NotComputedError(*faults, rows=len(model or ()))
    differences = _column_differences(model, serving)
    equal = f"serving gives what the model takes, in order and type: {len(model)} columns"
    reason = "; ".join(differences.values()) or equal
    return gate_result(gate, passed=not differences, candidate=len(differences), rows=len(model), reason=reason)


def _column_differences(model: ColumnTypes, serving: ColumnTypes) -> dict[str, str]:
    """Return a sentence for each column that differs; empty only when both are equal."""
    model_types, serving_types = dict(model), dict(serving)
    faults = {name: f"{name} ({type_}) is missing from serving" for name, type_ in model if name not in serving_types}
    faults |= {name: f"{name} ({type_}) is extra in serving" for name, type_ in serving if name not in model_types}
    for name, type_ in model:
        if name in serving_types and serving_types[name] != type_:
            faults[name] = f"{name} is {type_} for the model and {serving_types[name]} in serving"
    # A missing or extra column shifts those behind it: places count among the columns that both have.
    model_order = [name for name, _ in model if name in serving_types]
    serving_order = [name for name, _ in serving if name in model_types]
    blocks = SequenceMatcher(None, model_order, serving_order, autojunk=False).get_matching_blocks()
    in_order = {name for block in blocks for name in model_order[block.a : block.a + block.size]}
    places = {name: place for place, (name, _) in enumerate(serving, 1)}
    for place, (name, _) in enumerate(model, 1):
        if name in serving_types and name not in in_order:
            text = f"column {place} for the model and {places[name]} in serving"
            faults[name] = f"{faults[name]}, and {text}" if name in faults else f"{name} is {text}"
    return faults


def _parse_columns(columns: object) -> ColumnTypes | None:
    if not isinstance(columns, tuple | list):
        return None
    for column in columns:
        if not (isinstance(column, tuple | list) and len(column) == 2 and all(isinstance(x, str) for x in column)):
            return None
    return tuple((name, type_) for name, type_ in columns)


def _column_faults(source: str, columns: ColumnTypes | None) -> list[str]:
    if columns is None:
        return [f"the inputs of {source} are not names and types of columns"]
    if not columns:
        return [f"{source} lists no columns"]
    counts = Counter(name for name, _ in columns)
    return [f"{source} lists {name} {n} times" for name, n in counts.items() if n > 1]


def compute_online_equals_offline(gate: OnlineEqualsOfflineGate, evidence: Evidence) -> GateResult:
    """Pass when at most the share `gate.at_most` of the compared feature values differ. Rows are values compared."""
    sample = evidence.online_sample
    if isinstance(sample, MissingEvidence):
        raise NotComputedError(f"the online store was not compared with the offline one: {sample.problem}")
    if not isinstance(sample, OnlineSample) or not all(
        map(_is_count, (sample.value_count, sample.mismatch_count, sample.expired_count, sample.changed_count))
    ):
        raise NotComputedError("the comparison of the online store with the offline one has no counts")
    values, mismatches, example = int(sample.value_count), int(sample.mismatch_count), sample.first_mismatch
    if not values:
        raise NotComputedError("no feature value was compared: nothing is known of the online store")
    expired, changed = int(sample.expired_count), int(sample.changed_count)
    if mismatches + expired > values or changed > expired:
        counts = f"{mismatches:,} different, {expired:,} expired and {changed:,} changed ones"
        raise NotComputedError(
            f"{counts} of {values:,} compared feature values are more than were compared", rows=values
        )
    if gate.expired == "differ":
        mismatches, example = mismatches + expired, example or _expired_advice(sample.first_expired)
    elif gate.expired == "last_value":
        mismatches, example = mismatches + changed, example or sample.first_changed
    share = mismatches / values
    reason = f"{mismatches:,} of {values:,} feature values differ online from offline"
    if mismatches:
        reason += f", a share of {format_against_limit(share, gate.at_most)}"
    reason += f" (at most {gate.at_most:g} is allowed)"
    if sample.moment:
        reason += f", for {sample.moment}"
    if expired:
        rule = {"differ": "differ", "missing": "the server leaves out", "last_value": "may be served"}[gate.expired]
        reason += f"; {expired:,} older than the ttl of their view {rule}"
    if mismatches and example:
        reason += f"; the first: {example}"
    return gate_result(gate, passed=share <= gate.at_most, candidate=share, rows=values, reason=reason)


def _expired_advice(description: str) -> str:
    if not description:
        return ""
    return (
        f"{description}; say by `expired` of this gate whether the server leaves such a value out ('missing') or "
        "serves it on purpose ('last_value')"
    )


def _is_count(number: object) -> bool:
    return hasattr(number, "__index__") and not isinstance(number, bool) and int(number) >= 0


def compute_prediction_drift(gate: PredictionDriftGate, evidence: Evidence) -> GateResult:
    """Pass when the drift from the holdout to the recent day is at most `gate.at_most`. Rows are recent ones.

    The reason also states how far the days of the holdout lie from one another: without drift, the recent day is one
    more of them. It does not change the outcome.

    Of several numbers per row, such as the probabilities of classes, each is compared, and the largest drift decides.
    """
    if evidence.prediction_type and evidence.prediction_type.outputs:
        return _compute_largest_drift(gate, evidence, evidence.prediction_type)
    if any(isinstance(column, StreamedColumn) for column in (evidence.candidate, evidence.recent_predictions)):
        return _compute_streamed_drift(gate, evidence)
    holdout = to_float_array(evidence.candidate)
    faults = _prediction_faults(_HOLDOUT, _stats(holdout), gate.min_rows)
    recent = None
    if isinstance(evidence.recent_predictions, MissingEvidence):
        faults.append(_missing_recent_fault(evidence.recent_predictions))
    else:
        recent = to_float_array(evidence.recent_predictions)
        faults += _prediction_faults(_RECENT, _stats(recent), gate.min_rows)
    if faults or holdout is None or recent is None:
        raise NotComputedError(*faults, rows=0 if recent is None else recent.size)

    statistic = psi if gate.statistic == "psi" else ks
    drift = MetricValue(statistic(holdout, recent))
    by_day = _describe_daily_drift(statistic, holdout, evidence)
    return _drift_result(gate, drift, holdout.size, recent.size, by_day)


def _compute_largest_drift(gate: PredictionDriftGate, evidence: Evidence, prediction: PredictionType) -> GateResult:
    """Return the result of the output with the largest drift, which is named."""
    columns: list[Any] = []
    for column in (evidence.candidate, evidence.recent_predictions):
        if not isinstance(column, StreamedColumn | MissingEvidence):
            predictions = to_predictions(column, prediction)
            if predictions is None:
                raise NotComputedError(prediction_shape_fault("candidate", prediction))
            columns.append(predictions)
        else:
            columns.append(column)
    results = {}
    for number, output in enumerate(prediction.outputs):
        candidate = select_output(columns[0], number)
        recent = columns[1] if isinstance(columns[1], MissingEvidence) else select_output(columns[1], number)
        if _are_one_value(candidate, recent):  # such as 0, of a class that is hardly ever predicted
            continue
        single = replace(evidence, candidate=candidate, recent_predictions=recent, prediction_type=None)
        try:
            results[output] = compute_prediction_drift(gate, single)
        except NotComputedError as error:
            if isinstance(evidence.recent_predictions, MissingEvidence):
                raise  # the same for each
            raise NotComputedError(f"{output}: {error}", **error.fields) from None
    if not results:
        raise NotComputedError("all predictions are the same: a constant has no distribution")
    largest = max(
        results, key=lambda output: (results[output].outcome == "failed", results[output].candidate or 0.0, output)
    )
    noun = "classes" if prediction.kind == "multiclass" else "quantiles"
    text = f"of {len(results)} {noun} {largest} differs most: {results[largest].reason}"
    return results[largest].model_copy(update={"reason": text})


def _are_one_value(candidate: Any, recent: Any) -> bool:
    """Return whether both are in memory, and all numbers of both are the same."""
    arrays = [column for column in (candidate, recent) if isinstance(column, np.ndarray) and column.size]
    return len(arrays) == 2 and len({float(limit) for array in arrays for limit in (array.min(), array.max())}) == 1


def _drift_result(
    gate: PredictionDriftGate, drift: MetricValue, holdout_rows: int, recent_rows: int, by_day: str
) -> GateResult:
    samples = f"{holdout_rows:,} predictions of the holdout and {recent_rows:,} of the most recent day"
    text = format_against_limit(drift.value, gate.at_most) + drift.describe_error()
    return gate_result(
        gate,
        passed=drift.value + drift.error <= gate.at_most,
        candidate=drift.value,
        rows=recent_rows,
        reason=f"{gate.statistic} {text} between {samples}, at most {gate.at_most:g} is allowed{by_day}",
    )


def _compute_streamed_drift(gate: PredictionDriftGate, evidence: Evidence) -> GateResult:
    """Return the result from counts in bins of the holdout's predictions: its tenths end where bins do."""
    if isinstance(evidence.recent_predictions, MissingEvidence):
        stats, _ = scan_scores(evidence.candidate)
        faults = _prediction_faults(_HOLDOUT, stats, gate.min_rows)
        raise NotComputedError(*faults, _missing_recent_fault(evidence.recent_predictions), rows=0)
    holdout_stats, bins = scan_scores(evidence.candidate)
    recent_stats, _ = scan_scores(evidence.recent_predictions)
    faults = _prediction_faults(_HOLDOUT, holdout_stats, gate.min_rows)
    faults += _prediction_faults(_RECENT, recent_stats, gate.min_rows)
    if faults:
        raise NotComputedError(*faults, rows=recent_stats.size)
    day = evidence.clusters.get(DAY_CLUSTER) if isinstance(evidence.clusters, Mapping) else None
    by_day = count_scores(bins, evidence.candidate, day)
    holdout, recent = by_day.sum(axis=0), count_scores(bins, evidence.recent_predictions)[0]
    statistic = binned_stability_index if gate.statistic == "psi" else binned_distance
    text = ""
    if len(by_day) > 1:
        with suppress(NotComputedError):  # it changes no outcome
            largest = max(statistic(holdout - rows, rows).value for rows in by_day)
            text = _daily_drift_text(len(by_day), largest)
    return _drift_result(gate, statistic(holdout, recent), holdout_stats.size, recent_stats.size, text)


def _describe_daily_drift(
    statistic: Callable[[FloatArray, FloatArray], float], holdout: FloatArray, evidence: Evidence
) -> str:
    """Return the part of a sentence about the drift of each day of the holdout from the others; empty if unknown.

    Of days that are alike, with their weather, the newest is the most distant of k + 1 with a chance of 1 in k + 1. A
    distribution for independent rows would promise far less: rows of a day differ together.
    """
    clusters, faults = parse_clusters(evidence, holdout.size)
    if faults or DAY_CLUSTER not in clusters.names:
        return ""
    codes = clusters.codes[clusters.names.index(DAY_CLUSTER)]
    count = int(codes.max()) + 1
    if count < 2:
        return ""
    return _daily_drift_text(
        count, max(statistic(holdout[codes != day], holdout[codes == day]) for day in range(count))
    )


def _daily_drift_text(days: int, largest: float) -> str:
    text = f"of the holdout's own {count_clusters(DAY_CLUSTER, days)} each differs from the others by up to"
    return f"; {text} {largest:.2g}, and without drift one more would exceed that about once in {days + 1}"


def psi(holdout: FloatArray, recent: FloatArray) -> float:
    """Return the population stability index between (n,) and (m,) predictions.

    Σ (pᵢ - qᵢ) ln(pᵢ / qᵢ) over the tenths of the holdout's predictions, where pᵢ is the share of the recent ones
    that fall into the i-th and qᵢ that of the holdout (Siddiqi 2006, "Credit risk scorecards", Wiley). Equal
    predictions share a tenth, so there may be fewer than ten. A tenth without recent rows counts as half a row, for
    the logarithm of nothing is infinite (the half of Haldane 1956, Annals of Human Genetics 20:309-311). A fixed
    small share, such as 0.0001, is often put there: then that choice weighs more than the rows do.
    """
    cuts = np.unique(np.quantile(holdout, np.arange(1, DECILES) / DECILES, method="inverted_cdf"))
    cuts = cuts[cuts < holdout.max()]  # nothing of the holdout lies above its largest
    holdout_counts, recent_counts = (
        np.bincount(np.searchsorted(cuts, predictions, side="left"), minlength=cuts.size + 1)
        for predictions in (holdout, recent)
    )
    return stability_index(holdout_counts, recent_counts)


def stability_index(holdout_counts: NDArray[np.integer], recent_counts: NDArray[np.integer]) -> float:
    """Return the index from the (bins,) rows in each bin; a bin without rows counts as half a row."""
    expected, actual = (np.maximum(rows, 0.5) / rows.sum() for rows in (holdout_counts, recent_counts))
    return float(((actual - expected) * np.log(actual / expected)).sum())


def ks(holdout: FloatArray, recent: FloatArray) -> float:
    """Return the largest distance between the two distribution functions.

    The two-sample statistic of Kolmogorov and Smirnov (Smirnov 1948, Annals of Mathematical Statistics
    19:279-281), by scipy.
    """
    return float(stats.ks_2samp(holdout, recent, method="asymp").statistic)


def _stats(predictions: FloatArray | None) -> ColumnStats | None:
    return None if predictions is None else ColumnStats.from_array(predictions)


def _missing_recent_fault(missing: MissingEvidence) -> str:
    return f"there are no predictions for the most recent day: {missing.problem}"


def _prediction_faults(description: str, predictions: ColumnStats | None, min_rows: int) -> list[str]:
    if predictions is None:
        return [f"the {description} are not one row of numbers"]
    faults = []
    if predictions.size < min_rows:
        faults.append(f"{predictions.size:,} {description} are too few, at least {min_rows:,} are needed")
    if predictions.infinite:
        faults.append(f"{predictions.infinite:,} of the {predictions.size:,} {description} are NaN or infinite")
    elif predictions.size and predictions.low == predictions.high:
        faults.append(f"all {predictions.size:,} {description} are {predictions.low:g}")
    return faults
