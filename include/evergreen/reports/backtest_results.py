"""All that a backtest came to: what `results.json` holds, and what the report is written from."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from evergreen.gates import Verdict


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BacktestStep(_Stored):
    """A candidate, and what the gates made of it."""

    as_of: date
    holdout_start: date = Field(description="first day of its holdout, which ends before `as_of`")
    candidate_fingerprint: str = Field(description="fingerprint")
    train_rows: int
    champion_as_of: date | None = Field(description="the champion it was judged against, by its date")
    verdict: Verdict
    promoted: bool
    reason: str


class PeriodSummary(_Stored):
    """The days `start` ≤ day < `end` that the models live after the date `after` are measured on."""

    live_as_of: date
    start: date
    end: date
    rows: int
    positive_share: float | None = Field(description="of rows with label 1")


class DeploymentSummary(_Stored):
    as_of: date
    end: date | None = Field(description="None: to the end")
    live_days: int = Field(description="live until it was replaced, or until the last date")
    reason: str


class GainEstimate(_Stored):
    """Mean over the compared periods, positive is better, with one-sided 95 % bounds."""

    mean: float
    low: float
    high: float


class PolicySummary(_Stored):
    name: str
    label: str
    rule: str
    training_count: int = Field(description="candidates that had to be trained for it")
    deployments: tuple[DeploymentSummary, ...]
    metric_values: tuple[float | None, ...] = Field(description="one per period; None: no model, or not measurable")
    mean: float | None = Field(description="over the compared periods")
    worst_value: float | None
    worst_period_start: date | None
    gain_over_never: GainEstimate | None


class BacktestResults(_Stored):
    model: str
    description: str
    fingerprint: str = Field(description="fingerprint of the candidates, the spec and the code")
    spec_fingerprint: str = Field(description="fingerprint of what makes candidates comparable")
    excluded_candidates: int = Field(description="candidates of another spec, which are in no figure")
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
        """Days between dates, if they are evenly apart."""
        steps = {(period.end - period.live_as_of).days for period in self.periods}
        return steps.pop() if len(steps) == 1 else None

    def policy(self, name: str) -> PolicySummary:
        return next(policy for policy in self.policies if policy.name == name)

    @classmethod
    def read(cls, file: Path) -> Self:
        return cls.model_validate_json(file.read_text())
