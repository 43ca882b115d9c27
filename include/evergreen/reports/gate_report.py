"""What was judged, the verdict and its evidence as one page."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, NamedTuple

from evergreen.gates.evidence import Evidence, Missing, NoChampion, OnlineSample, Signature
from evergreen.gates.verdict import Part, Record, Verdict
from evergreen.reports import curves, plots
from evergreen.reports.gate_report_template import PAGE
from evergreen.reports.page import environment
from evergreen.spec.gates import (
    AgainstChampion,
    Baseline,
    BySlice,
    Fairness,
    Gate,
    OnlineEqualsOffline,
    Own,
    PredictionDrift,
    SameSignature,
    Serving,
    Threshold,
)


class Spent(NamedTuple):
    """What a comparison gate has spent of its lifetime chance of a false promotion, with what this run took.

    Without what earlier comparisons gave back because they passed (`evergreen.gates.alpha_spending`).
    """

    gate: str
    level: float
    budget: float
    """1 - the gate's confidence"""


@dataclass(frozen=True, kw_only=True)
class About:
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
    candidate: str
    version: str | None
    champion: str | None
    as_of: date
    holdout: tuple[date, date]
    rows: int
    run: str
    origin: str
    made_from: Mapping[str, str] = field(default_factory=dict)
    budgets: Sequence[Spent] = ()


@dataclass(frozen=True)
class _Plot:
    """Something drawn, or the problem why not; both, when some rows could not be."""

    drawn: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """A gate and what it found, as the table shows it."""

    record: Record
    asks: str
    limit: str
    other: float | None
    """the champion's value, or the baseline's"""


@dataclass(frozen=True)
class _Slices:
    record: Record
    asks: str
    plot: _Plot | None
    cut: int = 0


def render(about: About, gates: Sequence[Gate], verdict: Verdict, evidence: Evidence) -> str:
    """One self-contained page of HTML: no script, nothing fetched; equal inputs give equal bytes.

    Never raises for what the evidence holds: what cannot be shown is named in its place. At most 1 MB, also of
    100,000 rows: curves are thinned (`evergreen.reports.curves`).
    """
    from markupsafe import Markup

    page = environment()
    page.filters.update(figure=figure, signed=_signed, share=_share, drawn=Markup)
    by_name = {gate.name: gate for gate in gates}
    classes = _of_classes(gates, evidence)
    models, problems = _models(evidence, classes)
    draw = plots.classes if classes else plots.amounts
    return page.from_string(PAGE).render(
        a=about,
        v=verdict,
        finding=finding(about, verdict),
        blocking=[record for record in verdict.records if record.outcome != "passed"],
        days=_days(*about.holdout),
        rows=[_row(record, by_name.get(record.gate)) for record in verdict.records],
        levels={record.gate: record.level for record in verdict.records},
        intervals=_intervals(verdict, by_name),
        no_interval=_without_interval(verdict, by_name),
        classes=classes,
        models=_attempt(lambda: draw(models), *problems) if models else _Plot("", problems),
        bins=_bins(models) if classes else [],
        slices=[
            _slices(record, by_name.get(record.gate))
            for record in verdict.records
            if isinstance(by_name.get(record.gate), BySlice | Fairness)
        ],
        drift=_drift(evidence),
        serving=_serving(evidence, gates, verdict),
        no_serving=evidence.serving.problem if isinstance(evidence.serving, Missing) else "",
        signature=_signature(evidence.signature),
        online=_online(evidence.online),
        online_problem=not isinstance(evidence.online, OnlineSample) or evidence.online.different != 0,
        missing=_missing(evidence),
    )


def finding(about: About, verdict: Verdict) -> str:
    """The verdict in one sentence."""
    whose = f"candidate {about.candidate[:12]}"
    if verdict.promote:
        place = f"replace version {about.champion}" if about.champion else "become the first champion"
        gates = "The only gate" if len(verdict.records) == 1 else f"All {len(verdict.records)} gates"
        return f"{gates} passed: {whose} may {place}."
    outcomes = [record.outcome for record in verdict.records]
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


def figure(value: Any) -> str:
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


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + figure(value).replace("-", "−")


def _share(level: float | None) -> str:
    """A chance, in %."""
    return "–" if level is None else f"{100 * level:.3g} %"


def _days(first: date, end: date) -> str:
    last, number = end - timedelta(1), (end - first).days
    return f"{first} to {last}, {number} days" if number > 1 else f"{first}"


def _row(record: Record, gate: Gate | None) -> _Row:
    asks, at_least = _asks(gate)
    sign = {True: "≥ ", False: "≤ ", None: ""}[at_least]
    limit = sign + f"{record.threshold:g}".replace("-", "−") if sign or record.threshold else "–"
    return _Row(record, asks, limit, _other(record, gate))


def _other(record: Record, gate: Gate | None) -> float | None:
    """What the candidate was compared with."""
    if isinstance(gate, Baseline) and len(record.parts) == 1:
        return record.parts[0].candidate
    return record.champion


