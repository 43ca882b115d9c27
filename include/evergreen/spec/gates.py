"""Specs of gates: frozen, validated, and equal after a round trip through JSON (`kind` is the discriminator)."""

from __future__ import annotations

import operator
import re
from math import inf, log
from sys import float_info
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from evergreen.spec import Frozen, Name, NonEmptyStr
from evergreen.spec.prediction_type import ModelKind, PredictionType

LabelType = Literal["binary", "continuous", "count", "class"]  # count: any number from 0
"""Of labels 0 or 1, with probabilities as predictions; of any numbers, with predictions of the same kind; or of numbers
of declared classes, from 0 on."""


class MetricScale(NamedTuple):
    """How to read a metric: which end is good, and its largest value (the smallest is 0); and what models have it."""

    higher_is_better: bool
    maximum: float
    label_type: LabelType
    """Of models whose kind is not declared."""
    kinds: tuple[ModelKind, ...]


# Apart from the functions that compute them (evergreen.gates.metrics), because specs are read without numpy.
METRIC_SCALES: dict[str, MetricScale] = {
    "auc": MetricScale(True, 1.0, "binary", ("binary",)),
    "log_loss": MetricScale(  # scores are clipped there
        False, -log(float_info.epsilon), "binary", ("binary", "multiclass")
    ),
    "brier": MetricScale(False, 1.0, "binary", ("binary",)),
    "calibration_error": MetricScale(False, 1.0, "binary", ("binary",)),
    "accuracy": MetricScale(True, 1.0, "binary", ("binary", "multiclass")),
    "precision": MetricScale(True, 1.0, "binary", ("binary",)),
    "recall": MetricScale(True, 1.0, "binary", ("binary",)),
    "average_precision": MetricScale(True, 1.0, "binary", ("binary",)),
    "precision_at_recall": MetricScale(True, 1.0, "binary", ("binary",)),
    "expected_cost": MetricScale(False, inf, "binary", ("binary", "multiclass")),  # its maximum is the largest cost
    "macro_f1": MetricScale(True, 1.0, "class", ("multiclass",)),
    "weighted_f1": MetricScale(True, 1.0, "class", ("multiclass",)),
    "auc_ovr": MetricScale(True, 1.0, "class", ("multiclass",)),
    "rmse": MetricScale(False, inf, "continuous", ("regression", "forecast")),
    "mae": MetricScale(False, inf, "continuous", ("regression", "forecast")),
    "smape": MetricScale(False, 2.0, "continuous", ("regression", "forecast")),
    "r2": MetricScale(True, inf, "continuous", ("regression", "forecast")),  # at most 1, but of any size below 0
    "quantile_loss": MetricScale(False, inf, "continuous", ("regression", "quantile", "forecast")),
    "mase": MetricScale(False, inf, "continuous", ("forecast",)),
    "poisson_deviance": MetricScale(False, inf, "count", ("regression", "forecast")),
    "ndcg": MetricScale(True, 1.0, "count", ("ranking",)),
    "map": MetricScale(True, 1.0, "count", ("ranking",)),
    "mrr": MetricScale(True, 1.0, "count", ("ranking",)),
    "recall_at_k": MetricScale(True, 1.0, "count", ("ranking",)),
    "interval_score": MetricScale(False, inf, "continuous", ("quantile",)),
    "coverage": MetricScale(True, 1.0, "continuous", ("quantile",)),
    "coverage_error": MetricScale(False, 1.0, "continuous", ("quantile",)),
    "crossing_rate": MetricScale(False, 1.0, "continuous", ("quantile",)),
}
_POSITIVE_RATE_SCALE = MetricScale(True, 1.0, "binary", ("binary",))

PRIOR_BASELINE = "prior"
"""The trivial model of a kind, which needs no column."""

DAY_CLUSTER = "day"
"""The cluster of all rows of one calendar day, in the features' time zone."""

TARGET_CLUSTER = "target day"
"""The cluster of all forecasts about one calendar day, whatever their origins; no column has such a name."""

ORIGIN_CLUSTER = "origin day"
"""The cluster of all forecasts that are made on one calendar day, where the row's own day is the one it is about."""

# With fewer, the spread between clusters says next to nothing about the error of a gain.
MIN_CLUSTERS = 5

