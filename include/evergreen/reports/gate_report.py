"""What was judged, the verdict and its evidence as one page."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, NamedTuple

from evergreen.gates.evidence import Evidence, InputSignature, MissingEvidence, NoChampion, OnlineSample
from evergreen.gates.verdict import GateResult, SliceResult, Verdict
from evergreen.reports import curves, plots
from evergreen.reports.gate_report_template import GATE_REPORT_TEMPLATE
from evergreen.reports.page import jinja_environment
from evergreen.spec.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    CustomGate,
    FairnessGate,
    Gate,
    OnlineEqualsOfflineGate,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
    ThresholdGate,
)


class AlphaBudget(NamedTuple):
    """What a comparison gate has spent of its lifetime chance of a false promotion, with what this run took.

    Without what earlier comparisons gave back because they passed (`evergreen.gates.alpha_spending`).
    """

    gate: str
    alpha_spent: float
    budget: float
    """1 - the gate's confidence"""


@dataclass(frozen=True, kw_only=True)
class GateReportContext:
    """What was judged, for whom, and where it came from.

    Attributes:
        candidate: the candidate's fingerprint; `version`, its number in the registry, once it has one.
        champion: the version judged against; None when there is none yet.
        as_of: the day whose knowledge the candidate was made with.
        holdout: (first, end): of the days first ≤ day < end.
        rows: of the holdout.
        run: the run that made it, and `origin`, why that ran (scheduled, backfill, by hand).
        made_from: fingerprints of what it was made from, by name.
        budgets: per comparison gate, in the order of the spec.
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


@dataclass(frozen=True)
class _Plot:
    """Something drawn, or the problem why not; both, when some rows could not be."""

    svg: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _GateRow:
    """A gate and what it found, as the table shows it."""

    result: GateResult
    requirement: str
    limit: str
    reference_value: float | None
    """the champion's value, or the baseline's"""


@dataclass(frozen=True)
class _SliceSection:
    result: GateResult
    requirement: str
    plot: _Plot | None
    hidden_count: int = 0


def render_gate_report(context: GateReportContext, gates: Sequence[Gate], verdict: Verdict, evidence: Evidence) -> str:
    """One self-contained page of HTML: no script, nothing fetched; equal inputs give equal bytes.

    Never raises for what the evidence holds: what cannot be shown is named in its place. At most 1 MB, also of
    100,000 rows: curves are thinned (`evergreen.reports.curves`).
    """
    from markupsafe import Markup

    page = jinja_environment()
    page.filters.update(figure=format_number, signed=_format_signed, share=_format_percent, drawn=Markup)
    by_name = {gate.name: gate for gate in gates}
    classes = _is_binary(gates, evidence)
    models, problems = _scored_models(evidence, classes)
    draw = plots.plot_binary_predictions if classes else plots.plot_continuous_predictions
    return page.from_string(GATE_REPORT_TEMPLATE).render(
        a=context,
        v=verdict,
        finding=summarize_verdict(context, verdict),
        blocking=[record for record in verdict.results if record.outcome != "passed"],
        days=_format_days(*context.holdout),
        rows=[_gate_row(record, by_name.get(record.gate)) for record in verdict.results],
        levels={record.gate: record.alpha for record in verdict.results},
        intervals=_plot_intervals(verdict, by_name),
        no_interval=_results_without_interval(verdict, by_name),
        classes=classes,
        models=_draw_plot(lambda: draw(models), *problems) if models else _Plot("", problems),
        bins=_calibration_table(models) if classes else [],
        slices=[
            _slice_section(record, by_name.get(record.gate))
            for record in verdict.results
            if isinstance(by_name.get(record.gate), BySliceGate | FairnessGate)
        ],
        drift=_plot_drift(evidence),
        serving=_serving_rows(evidence, gates, verdict),
        no_serving=evidence.serving_costs.problem if isinstance(evidence.serving_costs, MissingEvidence) else "",
        signature=_signature_differences(evidence.input_signature),
        online=_describe_online_sample(evidence.online_sample),
        online_problem=not isinstance(evidence.online_sample, OnlineSample)
        or evidence.online_sample.mismatch_count != 0,
        missing=_missing_evidence(evidence),
    )


def summarize_verdict(context: GateReportContext, verdict: Verdict) -> str:
    """The verdict in one sentence."""
    whose = f"candidate {context.candidate_fingerprint[:12]}"
    if verdict.promote:
        place = (
            f"replace version {context.champion_version}" if context.champion_version else "become the first champion"
        )
        gates = "The only gate" if len(verdict.results) == 1 else f"All {len(verdict.results)} gates"
        return f"{gates} passed: {whose} may {place}."
    outcomes = [record.outcome for record in verdict.results]
    counts = [
        f"{number} {text}"
        for number, text in (
            (outcomes.count("failed"), "failed"),
            (outcomes.count("not_computed"), "could not be computed"),
        )
        if number
    ]
    if not counts:
        return f"Not to be promoted: {verdict.reason}."
    of = f"{len(outcomes)} gates" if len(outcomes) > 1 else "the only gate"
    return f"Not to be promoted: of {of} for {whose}, {' and '.join(counts)}."


def format_number(value: Any) -> str:
    """Four digits that count, and four decimals below 1; what is no number as it is."""
    if value is None:
        return "–"
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.4g}"
    if size >= 1 or size == 0:
        return f"{value:.4g}"
    return f"{value:.4f}" if size >= 0.001 else f"{value:.3g}"


def _format_signed(value: float) -> str:
    return ("+" if value > 0 else "") + format_number(value).replace("-", "−")


def _format_percent(alpha: float | None) -> str:
    """A chance, in %."""
    return "–" if alpha is None else f"{100 * alpha:.3g} %"


def _format_days(first: date, end: date) -> str:
    last, number = end - timedelta(1), (end - first).days
    return f"{first} to {last}, {number} days" if number > 1 else f"{first}"


def _gate_row(result: GateResult, gate: Gate | None) -> _GateRow:
    asks, at_least = _describe_requirement(gate)
    sign = {True: "≥ ", False: "≤ ", None: ""}[at_least]
    limit = sign + f"{result.threshold:g}".replace("-", "−") if sign or result.threshold else "–"
    return _GateRow(result, asks, limit, _reference_value(result, gate))


def _reference_value(result: GateResult, gate: Gate | None) -> float | None:
    """What the candidate was compared with."""
    if isinstance(gate, BaselineGate) and len(result.slices) == 1:
        return result.slices[0].candidate
    return result.champion


def _describe_requirement(gate: Gate | None) -> tuple[str, bool | None]:
    """What a gate asks for, in words, and whether its threshold is a least or a most."""
    match gate:
        case ThresholdGate():
            return (
                f"{_metric_label(gate)} {'at least' if gate.at_most is None else 'at most'} {gate.limit:g}",
                (gate.at_most is None),
            )
        case AgainstChampionGate():
            by = f" by at least {gate.margin:g}" if gate.margin else ""
            asked = f"better{by}" if gate.must_be == "better" else f"not worse by more than {gate.margin:g}"
            return (
                f"{_metric_label(gate)} {asked}, {100 * gate.confidence:g} % sure over the model's life, {gate.chosen_test}",
                (True),
            )
        case BySliceGate():
            worse = f"worse by more than {gate.margin:g}" if gate.margin else "worse"
            return (
                f"{_metric_label(gate)} in no {gate.group_by} {worse}, {100 * gate.confidence:g} % sure",
                True,
            )
        case FairnessGate():
            return (
                f"{_metric_label(gate)} differs by at most {gate.at_most:g} between groups of {gate.group_by}",
                False,
            )
        case BaselineGate():
            return (
                f"{_metric_label(gate)} better than {gate.baseline}, {100 * gate.confidence:g} % sure",
                True,
            )
        case ServingGate():
            return f"{_quantity_label(gate.quantity)} at most {gate.at_most:g}", False
        case SignatureGate():
            return "takes the columns that serving gives", None
        case OnlineEqualsOfflineGate():
            return f"at most {100 * gate.at_most:g} % of values differ online", False
        case PredictionDriftGate():
            return f"{gate.statistic} of predictions at most {gate.at_most:g}", False
        case CustomGate():
            return f"{gate.function}", None
        case None:
            return "not in the spec", None


def _metric_label(
    gate: ThresholdGate | AgainstChampionGate | BySliceGate | FairnessGate | BaselineGate,
) -> str:
    detail = gate.cut if gate.cut is not None else gate.quantile
    return gate.metric if detail is None else f"{gate.metric} at {detail:g}"


def _quantity_label(name: str) -> str:
    """single_p99_ms as people say it."""
    *words, unit = name.split("_")
    return f"{' '.join(words)}, {'MiB' if unit == 'mib' else unit}"


def _is_binary(gates: Sequence[Gate], evidence: Evidence) -> bool:
    """Are labels 0 or 1? What the metrics say, where they agree; so that a stray label is seen as a stray."""
    kinds = {
        gate.scale.label_type
        for gate in gates
        if isinstance(gate, ThresholdGate | AgainstChampionGate | BySliceGate | FairnessGate | BaselineGate)
        and ":" not in gate.metric
    }
    if len(kinds) == 1:
        return kinds == {"binary"}
    label, _ = curves.select_finite(evidence.label, "labels")
    return bool(((label == 0) | (label == 1)).all())


def _draw_plot(draw: Callable[[], str], *problems: str) -> _Plot:
    """The one place where a fault of drawing ends: a page without a plot is better than none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of signs that a font lacks, and of axes over equal numbers
            return _Plot(draw(), problems)
    except Exception as problem:
        return _Plot("", (*problems, f"this could not be drawn: {type(problem).__name__}: {problem}"))


