"""What the monitoring report shows, from the record, the daily series and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import numpy as np

from evergreen.gates.verdict import Verdict
from evergreen.ledger import LedgerState, VerdictRecorded
from evergreen.monitoring.alarms import Judgement
from evergreen.monitoring.estimates import ChampionEstimates
from evergreen.monitoring.labelled_answers import LabelledAnswers
from evergreen.monitoring.matured_days import ChampionPerformance
from evergreen.monitoring.performance import DailyMetric, running_mean
from evergreen.monitoring.record import MonitoringRecord, PostedLabelsRecord, ServingRecord
from evergreen.monitoring.series import DailySeries
from evergreen.periods import Calendar
from evergreen.reports.monitoring import (
    AlarmRow,
    EstimateRow,
    LabelledPeriodRow,
    LabelledSeries,
    MaturedMetric,
    MonitoringPage,
    PerformancePoint,
    PostedLabelsSection,
    ServedColumnRow,
    ServingLog,
)
from evergreen.spec.model import ModelSpec

_MAX_VERDICTS = 200  # the newest ones


def read_performance(state: LedgerState, calendar: Calendar) -> tuple[str, tuple[PerformancePoint, ...]]:
    """Return a gate, and by it the champion's value at each verdict, oldest first; after a promotion the new one's.

    The gate is the one that compares with the champion; without one, the first that has a value.
    """
    numbers = [number for number, record in enumerate(state.entries.records, 1) if record.kind == "judged"]
    promoting = {tenure.content for tenure in state.tenures}
    events = [
        event
        for number in numbers[-_MAX_VERDICTS:]
        if isinstance(event := state.entries[number - 1].event, VerdictRecorded)
    ]
    gate = next((name for event in reversed(events) if (name := _main_gate(event.verdict))), "")
    points: dict[date, PerformancePoint] = {}
    for event in events:
        day = calendar.date_of(event.judged_as_of)
        result = next((result for result in event.verdict.results if result.gate == gate), None)
        promotes = event.verdict.promote and event.candidate_content in promoting
        value = None if result is None else result.candidate if promotes else result.champion
        if value is not None:
            points[day] = PerformancePoint(day, value, promotes)
    return gate, tuple(points[day] for day in sorted(points))


def create_page(
    model: ModelSpec,
    record: MonitoringRecord,
    judged: Mapping[str, tuple[DailySeries, Judgement]],
    metric: str,
    verdicts: tuple[PerformancePoint, ...],
    performance: ChampionPerformance,
    estimates: ChampionEstimates | None = None,
    labels: LabelledAnswers | None = None,
) -> MonitoringPage:
    """Return what the report shows. `judged` are the series by what was judged together: inputs, if any, come first."""
    of_data = {label: item for label, item in judged.items() if item[0].names[0].measure != "performance"}
    days = tuple(sorted({day for _, judgement in of_data.values() for day in judgement.days}))
    first = next((series for series, _ in of_data.values()), None)
    deviations: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    for series, judgement in of_data.values():
        position = np.searchsorted(np.array(days, "datetime64[D]"), np.array(judgement.days, "datetime64[D]"))
        for number, name in enumerate(series.names):
            size = np.zeros(len(days))
            size[position] = np.abs(np.nan_to_num(judgement.deviations[:, number], posinf=99, neginf=-99))
            deviations[name.column] = np.maximum(deviations.get(name.column, size), size)
    if first:
        for number, name in enumerate(first.names):
            if name.measure == "rows":
                rows[name.column] = np.expm1(np.nan_to_num(first.values[:, number])).round().astype(np.int64)
    return MonitoringPage(
        model=model.name,
        description=model.description,
        champion=record.champion_version,
        data_until=record.as_of,
        judged_until=record.judged_until,
        reference_days=record.reference_days,
        alarms=tuple(
            AlarmRow(alarm.rule, alarm.opened, alarm.closed, tuple(change.describe() for change in alarm.changes))
            for alarm in record.alarms
        ),
        problems=record.problems,
        metric=metric,
        performance=verdicts,
        matured=tuple(_matured_metric(item, performance) for item in performance.metrics if item.days),
        calibration=performance.calibration,
        revisions=performance.revisions,
        days=days,
        deviations=deviations,
        row_days=first.days if first else (),
        rows=rows,
        evidence={label: item.evidence / item.threshold for label, (_, item) in judged.items()},
        evidence_days={label: item.days for label, (_, item) in judged.items()},
        serving=_serving_log(record.serving) if record.serving else None,
        estimates=_estimated_metrics(record, estimates, performance) if estimates else (),
        labels=_posted_labels(record.labels, labels, performance, estimates) if record.labels and labels else None,
    )


def _estimated_metrics(
    record: MonitoringRecord, estimates: ChampionEstimates, performance: ChampionPerformance
) -> tuple[EstimateRow, ...]:
    realised = {metric.name: metric for metric in performance.metrics}
    errors = {item.gate: item for item in record.estimates}
    rows = []
    for metric in estimates.metrics:
        since, days = np.zeros(0), tuple[date, ...]()
        if daily := realised.get(metric.gate):
            since, days = daily.since, daily.days[daily.holdout_days :]
        compared = errors.get(metric.gate)
        rows.append(
            EstimateRow(
                gate=metric.gate,
                days=tuple(metric.values),
                values=np.array(list(metric.values.values()), np.float64),
                realised_days=days,
                realised_values=since,
                error=compared.error if compared else None,
                error_days=compared.realised_days if compared else 0,
                problem=metric.problem,
            )
        )
    return tuple(rows)


def _posted_labels(
    record: PostedLabelsRecord,
    labels: LabelledAnswers,
    performance: ChampionPerformance,
    estimates: ChampionEstimates | None,
) -> PostedLabelsSection:
    realised = {metric.name: metric for metric in performance.metrics}
    estimated = {metric.gate: metric.values for metric in estimates.metrics} if estimates else {}
    compared = {item.gate: item for item in record.metrics}
    series = []
    for metric in labels.metrics:
        days, values = tuple[date, ...](), np.zeros(0)
        if daily := realised.get(metric.gate):
            days, values = daily.days[daily.holdout_days :], daily.since
        expected, item = estimated.get(metric.gate, {}), compared[metric.gate]
        series.append(
            LabelledSeries(
                gate=metric.gate,
                days=tuple(metric.values),
                values=_array(metric.values),
                other_days=tuple(metric.other_values),
                other_values=_array(metric.other_values),
                matured_days=days,
                matured_values=values,
                estimated_days=tuple(expected),
                estimated_values=_array(expected),
                distance=item.distance,
                matured_count=item.matured_days,
            )
        )
    return PostedLabelsSection(
        series=tuple(series),
        rows=tuple(
            LabelledPeriodRow(
                item.period, item.version, item.predictions, item.labelled, item.values, item.first_values
            )
            for item in reversed(record.periods)
        ),
        corrected=record.corrected,
        contradictory=record.contradictory,
        unknown=record.unknown,
        of_spine=record.of_spine,
        has_samples=any(item.is_sample for item in record.periods),
        foreign=record.foreign,
    )


def _array(values: Mapping[date, float]) -> np.ndarray:
    return np.array(list(values.values()), np.float64)


def _serving_log(record: ServingRecord) -> ServingLog:
    return ServingLog(
        first=record.first_period,
        last=record.last_period,
        rows=record.rows,
        duplicates=record.duplicates,
        other_models=record.other_models,
        sampled=record.sampled,
        features=record.features,
        differing_features=record.differing_features,
        columns=tuple(
            ServedColumnRow(item.column, item.share, item.differing, item.cause, item.example)
            for item in record.columns
        ),
        predictions=record.predictions,
        differing_predictions=record.differing_predictions,
        largest_difference=record.largest_difference,
        foreign_files=record.foreign_files,
        foreign=record.foreign,
    )


def _matured_metric(metric: DailyMetric, performance: ChampionPerformance) -> MaturedMetric:
    running = running_mean(metric.since, metric.memory)
    earlier = performance.earlier.get(metric.name, {})
    return MaturedMetric(
        gate=metric.name,
        days=metric.days,
        holdout_days=metric.holdout_days,
        values=metric.values,
        holdout_mean=metric.holdout_mean,
        mean=running.mean,
        low=running.low,
        high=running.high,
        earlier_days=tuple(sorted(earlier)),
        earlier_values=np.array([earlier[day] for day in sorted(earlier)]),
    )


def _main_gate(verdict: Verdict) -> str | None:
    results = [result for result in verdict.results if result.candidate is not None]
    compared = [result for result in results if result.champion is not None]
    return next((result.gate for result in [*compared, *results]), None)
