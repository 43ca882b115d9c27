"""What a real model costs in a real process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import xgboost

from evergreen.evaluation import serving_costs
from evergreen.gates.evidence import MissingEvidence
from evergreen.lake import datasets, fingerprints
from evergreen.spec import loader
from evergreen.spec.gates import ServingQuantity
from evergreen.training import candidates
from support import onnx_models

pytestmark = pytest.mark.integration

MODEL = loader.load_spec("flight_delay")
NAMES = ("a", "b", "c")
TABLE = pa.table({name: np.random.default_rng(n).random(700) for n, name in enumerate(NAMES)})


def published(features: tuple[str, ...] = NAMES, rounds: int = 10, depth: int = 3) -> datasets.Manifest:
    """A candidate that learned noise."""
    target, mark = candidates.candidate_dataset(MODEL), fingerprints.compute_fingerprint([features, rounds, depth])
    folder = target.stage("as_of=2013-01-18", mark)
    rows = np.random.default_rng(5).random((2000, len(NAMES)))
    data = xgboost.DMatrix(rows, label=rows[:, 0] > rows[:, 1], feature_names=list(NAMES))
    booster = xgboost.train({"max_depth": depth, "nthread": 1, "lambda": 0, "eta": 0.01}, data, rounds)
    booster.save_model(folder / "model.ubj")
    (folder / "result.json").write_text("{}")
    files = {file.name: file for file in folder.iterdir()}
    return target.publish("as_of=2013-01-18", mark, files, {"features": features})


def measured(candidate: datasets.Manifest, table: pa.Table = TABLE) -> Mapping[str, float]:
    found = serving_costs.measure_serving_costs(MODEL, candidate, table)
    assert not isinstance(found, MissingEvidence), found
    return found


def test_every_quantity_is_measured_and_grows_with_the_model(home: Path) -> None:
    small, large = measured(published()), measured(published(rounds=1500, depth=8))
    assert set(small) == set(large) == set(get_args(ServingQuantity))
    for found in (small, large):
        assert 0 < found["single_p50_ms"] <= found["single_p99_ms"]
        assert found["single_p50_ms"] < found["batch_p50_ms"] <= found["batch_p99_ms"]
    for quantity in ("size_mib", "load_ms", "batch_p50_ms", "memory_mib"):
        assert small[quantity] < large[quantity], quantity
    # Trees are held in memory as they are in the file, or wider, and never in a hundred times as much.
    assert large["size_mib"] / 4 < large["memory_mib"] < 100 * large["size_mib"]


def test_a_network_is_measured_as_it_takes_its_columns(home: Path) -> None:
    target, features = candidates.candidate_dataset(MODEL), tuple(onnx_models.COLUMNS)
    folder = target.stage("as_of=2013-01-18", "network")
    size = onnx_models.save(onnx_models.network(), folder).stat().st_size
    (folder / "result.json").write_text("{}")
    files = {file.name: file for file in folder.iterdir()}
    candidate = target.publish("as_of=2013-01-18", "network", files, {"features": features})
    found = measured(candidate, onnx_models.rows(70))
    assert set(found) == set(get_args(ServingQuantity))
    assert 0 < found["single_p50_ms"] <= found["single_p99_ms"]
    assert found["single_p50_ms"] < found["batch_p50_ms"]
    assert found["size_mib"] == size / 2**20


@pytest.mark.parametrize(
    ("table", "features", "problem"),
    [
        (TABLE.slice(0, 0), NAMES, "the holdout has no rows to predict"),
        (TABLE, ("a", "b", "nothing_like_it"), "the holdout lacks nothing_like_it"),
        (TABLE, ("a", "b"), "model.ubj takes a, b, c, not a, b"),
        (TABLE.set_column(0, "a", pa.array(["12"] * 700)), NAMES, "a is string, not a number"),
    ],
)
def test_what_stands_in_the_way_is_told(home: Path, table: pa.Table, features: tuple[str, ...], problem: str) -> None:
    found = serving_costs.measure_serving_costs(MODEL, published(features), table)
    assert isinstance(found, MissingEvidence)
    assert problem in found.problem


def test_a_model_that_cannot_be_loaded_is_told(home: Path) -> None:
    candidate = published()
    file = candidates.candidate_dataset(MODEL).file_path(candidate, "model.ubj")
    file.unlink()
    file.write_bytes(b"\x80\x04not a model")
    found = serving_costs.measure_serving_costs(MODEL, candidate, TABLE)
    assert isinstance(found, MissingEvidence)
    assert "model.ubj is a pickle" in found.problem
