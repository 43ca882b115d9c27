"""Labels of classes as numbers, in memory and written in batches; trivial predictions of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.evaluation import rows
from evergreen.evaluation.labels import compute_labels, write_labels
from evergreen.evaluation.row_files import EvidenceFile, read_numbers, write_rows
from evergreen.gates import MissingEvidence
from evergreen.spec.prediction_type import PredictionType

pytestmark = pytest.mark.unit

TEXTS = PredictionType(kind="multiclass", classes=("late", "on time", "it's"))
NUMBERS = PredictionType(kind="multiclass", classes=(7, -1, 0))


def labels(column: Any, prediction: PredictionType | None, folder: Path) -> tuple[Any, Any]:
    """The labels in memory, and those that are written."""
    table = pa.table({"label": column})
    pq.write_table(table, folder / "rows.parquet")
    written = write_labels(folder / "rows.parquet", prediction, folder)
    if not isinstance(written, MissingEvidence):
        written = pq.read_table(written.file)[written.name].to_numpy()
    return compute_labels(table["label"], prediction), written


@pytest.mark.parametrize(
    ("column", "prediction", "expected"),
    [
        (["on time", "late", "it's", "late"], TEXTS, [1, 0, 2, 0]),
        (pa.array(["it's", "late"], pa.large_string()), TEXTS, [2, 0]),
        (pa.array(["it's", "late"]).dictionary_encode(), TEXTS, [2, 0]),
        (pa.array([0, 7, -1], pa.int32()), NUMBERS, [2, 0, 1]),
        (pa.array([], pa.string()), TEXTS, []),
        ([0.5, 2.0], None, [0.5, 2.0]),
        ([0, 1], PredictionType(kind="binary"), [0, 1]),
    ],
)
def test_labels_are_numbered_as_declared(column: Any, prediction: Any, expected: list[float], tmp_path: Path) -> None:
    for found in labels(column, prediction, tmp_path):
        assert found.tolist() == expected


@pytest.mark.parametrize(
    ("column", "prediction", "says"),
    [
        (["late", "Late", "late"], TEXTS, "1 of 3 labels are no declared class: 'Late'; add them to `classes`"),
        (["late", None], TEXTS, "1 of 2 labels are no declared class: None"),
        (list("fedcba"), TEXTS, "'a', 'b', 'c', 'd', 'e' and 1 more"),
        ([7, 8], NUMBERS, "1 of 2 labels are no declared class: 8"),
        ([7, 8], TEXTS, "labels are int64, and the declared classes are texts"),
        (["7"], NUMBERS, "labels are string, and the declared classes are whole numbers"),
        ([7.0], NUMBERS, "labels are double, and the declared classes are whole numbers: let features.py return whole"),
        ([True], NUMBERS, "labels are bool"),
    ],
)
def test_other_labels_are_named(column: Any, prediction: PredictionType, says: str, tmp_path: Path) -> None:
    for found in labels(column, prediction, tmp_path):
        assert isinstance(found, MissingEvidence)
        assert says in found.problem


def baselines(train: Any, table: pa.Table, prediction: PredictionType, folder: Path, *names: str) -> list[Any]:
    """Return the predictions of each baseline, in memory and as they are written and read back in batches."""
    file, train_file = folder / "holdout.parquet", folder / "train.parquet"
    pq.write_table(table, file)
    pq.write_table(pa.table({"label": train}), train_file)
    in_memory = rows.compute_baselines(table, train_file, names, prediction)
    written = rows.write_baselines(file, train_file, names, folder, prediction)
    found = []
    for name in names:
        column = written[name]
        if isinstance(column, MissingEvidence):
            assert column == in_memory[name]
            found.append(column.problem)
            continue
        stored = write_rows(folder / f"{name}.parquet", {"value": column})
        batches = [values for [values], _ in EvidenceFile(stored).batches(["value"])]
        read_back = np.concatenate(batches)
        assert read_back.tolist() == np.asarray(in_memory[name]).tolist()
        assert read_numbers(pq.read_table(stored)["value"]).tolist() == read_back.tolist()
        found.append(read_back.tolist())
    return found


def test_classes_are_predicted_by_their_shares_or_by_a_column(tmp_path: Path) -> None:
    table = pa.table({"last": ["it's", None, "late"], "other": ["x", "late", None], "number": [1, 2, 3]})
    shares = [0.25, 0.75, 0.0]
    train = ["on time", "on time", "late", "on time", None]
    found = baselines(train, table, TEXTS, tmp_path, "prior", "last", "other", "number", "absent")
    assert found[:2] == [[shares] * 3, [[0, 0, 1], shares, [1, 0, 0]]]
    assert "the baseline 'other' predicts no class: its 1 of 2 labels are no declared class: 'x'" in found[2]
    assert "the baseline 'number' predicts no class: its labels are int64" in found[3]
    assert "the baseline 'absent' is no column of the holdout" in found[4]


def test_training_labels_of_no_class_have_no_shares(tmp_path: Path) -> None:
    table = pa.table({"last": ["late"]})
    assert "of the training rows 1 of 1 labels" in baselines(["x"], table, TEXTS, tmp_path, "prior")[0]
    assert "there are no training rows" in baselines(pa.array([], pa.string()), table, TEXTS, tmp_path, "prior")[0]
