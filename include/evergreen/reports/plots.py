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

from evergreen.gates.metrics import Floats
from evergreen.gates.verdict import Outcome, Part
from evergreen.reports import curves
from evergreen.reports.curves import Bin, Scored
from evergreen.reports.page import MARKS, drawing, svg

_INK, _SOFT, _LINE, _WASH = "#1b2420", "#5d6a64", "#9aa5a0", "#fbeae6"
_OUTCOMES: dict[Outcome, str] = {"passed": "#0b6e4f", "failed": "#b3361e", "not_computed": "#8a5c00"}
_MODELS: dict[str, dict[str, Any]] = {
    "candidate": {"color": "#0b6e4f", "linestyle": "-", "linewidth": 2.6, "zorder": 3},
    "champion": {"color": "#0072b2", "linestyle": (0, (4, 2)), "linewidth": 1.6, "zorder": 4},
}
_POINTS = {"candidate": "o", "champion": "s"}
_LEGEND: dict[str, Any] = {"fontsize": 9, "framealpha": 0.85, "edgecolor": "none", "fancybox": False}
_WIDTH = 11.4
MOST_PARTS = 40


@dataclass(frozen=True)
class Comparison:
    """A gate that holds the lower bound of a gain against a limit; the gain may be unknown."""

    gate: str
    about: str
    gain: float | None
    interval: tuple[float, float]
    limit: float
    outcome: Outcome


def intervals(comparisons: Sequence[Comparison]) -> str:
    """A panel per gate, because units differ: the interval, the gain and the limit."""
    with drawing():
        figure, panels = _stack([1.0] * len(comparisons), height=0.84 * len(comparisons) + 0.35)
        for axes, of in zip(panels, comparisons, strict=True):
            _limit(axes, [*of.interval, of.limit, 0.0], of.limit)
            colour = _OUTCOMES[of.outcome]
            axes.errorbar(
                *_bar(of.interval, 0), color=colour, fmt="none", linewidth=2.4, capsize=5, capthick=2
            )
            if of.gain is not None:
                marker = "o" if of.outcome == "passed" else "X"
                axes.plot([of.gain], [0], marker=marker, markersize=9, color=colour, markeredgecolor="white")
            axes.set_yticks([0], [f"{_name(of.gate, 38)}\n{_name(of.about, 44)}"])
            axes.set_ylim(-1, 1)
            _bare(axes)
            text = f"{MARKS[of.outcome]} {of.outcome.replace('_', ' ')}"
            axes.text(1.012, 0.5, text, transform=axes.transAxes, va="center", color=colour)
        panels[-1].set_xlabel("gain, in the metric's own unit; positive is better")
        said = "; ".join(
            f"{of.gate} from {of.interval[0]:.4g} to {of.interval[1]:.4g}, limit {of.limit:g}, {of.outcome}"
            for of in comparisons
        )
        return svg(figure, f"Intervals against limits: {said}")


def classes(models: Sequence[Scored]) -> str:
    """ROC, calibration and scores by label, of rows of class 0 and 1."""
    with drawing():
        figure = Figure(figsize=(_WIDTH, 4.1), layout="constrained")
        grid = figure.add_gridspec(2, 3, width_ratios=[1, 1, 1.15])
        said = _draw_roc(figure.add_subplot(grid[:, 0]), models)
        _draw_calibration(figure.add_subplot(grid[:, 1]), models)
        _draw_scores(figure, grid, models)
        return svg(figure, f"ROC, calibration and scores by label: {said}")


def amounts(models: Sequence[Scored]) -> str:
    """Predicted against actual, and residuals, of rows whose labels are amounts."""
    with drawing():
        figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
        panels: Any = figure.subplots(1, len(models) + 1, squeeze=False)[0]
        between = curves.edges(*(of.score for of in models), *(of.label for of in models), tails=0.002)
        for axes, of in zip(panels[:-1], models, strict=True):
            _draw_actual(axes, of, (between[0], between[-1]))
        axes = panels[-1]
        residuals = [of.score - of.label for of in models]
        bars = curves.edges(*residuals, number=50, tails=0.005)
        for of, residual in zip(models, residuals, strict=True):
            label = f"{of.whose}: mean {residual.mean():.4g}, spread {residual.std():.4g}"
            axes.stairs(curves.shares(residual, bars), bars, label=label, **_MODELS[of.whose])
        axes.axvline(0, color=_LINE, linewidth=1)
        _legend_above(axes)
        axes.set(
            title="Residuals", xlabel="prediction - actual (0.5 % cut off at either end)", ylabel="% of rows"
        )
        said = ", ".join(
            f"{of.whose} mean error {residual.mean():.4g}"
            for of, residual in zip(models, residuals, strict=True)
        )
        return svg(figure, f"Predicted against actual, and residuals: {said}")


