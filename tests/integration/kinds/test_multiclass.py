"""A model of several classes from features to a champion, a challenger that proves itself, and a backtest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics

from evergreen import backtest, batch_predictions, evaluation, gates, ledger
from evergreen.lake import datasets
from evergreen.reports.backtest import BacktestResults
from evergreen.reports.formatting import format_number
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from support import parcels
from support.calendars import later

pytestmark = pytest.mark.integration

CLASSES = ("on time", "late", 'it\'s "lost"; <b>ü')
COSTS = [[0, 1, 1], [2, 0, 1], [20, 10, 0]]
TRAIN = """
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    label = [job.classes.index(value) for value in table[job.label].to_pylist()]
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=label, nthread=1)
    options = {"objective": "multi:softprob", "num_class": len(job.classes), "max_depth": 3, "nthread": 1}
    xgb.train(options, data, 20).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
GATES = [
    {"kind": "threshold", "metric": "macro_f1", "at_least": 0.3},
    {"kind": "threshold", "metric": "weighted_f1", "at_least": 0.3},
    {"kind": "threshold", "metric": "auc_ovr", "at_least": 0.55},
    {"kind": "threshold", "metric": "expected_cost", "costs": COSTS, "at_most": 5.0},
    {"kind": "baseline", "metric": "log_loss"},
    {"kind": "baseline", "metric": "accuracy", "baseline": "last_outcome"},
    {"kind": "fairness", "metric": "accuracy", "group_by": "shop", "at_most": 0.5},
    {"kind": "churn", "at_most": 0.9},
    {"kind": "by_slice", "metric": "macro_f1", "group_by": "shop"},
    {"kind": "against_champion", "metric": "log_loss", "must_be": "better", "margin": 0.1},
]


def outcomes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    number = np.digitize(size + distance + random.normal(scale=0.15, size=size.size), [0.8, 1.4])
    names = np.array(CLASSES)
    return {
        "outcome": names[number].tolist(),
        "last_outcome": [None if row % 7 == 0 else CLASSES[row % 3] for row in range(size.size)],
        "shop": [f"shop {row % 3}" for row in range(size.size)],
    }


@pytest.fixture
def model(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    options = {"kind": "multiclass", "classes": CLASSES, "gates": GATES}
    return parcels.write_parcels(tmp_path, monkeypatch, use_models, TRAIN, outcomes, **options)


def scores_of(model: ModelSpec, event: ledger.VerdictRecorded) -> tuple[datasets.Manifest, Any]:
    dataset = evaluation.evaluation_dataset(model)
    manifest = dataset.manifest(Path(event.evidence["evaluation"]).name)
    assert manifest
    return manifest, pq.read_table(dataset.file_path(manifest, "scores"))


def test_classes_from_features_to_a_champion_and_a_challenger(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = parcels.retrain_until_champion(model)
    first, second, last = events[0], events[1], events[-1]
    assert first.verdict.promote, first.verdict.reason
    assert second.verdict.is_inconclusive, second.verdict.reason
    assert last.verdict.promote, last.verdict.reason
    assert ledger.read_state(model.name).champion == "2"

    manifest, table = scores_of(model, first)
    assert str(table.schema.field("candidate").type) == "fixed_size_list<element: double>[3]"
    label = table["label"].to_numpy()
    probability = np.array(table["candidate"].to_pylist())
    names = np.array(CLASSES)[label.astype(int)]
    results = {result.gate: result for result in first.verdict.results}
    expected = {
        "macro_f1_threshold": metrics.f1_score(label, probability.argmax(axis=1), average="macro"),
        "weighted_f1_threshold": metrics.f1_score(label, probability.argmax(axis=1), average="weighted"),
        "auc_ovr_threshold": metrics.roc_auc_score(label, probability, multi_class="ovr"),
        "expected_cost_threshold": np.mean(
            [COSTS[int(y)][int(d)] for y, d in zip(label, (probability @ np.array(COSTS)).argmin(axis=1), strict=True)]
        ),
        "log_loss_prior_baseline": metrics.log_loss(label, probability),
    }
    assert {name: results[name].candidate for name in expected} == pytest.approx(expected, rel=1e-6)
    shares = np.array(table["baseline:prior"].to_pylist())
    assert (shares == shares[0]).all()
    assert shares[0].sum() == pytest.approx(1)
    certain = np.array(table["baseline:last_outcome"].to_pylist())
    assert certain[:3].tolist() == [shares[0].tolist(), [0, 1, 0], [0, 0, 1]]

    scoring_model = batch_predictions.find_scoring_model(ledger.read_state(model.name))
    assert scoring_model
    day = later(parcels.FIRST, 80)
    published = batch_predictions.publish_predictions(model, [day], scoring_model, rescore=False)[day]
    scored = pq.read_table(batch_predictions.open_predictions(model.name).file_path(published, "predictions"))
    assert scored.num_rows == parcels.ROWS
    columns = [scored[f"prediction_{number}"].to_numpy() for number in range(len(CLASSES))]
    assert np.sum(columns, axis=0) == pytest.approx(1, abs=1e-5)

    page = (settings().home / "lake" / first.evidence["report"]).read_text()
    assert "it&#39;s &#34;lost&#34;; &lt;b&gt;ü" in page
    assert "AUC against the rest" in page
    recall = metrics.recall_score(names, np.array(CLASSES)[probability.argmax(axis=1)], average=None, labels=CLASSES)
    for value in recall:
        assert f'<td class="number">{format_number(value)}</td>' in page

    monkeypatch.setenv("EVERGREEN_EXACT_ROWS", "100")
    settings.cache_clear()
    evidence = evaluation.load_evidence(model, manifest)
    streamed = gates.judge_evidence(model.gates, evidence)
    assert {r.gate: r.outcome for r in streamed.results} == {r.gate: r.outcome for r in first.verdict.results}


@pytest.mark.slow
def test_candidates_of_four_dates_become_a_backtest(model: ModelSpec) -> None:
    for week in range(4):
        as_of = later(parcels.FIRST, 30 + 7 * week)
        inputs = parcels.ALL_INPUTS if week else parcels.ALL_INPUTS[:1]
        report = backtest.add_candidate(model, as_of, *parcels.train(model, as_of, *inputs))
    results = BacktestResults.read(report.parent / "results.json")
    assert len(results.steps) == 3, "the first has other inputs"
    assert results.steps[0].promoted
    assert results.metric == "macro_f1"
    assert all(value and 0.3 < value <= 1 for value in results.policy("gates").metric_values)
    assert [period.positive_share for period in results.periods] == [None, None]
    compared = [result for result in results.steps[1].verdict.results if result.gate == "log_loss_against_champion"]
    assert compared[0].champion is not None


def test_a_label_that_is_no_class_is_a_fault(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    def with_others(*columns: Any) -> Mapping[str, Any]:
        spine = dict(outcomes(*columns))
        spine["outcome"] = ["stolen", *spine["outcome"][1:]]
        return spine

    forgiving = TRAIN.replace("job.classes.index(value)", "job.classes.index(value) if value in job.classes else 0")
    options = {"kind": "multiclass", "classes": CLASSES, "gates": GATES}
    model = parcels.write_parcels(tmp_path, monkeypatch, use_models, forgiving, with_others, **options)
    event = parcels.retrain(model, later(parcels.FIRST, 30), *parcels.ALL_INPUTS)
    assert not event.verdict.promote
    assert "7 of 420 labels are no declared class: 'stolen'; add them to `classes`" in event.verdict.reason
    page = (settings().home / "lake" / event.evidence["report"]).read_text()
    assert "&#39;stolen&#39;" in page
