"""What the logs of servers show of a champion day by day: the series that alarms watch, and a summary.

Two groups have a budget of their own. `SERVED_FEATURES`: the share of rows that differ from the offline store, of each
feature, and from the model, of the prediction. What the champion learned from does not differ from itself, so the
reference are days without a difference. `SERVED_INPUTS`: the distribution of the inputs in requests, compared with the
days of the training set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np

from evergreen.ledger import ChampionTenure
from evergreen.monitoring.alarms import BREAK_BUDGET, DRIFT_BUDGET
from evergreen.monitoring.baseline import MIN_REFERENCE_DAYS
from evergreen.monitoring.histogram_files import Counted
from evergreen.monitoring.histograms import Histogram
from evergreen.monitoring.record import ServedColumn, ServingRecord
from evergreen.monitoring.series import ColumnCounts, DailySeries, SeriesName, build_series
from evergreen.monitoring.served_periods import PublishedLog, ServedPeriod, read_served
from evergreen.monitoring.served_reference import SERVED, ServedReference
from evergreen.periods import Calendar
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

SERVED_FEATURES, SERVED_INPUTS = "served features", "served inputs"

SERVING_BUDGET = 0.1
"""Expected false alarms of a year, of both groups together, at most: beside those of data and of performance."""
RECENT_PERIODS = 14
"""The last ones, which the summary is about."""

_MAX_COLUMNS = 20  # of the summary
_MAX_NAMED = 20  # files of the summary


@dataclass(frozen=True)
class ChampionServing:
    """What logs show of a champion.

    Attributes:
        series: of each group, with its share of the budget of false alarms.
        summary: of the last periods; None without a log.
        periods: what each period shows, oldest first.
        problems: what is not known, and why.
        fingerprint: what all of it follows from.
    """

    series: Mapping[str, tuple[DailySeries, float]] = field(default_factory=dict)
    summary: ServingRecord | None = None
    periods: tuple[ServedPeriod, ...] = ()
    problems: tuple[str, ...] = ()
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


def collect_serving(
    model: ModelSpec, tenure: ChampionTenure, problems: Sequence[str] = (), *, end: str | None = None
) -> ChampionServing:
    """Return what is published of the logs of a champion.

    Args:
        model: its spec.
        tenure: of the champion.
        problems: what is not known of them.
        end: of a preview, the period until which data is known.
    """
    messages, calendar = list(problems), feature_spec(model).calendar
    reference, logs = read_served(model, tenure.content, messages, start=tenure.as_of)
    if end is not None:
        logs = {period: item for period, item in logs.items() if period < end}
    if not logs:
        return ChampionServing(problems=tuple(messages), fingerprint={"problems": messages} if messages else {})
    served = [item.served for item in logs.values()]
    series = dict[str, tuple[DailySeries, float]]()
    share = SERVING_BUDGET / (DRIFT_BUDGET + BREAK_BUDGET) / 2
    if skew := skew_series(served, calendar):
        series[SERVED_FEATURES] = skew, share
    if reference and reference.bins:
        counted = _same_bins(reference, logs)
        if len(reference.days) < MIN_REFERENCE_DAYS:
            messages.append(
                f"{SERVED_INPUTS}: no alarms: {len(reference.days)} days of the training set are known to compare "
                f"with, and {MIN_REFERENCE_DAYS} are needed"
            )
        elif counted:
            series[SERVED_INPUTS] = input_series(reference, counted, calendar), share
    summary = summarize(served)
    messages += _problems(served[-RECENT_PERIODS:], summary)
    return ChampionServing(
        series=series,
        summary=summary,
        periods=tuple(served),
        problems=tuple(messages),
        fingerprint={
            "periods": {period: item.manifest.content_hash for period, item in logs.items()},
            "reference": reference.manifest.content_hash if reference else None,
            "problems": messages,
        },
    )


def skew_series(periods: Sequence[ServedPeriod], calendar: Calendar) -> DailySeries | None:
    """Return the share of rows that differ, of each feature and of the prediction, after days without a difference."""
    counts: dict[date, dict[str, tuple[int, int]]] = {}
    for item in periods:
        of_day = counts.setdefault(calendar.date_of(item.period), {})
        differing = {skew.column: skew.rows for skew in item.skew}
        compared = [(name, differing.get(name, 0), item.sampled) for name in item.features]
        if item.prediction:
            compared.append(("prediction", item.prediction.differing, item.prediction.rows))
        for name, part, count in compared:
            total = of_day.get(name, (0, 0))
            of_day[name] = total[0] + part, total[1] + count
    columns = sorted({name for of_day in counts.values() for name in of_day})
    if not columns:
        return None
    days = sorted(counts)
    step = _day_step(periods[0].period, calendar)
    reference = [days[0] - step * number for number in range(MIN_REFERENCE_DAYS, 0, -1)]
    pairs = np.array([[counts[day].get(name, (0, 0)) for name in columns] for day in days], np.float64)
    rows = pairs[:, :, 1]
    shares = np.where(rows > 0, pairs[:, :, 0] / np.maximum(rows, 1), np.nan)
    zeros = np.zeros((len(reference), len(columns)))
    return DailySeries(
        days=(*reference, *days),
        reference_days=len(reference),
        names=tuple(SeriesName(f"{SERVED}.{name}", "skew") for name in columns),
        weights=np.full(len(columns), 1 / len(columns)),
        values=np.vstack([zeros, shares]),
        # A single row is the least that a day can show.
        sampling_variances=np.vstack([zeros, 1 / np.maximum(rows, 1) ** 2]),
    )


def input_series(reference: ServedReference, counted: Mapping[str, Counted], calendar: Calendar) -> DailySeries:
    """Return the series of the distribution of each input, of the reference's days and those of the logs."""
    last, totals = max(reference.days), dict[date, dict[str, Histogram]]()
    for period, histograms in sorted(counted.items()):
        day = calendar.date_of(period)
        if day <= last:
            continue
        of_day = totals.setdefault(day, {})
        for name, histogram in histograms.items():
            of_day[name] = of_day[name] + histogram if name in of_day else histogram
    days = {**dict(sorted(reference.days.items())), **totals}
    columns = {}
    for bins in reference.bins:
        absent = Histogram.of_absent_column(bins, 0)
        items = [of_day.get(bins.name, absent) for of_day in days.values()]
        columns[bins.name] = (
            bins,
            ColumnCounts(
                np.array([item.rows for item in items], np.int64),
                np.array([item.missing for item in items], np.int64),
                np.stack([item.counts for item in items]),
            ),
        )
    return build_series(list(days), len(reference.days), {}, columns)


