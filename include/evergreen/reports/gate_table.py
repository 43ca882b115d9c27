"""The gate table: the same columns and numbers in the gate report, the terminal and the approval form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from evergreen.gates.verdict import GateResult, Verdict
from evergreen.reports.formatting import NO_VALUE, format_interval, format_limit, format_number, format_outcome
from evergreen.spec import gates as gate_specs
from evergreen.spec.gates import Gate

GATE_COLUMNS = ("gate", "candidate", "champion, baseline", "interval", "threshold", "outcome", "reason")


class GateRow(NamedTuple):
    """The cells of one gate as text, in the order of `GATE_COLUMNS`."""

    gate: str
    candidate: str
    reference: str
    interval: str
    threshold: str
    outcome: str
    reason: str


def gate_rows(verdict: Verdict, gates: Iterable[Gate] = ()) -> list[GateRow]:
    """Return a row per result of the verdict.

    `gates` are the specs that were evaluated: they tell lower limits from upper ones, and name the baseline. A result
    whose spec is not among them is shown without.
    """
    gates_by_name = {gate.name: gate for gate in gates}
    rows = []
    for result in verdict.results:
        gate = gates_by_name.get(result.gate)
        sign = _threshold_sign(gate)
        rows.append(
            GateRow(
                result.gate,
                format_number(result.candidate),
                format_number(reference_value(result, gate)),
                format_interval(result.interval),
                sign + format_limit(result.threshold) if sign or result.threshold else NO_VALUE,
                format_outcome(result.outcome),
                result.reason,
            )
        )
    return rows


def gate_markdown_table(verdict: Verdict, gates: Iterable[Gate] = ()) -> str:
    """Return the gate table in Markdown."""
    # A bar or a line break in a cell would end it.
    rows = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in gate_rows(verdict, gates)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (GATE_COLUMNS, ["---"] * len(GATE_COLUMNS), *rows))


def _threshold_sign(gate: Gate | None) -> str:
    if isinstance(gate, gate_specs.PairedComparisonGate) or (
        isinstance(gate, gate_specs.ThresholdGate | gate_specs.LabelledGate) and gate.at_least is not None
    ):
        return "≥ "
    return "" if isinstance(gate, gate_specs.SignatureGate | gate_specs.CustomGate | None) else "≤ "


def reference_value(result: GateResult, gate: Gate | None) -> float | None:
    """Return what the candidate was compared with: the champion's value, or the baseline's."""
    if isinstance(gate, gate_specs.BaselineGate) and len(result.slices) == 1:
        return result.slices[0].candidate
    return result.champion


def metric_label(gate: gate_specs.MetricGate) -> str:
    """Return the metric with its cut, quantile, recall or k."""
    if gate.k is not None:
        return f"recall@{gate.k}" if gate.metric == "recall_at_k" else f"{gate.metric}@{gate.k}"
    detail = next((value for value in (gate.cut, gate.quantile, gate.recall) if value is not None), None)
    return gate.metric if detail is None else f"{gate.metric} at {detail:g}"


def quantity_label(name: str) -> str:
    """Return a serving quantity in words: "single p99, ms" for single_p99_ms."""
    *words, unit = name.split("_")
    return f"{' '.join(words)}, {'MiB' if unit == 'mib' else unit}"


def describe_requirement(gate: Gate | None) -> str:
    """Return what a gate requires, in words."""
    match gate:
        case None:
            return "not in the spec"
        case gate_specs.SignatureGate():
            return "takes the columns that serving sends"
        case gate_specs.CustomGate():
            return gate.function
        case gate_specs.ServingGate():
            return f"{quantity_label(gate.quantity)} at most {gate.at_most:g}"
        case gate_specs.OnlineEqualsOfflineGate():
            return f"at most {100 * gate.at_most:g} % of values differ online"
        case gate_specs.LabelledGate():
            return f"at least {100 * gate.at_least:g} % of each day's rows have a label"
        case gate_specs.ChurnGate(cut=None):
            return f"predictions move by at most {gate.at_most:g} on average"
        case gate_specs.ChurnGate():
            return f"at most {100 * gate.at_most:g} % of answers at {gate.cut:g} change"
        case gate_specs.PredictionDriftGate():
            return f"{gate.statistic} of predictions at most {gate.at_most:g}"
        case gate_specs.ThresholdGate():
            requirement = f"{'at most' if gate.at_least is None else 'at least'} {gate.limit:g}"
        case gate_specs.FairnessGate():
            requirement = f"differs by at most {gate.at_most:g} between groups of {gate.group_by}"
        case gate_specs.BaselineGate():
            requirement = f"better than {gate.baseline}, {100 * gate.confidence:g} % sure"
        case gate_specs.BySliceGate():
            margin = f" by more than {gate.margin:g}" if gate.margin else ""
            requirement = f"in no {gate.group_by} worse{margin}, {100 * gate.confidence:g} % sure"
        case gate_specs.AgainstChampionGate():
            margin = f" by at least {gate.margin:g}" if gate.margin else ""
            comparison = f"better{margin}" if gate.must_be == "better" else f"not worse by more than {gate.margin:g}"
            scope = "over the model's life" if gate.guarantee == "lifetime" else "of promotions"
            sure = f"{100 * gate.confidence:g} % sure {scope}"
            requirement = f"{comparison}, {sure}"
    return f"{metric_label(gate)} {requirement}"
