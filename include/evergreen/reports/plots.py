"""The plots of the gate report, each as SVG with a text for screen readers.

Distinguishable without colour: the candidate is a solid line with dots, the champion a dashed one with squares.
Green and blue, orange and grey also differ for the colour-blind (Okabe and Ito 2008, "Color universal design").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import GateOutcome, GateResult, SliceResult
from evergreen.reports import curves
from evergreen.reports.curves import CalibrationBin, ClusterGain, ScoredRows
from evergreen.reports.formatting import NO_VALUE, format_limit, format_outcome
from evergreen.reports.input_importance import ComparedImportance, ComparedInput, ImportanceMeasure
from evergreen.reports.page import plot_style, render_svg

_INK, _SOFT, _LINE, _WASH, _ORANGE = "#1b2420", "#5d6a64", "#9aa5a0", "#fbeae6", "#c0571b"
_OUTCOME_COLOURS: dict[GateOutcome, str] = {
    "passed": "#0b6e4f",
    "failed": "#b3361e",
    "inconclusive": "#0072b2",
    "not_computed": "#8a5c00",
}
_MODEL_STYLES: dict[str, dict[str, Any]] = {
    "candidate": {"color": "#0b6e4f", "linestyle": "-", "linewidth": 2.6, "zorder": 3},
    "champion": {"color": "#0072b2", "linestyle": (0, (4, 2)), "linewidth": 1.6, "zorder": 4},
}
_MODEL_MARKERS = {"candidate": "o", "champion": "s"}
_LABEL_STYLES: dict[int, dict[str, Any]] = {
    0: {"fill": True, "facecolor": "#d5dcd8", "edgecolor": "#7d8983", "linewidth": 1},
    1: {"fill": False, "edgecolor": _ORANGE, "linewidth": 1.8},
}
_RECENT_STYLE: dict[str, Any] = {"color": _ORANGE, "linestyle": (0, (4, 2)), "linewidth": 1.8, "zorder": 4}
_LEGEND_STYLE: dict[str, Any] = {"fontsize": 9, "framealpha": 0.85, "edgecolor": "none", "fancybox": False}
_WIDTH = 11.4  # inches
MAX_SLICES = 40


def plot_intervals(results: Sequence[tuple[GateResult, str, float | None]]) -> Markup:
    """Draw a panel per result, its description and gain, because units differ: the interval, the gain, the limit."""
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 0.84 * len(results) + 0.35), layout="constrained")
        panels: Any = figure.subplots(len(results), 1, squeeze=False)[:, 0]
        titles = []
        for axes, (result, description, gain) in zip(panels, results, strict=True):
            assert result.interval
            low, high = result.interval
            _draw_limit(axes, [low, high, result.threshold, 0.0], result.threshold)
            colour = _OUTCOME_COLOURS[result.outcome]
            _draw_interval(axes, (low, high), 0, color=colour, linewidth=2.4, capsize=5, capthick=2)
            if gain is not None:
                marker = "o" if result.outcome == "passed" else "X"
                axes.plot([gain], [0], marker=marker, markersize=9, color=colour, markeredgecolor="white")
            axes.set_yticks([0], [f"{_truncate(result.gate, 38)}\n{_truncate(description, 44)}"])
            axes.set_ylim(-1, 1)
            _simplify_axes(axes)
            axes.text(1.012, 0.5, format_outcome(result.outcome), transform=axes.transAxes, va="center", color=colour)
            titles.append(f"{result.gate} from {low:.4g} to {high:.4g}, limit {result.threshold:g}, {result.outcome}")
        panels[-1].set_xlabel("gain, in the metric's own unit; positive is better")
        return render_svg(figure, f"Intervals against limits: {'; '.join(titles)}")


def plot_cluster_gains(gains: Sequence[ClusterGain], total: float, limit: float, metric: str) -> Markup:
    """Draw the gain in each cluster beside that of all rows; a dot's area grows with its rows."""
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        axes: Any = figure.subplots()
        axes.axhline(0, color=_LINE, linewidth=1)
        axes.axhline(limit, color=_INK, linestyle=(0, (3, 2)), linewidth=1.2, label=f"limit {format_limit(limit)}")
        axes.axhline(total, color=_OUTCOME_COLOURS["passed"], linewidth=1.8, label=f"all rows {total:.4g}")
        drawn = [(place, part) for place, part in enumerate(gains) if part.gain is not None]
        largest = max((part.rows for part in gains), default=1)
        axes.scatter(
            [place for place, _ in drawn],
            [part.gain for _, part in drawn],
            s=[70 * part.rows / largest for _, part in drawn],
            color=_MODEL_STYLES["candidate"]["color"],
            zorder=3,
        )
        axes.set_xticks(range(len(gains)), [_truncate(part.name, 12) for part in gains], rotation=90, fontsize=8)
        axes.set_xlim(-0.6, len(gains) - 0.4)
        axes.set_ylabel(f"gain in {metric}")
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        descriptions = ", ".join(
            f"{part.name} {'no value' if part.gain is None else format(part.gain, '.4g')}" for part in gains
        )
        return render_svg(figure, f"Gain in {metric} by cluster: {descriptions}; of all rows {total:.4g}")