def slices(
    parts: Sequence[Part], values: Sequence[float | None], limit: float, what: str, *, span: bool
) -> str:
    """A line per slice: its value and interval. `span`: all values may lie `limit` apart; else each above it."""
    with drawing():
        height = 0.27 * len(parts) + 1.0
        figure, (axes,) = _stack([1.0], height=height)
        judged = [
            value for part, value in zip(parts, values, strict=True) if part.judged and value is not None
        ]
        shown = [value for value in values if value is not None]
        shown += [bound for part in parts if part.judged for bound in part.interval or () if not span]
        if not span:
            _limit(axes, [*shown, limit, 0.0], limit)
        elif judged:
            low = min(judged)
            axes.axvspan(low, low + limit, color="#e8f3ee", zorder=0)
            _wide(axes, [*shown, low, low + limit])
        for row, (part, value) in enumerate(zip(parts, values, strict=True)):
            fails = not span and part.judged and part.interval is not None and part.interval[1] < limit
            colour = _OUTCOMES["failed" if fails else "passed"] if part.judged else _LINE
            if value is None:
                text = " no value"
                axes.text(
                    0.5, row, text, transform=axes.get_yaxis_transform(), va="center", color=_SOFT, size=9
                )
                continue
            if part.interval and part.interval[0] <= value <= part.interval[1]:
                axes.errorbar(*_bar(part.interval, row), color=colour, fmt="none", linewidth=2, capsize=3.5)
            inside = colour if part.judged else "white"
            marker = "X" if fails else "o"
            axes.plot([value], [row], marker=marker, markersize=7, color=colour, markerfacecolor=inside)
        axes.set_yticks(
            range(len(parts)), [f"{_name(part.name, 30)}  ({part.rows:,} rows)" for part in parts]
        )
        axes.set_ylim(len(parts) - 0.4, -0.6)
        _bare(axes)
        for label, part in zip(axes.get_yticklabels(), parts, strict=True):
            label.set_color(_INK if part.judged else _SOFT)
            label.set_style("normal" if part.judged else "italic")
        axes.set_xlabel(what)
        said = ", ".join(
            f"{part.name} {'no value' if value is None else format(value, '.4g')}"
            for part, value in zip(parts, values, strict=True)
        )
        return svg(figure, f"{what}: {said}; limit {limit:g}")


def drift(holdout: Floats, recent: Floats) -> str:
    """The candidate's predictions on the holdout and on the most recent day."""
    look: tuple[tuple[str, Floats, dict[str, Any]], ...] = (
        (f"holdout ({holdout.size:,} rows)", holdout, _MODELS["candidate"]),
        (
            f"most recent day ({recent.size:,} rows)",
            recent,
            {"color": "#c0571b", "linestyle": (0, (4, 2)), "linewidth": 1.8, "zorder": 4},
        ),
    )
    with drawing():
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        bars = curves.edges(holdout, recent)
        for label, values, style in look:
            left.stairs(curves.shares(values, bars), bars, label=label, **style)
            right.step(*curves.distribution(values), where="post", **style)
        left.set(xlabel="prediction", ylabel="% of rows")
        right.set(xlabel="prediction", ylabel="% of rows at or below")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        said = ", ".join(f"{label} mean {values.mean():.4g}" for label, values, _ in look)
        return svg(figure, f"Predictions on the holdout and on the most recent day: {said}")


def _draw_roc(axes: Any, models: Sequence[Scored]) -> str:
    axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1, linestyle=":")
    said = []
    for of in models:
        curve = curves.roc(of)
        if curve is None:
            said.append(f"{of.whose}: labels of one class only")
            axes.plot([], [], label=said[-1], **_MODELS[of.whose])
            continue
        said.append(f"{of.whose} AUC {curve.area:.4f}")
        axes.plot(curve.x, curve.y, label=said[-1], **_MODELS[of.whose])
    axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    axes.grid(visible=True, axis="both")
    axes.legend(loc="lower right", **_LEGEND)
    return ", ".join(said)


