"""Publishes how a champion, and the one that it replaced, did on the same rows of each period since its promotion.

    performance/flight_delay/                                a dataset
        _manifests/pair=3f9a…-2013-03-01.json                of two models and a period: the sums of a metric of both

Both score the same rows, with labels that were known, by the same code. A period is measured again when its features,
its labels or the metric are others. Only such periods, and new ones, cost something.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field

from evergreen.errors import DatasetError, EvergreenError, ScoringError, first_line
from evergreen.features.inputs import features_dataset, published_manifests
from evergreen.gates.judged_rows import open_rows
from evergreen.gates.verdict import NotComputedError
from evergreen.ingest.databases import open_database
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.monitoring.champion_pair import ChampionPair, comparison_end
from evergreen.monitoring.daily_metrics import add_sums, sum_rows
from evergreen.monitoring.matured import (
    MEASURING_SECONDS,
    NOT_FINITE,
    PAIR_PREFIX,
    describe_metric,
    metrics_code,
    performance_dataset,
    read_labels,
)
from evergreen.monitoring.paired_days import PairedDays
from evergreen.monitoring.period_records import publish_period_record, read_period_record
from evergreen.monitoring.period_rows import RegisteredModels, open_pair
from evergreen.periods import Calendar
from evergreen.spec import Frozen, Period
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.storage import Sha256

_FILE, _DIGITS = "pair", 16

log = logging.getLogger(__name__)


class PairedPerformance(Frozen, allow_inf_nan=False):
    """How both did on the rows of a period whose labels were known."""

    period: Period
    champion_content: Sha256
    previous_content: Sha256
    rows: int = Field(ge=0, description="that both were measured on")
    differing: int = Field(ge=0, description="of these, rows that the two predict differently")
    champion: tuple[float, ...] = Field(description="sums of the metric; none without rows (`daily_metrics`)")
    previous: tuple[float, ...]


class MeasuredPair(NamedTuple):
    """What a run knows of a pair.

    Attributes:
        periods: by period, oldest first.
        is_current: whether nothing that was measured before is of a later period, or of labels that were known later.
        problems: what is not known, and why.
    """

    periods: Mapping[str, PairedPerformance]
    is_current: bool = True
    problems: Sequence[str] = ()


def measure_pair(
    model: ModelSpec,
    gate: AgainstChampionGate,
    pair: ChampionPair,
    end: str,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> MeasuredPair:
    """Measure the periods that are new, or whose labels or features are others, and return all whose labels matured.

    After `MEASURING_SECONDS` no further one begins, oldest first. What fails of one is a problem of that one. Nothing
    is measured where a later run was first: then what is published is not that of now.

    Args:
        model: its spec.
        gate: by whose metric they are compared.
        pair: of the ledger's state.
        end: labels are known that were known when this period began.
        clock: returns seconds.
    """
    calendar, dataset = feature_spec(model).calendar, performance_dataset(model.name)
    known_before, matured_end = calendar.start(end), calendar.period_before(end, model.label_delay)
    periods = list(calendar.periods_between(pair.start, min(matured_end, comparison_end(model, pair))))
    names, prefix = {_partition(pair, period): period for period in periods}, _partition(pair, "")
    existing = [name for name in dataset.partitions(prefix) if name.startswith(prefix)]
    manifests = dataset.read_manifests([name for name in existing if name in names])
    published = {names[manifest.partition]: manifest for manifest in manifests}
    is_current = not any(name >= _partition(pair, matured_end) for name in existing) and not any(
        _knows_later(manifest, known_before) for manifest in manifests
    )
    features, metric, code = published_manifests(model, periods), describe_metric(model, gate), metrics_code()
    measured, failed, begun = dict[str, PairedPerformance](), dict[str, list[str]](), clock()
    problems = list[str]()
    with RegisteredModels(model) as models:
        for number, period in enumerate(periods):
            manifest, earlier = features.get(period), published.get(period)
            inputs = {"features": manifest and manifest.content_hash, "metric": metric, "code": code}
            try:
                if earlier and (manifest is None or not is_current or not _is_due(earlier, inputs, known_before)):
                    measured[period] = _read(dataset, earlier, metric)
                elif manifest and is_current:
                    if clock() - begun >= MEASURING_SECONDS:
                        problems.append(f"{len(periods) - number:,} periods or fewer are measured by the next runs")
                        break
                    measured[period] = _measure(model, gate, pair, period, manifest, inputs, models, known_before)
            except Exception as error:  # of any class: files, features, libraries of models
                if not isinstance(error, EvergreenError | NotComputedError):
                    log.warning("%s cannot be measured", period, exc_info=error)
                failed.setdefault(first_line(error), []).append(period)
    problems += [f"{calendar.describe(periods)} cannot be measured: {text}" for text, periods in failed.items()]
    return MeasuredPair(measured, is_current, problems)


def add_up_days(periods: Mapping[str, PairedPerformance], calendar: Calendar) -> PairedDays:
    """Return the days, or weeks, all of whose periods were measured, and that have a labelled row."""
    members: dict[date, list[PairedPerformance]] = {}
    for period in sorted(periods):
        members.setdefault(calendar.date_of(period), []).append(periods[period])
    whole = {
        day: [item for item in items if item.rows]
        for day, items in members.items()
        if len(items) == calendar.count(calendar.first_of(day), calendar.first_of(day + timedelta(days=1)))
    }
    days = [day for day, items in whole.items() if items]
    return PairedDays(
        days=tuple(days),
        champion=np.array([add_sums([item.champion for item in whole[day]]) for day in days]),
        previous=np.array([add_sums([item.previous for item in whole[day]]) for day in days]),
        rows=sum(item.rows for day in days for item in whole[day]),
        differing=sum(item.differing for day in days for item in whole[day]),
    )


def _partition(pair: ChampionPair, period: str) -> str:
    digest = compute_fingerprint([pair.champion_content, pair.previous_content])[:_DIGITS]
    return f"{PAIR_PREFIX}{digest}-{datasets.file_name_of_period(period)}"


def _knows_later(published: Manifest, known_before: datetime) -> bool:
    known_until = published.inputs["labels"]["known_until"]
    return bool(known_until and datetime.fromisoformat(known_until) >= known_before)


def _is_due(published: Manifest, inputs: Mapping[str, Any], known_before: datetime) -> bool:
    pending = published.inputs["labels"]["pending"]
    has_new = pending is not None and datetime.fromisoformat(pending) < known_before
    return has_new or any(published.inputs[name] != value for name, value in inputs.items())


def _measure(
    model: ModelSpec,
    gate: AgainstChampionGate,
    pair: ChampionPair,
    period: str,
    features: Manifest,
    inputs: Mapping[str, Any],
    models: RegisteredModels,
    known_before: datetime,
) -> PairedPerformance:
    """Measure a period, and publish that."""
    for content in (pair.previous_content, pair.champion_content):
        models.open(content)  # before rows are joined for it
    table, dataset = feature_spec(model).spine, performance_dataset(model.name)
    if table not in features.files:
        raise ScoringError(f"the features have no table {table}")
    spine = features_dataset(model).file_path(features, table)
    if absent := {model.label, "label_known_at"} - set(pq.read_schema(spine).names):
        raise ScoringError(f"the table {table} has no column {' and no '.join(sorted(absent))}")
    with open_database() as database:
        labels = read_labels(database, spine, model.label, known_before)
    common = {"period": period, "champion_content": pair.champion_content, "previous_content": pair.previous_content}
    performance = PairedPerformance(**common, rows=0, differing=0, champion=(), previous=())
    if labels.labelled:
        contents = (pair.previous_content, pair.champion_content)
        with open_pair(model, gate, period, contents, models, known_before, dataset) as rows:
            champion: Any = rows.evidence.champion  # scores, as of the candidate
            sums = [sum_rows(gate, item) for item in (replace(rows.evidence, candidate=champion), rows.evidence)]
            differing = open_rows(gate, rows.evidence, {"champion": champion}).count_differing("champion")
        if None in sums:
            raise NotComputedError(f"{gate.metric} does not exist for its rows")
        if not all(np.isfinite(item).all() for item in sums if item):
            raise NotComputedError(NOT_FINITE)
        performance = PairedPerformance(
            **common, rows=rows.size, differing=differing, champion=sums[0] or (), previous=sums[1] or ()
        )
    partition = _partition(pair, period)
    everything = {**inputs, **common, "labels": labels._asdict()}
    publish_period_record(dataset, partition, _FILE, performance.model_dump_json(indent=1), everything)
    return performance


def _read(dataset: Dataset, manifest: Manifest, metric: Mapping[str, Any]) -> PairedPerformance:
    """Return what is published of a period.

    Raises:
        DatasetError: it is damaged, or of another metric, and its features have expired.
    """
    if manifest.inputs["metric"] != metric:
        raise DatasetError("it was measured by another metric, and its features have expired")
    return read_period_record(dataset, manifest, _FILE, PairedPerformance)
