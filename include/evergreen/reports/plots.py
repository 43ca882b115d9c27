"""The plots of the page, each as SVG. What cannot be drawn is said in its place.

Told apart without colour, too: the candidate is a whole line with dots, the champion a dashed one with squares.
Green and blue, orange and grey differ for the colour-blind as well (Okabe and Ito 2008, "Color universal design").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateOutcome, SliceResult
from evergreen.reports import curves
from evergreen.reports.curves import CalibrationBin, ScoredRows
from evergreen.reports.page import OUTCOME_SYMBOLS, plot_style, render_svg

_INK, _SOFT, _LINE, _WASH = "#1b2420", "#5d6a64", "#9aa5a0", "#fbeae6"
_OUTCOME_COLOURS: dict[GateOutcome, str] = {
    "passed": "#0b6e4f",
    "failed": "#b3361e",
    "not_computed": "#8a5c00",
}
_MODEL_STYLES: dict[str, dict[str, Any]] = {
    "candidate": {"color": "#0b6e4f", "linestyle": "-", "linewidth": 2.6, "zorder": 3},
    "champion": {"color": "#0072b2", "linestyle": (0, (4, 2)), "linewidth": 1.6, "zorder": 4},
}
_MODEL_MARKERS = {"candidate": "o", "champion": "s"}
_LEGEND_STYLE: dict[str, Any] = {"fontsize": 9, "framealpha": 0.85, "edgecolor": "none", "fancybox": False}
_WIDTH = 11.4
MAX_SLICES = 40


@dataclass(frozen=True)
class GainInterval:
    """A gate that holds the lower bound of a gain against a limit; the gain may be unknown."""

    gate: str
    description: str
    gain: float | None
    interval: tuple[float, float]
    limit: float
    outcome: GateOutcome


def plot_intervals(gain_intervals: Sequence[GainInterval]) -> str:
    """A panel per gate, because units differ: the interval, the gain and the limit."""
    with plot_style():
        figure, panels = _create_panels([1.0] * len(gain_intervals), height=0.84 * len(gain_intervals) + 0.35)
        for axes, of in zip(panels, gain_intervals, strict=True):
            _draw_limit(axes, [*of.interval, of.limit, 0.0], of.limit)
            colour = _OUTCOME_COLOURS[of.outcome]
            axes.errorbar(
                *_errorbar_arguments(of.interval, 0),
                color=colour,
                fmt="none",
                linewidth=2.4,
                capsize=5,
                capthick=2,
            )
            if of.gain is not None:
                marker = "o" if of.outcome == "passed" else "X"
                axes.plot([of.gain], [0], marker=marker, markersize=9, color=colour, markeredgecolor="white")
            axes.set_yticks([0], [f"{_truncate(of.gate, 38)}\n{_truncate(of.description, 44)}"])
            axes.set_ylim(-1, 1)
            _simplify_axes(axes)
            text = f"{OUTCOME_SYMBOLS[of.outcome]} {of.outcome.replace('_', ' ')}"
            axes.text(1.012, 0.5, text, transform=axes.transAxes, va="center", color=colour)
        panels[-1].set_xlabel("gain, in the metric's own unit; positive is better")
        said = "; ".join(
            f"{of.gate} from {of.interval[0]:.4g} to {of.interval[1]:.4g}, limit {of.limit:g}, {of.outcome}"
            for of in gain_intervals
        )
        return render_svg(figure, f"Intervals against limits: {said}")


def plot_binary_predictions(models: Sequence[ScoredRows]) -> str:
    """ROC, calibration and scores by label, of rows of class 0 and 1."""
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 4.1), layout="constrained")
        grid = figure.add_gridspec(2, 3, width_ratios=[1, 1, 1.15])
        said = _draw_roc(figure.add_subplot(grid[:, 0]), models)
        _draw_calibration(figure.add_subplot(grid[:, 1]), models)
        _draw_scores(figure, grid, models)
        return render_svg(figure, f"ROC, calibration and scores by label: {said}")


def plot_continuous_predictions(models: Sequence[ScoredRows]) -> str:
    """Predicted against actual, and residuals, of rows whose labels are amounts."""
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
        panels: Any = figure.subplots(1, len(models) + 1, squeeze=False)[0]
        between = curves.histogram_edges(*(of.score for of in models), *(of.label for of in models), tail_share=0.002)
        for axes, of in zip(panels[:-1], models, strict=True):
            _draw_predicted_vs_actual(axes, of, (between[0], between[-1]))
        axes = panels[-1]
        residuals = [of.score - of.label for of in models]
        bars = curves.histogram_edges(*residuals, bin_count=50, tail_share=0.005)
        for of, residual in zip(models, residuals, strict=True):
            label = f"{of.role}: mean {residual.mean():.4g}, spread {residual.std():.4g}"
            axes.stairs(curves.histogram_percentages(residual, bars), bars, label=label, **_MODEL_STYLES[of.role])
        axes.axvline(0, color=_LINE, linewidth=1)
        _add_legend_above(axes)
        axes.set(title="Residuals", xlabel="prediction - actual (0.5 % cut off at either end)", ylabel="% of rows")
        said = ", ".join(
            f"{of.role} mean error {residual.mean():.4g}" for of, residual in zip(models, residuals, strict=True)
        )
        return render_svg(figure, f"Predicted against actual, and residuals: {said}")


def plot_slices(
    slice_results: Sequence[SliceResult],
    values: Sequence[float | None],
    limit: float,
    axis_label: str,
    *,
    limits_spread: bool,
) -> str:
    """A line per slice: its value and interval. `span`: all values may lie `limit` apart; else each above it."""
    with plot_style():
        height = 0.27 * len(slice_results) + 1.0
        figure, (axes,) = _create_panels([1.0], height=height)
        judged = [
            value for part, value in zip(slice_results, values, strict=True) if part.is_judged and value is not None
        ]
        shown = [value for value in values if value is not None]
        shown += [
            bound for part in slice_results if part.is_judged for bound in part.interval or () if not limits_spread
        ]
        if not limits_spread:
            _draw_limit(axes, [*shown, limit, 0.0], limit)
        elif judged:
            low = min(judged)
            axes.axvspan(low, low + limit, color="#e8f3ee", zorder=0)
            _set_x_range(axes, [*shown, low, low + limit])
        for row, (part, value) in enumerate(zip(slice_results, values, strict=True)):
            fails = not limits_spread and part.is_judged and part.interval is not None and part.interval[1] < limit
            colour = _OUTCOME_COLOURS["failed" if fails else "passed"] if part.is_judged else _LINE
            if value is None:
                text = " no value"
                axes.text(0.5, row, text, transform=axes.get_yaxis_transform(), va="center", color=_SOFT, size=9)
                continue
            if part.interval and part.interval[0] <= value <= part.interval[1]:
                axes.errorbar(
                    *_errorbar_arguments(part.interval, row),
                    color=colour,
                    fmt="none",
                    linewidth=2,
                    capsize=3.5,
                )
            inside = colour if part.is_judged else "white"
            marker = "X" if fails else "o"
            axes.plot([value], [row], marker=marker, markersize=7, color=colour, markerfacecolor=inside)
        axes.set_yticks(
            range(len(slice_results)),
            [f"{_truncate(part.name, 30)}  ({part.rows:,} rows)" for part in slice_results],
        )
        axes.set_ylim(len(slice_results) - 0.4, -0.6)
        _simplify_axes(axes)
        for label, part in zip(axes.get_yticklabels(), slice_results, strict=True):
            label.set_color(_INK if part.is_judged else _SOFT)
            label.set_style("normal" if part.is_judged else "italic")
        axes.set_xlabel(axis_label)
        said = ", ".join(
            f"{part.name} {'no value' if value is None else format(value, '.4g')}"
            for part, value in zip(slice_results, values, strict=True)
        )
        return render_svg(figure, f"{axis_label}: {said}; limit {limit:g}")


def plot_prediction_drift(holdout: FloatArray, recent: FloatArray) -> str:
    """The candidate's predictions on the holdout and on the most recent day."""
    look: tuple[tuple[str, FloatArray, dict[str, Any]], ...] = (
        (f"holdout ({holdout.size:,} rows)", holdout, _MODEL_STYLES["candidate"]),
        (
            f"most recent day ({recent.size:,} rows)",
            recent,
            {"color": "#c0571b", "linestyle": (0, (4, 2)), "linewidth": 1.8, "zorder": 4},
        ),
    )
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        bars = curves.histogram_edges(holdout, recent)
        for label, values, style in look:
            left.stairs(curves.histogram_percentages(values, bars), bars, label=label, **style)
            right.step(*curves.empirical_distribution(values), where="post", **style)
        left.set(xlabel="prediction", ylabel="% of rows")
        right.set(xlabel="prediction", ylabel="% of rows at or below")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        said = ", ".join(f"{label} mean {values.mean():.4g}" for label, values, _ in look)
        return render_svg(figure, f"Predictions on the holdout and on the most recent day: {said}")


