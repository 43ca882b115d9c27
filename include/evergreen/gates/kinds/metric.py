"""Gates on a metric of all rows: a limit, the champion, a trivial model; and functions of the model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pkgutil import resolve_name

import numpy as np

from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.gates.clusters import parse_clusters
from evergreen.gates.comparisons import check_differing_rows, estimate_gain, measure_gain
from evergreen.gates.computation import (
    compute_gate_metric,
    count_rows,
    finite_or_none,
    format_against_limit,
    gate_result,
    no_champion_result,
    validate_rows,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.gates.looks import JudgedGain, judge_gain
from evergreen.gates.metrics import FloatArray, user_code
from evergreen.gates.verdict import CustomGateResult, GateResult, NotComputedError, SliceResult
from evergreen.spec.gates import AgainstChampionGate, BaselineGate, CustomGate, MetricGate, ThresholdGate

_PURPOSES = {"lifetime": "of the lifetime budget", "rate": "for a rate of"}


def compute_threshold(gate: ThresholdGate, evidence: Evidence) -> GateResult:
    """Pass when the metric on the holdout reaches `at_least`, or stays within `at_most`, to the last bit."""
    label, _, value = _measure_candidate(gate, evidence)
    if gate.scale.higher_is_better:
        passed, bound = value >= gate.limit, "at least"
    else:
        passed, bound = value <= gate.limit, "at most"
    text = format_against_limit(value, gate.limit)
    reason = f"{gate.metric} {text} on {label.size:,} rows, {bound} {gate.limit} is required"
    return gate_result(gate, passed=passed, candidate=value, rows=label.size, reason=reason)


def compute_against_champion(
    gate: AgainstChampionGate,
    evidence: Evidence,
    earlier_comparisons: Sequence[EarlierComparison],
    accumulates: bool = False,
    previous: GateResult | None = None,
) -> GateResult:
    """Pass when the lower bound of the gain reaches the gate's limit; pass at once while there is no champion.

    The bound's level is what `earlier_comparisons` have left of the gate's budget. A comparison that is not computed
    spends nothing: it cannot pass. If it `accumulates`, that is divided among its looks, of which `previous` was the
    one before, and the outcome is inconclusive as long as later looks may suffice.
    """
    label, candidate, value = _measure_candidate(gate, evidence)
    if isinstance(evidence.champion, NoChampion):
        return no_champion_result(gate, evidence.champion, value, label.size)
    if isinstance(evidence.champion, MissingEvidence):
        raise NotComputedError(f"the champion cannot be compared: {evidence.champion.problem}", candidate=value)
    (*_, champion), faults = validate_rows(gate, evidence, {"champion": evidence.champion})
    clusters, cluster_faults = parse_clusters(evidence, label.size)
    faults += cluster_faults
    if evidence.days is None:
        faults.append("the evidence does not say of which days it is: earlier comparisons may have used them")
    elif not evidence.days[0] < evidence.days[1]:
        faults.append("the evidence is of no day: it starts {} and ends before {}".format(*evidence.days))
    if faults or evidence.days is None:
        raise NotComputedError(*faults, candidate=value)
    champion_value = compute_gate_metric(gate, label, champion)
    if champion_value is None:
        raise NotComputedError(f"the champion has no {gate.metric} on {label.size:,} rows", candidate=value)
    days = clusters.days or (evidence.days[1] - evidence.days[0]).days
    try:
        check_differing_rows(gate, candidate, champion, "the two")
        estimate = measure_gain(gate, label, candidate, champion, clusters)
        look = judge_gain(gate, estimate, evidence.days, days, earlier_comparisons, accumulates, previous)
    except NotComputedError as error:
        raise NotComputedError(str(error), candidate=value, champion=champion_value) from None
    return gate_result(
        gate,
        passed=look.outcome == "passed",
        candidate=value,
        champion=champion_value,
        interval=(look.gain.low, look.gain.high),
        alpha=look.alpha,
        rows=label.size,
        days=clusters.days,
        day_correlation=estimate.day_correlation,
        looks=look.looks,
        reason=f"{gate.metric} {value:.4g} against the champion's {champion_value:.4g} on {label.size:,} rows of "
        f"{clusters.describe()}: "
        f"{_describe_gain(gate, look.gain.low, look.outcome == 'passed')}; {_describe_spending(gate, look)}",
        **({"outcome": "inconclusive"} if look.outcome == "inconclusive" else {}),
    )


def _describe_spending(gate: AgainstChampionGate, comparison: JudgedGain) -> str:
    budget = f"spends {comparison.alpha:.3g} {_PURPOSES[gate.guarantee]} {1 - gate.confidence:.3g}"
    if not comparison.looks:
        return budget
    look = comparison.looks[-1]
    end = {
        "passed": "it suffices",
        "inconclusive": f"it goes on, up to {comparison.last_day} days",
        "failed": "it cannot suffice any more" if look.days < comparison.last_day else "no days are left",
    }[comparison.outcome]
    number = len(comparison.looks)
    return f"{budget}, {look.level:.3g} of it at look {number}, after {look.days} days: {end}"


def _measure_candidate(gate: MetricGate, evidence: Evidence) -> tuple[FloatArray, FloatArray, float]:
    """Return labels, the candidate's predictions, both of shape (n,), and its metric.

    Raises:
        NotComputedError: the rows are invalid, or the metric does not exist on them.
    """
    (label, candidate), faults = validate_rows(gate, evidence, {})
    if faults:
        raise NotComputedError(*faults)
    value = compute_gate_metric(gate, label, candidate)
    if value is None:
        raise NotComputedError(f"the candidate has no {gate.metric} on {label.size:,} rows")
    return label, candidate, value


def _describe_gain(gate: AgainstChampionGate, low: float, passed: bool) -> str:
    """Describe the lower bound, with the number on its own side of the limit."""
    size = format_against_limit(abs(low), gate.margin)
    if gate.must_be == "better" and not passed:
        required = f"at least {gate.margin} better" if gate.margin else "better"
        bound = f"only {size} better" if low > 0 else f"up to {size} worse" if low < 0 else "no better"
        return f"it must be {required}, and may be {bound}"
    if low > 0:
        return f"it is at least {size} better"
    if low == 0:
        return "it is no worse"
    return f"it {'is at most' if passed else 'may be up to'} {size} worse ({gate.margin} is allowed)"


def compute_baseline(gate: BaselineGate, evidence: Evidence) -> GateResult:
    """Pass when the lower bound of the gain over the baseline is above 0, at `gate.confidence`.

    The only slice is the baseline: its name and, as `candidate`, the value that it has in the candidate's place.
    Unlike a candidate it may predict the same for every row.
    """
    baselines = evidence.baselines if isinstance(evidence.baselines, Mapping) else {}
    predictions = baselines.get(gate.baseline, MissingEvidence("its predictions were not computed"))
    if isinstance(predictions, MissingEvidence):
        _, faults = validate_rows(gate, evidence, {})
        raise NotComputedError(*faults, f"there is no baseline {gate.baseline}: {predictions.problem}")
    references = {f"baseline {gate.baseline}": predictions}
    (label, candidate, baseline), faults = validate_rows(gate, evidence, references, allow_constant=True)
    clusters, cluster_faults = parse_clusters(evidence, label.size)
    faults += cluster_faults
    if faults:
        raise NotComputedError(*faults)
    value, baseline_value = (compute_gate_metric(gate, label, scores) for scores in (candidate, baseline))
    if value is None or baseline_value is None:
        raise NotComputedError(f"{gate.metric} does not exist for both on these {label.size:,} rows")
    check_differing_rows(gate, candidate, baseline, f"the candidate and {gate.baseline}")
    gain = estimate_gain(gate, label, candidate, baseline, clusters, 1 - gate.confidence)
    passed = gain.low > 0
    values = f"{gate.metric} {value:.4g} against {baseline_value:.4g} of {gate.baseline} on {label.size:,} rows "
    values += f"of {clusters.describe()}"
    finding = f"it is at least {gain.low:.4g} better" if passed else "it is not shown to be better"
    return gate_result(
        gate,
        passed=passed,
        candidate=value,
        interval=(gain.low, gain.high),
        rows=label.size,
        slices=(SliceResult(name=gate.baseline, rows=label.size, candidate=baseline_value, is_judged=True),),
        reason=f"{values}: at {100 * gate.confidence:g} % confidence {finding}",
    )


def compute_custom(gate: CustomGate, evidence: Evidence) -> GateResult:
    """Return the result of `gate.function`; not computed if it cannot be imported, raises, or returns no valid result.

    The function receives a copy of the evidence: no other gate sees what it changes there. Its author is responsible
    for an answer that does not depend on the order of rows.
    """
    with user_code(gate.function):
        result = resolve_name(gate.function)(deepcopy(evidence))
    if not isinstance(result, CustomGateResult):
        returned = type(result).__name__
        raise NotComputedError(f"{gate.function} returned {returned}, not an evergreen.gates.CustomGateResult")
    value, threshold = finite_or_none(result.value), finite_or_none(result.threshold)
    faults = []
    if not isinstance(result.passed, bool | np.bool_):
        faults.append(f"passed is {result.passed!r}, neither True nor False")
    if value is None:
        faults.append(f"value is {result.value!r}, not a finite number")
    if threshold is None:
        faults.append(f"threshold is {result.threshold!r}, not a finite number")
    if not isinstance(result.reason, str) or not result.reason.strip():
        faults.append("there is no reason")
    if faults or threshold is None:
        raise NotComputedError(f"{gate.function} returned an invalid CustomGateResult: {', '.join(faults)}")
    return gate_result(
        gate,
        passed=result.passed,
        candidate=value,
        threshold=threshold,
        rows=count_rows(gate, evidence),
        reason=result.reason.strip(),
    )
