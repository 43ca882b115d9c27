"""Add a candidate to the backtest of its model, and bring the report up to date."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evergreen import storage
from evergreen.backtest import walk_forward
from evergreen.backtest.cache import BacktestCache, BacktestCandidate, cache_code, comparison_gate
from evergreen.backtest.simulated_ledger import SimulatedLedger
from evergreen.backtest.statistics import mean_with_bounds
from evergreen.backtest.walk_forward import BacktestPoint, Deployment, DeploymentPolicy, MeasurementPeriod
from evergreen.backtest.watched_features import find_features
from evergreen.errors import Fault, FaultsError
from evergreen.lake import datasets, fingerprints
from evergreen.periods import days_from
from evergreen.reports import backtest
from evergreen.reports.backtest import (
    BacktestResults,
    BacktestStep,
    DeploymentSummary,
    GainEstimate,
    PeriodSummary,
    PolicySummary,
)
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath

_COMPARED_FIELDS = {"label", "train", "holdout", "label_delay", "clusters", "gates"}
RESULTS_FILE, REPORT_FILE = "results.json", "report.html"

log = logging.getLogger(__name__)

# Label and rule of each policy.
_POLICIES = {
    "gates": ("Evergreen's gates", "train at every date, deploy what passes all gates against the champion"),
    "every_date": ("every date", "train and deploy at every date"),
    "monthly": ("monthly", "train and deploy when the last deployment was at least 28 days ago"),
    "on_drift": (
        "on drift",
        "train and deploy when alarms of monitoring about the live model's inputs ask for a retrain, with cooldown and "
        "budget of retrain_on",
    ),
    "on_loss": (
        "on loss",
        "train and deploy when the live model's metric in the latest period is below that on its own holdout, with "
        "95 % confidence",
    ),
    "never": ("never", "keep the first candidate"),
}


def add_candidate(
    model: ModelSpec, as_of: str, training_set: datasets.Manifest, candidate: datasets.Manifest
) -> UPath | Path:
    """Record the candidate, then bring results and report up to date; return the path of the report.

    The report shows all candidates with the same spec. Concurrent runs wait for each other; a run whose candidate
    is in the report already changes nothing.

    Raises:
        FaultsError: the date, training set and candidate do not belong together.
        ScoringError: a model cannot be scored.
    """
    _validate_inputs(model, as_of, training_set, candidate)
    spec = fingerprints.compute_fingerprint(backtest_spec(model, candidate))
    dataset, partition = (
        datasets.open_dataset(f"backtests/{model.name}"),
        f"as_of={datasets.file_name_of_period(as_of)}",
    )
    inputs = {
        "as_of": as_of,
        "spec": spec,
        "training_set": training_set.reference,
        "candidate": candidate.reference,
        "content": [training_set.content_hash, candidate.content_hash],
    }
    fingerprint = fingerprints.compute_fingerprint(inputs)
    if not dataset.find(partition, fingerprint):
        # Both manifests whole: the files they name stay, whatever is published later.
        folder = dataset.stage(partition, fingerprint)
        files = {"training_set": folder / "training_set.json", "candidate": folder / "candidate.json"}
        files["training_set"].write_text(training_set.to_json())
        files["candidate"].write_text(candidate.to_json())
        dataset.publish(partition, fingerprint, files, inputs)
    # In turn where runs share the folder; else whoever is overtaken looks again.
    with storage.file_lock(settings().cache / "backtests" / model.name / ".report.lock"):
        while not _update_report(model, dataset, spec):
            log.info("another run has added a candidate meanwhile")
    return dataset.root / REPORT_FILE


def backtest_spec(model: ModelSpec, candidate: datasets.Manifest) -> dict[str, Any]:
    """Return what must be equal for candidates to be comparable: how they were trained and are judged."""
    return {
        **{name: candidate.inputs[name] for name in ("features", "parameters", "seed", "code")},
        **model.model_dump(mode="json", include=_COMPARED_FIELDS),
        **({"prediction": prediction.model_dump(mode="json")} if (prediction := model.prediction_type) else {}),
        **({"query": model.query} if model.query else {}),
        **({"weight": model.weight} if model.weight else {}),
        **({"forecast": model.forecast.model_dump(mode="json")} if model.forecast else {}),
    }


def _validate_inputs(
    model: ModelSpec, as_of: str, training_set: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    faults = []
    if training_set.inputs["as_of"] != as_of:
        faults.append(Fault("training set", f"is as of {training_set.inputs['as_of']}", f"pass that of {as_of}"))
    calendar = feature_spec(model).calendar
    end = calendar.period_before(as_of, model.label_delay)
    declared = calendar.period_before(end, model.holdout), end
    if declared != (actual := (training_set.inputs["holdout"], training_set.inputs["holdout_end"])):
        problem = "has the holdout {} until {}, but by the spec it is {} until {}".format(*actual, *declared)
        faults.append(Fault("training set", problem, "build it again"))
    if candidate.inputs["training_set"] != training_set.files["train"].sha256:
        faults.append(Fault("candidate", "was trained on another training set", "train it again"))
    if faults:
        raise FaultsError(f"backtest of {model.name} as of {as_of}", faults)


def _update_report(model: ModelSpec, dataset: datasets.Dataset, spec_fingerprint: str) -> bool:
    """Bring the report up to date; return whether it is about all candidates that are there afterwards."""
    stamps = dataset.publication_stamps()
    manifests = dataset.manifests()
    included = [manifest for manifest in manifests if manifest.inputs["spec"] == spec_fingerprint]
    excluded = len(manifests) - len(included)
    candidates = {}
    for manifest in included:
        files = (dataset.file_path(manifest, name) for name in ("training_set", "candidate"))
        loaded = BacktestCandidate(*(datasets.Manifest.from_json(file.read_text()) for file in files))
        candidates[loaded.point.as_of] = loaded
    fingerprint = fingerprints.compute_fingerprint(
        {
            "model": [model.name, model.description],
            "spec": spec_fingerprint,
            "points": [point.fingerprint for point in included],
            "left_out": excluded,
            "features": {period: item.content_hash for period, item in find_features(model, candidates)[0].items()},
            "retrains": [model.retrain_on.model_dump(mode="json"), str(model.cooldown)],
            "code": report_code(model),
        }
    )
    report_file, results_file = dataset.root / REPORT_FILE, dataset.root / RESULTS_FILE
    with suppress(ValueError):  # of pydantic's validation, too
        stored = storage.read_version(results_file)
        is_current = stored and BacktestResults.model_validate_json(stored.data).fingerprint == fingerprint
        if is_current and storage.file_exists(report_file):
            return True
    cache = BacktestCache(model, candidates, settings().cache / "backtests" / model.name / "cache")
    results = _build_results(model, candidates, cache, fingerprint, spec_fingerprint, excluded)
    page, data = backtest.render_backtest_report(results).encode(), f"{results.model_dump_json(indent=1)}\n".encode()
    storage.update_file(report_file, lambda _: page)
    # The results last: their fingerprint says that the report is of the same candidates.
    storage.update_file(results_file, lambda _: data)
    return dataset.publication_stamps() == stamps


def report_code(model: ModelSpec) -> dict[str, str]:
    """Return what the report depends on besides the candidates and the spec: all that is cached, rules and looks."""
    return cache_code(model) | fingerprints.code_of((__package__, "evergreen.reports"), ("jinja2", "matplotlib"))


def _build_results(
    model: ModelSpec,
    candidates: Mapping[str, BacktestCandidate],
    cache: BacktestCache,
    fingerprint: str,
    spec_fingerprint: str,
    excluded_candidates: int,
) -> BacktestResults:
    from evergreen.backtest.drift import RetrainsOnDrift  # loads Feast, which takes seconds

    gate = comparison_gate(model)
    points = walk_forward.sort_points([candidate.point for candidate in candidates.values()])
    periods = walk_forward.measurement_periods(points)
    steps: list[BacktestStep] = []
    ledger = SimulatedLedger(model)

    def deploy_by_gates(point: BacktestPoint, champion: BacktestPoint | None) -> str | None:
        verdict = cache.judge(point, champion, ledger.comparisons, ledger.find_pause(point))
        candidate = candidates[point.as_of]
        promoted, reason = ledger.propose(
            point, candidate.candidate.fingerprint, verdict, cache.labelled_periods(point.as_of)
        )
        steps.append(
            BacktestStep(
                as_of=point.as_of,
                holdout_start=point.holdout_start,
                candidate_fingerprint=candidate.candidate.fingerprint,
                train_rows=candidate.training_set.files["train"].rows or 0,
                champion_as_of=champion.as_of if champion else None,
                verdict=verdict,
                promoted=promoted,
                reason=reason,
            )
        )
        return reason if promoted else None

    def describe_loss(live: BacktestPoint, period: MeasurementPeriod) -> str | None:
        test = cache.loss_test(live, period)
        if test is None or not test.is_significant:
            return None
        return (
            f"{gate.metric} was {test.holdout_value:.4g} on its own holdout and {test.recent_value:.4g} from "
            f"{period.start} until {period.end}: at 95 % confidence at least {-(test.upper_bound or 0):.4g} worse"
        )

    on_drift = RetrainsOnDrift(model, candidates, cache)
    policies: dict[str, DeploymentPolicy] = {
        "gates": deploy_by_gates,
        "every_date": walk_forward.deploy_every_date,
        "monthly": walk_forward.deploy_monthly,
        "on_drift": on_drift.deploy,
        "on_loss": walk_forward.deploy_on_loss(points, describe_loss),
        "never": walk_forward.deploy_first_only,
    }
    deployments = {name: walk_forward.simulate_policy(points, policy) for name, policy in policies.items()}
    values = {
        name: [
            cache.period_metric(live, period) if (live := walk_forward.find_live_point(deployed, period)) else None
            for period in periods
        ]
        for name, deployed in deployments.items()
    }
    compared = tuple(
        number
        for number in range(len(periods))
        if all(values[name][number] is not None for name, deployed in deployments.items() if deployed)
    )
    results = BacktestResults(
        model=model.name,
        description=model.description,
        fingerprint=fingerprint,
        spec_fingerprint=spec_fingerprint,
        excluded_candidates=excluded_candidates,
        metric=gate.metric,
        higher_is_better=gate.scale.higher_is_better,
        label=model.label,
        train=str(model.train),
        holdout=str(model.holdout),
        steps=tuple(steps),
        periods=tuple(PeriodSummary(**asdict(period), **cache.count_rows(period)) for period in periods),
        compared_periods=compared,
        policies=(),
    )
    summaries = (_summarize_policy(name, results, deployed, values) for name, deployed in deployments.items())
    notes = {"on_drift": on_drift.notes}
    policies_with_notes = (item.model_copy(update={"notes": notes.get(item.name, ())}) for item in summaries)
    return results.model_copy(update={"policies": tuple(policies_with_notes)})


def _summarize_policy(
    name: str,
    results: BacktestResults,
    deployments: Sequence[Deployment],
    metric_values: Mapping[str, Sequence[float | None]],
) -> PolicySummary:
    numbers = results.compared_periods if deployments else ()
    values, never = (np.array([metric_values[key][n] for n in numbers], dtype=np.float64) for key in (name, "never"))
    sign = 1 if results.higher_is_better else -1
    worst = int((sign * values).argmin()) if values.size else None
    gain = None
    if values.size and name != "never":
        mean, low, high = mean_with_bounds(sign * (values - never))
        gain = GainEstimate(mean=mean, low=low, high=high)
    label, rule = _POLICIES[name]
    last = results.steps[-1].as_of
    return PolicySummary(
        name=name,
        label="weekly" if name == "every_date" and results.step_days == 7 else label,
        rule=rule,
        training_count=len(results.steps) if name in ("gates", "every_date") else len(deployments),
        deployments=tuple(
            DeploymentSummary(
                as_of=deployment.point.as_of,
                end=deployment.end,
                live_days=days_from(deployment.point.as_of, deployment.end or last),
                reason=deployment.reason,
            )
            for deployment in deployments
        ),
        metric_values=tuple(metric_values[name]),
        mean=None if worst is None else float(values.mean()),
        worst_value=None if worst is None else float(values[worst]),
        worst_period_start=None if worst is None else results.periods[numbers[worst]].start,
        gain_over_never=gain,
    )
