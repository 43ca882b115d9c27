"""The monitoring report of a model: what has become of the champion's data since it learned, on one page with plots."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from evergreen.reports.page import jinja_environment, plot_style, render_svg

MAX_COLUMNS = 30
"""In the plot of columns: those that deviate most."""

_GREEN, _BLUE, _RED, _SOFT = "#0b6e4f", "#0072b2", "#b3361e", "#5d6a64"
_WIDTH = 11.4  # inches
_LARGE_DEVIATION = 5.0  # standard deviations between days: the end of the colour scale
_MAX_TABLES = 8


@dataclass(frozen=True)
class AlarmRow:
    """A line of the table of alarms."""

    rule: str
    opened: date
    closed: date | None
    changes: tuple[str, ...]


@dataclass(frozen=True)
class PerformancePoint:
    """The champion's metric on the holdout of a verdict; `promotes`: the verdict made the candidate champion."""

    day: date
    value: float
    promotes: bool


@dataclass(frozen=True)
class MaturedMetric:
    """A metric of the champion on matured labels.

    Attributes:
        days: of its holdout, of which there are `holdout_days`, and since.
        values: of shape (days,); NaN where it does not exist.
        mean: over the days since, after each, of shape (days - holdout_days,), from `low` to `high`.
        earlier_days: those of earlier champions, with `earlier_values` of the same shape.
    """

    gate: str
    days: tuple[date, ...]
    holdout_days: int
    values: NDArray[np.float64]
    holdout_mean: float | None
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    earlier_days: tuple[date, ...]
    earlier_values: NDArray[np.float64]


@dataclass(frozen=True)
class ServedColumnRow:
    """A line of the table of features that servers used with other values: `share` is that of the rows compared."""

    column: str
    share: float
    rows: int
    cause: str
    example: str


@dataclass(frozen=True)
class ServingLog:
    """What the last periods of a serving log show.

    Attributes:
        first, last: of these periods.
        rows, duplicates, other_models, sampled: of these, as `evergreen.monitoring.record.ServingRecord` has them.
        features: that were compared; `differing_features` of them differ in some rows.
        columns: those with the largest shares.
        predictions: that were compared; `differing_predictions` of them differ, by `largest_difference` at most.
        foreign: files that are left out, of `foreign_files`.
    """

    first: str
    last: str
    rows: int
    duplicates: int
    other_models: int
    sampled: int
    features: int
    differing_features: int
    columns: tuple[ServedColumnRow, ...]
    predictions: int
    differing_predictions: int
    largest_difference: float | None
    foreign_files: int
    foreign: tuple[str, ...]


@dataclass(frozen=True)
class EstimateRow:
    """A metric as it is expected by predictions alone, beside what labels have shown.

    Attributes:
        days: with an estimate, with `values` (days,).
        realised_days: with `realised_values` of the same shape; NaN where there is none.
        error: mean absolute difference of both, on `error_days` days; None: there is none.
        problem: why there is no estimate; None: there is one.
    """

    gate: str
    days: tuple[date, ...]
    values: NDArray[np.float64]
    realised_days: tuple[date, ...]
    realised_values: NDArray[np.float64]
    error: float | None
    error_days: int
    problem: str | None


@dataclass(frozen=True)
class LabelledSeries:
    """A metric of what was served, by posted labels, beside what matured labels and an estimate say.

    Each has days with values of the same shape: of the champion; `other` of other models; `matured`, NaN where there is
    none; `estimated`.
    """

    gate: str
    days: tuple[date, ...]
    values: NDArray[np.float64]
    other_days: tuple[date, ...]
    other_values: NDArray[np.float64]
    matured_days: tuple[date, ...]
    matured_values: NDArray[np.float64]
    estimated_days: tuple[date, ...]
    estimated_values: NDArray[np.float64]
    distance: float | None
    matured_count: int


@dataclass(frozen=True)
class LabelledPeriodRow:
    """A line of the table of periods with posted labels: what a version served, and `values` by gate."""

    period: str
    version: str
    predictions: int
    labelled: int
    values: Mapping[str, float]
    first_values: Mapping[str, float]


@dataclass(frozen=True)
class PostedLabelsSection:
    """What posted labels show: `series` by metric, `rows` of the last periods; the newest row comes first."""

    series: tuple[LabelledSeries, ...]
    rows: tuple[LabelledPeriodRow, ...]
    corrected: int
    contradictory: int
    unknown: int
    of_spine: int
    has_samples: bool
    foreign: tuple[str, ...]


