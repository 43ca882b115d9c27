"""The results of a backtest (`results.json`), the report on them as a page, and their summary for a task's log."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np
from markupsafe import Markup
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from evergreen.gates import Verdict
from evergreen.periods import days_from
from evergreen.reports.formatting import NO_VALUE, OUTCOME_SYMBOLS, format_interval, format_number, format_signed
from evergreen.reports.gate_table import gate_rows
from evergreen.reports.page import jinja_environment, plot_style, render_svg
from evergreen.spec import Frozen
from evergreen.storage import UPath

# Distinguishable for the colour-blind, too (Okabe and Ito 2008, "Color universal design").
POLICY_COLOURS = {
    "gates": "#0b6e4f",
    "every_date": "#0072b2",
    "monthly": "#e69f00",
    "on_drift": "#cc79a7",
    "on_loss": "#d55e00",
    "never": "#7a7a7a",
}
_AFTER_ALL = "9999-12-31"
_LOG_WIDTH = 110  # characters


class BacktestStep(Frozen, allow_inf_nan=False):
    """A candidate and the decision about it."""

    as_of: str
    holdout_start: str = Field(description="first period of its holdout")
    candidate_fingerprint: str
    train_rows: int
    champion_as_of: str | None = Field(description="the champion that it was compared with, by its date")
    verdict: Verdict
    promoted: bool
    reason: str


class PeriodSummary(Frozen, allow_inf_nan=False):
    """The periods `start` ≤ period < `end`, on which the models live after the date `live_as_of` are measured."""

    live_as_of: str
    start: str
    end: str
    rows: int
    positive_share: float | None = Field(description="share of rows with label 1; None of other labels")


class DeploymentSummary(Frozen, allow_inf_nan=False):
    """A model that a policy deployed."""

    as_of: str
    end: str | None = Field(description="None: still live at the last date")
    live_days: int = Field(description="days until it was replaced, or until the last date")
    reason: str


class GainEstimate(Frozen, allow_inf_nan=False):
    """Mean over the compared periods, positive is better, with one-sided 95 % bounds."""

    mean: float
    low: float
    high: float


class PolicySummary(Frozen, allow_inf_nan=False):
    """What a policy would have delivered."""

    name: str
    label: str
    rule: str
    training_count: int = Field(description="candidates that the policy trains")
    deployments: tuple[DeploymentSummary, ...]
    metric_values: tuple[float | None, ...] = Field(description="one per period; None: no model, or not measurable")
    mean: float | None = Field(description="over the compared periods")
    worst_value: float | None
    worst_period_start: str | None
    gain_over_never: GainEstimate | None
    notes: tuple[str, ...] = Field((), description="what of the policy is not simulated, or could not be")


class BacktestResults(Frozen, allow_inf_nan=False):
    """The whole backtest of a model."""

    model: str
    description: str
    fingerprint: str = Field(description="fingerprint of the candidates, the spec and the code")
    spec_fingerprint: str = Field(description="fingerprint of what makes candidates comparable")
    excluded_candidates: int = Field(description="candidates of another spec, which are left out")
    metric: str
    higher_is_better: bool = Field(description="of the metric")
    label: str
    train: str
    holdout: str
    steps: tuple[BacktestStep, ...]
    periods: tuple[PeriodSummary, ...]
    compared_periods: tuple[int, ...] = Field(
        description="periods in which every policy that ever deploys has a measured model: means are over these"
    )
    policies: tuple[PolicySummary, ...]

    @property
    def step_days(self) -> int | None:
        """Days between two steps, if all are equally far apart."""
        days = {days_from(step.as_of, later.as_of) for step, later in pairwise(self.steps)}
        return days.pop() if len(days) == 1 else None

    def policy(self, name: str) -> PolicySummary:
        """Return the policy of that name."""
        return next(policy for policy in self.policies if policy.name == name)

    @classmethod
    def read(cls, file: UPath | Path) -> Self:
        """Read `results.json`."""
        return cls.model_validate_json(file.read_text())


def render_backtest_report(results: BacktestResults) -> str:
    """Return one self-contained HTML page; equal results give equal bytes."""
    gates = results.policy("gates")
    template = jinja_environment().get_template("backtest.html.j2")
    return template.render(
        results=results,
        summary=summarize_backtest(results),
        period=_period_noun(results),
        colours=POLICY_COLOURS,
        symbols=OUTCOME_SYMBOLS,
        gate_rows=gate_rows,
        champions_summary=_summarize_champions(gates),
        champion_deployments={life.as_of: (life, _mean_while_live(results, gates, life)) for life in gates.deployments},
        reactions={
            policy.label: policy.deployments[1:]
            for policy in map(results.policy, ("on_drift", "on_loss"))
            if policy.deployments[1:]
        },
        unmeasured=sum(period.start > period.live_as_of for period in results.periods),
        plot=_render_plot(results) if results.periods else None,
    )


def summary_lines(results: BacktestResults) -> list[str]:
    """Return the policies as a plain table, and the summary, for a log."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for column in (f"mean {results.metric}", f"worst {_period_noun(results)}", "over never", "deployed", "trained"):
        table.add_column(column, justify="right")
    for policy in results.policies:
        gain, worst_start = policy.gain_over_never, policy.worst_period_start
        table.add_row(
            policy.label,
            format_number(policy.mean),
            format_number(policy.worst_value) + (f" ({worst_start})" if worst_start else ""),
            f"{format_signed(gain.mean)} ({format_interval((gain.low, gain.high))})" if gain else NO_VALUE,
            str(len(policy.deployments)),
            str(policy.training_count),
        )
    # The same width and no colours wherever the task runs: a log is not a terminal.
    console = Console(width=_LOG_WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as text:
        console.print(table)
    excluded = f"; {results.excluded_candidates} of another spec left out" if results.excluded_candidates else ""
    return [
        f"{results.model}: {len(results.steps)} candidates{excluded}",
        *(line.rstrip() for line in text.get().splitlines() if line.strip()),
        *(f"{policy.label}: {note}" for policy in results.policies for note in policy.notes),
        summarize_backtest(results),
    ]


def summarize_backtest(results: BacktestResults) -> str:
    """Return the outcome in a sentence or two."""
    gates, promoted = results.policy("gates"), sum(step.promoted for step in results.steps)
    first = f"Evergreen's gates would have promoted {promoted} of {len(results.steps)} candidates."
    period, gain = _period_noun(results), gates.gain_over_never
    if not results.periods:
        return f"{first} With one date, there is nothing after it to measure policies on."
    if gates.mean is None or gain is None:
        return f"{first} No {period} has a measured model of every policy, so they are not compared."
    mean, bound = format_number(abs(gain.mean)), format_number(min(abs(gain.low), abs(gain.high)))
    if gain.low > 0 or gain.high < 0:
        direction = "better" if gain.low > 0 else "worse"
        comparison = f"{mean} {direction} than never retraining (at least {bound}, at 95 % confidence)"
    else:
        bounds = f"from {format_signed(gain.low)} to {format_signed(gain.high)}"
        comparison = f"not distinguishable from never retraining ({format_signed(gain.mean)}, {bounds})"
    policies = ", ".join(
        f"{policy.label} {format_number(policy.mean)} with {len(policy.deployments)}"
        for policy in results.policies
        if policy.name not in ("gates", "never") and policy.mean is not None
    )
    return (
        f"{first} Live one after the other, they have a mean {results.metric} of {format_number(gates.mean)} over "
        f"{len(results.compared_periods)} {period}s, {comparison}. For comparison, by models deployed: {policies}."
    )


def _summarize_champions(gates: PolicySummary) -> str:
    if not gates.deployments:
        return "No candidate passed all gates: there would have been no champion."
    days = [deployment.live_days for deployment in gates.deployments if deployment.end]
    if not days:
        return f"One champion, of {gates.deployments[0].as_of}: no later candidate passed all gates."
    return (
        f"{len(gates.deployments)} champions. Those that were replaced lived {median(days):g} days in the median, "
        f"the longest {max(days)}."
    )


def _period_noun(results: BacktestResults) -> str:
    return "week" if results.step_days == 7 else "period"


def _mean_while_live(results: BacktestResults, policy: PolicySummary, deployment: DeploymentSummary) -> float | None:
    end = deployment.end or _AFTER_ALL
    values = [
        value
        for period, value in zip(results.periods, policy.metric_values, strict=True)
        if value is not None and deployment.as_of <= period.live_as_of < end
    ]
    return sum(values) / len(values) if values else None


def _render_plot(results: BacktestResults) -> Markup:
    """Draw the metric, the gain over never, the share of label 1 and the deployed models above one time axis."""
    with plot_style():
        figure = Figure(figsize=(11.4, 9.2), layout="constrained")
        panels: Any = figure.subplots(4, 1, sharex=True, gridspec_kw={"height_ratios": [4, 3, 1.1, 2.4]})
        _draw_metrics(panels[0], panels[1], results)
        widths = [_days(period.start, period.end) * 0.9 for period in results.periods]
        shares = [period.positive_share for period in results.periods]
        has_shares = any(share is not None for share in shares)
        heights = (
            [100 * (share or 0) for share in shares] if has_shares else [period.rows for period in results.periods]
        )
        panels[2].bar(_period_midpoints(results), heights, widths, color="#c9d3ce")
        panels[2].set_ylabel(f"% {results.label}" if has_shares else "rows")
        _draw_deployments(panels[3], results)
        start, end = results.steps[0].as_of, results.steps[-1].as_of
        margin = _days(start, end) * 0.01
        panels[3].set_xlim(_position(start) - margin, _position(end) + margin)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
        figure.align_ylabels(panels[:3])
        return render_svg(figure, f"{results.metric} over time and deployed models, by policy")


def _position(period: str) -> float:
    """Return where a period begins on the time axis, in days."""
    return float(date2num(datetime.fromisoformat(period)))


def _days(start: str, end: str) -> float:
    return _position(end) - _position(start)


def _period_midpoints(results: BacktestResults) -> list[float]:
    return [(_position(period.start) + _position(period.end)) / 2 for period in results.periods]


def _policy_style(name: str) -> dict[str, Any]:
    style = {"color": POLICY_COLOURS[name], "marker": "o", "linestyle": (0, (4, 2)) if name == "never" else "-"}
    if name == "gates":  # wide and beneath the others, so that both lines show where the gates pass everything
        return style | {"linewidth": 5, "alpha": 0.55, "markersize": 6, "zorder": 2}
    return style | {"linewidth": 1.4, "alpha": 1, "markersize": 2.6, "zorder": 3}


def _draw_metrics(metric_axes: Any, gain_axes: Any, results: BacktestResults) -> None:
    """Draw each policy's metric, and below it the gain over never: periods differ more than policies do in one."""
    middles, sign = _period_midpoints(results), 1 if results.higher_is_better else -1
    values = {policy.name: np.array(policy.metric_values, dtype=float) for policy in results.policies}  # None is NaN
    for policy in results.policies:
        metric_axes.plot(middles, values[policy.name], label=policy.label, **_policy_style(policy.name))
        if policy.name != "never":
            gain_axes.plot(middles, sign * (values[policy.name] - values["never"]), **_policy_style(policy.name))
    gain_axes.axhline(0, **{**_policy_style("never"), "marker": ""})
    metric_axes.set_ylabel(results.metric)
    gain_axes.set_ylabel("gain over never")


def _draw_deployments(axes: Any, results: BacktestResults) -> None:
    last = results.steps[-1].as_of
    label_width = max(_days(results.steps[0].as_of, last) / 14, 1)
    for row, policy in enumerate(results.policies):
        for number, deployment in enumerate(policy.deployments):
            start, end = deployment.as_of, deployment.end or last
            offset, width = _position(start), _days(start, end)
            alpha = 0.95 if number % 2 == 0 else 0.55
            axes.barh(row, width, left=offset, height=0.62, color=POLICY_COLOURS[policy.name], alpha=alpha)
            if width >= label_width:
                center = (offset + width / 2, row)
                axes.annotate(
                    f"{datetime.fromisoformat(start):%d %b}",
                    center,
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=9,
                )
    axes.set_yticks(range(len(results.policies)), [policy.label for policy in results.policies])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis_date()
