"""What a gate asks for: frozen, validated, and the same after a trip through JSON (`kind` tells which)."""

from __future__ import annotations

import re
from abc import abstractmethod
from math import inf, log
from sys import float_info
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator


class MetricScale(NamedTuple):
    """How to read a metric: which end is good, the largest value there is (the smallest is 0), and of what.

    `label_type` is "binary" where labels are 0 or 1 and predictions probabilities, "continuous" where both are any number.
    """

    higher_is_better: bool
    maximum: float
    label_type: Literal["binary", "continuous"]


# Apart from the functions that compute them (metrics.py), because specs are read without numpy.
METRIC_SCALES: dict[str, MetricScale] = {
    "auc": MetricScale(True, 1.0, "binary"),
    "log_loss": MetricScale(False, -log(float_info.epsilon), "binary"),  # scores are clipped there
    "brier": MetricScale(False, 1.0, "binary"),
    "calibration_error": MetricScale(False, 1.0, "binary"),
    "accuracy": MetricScale(True, 1.0, "binary"),
    "precision": MetricScale(True, 1.0, "binary"),
    "recall": MetricScale(True, 1.0, "binary"),
    "rmse": MetricScale(False, inf, "continuous"),
    "mae": MetricScale(False, inf, "continuous"),
    "quantile_loss": MetricScale(False, inf, "continuous"),
}

SignificanceTest = Literal["delong", "mcnemar", "bootstrap"]

# The test that has a formula for a metric; the bootstrap needs none.
_TEST_BY_METRIC: dict[str, SignificanceTest] = {"auc": "delong", "accuracy": "mcnemar"}

_METRICS_WITH_CUT = (
    "accuracy",
    "precision",
    "recall",
    "positive_rate",
)  # metrics of decisions, not of probabilities

_FUNCTION_PATTERN = r"^[a-z_][\w.]*:[A-Za-z_]\w*$"
FunctionPath = Annotated[str, StringConstraints(pattern=_FUNCTION_PATTERN)]
GateName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
_MAX_NAME_PART_LENGTH = 40  # of a default name: an expression may be any length, a table has columns


class _BaseGate(BaseModel):
    # strict: a limit given as "0.6" or True is a slip of the pen, not a number.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name_fields: ClassVar[tuple[str, ...]] = ()

    kind: str
    name: GateName = Field(
        "",  # never stays: see below
        description="names the gate's record; no two gates of a model share it; by default it is made of what "
        "the gate is about, as in auc_threshold",
    )

    @model_validator(mode="before")
    @classmethod
    def _set_default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "name" in data:
            return data
        about = [data.get(field, cls.model_fields[field].default) for field in (*cls.name_fields, "kind")]
        return data | {"name": "_".join(filter(None, map(_name_part, about)))}

    @property
    @abstractmethod
    def limit(self) -> float:
        """What the gate's record is held against."""


def _name_part(part: object) -> str:
    """A part of a gate's name: of a function its own name without that of its module, of SQL what is plain in it."""
    text = str(part).lower()
    if re.match(_FUNCTION_PATTERN, str(part)):
        text = text.rpartition(":")[2]
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")[:_MAX_NAME_PART_LENGTH].rstrip("_")


class MetricGate(_BaseGate):
    """A gate about a metric of predictions against labels."""

    name_fields: ClassVar[tuple[str, ...]] = ("metric",)
    supported_metrics: ClassVar[tuple[str, ...]] = tuple(METRIC_SCALES)

    metric: str = Field(
        description=f"one of {', '.join(METRIC_SCALES)}; or your own function of labels and predictions, "
        "both (n,), that returns a number, as 'package.module:function'"
    )
    higher_is_better: bool | None = Field(None, description="of your own metric; the others know")
    cut: float | None = Field(
        None,
        gt=0,
        le=1,
        description="accuracy, precision, recall: a probability of at least `cut` counts as class 1",
    )
    quantile: float | None = Field(None, gt=0, lt=1, description="quantile_loss: the quantile predicted")
    min_rows: int = Field(100, ge=4, description="with fewer rows the gate is not computed, and so blocks")

    @model_validator(mode="after")
    def _check_metric(self) -> Self:
        own = re.match(_FUNCTION_PATTERN, self.metric) is not None
        if not own and self.metric not in self.supported_metrics:
            known = ", ".join(self.supported_metrics)
            raise ValueError(f"metric {self.metric!r} is none of {known}, nor 'package.module:function'")
        if own and self.higher_is_better is None:
            raise ValueError(f"{self.metric} is yours: say whether higher_is_better")
        if not own and self.higher_is_better is not None:
            raise ValueError(f"which end of {self.metric} is good is known: leave higher_is_better out")
        if self.metric in _METRICS_WITH_CUT and self.cut is None:
            raise ValueError(f"{self.metric} needs a cut: a probability of at least `cut` counts as class 1")
        if self.metric not in _METRICS_WITH_CUT and self.cut is not None:
            raise ValueError(f"{self.metric} has no cut: leave it out")
        if self.metric == "quantile_loss" and self.quantile is None:
            raise ValueError("quantile_loss needs the quantile that is predicted")
        if self.metric != "quantile_loss" and self.quantile is not None:
            raise ValueError(f"{self.metric} has no quantile: leave it out")
        return self

    @property
    def scale(self) -> MetricScale:
        if self.metric not in METRIC_SCALES:
            return MetricScale(bool(self.higher_is_better), inf, "continuous")
        return METRIC_SCALES[self.metric]