# Metrics of decisions, not of probabilities. Accuracy has one unless the most probable of several classes counts.
_METRICS_WITH_CUT = ("accuracy", "precision", "recall", "positive_rate")
_RANK_METRICS = ("auc", "auc_ovr")
_METRICS_OF_QUERIES = ("ndcg", "map", "mrr", "recall_at_k")
# Of these, a model may have a good value and be worse; the metrics to compare instead count what they do.
_INSTEAD_IN_COMPARISONS = {
    "calibration_error": "brier or log_loss",
    "coverage": "interval_score or quantile_loss",
    "coverage_error": "interval_score or quantile_loss",
    "crossing_rate": "interval_score or quantile_loss",
}

SUM_METRICS = (
    "log_loss",
    "brier",
    "accuracy",
    "precision",
    "recall",
    "expected_cost",
    "macro_f1",
    "weighted_f1",
    "rmse",
    "mae",
    "smape",
    "r2",
    "quantile_loss",
    "poisson_deviance",
    "interval_score",
)
"""Metrics of rows that are functions of sums over rows, and that two models can be compared by."""

_FUNCTION_PATTERN = r"^[a-z_][\w.]*:[A-Za-z_]\w*$"
FunctionPath = Annotated[str, StringConstraints(pattern=_FUNCTION_PATTERN)]
Confidence = Annotated[float, Field(ge=0.5, lt=1)]
Guarantee = Literal["lifetime", "rate"]
"""What the confidence of a comparison with the champion holds for: see `AgainstChampionGate`."""
Margin = Annotated[float, Field(ge=0)]
RowGroups = Annotated[
    str, Field(min_length=1, description="a column of the holdout, or an SQL expression over its columns")
]


def _to_rows(value: object) -> object:
    """Return a matrix as tuples: gates are strict, and a matrix is written as lists."""
    return tuple(tuple(row) if isinstance(row, list) else row for row in value) if isinstance(value, list) else value


def _is_none(value: object) -> bool:
    return value is None


_Cost = Annotated[float, Field(ge=0)]
ColumnNames = Annotated[tuple[NonEmptyStr, ...], BeforeValidator(_to_rows)]
CostMatrix = Annotated[tuple[tuple[_Cost, ...], ...], BeforeValidator(_to_rows)]

_MAX_NAME_PART_LENGTH = 40  # of a default name: an expression may be any length, a table has columns


# strict: a limit of "0.6" or True is a mistake, not a number.
class _BaseGate(Frozen, strict=True, allow_inf_nan=False):
    name_fields: ClassVar[tuple[str, ...]] = ()

    kind: str
    name: Name = Field(
        "",  # replaced by _set_default_name
        description="names the gate's result; unique among the gates of a model; by default made of the gate's fields, "
        "as in auc_threshold",
    )

    @model_validator(mode="before")
    @classmethod
    def _set_default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "name" in data:
            return data
        values = [data.get(field, cls.model_fields[field].default) for field in (*cls.name_fields, "kind")]
        return data | {"name": "_".join(filter(None, map(_name_part, values)))}

    @property
    def limit(self) -> float:
        """The number that the gate's value is compared with: `at_least` or `at_most`, whichever is set."""
        limits = (getattr(self, field, None) for field in ("at_least", "at_most"))
        return next((float(limit) for limit in limits if limit is not None), 0.0)


def _name_part(value: object) -> str:
    """Return a value as part of a name: of a function its name without the module, of SQL its words."""
    text = str(value).lower()
    if re.match(_FUNCTION_PATTERN, str(value)):
        text = text.rpartition(":")[2]
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")[:_MAX_NAME_PART_LENGTH].rstrip("_")


