"""The gate report: what was judged, the verdict and its evidence as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

from evergreen.gates.evidence import Evidence
from evergreen.gates.verdict import Verdict
from evergreen.reports.formatting import format_days
from evergreen.reports.gate_table import GATE_COLUMNS, describe_requirement, gate_rows, reference_value
from evergreen.reports.page import jinja_environment
from evergreen.spec.gates import AgainstChampionGate, BaselineGate, BySliceGate, FairnessGate, Gate


class AlphaBudget(NamedTuple):
    """How much of its lifetime chance of a false promotion a comparison gate has spent, this run included.

    Without what earlier comparisons gave back because they passed (`evergreen.gates.alpha_spending`).
    """

    gate: str
    alpha_spent: float
    budget: float
    """1 - the gate's confidence"""


@dataclass(frozen=True, kw_only=True)
class GateReportContext:
    """What was judged and where it came from.

    Attributes:
        candidate_fingerprint: the candidate's fingerprint.
        candidate_version: its version in the registry, once it is registered.
        champion_version: the version judged against; None if there is none yet.
        as_of: the candidate knows only what was known before this day.
        holdout: (first, end): the days first ≤ day < end.
        run_id: the run that trained the candidate, and `run_reason`, why that ran (schedule, backfill, manual).
        input_fingerprints: fingerprints of the candidate's inputs, by name.
        alpha_budgets: one per comparison gate, in the order of the spec.
    """

    model: str
    description: str
    owner: str
    candidate_fingerprint: str
    candidate_version: str | None
    champion_version: str | None
    as_of: date
    holdout: tuple[date, date]
    holdout_rows: int
    run_id: str
    run_reason: str
    input_fingerprints: Mapping[str, str] = field(default_factory=dict)
    alpha_budgets: Sequence[AlphaBudget] = ()


def render_gate_report(context: GateReportContext, gates: Sequence[Gate], verdict: Verdict, evidence: Evidence) -> str:
    """Return one self-contained HTML page: no script, nothing fetched; equal inputs give equal bytes.

    Needs nothing but its arguments, all of which are stored. Never raises because of the evidence: what cannot be
    shown is named in its place. At most 1 MB, also for 100,000 rows: curves are thinned (`evergreen.reports.curves`).
    """
    from evergreen.reports import curves  # here: they load numpy and matplotlib
    from evergreen.reports import gate_report_sections as sections

    specs = [{gate.name: gate for gate in gates}.get(result.gate) for result in verdict.results]
    results = list(zip(verdict.results, specs, strict=True))
    is_binary = sections.has_binary_labels(gates, evidence)
    models, models_plot = sections.compare_models(evidence, is_binary)
    return (
        jinja_environment()
        .get_template("gate_report.html.j2")
        .render(
            context=context,
            verdict=verdict,
            summary=summarize_verdict(context, verdict),
            holdout_days=format_days(*context.holdout),
            columns=GATE_COLUMNS,
            gate_rows=[
                (row, result, describe_requirement(gate), reference_value(result, gate))
                for row, (result, gate) in zip(gate_rows(verdict, gates), results, strict=True)
            ],
            intervals=sections.plot_gate_intervals(results),
            without_interval=[
                result
                for result, gate in results
                if result.interval is None and isinstance(gate, AgainstChampionGate | BaselineGate)
            ],
            alphas={result.gate: result.alpha for result in verdict.results},
            is_binary=is_binary,
            models_plot=models_plot,
            calibration={model.role: curves.calibration_bins(model) for model in models if is_binary},
            slice_sections=[
                sections.slice_section(result, gate)
                for result, gate in results
                if isinstance(gate, BySliceGate | FairnessGate)
            ],
            drift=sections.plot_drift(evidence),
            serving_costs=evidence.serving_costs,
            serving_rows=sections.serving_rows(evidence.serving_costs, results),
            signature=sections.signature_differences(evidence.input_signature),
            online_sample=evidence.online_sample,
            online=sections.describe_online_sample(evidence.online_sample),
            missing=sections.missing_evidence(evidence),
        )
    )


def summarize_verdict(context: GateReportContext, verdict: Verdict) -> str:
    """Return the verdict in one sentence."""
    candidate, gate_count = f"candidate {context.candidate_fingerprint[:12]}", len(verdict.results)
    if verdict.promote:
        version = context.champion_version
        change = f"replace version {version}" if version else "become the first champion"
        gates = "The only gate" if gate_count == 1 else f"All {gate_count} gates"
        return f"{gates} passed: {candidate} may {change}."
    outcomes = [result.outcome for result in verdict.results]
    counts = (outcomes.count("failed"), "failed"), (outcomes.count("not_computed"), "could not be computed")
    problems = " and ".join(f"{count} {problem}" for count, problem in counts if count)
    if not problems:
        return f"Not to be promoted: {verdict.reason}."
    gates = f"{gate_count} gates" if gate_count > 1 else "the only gate"
    return f"Not to be promoted: of {gates} for {candidate}, {problems}."
