"""Models of each format give what their arithmetic says, or say why they cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from evergreen.errors import ScoringError
from evergreen.evaluation import score_table
from evergreen.scoring import predictions
from support.onnx_models import COLUMNS, expected, network, rows, save

pytestmark = pytest.mark.unit

FEATURES = tuple(COLUMNS)
TABLE = rows(1000)
NUMBERS = ("distance", "temperature", "hour")


def trees(folder: Path, **settings: object) -> xgboost.Booster:
    """Trees that have learned noise, as `model.ubj`."""
    settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1} | settings
    label = np.random.default_rng(1).integers(2, size=TABLE.num_rows)
    data = xgboost.DMatrix(TABLE.select(NUMBERS).to_pandas(), label=label)
    booster = xgboost.train(settings, data, 20)
    booster.save_model(folder / "model.ubj")
    return booster


@pytest.mark.parametrize("rank", [1, 2])
def test_a_network_gives_what_its_arithmetic_says(tmp_path: Path, rank: int) -> None:
    save(network(rank=rank), tmp_path)
    scores = score_table(tmp_path, TABLE, FEATURES)
    assert scores.dtype == np.float64
    assert scores == pytest.approx(expected(TABLE), abs=1e-6)


def test_trees_give_what_their_library_gives(tmp_path: Path) -> None:
    booster = trees(tmp_path)
    scores = score_table(tmp_path, TABLE, NUMBERS)
    assert scores.dtype == np.float64
    assert np.array_equal(scores, booster.predict(xgboost.DMatrix(TABLE.select(NUMBERS).to_pandas())))


@pytest.mark.parametrize("write", [lambda folder: save(network(), folder), trees])
def test_scores_do_not_depend_on_parts_threads_or_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    write(tmp_path)
    features = predictions.load_model(tmp_path).input_columns
    whole = score_table(tmp_path, TABLE, features)
    assert np.array_equal(whole, score_table(tmp_path, TABLE, features))
    one = predictions.load_model(tmp_path, threads=1).predict(TABLE.select(list(features)))
    assert np.array_equal(whole, one.reshape(-1))
    monkeypatch.setattr(predictions, "SCORING_BATCH_ROWS", 300)
    assert score_table(tmp_path, TABLE, features) == pytest.approx(whole, abs=1e-7)
    assert score_table(tmp_path, TABLE.slice(0, 0), features).shape == (0,)


@pytest.mark.parametrize("write", [lambda folder: save(network(rank=2), folder), trees])
def test_what_serving_times_are_the_predictions(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path)
    predictor = predictions.load_model(tmp_path, threads=1)
    inputs = TABLE.select(list(predictor.input_columns)).slice(0, 50)
    answered = np.concatenate([np.ravel(predictor.prepare_request(inputs.slice(n, 1))()) for n in range(50)])
    assert answered == pytest.approx(predictor.predict(inputs).reshape(-1), abs=1e-7)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("carrier", TABLE["carrier"].cast(pa.large_string())),
        ("carrier", TABLE["carrier"].combine_chunks().dictionary_encode()),
        ("hour", TABLE["hour"].cast(pa.float64())),
        ("hour", TABLE["hour"].cast(pa.int8())),
        ("distance", TABLE["distance"].cast(pa.float32())),
    ],
)
def test_a_network_takes_a_column_however_it_is_written_down(tmp_path: Path, name: str, column: pa.Array) -> None:
    save(network(), tmp_path)
    table = TABLE.set_column(FEATURES.index(name), name, column)
    assert np.array_equal(score_table(tmp_path, table, FEATURES), score_table(tmp_path, TABLE, FEATURES))


def test_a_column_without_any_value_is_missing_everywhere(tmp_path: Path) -> None:
    save(network(), tmp_path)
    table = TABLE
    for name in ("distance", "carrier"):
        table = table.set_column(FEATURES.index(name), name, pa.nulls(TABLE.num_rows))
    assert score_table(tmp_path, table, FEATURES) == pytest.approx(expected(table), abs=1e-6)


def replaced(**columns: object) -> pa.Table:
    table = TABLE
    for name, values in columns.items():
        table = table.set_column(FEATURES.index(name), name, pa.array([values] * TABLE.num_rows))
    return table


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (TABLE.drop_columns(["carrier", "hour"]), "the holdout lacks carrier, hour, inputs of the model"),
        (replaced(carrier=3), "carrier is int64, not text"),
        (
            replaced(distance="12", carrier=True),
            "distance is string, not a number; carrier is bool, not text",
        ),
        (replaced(hour=0.5), "hour is double and not whole numbers"),
        (replaced(hour=float("nan")), "hour is double and not whole numbers"),
        (TABLE.set_column(3, "hour", pa.array([None] * 1000, pa.int64())), "hour has missing values"),
    ],
)
def test_columns_that_a_network_cannot_take_are_named(tmp_path: Path, table: pa.Table, said: str) -> None:
    save(network(), tmp_path)
    with pytest.raises(ScoringError, match=said):
        score_table(tmp_path, table, FEATURES)


def test_text_is_no_number_to_trees_even_if_it_looks_like_one(tmp_path: Path) -> None:
    trees(tmp_path)
    with pytest.raises(ScoringError, match="model.ubj cannot score the rows: distance is string, not a number"):
        score_table(tmp_path, replaced(distance="12"), NUMBERS)


COLUMN_TYPES = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_infinity=False),
    pa.float64(): st.floats(-1e38, 1e38),
}


@settings(max_examples=30)
@given(data=st.data())
@pytest.mark.parametrize("column_type", COLUMN_TYPES, ids=str)
def test_trees_score_what_they_learned_from(
    tmp_path_factory: pytest.TempPathFactory, column_type: pa.DataType, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.none() | COLUMN_TYPES[column_type], min_size=4, max_size=20))
    table = pa.table({"value": pa.array(values, column_type), "row": np.arange(len(values), dtype=np.float64)})
    learned = xgboost.QuantileDMatrix(table, label=np.arange(len(values)) % 2)
    booster = xgboost.train({"min_child_weight": 0, "max_depth": 6, "nthread": 1}, learned, 3)
    folder = tmp_path_factory.mktemp("trees")
    booster.save_model(folder / "model.ubj")
    assert np.array_equal(score_table(folder, table, ("value", "row")), booster.predict(learned))


def test_trees_know_their_columns_by_their_order(tmp_path: Path) -> None:
    trees(tmp_path)
    said = "model.ubj takes distance, temperature, hour, not hour, temperature, distance"
    with pytest.raises(ScoringError, match=said):
        score_table(tmp_path, TABLE, NUMBERS[::-1])


def test_a_network_knows_its_columns_by_their_names(tmp_path: Path) -> None:
    save(network(), tmp_path)
    assert np.array_equal(score_table(tmp_path, TABLE, FEATURES[::-1]), score_table(tmp_path, TABLE, FEATURES))
    with pytest.raises(ScoringError, match="model.onnx takes .*, not distance, temperature, hour"):
        score_table(tmp_path, TABLE, NUMBERS)


def graph(
    input_type: int = TensorProto.FLOAT,
    shape: tuple[object, ...] = ("rows",),
    nodes: tuple[tuple[str, str, str], ...] = (("Identity", "distance", "probability"),),
    outputs: tuple[str, ...] = ("probability",),
    given: int | None = None,
) -> onnx.ModelProto:
    """A model of one input, `distance`, whose nodes (operator, input, output) stand in a line."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, [taken], [made]) for operator, taken, made in nodes],
            "graph",
            [helper.make_tensor_value_info("distance", input_type, list(shape))],
            [helper.make_tensor_value_info(name, given or input_type, None) for name in outputs],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (graph(TensorProto.DOUBLE), r"cannot predict: distance is tensor\(double\), not one of"),
        (graph(shape=("rows", 30)), r"distance has the shape \['rows', 30\], not \[rows\] or \[rows, 1\]"),
        (graph(shape=(1,)), r"distance has the shape \[1\]"),
        (graph(shape=()), r"distance has the shape \[\]"),
        (
            graph(nodes=(("Identity", "distance", "a"), ("Neg", "a", "b")), outputs=("a", "b")),
            r"it returns a \(tensor\(float\)\), b \(tensor\(float\)\), not one output of probabilities",
        ),
        (
            graph(nodes=(("Size", "distance", "probability"),), given=TensorProto.INT64),
            r"it returns probability \(tensor\(int64\)\), not one output of probabilities",
        ),
        (graph(nodes=(("NoSuchOperator", "distance", "probability"),)), "cannot be read: .*NoSuchOperator"),
        (graph(nodes=(("Size", "distance", "probability"),)), "cannot be read"),  # int64, said to be float
        (graph(nodes=(("ReduceMean", "distance", "probability"),)), r"returns \[1\] numbers for 1000 rows"),
        (graph(nodes=(("Log", "distance", "probability"),)), r"returns NaN or infinity for \d+ of 1,000 rows"),
    ],
)
def test_a_network_that_gives_no_probabilities_is_refused(tmp_path: Path, model: onnx.ModelProto, said: str) -> None:
    save(model, tmp_path)
    with pytest.raises(ScoringError, match=said):
        score_table(tmp_path, TABLE, ("distance",))


