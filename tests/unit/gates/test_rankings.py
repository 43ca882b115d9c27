"""Gates on rankings: metrics of queries against scikit-learn or their definition, and queries in the place of rows."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

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
from evergreen.gates.evidence import StreamedColumn
from evergreen.gates.queries import query_values
from evergreen.gates.verdict import evaluate_gate
from evergreen.reports.outputs import tabulate_outputs
from evergreen.spec.gates import MetricGate
from evergreen.spec.prediction_type import PredictionType
from support.streamed_evidence import stream

pytestmark = pytest.mark.unit

TYPE = PredictionType(kind="ranking")
QUERIES, DAYS = 240, 12


def gate(metric: str, k: int | None = None, kind: Any = ThresholdGate, **fields: Any) -> Any:
    if kind is ThresholdGate:
        fields["at_least"] = 0.2
    return kind(metric=metric, k=k, **fields)


def rows(seed: int = 0) -> Evidence:
    """Queries of 2 to 12 rows, of every day 20; every tenth without a relevant row; scores of any sign."""
    random = np.random.default_rng(seed)
    query = np.repeat(np.arange(QUERIES), random.integers(2, 13, size=QUERIES))
    label = np.where(query % 10 == 3, 0, random.choice(4, size=query.size, p=[0.6, 0.2, 0.1, 0.1])).astype(float)
    order = random.permutation(query.size)
    query, label = query[order], label[order]
    noise = random.normal(size=(3, query.size))
    return Evidence(
        label=label,
        candidate=label + noise[0] - 1,
        champion=label + 3 * noise[1],
        baselines={"popularity": 0.1 * label + noise[2]},
        queries=[f"q{number}" for number in query],
        days=(date(2024, 1, 1), date(2024, 1, 1 + DAYS)),
        clusters={"day": [f"2024-01-{1 + number * DAYS // QUERIES:02d}" for number in query]},
        groups={"shop": [None if number % 7 == 0 else f"s{number % 3}" for number in query]},
        prediction_type=TYPE,
    )


def by_query(evidence: Evidence, scores: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and scores of each query with a relevant row, in order of names."""
    names, label = np.asarray(evidence.queries), np.asarray(evidence.label)
    parts = [(label[names == name], np.asarray(scores)[names == name]) for name in np.unique(names)]
    return [part for part in parts if part[0].any()]


def first_places(label: np.ndarray, score: np.ndarray, k: int | None) -> list[float]:
    return [y for _, y in sorted(zip(-score, label, strict=True))][: k or label.size]


REFERENCES: dict[str, Any] = {
    "ndcg": lambda y, s, k: ndcg_score([y], [s], k=k),
    "map": lambda y, s, k: (
        sum(
            sum(x > 0 for x in first_places(y, s, place)) / place
            for place, x in enumerate(first_places(y, s, k), 1)
            if x > 0
        )
        / min((y > 0).sum(), k or y.size)
    ),
    "mrr": lambda y, s, k: next((1 / n for n, x in enumerate(first_places(y, s, k), 1) if x > 0), 0.0),
    "recall_at_k": lambda y, s, k: sum(x > 0 for x in first_places(y, s, k)) / (y > 0).sum(),
}


@pytest.mark.parametrize("k", [None, 1, 3, 50])
@pytest.mark.parametrize("name", REFERENCES)
def test_metrics_are_means_of_queries(name: str, k: int | None) -> None:
    if name == "recall_at_k" and k is None:
        return
    evidence = rows()
    expected = [REFERENCES[name](label, score, k) for label, score in by_query(evidence, evidence.candidate)]
    assert len(expected) < QUERIES
    result = evaluate_gate(gate(name, k), evidence)
    assert result.candidate == pytest.approx(np.mean(expected), rel=1e-12), result.reason
    assert result.rows == len(expected), "a row is a query"


def test_map_of_all_rows_is_that_of_scikit_learn() -> None:
    evidence = rows()
    expected = [
        label_ranking_average_precision_score([label > 0], [score])
        for label, score in by_query(evidence, evidence.candidate)
    ]
    assert evaluate_gate(gate("map"), evidence).candidate == pytest.approx(np.mean(expected), rel=1e-12)


