"""Results as a page to show around, and as lines for a task's log."""

from __future__ import annotations

from datetime import date, timedelta
from io import StringIO
from typing import Any

from evergreen.reports.backtest_results import Deployed, Policy, Results
from evergreen.reports.backtest_template import PAGE
from evergreen.reports.page import drawing, environment, svg

# Told apart by the colour-blind, too (Okabe and Ito 2008, "Color universal design").
COLOURS = {
    "gates": "#0b6e4f",
    "every_date": "#0072b2",
    "monthly": "#e69f00",
    "on_drift": "#cc79a7",
    "never": "#7a7a7a",
}


def html(results: Results) -> str:
    """One self-contained page; equal results give equal bytes."""
    from markupsafe import Markup

    page = environment()
    page.filters["figure"] = _figure
    gates = results.policy("gates")
    return page.from_string(PAGE).render(
        r=results,
        finding=finding(results),
        period=_period(results),
        colours=COLOURS,
        gates=[record.gate for record in results.dates[0].verdict.records],
        champions={life.as_of: (life, _mean_while_live(results, gates, life)) for life in gates.deployments},
        lives=_lives(gates),
        drifts=results.policy("on_drift").deployments[1:],
        unmeasured=sum(period.start > period.after for period in results.periods),
        plot=Markup(_plot(results)) if results.periods else None,  # noqa: S704 - drawn here
    )


def lines(results: Results) -> list[str]:
    """The policies as a plain table, and what was found, for a log."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for column in (
        f"mean {results.metric}",
        f"worst {_period(results)}",
        "over never",
        "deployed",
        "trained",
    ):
        table.add_column(column, justify="right")
    for policy in results.policies:
        gain = policy.over_never
        table.add_row(
            policy.label,
            _figure(policy.mean),
            _figure(policy.worst) + (f" ({policy.worst_start})" if policy.worst_start else ""),
            f"{gain.mean:+.4f} ({gain.low:+.4f} … {gain.high:+.4f})" if gain else "–",
            str(len(policy.deployments)),
            str(policy.trainings),
        )
    text = StringIO()
    # Everything said, whatever the surroundings: a log is no terminal.
    console = Console(file=text, width=110, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(table)
    left_out = f"; {results.left_out} of another spec left out" if results.left_out else ""
    head = f"{results.model}: {len(results.dates)} candidates{left_out}"
    return [head, *(line.rstrip() for line in text.getvalue().splitlines() if line.strip()), finding(results)]


def finding(results: Results) -> str:
    """What came out, in a sentence or two."""
    gates, promoted = results.policy("gates"), sum(day.promoted for day in results.dates)
    first = f"Evergreen's gates would have promoted {promoted} of {len(results.dates)} candidates."
    if not results.periods:
        return f"{first} With one date, there is nothing after it to measure policies on."
    if gates.mean is None or gates.over_never is None:
        return (
            f"{first} No {_period(results)} has a measured model of every policy, so they are not compared."
        )
    gain = gates.over_never
    if gain.low > 0:
        against = (
            f"{gain.mean:.4f} better than never retraining (at least {gain.low:.4f}, at 95 % confidence)"
        )
    elif gain.high < 0:
        against = (
            f"{-gain.mean:.4f} worse than never retraining (at least {-gain.high:.4f}, at 95 % confidence)"
        )
    else:
        against = f"not told apart from never retraining ({gain.mean:+.4f}, from {gain.low:+.4f} to {gain.high:+.4f})"
    others = ", ".join(
        f"{policy.label} {_figure(policy.mean)} with {len(policy.deployments)}"
        for policy in results.policies
        if policy.name not in ("gates", "never") and policy.mean is not None
    )
    return (
        f"{first} Live one after the other, they have a mean {results.metric} of {_figure(gates.mean)} over "
        f"{len(results.compared)} {_period(results)}s, {against}. For comparison, by models deployed: {others}."
    )


def _lives(gates: Policy) -> str:
    from statistics import median

    if not gates.deployments:
        return "No candidate passed all gates: there would have been no champion."
    ended = [life.days for life in gates.deployments if life.until]
    if not ended:
        return f"One champion, of {gates.deployments[0].as_of}: no later candidate passed all gates."
    return (
        f"{len(gates.deployments)} champions. Those that were replaced lived {median(ended):g} days in the median, "
        f"the longest {max(ended)}."
    )


def _period(results: Results) -> str:
    return "week" if results.step == 7 else "period"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _mean_while_live(results: Results, policy: Policy, deployed: Deployed) -> float | None:
    values = [
        value
        for period, value in zip(results.periods, policy.metric, strict=True)
        if value is not None
        and deployed.as_of <= period.after
        and (deployed.until is None or period.after < deployed.until)
    ]
    return sum(values) / len(values) if values else None


def _plot(results: Results) -> str:
    """Metric per policy, gain over never, share of the label, and lives of models, above one axis of time, as SVG."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(11.4, 9.2), layout="constrained")
        panels: Any = figure.subplots(4, 1, sharex=True, gridspec_kw={"height_ratios": [4, 3, 1.1, 2.4]})
        _draw_metrics(panels[0], results)
        _draw_gains(panels[1], results)
        _draw_shares(panels[2], results)
        _draw_lives(panels[3], results)
        start, end = results.dates[0].as_of, results.dates[-1].as_of
        margin = (end - start) * 0.01
        panels[3].set_xlim(_number(start) - margin.days, _number(end) + margin.days)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
        figure.align_ylabels(panels[:3])
        return svg(figure, f"{results.metric} over time and lives of models, by policy")


