"""Gates on forecasts: scaled errors by their definition, one horizon of several, and rows that do not count."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    Evidence,
    FairnessGate,
    MissingEvidence,
    ThresholdGate,
    judge_evidence,
)
from evergreen.gates.comparisons import EstimatedGain
from evergreen.gates.judged_rows import open_rows
from evergreen.gates.verdict import evaluate_gate
from evergreen.reports.curves import cluster_gains
from evergreen.reports.outputs import tabulate_outputs
from evergreen.spec.gates import TARGET_CLUSTER, Gate
from evergreen.spec.prediction_type import PredictionType
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

TYPE = PredictionType(kind="forecast")
DAYS, COUNT = 14, 1_800


def rows(seed: int = 0) -> Evidence:
    """Series of very different sizes: some have no scale, others one of 0; days and shops of unequal size."""
    random = np.random.default_rng(seed)
    scale = random.choice([0.5, 3.0, 70.0, 0.0, np.nan], size=COUNT, p=[0.3, 0.3, 0.3, 0.05, 0.05])
    size = np.nan_to_num(scale) + 1
    label = size * random.gamma(4, 1, COUNT)
    horizon = random.choice([1, 2, 14], size=COUNT)
    days = np.minimum(random.integers(0, DAYS + 1, COUNT), DAYS - 1)
    # All rows of the last shop are without a scale: where they do not count, there is no such shop.
    shops = np.where(np.nan_to_num(scale) > 0, random.choice(["a", "b", 'c"'], COUNT), "new")

    def predict(noise: float) -> np.ndarray:
        return np.abs(label + size * random.normal(scale=noise * (1 + horizon / 14), size=COUNT))

    return Evidence(
        label=label,
        candidate=predict(0.4),
        champion=predict(0.9),
        days=(date(2024, 1, 1), date(2024, 1, 1 + DAYS)),
        clusters={
            "day": [f"2024-01-{1 + day:02d}" for day in days.tolist()],
            "series": [f"{shop} {row % 20}" for row, shop in enumerate(shops.tolist())],
        },
        groups={"shop": [None if shop == "b" else shop for shop in shops.tolist()]},
        baselines={"prior": predict(1.5)},
        horizons=horizon,
        scales=scale,
        prediction_type=TYPE,
    )


def counted(evidence: Evidence, horizon: int | None, *, is_scaled: bool) -> tuple[np.ndarray, Any]:
    scale = np.asarray(evidence.scales)
    kept = np.full(COUNT, True) if horizon is None else np.asarray(evidence.horizons) == horizon
    if is_scaled:
        kept &= np.nan_to_num(scale) > 0
    return kept, scale[kept] if is_scaled else 1.0


@pytest.mark.parametrize("horizon", [None, 14])
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("mae", sklearn_metrics.mean_absolute_error),
        ("rmse", sklearn_metrics.root_mean_squared_error),
        ("r2", sklearn_metrics.r2_score),
        ("poisson_deviance", sklearn_metrics.mean_poisson_deviance),
        ("mase", sklearn_metrics.mean_absolute_error),
    ],
)
def test_metrics_are_those_of_the_rows_that_count(metric: str, reference: Any, horizon: int | None) -> None:
    evidence = rows()
    kept, scale = counted(evidence, horizon, is_scaled=metric == "mase")
    limit: Any = {"at_least": 0.01} if metric == "r2" else {"at_most": 0.01}
    gate = ThresholdGate(metric=metric, horizon=horizon, **limit)
    expected = reference(np.asarray(evidence.label)[kept] / scale, np.asarray(evidence.candidate)[kept] / scale)
    for one in (evidence, stream(evidence, 170)):
        result = evaluate_gate(gate, one)
        assert result.candidate == pytest.approx(expected, rel=1e-9)
        assert result.rows == kept.sum() < COUNT or (horizon is None and metric != "mase")


def test_the_error_of_a_scaled_gain_is_that_of_leaving_out_days() -> None:
    evidence = replace(rows(), clusters={"day": rows().clusters["day"]})
    kept, scale = counted(evidence, 2, is_scaled=True)
    label, candidate, champion = (
        np.asarray(column)[kept] / scale for column in (evidence.label, evidence.candidate, evidence.champion)
    )
    gain = np.abs(champion - label) - np.abs(candidate - label)
    days = np.asarray(evidence.clusters["day"])[kept]
    changes = np.array([gain[days != day].mean() for day in np.unique(days)]) - gain.mean()
    error = np.sqrt((DAYS - 1) / DAYS * (changes**2).sum())
    gate = AgainstChampionGate(metric="mase", horizon=2, must_be="better")
    way, gains, _ = cluster_gains(gate, evidence)
    assert way == "day"
    assert {part.name: part.gain for part in gains} == pytest.approx(
        {str(day): gain[days == day].mean() for day in np.unique(days)}
    )
    for one in (evidence, stream(evidence, 170)):
        estimate = open_rows(gate, one, {"champion": one.champion}).measure_gain("champion")
        assert estimate.gain == pytest.approx(gain.mean())
        assert estimate.standard_error == pytest.approx(error)


def overlapping(seed: int, horizons: int = 14, days: int = 28, series: int = 6, *, by_origin: float = 0.0) -> Evidence:
    """Two models of equal skill: what tells them apart is of the day that a forecast is about, whatever its origin.

    With `by_origin`, also of the day of origin.
    """
    random = np.random.default_rng(seed)
    grid = np.meshgrid(np.arange(days), np.arange(1, horizons + 1), np.arange(series), indexing="ij")
    origin, horizon, shop = (values.ravel() for values in grid)
    target = origin + horizon
    label = 100 + random.normal(size=(days + horizons + 1, series))[target, shop]
    errors = random.normal(size=(2, days + horizons + 1))[:, target] + random.normal(scale=0.3, size=(2, target.size))
    errors += by_origin * random.normal(size=(2, days))[:, origin]
    first = date(2024, 1, 1)
    return Evidence(
        label=label,
        candidate=label + errors[0],
        champion=label + errors[1],
        days=(first, first + timedelta(days)),
        clusters={
            "shop": [f"s{number}" for number in shop.tolist()],
            TARGET_CLUSTER: [str(first + timedelta(day)) for day in target.tolist()],
            "day": [str(first + timedelta(day)) for day in origin.tolist()],
        },
        horizons=horizon,
        prediction_type=TYPE,
    )


def by(evidence: Evidence, *names: str) -> Evidence:
    return replace(evidence, clusters={name: evidence.clusters[name] for name in names})


def gain_of(gate: AgainstChampionGate, evidence: Evidence) -> EstimatedGain:
    return open_rows(gate, evidence, {"champion": evidence.champion}).measure_gain("champion")


@pytest.mark.parametrize("horizons", [7, 14])
def test_overlapping_forecasts_are_rarely_found_better_by_chance(horizons: int) -> None:
    """Of 100 comparisons at 5 %, 9 or more are wrong with a chance of 6 %; by days of origin alone about 35 are."""
    gate = AgainstChampionGate(metric="mae", must_be="better")
    wrong = {"day": 0, TARGET_CLUSTER: 0}
    for seed in range(100):
        evidence = overlapping(seed, horizons)
        for name in wrong:
            names = dict.fromkeys(("day", name))
            wrong[name] += gain_of(gate, by(evidence, *names)).bounds(0.05, np.inf).low > 0
    assert wrong["day"] > 20
    assert wrong[TARGET_CLUSTER] <= 9


def test_days_of_origin_and_target_add_up() -> None:
    """By leaving out each day of either kind, and each pair of both, which is in both."""
    evidence = overlapping(1, by_origin=0.7)
    label, candidate, champion = (np.asarray(c) for c in (evidence.label, evidence.candidate, evidence.champion))
    gain = np.abs(champion - label) - np.abs(candidate - label)
    ways = {name: np.asarray(names) for name, names in evidence.clusters.items()}

    def variance(*names: str) -> float:
        pairs = ["/".join(parts) for parts in zip(*(ways[name] for name in names), strict=True)]
        codes = np.unique(pairs, return_inverse=True)[1]
        count = codes.max() + 1
        sums, sizes = np.bincount(codes, gain), np.bincount(codes)
        changes = (gain.sum() - sums) / (gain.size - sizes) - gain.mean()
        return float((count - 1) / count * (changes**2).sum())

    gate = AgainstChampionGate(metric="mae", must_be="better")
    two = variance("day") + variance(TARGET_CLUSTER) - variance("day", TARGET_CLUSTER)
    three = two + variance("shop") - variance("day", "shop")
    assert two > max(variance("day"), variance(TARGET_CLUSTER))
    for names, expected in (("day", TARGET_CLUSTER), two), (("day", "shop", TARGET_CLUSTER), three):
        for one in (by(evidence, *names), stream(by(evidence, *names), 333)):
            found = gain_of(gate, one)
            assert found.standard_error == pytest.approx(np.sqrt(expected), rel=1e-9)
            assert found.days == 28
    found = judge_evidence([gate], by(evidence, "day", TARGET_CLUSTER)).results[0]
    assert "28 days and 41 target days" in found.reason


def test_the_target_days_of_one_horizon_are_its_days() -> None:
    evidence = overlapping(2)
    gate = AgainstChampionGate(metric="mae", must_be="better", horizon=3)
    expected = gain_of(gate, by(evidence, "day")).standard_error
    both = by(evidence, "day", TARGET_CLUSTER)
    for one in (both, stream(both, 333)):
        assert gain_of(gate, one).standard_error == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_batches_are_judged_as_rows_in_memory(seed: int) -> None:
    evidence = rows(seed)
    gates: list[Gate] = []
    for metric, horizon in (("mase", None), ("mase", 14), ("mae", 1), ("rmse", None), ("smape", 2)):
        fields: Any = {"metric": metric, "horizon": horizon}
        gates += [ThresholdGate(at_most=0.3, **fields), BaselineGate(**fields)]
        gates += [FairnessGate(group_by="shop", at_most=0.01, min_rows=50, **fields)]
        gates += [BySliceGate(group_by="shop", min_rows=50, **fields)]
        gates += [AgainstChampionGate(must_be="better", **fields)]
    gates = [gate.model_copy(update={"name": f"gate_{number}"}) for number, gate in enumerate(gates)]
    for one in (evidence, replace(evidence, clusters={"day": evidence.clusters["day"]})):
        loaded, streamed = (judge_evidence(gates, way) for way in (one, stream(one, 170)))
        for result, other in zip(loaded.results, streamed.results, strict=True):
            assert result.outcome == other.outcome, (result.reason, other.reason)
            assert (result.rows, len(result.slices)) == (other.rows, len(other.slices))
            assert other.candidate == pytest.approx(result.candidate, rel=1e-9)
            if result.interval:
                assert other.interval == pytest.approx(result.interval, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "fields", "says"),
    [
        (
            {"scales": MissingEvidence("it burned")},
            {"metric": "mase"},
            "the scales of the rows are not known: it burned",
        ),
        ({"horizons": MissingEvidence("gone")}, {"horizon": 1}, "the horizons of the rows are not known: gone"),
        ({}, {"horizon": 9}, "none of 1,800 rows has the horizon 9"),
        ({"scales": np.zeros(COUNT)}, {"metric": "mase"}, "none of 1,800 rows has a scale: it takes a series"),
        ({"scales": np.r_[np.ones(99), np.zeros(COUNT - 99)]}, {"metric": "mase"}, "99 rows are too few"),
    ],
)
def test_faults_are_named(changes: Any, fields: Any, says: str) -> None:
    evidence = replace(rows(), **changes)
    for one in (evidence, stream(evidence, 500)):
        result = evaluate_gate(ThresholdGate(**{"metric": "mae", "at_most": 1.0, **fields}), one)
        assert result.outcome == "not_computed"
        assert says in result.reason


def test_columns_of_other_rows_are_a_fault() -> None:
    result = evaluate_gate(ThresholdGate(metric="mase", at_most=1.0), replace(rows(), scales=np.ones(7)))
    assert "the scales are not one row of numbers, one for each label" in result.reason


def test_a_gate_of_another_kind_is_refused() -> None:
    other = replace(rows(), prediction_type=PredictionType(kind="regression"))
    assert (
        "mase is a metric of forecast models" in evaluate_gate(ThresholdGate(metric="mase", at_most=1.0), other).reason
    )
    one_horizon = ThresholdGate(metric="mae", horizon=1, at_most=1.0)
    assert "horizon is for a forecast model, and kind is 'regression'" in evaluate_gate(one_horizon, other).reason
    assert "kind is None" in evaluate_gate(one_horizon, replace(other, prediction_type=None)).reason


def test_the_report_has_each_horizon_of_all_models() -> None:
    evidence = rows()
    table = tabulate_outputs(evidence)
    assert table
    names = [(role, name) for role, name, _ in table.rows]
    models = ("candidate", "champion", "seasonal naive")
    assert names == [(role, name) for role in models for name in ("1", "2", "14", "all")]
    for role, column in zip(models, (evidence.candidate, evidence.champion, evidence.baselines["prior"]), strict=True):
        for horizon in (14, None):
            [numbers] = [row for one, name, row in table.rows if (one, name) == (role, str(horizon or "all"))]
            kept, _ = counted(evidence, horizon, is_scaled=False)
            scaled, scale = counted(evidence, horizon, is_scaled=True)
            error = np.abs(np.asarray(column) - np.asarray(evidence.label))
            assert numbers[:3] == pytest.approx((kept.sum(), (error[scaled] / scale).mean(), error[kept].mean()))
            assert numbers[-1] == pytest.approx(np.asarray(column)[kept].mean())
    lost = COUNT - int(counted(evidence, None, is_scaled=True)[0].sum())
    assert table.problems == (
        f"{lost} of 1,800 rows do not count for MASE: their series are new, or were constant before the holdout",
    )