def _asks(gate: Gate | None) -> tuple[str, bool | None]:
    """What a gate asks for, in words, and whether its threshold is a least or a most."""
    match gate:
        case Threshold():
            return f"{_metric(gate)} {'at least' if gate.at_most is None else 'at most'} {gate.limit:g}", (
                gate.at_most is None
            )
        case AgainstChampion():
            by = f" by at least {gate.margin:g}" if gate.margin else ""
            asked = f"better{by}" if gate.must_be == "better" else f"not worse by more than {gate.margin:g}"
            return (
                f"{_metric(gate)} {asked}, {100 * gate.confidence:g} % sure over the model's life, {gate.chosen_test}",
                (True),
            )
        case BySlice():
            worse = f"worse by more than {gate.margin:g}" if gate.margin else "worse"
            return f"{_metric(gate)} in no {gate.by} {worse}, {100 * gate.confidence:g} % sure", True
        case Fairness():
            return f"{_metric(gate)} differs by at most {gate.at_most:g} between groups of {gate.by}", False
        case Baseline():
            return f"{_metric(gate)} better than {gate.against}, {100 * gate.confidence:g} % sure", True
        case Serving():
            return f"{_quantity(gate.quantity)} at most {gate.at_most:g}", False
        case SameSignature():
            return "takes the columns that serving gives", None
        case OnlineEqualsOffline():
            return f"at most {100 * gate.at_most:g} % of values differ online", False
        case PredictionDrift():
            return f"{gate.measure} of predictions at most {gate.at_most:g}", False
        case Own():
            return f"{gate.function}", None
        case None:
            return "not in the spec", None


def _metric(gate: Threshold | AgainstChampion | BySlice | Fairness | Baseline) -> str:
    detail = gate.cut if gate.cut is not None else gate.quantile
    return gate.metric if detail is None else f"{gate.metric} at {detail:g}"


def _quantity(name: str) -> str:
    """single_p99_ms as people say it."""
    *words, unit = name.split("_")
    return f"{' '.join(words)}, {'MiB' if unit == 'mib' else unit}"


def _of_classes(gates: Sequence[Gate], evidence: Evidence) -> bool:
    """Are labels 0 or 1? What the metrics say, where they agree; so that a stray label is seen as a stray."""
    kinds = {
        gate.scale.of
        for gate in gates
        if isinstance(gate, Threshold | AgainstChampion | BySlice | Fairness | Baseline)
        and ":" not in gate.metric
    }
    if len(kinds) == 1:
        return kinds == {"classes"}
    label, _ = curves.finite(evidence.label, "labels")
    return bool(((label == 0) | (label == 1)).all())