def _number(day: date) -> float:
    """Days since 1970, which is how matplotlib counts."""
    return float((day - date(1970, 1, 1)).days)


def _middles(results: Results) -> list[float]:
    return [(_number(period.start) + _number(period.end)) / 2 for period in results.periods]


def _style(name: str) -> dict[str, Any]:
    return {
        "color": COLOURS[name],
        # Wide and beneath the others: where the gates pass everything, both lines are seen.
        "linewidth": 5 if name == "gates" else 1.4,
        "alpha": 0.55 if name == "gates" else 1,
        "linestyle": (0, (4, 2)) if name == "never" else "-",
        "marker": "o",
        "markersize": 6 if name == "gates" else 2.6,
        "zorder": 2 if name == "gates" else 3,
    }


def _draw_metrics(axes: Any, results: Results) -> None:
    middles = _middles(results)
    for policy in results.policies:
        values = [float("nan") if value is None else value for value in policy.metric]
        axes.plot(middles, values, label=policy.label, **_style(policy.name))
    axes.set_ylabel(results.metric)


def _draw_gains(axes: Any, results: Results) -> None:
    """Differences from never: weeks differ more from each other than policies do within a week."""
    middles, sign = _middles(results), 1 if results.higher_is_better else -1
    never = results.policy("never").metric
    for policy in results.policies:
        if policy.name == "never":
            continue
        gains = [
            float("nan") if own is None or base is None else sign * (own - base)
            for own, base in zip(policy.metric, never, strict=True)
        ]
        axes.plot(middles, gains, **_style(policy.name))
    axes.axhline(0, **{**_style("never"), "marker": ""})
    axes.set_ylabel("gain over never")


def _draw_shares(axes: Any, results: Results) -> None:
    widths = [(period.end - period.start).days * 0.9 for period in results.periods]
    shares = [100 * (period.share or 0) for period in results.periods]
    axes.bar(_middles(results), shares, widths, color="#c9d3ce")
    axes.set_ylabel(f"% {results.label}")


def _draw_lives(axes: Any, results: Results) -> None:
    last = results.dates[-1].as_of
    wide = max((last - results.dates[0].as_of) / 14, timedelta(1))  # room for a date
    for row, policy in enumerate(results.policies):
        for number, life in enumerate(policy.deployments):
            start, end = _number(life.as_of), _number(life.until or last)
            shade = 0.95 if number % 2 == 0 else 0.55
            axes.barh(row, end - start, left=start, height=0.62, color=COLOURS[policy.name], alpha=shade)
            if (life.until or last) - life.as_of >= wide:
                place = ((start + end) / 2, row)
                axes.annotate(
                    f"{life.as_of:%d %b}", place, ha="center", va="center", color="white", fontsize=9
                )
    axes.set_yticks(range(len(results.policies)), [policy.label for policy in results.policies])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis_date()
