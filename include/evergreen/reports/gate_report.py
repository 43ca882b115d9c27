"""The gate report: a verdict and its evidence as one page."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

from evergreen.explanations.importance_record import VerdictImportance
from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.gates.clusters import parse_clusters
from evergreen.gates.evidence import (
    Evidence,
    InputSignature,
    MissingEvidence,
    NoChampion,
    OnlineSample,
    StreamedColumn,
)
from evergreen.gates.streams import sample_evidence
from evergreen.gates.verdict import GateOutcome, GateResult, SliceResult, Verdict
from evergreen.ledger import VerdictRecorded
from evergreen.reports import curves, gate_table, plots
from evergreen.reports.formatting import format_date_range, format_percent
from evergreen.reports.input_importance import compare_importance
from evergreen.reports.outputs import compare_means, tabulate_outputs
from evergreen.reports.page import jinja_environment
from evergreen.spec import gates as gate_specs
from evergreen.spec.model import ModelSpec

_PLOTTED_ROWS = 2**18  # of rows that are read in batches; those in memory are all plotted

_GateResults = Sequence[tuple[GateResult, gate_specs.Gate | None]]


@dataclass(frozen=True)
class Drawing:
    """A plot, or the problems that prevented it; both, when only some rows could be drawn."""

    svg: str = ""
    problems: tuple[str, ...] = ()


def render_gate_report(
    model: ModelSpec,
    event: VerdictRecorded,
    evidence: Evidence,
    earlier_comparisons: Sequence[EarlierComparison] = (),
    importance: VerdictImportance | None = None,
) -> str:
    """Return one self-contained HTML page: no script, nothing fetched; equal inputs give equal bytes.

    Needs nothing but its arguments, all of which are stored. Never raises because of the evidence: what cannot be
    shown is named in its place. At most 1 MB, also for 100,000 rows: curves are thinned (`evergreen.reports.curves`).
    Of rows that are read in batches, plots show an even sample, and the page says so.
    """
    verdict, gates = event.verdict, model.gates
    unlabelled = verdict.unlabelled_share
    specs = [{gate.name: gate for gate in gates}.get(result.gate) for result in verdict.results]
    results = list(zip(verdict.results, specs, strict=True))
    label = evidence.label
    rows = label.rows.count if isinstance(label, StreamedColumn) else curves.parse_column(label, "labels")[0].size
    evidence, stride = sample_evidence(evidence, _PLOTTED_ROWS)
    outputs = tabulate_outputs(evidence)
    is_binary = outputs is None and _has_binary_labels(gates, evidence)
    has_plot = outputs is None or model.kind == "forecast"  # of one number per row
    models, models_plot = _compare_models(evidence, is_binary) if has_plot else ([], None)
    return (
        jinja_environment()
        .get_template("gate_report.html.j2")
        .render(
            model=model,
            event=event,
            verdict=verdict,
            summary=summarize_verdict(event),
            holdout_days=format_date_range(*event.days),
            unlabelled="" if unlabelled is None else f"{format_percent(unlabelled)} of all rows have no label yet",
            holdout_rows=rows,
            rows_per_plotted=stride,
            alpha_budgets=_alpha_budgets(gates, verdict, earlier_comparisons),
            columns=gate_table.GATE_COLUMNS,
            gate_rows=[
                (row, result, gate_table.describe_requirement(gate), gate_table.reference_value(result, gate))
                for row, (result, gate) in zip(gate_table.gate_rows(verdict, gates), results, strict=True)
            ],
            intervals=_plot_gate_intervals(results),
            cluster_sections=[
                _cluster_section(result, gate, evidence)
                for result, gate in results
                if result.interval and result.champion is not None and isinstance(gate, gate_specs.AgainstChampionGate)
            ],
            without_interval=[
                result
                for result, gate in results
                if result.interval is None
                and isinstance(gate, gate_specs.AgainstChampionGate | gate_specs.BaselineGate)
            ],
            growing=[result for result in verdict.results if result.looks],
            alphas={result.gate: result.alpha for result in verdict.results},
            is_binary=is_binary,
            models_plot=models_plot,
            outputs=outputs,
            calibration={model.role: curves.calibration_bins(model) for model in models if is_binary},
            slice_sections=[
                _slice_section(result, gate)
                for result, gate in results
                if isinstance(gate, gate_specs.BySliceGate | gate_specs.FairnessGate)
            ],
            drift=None if evidence.prediction_type and evidence.prediction_type.outputs else _plot_drift(evidence),
            mean_predictions=compare_means(evidence),
            importance=_importance_section(importance, gates),
            serving_costs=evidence.serving_costs,
            serving_rows=_serving_rows(evidence.serving_costs, results),
            signature=_signature_differences(evidence.input_signature),
            online_sample=evidence.online_sample,
            online=_describe_online_sample(evidence.online_sample),
            missing=_missing_evidence(evidence),
        )
    )


def summarize_verdict(event: VerdictRecorded) -> str:
    """Return the verdict in one sentence."""
    verdict = event.verdict
    candidate, gate_count = f"candidate {event.candidate_fingerprint[:12]}", len(verdict.results)
    if verdict.promote:
        version = event.champion_version
        change = f"replace version {version}" if version else "become the first champion"
        gates = "The only gate" if gate_count == 1 else f"All {gate_count} gates"
        return f"{gates} passed: {candidate} may {change}."
    outcomes = [result.outcome for result in verdict.results]
    counts = (
        (outcomes.count("failed"), "failed"),
        (outcomes.count("not_computed"), "could not be computed"),
        (outcomes.count("inconclusive"), "inconclusive"),
    )
    problems = " and ".join(f"{count} {problem}" for count, problem in counts if count)
    if not problems:
        return f"Not to be promoted: {verdict.reason}."
    gates = f"{gate_count} gates" if gate_count > 1 else "the only gate"
    if verdict.is_inconclusive:
        return f"Not to be promoted yet: of {gates} for {candidate}, {problems}; none rejects it."
    return f"Not to be promoted: of {gates} for {candidate}, {problems}."


def _alpha_budgets(
    gates: Sequence[gate_specs.Gate], verdict: Verdict, earlier_comparisons: Sequence[EarlierComparison]
) -> list[tuple[str, float, float]]:
    """Return, by gate with a lifetime budget, its name, what has been spent, this run included, and the budget.

    A comparison that passed gets its significance level back (`evergreen.gates.alpha_spending`).
    """
    levels = {result.gate: result.alpha for result in verdict.results if result.alpha is not None}
    spent: dict[str, float] = defaultdict(float)
    for comparison in earlier_comparisons:
        for gate, level, passed in comparison.spending:
            spent[gate] += 0.0 if passed else level
    return [
        (gate.name, spent[gate.name] + levels[gate.name], 1 - gate.confidence)
        for gate in gates
        if isinstance(gate, gate_specs.AgainstChampionGate) and gate.guarantee == "lifetime" and gate.name in levels
    ]


def _draw(draw: Callable[[], str], *problems: str) -> Drawing:
    """Draw a plot. The one place that catches its errors: a page without a plot is better than no page."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that a font lacks, and of axes over equal numbers
            return Drawing(draw(), problems)
    except Exception as error:
        return Drawing("", (*problems, f"this could not be drawn: {type(error).__name__}: {error}"))