def _attempt(draw: Callable[[], str], *problems: str) -> _Plot:
    """The one place where a fault of drawing ends: a page without a plot is better than none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of signs that a font lacks, and of axes over equal numbers
            return _Plot(draw(), problems)
    except Exception as problem:
        return _Plot("", (*problems, f"this could not be drawn: {type(problem).__name__}: {problem}"))


def _intervals(verdict: Verdict, by_name: Mapping[str, Gate]) -> _Plot | None:
    shown = []
    for record in verdict.records:
        gate = by_name.get(record.gate)
        if record.interval is None or not isinstance(gate, AgainstChampion | Baseline | None):
            continue
        gain, about = _gain(gate, record.candidate, _other(record, gate)), ""
        if isinstance(gate, AgainstChampion):
            about = f"{_metric(gate)}, {gate.must_be.replace('_', ' ')}"
        elif isinstance(gate, Baseline):
            about = f"{_metric(gate)}, against {gate.against}"
        shown.append(
            plots.Comparison(record.gate, about, gain, record.interval, record.threshold, record.outcome)
        )
    return _attempt(lambda: plots.intervals(shown)) if shown else None


def _gain(gate: Gate | None, candidate: float | None, other: float | None) -> float | None:
    """By how much the candidate is better, where that is known."""
    if not isinstance(gate, AgainstChampion | Baseline | BySlice) or candidate is None or other is None:
        return None
    return candidate - other if gate.scale.higher_is_better else other - candidate


def _without_interval(verdict: Verdict, by_name: Mapping[str, Gate]) -> list[Record]:
    return [
        record
        for record in verdict.records
        if record.interval is None and isinstance(by_name.get(record.gate), AgainstChampion | Baseline)
    ]


def _models(evidence: Evidence, classes: bool) -> tuple[list[curves.Scored], tuple[str, ...]]:
    """Whom there are scores of, and why there are none, or not all, of the others."""
    found: list[curves.Scored] = []
    problems: list[str] = []
    for whose, score in (("candidate", evidence.candidate), ("champion", evidence.champion)):
        if isinstance(score, NoChampion):
            problems.append("there is no champion yet")
        elif isinstance(score, Missing):
            problems.append(f"no scores of the {whose}: {score.problem}")
        else:
            model, problem = curves.scored(whose, evidence.label, score, classes)
            found += [model] if model else []
            problems += [problem] if problem else []
    return found, tuple(dict.fromkeys(problems))


def _bins(models: Sequence[curves.Scored]) -> list[tuple[str, list[str]]]:
    """The points of the calibration plot as lines of a table."""
    lines = []
    for of in models:
        bins = curves.bins(of)
        lines += [
            (f"{of.whose}: rows", [f"{part.rows:,}" for part in bins]),
            (f"{of.whose}: mean prediction", [figure(part.predicted) for part in bins]),
            (f"{of.whose}: share of label 1", [figure(part.middle) for part in bins]),
        ]
    return lines


def _slices(record: Record, gate: Gate | None) -> _Slices:
    asks, _ = _asks(gate)

    def value(part: Part) -> float | None:
        return _gain(gate, part.candidate, part.champion) if isinstance(gate, BySlice) else part.candidate

    if not record.parts:
        return _Slices(record, asks, None)
    # Judged ones first, worst first; without a value last. Names decide between equals.
    ordered = sorted(
        record.parts, key=lambda part: (not part.judged, value(part) is None, value(part) or 0.0, part.name)
    )
    shown = ordered[: plots.MOST_PARTS]
    if isinstance(gate, BySlice):
        what = f"gain in {_metric(gate)} over the champion; positive is better"
    else:
        what = f"the candidate's {_metric(gate)}" if isinstance(gate, Fairness) else "the candidate's value"
    values = [value(part) for part in shown]
    span = not isinstance(gate, BySlice)
    plot = _attempt(lambda: plots.slices(shown, values, record.threshold, what, span=span))
    return _Slices(record, asks, plot, len(ordered) - len(shown))


def _drift(evidence: Evidence) -> _Plot:
    if isinstance(evidence.recent, Missing):
        return _Plot("", (f"no predictions of a recent day: {evidence.recent.problem}",))
    holdout, lost = curves.finite(evidence.candidate, "scores of the candidate")
    recent, missed = curves.finite(evidence.recent, "recent predictions")
    problems = [problem for problem in (lost, missed) if problem]
    if not holdout.size or not recent.size:
        return _Plot("", tuple(problems))
    return _attempt(lambda: plots.drift(holdout, recent), *problems)


def _serving(evidence: Evidence, gates: Sequence[Gate], verdict: Verdict) -> list[dict[str, Any]]:
    """A row per quantity that was measured or is asked for."""
    if not isinstance(evidence.serving, Mapping):
        return []
    asked = {gate.quantity: gate for gate in gates if isinstance(gate, Serving)}
    outcomes = {record.gate: record.outcome for record in verdict.records}
    return [
        {
            "name": _quantity(name),
            "value": evidence.serving.get(name),
            "limit": asked[name].at_most if name in asked else None,
            "outcome": outcomes.get(asked[name].name) if name in asked else None,
        }
        for name in dict.fromkeys([*asked, *evidence.serving])
    ]


def _signature(signature: Signature | Missing) -> list[tuple[str, str]] | Missing:
    """Places where the model and serving differ, each as "name type" or nothing."""
    if isinstance(signature, Missing):
        return signature
    sides = [signature.model, signature.serving] if isinstance(signature, Signature) else [None]
    if not all(isinstance(side, tuple | list) for side in sides):
        return Missing("it is not two lists of columns")
    ours, theirs = ([" ".join(map(str, column)) for column in side or ()] for side in sides)
    number = max(len(ours), len(theirs))
    pairs = zip(ours + [""] * (number - len(ours)), theirs + [""] * (number - len(theirs)), strict=True)
    return [(model, serving) for model, serving in pairs if model != serving]


def _online(online: OnlineSample | Missing) -> str:
    if isinstance(online, Missing):
        return f"no online features were compared: {online.problem}"
    if not isinstance(online, OnlineSample):
        return "what was compared online is not a sample"
    if not online.compared:
        return "no online feature was compared"
    if not online.different:
        return f"all {online.compared:,} compared values are equal"
    share = 100 * online.different / online.compared
    example = f"; the first: {online.example}" if online.example else ""
    return f"{online.different:,} of {online.compared:,} compared values differ ({share:.2g} %){example}"


def _missing(evidence: Evidence) -> list[tuple[str, str]]:
    """All that should be there and is not."""
    named = [
        ("champion's scores", evidence.champion),
        *((f"groups by {by}", groups) for by, groups in dict(evidence.groups or {}).items()),
        *((f"baseline {name}", values) for name, values in dict(evidence.baselines or {}).items()),
        ("predictions of a recent day", evidence.recent),
        ("serving", evidence.serving),
        ("signature", evidence.signature),
        ("online features", evidence.online),
    ]
    return [(name, value.problem) for name, value in named if isinstance(value, Missing)]