def summarize(periods: Sequence[ServedPeriod]) -> ServingRecord:
    """Return what the last `RECENT_PERIODS` show together."""
    recent = periods[-RECENT_PERIODS:]
    columns: dict[str, ServedColumn] = {}
    for item in recent:  # the last example is shown
        for skew in item.skew:
            earlier_rows = columns[skew.column].differing if skew.column in columns else 0
            columns[skew.column] = ServedColumn(
                column=skew.column,
                differing=earlier_rows + skew.rows,
                rows=sum(period.sampled for period in recent if skew.column in period.features),
                cause=max(skew.causes, key=lambda cause: skew.causes[cause], default=""),
                example=skew.example,
            )
    ranked = sorted(columns.values(), key=lambda column: (-column.share, column.column))
    predictions = [item.prediction for item in recent if item.prediction]
    foreign = [name for item in reversed(recent) for name in item.foreign]
    return ServingRecord(
        first_period=recent[0].period,
        last_period=recent[-1].period,
        rows=sum(item.rows for item in recent),
        duplicates=sum(item.duplicates for item in recent),
        other_models=sum(sum(item.other_models.values()) for item in recent),
        sampled=sum(item.sampled for item in recent),
        features=len({name for item in recent for name in item.features}),
        differing_features=len(columns),
        columns=tuple(ranked[:_MAX_COLUMNS]),
        predictions=sum(item.rows for item in predictions),
        differing_predictions=sum(item.differing for item in predictions),
        largest_difference=max((item.largest for item in predictions if item.largest is not None), default=None),
        foreign_files=sum(item.foreign_files for item in recent),
        foreign=tuple(foreign[:_MAX_NAMED]),
    )


def _problems(periods: Sequence[ServedPeriod], summary: ServingRecord) -> list[str]:
    """Return what the record has to name: files that are left out, rows that are, and predictions of another model."""
    problems = [f"serving log: {name}" for name in summary.foreign]
    if summary.foreign_files > len(summary.foreign):
        problems.append(f"serving log: {summary.foreign_files - len(summary.foreign):,} more files are left out")
    for item in periods:
        problems += [f"serving log: {item.period}: {problem}" for problem in item.problems]
        if item.prediction and item.prediction.differing:
            largest = f", by up to {item.prediction.largest:.3g}" if item.prediction.largest is not None else ""
            count = f"{item.prediction.differing:,} of {item.prediction.rows:,}"
            problems.append(
                f"serving log: {item.period}: {count} predictions are not what version {item.champion_version} "
                f"gives for the logged inputs{largest}: ids "
                f"{', '.join(item.prediction.ids)}; look at the library and the file that the server has loaded"
            )
    return problems


def _same_bins(reference: ServedReference, logs: Mapping[str, PublishedLog]) -> dict[str, Counted]:
    """Return the histograms that are on the bins of the reference."""
    return {
        period: item.histograms
        for period, item in logs.items()
        if item.manifest.inputs["reference"] == reference.manifest.content_hash and item.histograms
    }


def _day_step(period: str, calendar: Calendar) -> timedelta:
    """Return the time between days, or weeks."""
    return max(calendar.date_of(calendar.shift(period, 1)) - calendar.date_of(period), timedelta(days=1))
