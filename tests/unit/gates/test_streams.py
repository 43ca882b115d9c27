"""Rows that are read in batches are judged as those in memory are, and what their ranks do not tell counts against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest

from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    ChurnGate,
    CustomGate,
    Evidence,
    FairnessGate,
    Gate,
    GateResult,
    MissingEvidence,
    NoChampion,
    PredictionDriftGate,
    ThresholdGate,
    judge_evidence,
    streams,
)
from evergreen.gates.judged_rows import open_rows
from evergreen.gates.verdict import evaluate_gate
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

HOSTILE = ("AA", "", "a\nb", "ß" * 3, "0", "null", "é", "\N{ROCKET}", None)
CUT = 0.3


def paired(metric: str, **options: Any) -> list[Gate]:
    return [
        AgainstChampionGate(metric=metric, must_be="not_worse", margin=0.2, **options),
        BySliceGate(metric=metric, group_by="carrier", margin=0.05, **options),
    ]


AUC = AgainstChampionGate(metric="auc", must_be="better")
GATES: list[Gate] = [
    ThresholdGate(metric="auc", at_least=0.5),
    ThresholdGate(metric="calibration_error", at_most=0.2),
    ThresholdGate(metric="log_loss", at_most=0.01),
    *paired("auc"),
    *paired("log_loss"),
    *paired("brier"),
    *paired("rmse"),
    *paired("mae"),
    *paired("quantile_loss", quantile=0.4),
    *paired("poisson_deviance"),
    *paired("accuracy", cut=CUT),
    *paired("precision", cut=CUT),
    *paired("recall", cut=CUT),
    BaselineGate(metric="brier"),
    FairnessGate(group_by="carrier", cut=CUT, at_most=0.02),
    FairnessGate(metric="auc", group_by="carrier", at_most=0.5),
    FairnessGate(metric="calibration_error", group_by="carrier", at_most=0.5),
    PredictionDriftGate(at_most=5.0),
    PredictionDriftGate(statistic="ks", at_most=0.9),
    ChurnGate(at_most=0.5),
    ChurnGate(at_most=0.01, cut=CUT),
]


def rows(seed: int, count: int = 4_000, decimals: int = 12, ways: tuple[str, ...] = ("day",)) -> Evidence:
    """Labels and scores with ties where there are few decimals; a day and a plane have more rows than others."""
    rng = np.random.default_rng(seed)
    label = (rng.random(count) < 0.3).astype(np.int32)
    candidate, champion = (
        rng.normal(0.3 + shift * label, 0.15).clip(0.01, 0.99).round(decimals) for shift in (0.1, 0.09)
    )
    days = rng.integers(1, 13, count)
    days[: count // 20] = 7
    planes = rng.integers(0, 300, count)
    planes[::40] = 7
    clusters = {
        "day": [f"2013-03-{day:02}" for day in days],
        "plane": [f"N{plane}" for plane in planes],
    }
    return Evidence(
        label,
        candidate,
        champion,
        (date(2013, 3, 1), date(2013, 3, 13)),
        {way: clusters[way] for way in ways},
        groups={"carrier": [HOSTILE[code] for code in rng.integers(0, len(HOSTILE), count)]},
        baselines={"prior": np.full(count, 0.3)},
        recent_predictions=rng.beta(2, 5, 700).round(decimals),
    )


def assert_alike(streamed: GateResult, loaded: GateResult) -> None:
    def numbers(result: GateResult) -> list[Any]:
        parts = [(part.candidate, part.champion, *(part.interval or ())) for part in result.slices]
        own = (result.candidate, result.champion, result.day_correlation, *(result.interval or ()))
        return [number for part in (own, *parts) for number in part if number is not None]

    assert streamed.outcome == loaded.outcome, (streamed, loaded)
    assert numbers(streamed) == pytest.approx(numbers(loaded), rel=1e-9, abs=1e-9)
    assert (streamed.rows, streamed.days, streamed.alpha) == (loaded.rows, loaded.days, loaded.alpha)
    names = [[(part.name, part.rows, part.is_judged) for part in result.slices] for result in (streamed, loaded)]
    assert names[0] == names[1]


@pytest.mark.parametrize("ways", [("day",), ("plane",), ("day", "plane")], ids="+".join)
@pytest.mark.parametrize("decimals", [1, 12])
def test_batches_are_judged_as_rows_in_memory(decimals: int, ways: tuple[str, ...]) -> None:
    """With as many bins as values, nothing is rounded: only sums are added up in another order."""
    evidence = rows(decimals, decimals=decimals, ways=ways)
    streamed = stream(evidence, 777)
    for gate in GATES:
        expected = evaluate_gate(gate, evidence)
        assert expected.outcome != "not_computed", expected.reason
        assert_alike(evaluate_gate(gate, streamed), expected)


@pytest.mark.parametrize("champion", [NoChampion(), MissingEvidence("it has seen the holdout")])
def test_without_a_champion_batches_say_the_same(champion: Any) -> None:
    evidence = replace(rows(3), champion=champion)
    results = [judge_evidence([gate], stream(evidence)).results[0] for gate in GATES]
    for result, gate in zip(results, GATES, strict=True):
        expected = judge_evidence([gate], evidence).results[0]
        assert_alike(result, expected)
        assert result.reason == expected.reason


def faulty() -> Iterator[Evidence]:
    good = rows(5, 600)
    label, candidate = np.asarray(good.label).astype(float), np.asarray(good.candidate).copy()
    yield replace(good, label=np.where(np.arange(600) % 90, label, 2))
    yield replace(good, label=np.where(np.arange(600) % 90, label, np.nan))
    yield replace(good, label=np.zeros(600))
    yield replace(good, candidate=np.where(np.arange(600) % 70, candidate, np.nan))
    yield replace(good, candidate=np.where(np.arange(600) % 70, candidate, -np.inf))
    yield replace(good, candidate=candidate - 0.5)
    yield replace(good, candidate=np.full(600, 0.25))
    yield replace(good, champion=np.full(600, 0.25))
    yield replace(good, champion=good.candidate)
    yield replace(good, clusters={"day": [None, *good.clusters["day"][1:]]})  # type: ignore[index]
    yield replace(good, clusters={"day": MissingEvidence("no such column")})
    yield replace(good, clusters={})
    yield replace(good, clusters=dict.fromkeys("abc", good.clusters["day"]))
    yield replace(good, clusters={"day": ["2013-03-01"] * 600})
    yield replace(good, groups={"carrier": [None] * 600})
    yield replace(good, groups={"carrier": MissingEvidence("no such column")})
    yield replace(good, groups={})
    yield replace(good, baselines={"prior": MissingEvidence("no training rows")})
    yield replace(good, recent_predictions=np.full(700, 0.5))
    yield replace(good, recent_predictions=MissingEvidence("no day is unlabelled"))
    yield rows(5, 50)


@pytest.mark.parametrize("number", range(21))
def test_faults_of_batches_are_named_alike(number: int) -> None:
    evidence = list(faulty())[number]
    for gate in GATES:
        result, expected = (evaluate_gate(gate, shown) for shown in (stream(evidence, 100), evidence))
        assert result.outcome == expected.outcome
        if expected.outcome == "not_computed":
            assert (result.reason, result.rows) == (expected.reason, expected.rows)


@pytest.mark.parametrize("gate", [GATES[0], GATES[1], GATES[3]], ids=lambda gate: gate.name)
def test_fewer_bins_know_less_and_say_so(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = rows(8)
    exact = evaluate_gate(gate, evidence)
    monkeypatch.setattr(streams, "MAX_BINS", 50)
    coarse = evaluate_gate(gate, stream(evidence))
    assert coarse.candidate != exact.candidate
    assert coarse.candidate == pytest.approx(exact.candidate, abs=0.05)
    if exact.interval and coarse.interval:
        assert coarse.interval[0] < exact.interval[0] < exact.interval[1] < coarse.interval[1]
    else:
        assert "known to within" in coarse.reason


def test_a_gain_is_within_its_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_BINS", 50)
    for seed in range(5):
        evidence = rows(seed)
        gains = [
            open_rows(AUC, shown, {"champion": shown.champion}).measure_gain("champion")
            for shown in (evidence, stream(evidence))
        ]
        assert gains[0].resolution == 0
        assert 0 < abs(gains[1].gain - gains[0].gain) <= gains[1].resolution < 0.02


def test_a_limit_within_the_error_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = rows(8)
    monkeypatch.setattr(streams, "MAX_BINS", 50)
    value = evaluate_gate(GATES[0], stream(evidence)).candidate
    assert value is not None
    for limit, outcome in ((value - 0.05, "passed"), (value - 1e-4, "failed")):
        result = evaluate_gate(ThresholdGate(metric="auc", at_least=limit), stream(evidence))
        assert (result.candidate, result.outcome) == (value, outcome)
    spread = evaluate_gate(FairnessGate(metric="auc", group_by="carrier", at_most=0.9), stream(evidence)).candidate
    assert spread is not None
    close = FairnessGate(metric="auc", group_by="carrier", at_most=spread + 1e-4)
    assert evaluate_gate(close, stream(evidence)).outcome == "failed"
    assert evaluate_gate(close.model_copy(update={"at_most": spread + 0.1}), stream(evidence)).outcome == "passed"


def test_functions_of_the_model_folder_get_no_batches() -> None:
    """They are given all rows or none: half of them would be judged as if they were all."""
    evidence = stream(rows(1))
    for gate in (
        ThresholdGate(metric="statistics:fmean", higher_is_better=True, at_least=0.5),
        CustomGate(function="statistics:fmean"),
    ):
        result = evaluate_gate(gate, evidence)
        assert result.outcome == "not_computed"
        assert "statistics:fmean takes all" in result.reason
        assert "raise EVERGREEN_EXACT_ROWS to 4,000" in result.reason
        assert result.rows == 4_000


def test_too_many_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = rows(1, ways=("plane",))
    gate = GATES[5]
    monkeypatch.setattr(streams, "_MAX_NAMES", 20)
    assert "more than 20 values of plane, too many for rows" in evaluate_gate(gate, stream(evidence)).reason
    monkeypatch.undo()
    monkeypatch.setattr(streams, "_MAX_KEYS", 20)
    by_slice = BySliceGate(metric="log_loss", group_by="carrier")
    assert "more than 20 clusters in 9 groups" in evaluate_gate(by_slice, stream(evidence)).reason


def test_pairs_that_are_too_many_only_widen_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = rows(1, ways=("day", "plane"))
    for gate in (GATES[3], GATES[5]):
        exact = evaluate_gate(gate, evidence)
        monkeypatch.setattr(streams, "_MAX_KEYS", 600)  # more than planes, fewer than pairs
        wide = evaluate_gate(gate, stream(evidence, 500))
        monkeypatch.undo()
        assert exact.interval
        assert wide.interval
        assert wide.interval[0] < exact.interval[0] < exact.interval[1] < wide.interval[1]


def test_sums_merge_often_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 300, (2, 5_000))
    values = rng.integers(0, 10, 5_000).astype(float)
    monkeypatch.setattr(streams, "_MAX_KEYS", 1_000)
    sums = streams.KeyedSums()
    for part in np.array_split(np.arange(5_000), 50):
        sums.add([keys[0][part], keys[1][part]], [300, 300], [values[part], np.ones(part.size)])
    found, (totals, counts) = sums.result()
    pairs = list(zip(streams.split_key(found, 0, 2).tolist(), streams.split_key(found, 1, 2).tolist(), strict=True))
    expected: dict[tuple[int, int], float] = {}
    for one, other, value in zip(*keys.tolist(), values.tolist(), strict=True):
        expected[one, other] = expected.get((one, other), 0.0) + value
    assert pairs == sorted(expected)
    assert dict(zip(pairs, totals.tolist(), strict=True)) == expected
    assert counts.sum() == 5_000


def test_columns_of_other_rows_are_refused() -> None:
    evidence, other = stream(rows(1)), stream(rows(2))
    assert "some labels and scores" in evaluate_gate(GATES[0], replace(evidence, candidate=other.candidate)).reason
    assert "some labels and scores" in evaluate_gate(GATES[3], replace(evidence, champion=np.ones(4_000))).reason
    assert "in memory" in evaluate_gate(ChurnGate(at_most=0.5), replace(evidence, champion=other.champion)).reason
    assert "clusters by day are not" in evaluate_gate(GATES[5], replace(evidence, clusters=other.clusters)).reason
    assert "groups by carrier are not" in evaluate_gate(GATES[4], replace(evidence, groups=other.groups)).reason


def test_a_sample_for_plots_is_spread_evenly() -> None:
    evidence = replace(rows(1), horizons=np.arange(4_000) % 8, weights=np.arange(4_000.0))
    whole, stride = streams.sample_evidence(stream(evidence, 300), 4_000)
    assert stride == 1
    part, stride = streams.sample_evidence(stream(evidence, 300), 1_000)
    assert stride == 4
    chosen = np.asarray(part.weights).astype(int).tolist()
    assert 900 < len(chosen) < 1_100
    for sample, kept in ((whole, list(range(4_000))), (part, chosen)):
        for name in ("label", "champion", "horizons"):
            assert np.array_equal(getattr(sample, name), np.asarray(getattr(evidence, name))[kept])
        assert sample.clusters["day"] == [evidence.clusters["day"][row] for row in kept]  # type: ignore[index]
        assert sample.groups["carrier"] == [evidence.groups["carrier"][row] for row in kept]  # type: ignore[index]
        assert np.array_equal(sample.baselines["prior"], np.asarray(evidence.baselines["prior"])[kept])
    # Horizons that repeat every eighth row: a sample of every fourth would have two of them.
    assert np.bincount(np.asarray(part.horizons).astype(int)).min() > 80
    other = streams.sample_evidence(stream(evidence, 77), 1_000)[0]
    assert np.array_equal(other.champion, part.champion)  # type: ignore[arg-type]
    assert np.array_equal(part.recent_predictions, evidence.recent_predictions)
    assert streams.sample_evidence(evidence, 10)[0].label is evidence.label


def test_a_sample_keeps_no_batch_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SAMPLE_ROWS", 100)
    evidence = stream(rows(1))
    judged = open_rows(GATES[0], evidence)
    assert isinstance(judged, streams.StreamedRows)
    parts = judged.passes.counts.samples["candidate"]
    assert 60 < sum(part.size for part in parts) < 140
    assert all(part.base is None for part in parts)