def _plot_intervals(verdict: Verdict, gates_by_name: Mapping[str, Gate]) -> _Plot | None:
    shown = []
    for record in verdict.results:
        gate = gates_by_name.get(record.gate)
        if record.interval is None or not isinstance(gate, AgainstChampionGate | BaselineGate | None):
            continue
        gain, about = _gain(gate, record.candidate, _reference_value(record, gate)), ""
        if isinstance(gate, AgainstChampionGate):
            about = f"{_metric_label(gate)}, {gate.must_be.replace('_', ' ')}"
        elif isinstance(gate, BaselineGate):
            about = f"{_metric_label(gate)}, against {gate.baseline}"
        shown.append(plots.GainInterval(record.gate, about, gain, record.interval, record.threshold, record.outcome))
    return _draw_plot(lambda: plots.plot_intervals(shown)) if shown else None


def _gain(gate: Gate | None, candidate: float | None, other: float | None) -> float | None:
    """By how much the candidate is better, where that is known."""
    if not isinstance(gate, AgainstChampionGate | BaselineGate | BySliceGate) or candidate is None or other is None:
        return None
    return candidate - other if gate.scale.higher_is_better else other - candidate


def _results_without_interval(verdict: Verdict, gates_by_name: Mapping[str, Gate]) -> list[GateResult]:
    return [
        record
        for record in verdict.results
        if record.interval is None and isinstance(gates_by_name.get(record.gate), AgainstChampionGate | BaselineGate)
    ]