def plot_binary_predictions(models: Sequence[ScoredRows]) -> Markup:
    """Draw ROC, calibration and scores by label, of rows with labels 0 and 1."""
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 4.1), layout="constrained")
        grid = figure.add_gridspec(2, 3, width_ratios=[1, 1, 1.15])
        description = _draw_roc(figure.add_subplot(grid[:, 0]), models)
        _draw_calibration(figure.add_subplot(grid[:, 1]), models)
        _draw_scores(figure, grid, models)
        return render_svg(figure, f"ROC, calibration and scores by label: {description}")


def plot_continuous_predictions(models: Sequence[ScoredRows]) -> Markup:
    """Draw predictions against labels, and residuals, of rows with continuous labels."""
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
        panels: Any = figure.subplots(1, len(models) + 1, squeeze=False)[0]
        columns = [model.score for model in models] + [model.label for model in models]
        edges = curves.histogram_edges(*columns, tail_share=0.002)
        for axes, model in zip(panels[:-1], models, strict=True):
            _draw_predicted_vs_actual(axes, model, (edges[0], edges[-1]))
        axes = panels[-1]
        residuals = {model.role: model.score - model.label for model in models}
        edges = curves.histogram_edges(*residuals.values(), bin_count=50, tail_share=0.005)
        for role, residual in residuals.items():
            label = f"{role}: mean {residual.mean():.4g}, spread {residual.std():.4g}"
            axes.stairs(curves.histogram_percentages(residual, edges), edges, label=label, **_MODEL_STYLES[role])
        axes.axvline(0, color=_LINE, linewidth=1)
        axes.legend(loc="upper left", **_LEGEND_STYLE)
        axes.margins(y=0.3)  # room for the legend above the data
        axes.set(title="Residuals", xlabel="prediction - actual (0.5 % cut off at either end)", ylabel="% of rows")
        errors = ", ".join(f"{role} mean error {residual.mean():.4g}" for role, residual in residuals.items())
        return render_svg(figure, f"Predicted against actual, and residuals: {errors}")