def _has_binary_labels(gates: Sequence[gate_specs.Gate], evidence: Evidence) -> bool:
    """Whether labels are 0 or 1: as the metrics say, where they agree, so that a stray label is shown as one."""
    if evidence.prediction_type:
        return evidence.prediction_type.kind == "binary"
    types = {
        gate.scale.label_type for gate in gates if isinstance(gate, gate_specs.MetricGate) and ":" not in gate.metric
    }
    if len(types) == 1:
        return types == {"binary"}
    label, _ = curves.select_finite(evidence.label, "labels")
    return bool(((label == 0) | (label == 1)).all())


def _compare_models(evidence: Evidence, is_binary: bool) -> tuple[list[curves.ScoredRows], Drawing]:
    """Return the models that have scores, and the plot of them with the problems of the others."""
    models: list[curves.ScoredRows] = []
    problems: list[str] = []
    rows = curves.parse_column(evidence.label, "labels")[0].size
    clusters, _ = parse_clusters(evidence, rows)
    for role, score in (("candidate", evidence.candidate), ("champion", evidence.champion)):
        if isinstance(score, NoChampion):
            problems.append("there is no champion yet")
        elif isinstance(score, MissingEvidence):
            problems.append(f"no scores of the {role}: {score.problem}")
        else:
            model, problem = curves.select_scored_rows(role, evidence.label, score, clusters, is_binary)
            models += [model] if model else []
            problems += [problem] if problem else []
    problems = list(dict.fromkeys(problems))
    draw = plots.plot_binary_predictions if is_binary else plots.plot_continuous_predictions
    return models, _draw(lambda: draw(models), *problems) if models else Drawing("", tuple(problems))


