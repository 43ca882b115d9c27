"""Publishes histograms of periods, and the record of what they and matured labels show of the champion.

    monitoring/flight_delay/                     a dataset
        _manifests/reference=3f9a….json          of a champion: bins, and histograms of what it was made from
        _manifests/day=2013-03-01.json           of a period: its histograms on the bins of the champion
        _manifests/record=3f9a….json             of a champion: alarms, and the daily series

A record is a function of the reference, of all histograms that are published with its bins, of how the champion did
in the periods whose labels have matured (`matured`), and of what is published of the logs of servers
(`served_periods`) and of the labels that were posted for them (`labelled_answers`). So whoever publishes these in
whatever order, twice, or after having been killed, ends with the same record. Its alarms are appended to
the ledger, each once: what was said there stays, also where late data has changed the past.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen import ledger
from evergreen.errors import first_line
from evergreen.features.inputs import features_dataset, published_manifests
from evergreen.ingest.databases import open_database, parquet_rows, quote_name, quote_text
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.ledger import AlarmRaised, ChampionTenure, LedgerState
from evergreen.monitoring.alarms import Alarm, Judgement, judge_days
from evergreen.monitoring.baseline import MIN_REFERENCE_DAYS
from evergreen.monitoring.estimates import ChampionEstimates, collect_estimates, compare_estimates, estimate_new
from evergreen.monitoring.histogram_files import Counted, dump_bins, load_bins, read_histograms, write_histograms
from evergreen.monitoring.histograms import ColumnBins, Histogram, count_by_bin, find_bins
from evergreen.monitoring.labelled_answers import (
    LabelledAnswers,
    collect_labelled,
    measure_labelled,
    summarize_labelled,
)
from evergreen.monitoring.matured import (
    MaturedPeriods,
    MeasuredPeriods,
    digest_metrics,
    find_promoting_verdict,
    monitored_gates,
)
from evergreen.monitoring.matured_days import ChampionPerformance, collect_performance, read_raised
from evergreen.monitoring.page import create_page, read_performance
from evergreen.monitoring.performance import DailyMetric, judge_performance, running_mean
from evergreen.monitoring.record import (
    RECORD_FILE,
    REPORT_FILE,
    SERIES_FILE,
    AlarmRecord,
    ChangeRecord,
    MonitoringRecord,
    PerformanceRecord,
    monitoring_dataset,
    record_partition,
)
from evergreen.monitoring.series import ColumnCounts, DailySeries, build_series
from evergreen.monitoring.served_days import ChampionServing, collect_serving
from evergreen.monitoring.served_periods import compare_new_logs
from evergreen.monitoring.served_reference import SERVED
from evergreen.reports.monitoring import PerformancePoint, render_monitoring_report
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

INPUTS = "inputs"
PREDICTIONS = "batch predictions"
"""The table of predictions among those of inputs, none of which has such a name."""
PERIODS_AT_ONCE = 50
"""Of which histograms are published together: a run that is killed has made progress, and one query reads many."""

_BINS, _HISTOGRAMS = "bins", "histograms"
_TIME = "event_timestamp"  # of each row of a table, whose time of day shows a clock that is wrong
_PREDICTIONS_FILE = "predictions"
_DIGITS = 16
_INPUTS_SHARE, _PREDICTIONS_SHARE = 0.8, 0.2  # of the budget of false alarms

log = logging.getLogger(__name__)

JudgedSeries = dict[str, tuple[DailySeries, Judgement]]
"""The series of `INPUTS`, those of `PREDICTIONS` and of served inputs, and that of each metric, if they were judged."""


@dataclass(frozen=True)
class ReferenceCounts:
    """What periods are compared with.

    Attributes:
        tables: whose rows are counted, those with `bins` and the spine.
        bins: of the inputs and of the predictions.
        periods: histograms of the periods that the champion was made from, oldest first; and `PREDICTIONS`, those of
            its predictions of its holdout.
    """

    tables: tuple[str, ...]
    bins: tuple[ColumnBins, ...]
    periods: Mapping[str, Counted]
    problems: tuple[str, ...]

    @property
    def learned(self) -> dict[str, Counted]:
        """Histograms of the periods that the champion was made from."""
        return {period: counted for period, counted in self.periods.items() if period != PREDICTIONS}

    def select_bins(self, *tables: str) -> list[ColumnBins]:
        """Return the bins of the columns of these tables."""
        return [column for column in self.bins if column.table in tables]


@dataclass(frozen=True)
class MonitoringReference(ReferenceCounts):
    """That of a champion, as `manifest` has published it."""

    manifest: Manifest


@dataclass(frozen=True)
class RecordEvidence:
    """What a record has besides the histograms of periods."""

    performance: ChampionPerformance = field(default_factory=ChampionPerformance)
    serving: ChampionServing = field(default_factory=ChampionServing)
    estimates: ChampionEstimates = field(default_factory=ChampionEstimates)
    labels: LabelledAnswers = field(default_factory=LabelledAnswers)


def monitor_periods(model: ModelSpec, end: str, actor: str) -> MonitoringRecord | None:
    """Publish histograms of all periods before `end` that the champion has not learned from, and the record of all.

    Only periods whose features or predictions are new cost something. Return the record; None if there is no champion.
    What cannot be monitored is named in it. Of performance it has what is published: nothing is scored, so neither the
    registry nor a model can hold back what data shows.
    """
    monitored = _publish_new_histograms(model, end)
    return _publish_and_raise(model, actor, *monitored, None) if monitored else None


def measure_performance(model: ModelSpec, end: str, actor: str) -> MonitoringRecord | None:
    """Measure the champion in periods before `end` whose labels have matured, and publish the record of all anew.

    Only periods whose features, predictions or labels are new cost something. Alarms of performance are raised before
    logs of servers are compared. Return the record, which names what cannot be measured; None if there is no champion.
    """
    monitored = _publish_new_histograms(model, end)
    if monitored is None:
        return None
    state, tenure, _ = monitored
    measured = _measure_periods(model, state, end)
    _publish_and_raise(model, actor, *monitored, measured)  # logs of others may take all the time that there is
    log_problems = _problems_of("serving log: it is not compared", lambda: compare_new_logs(model, state, tenure, end))
    estimate_problems = _problems_of("estimates: nothing is estimated", lambda: estimate_new(model, tenure, end))
    label_problems = _problems_of("posted labels: they are not judged", lambda: measure_labelled(model, tenure, end))
    return _publish_and_raise(model, actor, *monitored, measured, log_problems, estimate_problems, label_problems)


def _publish_and_raise(
    model: ModelSpec,
    actor: str,
    state: LedgerState,
    tenure: ChampionTenure,
    reference: MonitoringReference,
    measured: MeasuredPeriods | None,
    log_problems: Sequence[str] = (),
    estimate_problems: Sequence[str] = (),
    label_problems: Sequence[str] = (),
) -> MonitoringRecord:
    """Publish the record, and raise its alarms; if nothing was `measured`, a record of the same data stays."""
    performance = _collect_performance(model, state, tenure, measured)
    evidence = RecordEvidence(
        performance,
        _collect_serving(model, tenure, log_problems),
        _collect_estimates(model, tenure, estimate_problems),
        _collect_labelled(model, tenure, label_problems),
    )
    record = publish_record(model, state, tenure, reference, evidence, only_new_data=measured is None)
    metrics = digest_metrics(model) if any(alarm.rule == "performance" for alarm in record.alarms) else {}
    for alarm in record.alarms:
        _append_alarm(model.name, actor, record, alarm, metrics)
    return record


def preview_record(model: ModelSpec, end: str, *, with_performance: bool = False) -> MonitoringRecord | None:
    """Return the record as it would have been when all periods before `end` were known, and none after them.

    Histograms that are missing are published. The record is not, and the ledger gets no alarm.
    """
    monitored = _publish_new_histograms(model, end)
    if monitored is None:
        return None
    state, tenure, reference = monitored
    manifests = _find_histograms(model, tenure, reference)
    earlier = {period: manifest for period, manifest in manifests.items() if period < end}
    evidence = RecordEvidence()
    if with_performance:
        measured = _measure_periods(model, state, end, is_preview=True)
        evidence = RecordEvidence(
            _collect_performance(model, state, tenure, measured, preview_end=end),
            _collect_serving(model, tenure, (), preview_end=end),
            _collect_estimates(model, tenure, (), preview_end=end),
        )
    return judge_periods(model, state, tenure, reference, _read_periods(model, earlier), evidence)[0]


def _measure_periods(model: ModelSpec, state: LedgerState, end: str, *, is_preview: bool = False) -> MeasuredPeriods:
    """Return how champions did in periods whose labels have matured, and what is not known of it."""
    try:
        matured = MaturedPeriods(model, state, end)
        performance = matured.measure_new(is_preview=is_preview)
        return MeasuredPeriods(performance, matured.published, matured.problems)
    except Exception as error:  # of any class: what was measured before is shown nevertheless
        log.warning("performance is not measured", exc_info=error)
        return MeasuredPeriods(problems=[f"performance is not measured: {first_line(error)}"])


def _collect_performance(
    model: ModelSpec,
    state: LedgerState,
    tenure: ChampionTenure,
    measured: MeasuredPeriods | None,
    *,
    preview_end: str | None = None,
) -> ChampionPerformance:
    """Return how the champion does; if that cannot be read, why, and the losses that were raised: they stay."""
    end = feature_spec(model).calendar.date_of(preview_end) if preview_end else date.max
    raised, not_followed = read_raised(state, tenure.content, end, digest_metrics(model))
    problems = [*(measured.problems if measured else ()), *not_followed]
    try:
        return collect_performance(model, state, tenure, measured, problems, raised=raised, preview_end=preview_end)
    except Exception as error:  # of any class: files of the lake
        log.warning("performance is not known", exc_info=error)
        problems.append(f"performance is not known: {first_line(error)}")
        return ChampionPerformance(problems=tuple(problems), raised=raised, fingerprint={"problems": problems})


def _problems_of(consequence: str, step: Callable[[], list[str]]) -> list[str]:
    """Return what a step could not do, and why; if it fails as a whole, the `consequence` of that."""
    try:
        return step()
    except Exception as error:  # of any class: data and performance have alarms without it
        log.warning(consequence, exc_info=error)
        return [f"{consequence}: {first_line(error)}"]


def _collect_serving(
    model: ModelSpec, tenure: ChampionTenure, problems: Sequence[str], *, preview_end: str | None = None
) -> ChampionServing:
    """Return what is published of the logs of servers; if that cannot be read, why."""
    try:
        return collect_serving(model, tenure, problems, end=preview_end)
    except Exception as error:  # of any class: files of the lake
        log.warning("what the serving log shows is not known", exc_info=error)
        problems = (*problems, f"serving log: what it shows is not known: {first_line(error)}")
        return ChampionServing(problems=problems, fingerprint={"problems": problems})


def _collect_estimates(
    model: ModelSpec, tenure: ChampionTenure, problems: Sequence[str], *, preview_end: str | None = None
) -> ChampionEstimates:
    """Return what is published of estimates; if that cannot be read, why."""
    try:
        return collect_estimates(model, tenure, problems, end=preview_end)
    except Exception as error:  # of any class: files of the lake
        log.warning("estimates are not known", exc_info=error)
        problems = (*problems, f"estimates: they are not known: {first_line(error)}")
        return ChampionEstimates(problems=problems, fingerprint={"problems": problems})


def _collect_labelled(model: ModelSpec, tenure: ChampionTenure, problems: Sequence[str]) -> LabelledAnswers:
    """Return what is published of posted labels; if that cannot be read, why."""
    try:
        return collect_labelled(model, tenure, problems)
    except Exception as error:  # of any class: files of the lake
        log.warning("what posted labels show is not known", exc_info=error)
        problems = (*problems, f"posted labels: what they show is not known: {first_line(error)}")
        return LabelledAnswers(problems=problems, fingerprint={"problems": problems})


def _publish_new_histograms(
    model: ModelSpec, end: str
) -> tuple[LedgerState, ChampionTenure, MonitoringReference] | None:
    """Publish what is missing of the champion's reference, and of the periods before `end`; None without a champion."""
    state = ledger.read_state(model.name)
    tenure = state.champion_tenure
    if tenure is None:
        return None
    reference = publish_reference(model, state, tenure)
    _publish_histograms(model, tenure, reference, end)
    return state, tenure, reference


