"""A forecast of several horizons from features to a champion, a challenger that proves itself, and a backtest."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import backtest, batch_predictions, evaluation, gates, ledger
from evergreen.feature_store import training_sets
from evergreen.reports.backtest import BacktestResults
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from support import parcels
from support.calendars import DAYS, later
from support.daily_features import publish_tables

pytestmark = pytest.mark.integration

SHOPS = ("north", 'it\'s "south"', "ü")
ITEMS = ("bread", "milk", "tea")
HORIZONS = (1, 2, 3)
SEASON = 7
TRAIN = """
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    assert job.forecast.columns == ("shop", "product", "ahead"), job.forecast
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=table[job.label].to_numpy(), nthread=1)
    xgb.train({"max_depth": 3, "nthread": 1, "seed": job.seed}, data, 40).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
GATES = [
    {"kind": "threshold", "metric": "mase", "at_most": 1.0},
    {"kind": "threshold", "metric": "mase", "horizon": 3, "at_most": 1.0, "min_rows": 50, "name": "mase_at_3"},
    {"kind": "threshold", "metric": "smape", "at_most": 0.5},
    {"kind": "threshold", "metric": "r2", "at_least": 0.1},
    {"kind": "threshold", "metric": "poisson_deviance", "at_most": 10.0},
    {"kind": "baseline", "metric": "mase"},
    {"kind": "by_slice", "metric": "mae", "group_by": "ahead", "margin": 0.1, "min_rows": 50},
    {"kind": "against_champion", "metric": "mase", "must_be": "better", "margin": 0.05},
]
WEEK = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 8.0, 6.0])


def promotion(number: int) -> np.ndarray:
    """Return how much each series is promoted on a day, which is planned ahead."""
    return np.random.default_rng(number).random(len(SHOPS) * len(ITEMS))


def value(number: int) -> np.ndarray:
    """Return the value of each series on a day."""
    noise = np.random.default_rng(10_000 + number).normal(scale=0.7, size=len(SHOPS) * len(ITEMS))
    base = 10.0 + np.arange(noise.size)
    return base + WEEK[number % SEASON] + 6 * promotion(number) + noise


def publish(number: int, day: str) -> None:
    """Publish the forecasts that are made at the end of a day, of all series and horizons."""
    begins, instant = DAYS.start(day), pa.timestamp("us", "UTC")
    series = [(shop, product) for shop in SHOPS for product in ITEMS]
    rows = [(place, key, ahead) for ahead in HORIZONS for place, key in enumerate(series)]
    items = pa.array([1000 * number + row for row in range(len(rows))], pa.int64())
    spine = {
        "event_timestamp": pa.array([begins + timedelta(hours=23, minutes=30)] * len(rows), instant),
        "item": items,
        "shop": [shop for _, (shop, _), _ in rows],
        "product": [product for _, (_, product), _ in rows],
        "ahead": pa.array([ahead for _, _, ahead in rows], pa.int16()),
        "outcome": [value(number + ahead)[place] for place, _, ahead in rows],
        "label_known_at": pa.array([begins + timedelta(days=ahead, hours=23) for _, _, ahead in rows], instant),
    }
    seen = [np.mean([value(number + ahead - SEASON * k)[place] for k in (1, 2, 3)]) for place, _, ahead in rows]
    planned = [promotion(number + ahead)[place] for place, _, ahead in rows]
    known = {"event_timestamp": pa.array([begins] * len(rows), instant), "item": items, "size": seen}
    publish_tables("parcels", day, {"orders": spine, "items": known | {"distance": planned}})


