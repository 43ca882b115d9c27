"""Trees grown by several attempts equal those grown by one."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import xgboost as xgb

from evergreen.errors import TrainingDataError
from evergreen.training import Job
from evergreen.training.outcome import TrainingPreempted
from evergreen_models.flight_delay.train import fit
from support.interruptions import StopAfter
from support.training_data import NUMBERS, table, trees_job, write

pytestmark = pytest.mark.unit

ROUNDS = 12


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    train = write(table(3_000), tmp_path_factory.mktemp("data") / "train.parquet", group_rows=1_000)
    return trees_job(train, rounds=ROUNDS, colsample_bylevel=0.8)


@pytest.fixture(scope="module")
def uninterrupted(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    fit(job, folder, StopAfter(folder))
    return folder / "model.ubj"


@pytest.mark.parametrize("steps", [[1], [5], [ROUNDS - 1], [ROUNDS], [2, 3, 9]])
def test_interrupted_training_gives_the_same_model(
    job: Job, uninterrupted: Path, tmp_path: Path, steps: list[int]
) -> None:
    for step in steps:
        with pytest.raises(TrainingPreempted):
            fit(job, tmp_path, StopAfter(tmp_path, step))
    metrics = fit(job, tmp_path, StopAfter(tmp_path))
    assert (tmp_path / "model.ubj").read_bytes() == uninterrupted.read_bytes()
    assert metrics["train_rows"] == 3_000


def test_rows_and_columns_are_sampled_in_each_round(job: Job, uninterrupted: Path) -> None:
    roots = xgb.Booster(model_file=uninterrupted).trees_to_dataframe().query("Node == 0")["Feature"]
    assert len(roots) == ROUNDS
    assert set(roots) > {roots.iloc[0]}


def test_model_names_its_inputs_and_loss_is_its_own(job: Job, uninterrupted: Path, tmp_path: Path) -> None:
    metrics = fit(job, tmp_path, StopAfter(tmp_path))
    booster, rows = xgb.Booster(model_file=uninterrupted), table(3_000)
    assert tuple(booster.feature_names) == NUMBERS
    data = xgb.DMatrix(rows.select(list(NUMBERS)).to_pandas(), label=rows["label"].to_numpy())
    loss = float(booster.eval(data).rpartition(":")[2])
    assert metrics["train_log_loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("value", [None, 2])
def test_invalid_labels_are_counted_and_refused(tmp_path: Path, value: int | None) -> None:
    rows = table(100)
    labels = pa.array([value, *rows["label"].to_pylist()[1:]], pa.int32())
    rows = rows.set_column(rows.column_names.index("label"), "label", labels)
    job = trees_job(write(rows, tmp_path / "train.parquet", group_rows=100))
    with pytest.raises(TrainingDataError, match=r"1 of 100 rows have a label that is neither 0 nor 1"):
        fit(job, tmp_path, StopAfter(tmp_path))


def test_empty_training_data_is_refused(tmp_path: Path) -> None:
    job = trees_job(write(table(0), tmp_path / "train.parquet", group_rows=100))
    with pytest.raises(TrainingDataError, match="has no rows"):
        fit(job, tmp_path, StopAfter(tmp_path))
