"""The plots of a table of features: the distribution of each column with its nulls, and the label over time."""

from __future__ import annotations

from math import ceil
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from evergreen.reports.page import plot_style, render_svg
from evergreen.reports.table_profile import ColumnDistribution, TableProfile

_PANELS_PER_ROW = 4
MAX_PANELS = 32
_WIDTH, _PANEL_HEIGHT = 11.4, 1.9  # inches
_FILL, _EDGE, _INK = "#cfe3da", "#0b6e4f", "#0b6e4f"
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2, 1)))
_MAX_TEXT = 30


def plot_columns(table: TableProfile) -> Markup | None:
    """Draw how the values of each column are distributed, and say how many are null; None without values."""
    columns = [column for column in table.columns if column.counts][:MAX_PANELS]
    if not columns:
        return None
    with plot_style():
        count = ceil(len(columns) / _PANELS_PER_ROW)
        figure = Figure(figsize=(_WIDTH, _PANEL_HEIGHT * count), layout="constrained")
        panels: Any = figure.subplots(count, _PANELS_PER_ROW, squeeze=False).flatten()
        for axes, column in zip(panels, columns, strict=False):
            _draw_distribution(axes, column)
            axes.set_title(
                f"{_shorten(column.name)}\n{describe_nulls(column, table.row_count)}", fontsize=8, loc="left"
            )
            axes.tick_params(labelsize=7)
        for axes in panels[len(columns) :]:
            axes.set_axis_off()
        names = ", ".join(f"{column.name}, {describe_nulls(column, table.row_count)}" for column in columns)
        return render_svg(figure, f"Distributions of the columns of {table.name}: {names}")


def plot_label(table: TableProfile) -> Markup | None:
    """Draw the mean of the label over the period, or the share of each of its classes; None without labels."""
    if not table.label:
        return None
    with plot_style():
        figure = Figure(figsize=(_WIDTH, 2.4), layout="constrained")
        axes: Any = figure.subplots()
        for number, series in enumerate(table.label):
            points = [
                (time, value) for time, value in zip(series.times, series.values, strict=True) if value is not None
            ]
            axes.plot(
                [time for time, _ in points],
                [value for _, value in points],
                marker="o",
                markersize=3,
                color=_INK if number == 0 else f"C{number}",
                linestyle=_DASHES[number % len(_DASHES)],
                label=_shorten(series.name),
            )
        axes.set_xlabel("event_timestamp, UTC")
        figure.legend(loc="outside upper left", ncols=len(table.label), frameon=False, fontsize=8)
        return render_svg(figure, f"Label over time: {', '.join(series.name for series in table.label)}")


def describe_nulls(column: ColumnDistribution, row_count: int) -> str:
    """Return how many of the values are null."""
    if not column.null_count:
        return "no nulls"
    return f"{column.null_count:,} nulls, {column.null_count / row_count:.1%}"


def _draw_distribution(axes: Any, column: ColumnDistribution) -> None:
    style = {"facecolor": _FILL, "edgecolor": _EDGE, "linewidth": 0.8}
    if column.edges:
        axes.stairs(column.counts, column.edges, fill=True, **style)
        axes.margins(x=0.02)
        axes.locator_params(axis="x", nbins=4)
    else:
        places = range(len(column.values))
        axes.barh(places, column.counts, **style)
        axes.set_yticks(places, [_shorten(value, 14) for value in column.values])
        axes.invert_yaxis()
        axes.grid(visible=False)


def _shorten(text: str, length: int = _MAX_TEXT) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= length else plain[: length - 1] + "…"
