"""The results of a backtest: what `results.json` holds and the backtest report shows."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Self

from pydantic import Field

from evergreen.gates import Verdict
from evergreen.spec import Frozen


class BacktestStep(Frozen, allow_inf_nan=False):
    """A candidate and the decision about it."""

    as_of: date
    holdout_start: date = Field(description="first day of its holdout, which ends before `as_of`")
    candidate_fingerprint: str
    train_rows: int
    champion_as_of: date | None = Field(description="the champion that it was compared with, by its date")
    verdict: Verdict
    promoted: bool
    reason: str


class PeriodSummary(Frozen, allow_inf_nan=False):
    """The days `start` ≤ day < `end`, on which the models live after the date `live_as_of` are measured."""

    live_as_of: date
    start: date
    end: date
    rows: int
    positive_share: float | None = Field(description="share of rows with label 1")


class DeploymentSummary(Frozen, allow_inf_nan=False):
    """A model that a policy deployed."""

    as_of: date
    end: date | None = Field(description="None: still live at the last date")
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
    worst_period_start: date | None
    gain_over_never: GainEstimate | None


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
    train_days: int
    holdout_days: int
    steps: tuple[BacktestStep, ...]
    periods: tuple[PeriodSummary, ...]
    compared_periods: tuple[int, ...] = Field(
        description="periods in which every policy that ever deploys has a measured model: means are over these"
    )
    policies: tuple[PolicySummary, ...]

    @property
    def step_days(self) -> int | None:
        """Days between two steps, if all are equally far apart."""
        days = {(period.end - period.live_as_of).days for period in self.periods}
        return days.pop() if len(days) == 1 else None

    def policy(self, name: str) -> PolicySummary:
        """Return the policy of that name."""
        return next(policy for policy in self.policies if policy.name == name)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read `results.json`."""
        return cls.model_validate_json(file.read_text())
