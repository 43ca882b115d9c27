"""How the champions of a model did day by day, from the sums of their periods."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from math import isnan
from typing import Any

from evergreen.errors import first_line
from evergreen.ledger import AlarmRaised, ChampionTenure, LedgerState
from evergreen.monitoring.daily_metrics import add_sums, metric_of_sums
from evergreen.monitoring.matured import (
    OTHER_METRIC,
    HoldoutPerformance,
    MeasuredPeriods,
    PeriodPerformance,
    describe_metrics,
    first_period_in_force,
    measure_holdout,
    monitored_gates,
    read_periods,
)
from evergreen.monitoring.performance import DailyMetric, daily_metric
from evergreen.periods import Calendar, Duration
from evergreen.spec.gates import MetricGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

EARLIER_TIME = Duration.parse("365d")
"""Before the champion's first period, of which days of earlier champions are plotted."""

_MAX_REVISIONS = 50  # the newest ones
_NO_VALUE = (float("nan"), 0.0)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChampionPerformance:
    """How a champion does by matured labels.

    Attributes:
        metrics: by gate; days of its holdout come first.
        calibration: of probabilities, by bin: rows, and the sums of predictions and of labels.
        earlier: values of the days of earlier champions, by the gate's name.
        revisions: periods that were measured again, oldest first.
        problems: what is not known, and why.
        raised: days on which a loss was raised, as far as they are past, by the gate's name.
        not_compared: gates whose holdout is not known for now: no alarm is raised by them.
        fingerprint: what all of it follows from.
    """

    metrics: tuple[DailyMetric, ...] = ()
    calibration: tuple[tuple[float, float, float], ...] = ()
    earlier: Mapping[str, Mapping[date, float]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    raised: Mapping[str, Sequence[date]] = field(default_factory=dict)
    not_compared: frozenset[str] = frozenset()
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


def read_raised(
    state: LedgerState, content: str, end: date, metrics: Mapping[str, str]
) -> tuple[dict[str, list[date]], list[str]]:
    """Return the days on which a loss of a champion's performance was raised, by the gate's name, and what is left out.

    Args:
        state: of the ledger.
        content: of the champion.
        end: days before it are returned.
        metrics: digests of what the metrics of today's gates are, by name. A loss in another metric is left out.
    """
    raised: dict[str, list[date]] = {}
    problems = []
    kind = AlarmRaised.model_fields["kind"].default
    for number, stored in enumerate(state.entries.records, 1):
        event = state.entries[number - 1].event if stored.kind == kind else None
        if isinstance(event, AlarmRaised) and (event.rule, event.champion_content) == ("performance", content):
            for change in event.changes if event.day < end else ():
                gate = change.removesuffix(" performance")
                if event.metric and event.metric == metrics.get(gate):
                    raised.setdefault(gate, []).append(event.day)
                else:
                    obstacle = (
                        "its metric is another one now" if gate in metrics else "no gate of that name is monitored now"
                    )
                    problems.append(f"performance: the loss by {gate} of {event.day} is not followed: {obstacle}")
    return raised, problems


def collect_performance(
    model: ModelSpec,
    state: LedgerState,
    tenure: ChampionTenure,
    measured: MeasuredPeriods | None = None,
    problems: Sequence[str] = (),
    *,
    raised: Mapping[str, Sequence[date]] | None = None,
    preview_end: str | None = None,
) -> ChampionPerformance:
    """Return how the champion does by all that is published.

    Args:
        model: its spec.
        state: of its ledger.
        tenure: of the champion.
        measured: by this run; None: it measures nothing, not even the holdout.
        problems: what is not known of it.
        raised: days on which a loss was raised, by the gate's name.
        preview_end: of a preview, the period until which data is known: only what was `measured` counts.
    """
    calendar, unreadable = feature_spec(model).calendar, list[str]()
    only_published, measured = measured is None, measured or MeasuredPeriods()
    gates, problems = monitored_gates(model), list(problems)
    try:
        holdout = measure_holdout(model, state, tenure, only_published=only_published)
    except Exception as error:  # of any class: evidence of an evaluation
        log.warning("the holdout is not known", exc_info=error)
        holdout_problem = f"performance is not compared: {first_line(error)}"
        holdout = HoldoutPerformance({}, [holdout_problem], {gate.name for gate in gates})
    published = {}
    if preview_end is None:
        # What is earlier is plotted only.
        start = calendar.period_before(first_period_in_force(state, tenure.content), EARLIER_TIME)
        published = read_periods(model, unreadable, start=start, already_read=measured.published)
    by_period = {period: item for period, (_, item) in published.items()} | dict(measured.performance)
    problems += [problem for problem in unreadable if not any(problem in item for item in problems)]
    other_metric: dict[str, list[str]] = {}
    for period in by_period.keys() - measured.performance.keys():
        for problem in by_period[period].problems:
            if problem.endswith(OTHER_METRIC):
                other_metric.setdefault(problem, []).append(period)
    problems += [
        f"performance: {calendar.describe(sorted(periods))}: {problem}" for problem, periods in other_metric.items()
    ]
    problems += holdout.problems
    champion_periods = {period: item for period, item in by_period.items() if item.champion_content == tenure.content}
    earlier_periods = {period: item for period, item in by_period.items() if item.champion_content != tenure.content}
    metrics, earlier = list[DailyMetric](), dict[str, dict[date, float]]()
    for gate in gates:
        try:
            earlier_values = _daily_values(model, gate, earlier_periods, calendar)
            metric = daily_metric(
                gate.name,
                gate.scale.higher_is_better,
                _holdout_values(model, gate, holdout.sums.get(gate.name, {})),
                _daily_values(model, gate, champion_periods, calendar),
            )
        except Exception as error:  # of any class: each metric stands on its own
            log.warning("%s is not known", gate.name, exc_info=error)
            problems.append(f"performance by {gate.name} is not known: {first_line(error)}")
            continue
        metrics.append(metric)
        earlier[gate.name] = {day: value for day, (value, _) in earlier_values.items() if not isnan(value)}
    calibration = [item.calibration for item in champion_periods.values() if item.calibration]
    return ChampionPerformance(
        metrics=tuple(metrics),
        calibration=tuple(add_sums(bins) for bins in zip(*calibration, strict=True)),  # type: ignore[misc]
        earlier=earlier,
        revisions=tuple(
            f"{period}: {revision.reason}, known until {revision.as_of}; before, {_describe(revision.values)} of "
            f"{revision.labelled:,} rows"
            for period, item in sorted(by_period.items())
            for revision in item.revisions
        )[-_MAX_REVISIONS:],
        problems=tuple(problems),
        raised=raised or {},
        not_compared=frozenset(holdout.unknown),
        fingerprint={
            "periods": {period: manifest.content_hash for period, (manifest, _) in published.items()},
            "holdout": holdout.sums,
            "problems": problems,
            "metrics": describe_metrics(model),
        },
    )


def _holdout_values(
    model: ModelSpec, gate: MetricGate, sums: Mapping[str, Sequence[float]]
) -> dict[date, tuple[float, float]]:
    return {date.fromisoformat(day): _value(model, gate, item) for day, item in sums.items()}


def _daily_values(
    model: ModelSpec, gate: MetricGate, periods: Mapping[str, PeriodPerformance], calendar: Calendar
) -> dict[date, tuple[float, float]]:
    """Return the value and the weight of each day, or week, all of whose periods were measured."""
    members: dict[date, list[PeriodPerformance]] = {}
    for period in sorted(periods):
        members.setdefault(calendar.date_of(period), []).append(periods[period])
    values = {}
    for day, items in members.items():
        if len(items) < calendar.count(calendar.first_of(day), calendar.first_of(day + timedelta(days=1))):
            continue
        parts = [item.sums[gate.name] for item in items if gate.name in item.sums]
        values[day] = _value(model, gate, add_sums(parts)) if parts else _NO_VALUE
    return values


def _value(model: ModelSpec, gate: MetricGate, sums: Sequence[float]) -> tuple[float, float]:
    return metric_of_sums(gate, sums, model.prediction_type), sums[-1]


def _describe(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "no value"