def publish_reference(model: ModelSpec, state: LedgerState, tenure: ChampionTenure) -> MonitoringReference:
    """Return the reference of a champion: from the features of the time that a retrain as of its data reads.

    The first one that is published stays, whatever becomes of these features. One that other code made is replaced,
    but only as long as all that it was made from is still there.
    """
    dataset, partition = monitoring_dataset(model.name), f"reference={tenure.content[:_DIGITS]}"
    code = code_of(("evergreen.monitoring.histograms",), ("duckdb",))
    published = dataset.manifest(partition)
    if published and (published.inputs["code"], published.inputs["champion"]) == (code, tenure.content):
        return _read_reference(dataset, published)
    calendar, start = feature_spec(model).calendar, tenure.as_of
    for duration in model.history:
        start = calendar.period_before(start, duration)
    manifests = published_manifests(model, calendar.periods_between(start, tenure.as_of))
    evaluation = _find_evaluation(model, state, tenure)
    if published and published.inputs["champion"] == tenure.content:
        expired = published.inputs["features"].keys() - manifests.keys()
        if expired or (published.inputs["evaluation"] and evaluation is None):
            cause = f"features of {calendar.describe(expired)}" if expired else "the champion's evaluation"
            log.info("the reference stays as an earlier version has made it: %s expired", cause)
            return _read_reference(dataset, published)
    inputs = {
        "champion": tenure.content,
        "start": start,
        "as_of": tenure.as_of,
        "features": {period: manifest.content_hash for period, manifest in manifests.items()},
        "evaluation": evaluation.files["scores"].sha256 if evaluation else None,
        "code": code,
    }
    fingerprint = compute_fingerprint(inputs)
    if current := dataset.find(partition, fingerprint):
        return _read_reference(dataset, current)
    problems = list[str]()
    columns = input_columns(model, state, tenure, manifests, problems)
    if not manifests:
        problems.append(
            f"no features of {start} – {tenure.as_of} are published any more, which the champion learned from"
        )
    folder = dataset.stage(partition, fingerprint)
    with open_database() as database:
        bins, counted = learn_inputs(database, model, columns, manifests, problems)
        if evaluation:
            with _holdout_predictions(database, model, evaluation, folder) as (file, names):
                rows = pq.read_metadata(file).num_rows
                found_bins = find_bins(database, PREDICTIONS, [file], names, rows)
                bins += found_bins
                problems += _unbinned_problems(PREDICTIONS, names, found_bins)
                _add_counts(counted, PREDICTIONS, count_by_bin(database, found_bins, {PREDICTIONS: file}))
        elif model.score:
            problems.append("predictions are not compared: the champion's evaluation is not in the lake any more")
    tables = [*columns, *([PREDICTIONS] if evaluation else [])]
    document = {"tables": tables, "bins": dump_bins(bins), "problems": problems}
    (folder / f"{_BINS}.json").write_text(json.dumps(document, indent=1) + "\n")
    write_histograms(folder / f"{_HISTOGRAMS}.parquet", counted)
    files = {_BINS: folder / f"{_BINS}.json", _HISTOGRAMS: folder / f"{_HISTOGRAMS}.parquet"}
    # Of two runs, between which features were published anew, the first one wins.
    manifest = dataset.publish(partition, fingerprint, files, inputs, keeps_published=published is None)
    return _read_reference(dataset, manifest)