@pytest.fixture
def model(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    options = {
        "kind": "forecast",
        "forecast": {"series": ["shop", "product"], "horizon": "ahead", "season": SEASON},
        "label_delay": "3d",
        "clusters": ["day"],
        "gates": GATES,
    }
    model = parcels.write_model(tmp_path, monkeypatch, use_models, TRAIN, **options)
    for number, day in enumerate(DAYS.periods_between(parcels.FIRST, parcels.LAST)):
        publish(number + 100, day)
    return model


def test_forecasts_from_features_to_a_challenger_and_a_backtest(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = parcels.retrain_until_champion(model)
    assert events[0].verdict.promote, events[0].verdict.reason
    assert events[-1].verdict.promote, events[-1].verdict.reason
    assert ledger.read_state(model.name).champion == "2"
    page = (settings().home / "lake" / events[1].evidence["report"]).read_text()
    assert "MASE" in page
    assert "seasonal naive" in page
    assert "Gain by day" in page

    dataset = evaluation.evaluation_dataset(model)
    manifest = dataset.manifest(Path(events[0].evidence["evaluation"]).name)
    assert manifest
    table = pq.read_table(dataset.file_path(manifest, "scores"))
    training_set = training_sets.training_set_dataset(model).manifest(f"as_of={later(parcels.FIRST, 30)}")
    assert training_set
    source = training_sets.training_set_dataset(model)
    holdout = pq.read_table(source.file_path(training_set, "holdout"))
    assert table["horizons"].to_pylist() == holdout["ahead"].to_pylist()
    first = DAYS.count(parcels.FIRST, training_set.inputs["holdout"])
    places = {key: number for number, key in enumerate((shop, item) for shop in SHOPS for item in ITEMS)}
    naive, scales = [], {}
    for day, shop, product, ahead in zip(
        *(holdout[name].to_pylist() for name in ("day", "shop", "product", "ahead")), strict=True
    ):
        number, place = 100 + DAYS.count(parcels.FIRST, str(day)), places[shop, product]
        naive.append(value(number + ahead - SEASON)[place])
        # From the first target on; the clocks of the tests are behind Tokyo's, where the holdout begins.
        known = [value(100 + n)[place] for n in range(1, first - 1)]
        scales[shop, product] = np.abs(np.subtract(known[SEASON:], known[:-SEASON])).mean()
    assert table["baseline:prior"].to_pylist() == pytest.approx(naive, rel=1e-12)
    keys = zip(holdout["shop"].to_pylist(), holdout["product"].to_pylist(), strict=True)
    scale = np.array([scales[key] for key in keys])
    assert table["scales"].to_pylist() == pytest.approx(scale.tolist(), rel=1e-12)

    error = np.abs(table["label"].to_numpy() - table["candidate"].to_numpy()) / scale
    results = {result.gate: result for result in events[0].verdict.results}
    assert results["mase_threshold"].candidate == pytest.approx(error.mean(), rel=1e-9)
    is_last = np.array(holdout["ahead"].to_pylist()) == 3
    assert results["mase_at_3"].candidate == pytest.approx(error[is_last].mean(), rel=1e-9)
    assert results["mase_at_3"].rows == is_last.sum() == 7 * len(places)

    monkeypatch.setenv("EVERGREEN_EXACT_ROWS", "100")
    settings.cache_clear()
    streamed = gates.judge_evidence(model.gates, evaluation.load_evidence(model, manifest))
    assert [r.outcome for r in streamed.results] == [r.outcome for r in events[0].verdict.results]

    scoring_model = batch_predictions.find_scoring_model(ledger.read_state(model.name))
    assert scoring_model
    day = later(parcels.FIRST, 80)
    published = batch_predictions.publish_predictions(model, [day], scoring_model, rescore=False)[day]
    scored = pq.read_table(batch_predictions.open_predictions(model.name).file_path(published, "predictions"))
    assert {"shop", "product", "ahead", "prediction"} <= set(scored.column_names)

    for week in range(3):
        as_of = later(parcels.FIRST, 30 + 7 * week)
        report = backtest.add_candidate(model, as_of, *parcels.train(model, as_of, *parcels.ALL_INPUTS))
    backtested = BacktestResults.read(report.parent / "results.json")
    assert backtested.steps[0].promoted
    assert backtested.metric == "mase"
    assert all(value and 0 < value < 1 for value in backtested.policy("gates").metric_values)