class ThresholdGate(MetricGate):
    """The candidate's metric is at least, or at most, a limit.

    Give `at_least` for a metric that is better when higher (auc), `at_most` for one that is better when
    lower (log_loss, in nats; brier; calibration_error). A limit that no value can miss is refused.
    """

    kind: Literal["threshold"] = "threshold"
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        scale = self.scale
        wanted, other = ("at_least", "at_most") if scale.higher_is_better else ("at_most", "at_least")
        limit = getattr(self, wanted)
        if limit is None or getattr(self, other) is not None:
            better = "higher" if scale.higher_is_better else "lower"
            raise ValueError(f"{self.metric} is better when {better}: give {wanted}, and nothing else")
        if self.metric not in METRIC_SCALES:
            return self  # nobody but its author knows where it ends
        if not (0 < limit <= scale.maximum if scale.higher_is_better else 0 <= limit < scale.maximum):
            text = f"{self.metric} goes from 0 to {scale.maximum:g}"
            raise ValueError(f"{text}: {wanted}={limit:g} leaves nothing to decide")
        return self

    @property
    def limit(self) -> float:
        """`at_least` or `at_most`, whichever was given."""
        limit = self.at_most if self.at_least is None else self.at_least
        assert limit is not None
        return limit


class PairedComparisonGate(MetricGate):
    """A gate about the difference between two scorers of the same rows; positive is better.

    calibration_error is not among the metrics: near zero it is biased upwards, each resample adds to the bias, and
    a calibrated model looks worse than it is. Use a `Threshold`; brier and log_loss count calibration too.
    """

    resamples: int = Field(2000, ge=200, le=100_000, description="of the bootstrap, where no formula is known")

    @model_validator(mode="after")
    def _check_comparison(self) -> Self:
        if self.metric == "calibration_error":
            raise ValueError("calibration_error cannot be compared fairly: use brier or log_loss")
        if abs(self.limit) >= self.scale.maximum:
            text = f"{self.metric} goes from 0 to {self.scale.maximum:g}"
            raise ValueError(f"{text}: margin={abs(self.limit):g} leaves nothing to decide")
        return self

    @property
    def chosen_test(self) -> SignificanceTest:
        return _TEST_BY_METRIC.get(self.metric, "bootstrap")


class AgainstChampionGate(PairedComparisonGate):
    """The candidate is `better` than the champion on the same rows, or `not_worse` than by `margin`.

    A one-sided test on rows paired: the lower bound of the gain (positive is better; champion minus candidate
    for metrics that are better when lower; in the metric's own unit) must reach `margin` for `better`, and
    -`margin` for `not_worse`. `better` with margin 0 must lie above 0: an equal model is not better.

    `confidence` holds for the model's whole life, not for one run: the chance that a candidate that falls
    short is ever let through is at most 1 - confidence, however often it is retrained. Each comparison spends a
    part of that chance (`evergreen.gates.alpha_spending`).
    """

    kind: Literal["against_champion"] = "against_champion"
    must_be: Literal["better", "not_worse"]
    margin: float = Field(0.0, ge=0)
    confidence: float = Field(0.95, ge=0.5, lt=1)
    test: SignificanceTest | None = Field(
        None, description="by default delong for auc, mcnemar for accuracy, bootstrap for the rest"
    )

    @model_validator(mode="after")
    def _check_margin_and_test(self) -> Self:
        if self.must_be == "not_worse" and not self.margin:
            raise ValueError("not_worse needs a margin that is still fine; without any, ask for better")
        made_for = {test: metric for metric, test in _TEST_BY_METRIC.items()}
        if self.test in made_for and self.metric != made_for[self.test]:
            raise ValueError(f"{self.test} is a test of {made_for[self.test]}, not of {self.metric}")
        return self

    @property
    def limit(self) -> float:
        """The least gain that the lower bound may show."""
        return self.margin if self.must_be == "better" else -self.margin

    @property
    def chosen_test(self) -> SignificanceTest:
        return self.test or super().chosen_test


class BySliceGate(PairedComparisonGate):
    """In no slice is the candidate shown to be worse than the champion by more than `margin`.

    A slice blocks when the upper bound of its gain lies below -`margin`. The bounds hold for all judged slices
    together: each spends (1 - confidence) / slices (Bonferroni), so that chance alone blocks a harmless
    candidate in at most 1 - confidence of runs. Slices with fewer than `min_rows` rows are reported, not judged.
    """

    name_fields: ClassVar[tuple[str, ...]] = ("metric", "group_by")

    kind: Literal["by_slice"] = "by_slice"
    group_by: str = Field(min_length=1, description="a column of the holdout, or an SQL expression over its columns")
    margin: float = Field(0.0, ge=0)
    confidence: float = Field(0.95, ge=0.5, lt=1)

    @property
    def limit(self) -> float:
        return -self.margin if self.margin else 0.0  # not -0.0