def plot_slices(
    slice_results: Sequence[SliceResult],
    values: Sequence[float | None],
    limit: float,
    axis_label: str,
    *,
    limits_spread: bool,
) -> Markup:
    """Draw a line per slice with its value and interval.

    `limits_spread`: `limit` bounds the largest minus the smallest value; else it bounds each value from below.
    """
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 0.27 * len(slice_results) + 1.0), layout="constrained")
        axes: Any = figure.subplots()
        rows = list(zip(slice_results, values, strict=True))
        known_values = [value for value in values if value is not None]
        judged = [value for part, value in rows if part.is_judged and value is not None]
        if not limits_spread:
            bounds = [bound for part in slice_results if part.is_judged for bound in part.interval or ()]
            _draw_limit(axes, [*known_values, *bounds, limit, 0.0], limit)
        elif judged:
            low = min(judged)
            axes.axvspan(low, low + limit, color="#e8f3ee", zorder=0)
            _set_x_range(axes, [*known_values, low, low + limit])
        for row, (part, value) in enumerate(rows):
            _draw_slice(axes, row, part, value, None if limits_spread else limit)
        axes.set_yticks(range(len(rows)), [f"{_truncate(part.name, 30)}  ({part.rows:,} rows)" for part, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _simplify_axes(axes)
        for label, part in zip(axes.get_yticklabels(), slice_results, strict=True):
            label.set_color(_INK if part.is_judged else _SOFT)
            label.set_style("normal" if part.is_judged else "italic")
        axes.set_xlabel(axis_label)
        descriptions = ", ".join(
            f"{part.name} {'no value' if value is None else format(value, '.4g')}" for part, value in rows
        )
        return render_svg(figure, f"{axis_label}: {descriptions}; limit {limit:g}")


def plot_prediction_drift(holdout: FloatArray, recent: FloatArray) -> Markup:
    """Draw the candidate's predictions on the holdout and on the most recent day."""
    samples: tuple[tuple[str, FloatArray, dict[str, Any]], ...] = (
        (f"holdout ({holdout.size:,} rows)", holdout, _MODEL_STYLES["candidate"]),
        (f"most recent day ({recent.size:,} rows)", recent, _RECENT_STYLE),
    )
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        histogram, distribution = figure.subplots(1, 2)
        edges = curves.histogram_edges(holdout, recent)
        for label, values, style in samples:
            histogram.stairs(curves.histogram_percentages(values, edges), edges, label=label, **style)
            distribution.step(*curves.empirical_distribution(values), where="post", **style)
        histogram.set(xlabel="prediction", ylabel="% of rows")
        distribution.set(xlabel="prediction", ylabel="% of rows at or below")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        means = ", ".join(f"{label} mean {values.mean():.4g}" for label, values, _ in samples)
        return render_svg(figure, f"Predictions on the holdout and on the most recent day: {means}")


def plot_importance(compared: ComparedImportance, labels: Mapping[str, str]) -> Markup:
    """Draw bars for each input, the candidate's above the champion's, a panel per measure; and ranks at the right.

    `labels` say what each measure is.
    """
    roles = [role for role in _MODEL_STYLES if any(getattr(item, role) for item in compared.inputs)]
    with plot_style():
        height = (0.34 if len(roles) > 1 else 0.24) * len(compared.inputs) + 0.9
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        panels: Any = figure.subplots(1, len(compared.measures), squeeze=False, sharey=True)[0]
        for axes, measure in zip(panels, compared.measures, strict=True):
            for role in roles:
                _draw_importance(axes, compared.inputs, role, measure, roles)
            axes.axvline(0, color=_LINE, linewidth=1)
            _simplify_axes(axes)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_title(labels[measure], fontsize=9, color=_SOFT)
        names = [_truncate(item.name, 34) for item in compared.inputs]
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        for row, item in enumerate(compared.inputs):
            text, colour = _rank_change(item, len(roles) > 1)
            place = panels[-1].get_yaxis_transform()
            panels[-1].text(1.02, row, text, transform=place, va="center", fontsize=9, color=colour)
        place = panels[-1].transAxes
        panels[-1].text(1.02, 1.0, "rank", transform=place, va="bottom", fontsize=9, color=_SOFT)
        if len(roles) > 1:
            handles, texts = panels[0].get_legend_handles_labels()
            figure.legend(handles, texts, loc="outside upper left", ncols=2, frameon=False)
        descriptions = ", ".join(
            f"{item.name} {' and '.join(_describe_value(item.value(role, compared.measures[0])) for role in roles)}"
            for item in compared.inputs
        )
        return render_svg(figure, f"{labels[compared.measures[0]]}, {' and '.join(roles)}: {descriptions}")


def _draw_importance(
    axes: Any, inputs: Sequence[ComparedInput], role: str, measure: ImportanceMeasure, roles: Sequence[str]
) -> None:
    place = 0.0 if len(roles) == 1 else -0.19 if role == "candidate" else 0.19
    colour = _MODEL_STYLES[role]["color"]
    style: dict[str, Any] = {"color": colour, "edgecolor": colour}
    if role == "champion":
        style = {"color": "white", "edgecolor": colour, "hatch": "////", "linewidth": 0.9}
    rows = [(row, item) for row, item in enumerate(inputs) if item.value(role, measure) is not None]
    places, values = [row + place for row, _ in rows], [item.value(role, measure) for _, item in rows]
    axes.barh(places, values, height=0.34 if len(roles) > 1 else 0.6, label=role, **style)
    if measure != "permutation":
        return
    measured = [item.candidate if role == "candidate" else item.champion for _, item in rows]
    deviations = [(item.deviation or 0.0) if item else 0.0 for item in measured]
    axes.errorbar(values, places, None, deviations, fmt="none", ecolor=_INK, elinewidth=0.9, capsize=2)


def _rank_change(item: ComparedInput, is_compared: bool) -> tuple[str, str]:
    """Return an input's rank, where it was for the champion, and the colour of a change."""
    rank = str(item.rank or NO_VALUE)
    if is_compared and item.champion is None:
        return f"{rank}  new", _ORANGE
    if is_compared and item.candidate is None:
        return f"gone, was {item.champion_rank or NO_VALUE}", _ORANGE
    if not is_compared or item.rank == item.champion_rank:
        return rank, _SOFT
    if item.rank is None or item.champion_rank is None:
        return f"{rank}, was {item.champion_rank or NO_VALUE}", _ORANGE
    arrow = "▲" if item.rank < item.champion_rank else "▼"
    return f"{rank}  {arrow} was {item.champion_rank}", _ORANGE


def _describe_value(value: float | None) -> str:
    return "no value" if value is None else format(value, ".4g")


def _draw_roc(axes: Any, models: Sequence[ScoredRows]) -> str:
    axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1, linestyle=":")
    labels = []
    for model in models:
        curve = curves.roc_curve(model)
        points = (curve.false_positive_rate, curve.true_positive_rate) if curve else ([], [])
        labels.append(f"{model.role} AUC {curve.auc:.4f}" if curve else f"{model.role}: labels of one class only")
        axes.plot(*points, label=labels[-1], **_MODEL_STYLES[model.role])
    axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    axes.grid(visible=True, axis="both")
    axes.legend(loc="lower right", **_LEGEND_STYLE)
    return ", ".join(labels)


def _draw_calibration(axes: Any, models: Sequence[ScoredRows]) -> None:
    top = 0.0
    for model in models:
        bins = curves.calibration_bins(model)
        _draw_bins(axes, bins, model.role, model.role)
        top = max([top, *(max(bin_.mean_prediction, bin_.high) for bin_ in bins)])
    axes.plot([0, top], [0, top], color=_LINE, linewidth=1, linestyle=":")
    axes.set(title="Calibration", xlabel="mean prediction of a tenth of the rows", ylabel="share of label 1")
    axes.grid(visible=True, axis="both")
    axes.legend(loc="upper left", **_LEGEND_STYLE)


def _draw_scores(figure: Any, grid: Any, models: Sequence[ScoredRows]) -> None:
    edges = curves.histogram_edges(*(model.score for model in models))
    first: Any = None
    for row, model in enumerate(models):
        cell = grid[row, 2] if len(models) > 1 else grid[:, 2]
        axes = figure.add_subplot(cell, sharex=first, sharey=first)
        first = first or axes
        for label, style in _LABEL_STYLES.items():
            values = model.score[model.label == label]
            percentages = curves.histogram_percentages(values, edges)
            axes.stairs(percentages, edges, label=f"label {label} ({values.size:,})", **style)
        axes.set_ylabel(f"{model.role}\n% of the label's rows")
        axes.tick_params(labelbottom=row == len(models) - 1)
        if row == 0:
            axes.set_title("Scores by label")
            axes.legend(loc="upper right", **_LEGEND_STYLE)
    axes.set_xlabel("score")


def _draw_predicted_vs_actual(axes: Any, rows: ScoredRows, axis_range: tuple[float, float]) -> None:
    axes.plot(*curves.sample_evenly(rows), linestyle="", marker=".", markersize=3, color="#b4beb9", zorder=1)
    label = "mean of a twentieth of the rows,\n10 % to 90 % of them"
    _draw_bins(axes, curves.continuous_bins(rows), label, rows.role)
    axes.plot(axis_range, axis_range, color=_LINE, linewidth=1, linestyle=":")
    if axis_range[0] < axis_range[1]:
        axes.set(xlim=axis_range, ylim=axis_range)
    axes.set(title=f"{rows.role}: predicted against actual", xlabel="prediction", ylabel="actual")
    axes.legend(loc="upper left", **_LEGEND_STYLE)


def _draw_bins(axes: Any, bins: Sequence[CalibrationBin], label: str, role: str) -> None:
    predictions, means = [bin_.mean_prediction for bin_ in bins], [bin_.mean_label for bin_ in bins]
    # The mean of a skewed label may lie outside of its 10 % and 90 % quantiles.
    below = [max(bin_.mean_label - bin_.low, 0.0) for bin_ in bins]
    above = [max(bin_.high - bin_.mean_label, 0.0) for bin_ in bins]
    style = _MODEL_STYLES[role]
    axes.plot(predictions, means, label=label, markersize=5, marker=_MODEL_MARKERS[role], **style)
    axes.errorbar(predictions, means, (below, above), fmt="none", ecolor=style["color"], elinewidth=1, alpha=0.6)


def _draw_slice(axes: Any, row: int, part: SliceResult, value: float | None, lower_limit: float | None) -> None:
    if value is None:
        transform = axes.get_yaxis_transform()
        axes.text(0.5, row, " no value", transform=transform, va="center", color=_SOFT, size=9)
        return
    fails = lower_limit is not None and part.is_judged and part.interval is not None and part.interval[1] < lower_limit
    colour = _OUTCOME_COLOURS["failed" if fails else "passed"] if part.is_judged else _LINE
    if part.interval and part.interval[0] <= value <= part.interval[1]:
        _draw_interval(axes, part.interval, row, color=colour, linewidth=2, capsize=3.5)
    face = colour if part.is_judged else "white"
    axes.plot([value], [row], marker="X" if fails else "o", markersize=7, color=colour, markerfacecolor=face)


def _draw_interval(axes: Any, interval: tuple[float, float], row: int, **style: Any) -> None:
    """Draw a horizontal interval, which need not contain the value."""
    low, high = interval
    axes.errorbar([(low + high) / 2], [row], None, [[(high - low) / 2]] * 2, fmt="none", **style)


def _draw_limit(axes: Any, values: Sequence[float], limit: float) -> None:
    """Shade what lies below the limit."""
    axes.axvspan(_set_x_range(axes, values), limit, color=_WASH, zorder=0)
    axes.axvline(0, color=_LINE, linewidth=1, zorder=1)
    axes.axvline(limit, color=_INK, linestyle=(0, (3, 2)), linewidth=1.2, zorder=1)
    position = (limit, 1), (0, 1), ("data", "axes fraction"), "offset points"
    axes.annotate(f"limit {format_limit(limit)}", *position, ha="center", fontsize=8, color=_SOFT)


def _set_x_range(axes: Any, values: Sequence[float]) -> float:
    """Make room for all values; return the left end."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    axes.set_xlim(low - margin, high + margin)
    return low - margin


def _simplify_axes(axes: Any) -> None:
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(7))


def _truncate(text: str, width: int) -> str:
    """Return the text on one line of at most `width` characters."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= width else line[: width - 1] + "…"