def _gain(gate: gate_specs.Gate | None, candidate: float | None, reference: float | None) -> float | None:
    """Return by how much the candidate is better; None if unknown."""
    if not isinstance(gate, gate_specs.PairedComparisonGate) or candidate is None or reference is None:
        return None
    return candidate - reference if gate.scale.higher_is_better else reference - candidate


def _plot_gate_intervals(results: _GateResults) -> Drawing | None:
    """Return the plot of gates that hold the lower bound of an interval against a limit; None if there are none."""
    intervals = []
    for result, gate in results:
        if result.interval is None or not isinstance(
            gate, gate_specs.AgainstChampionGate | gate_specs.BaselineGate | None
        ):
            continue
        gain = _gain(gate, result.candidate, gate_table.reference_value(result, gate))
        description = ""
        if isinstance(gate, gate_specs.AgainstChampionGate):
            description = f"{gate_table.metric_label(gate)}, {gate.must_be.replace('_', ' ')}"
        elif gate:
            description = f"{gate_table.metric_label(gate)}, against {gate.baseline}"
        intervals.append((result, description, gain))
    return _draw(lambda: plots.plot_intervals(intervals)) if intervals else None


def _cluster_section(
    result: GateResult, gate: gate_specs.AgainstChampionGate, evidence: Evidence
) -> tuple[str, str, Drawing, int]:
    """Return a gate's name, what its rows are clustered by, the plot of the gain in each, and how many are left out."""
    total = _gain(gate, result.candidate, result.champion) or 0.0
    way, hidden = "cluster", 0

    def draw() -> str:
        nonlocal way, hidden
        # In here, since the sample may lack what the verdict's rows had, such as a row that the gate counts.
        way, gains, hidden = curves.cluster_gains(gate, evidence)
        return plots.plot_cluster_gains(gains, total, result.threshold, gate_table.metric_label(gate))

    drawing = _draw(draw)
    return result.gate, way, drawing, hidden


def _slice_section(result: GateResult, gate: gate_specs.Gate | None) -> tuple[GateResult, str, Drawing | None, int]:
    """Return a gate's result, requirement, plot of its worst slices, and how many are not shown."""
    requirement = gate_table.describe_requirement(gate)
    if not result.slices or not isinstance(gate, gate_specs.MetricGate):
        return result, requirement, None, 0
    compares = isinstance(gate, gate_specs.BySliceGate)

    def value(part: SliceResult) -> float | None:
        return _gain(gate, part.candidate, part.champion) if compares else part.candidate

    # Judged slices first, the worst first; those without a value last. Names decide between equals.
    ordered = sorted(
        result.slices, key=lambda part: (not part.is_judged, value(part) is None, value(part) or 0.0, part.name)
    )
    worst = ordered[: plots.MAX_SLICES]
    values = [value(part) for part in worst]
    metric = gate_table.metric_label(gate)
    label = f"gain in {metric} over the champion; positive is better" if compares else f"the candidate's {metric}"
    plot = _draw(lambda: plots.plot_slices(worst, values, result.threshold, label, limits_spread=not compares))
    return result, requirement, plot, len(ordered) - len(worst)


@dataclass(frozen=True)
class ImportanceSection:
    """What the report says about the importance of inputs.

    Attributes:
        rows: of the holdout, on which it was measured.
        metric: that gets worse; empty if none was measured.
        permutations: of each input.
    """

    rows: int
    metric: str
    permutations: int
    drawing: Drawing
    changes: tuple[str, ...]
    hidden: int
    has_contributions: bool
    has_gain: bool


def _importance_section(
    importance: VerdictImportance | None, gates: Sequence[gate_specs.Gate]
) -> ImportanceSection | None:
    """Return the section about the importance of inputs; None if nothing is recorded."""
    if importance is None:
        return None
    gate = next((gate for gate in gates if gate.name == importance.gate), None)
    metric = gate_table.metric_label(gate) if isinstance(gate, gate_specs.MetricGate) else ""
    problems = tuple(f"{role}: {text}" for role, model in importance.models.items() for text in model.problems)
    compared = compare_importance(importance)
    labels = {
        "permutation": f"drop of {metric}, permuted",
        "contribution": "mean |SHAP value|",
        "gain": "share of the gain of splits",
    }
    measures = compared.measures if compared else ()
    drawing = Drawing("", problems)
    if compared:
        drawing = _draw(partial(plots.plot_importance, compared, labels), *problems)
    return ImportanceSection(
        rows=importance.rows,
        metric=metric if "permutation" in measures else "",
        permutations=max((model.permutations for model in importance.models.values()), default=0),
        drawing=drawing,
        changes=compared.changes if compared else (),
        hidden=compared.hidden if compared else 0,
        has_contributions="contribution" in measures,
        has_gain="gain" in measures,
    )


