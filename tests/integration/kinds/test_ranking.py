"""A ranking of rows in queries from features to a champion, a challenger that proves itself, and a backtest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergreen import backtest, evaluation, ledger
from evergreen.reports.backtest import BacktestResults
from evergreen.settings import settings
from support import parcels
from support.calendars import later

pytestmark = pytest.mark.integration

TRAIN = """
import numpy as np
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    table = table.sort_by([(job.query, "ascending")])
    query = np.unique(table[job.query].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    data = xgb.QuantileDMatrix(
        table.select(list(job.features)), label=table[job.label].to_numpy(), qid=query, nthread=1
    )
    options = {"objective": "rank:ndcg", "max_depth": 2, "nthread": 1, "seed": job.seed}
    xgb.train(options, data, 20).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
GATES = [
    {"kind": "threshold", "metric": "ndcg", "k": 3, "at_least": 0.3, "min_rows": 50},
    {"kind": "threshold", "metric": "map", "at_least": 0.3, "min_rows": 50},
    {"kind": "threshold", "metric": "recall_at_k", "k": 3, "at_least": 0.3, "min_rows": 50},
    {"kind": "baseline", "metric": "mrr", "baseline": "popularity", "min_rows": 50},
    {"kind": "against_champion", "metric": "ndcg", "must_be": "better", "margin": 0.03, "min_rows": 50},
]
PER_QUERY = 5


def outcomes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    want = size + distance + random.normal(scale=0.1, size=size.size)
    return {
        "outcome": np.digitize(want, [1.1, 1.5]).tolist(),
        "popularity": [None if row % 4 == 0 else float(row % 3) for row in range(size.size)],
        "session": [f"{int(1e6 * size[0])}-{row // PER_QUERY}" for row in range(size.size)],
    }


def test_rankings_from_features_to_a_challenger_and_a_backtest(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    options = {"kind": "ranking", "query": "session", "gates": GATES}
    model = parcels.write_parcels(tmp_path, monkeypatch, use_models, TRAIN, outcomes, **options)
    events = parcels.retrain_until_champion(model)
    assert events[0].verdict.promote, events[0].verdict.reason
    assert events[-1].verdict.promote, events[-1].verdict.reason
    assert ledger.read_state(model.name).champion == "2"
    results = {result.gate: result for result in events[1].verdict.results}
    comparison = results["ndcg_against_champion"]
    assert comparison.days == 7
    assert 50 < comparison.rows <= 7 * parcels.ROWS // PER_QUERY
    page = (settings().home / "lake" / events[1].evidence["report"]).read_text()
    assert "first 10" in page
    assert "Gain by day" in page

    manifest = evaluation.evaluation_dataset(model).manifest(Path(events[0].evidence["evaluation"]).name)
    assert manifest
    evidence = evaluation.load_evidence(model, manifest)
    assert len(set(evidence.queries)) == 7 * parcels.ROWS // PER_QUERY  # type: ignore[arg-type]
    assert np.asarray(evidence.baselines["popularity"])[:3].tolist() == [np.finfo(np.float64).min, 1.0, 2.0]

    for week in range(3):
        as_of = later(parcels.FIRST, 30 + 7 * week)
        report = backtest.add_candidate(model, as_of, *parcels.train(model, as_of, *parcels.ALL_INPUTS))
    backtested = BacktestResults.read(report.parent / "results.json")
    assert backtested.steps[0].promoted
    assert all(value and 0.3 < value < 1 for value in backtested.policy("gates").metric_values)
