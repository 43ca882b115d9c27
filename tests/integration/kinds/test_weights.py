"""A model whose rows have weights, from features to a champion and a challenger that is better where it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics

from evergreen import backtest, evaluation, ledger
from evergreen.errors import RawDataError
from evergreen.feature_store import training_sets
from evergreen.reports.backtest import BacktestResults
from evergreen.spec.model import ModelSpec
from support import parcels
from support.calendars import later

pytestmark = pytest.mark.integration

TRAIN = """
import xgboost as xgb

from evergreen.training import open_training_rows
from evergreen.training.xgboost_rows import XGBoostRows


def fit(job, output, checkpoints):
    with open_training_rows(job) as rows:
        data = xgb.QuantileDMatrix(XGBoostRows(rows, job), nthread=1)
    assert data.get_weight().max() == 50, job.weight
    xgb.train({"max_depth": 3, "nthread": 1, "seed": job.seed}, data, 30).save_model(output / "model.ubj")
    return {"rows": float(data.num_row())}
"""
GATES = [
    {"kind": "threshold", "metric": "rmse", "at_most": 20.0},
    {"kind": "baseline", "metric": "mae"},
    {"kind": "by_slice", "metric": "mae", "group_by": "shop"},
    {"kind": "against_champion", "metric": "mae", "must_be": "better", "margin": 0.03},
    {
        "kind": "against_champion",
        "metric": "support.parcels:error_of_worthy",
        "columns": ["worth"],
        "higher_is_better": False,
        "must_be": "better",
    },
]


def outcomes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    # `distance` matters in the few rows that count fifty times only. Days and shops have equally many: else days would
    # weigh differently, and say less.
    is_heavy = np.arange(size.size) % 5 == 0
    return {
        "outcome": 10 * size + np.where(is_heavy, 5 * distance, 2.5) + random.normal(scale=0.5, size=size.size),
        "worth": np.where(is_heavy, 50, 1),
        "shop": [f"shop {row % 3}" for row in range(size.size)],
    }


def write(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Any, root: Path, spine: Any = outcomes) -> ModelSpec:
    options = {"kind": "regression", "weight": "worth", "gates": GATES}
    return parcels.write_parcels(root, monkeypatch, use_models, TRAIN, spine, **options)


def test_weights_from_features_to_a_challenger_and_a_backtest(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    model = write(home, monkeypatch, use_models, tmp_path)
    events = parcels.retrain_until_champion(model)
    assert events[0].verdict.promote, events[0].verdict.reason
    assert events[-1].verdict.promote, events[-1].verdict.reason
    assert ledger.read_state(model.name).champion == "2"

    dataset = evaluation.evaluation_dataset(model)
    manifest = dataset.manifest(Path(events[1].evidence["evaluation"]).name)
    assert manifest
    table = pq.read_table(dataset.file_path(manifest, "scores"))
    label, weights = (table[name].to_numpy() for name in ("label", "weights"))
    results = {result.gate: result for result in events[1].verdict.results}
    for gate, role in (("rmse_threshold", "candidate"), ("mae_against_champion", "champion")):
        reference = metrics.root_mean_squared_error if "rmse" in gate else metrics.mean_absolute_error
        expected = reference(label, table[role].to_numpy(), sample_weight=weights)
        assert getattr(results[gate], role) == pytest.approx(expected, rel=1e-9)
        assert getattr(results[gate], role) != pytest.approx(reference(label, table[role].to_numpy()), rel=0.01)
    heavy = weights > 1
    error = metrics.mean_absolute_error(label[heavy], table["champion"].to_numpy()[heavy])
    assert results["error_of_worthy_against_champion"].champion == pytest.approx(error, rel=1e-9)
    assert events[2:], "a look computes it again"
    source = training_sets.training_set_dataset(model)
    training_set = source.manifest(f"as_of={later(parcels.FIRST, 37)}")
    assert training_set
    train = pq.read_table(source.file_path(training_set, "train"))
    prior = np.average(train["label"].to_numpy(), weights=train["worth"].to_numpy())
    assert table["baseline:prior"][0].as_py() == pytest.approx(prior, rel=1e-12)

    for week in range(2):
        as_of = later(parcels.FIRST, 30 + 7 * week)
        report = backtest.add_candidate(model, as_of, *parcels.train(model, as_of, *parcels.ALL_INPUTS))
    backtested = BacktestResults.read(report.parent / "results.json")
    assert backtested.steps[0].promoted
    assert all(value and 0 < value < 5 for value in backtested.policy("gates").metric_values)


def test_weights_that_are_none_stop_a_training_set(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    def negative(*columns: Any) -> Mapping[str, Any]:
        spine = dict(outcomes(*columns))
        return spine | {"worth": [-1.0, None, *map(float, spine["worth"][2:])]}

    model = write(home, monkeypatch, use_models, tmp_path, negative)
    with pytest.raises(RawDataError, match="7 of 420 rows have a weight that is below 0") as error:
        training_sets.build_training_set(model, parcels.window(model, later(parcels.FIRST, 30)))
    assert "weight, train: 21 of 1,260 rows have a weight that is null" in str(error.value)