def learn_inputs(
    database: duckdb.DuckDBPyConnection,
    model: ModelSpec,
    columns: Mapping[str, Sequence[str]],
    manifests: Mapping[str, Manifest],
    problems: list[str],
) -> tuple[list[ColumnBins], dict[str, dict[str, Histogram]]]:
    """Return the bins of columns, by table, on these periods of features, and the histograms of each period.

    Columns that have no bins are added to `problems`.
    """
    bins, counted = list[ColumnBins](), dict[str, dict[str, Histogram]]()
    timezone = feature_spec(model).calendar.timezone
    for table, names in columns.items():
        files = _table_files(model, table, manifests)
        rows = sum(manifest.files[table].rows or 0 for manifest in manifests.values() if table in manifest.files)
        found_bins = (
            find_bins(database, table, list(files.values()), names, rows, times={_TIME: timezone})
            if files and rows
            else []
        )
        bins += found_bins
        if files:
            problems += _unbinned_problems(table, names, found_bins)
        _add_counts(counted, table, count_by_bin(database, found_bins, files) if files else {})
    return bins, counted


def count_inputs(
    database: duckdb.DuckDBPyConnection, model: ModelSpec, reference: ReferenceCounts, manifests: Mapping[str, Manifest]
) -> dict[str, dict[str, Histogram]]:
    """Return the histograms of periods of features on the bins of a reference."""
    counted: dict[str, dict[str, Histogram]] = {}
    for table in reference.tables:
        if table != PREDICTIONS and (files := _table_files(model, table, manifests)):
            _add_counts(counted, table, count_by_bin(database, reference.select_bins(table), files))
    return counted