class FairnessGate(MetricGate):
    """The largest difference of the candidate's metric, or of its rate of positives, between two groups.

    Groups with fewer than `min_rows` rows are reported, not judged; with fewer than two groups left the gate
    is not computed.
    """

    name_fields: ClassVar[tuple[str, ...]] = ("metric", "group_by")
    supported_metrics: ClassVar[tuple[str, ...]] = (*METRIC_SCALES, "positive_rate")

    kind: Literal["fairness"] = "fairness"
    group_by: str = Field(min_length=1, description="a column of the holdout, or an SQL expression over its columns")
    metric: str = Field(
        "positive_rate", description="a metric, or positive_rate: the share of rows with at least `cut`"
    )
    at_most: float = Field(gt=0)

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if self.at_most >= self.scale.maximum:
            text = f"{self.metric} goes from 0 to {self.scale.maximum:g}"
            raise ValueError(f"{text}: at_most={self.at_most:g} leaves nothing to decide")
        return self

    @property
    def scale(self) -> MetricScale:
        return MetricScale(True, 1.0, "binary") if self.metric == "positive_rate" else super().scale

    @property
    def limit(self) -> float:
        return self.at_most


class BaselineGate(PairedComparisonGate):
    """The candidate beats a trivial model: the lower bound of its gain lies above 0.

    `prior` predicts the share of label 1 (or the mean label) of the training rows for every row. Anything else is
    a column of the holdout that is taken as the prediction, such as the last value known; where it is
    missing, the prior stands in. Not a metric that only ranks: a constant has none of it.
    """

    name_fields: ClassVar[tuple[str, ...]] = ("metric", "baseline")

    kind: Literal["baseline"] = "baseline"
    baseline: str = Field("prior", min_length=1)
    confidence: float = Field(0.95, ge=0.5, lt=1)

    @model_validator(mode="after")
    def _check_constant_metric(self) -> Self:
        if self.metric == "auc":
            raise ValueError("auc says nothing of a constant: use log_loss, brier or accuracy")
        return self

    @property
    def limit(self) -> float:
        return 0.0


ServingQuantity = Literal[
    "single_p50_ms", "single_p99_ms", "batch_p50_ms", "batch_p99_ms", "size_mib", "memory_mib", "load_ms"
]


class ServingGate(_BaseGate):
    """What the model costs to serve: one quantity, at most so much.

    Latencies are of predictions of one row and of a batch of 1,000 rows; memory is what a fresh process needs
    more with the model loaded and used than before.
    """

    name_fields: ClassVar[tuple[str, ...]] = ("quantity",)

    kind: Literal["serving"] = "serving"
    quantity: ServingQuantity
    at_most: float = Field(gt=0)

    @property
    def limit(self) -> float:
        return self.at_most


class SignatureGate(_BaseGate):
    """The model takes exactly the columns, in order and type, that serving gives."""

    kind: Literal["signature"] = "signature"

    @property
    def limit(self) -> float:
        return 0.0


class OnlineEqualsOfflineGate(_BaseGate):
    """For sampled holdout entities the online store's features equal the offline ones as of the same moment.

    The candidate's value is the share of compared values that differ.
    """

    kind: Literal["online_equals_offline"] = "online_equals_offline"
    at_most: float = Field(0.0, ge=0, lt=1, description="share of values that may differ")
    sample_size: int = Field(200, ge=1, le=100_000)

    @property
    def limit(self) -> float:
        return self.at_most


class PredictionDriftGate(_BaseGate):
    """The candidate's predictions for the most recent unlabelled day are spread as they are on the holdout.

    `psi` is the population stability index over tenths of the holdout's predictions; `ks` is the largest distance
    between the two distribution functions (Kolmogorov and Smirnov).
    """

    name_fields: ClassVar[tuple[str, ...]] = ("statistic",)

    kind: Literal["prediction_drift"] = "prediction_drift"
    statistic: Literal["psi", "ks"] = "psi"
    at_most: float = Field(gt=0)
    min_rows: int = Field(100, ge=4)

    @property
    def limit(self) -> float:
        return self.at_most


class CustomGate(_BaseGate):
    """A function of the model folder: takes the `Evidence`, returns an `evergreen.gates.Finding`."""

    name_fields: ClassVar[tuple[str, ...]] = ("function",)

    kind: Literal["custom"] = "custom"
    function: FunctionPath

    @property
    def limit(self) -> float:
        return 0.0


Gate = Annotated[
    ThresholdGate
    | AgainstChampionGate
    | BySliceGate
    | FairnessGate
    | BaselineGate
    | ServingGate
    | SignatureGate
    | OnlineEqualsOfflineGate
    | PredictionDriftGate
    | CustomGate,
    Field(discriminator="kind"),
]
