"""A model has to return the numbers of its kind for each row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import xgboost
from onnx import TensorProto, helper

from evergreen.errors import ScoringError
from evergreen.evaluation import score_table
from evergreen.scoring.predictions import SCORING_BATCH_ROWS, TableScorer
from evergreen.spec.prediction_type import PredictionType

pytestmark = pytest.mark.unit

FEATURES = ("x", "y")
CLASSES = PredictionType(kind="multiclass", classes=("a", "b", "c"))


def table(rows: int) -> pa.Table:
    return pa.table(dict(zip(FEATURES, np.random.default_rng(rows).random((2, rows)), strict=True)))


def save_trees(folder: Path, classes: int) -> xgboost.Booster:
    learned = table(300)
    data = xgboost.DMatrix(learned.to_pandas(), label=np.arange(300) % classes)
    options = {"objective": "multi:softprob", "num_class": classes, "max_depth": 3, "nthread": 1}
    booster = xgboost.train(options, data, 5)
    booster.save_model(folder / "model.ubj")
    return booster


@pytest.mark.parametrize("rows", [0, 1, SCORING_BATCH_ROWS + 5])
def test_several_numbers_per_row_are_those_of_the_library(rows: int, tmp_path: Path) -> None:
    booster = save_trees(tmp_path, 3)
    scores = score_table(tmp_path, table(rows), FEATURES, CLASSES)
    assert scores.shape == (rows, 3)
    assert scores.dtype == np.float64
    if rows:
        assert np.array_equal(scores, booster.predict(xgboost.DMatrix(table(rows).to_pandas())))


@pytest.mark.parametrize(
    ("prediction", "says"),
    [
        (CLASSES, r"returns \[10, 4\] numbers for 10 rows, not 3 numbers, one for each of the classes a, b, c"),
        (PredictionType(kind="binary"), r"returns \[10, 4\] numbers for 10 rows, not one for each"),
        (None, "not one for each"),
    ],
)
def test_another_number_of_numbers_is_named(prediction: PredictionType | None, says: str, tmp_path: Path) -> None:
    save_trees(tmp_path, 4)
    scorer = TableScorer(tmp_path, FEATURES, FEATURES, prediction)
    with pytest.raises(ScoringError, match=says):
        scorer.score(table(10))


def test_a_single_number_is_no_probability_of_each_class(tmp_path: Path) -> None:
    data = xgboost.DMatrix(table(50).to_pandas(), label=np.arange(50) % 2)
    xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, 2).save_model(tmp_path / "model.ubj")
    with pytest.raises(ScoringError, match=r"returns \[10\] numbers for 10 rows, not 3 numbers"):
        score_table(tmp_path, table(10), FEATURES, CLASSES)


def test_a_graph_that_gives_the_second_of_two_classes_is_explained(tmp_path: Path) -> None:
    """As scikit-learn's exporter writes it: a label, and probabilities of two classes."""
    inputs = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("label", "probabilities")]
    nodes = [helper.make_node("Identity", ["x"], [output.name]) for output in outputs]
    two = PredictionType(kind="multiclass", classes=("a", "b"))
    for count, said in ((2, "not 2 numbers.* declare the kind `binary`, or let the graph return"), (1, None)):
        graph = helper.make_graph(nodes[-count:], "g", [inputs], outputs[-count:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / "model.onnx")
        if said:
            with pytest.raises(ScoringError, match=said):
                score_table(tmp_path, table(10), FEATURES, two)
        else:
            assert score_table(tmp_path, table(10), FEATURES, two).shape == (10, 2)