def _unbinned_problems(table: str, columns: Sequence[str], bins: Sequence[ColumnBins]) -> Iterator[str]:
    unbinned = [f"{table}.{name}" for name in columns if name not in {column.column for column in bins}]
    if unbinned:
        yield (f"not monitored, because the reference has no numbers, texts or booleans of them: {', '.join(unbinned)}")


def _publish_histograms(model: ModelSpec, tenure: ChampionTenure, reference: MonitoringReference, end: str) -> None:
    """Publish the histograms of the periods before `end` that have features, and whose histograms are not published."""
    dataset, predictions = monitoring_dataset(model.name), datasets.open_dataset(f"predictions/{model.name}")
    calendar = feature_spec(model).calendar
    features = published_manifests(model, list(calendar.periods_between(tenure.as_of, end)))
    predicted = {
        datasets.partition_period(manifest.partition): manifest
        for manifest in predictions.read_manifests([datasets.period_partition(period) for period in features])
        if manifest.inputs["model"]["content"] == tenure.content
    }
    due = dict[str, tuple[dict[str, Any], str]]()
    for period, manifest in features.items():
        inputs = {
            "reference": reference.manifest.content_hash,
            "champion": tenure.content,
            "features": manifest.content_hash,
            "predictions": predicted[period].content_hash if period in predicted else None,
            "code": reference.manifest.inputs["code"],
        }
        fingerprint = compute_fingerprint(inputs)
        if dataset.find(datasets.period_partition(period), fingerprint) is None:
            due[period] = inputs, fingerprint
    for batch in (list(due)[start : start + PERIODS_AT_ONCE] for start in range(0, len(due), PERIODS_AT_ONCE)):
        with open_database() as database:
            counted = count_inputs(database, model, reference, {period: features[period] for period in batch})
            files = {
                period: predictions.file_path(predicted[period], _PREDICTIONS_FILE)
                for period in batch
                if period in predicted
            }
            if files and PREDICTIONS in reference.tables:
                _add_counts(counted, PREDICTIONS, count_by_bin(database, reference.select_bins(PREDICTIONS), files))
        for period in batch:
            inputs, fingerprint = due[period]
            partition = datasets.period_partition(period)
            file = dataset.stage(partition, fingerprint) / f"{_HISTOGRAMS}.parquet"
            write_histograms(file, {period: counted.get(period, {})})
            dataset.publish(partition, fingerprint, {_HISTOGRAMS: file}, inputs)
        log.info("%s: histograms are published", calendar.describe(batch))


