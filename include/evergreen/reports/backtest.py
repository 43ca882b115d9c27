"""Results as a page to show around, and as lines for a task's log."""

from __future__ import annotations

from datetime import date, timedelta
from io import StringIO
from typing import Any

from evergreen.reports.backtest_results import BacktestResults, DeploymentSummary, PolicySummary
from evergreen.reports.backtest_template import BACKTEST_TEMPLATE
from evergreen.reports.page import jinja_environment, plot_style, render_svg

# Told apart by the colour-blind, too (Okabe and Ito 2008, "Color universal design").
POLICY_COLOURS = {
    "gates": "#0b6e4f",
    "every_date": "#0072b2",
    "monthly": "#e69f00",
    "on_drift": "#cc79a7",
    "never": "#7a7a7a",
}


def render_backtest_report(results: BacktestResults) -> str:
    """One self-contained page; equal results give equal bytes."""
    from markupsafe import Markup

    page = jinja_environment()
    page.filters["figure"] = _format_metric
    gates = results.policy("gates")
    return page.from_string(BACKTEST_TEMPLATE).render(
        r=results,
        finding=summarize_backtest(results),
        period=_period_noun(results),
        colours=POLICY_COLOURS,
        gates=[record.gate for record in results.steps[0].verdict.results],
        champions={life.as_of: (life, _mean_while_live(results, gates, life)) for life in gates.deployments},
        lives=_describe_champions(gates),
        drifts=results.policy("on_drift").deployments[1:],
        unmeasured=sum(period.start > period.live_as_of for period in results.periods),
        plot=Markup(_render_plot(results)) if results.periods else None,  # noqa: S704 - drawn here
    )


