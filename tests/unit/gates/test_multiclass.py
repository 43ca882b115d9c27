"""Gates on models of several classes: metrics against scikit-learn, gains against definitions, faults by name."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    ChurnGate,
    Evidence,
    FairnessGate,
    MissingEvidence,
    NoChampion,
    PredictionDriftGate,
    ThresholdGate,
    judge_evidence,
)
from evergreen.gates.clusters import RowClusters
from evergreen.gates.comparisons import delong, delong_ovr, measure_gain
from evergreen.gates.kinds.serving import psi
from evergreen.gates.metrics import compute_metric, least_cost, resolve_metric
from evergreen.gates.verdict import NotComputedError, evaluate_gate
from evergreen.spec.gates import Gate, MetricGate
from evergreen.spec.prediction_type import PredictionType
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

NAMES = ("a", "b", "c", "d")
CLASSES = PredictionType(kind="multiclass", classes=NAMES)
COSTS = [[0, 1, 1, 1], [2, 0, 1, 3], [20, 10, 0, 1], [1, 1, 1, 0.5]]
DAYS = 12
REFERENCES: dict[str, Any] = {
    "accuracy": lambda y, p, **w: sklearn_metrics.accuracy_score(y, p.argmax(axis=1), **w),
    "log_loss": lambda y, p, **w: sklearn_metrics.log_loss(y, p, labels=range(4), **w),
    "macro_f1": lambda y, p, **w: sklearn_metrics.f1_score(y, p.argmax(axis=1), average="macro", **w),
    "weighted_f1": lambda y, p, **w: sklearn_metrics.f1_score(y, p.argmax(axis=1), average="weighted", **w),
    "auc_ovr": lambda y, p, **w: sklearn_metrics.roc_auc_score(y, p, multi_class="ovr", **w),
    "expected_cost": lambda y, p, sample_weight=None: np.average(
        np.array(COSTS)[y.astype(int), (p @ np.array(COSTS)).argmin(axis=1)], weights=sample_weight
    ),
}


def predictions(random: np.random.Generator, label: np.ndarray, skill: float) -> np.ndarray:
    logits = random.normal(size=(label.size, 4)) + skill * np.eye(4)[label.astype(int)]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def rows(seed: int = 0, count: int = 1_200, skill: float = 1.5) -> Evidence:
    random = np.random.default_rng(seed)
    label = random.choice(4, size=count, p=[0.5, 0.3, 0.15, 0.05]).astype(float)
    return Evidence(
        label=label,
        candidate=predictions(random, label, skill),
        champion=predictions(random, label, 1.0),
        days=(date(2024, 1, 1), date(2024, 1, 1 + DAYS)),
        clusters={"day": [f"2024-01-{1 + row * DAYS // count:02d}" for row in range(count)]},
        groups={"shop": [None if row % 11 == 0 else f"s{row % 3}" for row in range(count)]},
        baselines={"prior": np.tile([0.5, 0.3, 0.15, 0.05], (count, 1))},
        recent_predictions=predictions(random, label[:300], skill),
        prediction_type=CLASSES,
    )


def gate(name: str, kind: type[MetricGate] = ThresholdGate, **fields: Any) -> Any:
    if name == "expected_cost":
        fields["costs"] = COSTS
    if kind is ThresholdGate:
        fields["at_most" if name in ("log_loss", "expected_cost") else "at_least"] = 0.5
    return kind(metric=name, **fields)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("is_tied", [False, True])
def test_metrics_are_those_of_scikit_learn_for_every_weighting(name: str, is_tied: bool) -> None:
    evidence = rows()
    label, score = np.asarray(evidence.label), np.asarray(evidence.candidate)
    if is_tied:
        score = np.round(score, 1) + 1e-9
        score /= score.sum(axis=1, keepdims=True)
    weight = np.random.default_rng(1).integers(0, 4, size=(3, label.size)).astype(float)
    metric = resolve_metric(gate(name))
    expected = [REFERENCES[name](label, score, sample_weight=w) for w in weight]
    assert metric(label, score, weight) == pytest.approx(expected, rel=1e-12)
    times = weight[0].astype(int)
    repeated = compute_metric(metric, np.repeat(label, times), np.repeat(score, times, axis=0))
    assert repeated == pytest.approx(expected[0], rel=1e-12)


def test_a_class_without_rows_or_predictions_has_no_f1() -> None:
    label, score = np.array([0.0, 0, 1, 1]), np.array([[0.9, 0.1, 0, 0]] * 3 + [[0, 0.9, 0, 0.1]])
    macro, weighted = (
        compute_metric(resolve_metric(gate(f"{kind}_f1")), label, score) for kind in ("macro", "weighted")
    )
    assert macro == pytest.approx((0.8 + 2 / 3) / 2)
    assert weighted == pytest.approx((0.8 + 2 / 3) / 2)
    assert np.isnan(compute_metric(resolve_metric(gate("auc_ovr")), label, score))


def test_the_cheapest_decision_is_by_the_models_own_probabilities() -> None:
    costs = [[0, 1], [9, 0]]
    assert least_cost(np.array([[0.95, 0.05], [0.89, 0.11], [0.9, 0.1]]), costs).tolist() == [0, 1, 0]
    assert least_cost(np.array([0.05, 0.11]), costs).tolist() == [0, 1], "of two classes, a score is the second's"


@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "auc_ovr"])
def test_the_error_of_a_gain_is_that_of_leaving_out_days(name: str) -> None:
    evidence = rows(count=600)
    label, candidate, champion = (np.asarray(x) for x in (evidence.label, evidence.candidate, evidence.champion))
    days = np.asarray(evidence.clusters["day"])
    better = gate(name, AgainstChampionGate, must_be="better")
    sign = 1 if better.scale.higher_is_better else -1

    def gain(kept: np.ndarray) -> float:
        values = [REFERENCES[name](label[kept], score[kept]) for score in (candidate, champion)]
        return float(sign * (values[0] - values[1]))

    estimate = measure_gain(better, label, candidate, champion, RowClusters.from_columns({"day": days}))
    assert estimate.gain == pytest.approx(gain(np.full(label.size, True)), rel=1e-9)
    changes = np.array([gain(days != day) for day in np.unique(days)]) - estimate.gain
    assert estimate.standard_error == pytest.approx(np.sqrt((DAYS - 1) / DAYS * (changes**2).sum()), rel=1e-9)
    assert estimate.degrees_of_freedom == pytest.approx(DAYS - 1)


def test_the_mean_auc_of_two_classes_is_the_auc_and_its_error() -> None:
    """Both classes have the same ranks, turned around. Only the factors for few clusters of a class differ."""
    random = np.random.default_rng(3)
    label = (random.random(2_000) < 0.4).astype(float)
    scores = [np.clip(label * skill + random.normal(size=label.size), -3, 4) / 7 + 3 / 7 for skill in (1.0, 0.7)]
    clusters = RowClusters.from_columns({"day": [str(row % 40) for row in range(label.size)]})
    single = delong(label, *scores, clusters)
    both = delong_ovr(label, *(np.column_stack([1 - score, score]) for score in scores), clusters)
    assert both.gain == pytest.approx(single.gain, abs=1e-12)
    assert both.standard_error == pytest.approx(single.standard_error, rel=1e-3)


def test_the_mean_auc_of_classes_errs_as_often_as_it_may() -> None:
    """On days with a class of their own difficulty, an interval of 90 % holds the true gain, 0, in about 90 %."""
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        day = np.repeat(np.arange(20), 30)
        label = random.integers(0, 4, size=day.size)
        scores = []
        for _ in range(2):
            skill = 1 + random.normal(scale=0.7, size=(20, 4))[day, label]
            logits = random.normal(size=(day.size, 4)) + skill[:, None] * np.eye(4)[label]
            scores.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
        clusters = RowClusters.from_columns({"day": day.astype(str)})
        gain = delong_ovr(label.astype(float), *scores, clusters).bounds(0.05, 1.0)
        held += gain.low <= 0 <= gain.high
    assert 165 <= held <= 194  # of 200, 180 are expected


def all_gates() -> list[Gate]:
    names = [name for name in REFERENCES if name != "auc_ovr"]
    return [
        *(gate(name) for name in names),
        *(gate(name, AgainstChampionGate, must_be="better") for name in names),
        *(gate(name, BySliceGate, group_by="shop", min_rows=50) for name in names),
        *(gate(name, FairnessGate, group_by="shop", at_most=0.4) for name in names),
        *(gate(name, BaselineGate) for name in names),
        ChurnGate(at_most=0.9),
        PredictionDriftGate(at_most=0.5),
    ]


@pytest.mark.parametrize("seed", range(2))
def test_batches_are_judged_as_rows_in_memory(seed: int) -> None:
    evidence = rows(seed)
    loaded, streamed = (judge_evidence(all_gates(), one) for one in (evidence, stream(evidence, 170)))
    for one, other in zip(loaded.results, streamed.results, strict=True):
        assert one.outcome == other.outcome, (one.reason, other.reason)
        assert one.outcome != "not_computed", one.reason
        assert other.candidate == pytest.approx(one.candidate, rel=1e-9, abs=1e-3 if "drift" in one.gate else 1e-12)
        assert other.champion == (one.champion and pytest.approx(one.champion, rel=1e-9))
        if one.interval:
            assert other.interval == pytest.approx(one.interval, rel=1e-6, abs=1e-9)
        assert [(p.name, p.rows) for p in one.slices] == [(p.name, p.rows) for p in other.slices]


def test_the_mean_auc_takes_all_rows_at_once() -> None:
    result = evaluate_gate(gate("auc_ovr"), stream(rows()))
    assert result.outcome == "not_computed"
    assert "auc_ovr takes all labels and scores at once" in result.reason
    assert "EVERGREEN_EXACT_ROWS" in result.reason


def test_rows_in_any_order_give_the_same_verdict() -> None:
    evidence = rows()
    order = np.random.default_rng(5).permutation(1_200)

    def shuffle(values: Any) -> Any:
        return np.asarray(values)[order] if isinstance(values, np.ndarray) else [values[n] for n in order]

    shuffled = replace(
        evidence,
        **{name: shuffle(getattr(evidence, name)) for name in ("label", "candidate", "champion")},
        **{
            field: {name: shuffle(values) for name, values in getattr(evidence, field).items()}
            for field in ("clusters", "groups", "baselines")
        },
    )
    gates = [*all_gates(), gate("auc_ovr"), gate("auc_ovr", AgainstChampionGate, must_be="better")]
    gates = [one for one in gates if not isinstance(one, PredictionDriftGate)]
    assert judge_evidence(gates, shuffled) == judge_evidence(gates, evidence)


def test_a_better_model_is_found_better_by_every_metric() -> None:
    evidence = rows(skill=3.0)
    for name in REFERENCES:
        result = evaluate_gate(gate(name, AgainstChampionGate, must_be="better"), evidence)
        assert result.outcome == "passed", result.reason
        assert (
            evaluate_gate(
                gate(name, AgainstChampionGate, must_be="better"),
                replace(evidence, candidate=evidence.champion, champion=evidence.candidate),
            ).outcome
            == "failed"
        )


def test_the_class_that_drifts_most_decides() -> None:
    evidence = rows()
    candidate, recent = np.asarray(evidence.candidate), np.asarray(evidence.recent_predictions)
    moved = recent.copy()
    moved[:, 2] += 0.4
    moved /= moved.sum(axis=1, keepdims=True)
    result = evaluate_gate(PredictionDriftGate(at_most=0.2), replace(evidence, recent_predictions=moved))
    assert result.outcome == "failed"
    assert result.reason.startswith("of 4 classes c differs most: psi ")
    assert result.candidate == max(psi(candidate[:, n], moved[:, n]) for n in range(4))
    missing = replace(evidence, recent_predictions=MissingEvidence("none came"))
    assert "none came" in evaluate_gate(PredictionDriftGate(at_most=0.2), missing).reason


def test_churn_counts_changes_of_the_most_probable_class() -> None:
    evidence = rows()
    changed = np.asarray(evidence.candidate).argmax(axis=1) != np.asarray(evidence.champion).argmax(axis=1)
    result = evaluate_gate(ChurnGate(at_most=0.1), evidence)
    assert result.candidate == pytest.approx(changed.mean())
    assert f"the most probable class differs from the champion's in {changed.sum()} rows" in result.reason


def spoil(**fields: Any) -> Evidence:
    return replace(rows(count=400), **fields)


def column(number: int, value: float) -> np.ndarray:
    predictions = np.array(rows(count=400).candidate)
    predictions[0, number] = value
    return predictions


LABEL = np.array(rows(count=400).label)


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        (spoil(label=np.r_[4.0, LABEL[1:]]), "not all numbers of the 4 classes"),
        (spoil(label=np.r_[-1.0, LABEL[1:]]), "not all numbers of the 4 classes"),
        (spoil(label=np.r_[0.5, LABEL[1:]]), "not all numbers of the 4 classes"),
        (spoil(label=np.r_[np.nan, LABEL[1:]]), "1 of 400 labels are NaN or infinite"),
        (spoil(label=np.full(400, 2.0)), "all 400 labels are of the class c"),
        (spoil(label=MissingEvidence("'e' is no class")), "the labels cannot be used: 'e' is no class"),
        (spoil(candidate=np.full(400, 0.5)), "not 4 numbers, one for each of the classes a, b, c, d, for each row"),
        (spoil(candidate=np.full((400, 3), 1 / 3)), "not 4 numbers"),
        (spoil(candidate=np.array(["a"] * 400)), "not 4 numbers"),
        (spoil(candidate=[[0.5, 0.5]] * 399 + [[1.0]]), "not 4 numbers"),
        (spoil(candidate=column(1, np.nan)), "1 of the candidate's 400 predictions for b are NaN"),
        (spoil(candidate=column(3, 1.5)), "1 of the candidate's 400 probabilities of d are outside [0, 1]"),
        (spoil(candidate=column(0, 0.0)), "do not add up to 1 in 1 of 400 rows"),
        (spoil(candidate=np.full((400, 4), 0.25)), "predicts the same for every row"),
        (spoil(candidate=np.array(rows(count=400).candidate)[:-1]), "399 scores for 400 labels"),
    ],
)
def test_faults_are_named_in_memory_and_in_batches(evidence: Evidence, says: str) -> None:
    gates = [gate(name) for name in REFERENCES if name != "auc_ovr"]
    for result in judge_evidence(gates, evidence).results:
        assert result.outcome == "not_computed"
        assert says in result.reason
    is_rows = (
        not isinstance(evidence.label, MissingEvidence) and len(np.asarray(evidence.candidate, dtype=object)) == 400
    )
    if is_rows and not isinstance(evidence.candidate, list):
        for result in judge_evidence(gates, stream(evidence, 90)).results:
            assert result.outcome == "not_computed"
            assert says.removesuffix(" for each row").rstrip(",") in result.reason


def test_metrics_for_models_of_another_kind_are_not_computed() -> None:
    binary = ThresholdGate(metric="auc", at_least=0.5)
    result = evaluate_gate(binary, rows())
    assert result.outcome == "not_computed"
    assert "auc is a metric of binary models, and kind is 'multiclass': take one of log_loss, accuracy" in result.reason
    undeclared = replace(rows(), prediction_type=None)
    assert "macro_f1 is a metric of multiclass models: declare" in evaluate_gate(gate("macro_f1"), undeclared).reason


def test_without_a_champion_there_is_nothing_to_compare() -> None:
    result = evaluate_gate(
        gate("macro_f1", AgainstChampionGate, must_be="better"), replace(rows(), champion=NoChampion())
    )
    assert result.outcome == "passed"


def test_a_mean_auc_needs_two_rows_of_each_class() -> None:
    evidence = rows(count=400)
    label = np.where(LABEL == 3, 0, LABEL)
    clusters = RowClusters.from_columns({"day": evidence.clusters["day"]})
    with pytest.raises(NotComputedError, match=r"0 of 400 rows are of class number 4: AUC needs 2"):
        delong_ovr(label, np.asarray(evidence.candidate), np.asarray(evidence.champion), clusters)


def test_a_class_of_few_days_is_not_compared() -> None:
    """Its placements add up to 0 in its only day, so its error would be next to nothing."""
    evidence = rows()
    days = np.array(evidence.clusters["day"])  # type: ignore[index]
    label = np.where(np.asarray(evidence.label) == 3, 0.0, evidence.label)
    label[np.flatnonzero(days == days[0])[:9]] = 3.0
    result = evaluate_gate(gate("auc_ovr", AgainstChampionGate, must_be="better"), replace(evidence, label=label))
    assert result.outcome == "not_computed"
    assert "days, which weigh like 1.0 " in result.reason


def test_a_slice_without_a_class_is_reported_only() -> None:
    evidence = rows()
    shop = np.array(["x" if number % 2 else "y" for number in range(len(evidence.label))])
    label = np.where((shop == "x") & (np.asarray(evidence.label) == 3), 0.0, evidence.label)
    by_shop = replace(evidence, label=label, groups={"shop": shop.tolist()})
    slices = evaluate_gate(gate("auc_ovr", BySliceGate, group_by="shop", margin=0.2), by_shop)
    assert slices.outcome == "passed", slices.reason
    assert {part.name: part.is_judged for part in slices.slices} == {"x": False, "y": True}


def test_a_class_that_is_never_predicted_has_no_drift() -> None:
    evidence = rows()
    drift = PredictionDriftGate(statistic="psi", at_most=0.5)
    never = {
        name: np.column_stack([np.asarray(getattr(evidence, name))[:, :3], np.zeros(len(getattr(evidence, name)))])
        for name in ("candidate", "recent_predictions")
    }
    result = evaluate_gate(drift, replace(evidence, **never))
    assert result.outcome == "passed", result.reason
    assert "of 3 classes" in result.reason
    constant = {name: np.full((len(getattr(evidence, name)), 4), 0.25) for name in never}
    assert evaluate_gate(drift, replace(evidence, **constant)).outcome == "not_computed"