def publish_record(
    model: ModelSpec,
    state: LedgerState,
    tenure: ChampionTenure,
    reference: MonitoringReference,
    evidence: RecordEvidence,
    *,
    only_new_data: bool = False,
) -> MonitoringRecord:
    """Publish, and return, what all published histograms with the reference's bins, matured labels and logs show.

    With `only_new_data`, a record of the same data stays.
    """
    dataset, calendar = monitoring_dataset(model.name), feature_spec(model).calendar
    manifests = _find_histograms(model, tenure, reference)
    metric, verdicts = read_performance(state, calendar)
    counted = _read_periods(model, manifests)
    record, judged = judge_periods(model, state, tenure, reference, counted, evidence)
    data_inputs = {
        "reference": reference.manifest.content_hash,
        "verdicts": [metric, *((str(point.day), point.value, point.promotes) for point in verdicts)],
        "histograms": {manifest.partition: manifest.content_hash for manifest in manifests.values()},
        "version": state.name_of(tenure.content, tenure.version),
        "as_of": tenure.as_of,
        "calendar": [calendar.period, calendar.timezone],
        "description": model.description,
        "code": code_of(
            ("evergreen.monitoring", "evergreen.reports.monitoring"), ("jinja2", "matplotlib", "numpy", "scipy")
        ),
    }
    losses = [[str(alarm.opened), *alarm.change_names] for alarm in record.alarms if alarm.rule == "performance"]
    inputs = {
        **data_inputs,
        "performance": evidence.performance.fingerprint,
        "losses": losses,
        "serving": evidence.serving.fingerprint,
        "estimates": evidence.estimates.fingerprint,
        "labels": evidence.labels.fingerprint,
    }
    partition, fingerprint = record_partition(tenure.content), compute_fingerprint(inputs)
    while True:
        published = dataset.manifest(partition)
        if only_new_data and published:
            of_data = {name: published.inputs.get(name) for name in data_inputs}
            if compute_fingerprint(of_data) == compute_fingerprint(data_inputs):
                return record
        if dataset.find(partition, fingerprint):
            return record
        folder = dataset.stage(partition, fingerprint)
        files = {RECORD_FILE: folder / f"{RECORD_FILE}.json", SERIES_FILE: folder / f"{SERIES_FILE}.parquet"}
        files[REPORT_FILE] = folder / f"{REPORT_FILE}.html"
        files[RECORD_FILE].write_text(record.model_dump_json(indent=1) + "\n")
        files[REPORT_FILE].write_text(_render_report(model, record, judged, metric, verdicts, evidence))
        is_data = {name: item[0].names[0].measure != "performance" for name, item in judged.items()}
        _write_series(files[SERIES_FILE], {name: item for name, item in judged.items() if is_data[name]})
        try:
            dataset.publish(partition, fingerprint, files, inputs)
        except FileNotFoundError:
            # A run at the same time has published this record, removed what was staged, and published a later one.
            if dataset.manifest(partition) == published:
                raise
        else:
            return record


def _render_report(
    model: ModelSpec,
    record: MonitoringRecord,
    judged: JudgedSeries,
    metric: str,
    verdicts: tuple[PerformancePoint, ...],
    evidence: RecordEvidence,
) -> str:
    """Return the page. If performance cannot be drawn, it says so, and shows the rest."""
    try:
        collected = evidence.performance, evidence.estimates, evidence.labels
        page = create_page(model, record, judged, metric, verdicts, *collected)
        return render_monitoring_report(page)
    except Exception as error:  # of any class: metrics of users may have any values
        log.warning("performance is not drawn", exc_info=error)
        problems = (*record.problems, f"performance is not drawn: {first_line(error)}")
    of_data = {name: item for name, item in judged.items() if item[0].names[0].measure != "performance"}
    record = record.model_copy(update={"problems": problems})
    return render_monitoring_report(create_page(model, record, of_data, metric, verdicts, ChampionPerformance()))


def _find_histograms(model: ModelSpec, tenure: ChampionTenure, reference: MonitoringReference) -> dict[str, Manifest]:
    """Return the published histograms with the reference's bins, by period, oldest first."""
    dataset, key = monitoring_dataset(model.name), feature_spec(model).calendar.partition_key
    names = dataset.partitions(datasets.period_partition(tenure.as_of))
    return {
        datasets.partition_period(manifest.partition): manifest
        for manifest in dataset.read_manifests([name for name in names if name.startswith(f"{key}=")])
        if manifest.inputs["reference"] == reference.manifest.content_hash
    }


def _read_periods(model: ModelSpec, manifests: Mapping[str, Manifest]) -> dict[str, Counted]:
    dataset = monitoring_dataset(model.name)
    counted = {
        period: read_histograms(dataset.file_path(manifest, _HISTOGRAMS)) for period, manifest in manifests.items()
    }
    return {period: next(iter(histograms.values()), {}) for period, histograms in counted.items()}


