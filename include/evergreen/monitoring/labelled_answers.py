"""Publishes how what was served did, by the labels that were posted for prediction ids. Nothing acts on it.

    labelled_answers/flight_delay/               a dataset
        _manifests/day=2013-03-01.json           of a period of requests: the sums of each metric, by model

A period follows from its files of labels, from what was answered (`served_answers`), and from the spine's labels, which
are compared only. So whoever computes it, in whatever order or again, gets the same. It is computed again when files of
labels are others: only such periods, and new ones, cost something. What is published stays when logs, labels or
features are gone.
"""
# ruff: noqa: S608 - names are quoted or made here, and literals are quoted

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import Field

from evergreen.errors import DatasetError, EvergreenError, first_line
from evergreen.evaluation.row_files import predictions_array, predictions_type, write_column
from evergreen.features.inputs import features_dataset, published_manifests
from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.verdict import NotComputedError
from evergreen.ingest.databases import open_database, quote_name, quote_text
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.ledger import ChampionTenure
from evergreen.monitoring.daily_metrics import add_sums, metric_of_sums, sum_rows
from evergreen.monitoring.matured import NOT_FINITE, describe_metrics, metrics_code, monitored_gates
from evergreen.monitoring.matured_days import EARLIER_TIME
from evergreen.monitoring.performance import DailyMetric
from evergreen.monitoring.period_records import publish_period_record, read_period_manifests, read_period_record
from evergreen.monitoring.period_rows import read_row_evidence
from evergreen.monitoring.posted_labels import (
    LABELS_FOLDER,
    PostedFile,
    iter_label_problems,
    label_columns,
    read_posted_labels,
)
from evergreen.monitoring.record import LabelledMetricRecord, LabelledPeriodRecord, PostedLabelsRecord
from evergreen.monitoring.served_answers import answer_columns
from evergreen.monitoring.served_attempts import ComparisonAttempts
from evergreen.monitoring.served_periods import ANSWERS_FILE, MAX_FOREIGN, read_served_period
from evergreen.monitoring.served_reference import serving_dataset
from evergreen.monitoring.serving_logs import LogFile, fetch_log_files, list_log_files, shorten, size_problem
from evergreen.spec import Frozen, Period
from evergreen.spec.gates import MetricGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

LABELLING_SECONDS = 120.0
"""After which a run begins with no further period."""
MAX_MODELS = 5
"""Of a period: those with the most labelled predictions are measured."""
SHOWN_PERIODS = 14
"""The last ones, which the record lists."""

_FILE = "labelled"
_BATCH_ROWS = 131_072
_MAX_NAMED = 20  # files of the record
_PREFIX = "posted labels"
_ABSENT = MissingEvidence("neither the log nor posted labels have them")

log = logging.getLogger(__name__)


class AnswersOfModel(Frozen, allow_inf_nan=False):
    """How what a model answered in a period did, by posted labels."""

    version: str = Field(description="as the log names it")
    content: str = Field(description="of the model, as the log names it")
    predictions: int = Field(description="that were logged, or are in the sample of them")
    labelled: int = Field(description="of these, with a label")
    sums: Mapping[str, tuple[float, ...]] = Field(description="of each metric, by the gate's name (`daily_metrics`)")
    first_sums: Mapping[str, tuple[float, ...]] = Field(
        {}, description="the same by the label of each id that was known first; empty if none was corrected"
    )
    problems: tuple[str, ...] = ()