def _draw_roc(axes: Any, models: Sequence[ScoredRows]) -> str:
    axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1, linestyle=":")
    said = []
    for of in models:
        curve = curves.roc_curve(of)
        if curve is None:
            said.append(f"{of.role}: labels of one class only")
            axes.plot([], [], label=said[-1], **_MODEL_STYLES[of.role])
            continue
        said.append(f"{of.role} AUC {curve.auc:.4f}")
        axes.plot(curve.false_positive_rate, curve.true_positive_rate, label=said[-1], **_MODEL_STYLES[of.role])
    axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    axes.grid(visible=True, axis="both")
    axes.legend(loc="lower right", **_LEGEND_STYLE)
    return ", ".join(said)


def _draw_calibration(axes: Any, models: Sequence[ScoredRows]) -> None:
    top = 0.0
    for of in models:
        found = curves.calibration_bins(of)
        _draw_bins(axes, found, of.role, markersize=5, marker=_MODEL_MARKERS[of.role], **_MODEL_STYLES[of.role])
        top = max([top, *(max(part.mean_prediction, part.high) for part in found)])
    axes.plot([0, top], [0, top], color=_LINE, linewidth=1, linestyle=":")
    axes.set(title="Calibration", xlabel="mean prediction of a tenth of the rows", ylabel="share of label 1")
    axes.grid(visible=True, axis="both")
    axes.legend(loc="upper left", **_LEGEND_STYLE)