def judge_periods(
    model: ModelSpec,
    state: LedgerState,
    tenure: ChampionTenure,
    reference: ReferenceCounts,
    periods: Mapping[str, Counted],
    evidence: RecordEvidence,
) -> tuple[MonitoringRecord, JudgedSeries]:
    """Return what the histograms of `periods`, and the evidence beside them, show."""
    performance, serving, estimates = evidence.performance, evidence.serving, evidence.estimates
    problems = [*reference.problems, *_period_problems(model, tenure, periods), *performance.problems]
    problems += [*serving.problems, *estimates.problems, *evidence.labels.problems]
    judged: JudgedSeries = {}
    for group, series, share in _daily_series(model, reference, periods):
        if series.reference_days < MIN_REFERENCE_DAYS:
            problems.append(
                f"{group}: no alarms yet: {series.reference_days} days are known to compare with, "
                f"and {MIN_REFERENCE_DAYS} are needed"
            )
        elif series.names:
            judged[group] = series, judge_days(series, share)
    judged_until = max((judgement.days[-1] for _, judgement in judged.values() if judgement.days), default=None)
    for group, (series, share) in serving.series.items():
        try:
            judged[group] = series, judge_days(series, share)
        except Exception as error:  # of any class: data has alarms without any log
            log.warning("%s are not judged", group, exc_info=error)
            problems.append(f"{group}: no alarms: {first_line(error)}")
    gates = len(monitored_gates(model))
    for metric in performance.metrics:
        if metric.name in performance.not_compared:
            problems.append(f"performance: no alarms by {metric.name}: its holdout is not known now")
            continue
        try:
            result = judge_performance(metric, gates, performance.raised.get(metric.name, ()))
        except Exception as error:  # of any class: each metric stands on its own, and data has alarms without any
            log.warning("%s is not judged", metric.name, exc_info=error)
            result = first_line(error)
        if isinstance(result, str):
            problems.append(f"performance: no alarms by {metric.name}: {result}")
        else:
            judged[f"{metric.name} on matured labels"] = result
    alarms = [_alarm_record(alarm) for _, judgement in judged.values() for alarm in judgement.alarms]
    alarms += _absent_losses(performance.raised, alarms)
    alarms.sort(key=lambda alarm: alarm.opened)
    measured = tuple(_performance_records(performance.metrics, problems))
    record = MonitoringRecord(
        champion_version=state.name_of(tenure.content, tenure.version),
        champion_content=tenure.content,
        as_of=tenure.as_of,
        reference_days=len(_add_up(model, reference.learned)),
        judged_until=judged_until,
        periods=len(periods),
        alarms=tuple(alarms),
        performance=measured,
        problems=tuple(problems),
        revisions=performance.revisions,
        serving=serving.summary,
        estimates=compare_estimates(estimates, performance.metrics),
        labels=summarize_labelled(model, evidence.labels, performance.metrics),
    )
    return record, judged


def _absent_losses(raised: Mapping[str, Sequence[date]], alarms: Sequence[AlarmRecord]) -> Iterator[AlarmRecord]:
    """Yield the losses that were raised, and cannot be judged by now: they stay open."""
    judged = {(alarm.opened, name) for alarm in alarms for name in alarm.change_names}
    for gate, days in raised.items():
        change = ChangeRecord(column=gate, measure="performance", deviation=None, effect=None)
        for day in days:
            alarm = AlarmRecord(rule="performance", opened=day, closed=None, changes=(change,))
            if (day, *alarm.change_names) not in judged:
                yield alarm


def _performance_records(metrics: Sequence[DailyMetric], problems: list[str]) -> Iterator[PerformanceRecord]:
    for metric in metrics:
        try:
            yield _performance_record(metric)
        except Exception as error:  # of any class: each metric stands on its own
            log.warning("%s has no mean", metric.name, exc_info=error)
            problems.append(f"performance: {metric.name} has no mean: {first_line(error)}")


def _performance_record(metric: DailyMetric) -> PerformanceRecord:
    running = running_mean(metric.since, metric.memory)
    days = [
        day for day, value in zip(metric.days[metric.holdout_days :], metric.since, strict=True) if not np.isnan(value)
    ]
    mean, low, high = (
        float(values[-1]) if days and np.isfinite(values[-1]) else None
        for values in (running.mean, running.low, running.high)
    )
    return PerformanceRecord(
        gate=metric.name,
        days=len(days),
        last_day=days[-1] if days else None,
        holdout=metric.holdout_mean,
        mean=mean,
        low=low,
        high=high,
    )


def alarm_event(record: MonitoringRecord, alarm: AlarmRecord, metrics: Mapping[str, str]) -> AlarmRaised:
    """Return what the ledger says of an alarm; `metrics` are digests of metrics by gate."""
    return AlarmRaised(
        champion=record.champion_version,
        champion_content=record.champion_content,
        rule=alarm.rule,
        day=alarm.opened,
        changes=alarm.change_names,
        metric=metrics.get(alarm.changes[0].column) if alarm.rule == "performance" else None,
    )