def _scored_models(evidence: Evidence, is_binary: bool) -> tuple[list[curves.ScoredRows], tuple[str, ...]]:
    """Whom there are scores of, and why there are none, or not all, of the others."""
    found: list[curves.ScoredRows] = []
    problems: list[str] = []
    for whose, score in (("candidate", evidence.candidate), ("champion", evidence.champion)):
        if isinstance(score, NoChampion):
            problems.append("there is no champion yet")
        elif isinstance(score, MissingEvidence):
            problems.append(f"no scores of the {whose}: {score.problem}")
        else:
            model, problem = curves.select_scored_rows(whose, evidence.label, score, is_binary)
            found += [model] if model else []
            problems += [problem] if problem else []
    return found, tuple(dict.fromkeys(problems))


def _calibration_table(models: Sequence[curves.ScoredRows]) -> list[tuple[str, list[str]]]:
    """The points of the calibration plot as lines of a table."""
    lines = []
    for of in models:
        bins = curves.calibration_bins(of)
        lines += [
            (f"{of.role}: rows", [f"{part.rows:,}" for part in bins]),
            (f"{of.role}: mean prediction", [format_number(part.mean_prediction) for part in bins]),
            (f"{of.role}: share of label 1", [format_number(part.mean_label) for part in bins]),
        ]
    return lines


