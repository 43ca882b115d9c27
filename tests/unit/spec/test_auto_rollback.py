"""When a champion may be rolled back automatically: by which metric, and for which models not."""

from __future__ import annotations

from typing import Any

import pytest

from evergreen.errors import Fault, SpecError
from evergreen.periods import Calendar
from evergreen.spec.auto_rollback import rollback_gate
from evergreen.spec.model import ModelSpec

pytestmark = pytest.mark.unit

LOSS = {"kind": "against_champion", "metric": "log_loss", "must_be": "not_worse", "margin": 0.01, "min_rows": 500}
ORDER = {"kind": "against_champion", "metric": "auc", "must_be": "better"}
ERROR = {"kind": "against_champion", "metric": "mae", "must_be": "better"}
CORRECT = {"kind": "threshold", "metric": "accuracy", "cut": 0.4, "at_least": 0.6}
GAIN = {"kind": "against_champion", "metric": "ndcg", "must_be": "better"}
FORECAST = {"series": ["shop"], "horizon": "ahead", "season": 7}


def build(policy: dict[str, Any], gates: list[dict[str, Any]], period: str = "1d", **changes: Any) -> ModelSpec:
    features = {
        "period": period,
        "timezone": "UTC",
        "first_day": "2013-01-01",
        "sources": [{"name": "flights", "columns": {"carrier": "string"}}],
        "spine": "departures",
        "views": ["carriers"],
    }
    fields = {
        "name": "late",
        "owner": "ops",
        "features": features,
        "feature_service": "late",
        "schedule": "0 0 * * 5",
        "holdout": "8w",
        "gates": gates,
        "auto_rollback": policy,
    }
    return ModelSpec(**fields | changes)


def find_fault(policy: dict[str, Any], gates: list[dict[str, Any]], **changes: Any) -> Fault:
    with pytest.raises(SpecError) as refused:
        build(policy, gates, **changes)
    (fault,) = refused.value.faults
    return fault


def describe_comparison(model: ModelSpec) -> dict[str, Any]:
    assert model.auto_rollback
    gate = rollback_gate(model.auto_rollback, model.gates, model.prediction_type)
    return gate.model_dump(exclude_defaults=True)


def test_without_it_nothing_is_rolled_back() -> None:
    assert build({}, [LOSS]).auto_rollback is not None
    assert build({}, [LOSS], auto_rollback=None).auto_rollback is None


def test_the_metric_is_that_of_the_gate_with_its_options() -> None:
    common = {"name": "auto_rollback", "must_be": "better"}
    usual = describe_comparison(build({}, [CORRECT, LOSS, ERROR]))
    assert usual == {**common, "metric": "log_loss", "min_rows": 500, "confidence": 0.99}
    other = describe_comparison(build({"metric": "accuracy", "confidence": 0.9}, [ORDER, CORRECT]))
    assert other == {**common, "metric": "accuracy", "cut": 0.4, "confidence": 0.9}
    assert describe_comparison(build({"metric": "brier"}, [ORDER]))["metric"] == "brier"


@pytest.mark.parametrize(
    ("policy", "gates", "changes", "problem", "fix"),
    [
        ({}, [ORDER], {}, "auc, the metric of auc_against_champion, is no sum over", "name one of log_loss, brier"),
        ({"metric": "auc"}, [LOSS], {}, "auc is no sum over rows, as days are added up", "name one of log_loss, brier"),
        ({"metric": "losses:mine"}, [LOSS], {}, "losses:mine is no sum over rows", "name one of log_loss, brier"),
        ({}, [CORRECT], {}, "no gate compares with the champion", "name a metric"),
        ({"metric": "accuracy"}, [LOSS], {}, "accuracy needs a cut", "a probability of at least `cut` counts"),
        ({"metric": "mae"}, [LOSS], {"kind": "binary"}, "mae is a metric of regression and forecast", "take one of"),
        ({}, [GAIN], {"kind": "ranking", "query": "shop"}, "is not for a ranking, whose metrics are of", "remove it"),
        ({}, [ERROR], {"kind": "forecast", "forecast": FORECAST}, "it is not for a forecast, whose days", "remove it"),
        ({}, [LOSS], {"monitor": None}, "needs the DAG that watches the champion", "do not set monitor=None"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    policy: dict[str, Any], gates: list[dict[str, Any]], changes: dict[str, Any], problem: str, fix: str
) -> None:
    fault = find_fault(policy, gates, **changes)
    assert fault.location == "auto_rollback"
    assert problem in fault.problem
    assert fix in fault.fix


@pytest.mark.parametrize(
    ("policy", "period", "location", "problem"),
    [
        ({"within": "6d"}, "1d", "MODEL", "within is 6d, fewer days than min_days, 7: raise it"),
        ({"within": "4w"}, "1w", "MODEL", "within is 4w, fewer weeks than min_days, 7: raise it"),
        ({"within": "36h"}, "1d", "MODEL", "auto_rollback.within is 36h, no whole number of periods of 1d"),
        ({"budget_time": "36h"}, "1d", "MODEL", "auto_rollback.budget_time is 36h, no whole number of periods"),
        ({"min_days": 4}, "1d", "auto_rollback.min_days", "greater than or equal to 5"),
        ({"budget": 0}, "1d", "auto_rollback.budget", "greater than or equal to 1"),
        ({"confidence": 1.0}, "1d", "auto_rollback.confidence", "less than 1"),
        ({"day": 1}, "1d", "auto_rollback.day", "not permitted"),
    ],
)
def test_limits_that_leave_no_time_are_refused(
    policy: dict[str, Any], period: str, location: str, problem: str
) -> None:
    policy = policy if period == "1d" else {"budget_time": "52w", **policy}
    fault = find_fault(policy, [LOSS], period=period, train="52w")
    assert fault.location == location
    assert problem in fault.problem


def test_a_week_is_a_day_of_a_weekly_model() -> None:
    policy = build({"within": "10w", "budget_time": "52w"}, [LOSS], period="1w").auto_rollback
    hourly = build({"within": "36h", "min_days": 5}, [LOSS], period="1h", auto_rollback={"within": "7d"}).auto_rollback
    assert policy
    assert hourly
    assert policy.count_days(Calendar("1w", "UTC")) == 10
    assert hourly.count_days(Calendar("1h", "UTC")) == 7