def _plot_drift(evidence: Evidence) -> Drawing:
    """Return the plot of predictions on the holdout and on the most recent day."""
    if isinstance(evidence.recent_predictions, MissingEvidence):
        return Drawing("", (f"no predictions of a recent day: {evidence.recent_predictions.problem}",))
    holdout, holdout_problem = curves.select_finite(evidence.candidate, "scores of the candidate")
    recent, recent_problem = curves.select_finite(evidence.recent_predictions, "recent predictions")
    problems = tuple(filter(None, (holdout_problem, recent_problem)))
    if not holdout.size or not recent.size:
        return Drawing("", problems)
    return _draw(lambda: plots.plot_prediction_drift(holdout, recent), *problems)


def _serving_rows(costs: object, results: _GateResults) -> list[tuple[str, Any, float | None, GateOutcome | None]]:
    """Return name, value, limit and outcome per quantity that a gate limits or that was measured."""
    if not isinstance(costs, Mapping):
        return []
    limits = {
        gate.quantity: (gate.at_most, result.outcome)
        for result, gate in results
        if isinstance(gate, gate_specs.ServingGate)
    }
    names = [*limits, *(name for name in costs if name not in limits)]
    return [(gate_table.quantity_label(name), costs.get(name), *limits.get(name, (None, None))) for name in names]


def _signature_differences(signature: InputSignature | MissingEvidence) -> list[tuple[str, str]] | MissingEvidence:
    """Return the positions where the model and serving differ, each side as "name type" or nothing."""
    if isinstance(signature, MissingEvidence):
        return signature
    sides = (getattr(signature, side, None) for side in ("model_columns", "serving_columns"))
    columns = [[" ".join(map(str, column)) for column in side] for side in sides if isinstance(side, tuple | list)]
    if len(columns) < 2:
        return MissingEvidence("it is not two lists of columns")
    return [(model, serving) for model, serving in zip_longest(*columns, fillvalue="") if model != serving]


def _describe_online_sample(sample: object) -> str:
    """Return how many of the compared online features differ from the offline ones."""
    if isinstance(sample, MissingEvidence):
        return f"no online features were compared: {sample.problem}"
    if not isinstance(sample, OnlineSample):
        return "what was compared online is not a sample"
    if not sample.value_count:
        return "no online feature was compared"
    noun = "others" if sample.expired_count else "compared values"
    text = f"all {sample.value_count - sample.expired_count:,} {noun} are equal"
    if sample.mismatch_count:
        share = 100 * sample.mismatch_count / sample.value_count
        text = f"{sample.mismatch_count:,} of {sample.value_count:,} compared values differ ({share:.2g} %)"
        text += f"; the first: {sample.first_mismatch}" if sample.first_mismatch else ""
    if sample.expired_count:
        text = f"{sample.expired_count:,} values are older than the ttl of their view: {sample.first_expired}; {text}"
    return f"{text}; {sample.moment}" if sample.moment else text


def _is_ranking(evidence: Evidence) -> bool:
    return evidence.prediction_type is not None and evidence.prediction_type.kind == "ranking"


def _missing_evidence(evidence: Evidence) -> list[tuple[str, str]]:
    """Return the name and the problem of each piece of evidence that should exist and does not."""
    pieces = [
        ("labels", evidence.label),
        ("champion's scores", evidence.champion),
        *((f"clusters by {name}", clusters) for name, clusters in dict(evidence.clusters or {}).items()),
        *((f"groups by {column}", groups) for column, groups in dict(evidence.groups or {}).items()),
        *((f"baseline {name}", values) for name, values in dict(evidence.baselines or {}).items()),
        *((f"column {name}", values) for name, values in dict(evidence.columns or {}).items()),
        *([("queries", evidence.queries)] if _is_ranking(evidence) else []),
        ("predictions of a recent day", evidence.recent_predictions),
        ("serving", evidence.serving_costs),
        ("signature", evidence.input_signature),
        ("online features", evidence.online_sample),
    ]
    return [(name, value.problem) for name, value in pieces if isinstance(value, MissingEvidence)]
