"""The walk over the dates of a backtest, in order: which model is live when, by which policy. Pure.

Evaluation on a rolling origin (Tashman 2000, International Journal of Forecasting 16:437-450): at each date
only what was known then decides, and what comes after it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise


@dataclass(frozen=True, order=True)
class BacktestPoint:
    """A candidate: it knows no data of the day `as_of` or later, and has learned no label from `holdout` on."""

    as_of: date
    holdout_start: date

    def __post_init__(self) -> None:
        if self.holdout_start >= self.as_of:
            raise ValueError(f"the holdout from {self.holdout_start} until before {self.as_of} holds no day")


@dataclass(frozen=True, order=True)
class MeasurementPeriod:
    """The days `start` ≤ day < `end` on which the models that were live after the date `after` are measured."""

    start: date
    end: date
    live_as_of: date


DeploymentPolicy = Callable[[BacktestPoint, BacktestPoint | None], str | None]
"""Candidate, and the live model if there is one, to why the candidate is deployed; None if it is not."""


@dataclass(frozen=True)
class Deployment:
    """`point` was live from its own date until before `until`; None if it still is."""

    point: BacktestPoint
    end: date | None
    reason: str


def sort_points(points: Sequence[BacktestPoint]) -> tuple[BacktestPoint, ...]:
    """The dates of the walk, oldest first.

    Raises:
        ValueError: two candidates for one date.
    """
    ordered = tuple(sorted(points))
    for earlier, later in pairwise(ordered):
        if earlier.as_of == later.as_of:
            raise ValueError(f"two candidates as of {later.as_of}")
    return ordered


def measurement_periods(points: Sequence[BacktestPoint]) -> tuple[MeasurementPeriod, ...]:
    """One per date but the last: its labelled rows are those of the next date's holdout, from the date on.

    When dates are a holdout apart, that is the whole holdout. When they are closer, holdouts overlap, and days
    before the date are left out. When they are further apart, nobody labelled the days before the next holdout
    for a comparison: they are not measured, for no policy. (A later holdout reaches no further back.)
    """
    return tuple(
        MeasurementPeriod(max(this.as_of, following.holdout_start), following.as_of, this.as_of)
        for this, following in pairwise(sort_points(points))
    )


def simulate_policy(points: Sequence[BacktestPoint], policy: DeploymentPolicy) -> tuple[Deployment, ...]:
    """What `rule` deploys, asked at each date about that date's candidate."""
    deployed: list[Deployment] = []
    for point in sort_points(points):
        live = deployed[-1] if deployed else None
        if why := policy(point, live.point if live else None):
            if live:
                deployed[-1] = Deployment(live.point, point.as_of, live.reason)
            deployed.append(Deployment(point, None, why))
    return tuple(deployed)


def find_live_point(deployments: Sequence[Deployment], period: MeasurementPeriod) -> BacktestPoint | None:
    """The model that was live in `period`; None if none was deployed yet.

    No future: it knows nothing of the period's days.
    """
    live = [d.point for d in deployments if d.point.as_of <= period.live_as_of]
    if not live:
        return None
    newest = max(live)
    assert newest.as_of <= period.start, f"{newest} would be measured on {period}, which it may have seen"
    return newest


def deploy_every_date(candidate: BacktestPoint, live: BacktestPoint | None) -> str | None:
    return "the newest candidate"


def deploy_monthly(candidate: BacktestPoint, live: BacktestPoint | None) -> str | None:
    """28 days, not a calendar month: four of the weeks that dates are usually apart."""
    if live is None:
        return "the first candidate"
    days = (candidate.as_of - live.as_of).days
    return f"{days} days after the one before" if days >= 28 else None


def deploy_first_only(candidate: BacktestPoint, live: BacktestPoint | None) -> str | None:
    return "the first candidate" if live is None else None


def deploy_on_drift(
    points: Sequence[BacktestPoint], describe_drift: Callable[[BacktestPoint, MeasurementPeriod], str | None]
) -> DeploymentPolicy:
    """Deploy the newest candidate when the live model `fell` (says how) in the period that ends at its date."""
    ending = {period.end: period for period in measurement_periods(points)}

    def rule(candidate: BacktestPoint, live: BacktestPoint | None) -> str | None:
        if live is None:
            return "the first candidate"
        latest = ending[candidate.as_of]
        assert live.as_of <= latest.start, f"{live} would be tested on {latest}, which it may have seen"
        return describe_drift(live, latest)

    return rule