class MetricGate(_BaseGate):
    """A gate on a metric of predictions and labels."""

    name_fields: ClassVar[tuple[str, ...]] = ("metric",)
    supported_metrics: ClassVar[tuple[str, ...]] = tuple(METRIC_SCALES)

    metric: str = Field(
        description=f"one of {', '.join(METRIC_SCALES)}; or your own function that returns a number, of one object, "
        "`evergreen.gates.MetricRows`, or of labels and predictions, as 'package.module:function'"
    )
    higher_is_better: bool | None = Field(None, description="required for a metric of your own, and only there")
    cut: float | None = Field(
        None, gt=0, le=1, description="accuracy, precision, recall: a probability of at least `cut` counts as class 1"
    )
    quantile: float | None = Field(
        None, gt=0, lt=1, description="quantile_loss: the predicted quantile; none for the mean over several"
    )
    costs: CostMatrix | None = Field(
        None,
        description="expected_cost: a row for each actual class, with the cost of each decision for a class, in the "
        "order of the spec's `classes`; [[0, 1], [5, 0]] says that to miss label 1 costs five times a false alarm",
        exclude_if=_is_none,  # specs of gates without it are what they were
    )
    recall: float | None = Field(
        None, gt=0, le=1, description="precision_at_recall: the recall that is reached", exclude_if=_is_none
    )
    k: int | None = Field(
        None,
        ge=1,
        description="ndcg, map, mrr, recall_at_k: only the first `k` of each query count; None: all",
        exclude_if=_is_none,
    )
    columns: ColumnNames = Field(
        (),
        description="a metric of your own: columns of the holdout that it needs, in `MetricRows.columns`",
        exclude_if=operator.not_,  # as above
    )
    horizon: int | None = Field(
        None, ge=0, description="of a forecast: only the rows of this horizon count; None: all", exclude_if=_is_none
    )
    min_rows: int = Field(
        100, ge=4, description="with fewer rows, or queries of a ranking, the gate is not computed, and so blocks"
    )

    @model_validator(mode="after")
    def _check_metric(self) -> Self:
        custom = re.match(_FUNCTION_PATTERN, self.metric) is not None
        if not custom and self.metric not in self.supported_metrics:
            metrics = ", ".join(self.supported_metrics)
            raise ValueError(f"metric {self.metric!r} is none of {metrics}, nor 'package.module:function'")
        if custom and self.higher_is_better is None:
            raise ValueError(f"{self.metric} is yours: set higher_is_better")
        if not custom and self.higher_is_better is not None:
            raise ValueError(f"higher_is_better of {self.metric} is known: leave it out")
        if not custom and self.columns:
            raise ValueError(f"columns are for a metric of your own, and {self.metric} needs none: leave them out")
        if self.metric in _METRICS_WITH_CUT and self.metric != "accuracy" and self.cut is None:
            raise ValueError(_missing_cut_problem(self.metric))
        if self.metric not in _METRICS_WITH_CUT and self.cut is not None:
            raise ValueError(f"{self.metric} has no cut: leave it out")
        if self.metric != "quantile_loss" and self.quantile is not None:
            raise ValueError(f"{self.metric} has no quantile: leave it out")
        if (self.metric == "precision_at_recall") != (self.recall is not None):
            fix = "has no recall: leave it out" if self.recall is not None else "needs the recall that is reached"
            raise ValueError(f"{self.metric} {fix}")
        if self.k is not None and self.metric not in _METRICS_OF_QUERIES:
            raise ValueError(f"{self.metric} has no k: leave it out")
        if self.metric == "recall_at_k" and self.k is None:
            raise ValueError("recall_at_k needs k: of all rows of a query, recall is 1")
        if (self.metric == "expected_cost") != (self.costs is not None):
            fix = "has no costs: leave them out" if self.costs is not None else "needs costs, as [[0, 1], [5, 0]]"
            raise ValueError(f"{self.metric} {fix}")
        if self.costs is not None and (problem := _costs_problem(self.costs)):
            raise ValueError(f"costs {problem}")
        return self

    @property
    def scale(self) -> MetricScale:
        if self.metric not in METRIC_SCALES:
            return MetricScale(bool(self.higher_is_better), inf, "continuous", get_args(ModelKind))
        scale = METRIC_SCALES[self.metric]
        return scale._replace(maximum=max(map(max, self.costs))) if self.costs else scale

    def _useless_limit(self, name: str, limit: float) -> ValueError:
        text = f"{self.metric} goes from 0 to {self.scale.maximum:g}"
        return ValueError(f"{text}: {name}={limit:g} leaves nothing to decide")


def _missing_cut_problem(metric: str) -> str:
    return f"{metric} needs a cut: a probability of at least `cut` counts as class 1"


def _costs_problem(costs: CostMatrix) -> str | None:
    """Return why a matrix is none of costs, or None."""
    if len(costs) < 2 or any(len(row) != len(costs) for row in costs):
        return f"are rows of {', '.join(str(len(row)) for row in costs)} numbers: write a row and a number per class"
    if not any(map(any, costs)):
        return "are all 0: write what each wrong decision costs"
    return None


