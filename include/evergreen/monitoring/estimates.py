"""Publishes what the champion's metrics are expected to be in each period, before labels mature. Nothing acts on it.

    estimates/flight_delay/                      a dataset
        _manifests/day=2013-03-01.json           of a period: the expected sums of each metric (`expected_metrics`)

A period's predictions are those that `<model>.score` has published for it, or else those that servers have logged.
"""
# ruff: noqa: S608 - names are made here, and literals are quoted

from __future__ import annotations

import glob
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

import numpy as np
from pydantic import Field

from evergreen.errors import DatasetError, first_line
from evergreen.features.inputs import published_periods
from evergreen.gates.verdict import NotComputedError
from evergreen.ingest.databases import open_database, quote_text
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.ledger import ChampionTenure
from evergreen.monitoring.daily_metrics import add_sums, metric_of_sums
from evergreen.monitoring.effect_sizes import FloatValues
from evergreen.monitoring.expected_metrics import estimate_problem, expected_sums
from evergreen.monitoring.matured import describe_metrics, monitored_gates
from evergreen.monitoring.performance import DailyMetric
from evergreen.monitoring.period_records import publish_period_record, read_period_manifests, read_period_record
from evergreen.monitoring.record import EstimateRecord
from evergreen.monitoring.served_periods import PREDICTIONS_FILE, read_served_period
from evergreen.monitoring.served_reference import serving_dataset
from evergreen.spec import Frozen, NonEmptyStr, Period
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.storage import Sha256

ESTIMATE_ROWS = 100_000
"""Of a period, about so many predictions at most."""
ESTIMATING_SECONDS = 120.0
"""After which a run begins with no further period."""

_ESTIMATE, _LOG = "estimate", "serving log"
_NO_PREDICTIONS = "no predictions of the champion are published: `<model>.score` has made none, and no server has a log"

log = logging.getLogger(__name__)


class EstimatedPeriod(Frozen, allow_inf_nan=False):
    """What metrics are expected to be in a period."""

    period: Period
    champion_content: Sha256
    source: Literal["batch predictions", "serving log"]
    rows: int = Field(description="predictions that were read: all of the period, or a sample of them")
    left_out: int = Field(0, description="further ones that are NaN, infinite or null")
    sums: Mapping[NonEmptyStr, tuple[float, ...]] = Field(description="of each metric, by the gate's name")
    problems: Mapping[NonEmptyStr, str] = Field({}, description="why a metric has none, by the gate's name")


@dataclass(frozen=True)
class EstimatedMetric:
    """A metric of the champion as it is expected, day by day, in order; or why there is none."""

    gate: str
    values: Mapping[date, float] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class ChampionEstimates:
    """What is expected of a champion. `fingerprint` is what all of it follows from."""

    metrics: tuple[EstimatedMetric, ...] = ()
    problems: tuple[str, ...] = ()
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


def estimates_dataset(model: str) -> Dataset:
    """Return the dataset of what metrics of a model's champions are expected to be."""
    return datasets.open_dataset(f"estimates/{model}")