def _slice_section(result: GateResult, gate: Gate | None) -> _SliceSection:
    asks, _ = _describe_requirement(gate)

    def value(part: SliceResult) -> float | None:
        return _gain(gate, part.candidate, part.champion) if isinstance(gate, BySliceGate) else part.candidate

    if not result.slices:
        return _SliceSection(result, asks, None)
    # Judged ones first, worst first; without a value last. Names decide between equals.
    ordered = sorted(
        result.slices,
        key=lambda part: (not part.is_judged, value(part) is None, value(part) or 0.0, part.name),
    )
    shown = ordered[: plots.MAX_SLICES]
    if isinstance(gate, BySliceGate):
        what = f"gain in {_metric_label(gate)} over the champion; positive is better"
    else:
        what = f"the candidate's {_metric_label(gate)}" if isinstance(gate, FairnessGate) else "the candidate's value"
    values = [value(part) for part in shown]
    span = not isinstance(gate, BySliceGate)
    plot = _draw_plot(lambda: plots.plot_slices(shown, values, result.threshold, what, limits_spread=span))
    return _SliceSection(result, asks, plot, len(ordered) - len(shown))


def _plot_drift(evidence: Evidence) -> _Plot:
    if isinstance(evidence.recent_predictions, MissingEvidence):
        return _Plot("", (f"no predictions of a recent day: {evidence.recent_predictions.problem}",))
    holdout, lost = curves.select_finite(evidence.candidate, "scores of the candidate")
    recent, missed = curves.select_finite(evidence.recent_predictions, "recent predictions")
    problems = [problem for problem in (lost, missed) if problem]
    if not holdout.size or not recent.size:
        return _Plot("", tuple(problems))
    return _draw_plot(lambda: plots.plot_prediction_drift(holdout, recent), *problems)


def _serving_rows(evidence: Evidence, gates: Sequence[Gate], verdict: Verdict) -> list[dict[str, Any]]:
    """A row per quantity that was measured or is asked for."""
    if not isinstance(evidence.serving_costs, Mapping):
        return []
    asked = {gate.quantity: gate for gate in gates if isinstance(gate, ServingGate)}
    outcomes = {record.gate: record.outcome for record in verdict.results}
    return [
        {
            "name": _quantity_label(name),
            "value": evidence.serving_costs.get(name),
            "limit": asked[name].at_most if name in asked else None,
            "outcome": outcomes.get(asked[name].name) if name in asked else None,
        }
        for name in dict.fromkeys([*asked, *evidence.serving_costs])
    ]


def _signature_differences(
    signature: InputSignature | MissingEvidence,
) -> list[tuple[str, str]] | MissingEvidence:
    """Places where the model and serving differ, each as "name type" or nothing."""
    if isinstance(signature, MissingEvidence):
        return signature
    sides = [signature.model_columns, signature.serving_columns] if isinstance(signature, InputSignature) else [None]
    if not all(isinstance(side, tuple | list) for side in sides):
        return MissingEvidence("it is not two lists of columns")
    ours, theirs = ([" ".join(map(str, column)) for column in side or ()] for side in sides)
    number = max(len(ours), len(theirs))
    pairs = zip(ours + [""] * (number - len(ours)), theirs + [""] * (number - len(theirs)), strict=True)
    return [(model, serving) for model, serving in pairs if model != serving]


def _describe_online_sample(online: OnlineSample | MissingEvidence) -> str:
    if isinstance(online, MissingEvidence):
        return f"no online features were compared: {online.problem}"
    if not isinstance(online, OnlineSample):
        return "what was compared online is not a sample"
    if not online.value_count:
        return "no online feature was compared"
    if not online.mismatch_count:
        return f"all {online.value_count:,} compared values are equal"
    share = 100 * online.mismatch_count / online.value_count
    example = f"; the first: {online.first_mismatch}" if online.first_mismatch else ""
    return f"{online.mismatch_count:,} of {online.value_count:,} compared values differ ({share:.2g} %){example}"


def _missing_evidence(evidence: Evidence) -> list[tuple[str, str]]:
    """All that should be there and is not."""
    named = [
        ("champion's scores", evidence.champion),
        *((f"groups by {by}", groups) for by, groups in dict(evidence.groups or {}).items()),
        *((f"baseline {name}", values) for name, values in dict(evidence.baselines or {}).items()),
        ("predictions of a recent day", evidence.recent_predictions),
        ("serving", evidence.serving_costs),
        ("signature", evidence.input_signature),
        ("online features", evidence.online_sample),
    ]
    return [(name, value.problem) for name, value in named if isinstance(value, MissingEvidence)]