class ThresholdGate(MetricGate):
    """The candidate's metric is at least, or at most, a limit.

    Set `at_least` for a metric that is better when higher (auc), `at_most` for one that is better when
    lower (log_loss, in nats; brier; calibration_error). A limit that every value meets is invalid.
    """

    kind: Literal["threshold"] = "threshold"
    at_least: float | None = Field(None, description="limit for a metric that is better when higher")
    at_most: float | None = Field(None, description="limit for a metric that is better when lower")

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        scale = self.scale
        valid, invalid = ("at_least", "at_most") if scale.higher_is_better else ("at_most", "at_least")
        limit = getattr(self, valid)
        if limit is None or getattr(self, invalid) is not None:
            better = "higher" if scale.higher_is_better else "lower"
            raise ValueError(f"{self.metric} is better when {better}: give {valid}, and nothing else")
        if self.metric not in METRIC_SCALES:
            return self  # its range is not known
        if self.metric == "r2":  # below 0 where the mean label would be better
            if limit > 1:
                raise ValueError(f"r2 is at most 1: at_least={limit:g} cannot be reached")
            return self
        if not (0 < limit <= scale.maximum if scale.higher_is_better else 0 <= limit < scale.maximum):
            raise self._useless_limit(valid, limit)
        return self


class PairedComparisonGate(MetricGate):
    """A gate on the difference between two scorers of the same rows; positive is better.

    The bound is by the clusters of the model's spec: rows of a cluster, such as a day, may differ together.

    calibration_error is not among the metrics: near zero it is biased upwards, more so on fewer rows, and a calibrated
    model looks worse than it is. Use a `ThresholdGate`; brier and log_loss count calibration too. Nor are coverage,
    which the widest intervals have, and crossing_rate: interval_score and quantile_loss count both.
    """

    confidence: Confidence = Field(0.95, description="confidence of the bound that decides")

    @model_validator(mode="after")
    def _check_comparison(self) -> Self:
        if instead := _INSTEAD_IN_COMPARISONS.get(self.metric):
            raise ValueError(f"{self.metric} cannot be compared fairly: use {instead}")
        if abs(self.limit) >= self.scale.maximum:
            raise self._useless_limit("margin", abs(self.limit))
        return self


class AgainstChampionGate(PairedComparisonGate):
    """The candidate is `better` than the champion on the same rows, or `not_worse` than by `margin`.

    A one-sided test on paired rows: the lower bound of the gain (positive is better; champion minus candidate for
    metrics that are better when lower; in the metric's own unit) must reach `margin` for `better`, and -`margin` for
    `not_worse`. For `better` with margin 0 it must be above 0: an equal model is not better.

    `confidence` holds for the model's whole life, not for one run, however often it is retrained. With the guarantee
    `rate`, of the promotions made at most 1 - confidence fall short, in expectation. With `lifetime`, the chance that
    a candidate that falls short is ever promoted is at most 1 - confidence. Each comparison spends a part of that
    budget (`evergreen.gates.alpha_spending`).
    """

    kind: Literal["against_champion"] = "against_champion"
    must_be: Literal["better", "not_worse"] = Field(description="what must be shown about the candidate")
    margin: Margin = Field(
        0.0, description="difference to require (better) or tolerate (not_worse), in the metric's unit"
    )
    guarantee: Guarantee = Field(
        "rate",
        description="what `confidence` holds for: the share of promotions that fall short, or any such promotion",
    )

    @model_validator(mode="after")
    def _check_margin(self) -> Self:
        if self.must_be == "not_worse" and not self.margin:
            raise ValueError("not_worse needs a margin; without one, use better")
        return self

    @property
    def limit(self) -> float:
        """The smallest lower bound of the gain that passes."""
        return self.margin if self.must_be == "better" else -self.margin


class BySliceGate(PairedComparisonGate):
    """In no slice is the candidate shown to be worse than the champion by more than `margin`.

    A slice blocks when the upper bound of its gain is below -`margin`. The bounds hold for all judged slices
    together: each spends (1 - confidence) / slices (Bonferroni), so that chance alone blocks a harmless
    candidate in at most 1 - confidence of runs. Slices with fewer than `min_rows` rows, or of too few clusters, are
    reported, not judged.
    """

    name_fields: ClassVar[tuple[str, ...]] = ("metric", "group_by")

    kind: Literal["by_slice"] = "by_slice"
    group_by: RowGroups
    margin: Margin = Field(0.0, description="loss that is tolerated in a slice, in the metric's own unit")

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
    group_by: RowGroups
    metric: str = Field(
        "positive_rate", description="a metric, or positive_rate: the share of rows with at least `cut`"
    )
    at_most: float = Field(gt=0, description="largest difference between two groups")

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if self.at_most >= self.scale.maximum:
            raise self._useless_limit("at_most", self.at_most)
        return self

    @property
    def scale(self) -> MetricScale:
        return _POSITIVE_RATE_SCALE if self.metric == "positive_rate" else super().scale


