"""When a champion that falls behind the one before it is rolled back without a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field, ValidationError

from evergreen.errors import Fault, validation_problem
from evergreen.periods import Calendar, Duration
from evergreen.spec import Frozen, NonEmptyStr, PositiveDuration
from evergreen.spec.gates import (
    MIN_CLUSTERS,
    SUM_METRICS,
    AgainstChampionGate,
    Confidence,
    Gate,
    MetricGate,
    gate_kind_problem,
)
from evergreen.spec.prediction_type import ModelKind, PredictionType

COMPARISON_NAME = "auto_rollback"
"""The name of the comparison in what is stored and said of it."""

_FIELD = "auto_rollback"
# Of a gate, the options of its metric.
_METRIC_OPTIONS = frozenset({"metric", "cut", "quantile", "costs", "min_rows"})
_UNFIT_KINDS: dict[ModelKind, str] = {
    "ranking": "is not for a ranking, whose metrics are of queries",
    "forecast": "is not for a forecast, whose days share the days that they are about, and would count as independent",
}


class AutoRollbackPolicy(Frozen):
    """The champion is rolled back to the one that it replaced, if that does better on labels that have matured since.

    `<model>.monitor` compares both on the same rows. If the model needs an approval, a person is asked first. A freeze
    and a challenger that gathers evidence hold it back.
    """

    metric: NonEmptyStr | None = Field(
        None,
        description=f"by which they are compared, with the options of the first gate by it: {', '.join(SUM_METRICS)}; "
        "None: that of the first gate `against_champion`",
    )
    confidence: Confidence = Field(
        0.99,
        description="of a champion that is not worse, the chance to be rolled back after its promotion is 1 - "
        "`confidence` at most, however often the monitor runs",
    )
    min_days: int = Field(
        7, ge=MIN_CLUSTERS, description="days with matured labels, at least, of a weekly model weeks, before it decides"
    )
    within: PositiveDuration = Field(
        Duration(28, "d"), description="time of data after a promotion that is compared; later nothing is rolled back"
    )
    budget: int = Field(1, ge=1, description="automatic rollbacks, at most, in `budget_time`")
    budget_time: PositiveDuration = Field(Duration(90, "d"), description="time of data in which `budget` counts")

    def count_days(self, calendar: Calendar) -> int:
        """Return how many days, or weeks if that is the period, the comparison may take."""
        unit = Duration(1, "w") if calendar.unit == "week" else Duration(1, "d")
        return self.within.length // unit.length


def rollback_gate(
    policy: AutoRollbackPolicy, gates: Sequence[Gate], prediction: PredictionType | None
) -> AgainstChampionGate:
    """Return the comparison that a policy asks for: whether the one before is better, by this metric.

    Raises:
        ValueError: there is no such comparison; says why, and what to do.
    """
    if prediction and (problem := _UNFIT_KINDS.get(prediction.kind)):
        raise ValueError(f"it {problem}: remove it")
    source = _find_gate(policy, gates)
    options = source.model_dump(include=set(_METRIC_OPTIONS), exclude_none=True) if source else {}
    metric = policy.metric or (source.metric if source else None)
    if metric is None:
        raise ValueError("no gate compares with the champion, whose metric it could take: name a metric")
    if metric not in SUM_METRICS:
        fitting = [name for name in SUM_METRICS if not gate_kind_problem(_bare_gate(name), prediction)]
        owner = f", the metric of {source.name}," if source and policy.metric is None else ""
        raise ValueError(f"{metric}{owner} is no sum over rows, as days are added up: name one of {', '.join(fitting)}")
    try:
        gate = AgainstChampionGate(
            **{**options, "metric": metric}, name=COMPARISON_NAME, must_be="better", confidence=policy.confidence
        )
    except ValidationError as error:
        problem = f"{validation_problem(error)}: add a gate by it with these options"
        raise ValueError(problem) from None
    if problem := gate_kind_problem(gate, prediction):
        raise ValueError(problem)
    return gate


def find_faults(
    policy: AutoRollbackPolicy, gates: Sequence[Gate], prediction: PredictionType | None, *, is_monitored: bool
) -> Iterator[Fault]:
    """Yield what keeps a policy from working for a model."""
    if not is_monitored:
        yield Fault(_FIELD, "needs the DAG that watches the champion", "do not set monitor=None")
        return
    try:
        rollback_gate(policy, gates, prediction)
    except ValueError as error:
        text, _, fix = str(error).partition(": ")
        yield Fault(_FIELD, text, fix)


def days_problem(policy: AutoRollbackPolicy, calendar: Calendar) -> str | None:
    """Return why a policy leaves no time to decide, or None."""
    days = policy.count_days(calendar)
    if days >= policy.min_days:
        return None
    unit = "weeks" if calendar.unit == "week" else "days"
    return f"{_FIELD}.within is {policy.within}, fewer {unit} than min_days, {policy.min_days}: raise it"


def _find_gate(policy: AutoRollbackPolicy, gates: Sequence[Gate]) -> MetricGate | None:
    if policy.metric is None:
        return next((gate for gate in gates if isinstance(gate, AgainstChampionGate)), None)
    candidates = [gate for gate in gates if isinstance(gate, MetricGate) and gate.metric == policy.metric]
    candidates.sort(key=lambda gate: not isinstance(gate, AgainstChampionGate))
    return next(iter(candidates), None)


def _bare_gate(metric: str) -> MetricGate:
    """Return a gate that is only asked which models its metric is for."""
    return MetricGate.model_construct(kind="", name=COMPARISON_NAME, metric=metric)