def _draw_scores(figure: Any, grid: Any, models: Sequence[ScoredRows]) -> None:
    bars = curves.histogram_edges(*(of.score for of in models))
    first: Any = None
    for row, of in enumerate(models):
        place = grid[row, 2] if len(models) > 1 else grid[:, 2]
        axes = figure.add_subplot(place, sharex=first, sharey=first)
        first = first or axes
        for label, look in _LABEL_STYLES.items():
            values = of.score[of.label == label]
            axes.stairs(
                curves.histogram_percentages(values, bars),
                bars,
                label=f"label {label} ({values.size:,})",
                **look,
            )
        axes.set_ylabel(f"{of.role}\n% of the label's rows")
        axes.tick_params(labelbottom=row == len(models) - 1)
        if row == 0:
            axes.set_title("Scores by label")
            axes.legend(loc="upper right", **_LEGEND_STYLE)
    axes.set_xlabel("score")


_LABEL_STYLES: dict[int, dict[str, Any]] = {
    0: {"fill": True, "facecolor": "#d5dcd8", "edgecolor": "#7d8983", "linewidth": 1},
    1: {"fill": False, "edgecolor": "#c0571b", "linewidth": 1.8},
}


def _draw_predicted_vs_actual(axes: Any, rows: ScoredRows, axis_range: tuple[float, float]) -> None:
    look = _MODEL_STYLES[rows.role]
    axes.plot(*curves.sample_evenly(rows), linestyle="", marker=".", markersize=3, color="#b4beb9", zorder=1)
    found = curves.continuous_bins(rows)
    label = "mean of a twentieth of the rows,\n10 % to 90 % of them"
    _draw_bins(axes, found, label, markersize=5, marker=_MODEL_MARKERS[rows.role], **look)
    axes.plot(axis_range, axis_range, color=_LINE, linewidth=1, linestyle=":")
    if axis_range[0] < axis_range[1]:
        axes.set(xlim=axis_range, ylim=axis_range)
    axes.set(title=f"{rows.role}: predicted against actual", xlabel="prediction", ylabel="actual")
    axes.legend(loc="upper left", **_LEGEND_STYLE)


def _draw_bins(axes: Any, bins: Sequence[CalibrationBin], label: str, **style: Any) -> None:
    predicted = [part.mean_prediction for part in bins]
    # The mean of skewed amounts may lie outside of their 10 % and 90 % quantiles.
    down = [max(part.mean_label - part.low, 0.0) for part in bins]
    up = [max(part.high - part.mean_label, 0.0) for part in bins]
    middle = [part.mean_label for part in bins]
    axes.plot(predicted, middle, label=label, **style)
    axes.errorbar(predicted, middle, (down, up), fmt="none", ecolor=style["color"], elinewidth=1, alpha=0.6)


def _create_panels(ratios: Sequence[float], height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panels: Any = figure.subplots(len(ratios), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    return figure, panels


def _set_x_range(axes: Any, values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    axes.set_xlim(low - room, high + room)
    return low - room, high + room


def _draw_limit(axes: Any, values: Sequence[float], limit: float) -> None:
    """What lies left of the limit is too little."""
    left, _ = _set_x_range(axes, values)
    axes.axvspan(left, limit, color=_WASH, zorder=0)
    axes.axvline(0, color=_LINE, linewidth=1, zorder=1)
    axes.axvline(limit, color=_INK, linestyle=(0, (3, 2)), linewidth=1.2, zorder=1)
    text = f"limit {limit:g}".replace("-", "−")
    axes.annotate(
        text,
        (limit, 1),
        (0, 1),
        ("data", "axes fraction"),
        "offset points",
        ha="center",
        fontsize=8,
        color=_SOFT,
    )


def _errorbar_arguments(
    interval: tuple[float, float], row: int
) -> tuple[list[float], list[int], None, list[list[float]]]:
    """Arguments of errorbar for an interval, which need not hold the value."""
    middle = (interval[0] + interval[1]) / 2
    half = (interval[1] - interval[0]) / 2
    return [middle], [row], None, [[half], [half]]


def _simplify_axes(axes: Any) -> None:
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(7))


def _add_legend_above(axes: Any) -> None:
    """Where a legend has room over the data."""
    axes.legend(loc="upper left", **_LEGEND_STYLE)
    axes.margins(y=0.3)


def _truncate(text: str, width: int) -> str:
    """Short enough for its place, on one line."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return plain if len(plain) <= width else plain[: width - 1] + "…"