def test_a_tie_puts_nothing_in_order() -> None:
    label, score, codes = np.array([0.0, 2, 1, 0]), np.array([1.0, 1, 1, 0]), np.zeros(4, dtype=np.intp)
    values = {name: query_values(gate(name, 3), label, score, codes).tolist() for name in REFERENCES}
    best = 2 / np.log2(2) + 1 / np.log2(3)
    assert values == {
        "ndcg": [pytest.approx((1 / np.log2(3) + 2 / np.log2(4)) / best)],
        "map": [pytest.approx((1 / 2 + 2 / 3) / 2)],
        "mrr": [0.5],
        "recall_at_k": [1.0],
    }
    assert np.isnan(query_values(gate("mrr"), np.zeros(4), score, codes)).all()


@pytest.mark.parametrize("name", REFERENCES)
def test_the_error_of_a_gain_is_that_of_leaving_out_days(name: str) -> None:
    evidence = rows()
    better = evaluate_gate(gate(name, 3, AgainstChampionGate, must_be="better", confidence=0.5), evidence)
    assert better.interval
    assert (better.rows, better.days) == (len(by_query(evidence, evidence.candidate)), DAYS)
    day_of = dict(zip(evidence.queries, evidence.clusters["day"], strict=True))  # type: ignore[arg-type]
    names = [name for name in np.unique(np.asarray(evidence.queries)) if int(str(name)[1:]) % 10 != 3]
    parts = [by_query(evidence, scores) for scores in (evidence.candidate, evidence.champion)]
    usable = [name for name in names if any(np.asarray(evidence.label)[np.asarray(evidence.queries) == name])]
    gains = np.array(
        [REFERENCES[name](*one, 3) - REFERENCES[name](*other, 3) for one, other in zip(*parts, strict=True)]
    )
    days = np.array([day_of[str(name)] for name in usable])
    baseline = evaluate_gate(
        gate(name, 3, BaselineGate, baseline="champion", confidence=0.8413447460685429),
        replace(evidence, baselines={"champion": evidence.champion}),
    )
    changes = np.array([gains[days != day].mean() for day in np.unique(days)]) - gains.mean()
    error = np.sqrt((DAYS - 1) / DAYS * (changes**2).sum())
    assert baseline.interval
    assert np.mean(baseline.interval) == pytest.approx(gains.mean(), rel=1e-9)
    assert (baseline.interval[1] - baseline.interval[0]) / 2 == pytest.approx(error, rel=0.06), "Student's t"


def test_the_better_ranking_is_found_by_every_metric_also_in_groups() -> None:
    evidence = rows()
    for name in REFERENCES:
        for one in (
            gate(name, 3, AgainstChampionGate, must_be="better"),
            gate(name, 3, BaselineGate, baseline="popularity"),
            gate(name, 3, BySliceGate, group_by="shop", min_rows=20),
            gate(name, 3, FairnessGate, group_by="shop", at_most=0.3, min_rows=20),
        ):
            result = evaluate_gate(one, evidence)
            assert result.outcome == "passed", result.reason
            if isinstance(one, BySliceGate | FairnessGate):
                assert [part.name for part in result.slices] == ["s0", "s1", "s2"]
                assert sum(part.rows for part in result.slices) < len(by_query(evidence, evidence.candidate))


def test_rows_in_any_order_give_the_same_verdict() -> None:
    evidence = rows()
    order = np.random.default_rng(1).permutation(len(np.asarray(evidence.label)))

    def shuffle(values: Any) -> Any:
        return np.asarray(values)[order] if isinstance(values, np.ndarray) else [values[n] for n in order]

    shuffled = replace(
        evidence,
        **{name: shuffle(getattr(evidence, name)) for name in ("label", "candidate", "champion", "queries")},
        clusters={"day": shuffle(evidence.clusters["day"])},
        groups={"shop": shuffle(evidence.groups["shop"])},
    )
    gates = [gate(name, 3) for name in REFERENCES]
    gates += [gate(name, 3, AgainstChampionGate, must_be="better") for name in REFERENCES]
    assert judge_evidence(gates, shuffled) == judge_evidence(gates, evidence)


