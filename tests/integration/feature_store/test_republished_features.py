"""Training sets whose features are published again while they are read: made of one state, or of none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from evergreen.errors import InputsChangedError
from evergreen.feature_store import training_sets
from evergreen.lake import datasets
from evergreen.spec.model import ModelSpec
from support import parcels
from support.calendars import later

pytestmark = pytest.mark.integration

AS_OF = later(parcels.FIRST, 30)
CORRECTED = later(parcels.FIRST, 20)


def outcomes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    return {"outcome": size + distance}


@pytest.fixture
def model(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    gates = [{"kind": "threshold", "metric": "mae", "at_most": 9.0}]
    return parcels.write_parcels(tmp_path, monkeypatch, use_models, "", outcomes, kind="regression", gates=gates)


def publish_again(raise_by: float) -> None:
    """Publish a day again, with other outcomes."""
    dataset, partition = datasets.open_dataset("features/parcels"), datasets.period_partition(CORRECTED)
    manifest, fingerprint = dataset.manifest(partition), f"raised-by-{raise_by:g}"
    assert manifest
    files = {name: dataset.file_path(manifest, name) for name in manifest.files}
    orders = pq.read_table(files["orders"], partitioning=None)
    index = orders.column_names.index("outcome")
    files["orders"] = dataset.stage(partition, fingerprint) / "orders.parquet"
    pq.write_table(orders.set_column(index, "outcome", pc.add(orders["outcome"], raise_by)), files["orders"])
    dataset.publish(partition, fingerprint, files, manifest.inputs)


def republish(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Publish a day again after each of the first `times` joins; return the joins, as they are made."""
    join, joins = training_sets.join_features, list[int]()

    def join_and_republish(*arguments: Any) -> None:
        join(*arguments)
        joins.append(len(joins) + 1)
        if len(joins) <= times:
            publish_again(1000.0 + len(joins))

    monkeypatch.setattr(training_sets, "join_features", join_and_republish)
    return joins


def contents(model: ModelSpec, examples: datasets.Manifest, name: str) -> Any:
    return pq.read_table(training_sets.training_set_dataset(model).file_path(examples, name))


def test_a_training_set_has_the_features_that_are_there_in_the_end(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = training_sets.build_training_set(model, parcels.window(model, AS_OF))
    # What is published by now is found, so the read begins with features that were published since.
    publish_again(1.0)
    joins = republish(monkeypatch, times=2)
    examples = training_sets.build_training_set(model, parcels.window(model, AS_OF))
    assert joins == [1, 2, 3]
    partition = datasets.period_partition(CORRECTED)
    published = datasets.open_dataset("features/parcels").manifest(partition)
    assert published
    assert examples.inputs["features"][partition] == published.content_hash
    assert examples.inputs["features"][partition] != before.inputs["features"][partition]
    rows = contents(model, examples, "train")
    corrected = rows.filter([str(day) == CORRECTED for day in rows["day"].to_pylist()])
    assert corrected.num_rows == parcels.ROWS
    assert min(corrected["label"].to_pylist()) >= 2000, "rows of one state, the last"
    assert training_sets.build_training_set(model, parcels.window(model, AS_OF)) == examples


def test_features_that_never_stay_are_a_fault(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    joins = republish(monkeypatch, times=99)
    with pytest.raises(InputsChangedError, match="republished 3 times while they were read; clear this task"):
        training_sets.build_training_set(model, parcels.window(model, AS_OF))
    assert len(joins) == 3
    assert training_sets.newest_training_set(model) is None
    with pytest.raises(InputsChangedError, match="clear this task"):
        training_sets.build_look_set(model, parcels.window(model, AS_OF), CORRECTED, AS_OF)
    assert len(joins) == 6