@dataclass(frozen=True)
class MonitoringPage:
    """What the report shows.

    Attributes:
        champion: its version.
        data_until: the champion has data until this period, exclusively.
        judged_until: None: no day was judged.
        metric: the gate whose values `performance` has.
        matured: the champion's metrics on matured labels.
        calibration: of its probabilities there, by bin: rows, and the sums of predictions and of labels.
        revisions: periods that were measured again.
        days: with a reference of `reference_days` days before them.
        deviations: by column, (days,): the largest of its measures, in standard deviations between days.
        rows: by table, (reference_days + days,).
        row_days: of `rows`.
        evidence: by what was judged together, (days,), in units of the threshold: an alarm at 1.
        evidence_days: by the same.
        serving: None: no log of a server is known.
        estimates: of metrics before labels mature; nothing acts on them.
        labels: those posted by prediction id; None: there are none. Nothing acts on them.
    """

    model: str
    description: str
    champion: str
    data_until: str
    judged_until: date | None
    reference_days: int
    alarms: tuple[AlarmRow, ...]
    problems: tuple[str, ...]
    metric: str
    performance: tuple[PerformancePoint, ...]
    matured: tuple[MaturedMetric, ...]
    calibration: tuple[tuple[float, float, float], ...]
    revisions: tuple[str, ...]
    days: tuple[date, ...]
    deviations: Mapping[str, NDArray[np.float64]]
    row_days: tuple[date, ...]
    rows: Mapping[str, NDArray[np.int64]]
    evidence: Mapping[str, NDArray[np.float64]]
    evidence_days: Mapping[str, Sequence[date]]
    serving: ServingLog | None = None
    estimates: tuple[EstimateRow, ...] = ()
    labels: PostedLabelsSection | None = None


def render_monitoring_report(page: MonitoringPage) -> str:
    """Return one self-contained HTML page; equal input gives equal bytes."""
    return (
        jinja_environment()
        .get_template("monitoring.html.j2")
        .render(
            page=page,
            open_alarms=[alarm for alarm in page.alarms if alarm.closed is None],
            performance_plot=_plot_performance(page) if page.performance else None,
            matured_plot=_plot_matured(page) if page.matured else None,
            calibration_plot=_plot_calibration(page) if page.calibration else None,
            estimates_plot=_plot_estimates(page) if any(row.days for row in page.estimates) else None,
            labels_plot=_plot_labelled(page.labels) if page.labels else None,
            evidence_plot=_plot_evidence(page) if page.evidence else None,
            columns_plot=_plot_columns(page) if page.deviations and page.days else None,
            shown_columns=min(len(page.deviations), MAX_COLUMNS),
            rows_plot=_plot_rows(page) if page.rows else None,
            freshness_plot=_plot_freshness(page) if page.days else None,
        )
    )


def _plot_performance(page: MonitoringPage) -> Markup:
    with plot_style():
        figure, axes = _figure(2.8)
        days = [_position(point.day) for point in page.performance]
        axes.plot(days, [point.value for point in page.performance], color=_GREEN, marker="o", markersize=4)
        for point in page.performance:
            if point.promotes:
                axes.axvline(_position(point.day), color=_BLUE, linestyle=(0, (4, 2)), linewidth=1.2)
        axes.set_ylabel(page.metric)
        axes.xaxis_date()
        promotions = ", ".join(str(point.day) for point in page.performance if point.promotes) or "none"
        return render_svg(figure, f"{page.metric} of the champion by verdict; promotions: {promotions}")


