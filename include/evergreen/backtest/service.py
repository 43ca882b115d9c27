"""A candidate joins the backtest of its model, and the report is brought up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.backtest import walk_forward
from evergreen.backtest.cache import EVALUATION, Candidate, Findings, measured_by
from evergreen.backtest.simulated_ledger import PastLedger
from evergreen.backtest.walk_forward import Deployment, Period, Point
from evergreen.errors import Fault, FaultsError
from evergreen.lake import datasets, fingerprints
from evergreen.reports import backtest
from evergreen.reports.backtest_results import Date, Deployed, Gain, Measured, Policy, Results
from evergreen.spec.model import Model

RESULTS, REPORT = "results.json", "report.html"


def add(model: Model, as_of: date, training_set: datasets.Manifest, candidate: datasets.Manifest) -> Path:
    """Record the candidate, then bring results and report up to date; gives the path of the report.

    The report shows all candidates of this one's spec. Runs that come at once wait for each other, and one
    that finds its candidate reported already by another has nothing left to do.

    Raises:
        FaultsError: the three do not belong together.
        ScoringError: a model cannot be scored.
    """
    _belong_together(model, as_of, training_set, candidate)
    spec = fingerprints.fingerprint(spec_of(model, candidate))
    _record(model, as_of, training_set, candidate, spec)
    root = dataset(model).root
    with storage.locked(root / ".lock"):
        _bring_up_to_date(model, spec)
    return root / REPORT


def dataset(model: Model) -> datasets.Dataset:
    return datasets.dataset(f"backtests/{model.name}")


def spec_of(model: Model, candidate: datasets.Manifest) -> dict[str, Any]:
    """What must be the same for candidates to be comparable: how they were trained and are judged."""
    trained = {part: candidate.inputs[part] for part in ("features", "parameters", "seed", "code")}
    return {
        **trained,
        "label": model.label,
        "train_days": model.train_days,
        "holdout_days": model.holdout_days,
        "gates": [gate.model_dump(mode="json") for gate in model.gates],
    }


def _belong_together(
    model: Model, as_of: date, training_set: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    faults = []
    if training_set.inputs["as_of"] != as_of.isoformat():
        faults.append(
            Fault("training set", f"is as of {training_set.inputs['as_of']}", f"give that of {as_of}")
        )
    days = (as_of - date.fromisoformat(training_set.inputs["holdout"])).days
    if days != model.holdout_days:
        what = f"has a holdout of {days} days, the spec says {model.holdout_days}"
        faults.append(Fault("training set", what, "build it again"))
    if candidate.inputs["training_set"] != training_set.files["train"].sha256:
        faults.append(Fault("candidate", "learned from another training set", "train it again"))
    if faults:
        raise FaultsError(f"backtest of {model.name} as of {as_of}", faults)


def _record(
    model: Model, as_of: date, training_set: datasets.Manifest, candidate: datasets.Manifest, spec: str
) -> None:
    """Publish the point. It holds both manifests whole: the files they name stay, whatever is published later."""
    inputs = {
        "as_of": as_of.isoformat(),
        "spec": spec,
        "training_set": training_set.reference,
        "candidate": candidate.reference,
        "content": [training_set.content, candidate.content],
    }
    mark = fingerprints.fingerprint(inputs)
    target, partition = dataset(model), f"as_of={as_of}"
    if target.published(partition, mark):
        return
    folder = target.stage(partition, mark)
    files = {}
    for name, manifest in (("training_set", training_set), ("candidate", candidate)):
        files[name] = folder / f"{name}.json"
        files[name].write_text(manifest.to_json())
    target.publish(partition, mark, files, inputs)


def _bring_up_to_date(model: Model, spec: str) -> None:
    source = dataset(model)
    recorded = source.manifests()
    points = [manifest for manifest in recorded if manifest.inputs["spec"] == spec]
    left_out = len(recorded) - len(points)
    mark = _mark(model, spec, points, left_out)
    if _is_reported(source.root, mark):
        return
    candidates = {}
    for manifest in points:
        held = {
            name: datasets.Manifest.from_json(source.path(manifest, name).read_text())
            for name in ("training_set", "candidate")
        }
        candidates[date.fromisoformat(manifest.inputs["as_of"])] = Candidate(**held)
    findings = Findings(model, candidates, source.root / "findings")
    results = _results(model, candidates, findings, mark, spec, left_out)
    # The results last: they tell that the report is of the same candidates.
    for name, text in ((REPORT, backtest.html(results)), (RESULTS, results.model_dump_json(indent=1) + "\n")):
        with storage.replacing(source.root / name) as scratch:
            scratch.write_text(text)


def _mark(model: Model, spec: str, points: Sequence[datasets.Manifest], left_out: int) -> str:
    parts = ("findings", "ledger", "record", "report", "page", "results", "statistics", "walk_forward")
    rules = ("evergreen.ledger.state", "evergreen.promotion.rules")
    modules = (*EVALUATION, *rules, *(f"{__package__}.{part}" for part in parts))
    return fingerprints.fingerprint(
        {
            "model": [model.name, model.description],
            "spec": spec,
            "points": [point.fingerprint for point in points],
            "left_out": left_out,
            "code": fingerprints.code(
                modules, ("jinja2", "matplotlib", "numpy", "onnxruntime", "xgboost-cpu")
            ),
        }
    )


def _is_reported(root: Path, mark: str) -> bool:
    try:
        return (root / REPORT).exists() and json.loads((root / RESULTS).read_text())["made_from"] == mark
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _results(
    model: Model,
    candidates: Mapping[date, Candidate],
    findings: Findings,
    mark: str,
    spec: str,
    left_out: int,
) -> Results:
    points = walk_forward.in_order([candidate.point for candidate in candidates.values()])
    dates: list[Date] = []
    ledger = PastLedger(model)

    def by_gates(candidate: Point, champion: Point | None) -> str | None:
        verdict = findings.verdict(candidate, champion, ledger.comparisons)
        held = candidates[candidate.as_of]
        promoted, reason = ledger.propose(candidate, held.candidate.fingerprint, verdict)
        dates.append(
            Date(
                as_of=candidate.as_of,
                holdout=candidate.holdout,
                candidate=held.candidate.fingerprint,
                train_rows=held.training_set.files["train"].rows or 0,
                champion=champion.as_of if champion else None,
                verdict=verdict,
                promoted=promoted,
                reason=reason,
            )
        )
        return reason if promoted else None

    gate = measured_by(model)

    def fell(live: Point, latest: Period) -> str | None:
        found = findings.fall(live, latest)
        if found is None or not found.significant:
            return None
        return (
            f"{gate.metric} was {found.then:.4g} on its own holdout and {found.now:.4g} from {latest.start} until "
            f"{latest.end}: at 95 % confidence at least {-(found.at_most or 0):.4g} worse"
        )

    deployed = {
        "gates": walk_forward.follow(points, by_gates),
        "every_date": walk_forward.follow(points, walk_forward.every_date),
        "monthly": walk_forward.follow(points, walk_forward.monthly),
        "on_drift": walk_forward.follow(points, walk_forward.on_drift(points, fell)),
        "never": walk_forward.follow(points, walk_forward.never),
    }
    periods = walk_forward.periods(points)
    metrics = {
        name: [
            findings.measured(live, period) if (live := walk_forward.live_in(those, period)) else None
            for period in periods
        ]
        for name, those in deployed.items()
    }
    ever = [name for name, those in deployed.items() if those]
    compared = tuple(
        number for number in range(len(periods)) if all(metrics[name][number] is not None for name in ever)
    )
    return Results(
        model=model.name,
        description=model.description,
        made_from=mark,
        spec=spec,
        left_out=left_out,
        metric=gate.metric,
        higher_is_better=gate.scale.higher_is_better,
        label=model.label,
        train_days=model.train_days,
        holdout_days=model.holdout_days,
        dates=tuple(dates),
        periods=tuple(_measured(period, findings) for period in periods),
        compared=compared,
        policies=tuple(
            _policy(name, model, points, periods, those, metrics, compared)
            for name, those in deployed.items()
        ),
    )


def _measured(period: Period, findings: Findings) -> Measured:
    rows, share = findings.rows(period)
    return Measured(after=period.after, start=period.start, end=period.end, rows=rows, share=share)


def _policy(
    name: str,
    model: Model,
    points: Sequence[Point],
    periods: Sequence[Period],
    deployed: Sequence[Deployment],
    metrics: Mapping[str, Sequence[float | None]],
    compared: Sequence[int],
) -> Policy:
    import numpy as np

    from evergreen.backtest.statistics import mean_with_bounds

    scale = measured_by(model).scale
    label, rule = _described(name, periods)
    own = {number: metrics[name][number] for number in compared} if deployed else {}
    values = {number: value for number, value in own.items() if value is not None}
    worst = None
    if values:
        worst = (min if scale.higher_is_better else max)(values, key=lambda number: values[number])
    gain = None
    if values and name != "never":
        sign = 1 if scale.higher_is_better else -1
        base = np.array([metrics["never"][number] for number in values], dtype=np.float64)
        mean, low, high = mean_with_bounds(sign * (np.array(list(values.values())) - base))
        gain = Gain(mean=mean, low=low, high=high)
    last = points[-1].as_of
    return Policy(
        name=name,
        label=label,
        rule=rule,
        trainings=len(points) if name in ("gates", "every_date") else len(deployed),
        deployments=tuple(
            Deployed(
                as_of=d.point.as_of, until=d.until, days=((d.until or last) - d.point.as_of).days, why=d.why
            )
            for d in deployed
        ),
        metric=tuple(metrics[name]),
        mean=float(np.mean(list(values.values()))) if values else None,
        worst=None if worst is None else values[worst],
        worst_start=None if worst is None else periods[worst].start,
        over_never=gain,
    )


def _described(name: str, periods: Sequence[Period]) -> tuple[str, str]:
    """What people call the policy, and its rule."""
    weekly = bool(periods) and all((period.end - period.after).days == 7 for period in periods)
    return {
        "gates": (
            "Evergreen's gates",
            "train at every date, deploy what passes all gates against the champion",
        ),
        "every_date": ("weekly" if weekly else "every date", "train and deploy at every date"),
        "monthly": ("monthly", "train and deploy when the last was deployed at least 28 days ago"),
        "on_drift": (
            "on drift",
            "train and deploy when the live model's metric in the latest period is below that on its own "
            "holdout, with 95 % confidence",
        ),
        "never": ("never", "the first candidate for ever"),
    }[name]
