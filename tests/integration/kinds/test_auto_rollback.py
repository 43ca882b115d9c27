"""A champion that was promoted by a weak gate is rolled back by labels that mature: real models, Feast and MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics

from evergreen import ledger
from evergreen.errors import PromotionRefusedError
from evergreen.feature_store import training_sets
from evergreen.lake import datasets
from evergreen.ledger import RollbackRequested
from evergreen.monitoring.paired_periods import PairedPerformance
from evergreen.monitoring.service import monitor_periods
from evergreen.promotion import auto_rollback
from evergreen.registry import versions
from evergreen.spec.model import ModelSpec
from support import parcels
from support.calendars import later

pytestmark = pytest.mark.integration

TRAIN = """
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=table[job.label].to_numpy(), nthread=1)
    options = {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "seed": job.seed}
    xgb.train(options, data, 10).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
GATES = [{"kind": "threshold", "metric": "brier", "at_most": 0.5}]
POLICY = {"metric": "log_loss", "confidence": 0.9, "within": "14d", "min_days": 5}
DAYS = 6
FIRST = later(parcels.FIRST, 32)
SECOND = later(FIRST, 7)


def outcomes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    return {"outcome": (size + random.normal(scale=0.2, size=size.size) > 0.5).astype(np.int64)}


def log_losses(model: ModelSpec, day: str, *contents: str) -> list[float]:
    """Return the loss of each model on a day, by hand."""
    import xgboost as xgb

    rows = training_sets.build_look_set(model, parcels.window(model, later(day, 9)), day, later(day, 1))
    table = pq.read_table(training_sets.look_dataset(model).file_path(rows, "holdout"))
    losses = []
    for content in contents:
        with versions.open_model(model.name, content) as (folder, _):
            booster = xgb.Booster(model_file=folder / "model.ubj")
            names = list(versions.read_model_inputs(folder).column_names)
        score = booster.predict(xgb.DMatrix(table.select(names).to_pandas()))
        losses.append(float(metrics.log_loss(table["label"].to_numpy(), score)))
    return losses


def test_the_model_that_was_better_is_champion_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    model = parcels.write_parcels(
        tmp_path,
        monkeypatch,
        use_models,
        TRAIN,
        outcomes,
        kind="binary",
        gates=GATES,
        auto_rollback=POLICY,
        label_delay="1d",
    )
    for as_of, inputs in ((FIRST, "items__size"), (SECOND, "items__distance")):
        assert parcels.retrain(model, as_of, inputs).verdict.promote
    state = ledger.read_state(model.name)
    first, second = (tenure.content for tenure in state.tenures)
    end = later(SECOND, DAYS + 1)
    record = monitor_periods(model, end, "a test")
    assert record
    entry = auto_rollback.request_rollback(model, record, end, actor="a test")
    assert isinstance(entry.event, RollbackRequested)
    assert (entry.event.look.days, entry.event.rows) == (DAYS, DAYS * parcels.ROWS)

    dataset = datasets.open_dataset("performance/parcels")
    manifests = [dataset.manifest(name) for name in dataset.partitions() if name.startswith("pair=")]
    texts = [dataset.file_path(manifest, "pair").read_text() for manifest in manifests if manifest]
    measured = {item.period: item for item in map(PairedPerformance.model_validate_json, texts)}
    assert list(measured) == [later(SECOND, number) for number in range(DAYS)]
    day = measured[SECOND]
    means = [np.divide(*sums) for sums in (day.champion, day.previous)]
    assert means == pytest.approx(log_losses(model, SECOND, second, first), rel=1e-5)

    event = auto_rollback.roll_back(model, entry.number, actor="a test")
    assert (event.restored_version, event.barred_version) == ("1", "2")
    champion = versions.find_champion(model)
    assert champion
    assert champion.content == first
    with pytest.raises(PromotionRefusedError, match="was not promoted over another one"):
        auto_rollback.request_rollback(model, record, end, actor="a test")
