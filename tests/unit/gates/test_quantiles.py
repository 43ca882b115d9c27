"""Gates on models of several quantiles: metrics against scikit-learn or their definition, gains, crossings."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import mean_pinball_loss

from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    ChurnGate,
    Evidence,
    FairnessGate,
    PredictionDriftGate,
    ThresholdGate,
    judge_evidence,
)
from evergreen.gates.clusters import RowClusters
from evergreen.gates.comparisons import measure_gain
from evergreen.gates.metrics import compute_metric, resolve_metric
from evergreen.gates.verdict import evaluate_gate
from evergreen.reports.outputs import tabulate_outputs
from evergreen.spec.gates import Gate
from evergreen.spec.prediction_type import PredictionType
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

LEVELS = (0.05, 0.5, 0.9)
TYPE = PredictionType(kind="quantile", quantiles=LEVELS)
DAYS = 12


def interval_score(y: np.ndarray, q: np.ndarray, sample_weight: Any = None) -> float:
    """As two quantile losses, each in units of its own tail (Gneiting and Raftery 2007, section 6.2)."""
    tails = ((0, LEVELS[0], LEVELS[0]), (2, LEVELS[2], 1 - LEVELS[2]))
    return sum(
        mean_pinball_loss(y, q[:, n], alpha=level, sample_weight=sample_weight) / tail for n, level, tail in tails
    )


def covered(y: np.ndarray, q: np.ndarray, sample_weight: Any = None) -> float:
    return float(
        np.average([low <= label <= high for label, (low, _, high) in zip(y, q, strict=True)], weights=sample_weight)
    )


REFERENCES: dict[str, Any] = {
    "quantile_loss": lambda y, q, **w: np.mean(
        [mean_pinball_loss(y, q[:, n], alpha=a, **w) for n, a in enumerate(LEVELS)]
    ),
    "quantile_loss at 0.9": lambda y, q, **w: mean_pinball_loss(y, q[:, 2], alpha=0.9, **w),
    "interval_score": interval_score,
    "coverage": covered,
    "coverage_error": lambda y, q, **w: abs(covered(y, q, **w) - 0.85),
    "crossing_rate": lambda y, q, sample_weight=None: np.average(
        [list(row) != sorted(row) for row in q], weights=sample_weight
    ),
}
COMPARED = [name for name in REFERENCES if name not in ("coverage", "coverage_error", "crossing_rate")]


def gate(name: str, kind: Any = ThresholdGate, **fields: Any) -> Any:
    metric, _, quantile = name.partition(" at ")
    if kind is ThresholdGate:
        fields["at_least" if name == "coverage" else "at_most"] = 0.5
    return kind(metric=metric, **({"quantile": float(quantile)} if quantile else {}), **fields)


def rows(seed: int = 0, count: int = 1_200) -> Evidence:
    random = np.random.default_rng(seed)
    center = random.gamma(3, 5, size=count)
    label = center + random.normal(scale=4, size=count)

    def predict(noise: float) -> np.ndarray:
        spread = np.array([-6.6, 0.0, 5.1]) + random.normal(scale=noise, size=(count, 3))
        return center[:, None] + spread

    return Evidence(
        label=label,
        candidate=predict(2.0),
        champion=predict(4.0),
        days=(date(2024, 1, 1), date(2024, 1, 1 + DAYS)),
        clusters={"day": [f"2024-01-{1 + row * DAYS // count:02d}" for row in range(count)]},
        groups={"shop": [f"s{row % 3}" for row in range(count)]},
        baselines={"prior": np.tile(np.quantile(label, LEVELS), (count, 1))},
        recent_predictions=predict(2.0)[:300],
        prediction_type=TYPE,
    )


@pytest.mark.parametrize("name", REFERENCES)
def test_metrics_are_their_definition_for_every_weighting(name: str) -> None:
    evidence = rows()
    label, score = np.asarray(evidence.label), np.asarray(evidence.candidate)
    score[::9, 2] = label[::9]  # ends of an interval are within it
    weight = np.random.default_rng(1).integers(0, 4, size=(3, label.size)).astype(float)
    expected = [REFERENCES[name](label, score, sample_weight=w) for w in weight]
    assert min(expected) > 0
    metric = resolve_metric(gate(name), TYPE)
    assert metric(label, score, weight) == pytest.approx(expected, rel=1e-12)
    assert compute_metric(metric, label, score) == pytest.approx(REFERENCES[name](label, score), rel=1e-12)


@pytest.mark.parametrize("name", COMPARED)
def test_the_error_of_a_gain_is_that_of_leaving_out_days(name: str) -> None:
    evidence = rows()
    label, candidate, champion = (np.asarray(x) for x in (evidence.label, evidence.candidate, evidence.champion))
    days = np.asarray(evidence.clusters["day"])
    estimate = measure_gain(
        gate(name, AgainstChampionGate, must_be="better"),
        label,
        candidate,
        champion,
        RowClusters.from_columns({"day": days}),
        TYPE,
    )

    def gain(kept: np.ndarray) -> float:
        return float(REFERENCES[name](label[kept], champion[kept]) - REFERENCES[name](label[kept], candidate[kept]))

    assert estimate.gain == pytest.approx(gain(np.full(label.size, True)), rel=1e-9)
    changes = np.array([gain(days != day) for day in np.unique(days)]) - estimate.gain
    assert estimate.standard_error == pytest.approx(np.sqrt((DAYS - 1) / DAYS * (changes**2).sum()), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in REFERENCES if name not in COMPARED])
def test_what_wide_intervals_have_is_not_compared(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot be compared fairly: use interval_score or quantile_loss"):
        gate(name, AgainstChampionGate, must_be="better")


@pytest.mark.parametrize("seed", range(2))
def test_batches_are_judged_as_rows_in_memory(seed: int) -> None:
    evidence = rows(seed)
    gates: list[Gate] = [gate(name) for name in REFERENCES]
    gates += [gate(name, FairnessGate, group_by="shop", at_most=0.9) for name in REFERENCES]
    for name in COMPARED:
        gates += [gate(name, BaselineGate), gate(name, BySliceGate, group_by="shop")]
        gates += [gate(name, AgainstChampionGate, must_be="better")]
    gates = [one.model_copy(update={"name": f"gate_{number}"}) for number, one in enumerate(gates)]
    gates += [ChurnGate(at_most=9.0), PredictionDriftGate(at_most=0.5)]
    loaded, streamed = (judge_evidence(gates, one) for one in (evidence, stream(evidence, 170)))
    for one, other in zip(loaded.results, streamed.results, strict=True):
        assert one.outcome == other.outcome, (one.reason, other.reason)
        assert one.outcome != "not_computed", one.reason
        assert other.candidate == pytest.approx(one.candidate, rel=1e-9, abs=1e-3 if "drift" in one.gate else 1e-12)
        if one.interval:
            assert other.interval == pytest.approx(one.interval, rel=1e-6, abs=1e-9)


def test_the_better_model_beats_champion_and_baseline() -> None:
    evidence = rows()
    for name in COMPARED:
        for better in (gate(name, AgainstChampionGate, must_be="better"), gate(name, BaselineGate)):
            assert evaluate_gate(better, evidence).outcome == "passed"


def test_only_rows_whose_own_quantile_differs_count() -> None:
    evidence = rows()
    champion = np.array(evidence.candidate)
    champion[:, 1] += 1
    champion[:20, 2] += 1
    compared = replace(evidence, champion=champion)
    result = evaluate_gate(gate("quantile_loss at 0.9", AgainstChampionGate, must_be="better"), compared)
    assert "the two differ in 20 of 1,200 rows: too few" in result.reason


def test_churn_is_the_mean_move_of_all_quantiles() -> None:
    evidence = rows()
    moved = np.abs(np.asarray(evidence.candidate) - np.asarray(evidence.champion)).mean()
    assert evaluate_gate(ChurnGate(at_most=9.0), evidence).candidate == pytest.approx(moved)


def test_crossing_quantiles_are_named() -> None:
    evidence = rows()
    candidate = np.sort(np.array(evidence.candidate), axis=1)
    candidate[:7, 1] = candidate[:7, 2] + 1
    table = tabulate_outputs(
        replace(evidence, candidate=candidate, champion=np.sort(np.asarray(evidence.champion), axis=1))
    )
    assert table
    assert table.problems == ("in 7 of 1,200 rows of the candidate the quantile 0.9 is below that of 0.5",)
    label = np.asarray(evidence.label)
    [row] = [numbers for role, name, numbers in table.rows if (role, name) == ("candidate", "0.05")]
    assert row == pytest.approx(
        (
            1200,
            (label <= candidate[:, 0]).mean(),
            candidate[:, 0].mean(),
            mean_pinball_loss(label, candidate[:, 0], alpha=0.05),
        )
    )


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        (replace(rows(), candidate=np.zeros(1200)), "not 3 numbers, one for each of the quantiles 0.05, 0.5, 0.9"),
        (replace(rows(), label=np.r_[np.nan, np.zeros(1199)]), "1 of 1,200 labels are NaN or infinite"),
        (replace(rows(), candidate=np.tile([1.0, 2, 3], (1200, 1))), "predicts the same for every row"),
        (
            replace(rows(), candidate=np.r_[[[1, np.inf, 3]], np.asarray(rows().candidate)[1:]]),
            "predictions for 0.5 are NaN",
        ),
    ],
)
def test_faults_are_named(evidence: Evidence, says: str) -> None:
    for one in (evidence, stream(evidence, 500)):
        result = evaluate_gate(gate("quantile_loss"), one)
        assert result.outcome == "not_computed"
        assert says in result.reason
