"""Walk over the dates of a backtest: which model is live when, under which policy. Pure functions.

Evaluation on a rolling origin (Tashman 2000, International Journal of Forecasting 16:437-450): at each date
decisions use only what was known then, and models are measured on what comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from evergreen.periods import days_from


@dataclass(frozen=True, order=True)
class BacktestPoint:
    """A candidate, trained on no data of the period `as_of` or later and on no label from `holdout_start` on."""

    as_of: str
    holdout_start: str
    holdout_end: str
    """The period after the last of its holdout: `as_of`, or earlier where labels are delayed."""

    def __post_init__(self) -> None:
        if self.holdout_start >= self.holdout_end:
            raise ValueError(f"the holdout from {self.holdout_start} until before {self.holdout_end} is empty")


@dataclass(frozen=True, order=True)
class MeasurementPeriod:
    """The periods `start` ≤ period < `end`, on which the models live after the date `live_as_of` are measured.

    They end with the holdout of a later date, whose rows they are.
    """

    start: str
    end: str
    live_as_of: str


DeploymentPolicy = Callable[[BacktestPoint, BacktestPoint | None], str | None]
"""Takes a candidate and the live model, if any; returns why the candidate is deployed, or None if it is not."""


@dataclass(frozen=True)
class Deployment:
    """`point` was live from its own date until before `end`; None if it still is."""

    point: BacktestPoint
    end: str | None
    reason: str


def sort_points(points: Sequence[BacktestPoint]) -> tuple[BacktestPoint, ...]:
    """Return the points, oldest first; two candidates for one date are a ValueError."""
    ordered = tuple(sorted(points))
    for earlier, later in pairwise(ordered):
        if earlier.as_of == later.as_of:
            raise ValueError(f"two candidates as of {later.as_of}")
    return ordered


def measurement_periods(points: Sequence[BacktestPoint]) -> tuple[MeasurementPeriod, ...]:
    """Return one for each date but the first: the part of its holdout that no earlier holdout has.

    When dates are a holdout apart, that is the whole holdout. When they are closer, holdouts overlap. When they are
    further apart, no holdout has the days in between: they are not measured, for any policy. The models that are
    measured are those of the newest date that is not after the first of the days. With a label delay, the first
    holdouts are before the first date: they measure nothing.
    """
    ordered, periods = sort_points(points), []
    for point, following in pairwise(ordered):
        start = max(point.holdout_end, following.holdout_start)
        if dates := [candidate.as_of for candidate in ordered if candidate.as_of <= start]:
            periods.append(MeasurementPeriod(start, following.holdout_end, max(dates)))
    return tuple(periods)


def simulate_policy(points: Sequence[BacktestPoint], policy: DeploymentPolicy) -> tuple[Deployment, ...]:
    """Return what the policy deploys when it decides about each candidate in turn."""
    deployments: list[Deployment] = []
    for point in sort_points(points):
        live = deployments[-1] if deployments else None
        if reason := policy(point, live.point if live else None):
            if live:
                deployments[-1] = replace(live, end=point.as_of)
            deployments.append(Deployment(point, None, reason))
    return tuple(deployments)


def find_live_point(deployments: Sequence[Deployment], period: MeasurementPeriod) -> BacktestPoint | None:
    """Return the model that was live in `period`, and knows nothing of its days; None if none was deployed yet."""
    deployed = (deployment.point for deployment in deployments if deployment.point.as_of <= period.live_as_of)
    newest = max(deployed, default=None)
    assert not newest or newest.as_of <= period.start, f"{newest} would be measured on {period}, which it may have seen"
    return newest


def deploy_every_date(_candidate: BacktestPoint, _live: BacktestPoint | None) -> str | None:
    """Deploy each candidate."""
    return "the newest candidate"


def deploy_monthly(candidate: BacktestPoint, live: BacktestPoint | None) -> str | None:
    """Deploy 28 days after the last deployment: not a calendar month, but four of the usual weeks between dates."""
    if live is None:
        return "the first candidate"
    days = days_from(live.as_of, candidate.as_of)
    return f"{days} days after the last deployment" if days >= 28 else None


def deploy_first_only(_candidate: BacktestPoint, live: BacktestPoint | None) -> str | None:
    """Deploy the first candidate, and never another."""
    return "the first candidate" if live is None else None


def deploy_on_loss(
    points: Sequence[BacktestPoint], describe_loss: Callable[[BacktestPoint, MeasurementPeriod], str | None]
) -> DeploymentPolicy:
    """Deploy a candidate when `describe_loss` describes a loss of the live model in the period that ends then."""
    periods_by_end = {period.end: period for period in measurement_periods(points)}

    def deploy(candidate: BacktestPoint, live: BacktestPoint | None) -> str | None:
        if live is None:
            return "the first candidate"
        latest = periods_by_end.get(candidate.holdout_end)
        # With a label delay, nothing may be known yet of the days since it is live.
        return describe_loss(live, latest) if latest and live.as_of <= latest.start else None

    return deploy