class BaselineGate(PairedComparisonGate):
    """The candidate beats a trivial model: the lower bound of its gain is above 0.

    `prior` predicts the share of label 1 of the training rows for every row (or their mean label, the share of each
    class, or the quantiles of their labels), and of a forecast the last value of a season before. Any other name is a
    column of the holdout that is taken as the prediction, such as the last known value, and the prior where it is
    missing; a class is taken as certain, a number as every quantile. Not for a metric that only ranks: it does not
    exist for a constant.
    """

    name_fields: ClassVar[tuple[str, ...]] = ("metric", "baseline")

    kind: Literal["baseline"] = "baseline"
    baseline: str = Field(PRIOR_BASELINE, min_length=1, description="`prior`, or a column of the holdout")

    @model_validator(mode="after")
    def _check_constant_metric(self) -> Self:
        if self.metric in _RANK_METRICS:
            raise ValueError(f"{self.metric} does not exist for a constant: use log_loss, brier or accuracy")
        return self


ServingQuantity = Literal[
    "single_p50_ms", "single_p99_ms", "batch_p50_ms", "batch_p99_ms", "size_mib", "memory_mib", "load_ms"
]


class ServingGate(_BaseGate):
    """One quantity of what the model costs to serve is at most `at_most`.

    Latencies are of predictions of one row and of a batch of 1,000 rows; memory is what a fresh process needs in
    addition to load and use the model.
    """

    name_fields: ClassVar[tuple[str, ...]] = ("quantity",)

    kind: Literal["serving"] = "serving"
    quantity: ServingQuantity = Field(description="what is measured, in the unit that its name ends with")
    at_most: float = Field(gt=0, description="limit, in that unit")


class SignatureGate(_BaseGate):
    """The model takes exactly the columns, in order and type, that serving provides."""

    kind: Literal["signature"] = "signature"


class OnlineEqualsOfflineGate(_BaseGate):
    """For sampled keys the online store's features equal the offline ones, as of what the online store holds.

    Keys are those of the newest examples in the online store. The candidate's value is the share of compared values
    that differ. Feast serves the last value of a key for ever; `expired` declares what a request gets where that is
    older than the `ttl` of its view, so that the model had none in training:

    - `differ`: the value, which the model did not learn from, so it counts as different
    - `missing`: no value, because the server leaves it out, as `read_online_features` does
    - `last_value`: the last value, on purpose; it differs if the key's last row has another one
    """

    kind: Literal["online_equals_offline"] = "online_equals_offline"
    at_most: float = Field(0.0, ge=0, lt=1, description="share of values that may differ")
    sample_size: int = Field(200, ge=1, le=100_000, description="number of keys to compare")
    expired: Literal["differ", "missing", "last_value"] = Field(
        "differ",
        description="what a request gets of a key whose last row is older than the `ttl`",
        exclude_if=lambda value: value == "differ",  # specs of gates without it are what they were
    )


class PredictionDriftGate(_BaseGate):
    """The candidate's predictions for the most recent unlabelled day are distributed as on the holdout.

    `psi` is the population stability index over tenths of the holdout's predictions; `ks` is the largest distance
    between the two distribution functions (Kolmogorov and Smirnov).
    """

    name_fields: ClassVar[tuple[str, ...]] = ("statistic",)

    kind: Literal["prediction_drift"] = "prediction_drift"
    statistic: Literal["psi", "ks"] = Field("psi", description="how the two distributions are compared")
    at_most: float = Field(gt=0, description="limit for the statistic")
    min_rows: int = Field(100, ge=4, description="with fewer rows the gate is not computed, and so blocks")


class LabelledGate(_BaseGate):
    """On each day of the holdout, at least the share `at_least` of its rows has a known label.

    Rows whose label is late are other rows than those whose label is early: a flight that has not landed by midnight is
    a late one. Raise `label_delay` of the model where the newest days lack labels.
    """

    kind: Literal["labelled"] = "labelled"
    at_least: float = Field(gt=0, le=1, description="share of the rows of a day")


