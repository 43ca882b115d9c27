"""What a gate asks for: frozen, validated, and the same after a trip through JSON (`kind` tells which)."""

from __future__ import annotations

from math import log
from sys import float_info
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MetricName = Literal["auc", "log_loss", "brier", "calibration_error"]


class Scale(NamedTuple):
    """How to read a metric: which end is good, and the largest value there is (the smallest is 0 for all)."""

    higher_is_better: bool
    largest: float


# Apart from the functions that compute them (metrics.py), because specs are read without numpy.
SCALES: dict[MetricName, Scale] = {
    "auc": Scale(higher_is_better=True, largest=1.0),
    "log_loss": Scale(higher_is_better=False, largest=-log(float_info.epsilon)),  # scores are clipped there
    "brier": Scale(higher_is_better=False, largest=1.0),
    "calibration_error": Scale(higher_is_better=False, largest=1.0),
}


class _Gate(BaseModel):
    # strict: a limit given as "0.6" or True is a slip of the pen, not a number.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: str
    metric: MetricName
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")] = Field(
        default_factory=lambda data: f"{data.get('metric')}_{data.get('kind')}",
        description="names the gate's record; no two gates of a model share it",
    )
    min_rows: int = Field(100, ge=4, description="with fewer rows the gate is not computed, and so blocks")

    @property
    def scale(self) -> Scale:
        return SCALES[self.metric]


class Threshold(_Gate):
    """The candidate's metric is at least, or at most, a limit.

    Give `at_least` for a metric that is better when higher (auc), `at_most` for one that is better when
    lower (log_loss, in nats; brier; calibration_error). A limit that no value can miss is refused.
    """

    kind: Literal["threshold"] = "threshold"
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_limit_that_can_be_missed(self) -> Self:
        wanted, other = ("at_least", "at_most") if self.scale.higher_is_better else ("at_most", "at_least")
        limit = getattr(self, wanted)
        if limit is None or getattr(self, other) is not None:
            better = "higher" if self.scale.higher_is_better else "lower"
            raise ValueError(f"{self.metric} is better when {better}: give {wanted}, and nothing else")
        largest = self.scale.largest
        if not (0 < limit <= largest if self.scale.higher_is_better else 0 <= limit < largest):
            text = f"{self.metric} goes from 0 to {largest:g}"
            raise ValueError(f"{text}: {wanted}={limit:g} leaves nothing to decide")
        return self

    @property
    def limit(self) -> float:
        """`at_least` or `at_most`, whichever was given."""
        limit = self.at_most if self.at_least is None else self.at_least
        assert limit is not None
        return limit


class NotWorseThanChampion(_Gate):
    """With `confidence`, the candidate is at most `margin` worse than the champion on the same rows.

    A one-sided test of non-inferiority. The difference is counted so that positive is better (champion minus
    candidate for log_loss and brier), in the metric's own unit. Its lower bound is the (1 - confidence)
    quantile of a paired bootstrap over rows, and must not be below -margin. `margin=0` asks for a candidate
    that is shown to be no worse at all, which an equally good one rarely is.

    Of candidates that are exactly `margin` worse, a share of about 1 - confidence passes. That would not hold
    for calibration_error, which is why it is not among the metrics: near zero it is biased upwards, each
    resample adds to the bias, and a calibrated champion looks worse than it is. Use a `Threshold`; brier and
    log_loss count calibration too.
    """

    kind: Literal["not_worse_than_champion"] = "not_worse_than_champion"
    metric: Literal["auc", "log_loss", "brier"]
    margin: float = Field(0.01, ge=0, description="how much worse is still fine")
    confidence: float = Field(0.95, ge=0.5, lt=1)
    resamples: int = Field(2000, le=100_000)

    @model_validator(mode="after")
    def _can_decide(self) -> Self:
        if self.margin >= self.scale.largest:
            text = f"{self.metric} goes from 0 to {self.scale.largest:g}"
            raise ValueError(f"{text}: margin={self.margin:g} forgives everything")
        # A quantile needs resamples beyond it: with fewer than ten the bound is mostly luck.
        beyond = round(self.resamples * (1 - self.confidence), 6)
        if beyond < 10:
            text = f"{self.resamples} resamples are too few for confidence {self.confidence:g}"
            raise ValueError(f"{text}: {beyond:g} lie beyond the bound, at least 10 must")
        return self

    @property
    def limit(self) -> float:
        """The least difference (positive is better) that the lower bound may show."""
        return -self.margin if self.margin else 0.0  # not -0.0


Gate = Annotated[Threshold | NotWorseThanChampion, Field(discriminator="kind")]
