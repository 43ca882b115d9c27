"""A model of several quantiles from features to a champion, a challenger that proves itself, and a backtest."""

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

QUANTILES = (0.1, 0.5, 0.9)
TRAIN = """
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=table[job.label].to_numpy(), nthread=1)
    options = {"objective": "reg:quantileerror", "quantile_alpha": list(job.quantiles), "max_depth": 2, "nthread": 1}
    xgb.train(options, data, 40).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
GATES = [
    {"kind": "threshold", "metric": "quantile_loss", "at_most": 20.0},
    {"kind": "threshold", "metric": "quantile_loss", "quantile": 0.9, "at_most": 20.0, "name": "high_quantile"},
    {"kind": "threshold", "metric": "coverage_error", "at_most": 0.3},
    {"kind": "threshold", "metric": "crossing_rate", "at_most": 0.5},
    {"kind": "baseline", "metric": "quantile_loss"},
    {"kind": "baseline", "metric": "quantile_loss", "baseline": "last_weight"},
    {"kind": "by_slice", "metric": "interval_score", "group_by": "shop"},
    {"kind": "against_champion", "metric": "quantile_loss", "must_be": "better", "margin": 0.03},
]


def outcomes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    return {
        "outcome": 10 * size + 4 * distance + random.gamma(2, 1 + size, size=size.size),
        "last_weight": [None if row % 7 == 0 else float(row % 5) for row in range(size.size)],
        "shop": [f"shop {row % 3}" for row in range(size.size)],
    }


def test_quantiles_from_features_to_a_challenger_and_a_backtest(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    options = {"kind": "quantile", "quantiles": QUANTILES, "gates": GATES}
    model = parcels.write_parcels(tmp_path, monkeypatch, use_models, TRAIN, outcomes, **options)
    events = parcels.retrain_until_champion(model)
    assert events[0].verdict.promote, events[0].verdict.reason
    assert events[-1].verdict.promote, events[-1].verdict.reason
    assert ledger.read_state(model.name).champion == "2"
    results = {result.gate: result for result in events[1].verdict.results}
    assert results["interval_score_shop_by_slice"].champion is not None
    page = (settings().home / "lake" / events[1].evidence["report"]).read_text()
    assert "share of labels up to it" in page

    manifest = evaluation.evaluation_dataset(model).manifest(Path(events[0].evidence["evaluation"]).name)
    assert manifest
    evidence = evaluation.load_evidence(model, manifest)
    prior = np.asarray(evidence.baselines["prior"])
    assert prior.shape == (420, 3)
    assert (np.diff(prior[0]) > 0).all()
    assert np.asarray(evidence.baselines["last_weight"])[:2].tolist() == [prior[0].tolist(), [1.0] * 3]

    for week in range(3):
        as_of = later(parcels.FIRST, 30 + 7 * week)
        report = backtest.add_candidate(model, as_of, *parcels.train(model, as_of, *parcels.ALL_INPUTS))
    backtested = BacktestResults.read(report.parent / "results.json")
    assert backtested.steps[0].promoted
    assert all(value and value < 5 for value in backtested.policy("gates").metric_values)