def _plot_matured(page: MonitoringPage) -> Markup:
    """Draw a panel per metric: days as points, the mean of those since the promotion as a line with its interval."""
    promotions = [_position(point.day) for point in page.performance if point.promotes]
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 2.6 * len(page.matured) + 0.2), layout="constrained")
        panels: Any = figure.subplots(len(page.matured), 1, sharex=True, squeeze=False)[:, 0]
        described = []
        for axes, metric in zip(panels, page.matured, strict=True):
            days, first = [_position(day) for day in metric.days], metric.holdout_days
            present = metric.values[~np.isnan(metric.values)]
            earlier = [_position(day) for day in metric.earlier_days]
            axes.plot(earlier, metric.earlier_values, ".", color=_SOFT, markersize=4, alpha=0.5)
            axes.plot(days[:first], metric.values[:first], ".", color=_BLUE, markersize=5, label="holdout")
            axes.plot(days[first:], metric.values[first:], ".", color=_GREEN, markersize=5, label="since")
            if metric.holdout_mean is not None and days:
                axes.hlines(metric.holdout_mean, days[0], days[-1], color=_BLUE, linestyle=(0, (1, 2)), linewidth=1.2)
            is_bounded = np.isfinite(metric.low)
            limits = [*present, *metric.earlier_values, *metric.low[is_bounded][-1:], *metric.high[is_bounded][-1:]]
            axes.plot(days[first:], metric.mean, color=_GREEN, linewidth=1.4)
            axes.fill_between(
                days[first:], metric.low, metric.high, where=is_bounded, color=_GREEN, alpha=0.15, linewidth=0
            )
            if limits:  # the first intervals are wide
                margin = 0.05 * (max(limits) - min(limits)) or 0.05 * abs(limits[0]) or 0.05
                axes.set_ylim(min(limits) - margin, max(limits) + margin)
            for position in promotions:
                axes.axvline(position, color=_BLUE, linestyle=(0, (4, 2)), linewidth=1.2)
            _mark_alarms(axes, page, is_performance=True)
            axes.set_ylabel(_shorten(metric.gate))
            axes.xaxis_date()
            axes.legend(loc="upper left", frameon=False, ncols=2)
            described.append(f"{metric.gate} {_text(metric.mean)}, on the holdout {_text(metric.holdout_mean)}")
        return render_svg(figure, f"Performance on matured labels by day; mean since: {'; '.join(described)}")


def _plot_calibration(page: MonitoringPage) -> Markup:
    rows, predicted, actual = np.array(page.calibration).T
    used = rows > 0
    with plot_style():
        figure = Figure(figsize=(4.2, 3.6), layout="constrained")
        axes: Any = figure.subplots()
        axes.plot([0, 1], [0, 1], color=_SOFT, linestyle=(0, (4, 2)), linewidth=1)
        axes.plot(predicted[used] / rows[used], actual[used] / rows[used], color=_GREEN, marker="o", markersize=4)
        axes.set_xlabel("mean prediction")
        axes.set_ylabel("share of label 1")
        text = ", ".join(f"{a / r:.2f} of {p / r:.2f}" for r, p, a in page.calibration if r)
        return render_svg(figure, f"Calibration on matured labels, share of label 1 of the mean prediction: {text}")


def _plot_estimates(page: MonitoringPage) -> Markup:
    """Draw a panel per metric: the estimate dashed, and what labels have shown as points."""
    rows = [row for row in page.estimates if row.days]
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 2.2 * len(rows) + 0.2), layout="constrained")
        panels: Any = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            days = [_position(day) for day in row.days]
            axes.plot(days, row.values, color="#e69f00", linestyle=(0, (4, 2)), linewidth=1.4, label="estimated")
            realised = [_position(day) for day in row.realised_days]
            axes.plot(realised, row.realised_values, ".", color=_GREEN, markersize=5, label="on matured labels")
            axes.set_ylabel(_shorten(row.gate))
            axes.xaxis_date()
            axes.legend(loc="upper left", frameon=False, ncols=2)
        described = "; ".join(f"{row.gate} {_text(row.values)} on {row.days[-1]}" for row in rows)
        return render_svg(figure, f"Estimated performance by day, the last one: {described}")


def _plot_labelled(section: PostedLabelsSection) -> Markup | None:
    """Draw a panel per metric: what was served as points, other models grey, and beside them matured and estimated."""
    rows = [row for row in section.series if row.days or row.other_days]
    if not rows:
        return None
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 2.2 * len(rows) + 0.2), layout="constrained")
        panels: Any = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            lines = (
                (row.estimated_days, row.estimated_values, "", "#e69f00", "estimated"),
                (row.matured_days, row.matured_values, ".", _GREEN, "on matured labels"),
                (row.other_days, row.other_values, ".", _SOFT, "other versions"),
                (row.days, row.values, "o", _BLUE, "on posted labels"),
            )
            for days, values, marker, colour, label in lines:
                style = {"linestyle": "none", "marker": marker} if marker else {"linestyle": (0, (4, 2))}
                if days:
                    axes.plot(
                        [_position(day) for day in days], values, color=colour, markersize=4, label=label, **style
                    )
            axes.set_ylabel(_shorten(row.gate))
            axes.xaxis_date()
            axes.legend(loc="upper left", frameon=False, ncols=4)
        described = "; ".join(f"{row.gate} {_text(row.values)}" for row in rows)
        return render_svg(figure, f"Performance of what was served, by posted labels, on the last day: {described}")


