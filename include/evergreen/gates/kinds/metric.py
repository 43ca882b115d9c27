"""Gates on a metric of all rows: a limit, the champion, a trivial model; and functions of the model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pkgutil import resolve_name

import numpy as np

from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.gates.comparisons import check_differing_rows
from evergreen.gates.computation import (
    count_rows,
    finite_or_none,
    format_against_limit,
    gate_result,
    no_champion_result,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion, StreamedColumn
from evergreen.gates.judged_rows import JudgedRows, open_rows
from evergreen.gates.looks import JudgedGain, judge_gain
from evergreen.gates.metrics import user_code
from evergreen.gates.score_bins import MetricValue
from evergreen.gates.streams import exact_rows_fix
from evergreen.gates.verdict import CustomGateResult, GateResult, NotComputedError, SliceResult
from evergreen.spec.gates import AgainstChampionGate, BaselineGate, CustomGate, MetricGate, ThresholdGate

_PURPOSES = {"lifetime": "of the lifetime budget", "rate": "for a rate of"}


def compute_threshold(gate: ThresholdGate, evidence: Evidence) -> GateResult:
    """Pass when the metric on the holdout reaches `at_least`, or stays within `at_most`, to the last bit.

    Of streamed rows a rank metric is known to within an error: it has to pass in any case.
    """
    rows = open_rows(gate, evidence)
    measured = _measure_candidate(gate, rows)
    if gate.scale.higher_is_better:
        passed, bound = measured.value - measured.error >= gate.limit, "at least"
    else:
        passed, bound = measured.value + measured.error <= gate.limit, "at most"
    text = format_against_limit(measured.value, gate.limit) + measured.describe_error()
    reason = f"{gate.metric} {text} on {rows.size:,} rows, {bound} {gate.limit} is required"
    return gate_result(gate, passed=passed, candidate=measured.value, rows=rows.size, reason=reason)


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
    is_known = not isinstance(evidence.champion, NoChampion | MissingEvidence)
    rows = open_rows(gate, evidence, {"champion": evidence.champion} if is_known else {})
    value = _measure_candidate(gate, rows).value
    if isinstance(evidence.champion, NoChampion):
        return no_champion_result(gate, evidence.champion, value, rows.size)
    if isinstance(evidence.champion, MissingEvidence):
        raise NotComputedError(f"the champion cannot be compared: {evidence.champion.problem}", candidate=value)
    faults = rows.faults("champion") + rows.cluster_faults()
    if evidence.days is None:
        faults.append("the evidence does not say of which days it is: earlier comparisons may have used them")
    elif not evidence.days[0] < evidence.days[1]:
        faults.append("the evidence is of no day: it starts {} and ends before {}".format(*evidence.days))
    if faults or evidence.days is None:
        raise NotComputedError(*faults, candidate=value)
    measured = rows.metric("champion")
    if measured is None:
        raise NotComputedError(f"the champion has no {gate.metric} on {rows.size:,} rows", candidate=value)
    champion_value, clusters = measured.value, rows.clusters
    days = clusters.days or (evidence.days[1] - evidence.days[0]).days
    try:
        check_differing_rows(gate, rows.count_differing("champion"), rows.size, "the two")
        estimate = rows.measure_gain("champion")
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
        rows=rows.size,
        days=clusters.days,
        day_correlation=estimate.day_correlation,
        looks=look.looks,
        reason=f"{gate.metric} {value:.4g} against the champion's {champion_value:.4g} on {rows.size:,} rows of "
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


def _measure_candidate(gate: MetricGate, rows: JudgedRows) -> MetricValue:
    """Return the candidate's metric.

    Raises:
        NotComputedError: the rows are invalid, or the metric does not exist on them.
    """
    if faults := rows.faults():
        raise NotComputedError(*faults)
    measured = rows.metric("candidate")
    if measured is None:
        raise NotComputedError(f"the candidate has no {gate.metric} on {rows.size:,} rows")
    return measured


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
        faults = open_rows(gate, evidence).faults()
        raise NotComputedError(*faults, f"there is no baseline {gate.baseline}: {predictions.problem}")
    reference = f"baseline {gate.baseline}"
    rows = open_rows(gate, evidence, {reference: predictions})
    if faults := rows.faults(reference, allow_constant=True) + rows.cluster_faults():
        raise NotComputedError(*faults)
    values = [rows.metric(scorer) for scorer in ("candidate", reference)]
    if values[0] is None or values[1] is None:
        raise NotComputedError(f"{gate.metric} does not exist for both on these {rows.size:,} rows")
    value, baseline_value = values[0].value, values[1].value
    check_differing_rows(gate, rows.count_differing(reference), rows.size, f"the candidate and {gate.baseline}")
    gain = rows.measure_gain(reference).bounds(1 - gate.confidence, gate.scale.maximum)
    passed = gain.low > 0
    comparison = f"{gate.metric} {value:.4g} against {baseline_value:.4g} of {gate.baseline} on {rows.size:,} rows "
    comparison += f"of {rows.clusters.describe()}"
    finding = f"it is at least {gain.low:.4g} better" if passed else "it is not shown to be better"
    return gate_result(
        gate,
        passed=passed,
        candidate=value,
        interval=(gain.low, gain.high),
        rows=rows.size,
        slices=(SliceResult(name=gate.baseline, rows=rows.size, candidate=baseline_value, is_judged=True),),
        reason=f"{comparison}: at {100 * gate.confidence:g} % confidence {finding}",
    )


def compute_custom(gate: CustomGate, evidence: Evidence) -> GateResult:
    """Return the result of `gate.function`; not computed if it cannot be imported, raises, or returns no valid result.

    The function receives a copy of the evidence: no other gate sees what it changes there. Its author is responsible
    for an answer that does not depend on the order of rows.
    """
    if isinstance(evidence.label, StreamedColumn):
        rows = evidence.label.rows.count
        text = f"{gate.function} takes all evidence at once, and {rows:,} rows are read in batches"
        raise NotComputedError(f"{text}: take a gate of another kind, or {exact_rows_fix(rows)}")
    columns = evidence.columns if isinstance(evidence.columns, Mapping) else {}
    named = {name: columns.get(name, MissingEvidence("it was not collected")) for name in gate.columns}
    faults = [
        f"the column {name} is not known: {column.problem}"
        for name, column in named.items()
        if isinstance(column, MissingEvidence)
    ]
    if faults:
        raise NotComputedError(*faults)
    with user_code(gate.function):
        result = resolve_name(gate.function)(deepcopy(evidence))
    if not isinstance(result, CustomGateResult):
        returned = type(result).__name__
        raise NotComputedError(f"{gate.function} returned {returned}, not an evergreen.gates.CustomGateResult")
    value, threshold = finite_or_none(result.value), finite_or_none(result.threshold)
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