def spoil(**fields: Any) -> Evidence:
    return replace(rows(), **fields)


SIZE = np.asarray(rows().label).size


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        (spoil(queries=MissingEvidence("no column")), "the queries are not known: no column"),
        (spoil(queries=["q"] * 3), "the queries are not one row of names, one for each label"),
        (spoil(queries=[None, *rows().queries[1:]]), f"1 of {SIZE:,} rows have no query: fill the column"),  # type: ignore[index]
        (spoil(clusters={"day": ["d"] * SIZE}, queries=["q"] * SIZE), "1 queries with a relevant row are too few"),
        (spoil(label=np.full(SIZE, -1.0)), "labels are below 0"),
        (spoil(label=np.zeros(SIZE)), "0 queries with a relevant row are too few"),
        (spoil(candidate=np.full(SIZE, np.nan)), "NaN or infinite"),
        (spoil(candidate=np.zeros(SIZE)), "a constant ranks nothing"),
        (spoil(candidate=np.zeros((SIZE, 2))), "the candidate's scores are not one row of numbers"),
        (spoil(candidate=np.arange(SIZE - 1)), f"{SIZE - 1:,} scores for {SIZE:,} labels"),
    ],
)
def test_faults_are_named(evidence: Evidence, says: str) -> None:
    result = evaluate_gate(replace_groups(gate("ndcg")), replace(evidence, groups={}))
    assert result.outcome == "not_computed"
    assert says in result.reason


def test_a_query_is_of_one_cluster_and_one_group() -> None:
    evidence = rows()
    day, shop = list(evidence.clusters["day"]), list(evidence.groups["shop"])  # type: ignore[arg-type]
    day[5], shop[5] = "2024-02-01", "elsewhere"
    split = replace(evidence, clusters={"day": day}, groups={"shop": shop})
    compared = evaluate_gate(gate("ndcg", kind=AgainstChampionGate, must_be="better"), split)
    assert "the clusters by day are not known: " in compared.reason
    assert "have another value than the first of their query" in compared.reason
    grouped = evaluate_gate(gate("ndcg", kind=FairnessGate, group_by="shop", at_most=0.9), split)
    assert "the groups by shop are not known: " in grouped.reason
    assert evaluate_gate(gate("ndcg"), split).outcome == "passed", "a limit needs neither"


def replace_groups(one: MetricGate) -> MetricGate:
    return one.model_copy(update={"min_rows": 30})


def test_a_ranking_needs_all_rows_and_an_order() -> None:
    result = evaluate_gate(gate("ndcg"), stream(rows()))
    assert result.reason.startswith("ndcg takes all labels and scores at once")
    assert "EVERGREEN_EXACT_ROWS" in result.reason
    prior = evaluate_gate(gate("ndcg", kind=BaselineGate), rows())
    assert "a constant ranks nothing: name a column" in prior.reason


def test_the_report_says_why_a_ranking_in_batches_has_no_table() -> None:
    evidence = rows()
    batches = stream(evidence).label
    assert isinstance(batches, StreamedColumn)
    for queries, says in ((StreamedColumn(batches.rows, "queries"), "in batches"), (MissingEvidence("lost"), "lost")):
        table = tabulate_outputs(replace(evidence, queries=queries))
        assert table
        assert not table.rows
        assert says in table.problems[0]
    assert tabulate_outputs(evidence).rows  # type: ignore[union-attr]  # a ranking has one


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"metric": "recall_at_k"}, "recall_at_k needs k"),
        ({"metric": "auc", "k": 3}, "auc has no k"),
        ({"metric": "ndcg", "k": 0}, "greater"),
    ],
)
def test_wrong_lengths_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ThresholdGate(at_least=0.5, **fields)