def _draw_calibration(axes: Any, models: Sequence[Scored]) -> None:
    top = 0.0
    for of in models:
        found = curves.bins(of)
        _draw_bins(axes, found, of.whose, markersize=5, marker=_POINTS[of.whose], **_MODELS[of.whose])
        top = max([top, *(max(part.predicted, part.high) for part in found)])
    axes.plot([0, top], [0, top], color=_LINE, linewidth=1, linestyle=":")
    axes.set(title="Calibration", xlabel="mean prediction of a tenth of the rows", ylabel="share of label 1")
    axes.grid(visible=True, axis="both")
    axes.legend(loc="upper left", **_LEGEND)


def _draw_scores(figure: Any, grid: Any, models: Sequence[Scored]) -> None:
    bars = curves.edges(*(of.score for of in models))
    first: Any = None
    for row, of in enumerate(models):
        place = grid[row, 2] if len(models) > 1 else grid[:, 2]
        axes = figure.add_subplot(place, sharex=first, sharey=first)
        first = first or axes
        for label, look in _LABELS.items():
            values = of.score[of.label == label]
            axes.stairs(curves.shares(values, bars), bars, label=f"label {label} ({values.size:,})", **look)
        axes.set_ylabel(f"{of.whose}\n% of the label's rows")
        axes.tick_params(labelbottom=row == len(models) - 1)
        if row == 0:
            axes.set_title("Scores by label")
            axes.legend(loc="upper right", **_LEGEND)
    axes.set_xlabel("score")


_LABELS: dict[int, dict[str, Any]] = {
    0: {"fill": True, "facecolor": "#d5dcd8", "edgecolor": "#7d8983", "linewidth": 1},
    1: {"fill": False, "edgecolor": "#c0571b", "linewidth": 1.8},
}


def _draw_actual(axes: Any, of: Scored, ends: tuple[float, float]) -> None:
    look = _MODELS[of.whose]
    axes.plot(*curves.sample(of), linestyle="", marker=".", markersize=3, color="#b4beb9", zorder=1)
    found = curves.amount_bins(of)
    label = "mean of a twentieth of the rows,\n10 % to 90 % of them"
    _draw_bins(axes, found, label, markersize=5, marker=_POINTS[of.whose], **look)
    axes.plot(ends, ends, color=_LINE, linewidth=1, linestyle=":")
    if ends[0] < ends[1]:
        axes.set(xlim=ends, ylim=ends)
    axes.set(title=f"{of.whose}: predicted against actual", xlabel="prediction", ylabel="actual")
    axes.legend(loc="upper left", **_LEGEND)


def _draw_bins(axes: Any, found: Sequence[Bin], label: str, **look: Any) -> None:
    predicted = [part.predicted for part in found]
    # The mean of skewed amounts may lie outside of their 10 % and 90 % quantiles.
    down = [max(part.middle - part.low, 0.0) for part in found]
    up = [max(part.high - part.middle, 0.0) for part in found]
    middle = [part.middle for part in found]
    axes.plot(predicted, middle, label=label, **look)
    axes.errorbar(predicted, middle, (down, up), fmt="none", ecolor=look["color"], elinewidth=1, alpha=0.6)


def _stack(ratios: Sequence[float], height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panels: Any = figure.subplots(len(ratios), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    return figure, panels


def _wide(axes: Any, values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    axes.set_xlim(low - room, high + room)
    return low - room, high + room


def _limit(axes: Any, values: Sequence[float], limit: float) -> None:
    """What lies left of the limit is too little."""
    left, _ = _wide(axes, values)
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


def _bar(interval: tuple[float, float], row: int) -> tuple[list[float], list[int], None, list[list[float]]]:
    """Arguments of errorbar for an interval, which need not hold the value."""
    middle = (interval[0] + interval[1]) / 2
    half = (interval[1] - interval[0]) / 2
    return [middle], [row], None, [[half], [half]]


def _bare(axes: Any) -> None:
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(7))


def _legend_above(axes: Any) -> None:
    """Where a legend has room over the data."""
    axes.legend(loc="upper left", **_LEGEND)
    axes.margins(y=0.3)


def _name(text: str, width: int) -> str:
    """Short enough for its place, on one line."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return plain if len(plain) <= width else plain[: width - 1] + "…"