class ChurnGate(_BaseGate):
    """At most so many of the champion's answers change for the same rows, whether for the better or not.

    With `cut`, the value is the share of rows whose answer (at least `cut`, or below) differs from the champion's.
    Without, it is the mean absolute difference of the two predictions, in their unit; of several classes, the share of
    rows whose most probable class differs. It is compared as measured, as in
    `FairnessGate`: this is no claim about which model is better.
    """

    kind: Literal["churn"] = "churn"
    at_most: float = Field(gt=0, description="share of answers, or difference of predictions")
    cut: float | None = Field(None, description="a prediction of at least `cut` is one answer, a lower one the other")
    min_rows: int = Field(100, ge=4, description="with fewer rows the gate is not computed, and so blocks")

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if self.cut is not None and self.at_most >= 1:
            raise ValueError(f"a share goes from 0 to 1: at_most={self.at_most:g} leaves nothing to decide")
        return self


class CustomGate(_BaseGate):
    """A function of the model folder: takes the `Evidence`, returns an `evergreen.gates.CustomGateResult`."""

    name_fields: ClassVar[tuple[str, ...]] = ("function",)

    kind: Literal["custom"] = "custom"
    function: FunctionPath = Field(description="function that takes the `Evidence`")
    columns: ColumnNames = Field(
        (),
        description="columns of the holdout that it needs, in `Evidence.columns`",
        exclude_if=operator.not_,  # as above
    )


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
    | LabelledGate
    | ChurnGate
    | CustomGate,
    Field(discriminator="kind"),
]


def gate_kind_problem(gate: Gate | MetricGate, prediction: PredictionType | None) -> str | None:
    """Return why a gate does not fit what a model predicts, with the fix, or None. No prediction: a single number."""
    kind = prediction.kind if prediction else None
    if isinstance(gate, ChurnGate) and kind == "multiclass":
        if gate.cut is not None:
            return "several classes have no cut: leave it out, changes of the most probable class count"
        if gate.at_most >= 1:
            return f"a share goes from 0 to 1: at_most={gate.at_most:g} leaves nothing to decide"
    elif isinstance(gate, ChurnGate) and gate.cut is not None and prediction and prediction.outputs:
        return "several numbers for a row have no cut: leave it out, their mean difference counts"
    if not isinstance(gate, MetricGate):
        return None
    if gate.horizon is not None and kind != "forecast":
        return f"horizon is for a forecast model, and kind is {kind!r}: leave it out, or declare kind='forecast'"
    if kind == "ranking" and ":" in gate.metric:
        return f"{gate.metric} takes rows, not queries: take one of {', '.join(_METRICS_OF_QUERIES)}, or a custom gate"
    if kind == "ranking" and isinstance(gate, BaselineGate) and gate.baseline == PRIOR_BASELINE:
        return "a constant ranks nothing: name a column of the holdout as the baseline, such as a popularity"
    kinds = gate.scale.kinds
    if prediction is None and not {"binary", "regression"} & set(kinds):
        return f"{gate.metric} is a metric of {kinds[0]} models: declare kind={kinds[0]!r}, or take another metric"
    if prediction and prediction.kind not in kinds:
        fitting = [name for name, scale in METRIC_SCALES.items() if prediction.kind in scale.kinds]
        models = " and ".join(kinds)
        return f"{gate.metric} is a metric of {models} models, and kind is {kind!r}: take one of {', '.join(fitting)}"
    if gate.metric == "accuracy" and (gate.cut is None) != (kind == "multiclass"):
        if gate.cut is None:
            return _missing_cut_problem(gate.metric)
        return "accuracy of several classes has no cut: leave it out, the most probable class counts"
    if gate.metric == "quantile_loss":
        return _quantile_problem(gate.quantile, prediction)
    classes = len(prediction.classes) if prediction and kind == "multiclass" else 2
    if gate.costs and len(gate.costs) != classes:
        return f"costs have {len(gate.costs)} rows, and there are {classes} classes: write a row for each"
    return None


def _quantile_problem(quantile: float | None, prediction: PredictionType | None) -> str | None:
    if prediction is None or prediction.kind != "quantile":
        return "quantile_loss needs the predicted quantile: write it as quantile" if quantile is None else None
    if quantile is not None and quantile not in prediction.quantiles:
        return f"{quantile:g} is none of the quantiles {', '.join(prediction.outputs)}: take one of them"
    return None
