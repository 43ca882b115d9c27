"""A metric of the model folder that takes one object: columns, weights, groups and both models' predictions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from evergreen.backtest.statistics import ScoredSample, backtest_metric, run_loss_test
from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    Evidence,
    FairnessGate,
    MetricRows,
    MissingEvidence,
    NoChampion,
    ThresholdGate,
    judge_evidence,
)
from evergreen.gates.judged_rows import open_rows
from evergreen.gates.metric_rows import RowDetails
from evergreen.gates.verdict import evaluate_gate
from evergreen.reports.curves import cluster_gains
from evergreen.spec.prediction_type import PredictionType
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

DAYS, COUNT = 8, 480
METRIC = "metrics_of_a_test:measure"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def given(function: Any) -> None:
        module = ModuleType("metrics_of_a_test")
        module.measure = function  # type: ignore[attr-defined]  # a module of a model folder
        monkeypatch.setitem(sys.modules, "metrics_of_a_test", module)

    return given


def rows(seed: int = 0) -> Evidence:
    random = np.random.default_rng(seed)
    label = random.normal(size=COUNT).round(1)  # many ties
    days = random.permutation(np.arange(COUNT) % DAYS)
    return Evidence(
        label=label,
        candidate=label + random.normal(scale=0.3, size=COUNT),
        champion=label + random.normal(scale=0.9, size=COUNT),
        days=(date(2024, 1, 1), date(2024, 1, 1 + DAYS)),
        clusters={"day": [f"2024-01-{1 + day:02d}" for day in days.tolist()]},
        groups={"shop": [None if row % 3 == 2 else f"s{row % 3}" for row in range(COUNT)]},
        baselines={"prior": np.zeros(COUNT)},
        columns={"units": random.integers(1, 9, COUNT), "place": [None, "a", 'b"'] * (COUNT // 3)},
    )


def cost(given: MetricRows) -> float:
    """Count errors by units, twice in the place b."""
    factor = given.columns["units"] * np.where(given.columns["place"] == 'b"', 2, 1)
    return float(np.average(np.abs(given.prediction - given.label) * factor, weights=given.weight))


def cost_of(evidence: Evidence, column: Any, kept: Any = slice(None)) -> float:
    factor = np.asarray(evidence.columns["units"]) * np.where(np.asarray(evidence.columns["place"]) == 'b"', 2, 1)
    weights = np.ones(COUNT) if evidence.weights is None else np.asarray(evidence.weights)
    error = np.abs(np.asarray(column) - np.asarray(evidence.label)) * factor
    return float(np.average(error[kept], weights=weights[kept]))


def gate(kind: Any = ThresholdGate, **fields: Any) -> Any:
    fields = {"at_most": 99.0, **fields} if kind is ThresholdGate else fields
    return kind(metric=METRIC, higher_is_better=False, columns=("units", "place"), min_rows=20, **fields)


@pytest.mark.parametrize("weights", [None, np.random.default_rng(1).random(COUNT) + 0.1])
def test_it_gets_the_rows_of_each_model_in_every_gate(use: Callable[..., None], weights: Any) -> None:
    use(cost)
    evidence = replace(rows(), weights=weights)
    assert evaluate_gate(gate(), evidence).candidate == pytest.approx(cost_of(evidence, evidence.candidate))
    compared = evaluate_gate(gate(AgainstChampionGate, must_be="better"), evidence)
    assert compared.outcome == "passed"
    assert compared.champion == pytest.approx(cost_of(evidence, evidence.champion))
    assert evaluate_gate(gate(BaselineGate), evidence).outcome == "passed"
    shops = np.asarray(evidence.groups["shop"])
    parts = evaluate_gate(gate(FairnessGate, group_by="shop", at_most=50.0), evidence).slices
    expected = [cost_of(evidence, evidence.candidate, shops == name) for name in ("s0", "s1")]
    assert [part.candidate for part in parts] == pytest.approx(expected)
    assert evaluate_gate(gate(BySliceGate, group_by="shop"), evidence).outcome == "passed"
    _, gains, _ = cluster_gains(gate(AgainstChampionGate, must_be="better"), evidence)
    days = np.asarray(evidence.clusters["day"])
    assert [part.gain for part in gains] == pytest.approx(
        [
            cost_of(evidence, evidence.champion, days == part.name)
            - cost_of(evidence, evidence.candidate, days == part.name)
            for part in gains
        ]
    )


def test_the_error_of_its_gain_is_that_of_leaving_out_days(use: Callable[..., None]) -> None:
    use(cost)
    evidence = rows()
    days = np.asarray(evidence.clusters["day"])

    def gain(kept: Any) -> float:
        return cost_of(evidence, evidence.champion, kept) - cost_of(evidence, evidence.candidate, kept)

    compared = gate(AgainstChampionGate, must_be="better")
    estimate = open_rows(compared, evidence, {"champion": evidence.champion}).measure_gain("champion")
    changes = np.array([gain(days != day) for day in np.unique(days)]) - gain(slice(None))
    assert estimate.gain == pytest.approx(gain(slice(None)))
    assert estimate.standard_error == pytest.approx(np.sqrt((DAYS - 1) / DAYS * (changes**2).sum()))


def test_all_that_it_gets_is_of_the_same_rows(use: Callable[..., None]) -> None:
    evidence = replace(rows(), weights=np.arange(COUNT) % 4 * 0.5)
    seen: list[MetricRows] = []
    use(lambda given: (seen.append(given), 1.0)[1])
    evaluate_gate(gate(), evidence)
    [given] = seen
    key = {value: row for row, value in enumerate(np.asarray(evidence.candidate).tolist())}
    numbers = np.array([key[value] for value in given.prediction.tolist()])
    assert sorted(numbers.tolist()) == [row for row in range(COUNT) if row % 4]
    for name in ("label", "candidate", "champion"):
        assert np.array_equal(getattr(given, name), np.asarray(getattr(evidence, name))[numbers])
    assert np.array_equal(given.weight, np.asarray(evidence.weights)[numbers])
    assert given.columns["place"].tolist() == [evidence.columns["place"][row] for row in numbers.tolist()]  # type: ignore[index]
    assert given.groups["shop"].tolist() == [evidence.groups["shop"][row] for row in numbers.tolist()]  # type: ignore[index]
    seen.clear()
    evaluate_gate(gate(), replace(evidence, champion=NoChampion()))
    assert seen[0].champion is None


def test_one_horizon_of_a_forecast_has_its_own_rows(use: Callable[..., None]) -> None:
    use(cost)
    horizons = np.arange(COUNT) % 3
    forecast = replace(rows(), horizons=horizons, prediction_type=PredictionType(kind="forecast"))
    expected = cost_of(forecast, forecast.candidate, horizons == 2)
    assert evaluate_gate(gate(horizon=2), forecast).candidate == pytest.approx(expected)


def test_a_function_of_labels_and_predictions_stays_one(use: Callable[..., None]) -> None:
    evidence = rows()
    use(lambda label, prediction, power=2: float((np.abs(label - prediction) ** power).mean()))
    plain = ThresholdGate(metric=METRIC, higher_is_better=False, at_most=9.0)
    error = np.abs(np.asarray(evidence.candidate) - np.asarray(evidence.label))
    assert evaluate_gate(plain, evidence).candidate == pytest.approx((error**2).mean())
    use(lambda *columns: float(len(columns)))
    assert evaluate_gate(plain, evidence).candidate == 2
    result = evaluate_gate(plain, replace(evidence, weights=np.full(COUNT, 0.5)))
    assert "takes no weights, and rows do not count a whole number of times: let it take one object" in result.reason


def test_rows_are_repeated_up_to_a_limit(use: Callable[..., None]) -> None:
    sizes = []

    def measure(label: Any, score: Any) -> float:
        sizes.append(label.size)
        return float(np.abs(label - score).mean())

    use(measure)
    plain = gate().model_copy(update={"columns": ()})
    evidence = replace(rows(), weights=np.full(COUNT, 400.0))
    assert evaluate_gate(plain, evidence).outcome != "not_computed"
    assert max(sizes) == 400 * COUNT
    # Weights as large as prices: these rows would fill 20 PB.
    result = evaluate_gate(plain, replace(evidence, weights=np.full(COUNT, 3e12)))
    assert result.outcome == "not_computed"
    assert "takes no weights, and 480 rows count as 1,440,000,000,000,000, more than the 200,000" in result.reason
    assert "let it take one object, `MetricRows`" in result.reason


def test_what_is_missing_is_named(use: Callable[..., None]) -> None:
    use(cost)
    lost = {"units": MissingEvidence("'units' is no column of the holdout"), "place": ["a"]}
    result = evaluate_gate(gate(), replace(rows(), columns=lost))
    assert result.outcome == "not_computed"
    assert "the column units is not known: 'units' is no column" in result.reason
    short = evaluate_gate(gate(), replace(rows(), columns={"units": [1], "place": ["a"]}))
    assert "the column units has 1 values for 480 labels" in short.reason
    assert "takes all labels and scores at once" in evaluate_gate(gate(), stream(rows(), 90)).reason
    with pytest.raises(ValidationError, match="columns are for a metric of your own, and mae needs none"):
        ThresholdGate(metric="mae", at_most=1.0, columns=("units",))
    use(lambda given: given.columns["price"])
    assert f"{METRIC} raised KeyError: 'price'" in judge_evidence([gate()], rows()).results[0].reason


def test_a_backtest_measures_it(use: Callable[..., None]) -> None:
    use(cost)

    def sample(seed: int, noise: float) -> tuple[Evidence, ScoredSample]:
        evidence = rows(seed)
        score = np.asarray(evidence.label) + np.random.default_rng(seed).normal(scale=noise, size=COUNT)
        details = RowDetails.from_evidence(gate(), replace(evidence, candidate=score), COUNT)
        return evidence, ScoredSample(np.asarray(evidence.label), score, np.arange(COUNT) % 20, None, details)

    evidence, good = sample(1, 0.1)
    assert backtest_metric(gate(), good) == pytest.approx(cost_of(evidence, good.score))
    test = run_loss_test(gate(), good, sample(2, 2.0)[1])
    assert test
    assert test.is_significant