def estimate_new(
    model: ModelSpec, tenure: ChampionTenure, end: str, *, clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """Publish estimates of the periods before `end` whose predictions are new; return what cannot be estimated."""
    gates = [gate for gate in monitored_gates(model) if estimate_problem(model, gate) is None]
    if not gates:
        return []
    dataset, described = estimates_dataset(model.name), describe_metrics(model)
    metrics = {gate.name: described[gate.name] for gate in gates}
    code = code_of(("evergreen.monitoring.expected_metrics", "evergreen.monitoring.estimates"), ("duckdb", "numpy"))
    predicted, damaged = _find_predictions(model, tenure, end)
    due = {}
    for period, (source, predictions, manifest) in predicted.items():
        inputs = {
            "champion": tenure.content,
            # The log also says of how many rows its predictions are a sample.
            "predictions": manifest.content_hash if source == _LOG else manifest.files[PREDICTIONS_FILE].sha256,
            "source": source,
            "metrics": metrics,
            "code": code,
        }
        try:
            if dataset.find(datasets.period_partition(period), compute_fingerprint(inputs)) is None:
                due[period] = source, predictions, manifest, inputs
        except DatasetError as error:
            damaged[period] = first_line(error)
    problems = [f"estimates: {period}: {text}" for period, text in sorted(damaged.items())]
    begun = clock()
    for number, period in enumerate(sorted(due, reverse=True)):
        if clock() - begun >= ESTIMATING_SECONDS:
            problems.append(f"estimates: {len(due) - number:,} more periods are estimated by the next runs")
            break
        source, predictions, manifest, inputs = due[period]
        try:
            probabilities, rows = _read_predictions(predictions, manifest)
            if source == _LOG:
                rows = read_served_period(predictions, manifest).rows
            is_number, left_out = np.isfinite(probabilities), 0
            if is_number.any():  # else they are no probabilities
                left_out, rows = int((~is_number).sum()), round(rows * float(is_number.mean()))
                probabilities = probabilities[is_number]
            sums, failed = dict[str, tuple[float, ...]](), dict[str, str]()
            for gate in gates:
                try:
                    if expected := expected_sums(gate, probabilities):
                        # A sample stands for all rows of its period.
                        sums[gate.name] = tuple(rows / max(probabilities.size, 1) * term for term in expected)
                    else:
                        failed[gate.name] = "it does not exist for these predictions"
                except NotComputedError as error:
                    failed[gate.name] = str(error)
            estimate = EstimatedPeriod(
                period=period,
                champion_content=tenure.content,
                source=source,
                rows=probabilities.size,
                left_out=left_out,
                sums=sums,
                problems=failed,
            )
            text = estimate.model_dump_json(indent=1)
            publish_period_record(dataset, datasets.period_partition(period), _ESTIMATE, text, inputs)
        except Exception as error:  # of any class: files of the lake
            log.warning("%s cannot be estimated", period, exc_info=error)
            problems.append(f"estimates: {period}: {first_line(error)}")
    return problems


def collect_estimates(
    model: ModelSpec, tenure: ChampionTenure, problems: Sequence[str] = (), *, end: str | None = None
) -> ChampionEstimates:
    """Return what is published of a champion; with `end`, of the periods before it."""
    gates, messages, calendar = monitored_gates(model), list(problems), feature_spec(model).calendar
    impossible = {gate.name: problem for gate in gates if (problem := estimate_problem(model, gate))}
    days: dict[str, dict[date, list[Sequence[float]]]] = {gate.name: {} for gate in gates}
    contents, described = dict[str, str](), describe_metrics(model) if len(impossible) < len(gates) else {}
    unreadable, incomplete = list[str](), dict[str, str]()
    failed: dict[str, dict[str, str]] = {gate.name: {} for gate in gates}
    dataset = estimates_dataset(model.name)
    names = dataset.partitions(datasets.period_partition(tenure.as_of)) if described and dataset.exists() else []
    for name in names:
        period = datasets.partition_period(name)
        if end is not None and period >= end:
            continue
        try:
            manifest = dataset.manifest(name)
            if manifest is None or manifest.inputs["champion"] != tenure.content:
                continue
            estimate = read_period_record(dataset, manifest, _ESTIMATE, EstimatedPeriod)
        except (DatasetError, OSError, KeyError) as error:
            unreadable.append(f"estimates: {name} cannot be read: {first_line(error)}")
            continue
        contents[period] = manifest.content_hash
        if estimate.left_out:
            incomplete[period] = f"{estimate.left_out:,} of {estimate.rows + estimate.left_out:,}"
        for gate in gates:
            if manifest.inputs["metrics"].get(gate.name) != described.get(gate.name):
                continue
            if gate.name in estimate.sums:
                days[gate.name].setdefault(calendar.date_of(period), []).append(estimate.sums[gate.name])
            elif gate.name in estimate.problems:
                failed[gate.name][period] = estimate.problems[gate.name]
    messages += unreadable
    if incomplete:  # one line: the newest is quoted
        messages.append(
            f"estimates: {calendar.describe(incomplete)}: {incomplete[max(incomplete)]} predictions are NaN or "
            "infinite: they are left out"
        )
    for name, texts in sorted(failed.items()):
        if texts:  # one line, whatever each period says: the newest is quoted
            messages.append(f"estimates: {calendar.describe(texts)}: {name}: {texts[max(texts)]}")
    metrics = []
    for gate in gates:
        values = {
            day: metric_of_sums(gate, add_sums(parts), model.prediction_type)
            for day, parts in sorted(days[gate.name].items())
        }
        finite = {day: value for day, value in values.items() if np.isfinite(value)}
        problem = impossible.get(gate.name) or (
            None if finite else _absence_reason(values, failed[gate.name], [*problems, *unreadable])
        )
        metrics.append(EstimatedMetric(gate.name, finite, problem))
    fingerprint = {"periods": contents, "problems": messages, "not": impossible, "metrics": described}
    return ChampionEstimates(tuple(metrics), tuple(messages), fingerprint)


def compare_estimates(estimates: ChampionEstimates, realised: Sequence[DailyMetric]) -> tuple[EstimateRecord, ...]:
    """Return what the record says of each metric, with how far estimates were from what labels have shown since."""
    since = {
        metric.name: dict(zip(metric.days[metric.holdout_days :], map(float, metric.since), strict=True))
        for metric in realised
    }
    records = []
    for metric in estimates.metrics:
        realised_values = since.get(metric.gate, {})
        errors = [
            abs(value - realised_values[day])
            for day, value in metric.values.items()
            if day in realised_values and np.isfinite(realised_values[day])
        ]
        last = max(metric.values, default=None)
        records.append(
            EstimateRecord(
                gate=metric.gate,
                days=len(metric.values),
                last_day=last,
                last=metric.values[last] if last else None,
                realised_days=len(errors),
                error=float(np.mean(errors)) if errors else None,
                problem=metric.problem,
            )
        )
    return tuple(records)


def _absence_reason(values: Mapping[date, float], failed: Mapping[str, str], problems: Sequence[str]) -> str:
    """Return why no day has an estimate of a metric: values that are no numbers, or the newest failure."""
    if failed:
        newest = max(failed)
        return f"no period could be estimated, the last one, {newest}: {failed[newest]}"
    if values:
        return f"no day has a number, the last one is {max(values)}"
    # `estimate_new` begins with the newest period.
    return problems[0].removeprefix("estimates: ") if problems else _NO_PREDICTIONS


_Predictions = tuple[Literal["batch predictions", "serving log"], Dataset, Manifest]


def _find_predictions(
    model: ModelSpec, tenure: ChampionTenure, end: str
) -> tuple[dict[str, _Predictions], dict[str, str]]:
    """Return where the champion's predictions of each period are, those of batches before those of servers.

    And why some cannot be read, by period.
    """
    places: dict[str, _Predictions] = {}
    batches, logs = datasets.open_dataset(f"predictions/{model.name}"), serving_dataset(model.name)
    periods = [period for period in published_periods(model, tenure.as_of) if period < end]
    logged, damaged = read_period_manifests(logs, periods)
    for period, manifest in logged.items():
        if manifest.inputs["champion"] == tenure.content and PREDICTIONS_FILE in manifest.files:
            places[period] = "serving log", logs, manifest
    scored, damaged_batches = read_period_manifests(batches, periods)
    for period, manifest in scored.items():
        if manifest.inputs["model"]["content"] == tenure.content:
            places[period] = "batch predictions", batches, manifest
    places = {period: item for period, item in places.items() if item[2].files[PREDICTIONS_FILE].rows}
    return places, damaged | damaged_batches


def _read_predictions(dataset: Dataset, manifest: Manifest) -> tuple[FloatValues, int]:
    """Return the predictions (n,) of a period, or a sample of them, and their number."""
    rows = manifest.files[PREDICTIONS_FILE].rows or 0
    step = max(1, -(-rows // ESTIMATE_ROWS))
    file = quote_text(glob.escape(str(dataset.file_path(manifest, PREDICTIONS_FILE))))
    query = (
        f"SELECT prediction::DOUBLE AS p FROM read_parquet({file}, hive_partitioning = false, file_row_number = true) "
        f"WHERE hash(file_row_number) % {step} = 0 ORDER BY p"
    )
    with open_database() as database:
        values = database.sql(query).to_arrow_table()["p"].to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float64), rows