def _append_alarm(
    model: str, actor: str, record: MonitoringRecord, alarm: AlarmRecord, metrics: Mapping[str, str]
) -> None:
    event = alarm_event(record, alarm, metrics)
    key = {name: getattr(event, name) for name in ("champion_content", "rule", "day", "changes", "metric")}
    ledger.append_decision(model, actor, lambda state: state.entries.find_last(AlarmRaised, **key) or event)


def _daily_series(
    model: ModelSpec, reference: ReferenceCounts, periods: Mapping[str, Counted]
) -> Iterator[tuple[str, DailySeries, float]]:
    """Yield the series of `INPUTS`, and those of `PREDICTIONS`, each with its share of the budget.

    Predictions have no days in the reference: the champion's own first days take their place.
    """
    tables = [table for table in reference.tables if table != PREDICTIONS]
    days = _add_up(model, {**reference.learned, **periods})
    reference_days = len(_add_up(model, reference.learned))
    has_predictions = PREDICTIONS in reference.tables
    if days:
        share = _INPUTS_SHARE if has_predictions else 1.0
        yield INPUTS, _stack_series(tables, reference.select_bins(*tables), days, reference_days), share
    if has_predictions:
        predicted = _add_up(model, {period: counted for period, counted in periods.items() if PREDICTIONS in counted})
        holdout = reference.periods.get(PREDICTIONS, {})
        if predicted:
            first = min(len(predicted), MIN_REFERENCE_DAYS)
            bins = reference.select_bins(PREDICTIONS)
            yield PREDICTIONS, _stack_series([PREDICTIONS], bins, predicted, first, holdout), _PREDICTIONS_SHARE


def _add_up(model: ModelSpec, periods: Mapping[str, Counted]) -> dict[date, dict[str, Histogram]]:
    """Return the histograms of days, or weeks: the sums of their periods.

    A day that lacks one of its periods is left out: it would differ from others by what it lacks.
    """
    calendar = feature_spec(model).calendar
    members: dict[date, list[Counted]] = {}
    for period in sorted(periods):
        members.setdefault(calendar.date_of(period), []).append(periods[period])
    days: dict[date, dict[str, Histogram]] = {}
    for day, counted in members.items():
        if len(counted) < calendar.count(calendar.first_of(day), calendar.first_of(day + timedelta(days=1))):
            continue
        total = days[day] = {}
        for histograms in counted:
            for name, histogram in histograms.items():
                total[name] = total[name] + histogram if name in total else histogram
    return days


def _stack_series(
    tables: Sequence[str],
    bins: Sequence[ColumnBins],
    days: Mapping[date, Counted],
    reference_days: int,
    reference: Counted | None = None,
) -> DailySeries:
    rows = {
        table: np.array([counted[table].rows if table in counted else 0 for counted in days.values()])
        for table in tables
    }
    columns = {}
    for column in bins:
        histograms = [
            counted.get(column.name) or Histogram.of_absent_column(column, counted[column.table].rows)
            if column.table in counted
            else Histogram.of_absent_column(column, 0)
            for counted in days.values()
        ]
        columns[column.name] = (
            column,
            ColumnCounts(
                np.array([histogram.rows for histogram in histograms]),
                np.array([histogram.missing for histogram in histograms]),
                np.array([histogram.counts for histogram in histograms]),
                reference[column.name].counts if reference and column.name in reference else None,
            ),
        )
    return build_series(list(days), reference_days, rows, columns)


def _period_problems(model: ModelSpec, tenure: ChampionTenure, periods: Mapping[str, Counted]) -> Iterator[str]:
    calendar = feature_spec(model).calendar
    if not periods:
        yield f"no period from {tenure.as_of} on has been monitored yet"
        return
    absent = [period for period in calendar.periods_between(tenure.as_of, max(periods)) if period not in periods]
    if absent:
        yield f"{calendar.describe(absent)}: no features are published"
    for table in dict.fromkeys(
        name for counted in periods.values() for name, item in counted.items() if not item.counts.size
    ):
        without_rows = [period for period, item in periods.items() if table in item and not item[table].rows]
        if without_rows:
            yield f"{table}: {calendar.describe(without_rows)}: no rows"


def input_columns(
    model: ModelSpec,
    state: LedgerState,
    tenure: ChampionTenure,
    manifests: Mapping[str, Manifest],
    problems: list[str],
) -> dict[str, list[str]]:
    """Return where the champion's inputs are: columns by table. Those that are nowhere are added to `problems`."""
    spec, views = feature_spec(model), _view_tables(model, find_promoting_verdict(state, tenure).as_of)
    newest = manifests[max(manifests)] if manifests else None
    schemas = {table: file.schema or {} for table, file in newest.files.items()} if newest else {}
    columns: dict[str, list[str]] = {spec.spine: []}  # whose rows are counted in any case
    nowhere = []
    for name in find_promoting_verdict(state, tenure).candidate_inputs:
        places = [
            (table, name.removeprefix(f"{view}__")) for view, table in views.items() if name.startswith(f"{view}__")
        ]
        place = next(
            ((table, column) for table, column in [*places, (spec.spine, name)] if column in schemas.get(table, {})),
            None,
        )
        if place is None:
            nowhere.append(name)
        else:
            columns.setdefault(place[0], []).append(place[1])
    if nowhere and newest:
        problems.append(f"inputs that no published table has are not monitored: {', '.join(nowhere)}")
    return columns