class LabelledPeriod(Frozen, allow_inf_nan=False):
    """What the labels that were posted for the predictions of a period show."""

    period: Period
    models: tuple[AnswersOfModel, ...] = Field(description="those with most labelled predictions first")
    is_sample: bool = Field(description="whether the log has more predictions than are judged")
    labelled: int = Field(description="predictions with a label, of all models")
    repeated: int = Field(description="further rows with the same label")
    corrected: int = Field(description="ids whose label was another one before")
    contradictory: int = Field(description="ids with several labels of one time: they are left out")
    unknown: int = Field(description="ids that no log of the period has")
    of_spine: int = Field(description="ids whose label is not that of the spine")
    foreign: tuple[str, ...] = Field((), description="files that are left out, each with why")
    foreign_files: int = Field(0, description="their number")
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledMetric:
    """A metric of what was served, day by day: of the champion, and of other models together."""

    gate: str
    values: Mapping[date, float] = field(default_factory=dict)
    other_values: Mapping[date, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledAnswers:
    """What posted labels show. `fingerprint` is what all of it follows from; without labels it is empty."""

    metrics: tuple[LabelledMetric, ...] = ()
    periods: tuple[LabelledPeriod, ...] = ()
    problems: tuple[str, ...] = ()
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


def labelled_dataset(model: str) -> Dataset:
    """Return the dataset of how what was served of a model did, by posted labels."""
    return datasets.open_dataset(f"labelled_answers/{model}")


def measure_labelled(
    model: ModelSpec, tenure: ChampionTenure, end: str, *, clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """Publish what the labels posted for periods before `end` show, as far as they are new; return what is not known.

    Those are looked at that began within the label delay before the data of the champion ends, or later. Without files
    of labels nothing costs anything.
    """
    calendar, refused = feature_spec(model).calendar, list[str]()
    start = calendar.period_before(tenure.as_of, model.label_delay)
    try:
        files = list_log_files(model.name, start, end, refused, subfolder=LABELS_FOLDER)
    except Exception as error:  # of any class: a store of others
        log.warning("posted labels cannot be listed", exc_info=error)
        return [f"{_PREFIX}: they cannot be listed: {first_line(error)}"]
    problems = [f"{_PREFIX}: {problem}" for problem in refused]
    gates = monitored_gates(model)
    if not files or not gates:
        return problems
    label_columns(model, gates)  # a spec that cannot have any
    too_large = {
        period: text
        for period, items in files.items()
        if (text := size_problem(items, "its labels have", "leave out columns that are not needed"))
    }
    problems += [f"{_PREFIX}: {period}: they are not read: {text}" for period, text in too_large.items()]
    files = {period: items for period, items in files.items() if period not in too_large}
    dataset, served, failed = labelled_dataset(model.name), serving_dataset(model.name), dict[str, list[str]]()
    published, damaged = read_period_manifests(dataset, files)
    logged, damaged_logs = read_period_manifests(served, files)
    problems += [f"{_PREFIX}: {period}: {text}" for period, text in sorted((damaged | damaged_logs).items())]
    files = {period: items for period, items in files.items() if period not in damaged | damaged_logs}
    answers = {name: logged[name] for name in files if name in logged and ANSWERS_FILE in logged[name].files}
    if absent := [name for name in files if name not in answers and not _is_of(published.get(name), files[name])]:
        problems.append(
            f"{_PREFIX}: {calendar.describe(absent)}: what servers answered is not known: their log is absent, or not "
            "compared yet; a label belongs into the folder of the request's period"
        )
    features = published_manifests(model, list(answers))
    due = _find_due_periods(model, files, answers, features, published)
    attempts = ComparisonAttempts(dataset, tenure.content, due)
    # The newest ones first: they are what a person asks for.
    order = sorted(sorted(due, reverse=True), key=lambda name: name in attempts.failed)
    begun = clock()
    for number, period in enumerate(order):
        if clock() - begun >= LABELLING_SECONDS:
            problems.append(f"{_PREFIX}: {len(order) - number:,} more periods are judged by the next runs")
            break
        try:
            attempts.begin(period)
            _publish_period(model, gates, period, files[period], answers[period], features.get(period), due[period])
            attempts.end(period)
        except Exception as error:  # of any class: files of others, the store
            if not isinstance(error, EvergreenError):
                log.warning("posted labels of %s cannot be judged", period, exc_info=error)
            failed.setdefault(shorten(first_line(error)), []).append(period)
    attempts.close()
    return problems + [
        f"{_PREFIX}: {calendar.describe(sorted(periods))}: they cannot be judged: {text}"
        for text, periods in failed.items()
    ]


def collect_labelled(model: ModelSpec, tenure: ChampionTenure, problems: Sequence[str] = ()) -> LabelledAnswers:
    """Return what is published of posted labels: of the champion, and of the models of a year before."""
    gates, messages, calendar = monitored_gates(model), list(problems), feature_spec(model).calendar
    dataset, key = labelled_dataset(model.name), calendar.partition_key
    start = calendar.period_before(tenure.as_of, EARLIER_TIME)
    periods, contents = dict[str, LabelledPeriod](), dict[str, str]()
    described = describe_metrics(model) if dataset.exists() else {}
    days = {gate.name: (dict[date, list[Sequence[float]]](), dict[date, list[Sequence[float]]]()) for gate in gates}
    for name in dataset.partitions(datasets.period_partition(start)) if dataset.exists() else []:
        if not name.startswith(f"{key}="):
            continue
        try:
            manifest = dataset.manifest(name)
            if manifest is None:
                continue
            item = read_period_record(dataset, manifest, _FILE, LabelledPeriod)
        except (DatasetError, OSError) as error:
            messages.append(f"{_PREFIX}: {name} cannot be read: {first_line(error)}")
            continue
        of_now = {gate.name for gate in gates if manifest.inputs["metrics"].get(gate.name) == described[gate.name]}
        item = _select_metrics(item, of_now)
        periods[item.period], contents[item.period] = item, manifest.content_hash
        for answers in item.models:
            for gate_name, sums in answers.sums.items():
                place = days[gate_name][answers.content != tenure.content]
                place.setdefault(calendar.date_of(item.period), []).append(sums)
    ordered = tuple(periods[period] for period in sorted(periods))
    messages += _period_messages(ordered[-SHOWN_PERIODS:])
    if not ordered:
        return LabelledAnswers(problems=tuple(messages), fingerprint={"problems": messages} if messages else {})
    metrics = tuple(
        LabelledMetric(gate.name, *(_daily_values(model, gate, parts) for parts in days[gate.name])) for gate in gates
    )
    fingerprint = {"periods": contents, "problems": messages, "metrics": described}
    return LabelledAnswers(metrics, ordered, tuple(messages), fingerprint)


def summarize_labelled(
    model: ModelSpec, labelled: LabelledAnswers, matured: Sequence[DailyMetric]
) -> PostedLabelsRecord | None:
    """Return what the record says of posted labels; None without any.

    Args:
        model: its spec.
        labelled: what is published.
        matured: the champion's metrics on labels of the spine.
    """
    if not labelled.periods:
        return None
    since = {
        metric.name: dict(zip(metric.days[metric.holdout_days :], map(float, metric.since), strict=True))
        for metric in matured
    }
    recent, gates = labelled.periods[-SHOWN_PERIODS:], {gate.name: gate for gate in monitored_gates(model)}
    metrics = []
    for metric in labelled.metrics:
        last, realised = max(metric.values, default=None), since.get(metric.gate, {})
        distances = [
            abs(value - realised[day]) for day, value in metric.values.items() if np.isfinite(realised.get(day, np.nan))
        ]
        metrics.append(
            LabelledMetricRecord(
                gate=metric.gate,
                days=len(metric.values),
                last_day=last,
                last=metric.values[last] if last else None,
                matured_days=len(distances),
                distance=float(np.mean(distances)) if distances else None,
            )
        )
    rows = [
        LabelledPeriodRecord(
            period=item.period,
            version=answers.version,
            predictions=answers.predictions,
            labelled=answers.labelled,
            is_sample=item.is_sample,
            values=_finite_values(model, gates, answers.sums),
            first_values=_finite_values(model, gates, answers.first_sums),
        )
        for item in recent
        for answers in item.models
    ]
    foreign = [name for item in reversed(recent) for name in item.foreign]
    return PostedLabelsRecord(
        first_period=recent[0].period,
        last_period=recent[-1].period,
        labelled=sum(item.labelled for item in recent),
        corrected=sum(item.corrected for item in recent),
        contradictory=sum(item.contradictory for item in recent),
        unknown=sum(item.unknown for item in recent),
        of_spine=sum(item.of_spine for item in recent),
        metrics=tuple(metrics),
        periods=tuple(rows),
        foreign_files=sum(item.foreign_files for item in recent),
        foreign=tuple(foreign[:_MAX_NAMED]),
    )


def _find_due_periods(
    model: ModelSpec,
    files: Mapping[str, Sequence[LogFile]],
    answers: Mapping[str, Manifest],
    features: Mapping[str, Manifest],
    published: Mapping[str, Manifest],
) -> dict[str, dict[str, Any]]:
    """Return what the results of periods with answers follow from, of those that are not published like that."""
    dataset, due = labelled_dataset(model.name), dict[str, dict[str, Any]]()
    modules = ("labelled_answers", "posted_labels", "served_answers", "serving_logs")
    code = code_of(tuple(f"evergreen.monitoring.{name}" for name in modules), ("duckdb", "pyarrow"))
    own_code = {
        name: code[name] for name in (*(f"evergreen.monitoring.{name}" for name in modules), "duckdb", "pyarrow")
    }
    own_code |= metrics_code()
    metrics = describe_metrics(model)
    for period, manifest in answers.items():
        inputs = {
            "files": _describe_files(files[period]),
            "answers": manifest.files[ANSWERS_FILE].sha256,
            "features": features[period].content_hash if period in features else None,
            "metrics": metrics,
            "code": own_code,
        }
        earlier = published.get(period)
        if earlier and inputs["features"] is None and _is_of(earlier, files[period]):
            inputs["features"] = earlier.inputs["features"]  # they have expired, and what they showed stays
        if dataset.find(datasets.period_partition(period), compute_fingerprint(inputs)) is None:
            due[period] = inputs
    return due


def _describe_files(files: Sequence[LogFile]) -> str:
    return compute_fingerprint([[file.path, file.size, file.changed_at] for file in files])


def _is_of(published: Manifest | None, files: Sequence[LogFile]) -> bool:
    """Return whether these files of labels are those of what is published."""
    return published is not None and published.inputs["files"] == _describe_files(files)


def _publish_period(
    model: ModelSpec,
    gates: Sequence[MetricGate],
    period: str,
    files: Sequence[LogFile],
    answers: Manifest,
    features: Manifest | None,
    inputs: dict[str, Any],
) -> None:
    served, dataset = serving_dataset(model.name), labelled_dataset(model.name)
    source = served.file_path(answers, ANSWERS_FILE)
    has_all = read_served_period(served, answers).has_all_answers
    spine = None
    if features and feature_spec(model).spine in features.files:
        spine = features_dataset(model).file_path(features, feature_spec(model).spine)
    with tempfile.TemporaryDirectory() as scratch, open_database() as database:
        paths, refused = fetch_log_files(model.name, files, Path(scratch))
        times = {file.path: file.changed_at for file in files}
        posted = {name: PostedFile(path, times[name]) for name, path in paths.items()}
        labels = read_posted_labels(database, posted, model, gates, source, spine, has_all_answers=has_all)
        models, problems = _measure_models(database, model, gates, source, Path(scratch))
    foreign = (*refused, *labels.foreign)
    result = LabelledPeriod(
        period=period,
        models=models,
        is_sample=not has_all,
        labelled=labels.labelled,
        repeated=labels.repeated,
        corrected=labels.corrected,
        contradictory=labels.contradictory,
        unknown=labels.unknown,
        of_spine=labels.of_spine,
        foreign=foreign[:MAX_FOREIGN],
        foreign_files=len(foreign),
        problems=(*iter_label_problems(labels), *problems),
    )
    publish_period_record(dataset, datasets.period_partition(period), _FILE, result.model_dump_json(indent=1), inputs)
    log.info("%s: %s predictions have a label", period, labels.labelled)


def _measure_models(
    database: duckdb.DuckDBPyConnection,
    model: ModelSpec,
    gates: Sequence[MetricGate],
    answers: Path,
    scratch: Path,
) -> tuple[tuple[AnswersOfModel, ...], list[str]]:
    """Return how each model did by the table `labelled`, and what is left out."""
    rows = database.execute(
        "SELECT coalesce(a.model_content, '') AS model, min(a.model_version), count(*) AS predictions, "
        "count(l.id) AS labels FROM answered a LEFT JOIN labelled l ON a.prediction_id = l.id "
        "GROUP BY model ORDER BY labels DESC, predictions DESC, model"
    ).fetchall()
    _, outputs = answer_columns(answers)
    models, problems = list[AnswersOfModel](), list[str]()
    for number, (content, version, predictions, labelled) in enumerate(rows[:MAX_MODELS]):
        sums, first_sums, faults = dict[str, tuple[float, ...]](), dict[str, tuple[float, ...]](), list[str]()
        if labelled:
            folder = scratch / f"model-{number}"
            sums, faults = _measure_rows(database, model, gates, outputs, content, "value", folder)
            is_corrected = f"is_corrected AND coalesce(content, '') = {quote_text(content)}"
            if database.execute(f"SELECT 1 FROM labelled WHERE {is_corrected} LIMIT 1").fetchone():
                folder = scratch / f"model-{number}-first"
                first_sums, _ = _measure_rows(database, model, gates, outputs, content, "first_value", folder)
        models.append(
            AnswersOfModel(
                version=shorten(version or ""),
                content=content,
                predictions=predictions,
                labelled=labelled,
                sums=sums,
                first_sums=first_sums,
                problems=tuple(faults),
            )
        )
        problems += [f"version {shorten(version or '')}: {fault}" for fault in faults]
    if left_out := sum(labelled for *_, labelled in rows[MAX_MODELS:]):
        problems.append(f"{left_out:,} labelled predictions are of further models: they are left out")
    return tuple(models), problems


def _measure_rows(
    database: duckdb.DuckDBPyConnection,
    model: ModelSpec,
    gates: Sequence[MetricGate],
    outputs: Sequence[str],
    content: str,
    value: str,
    folder: Path,
) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    """Return the sums of each metric over the labelled rows of a model, and why some have none."""
    folder.mkdir()
    terms = ["moment AS event_timestamp", f"{value} AS label"]
    terms += [f"weight AS {quote_name(model.weight)}"] if model.weight else []
    terms += [f"query AS {quote_name(model.query)}"] if model.query else []
    chosen = f"FROM labelled WHERE coalesce(content, '') = {quote_text(content)} AND {value} IS NOT NULL"
    chosen += " ORDER BY labelled.id"  # a column of the spec may be called `id`
    examples = folder / "examples.parquet"
    database.execute(f"COPY (SELECT {', '.join(terms)} {chosen}) TO {quote_text(str(examples))} (FORMAT parquet)")
    is_single = outputs == ["prediction"]
    selected = ", ".join(map(quote_name, outputs))

    def batches() -> Iterator[pa.Array]:
        for batch in database.sql(f"SELECT {selected} {chosen}").to_arrow_reader(_BATCH_ROWS):
            columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
            yield predictions_array(columns[0] if is_single else np.column_stack(columns))

    scores = write_column(folder / "predicted.parquet", predictions_type(0 if is_single else len(outputs)), batches())
    evidence = _name_what_is_absent(read_row_evidence(model, gates, scores, [examples], folder))
    sums, faults = dict[str, tuple[float, ...]](), list[str]()
    for gate in gates:
        try:
            measured = sum_rows(gate, evidence)
        except NotComputedError as error:
            faults.append(f"{gate.name}: {error}")
            continue
        if measured and not np.isfinite(measured).all():
            faults.append(f"{gate.name}: {NOT_FINITE}")
        elif measured:
            sums[gate.name] = measured
    return sums, faults


def _name_what_is_absent(evidence: Evidence) -> Evidence:
    """Return evidence that does not ask for columns of a holdout, or for a file of examples, where there are none."""
    columns = {name: _ABSENT if isinstance(item, MissingEvidence) else item for name, item in evidence.columns.items()}
    forecast_columns = {name: getattr(evidence, name) for name in ("horizons", "scales")}
    changes: dict[str, Any] = {
        name: _ABSENT for name, item in forecast_columns.items() if isinstance(item, MissingEvidence)
    }
    return replace(evidence, columns=columns, **changes)


def _select_metrics(item: LabelledPeriod, names: set[str]) -> LabelledPeriod:
    """Return a period without the sums of what are other metrics by now."""
    models = tuple(
        answers.model_copy(
            update={
                kind: {name: sums for name, sums in getattr(answers, kind).items() if name in names}
                for kind in ("sums", "first_sums")
            }
        )
        for answers in item.models
    )
    return item.model_copy(update={"models": models})


def _daily_values(
    model: ModelSpec, gate: MetricGate, parts: Mapping[date, Sequence[Sequence[float]]]
) -> dict[date, float]:
    values = {day: metric_of_sums(gate, add_sums(sums), model.prediction_type) for day, sums in sorted(parts.items())}
    return {day: value for day, value in values.items() if np.isfinite(value)}


def _finite_values(
    model: ModelSpec, gates: Mapping[str, MetricGate], sums: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    values = {name: metric_of_sums(gates[name], item, model.prediction_type) for name, item in sums.items()}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _period_messages(periods: Sequence[LabelledPeriod]) -> Iterator[str]:
    """Yield what the record has to name of the last periods."""
    foreign = [name for item in reversed(periods) for name in item.foreign]
    yield from (f"{_PREFIX}: {name}" for name in foreign[:_MAX_NAMED])
    if unnamed := sum(item.foreign_files for item in periods) - len(foreign[:_MAX_NAMED]):
        yield f"{_PREFIX}: {unnamed:,} more files are left out"
    for item in periods:
        yield from (f"{_PREFIX}: {item.period}: {problem}" for problem in item.problems)