def _text(value: NDArray[np.float64] | float | None) -> str:
    if isinstance(value, np.ndarray):
        value = float(value[-1]) if value.size else None
    return "not known" if value is None or np.isnan(value) else f"{value:.4g}"


def _plot_evidence(page: MonitoringPage) -> Markup:
    with plot_style():
        figure, axes = _figure(2.6)
        colours = itertools.cycle((_GREEN, "#e69f00", _BLUE, _SOFT))
        for (name, values), colour in zip(page.evidence.items(), colours, strict=False):
            days = [_position(day) for day in page.evidence_days[name]]
            axes.plot(days, np.maximum(values, 1e-4), color=colour, linewidth=1.6, label=name)
        axes.axhline(1, color=_RED, linestyle=(0, (4, 2)), linewidth=1.2)
        _mark_alarms(axes, page)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # the default is mathtext
        axes.set_ylabel("evidence / threshold")
        axes.xaxis_date()
        axes.legend(loc="upper left", frameon=False, ncols=3)
        return render_svg(figure, "Evidence of a drift by day, an alarm at 1")


def _plot_columns(page: MonitoringPage) -> Markup:
    """Draw a row per column and a cell per day, or per several: the largest deviation among them."""
    largest = {name: float(np.nan_to_num(values).max(initial=0)) for name, values in page.deviations.items()}
    names = sorted(largest, key=lambda name: (-largest[name], name))[:MAX_COLUMNS]
    values = np.minimum(np.nan_to_num(np.array([page.deviations[name] for name in names])), _LARGE_DEVIATION)
    with plot_style():
        figure, axes = _figure(0.24 * len(names) + 0.9)
        first, last = _position(page.days[0]), _position(page.days[-1])
        edges = np.array([*map(_position, page.days), last + max(last - first, 1) / max(len(page.days) - 1, 1)])
        mesh = axes.pcolormesh(edges, np.arange(len(names) + 1), values, cmap="YlOrBr", vmin=0, vmax=_LARGE_DEVIATION)
        mesh.set_rasterized(True)  # else an element per cell
        axes.set_yticks(np.arange(len(names)) + 0.5, [_shorten(name) for name in names])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.xaxis_date()
        figure.colorbar(mesh, ax=axes, label="sd between days", pad=0.01)
        described = "; ".join(f"{name} at most {largest[name]:.1f}" for name in names[:5])
        return render_svg(figure, f"Deviation of columns by day, in standard deviations between days: {described}")


def _plot_rows(page: MonitoringPage) -> Markup:
    tables = list(page.rows)[:_MAX_TABLES]
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 1.2 * len(tables) + 0.4), layout="constrained")
        panels: Any = figure.subplots(len(tables), 1, sharex=True, squeeze=False)[:, 0]
        days = [_position(day) for day in page.row_days]
        for axes, table in zip(panels, tables, strict=True):
            axes.plot(days, page.rows[table], color=_SOFT, linewidth=1.2, drawstyle="steps-post")
            axes.set_ylim(bottom=0)
            axes.set_title(_shorten(table), loc="left", fontsize=10)
            axes.xaxis_date()
        return render_svg(figure, f"Rows by day of {', '.join(tables)}")


def _plot_freshness(page: MonitoringPage) -> Markup:
    """Draw how old the data of the champion of each day was, from the verdicts that promoted."""
    starts = sorted(point.day for point in page.performance if point.promotes)
    days = [day for day in page.days if starts and day >= starts[0]]
    with plot_style():
        figure, axes = _figure(1.8)
        ages = [(day - max(start for start in starts if start <= day)).days for day in days]
        axes.plot([_position(day) for day in days], ages, color=_BLUE, linewidth=1.6, drawstyle="steps-post")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("days")
        axes.xaxis_date()
        return render_svg(figure, f"Days since the end of the champion's data, {ages[-1] if ages else 0} at last")


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _mark_alarms(axes: Any, page: MonitoringPage, *, is_performance: bool = False) -> None:
    for alarm in page.alarms:
        if is_performance and alarm.rule != "performance":
            continue
        axes.axvline(_position(alarm.opened), color=_RED, linewidth=1)


def _position(day: date) -> float:
    return float(date2num(day))


def _shorten(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:43]}…"
