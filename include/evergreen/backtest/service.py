"""A candidate joins the backtest of its model, and the report is brought up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.backtest import walk_forward
from evergreen.backtest.cache import EVALUATION, BacktestCache, BacktestCandidate, first_metric_gate
from evergreen.backtest.simulated_ledger import SimulatedLedger
from evergreen.backtest.walk_forward import BacktestPoint, Deployment, MeasurementPeriod
from evergreen.errors import Fault, FaultsError
from evergreen.lake import datasets, fingerprints
from evergreen.reports import backtest
from evergreen.reports.backtest_results import (
    BacktestResults,
    BacktestStep,
    DeploymentSummary,
    GainEstimate,
    PeriodSummary,
    PolicySummary,
)
from evergreen.spec.model import ModelSpec

RESULTS_FILE, REPORT_FILE = "results.json", "report.html"


def add_candidate(model: ModelSpec, as_of: date, training_set: datasets.Manifest, candidate: datasets.Manifest) -> Path:
    """Record the candidate, then bring results and report up to date; gives the path of the report.

    The report shows all candidates of this one's spec. Runs that come at once wait for each other, and one
    that finds its candidate reported already by another has nothing left to do.

    Raises:
        FaultsError: the three do not belong together.
        ScoringError: a model cannot be scored.
    """
    _validate_inputs(model, as_of, training_set, candidate)
    spec = fingerprints.compute_fingerprint(backtest_spec(model, candidate))
    _publish_candidate(model, as_of, training_set, candidate, spec)
    root = backtest_dataset(model).root
    with storage.file_lock(root / ".lock"):
        _update_report(model, spec)
    return root / REPORT_FILE


def backtest_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"backtests/{model.name}")


def backtest_spec(model: ModelSpec, candidate: datasets.Manifest) -> dict[str, Any]:
    """What must be the same for candidates to be comparable: how they were trained and are judged."""
    trained = {part: candidate.inputs[part] for part in ("features", "parameters", "seed", "code")}
    return {
        **trained,
        "label": model.label,
        "train_days": model.train_days,
        "holdout_days": model.holdout_days,
        "gates": [gate.model_dump(mode="json") for gate in model.gates],
    }


def _validate_inputs(
    model: ModelSpec, as_of: date, training_set: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    faults = []
    if training_set.inputs["as_of"] != as_of.isoformat():
        faults.append(Fault("training set", f"is as of {training_set.inputs['as_of']}", f"give that of {as_of}"))
    days = (as_of - date.fromisoformat(training_set.inputs["holdout"])).days
    if days != model.holdout_days:
        what = f"has a holdout of {days} days, the spec says {model.holdout_days}"
        faults.append(Fault("training set", what, "build it again"))
    if candidate.inputs["training_set"] != training_set.files["train"].sha256:
        faults.append(Fault("candidate", "learned from another training set", "train it again"))
    if faults:
        raise FaultsError(f"backtest of {model.name} as of {as_of}", faults)


def _publish_candidate(
    model: ModelSpec,
    as_of: date,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    spec_fingerprint: str,
) -> None:
    """Publish the point. It holds both manifests whole: the files they name stay, whatever is published later."""
    inputs = {
        "as_of": as_of.isoformat(),
        "spec": spec_fingerprint,
        "training_set": training_set.reference,
        "candidate": candidate.reference,
        "content": [training_set.content_hash, candidate.content_hash],
    }
    mark = fingerprints.compute_fingerprint(inputs)
    target, partition = backtest_dataset(model), f"as_of={as_of}"
    if target.find(partition, mark):
        return
    folder = target.stage(partition, mark)
    files = {}
    for name, manifest in (("training_set", training_set), ("candidate", candidate)):
        files[name] = folder / f"{name}.json"
        files[name].write_text(manifest.to_json())
    target.publish(partition, mark, files, inputs)


def _update_report(model: ModelSpec, spec_fingerprint: str) -> None:
    source = backtest_dataset(model)
    recorded = source.manifests()
    points = [manifest for manifest in recorded if manifest.inputs["spec"] == spec_fingerprint]
    left_out = len(recorded) - len(points)
    mark = _report_fingerprint(model, spec_fingerprint, points, left_out)
    if _is_report_current(source.root, mark):
        return
    candidates = {}
    for manifest in points:
        held = {
            name: datasets.Manifest.from_json(source.file_path(manifest, name).read_text())
            for name in ("training_set", "candidate")
        }
        candidates[date.fromisoformat(manifest.inputs["as_of"])] = BacktestCandidate(**held)
    findings = BacktestCache(model, candidates, source.root / "findings")
    results = _build_results(model, candidates, findings, mark, spec_fingerprint, left_out)
    # The results last: they tell that the report is of the same candidates.
    for name, text in (
        (REPORT_FILE, backtest.render_backtest_report(results)),
        (RESULTS_FILE, results.model_dump_json(indent=1) + "\n"),
    ):
        with storage.atomic_write(source.root / name) as scratch:
            scratch.write_text(text)


def _report_fingerprint(
    model: ModelSpec, spec_fingerprint: str, points: Sequence[datasets.Manifest], excluded_candidates: int
) -> str:
    parts = ("findings", "ledger", "record", "report", "page", "results", "statistics", "walk_forward")
    rules = ("evergreen.ledger.state", "evergreen.promotion.rules")
    modules = (*EVALUATION, *rules, *(f"{__package__}.{part}" for part in parts))
    return fingerprints.compute_fingerprint(
        {
            "model": [model.name, model.description],
            "spec": spec_fingerprint,
            "points": [point.fingerprint for point in points],
            "left_out": excluded_candidates,
            "code": fingerprints.code_versions(
                modules, ("jinja2", "matplotlib", "numpy", "onnxruntime", "xgboost-cpu")
            ),
        }
    )


def _is_report_current(root: Path, fingerprint: str) -> bool:
    try:
        return (root / REPORT_FILE).exists() and json.loads((root / RESULTS_FILE).read_text())[
            "made_from"
        ] == fingerprint
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _build_results(
    model: ModelSpec,
    candidates: Mapping[date, BacktestCandidate],
    cache: BacktestCache,
    fingerprint: str,
    spec_fingerprint: str,
    excluded_candidates: int,
) -> BacktestResults:
    points = walk_forward.sort_points([candidate.point for candidate in candidates.values()])
    dates: list[BacktestStep] = []
    ledger = SimulatedLedger(model)

    def by_gates(candidate: BacktestPoint, champion: BacktestPoint | None) -> str | None:
        verdict = cache.judge(candidate, champion, ledger.comparisons)
        held = candidates[candidate.as_of]
        promoted, reason = ledger.propose(candidate, held.candidate.fingerprint, verdict)
        dates.append(
            BacktestStep(
                as_of=candidate.as_of,
                holdout_start=candidate.holdout_start,
                candidate_fingerprint=held.candidate.fingerprint,
                train_rows=held.training_set.files["train"].rows or 0,
                champion_as_of=champion.as_of if champion else None,
                verdict=verdict,
                promoted=promoted,
                reason=reason,
            )
        )
        return reason if promoted else None

    gate = first_metric_gate(model)

    def fell(live: BacktestPoint, latest: MeasurementPeriod) -> str | None:
        found = cache.drift_test(live, latest)
        if found is None or not found.is_significant:
            return None
        return (
            f"{gate.metric} was {found.holdout_value:.4g} on its own holdout and {found.recent_value:.4g} from {latest.start} until "
            f"{latest.end}: at 95 % confidence at least {-(found.upper_bound or 0):.4g} worse"
        )

    deployed = {
        "gates": walk_forward.simulate_policy(points, by_gates),
        "every_date": walk_forward.simulate_policy(points, walk_forward.deploy_every_date),
        "monthly": walk_forward.simulate_policy(points, walk_forward.deploy_monthly),
        "on_drift": walk_forward.simulate_policy(points, walk_forward.deploy_on_drift(points, fell)),
        "never": walk_forward.simulate_policy(points, walk_forward.deploy_first_only),
    }
    periods = walk_forward.measurement_periods(points)
    metrics = {
        name: [
            cache.period_metric(live, period) if (live := walk_forward.find_live_point(those, period)) else None
            for period in periods
        ]
        for name, those in deployed.items()
    }
    ever = [name for name, those in deployed.items() if those]
    compared = tuple(
        number for number in range(len(periods)) if all(metrics[name][number] is not None for name in ever)
    )
    return BacktestResults(
        model=model.name,
        description=model.description,
        fingerprint=fingerprint,
        spec_fingerprint=spec_fingerprint,
        excluded_candidates=excluded_candidates,
        metric=gate.metric,
        higher_is_better=gate.scale.higher_is_better,
        label=model.label,
        train_days=model.train_days,
        holdout_days=model.holdout_days,
        steps=tuple(dates),
        periods=tuple(_summarize_period(period, cache) for period in periods),
        compared_periods=compared,
        policies=tuple(
            _summarize_policy(name, model, points, periods, those, metrics, compared)
            for name, those in deployed.items()
        ),
    )


def _summarize_period(period: MeasurementPeriod, cache: BacktestCache) -> PeriodSummary:
    rows, share = cache.count_rows(period)
    return PeriodSummary(
        live_as_of=period.live_as_of, start=period.start, end=period.end, rows=rows, positive_share=share
    )


def _summarize_policy(
    name: str,
    model: ModelSpec,
    points: Sequence[BacktestPoint],
    periods: Sequence[MeasurementPeriod],
    deployments: Sequence[Deployment],
    metric_values: Mapping[str, Sequence[float | None]],
    compared_periods: Sequence[int],
) -> PolicySummary:
    import numpy as np

    from evergreen.backtest.statistics import mean_with_bounds

    scale = first_metric_gate(model).scale
    label, rule = _describe_policy(name, periods)
    own = {number: metric_values[name][number] for number in compared_periods} if deployments else {}
    values = {number: value for number, value in own.items() if value is not None}
    worst = None
    if values:
        worst = (min if scale.higher_is_better else max)(values, key=lambda number: values[number])
    gain = None
    if values and name != "never":
        sign = 1 if scale.higher_is_better else -1
        base = np.array([metric_values["never"][number] for number in values], dtype=np.float64)
        mean, low, high = mean_with_bounds(sign * (np.array(list(values.values())) - base))
        gain = GainEstimate(mean=mean, low=low, high=high)
    last = points[-1].as_of
    return PolicySummary(
        name=name,
        label=label,
        rule=rule,
        training_count=len(points) if name in ("gates", "every_date") else len(deployments),
        deployments=tuple(
            DeploymentSummary(
                as_of=d.point.as_of,
                end=d.end,
                live_days=((d.end or last) - d.point.as_of).days,
                reason=d.reason,
            )
            for d in deployments
        ),
        metric_values=tuple(metric_values[name]),
        mean=float(np.mean(list(values.values()))) if values else None,
        worst_value=None if worst is None else values[worst],
        worst_period_start=None if worst is None else periods[worst].start,
        gain_over_never=gain,
    )


def _describe_policy(name: str, periods: Sequence[MeasurementPeriod]) -> tuple[str, str]:
    """What people call the policy, and its rule."""
    weekly = bool(periods) and all((period.end - period.live_as_of).days == 7 for period in periods)
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