def _view_tables(model: ModelSpec, as_of: str) -> dict[str, str]:
    """Return the table of each view. The training set of that time names them; a view is named like its table else."""
    dataset = datasets.open_dataset(f"training_sets/{model.name}")
    manifest = dataset.manifest(f"as_of={datasets.file_name_of_period(as_of)}")
    definitions = manifest.inputs["definitions"] if manifest else {}
    return {view: view for view in feature_spec(model).views} | {
        view: item["table"] for view, item in definitions.items()
    }


def _find_evaluation(model: ModelSpec, state: LedgerState, tenure: ChampionTenure) -> Manifest | None:
    evidence = find_promoting_verdict(state, tenure).evidence.get("evaluation")
    if evidence is None or model.score is None:
        return None
    return datasets.open_dataset(f"evaluations/{model.name}").manifest(Path(evidence).name)


@contextmanager
def _holdout_predictions(
    database: duckdb.DuckDBPyConnection, model: ModelSpec, evaluation: Manifest, folder: Path
) -> Iterator[tuple[Path, list[str]]]:
    """Yield a file with the champion's predictions of its holdout, in columns as batch predictions have them."""
    source = datasets.open_dataset(f"evaluations/{model.name}").file_path(evaluation, "scores")
    outputs = len(model.prediction_type.outputs) if model.prediction_type else 0
    names = [f"prediction_{number}" for number in range(outputs)] if outputs else ["prediction"]
    values = [f"candidate[{number + 1}]" for number in range(outputs)] if outputs else ["candidate"]
    terms = ", ".join(f"{value} AS {quote_name(name)}" for value, name in zip(values, names, strict=True))
    file = folder / "holdout_predictions.parquet"
    selected = f"SELECT {terms} FROM {parquet_rows(source)}"  # noqa: S608 - names are quoted
    database.execute(f"COPY ({selected}) TO {quote_text(str(file))} (FORMAT parquet)")
    yield file, names
    file.unlink()


def _table_files(model: ModelSpec, table: str, manifests: Mapping[str, Manifest]) -> dict[str, Path]:
    dataset = features_dataset(model)
    return {
        period: dataset.file_path(manifest, table) for period, manifest in manifests.items() if table in manifest.files
    }


def _add_counts(
    target: dict[str, dict[str, Histogram]], table: str, counted: Mapping[str, tuple[int, Mapping[str, Histogram]]]
) -> None:
    for key, (rows, histograms) in counted.items():
        target.setdefault(key, {}).update({table: Histogram(rows, 0, np.zeros(0, np.int64)), **histograms})


def _read_reference(dataset: Dataset, manifest: Manifest) -> MonitoringReference:
    document = json.loads(dataset.file_path(manifest, _BINS).read_text())
    bins = load_bins(document["bins"])
    periods = read_histograms(dataset.file_path(manifest, _HISTOGRAMS))
    return MonitoringReference(tuple(document["tables"]), bins, periods, tuple(document["problems"]), manifest)


def _write_series(file: Path, judged: JudgedSeries) -> None:
    """Write a row for each day and series: its value, and after the reference how far it is from what was expected."""
    tables = []
    for series, judgement in judged.values():
        count, size = len(series.names), len(series.days)
        deviations = np.full((size, count), np.nan)
        deviations[series.reference_days :] = judgement.deviations
        tables.append(
            pa.table(
                {
                    "day": pa.array(np.repeat(np.array(series.days, "datetime64[D]"), count)),
                    "column": pa.array([name.column for name in series.names] * size),
                    "measure": pa.array([name.measure for name in series.names] * size),
                    "value": pa.array(series.values.ravel()),
                    "deviation": pa.array(deviations.ravel()),
                }
            )
        )
    schema = pa.schema(
        [
            ("day", pa.date32()),
            ("column", pa.string()),
            ("measure", pa.string()),
            ("value", pa.float64()),
            ("deviation", pa.float64()),
        ]
    )
    pq.write_table(pa.concat_tables(tables) if tables else schema.empty_table(), file)


def _alarm_record(alarm: Alarm) -> AlarmRecord:
    changes = tuple(
        ChangeRecord(
            column=changed.name.column,
            measure=changed.name.measure,
            deviation=changed.deviation if math.isfinite(changed.deviation) else None,
            effect=changed.effect,
        )
        for changed in alarm.series
    )
    rule: Literal["break", "drift", "performance", "skew"] = alarm.kind
    if any(changed.name.measure == "performance" for changed in alarm.series):
        rule = "performance"
    elif any(changed.name.column.startswith(f"{SERVED}.") for changed in alarm.series):
        rule = "skew"
    return AlarmRecord(rule=rule, opened=alarm.opened, closed=alarm.closed, changes=changes)