def summary_lines(results: BacktestResults) -> list[str]:
    """The policies as a plain table, and what was found, for a log."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for column in (
        f"mean {results.metric}",
        f"worst {_period_noun(results)}",
        "over never",
        "deployed",
        "trained",
    ):
        table.add_column(column, justify="right")
    for policy in results.policies:
        gain = policy.gain_over_never
        table.add_row(
            policy.label,
            _format_metric(policy.mean),
            _format_metric(policy.worst_value)
            + (f" ({policy.worst_period_start})" if policy.worst_period_start else ""),
            f"{gain.mean:+.4f} ({gain.low:+.4f} … {gain.high:+.4f})" if gain else "–",
            str(len(policy.deployments)),
            str(policy.training_count),
        )
    text = StringIO()
    # Everything said, whatever the surroundings: a log is no terminal.
    console = Console(file=text, width=110, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(table)
    left_out = f"; {results.excluded_candidates} of another spec left out" if results.excluded_candidates else ""
    head = f"{results.model}: {len(results.steps)} candidates{left_out}"
    return [
        head,
        *(line.rstrip() for line in text.getvalue().splitlines() if line.strip()),
        summarize_backtest(results),
    ]


def summarize_backtest(results: BacktestResults) -> str:
    """What came out, in a sentence or two."""
    gates, promoted = results.policy("gates"), sum(day.promoted for day in results.steps)
    first = f"Evergreen's gates would have promoted {promoted} of {len(results.steps)} candidates."
    if not results.periods:
        return f"{first} With one date, there is nothing after it to measure policies on."
    if gates.mean is None or gates.gain_over_never is None:
        return f"{first} No {_period_noun(results)} has a measured model of every policy, so they are not compared."
    gain = gates.gain_over_never
    if gain.low > 0:
        against = f"{gain.mean:.4f} better than never retraining (at least {gain.low:.4f}, at 95 % confidence)"
    elif gain.high < 0:
        against = f"{-gain.mean:.4f} worse than never retraining (at least {-gain.high:.4f}, at 95 % confidence)"
    else:
        against = f"not told apart from never retraining ({gain.mean:+.4f}, from {gain.low:+.4f} to {gain.high:+.4f})"
    others = ", ".join(
        f"{policy.label} {_format_metric(policy.mean)} with {len(policy.deployments)}"
        for policy in results.policies
        if policy.name not in ("gates", "never") and policy.mean is not None
    )
    return (
        f"{first} Live one after the other, they have a mean {results.metric} of {_format_metric(gates.mean)} over "
        f"{len(results.compared_periods)} {_period_noun(results)}s, {against}. For comparison, by models deployed: {others}."
    )


def _describe_champions(gates: PolicySummary) -> str:
    from statistics import median

    if not gates.deployments:
        return "No candidate passed all gates: there would have been no champion."
    ended = [life.live_days for life in gates.deployments if life.end]
    if not ended:
        return f"One champion, of {gates.deployments[0].as_of}: no later candidate passed all gates."
    return (
        f"{len(gates.deployments)} champions. Those that were replaced lived {median(ended):g} days in the median, "
        f"the longest {max(ended)}."
    )


def _period_noun(results: BacktestResults) -> str:
    return "week" if results.step_days == 7 else "period"


def _format_metric(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _mean_while_live(results: BacktestResults, policy: PolicySummary, deployment: DeploymentSummary) -> float | None:
    values = [
        value
        for period, value in zip(results.periods, policy.metric_values, strict=True)
        if value is not None
        and deployment.as_of <= period.live_as_of
        and (deployment.end is None or period.live_as_of < deployment.end)
    ]
    return sum(values) / len(values) if values else None


def _render_plot(results: BacktestResults) -> str:
    """Metric per policy, gain over never, share of the label, and lives of models, above one axis of time, as SVG."""
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(11.4, 9.2), layout="constrained")
        panels: Any = figure.subplots(4, 1, sharex=True, gridspec_kw={"height_ratios": [4, 3, 1.1, 2.4]})
        _draw_metrics(panels[0], results)
        _draw_gains(panels[1], results)
        _draw_positive_shares(panels[2], results)
        _draw_deployments(panels[3], results)
        start, end = results.steps[0].as_of, results.steps[-1].as_of
        margin = (end - start) * 0.01
        panels[3].set_xlim(_epoch_days(start) - margin.days, _epoch_days(end) + margin.days)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
        figure.align_ylabels(panels[:3])
        return render_svg(figure, f"{results.metric} over time and lives of models, by policy")


def _epoch_days(day: date) -> float:
    """Days since 1970, which is how matplotlib counts."""
    return float((day - date(1970, 1, 1)).days)


def _period_midpoints(results: BacktestResults) -> list[float]:
    return [(_epoch_days(period.start) + _epoch_days(period.end)) / 2 for period in results.periods]


def _policy_style(name: str) -> dict[str, Any]:
    return {
        "color": POLICY_COLOURS[name],
        # Wide and beneath the others: where the gates pass everything, both lines are seen.
        "linewidth": 5 if name == "gates" else 1.4,
        "alpha": 0.55 if name == "gates" else 1,
        "linestyle": (0, (4, 2)) if name == "never" else "-",
        "marker": "o",
        "markersize": 6 if name == "gates" else 2.6,
        "zorder": 2 if name == "gates" else 3,
    }


def _draw_metrics(axes: Any, results: BacktestResults) -> None:
    middles = _period_midpoints(results)
    for policy in results.policies:
        values = [float("nan") if value is None else value for value in policy.metric_values]
        axes.plot(middles, values, label=policy.label, **_policy_style(policy.name))
    axes.set_ylabel(results.metric)


def _draw_gains(axes: Any, results: BacktestResults) -> None:
    """Differences from never: weeks differ more from each other than policies do within a week."""
    middles, sign = _period_midpoints(results), 1 if results.higher_is_better else -1
    never = results.policy("never").metric_values
    for policy in results.policies:
        if policy.name == "never":
            continue
        gains = [
            float("nan") if own is None or base is None else sign * (own - base)
            for own, base in zip(policy.metric_values, never, strict=True)
        ]
        axes.plot(middles, gains, **_policy_style(policy.name))
    axes.axhline(0, **{**_policy_style("never"), "marker": ""})
    axes.set_ylabel("gain over never")


def _draw_positive_shares(axes: Any, results: BacktestResults) -> None:
    widths = [(period.end - period.start).days * 0.9 for period in results.periods]
    shares = [100 * (period.positive_share or 0) for period in results.periods]
    axes.bar(_period_midpoints(results), shares, widths, color="#c9d3ce")
    axes.set_ylabel(f"% {results.label}")


def _draw_deployments(axes: Any, results: BacktestResults) -> None:
    last = results.steps[-1].as_of
    wide = max((last - results.steps[0].as_of) / 14, timedelta(1))  # room for a date
    for row, policy in enumerate(results.policies):
        for number, life in enumerate(policy.deployments):
            start, end = _epoch_days(life.as_of), _epoch_days(life.end or last)
            shade = 0.95 if number % 2 == 0 else 0.55
            axes.barh(row, end - start, left=start, height=0.62, color=POLICY_COLOURS[policy.name], alpha=shade)
            if (life.end or last) - life.as_of >= wide:
                place = ((start + end) / 2, row)
                axes.annotate(f"{life.as_of:%d %b}", place, ha="center", va="center", color="white", fontsize=9)
    axes.set_yticks(range(len(results.policies)), [policy.label for policy in results.policies])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis_date()
