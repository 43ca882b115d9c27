"""All that a backtest came to: what `results.json` holds, and what the report is written from."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from evergreen.gates import Verdict


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Date(_Stored):
    """A candidate, and what the gates made of it."""

    as_of: date
    holdout: date = Field(description="first day of its holdout, which ends before `as_of`")
    candidate: str = Field(description="fingerprint")
    train_rows: int
    champion: date | None = Field(description="the champion it was judged against, by its date")
    verdict: Verdict
    promoted: bool
    reason: str


class Measured(_Stored):
    """The days `start` ≤ day < `end` that the models live after the date `after` are measured on."""

    after: date
    start: date
    end: date
    rows: int
    share: float | None = Field(description="of rows with label 1")


class Deployed(_Stored):
    as_of: date
    until: date | None = Field(description="None: to the end")
    days: int = Field(description="live until it was replaced, or until the last date")
    why: str


class Gain(_Stored):
    """Mean over the compared periods, positive is better, with one-sided 95 % bounds."""

    mean: float
    low: float
    high: float


class Policy(_Stored):
    name: str
    label: str
    rule: str
    trainings: int = Field(description="candidates that had to be trained for it")
    deployments: tuple[Deployed, ...]
    metric: tuple[float | None, ...] = Field(description="one per period; None: no model, or not measurable")
    mean: float | None = Field(description="over the compared periods")
    worst: float | None
    worst_start: date | None
    over_never: Gain | None


class Results(_Stored):
    model: str
    description: str
    made_from: str = Field(description="fingerprint of the candidates, the spec and the code")
    spec: str = Field(description="fingerprint of what makes candidates comparable")
    left_out: int = Field(description="candidates of another spec, which are in no figure")
    metric: str
    higher_is_better: bool = Field(description="of the metric")
    label: str
    train_days: int
    holdout_days: int
    dates: tuple[Date, ...]
    periods: tuple[Measured, ...]
    compared: tuple[int, ...] = Field(
        description="periods in which every policy that ever deploys has a measured model: means are over these"
    )
    policies: tuple[Policy, ...]

    @property
    def step(self) -> int | None:
        """Days between dates, if they are evenly apart."""
        steps = {(period.end - period.after).days for period in self.periods}
        return steps.pop() if len(steps) == 1 else None

    def policy(self, name: str) -> Policy:
        return next(policy for policy in self.policies if policy.name == name)

    @classmethod
    def read(cls, file: Path) -> Self:
        return cls.model_validate_json(file.read_text())