def test_trees_that_give_several_numbers_per_row_are_refused(tmp_path: Path) -> None:
    trees(tmp_path, objective="multi:softprob", num_class=3)
    with pytest.raises(ScoringError, match=r"returns \[1000, 3\] numbers for 1000 rows, not one for each"):
        score_table(tmp_path, TABLE, NUMBERS)


def test_a_folder_holds_one_model(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match=r"holds no model.ubj or model.onnx"):
        predictions.load_model(tmp_path)
    trees(tmp_path)
    save(network(), tmp_path)
    with pytest.raises(ScoringError, match=r"holds model.ubj and model.onnx, not one model"):
        predictions.load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.ubj", b"\x80\x04not a model", "model.ubj is a pickle named .ubj"),
        ("model.ubj", b"{not a model", "model.ubj cannot be read: Expecting"),  # without the time of the day
        ("model.onnx", b"\x80\x04not a model", "model.onnx is a pickle named .onnx"),
        ("model.onnx", b"not a model", "model.onnx is no ONNX model"),
        ("model.onnx", network().SerializeToString()[:-100], "model.onnx is no ONNX model"),
        ("model.onnx", b"\x08\x0a", "model.onnx cannot be read"),
    ],
)
def test_what_cannot_be_read_is_told_in_the_same_words_each_time(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScoringError, match=said) as refused:
        predictions.load_model(tmp_path)
    assert str(tmp_path) not in str(refused.value)


def test_a_network_with_numbers_outside_of_its_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(network(), folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(ScoringError, match=r"model.onnx has numbers of the model outside of it, in weights"):
        score_table(folder, TABLE, FEATURES)


def test_no_format_is_imported_before_a_model_of_it_is_loaded() -> None:
    look = "import sys, evergreen.evaluation.serving_costs; print([n for n in %r if n in sys.modules])"
    formats = ["xgboost", "onnx", "onnxruntime"]
    done = subprocess.run([sys.executable, "-c", look % formats], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
