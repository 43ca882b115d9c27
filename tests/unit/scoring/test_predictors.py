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


def trees_of(objective: str) -> bytes:
    """A file of XGBoost's for an objective of that name, as its booster says."""
    booster = xgboost.train({"objective": "reg:squarederror"}, xgboost.DMatrix([[0.0]], label=[0.0]), 1)
    text = b"reg:squarederror"
    sized = b"SL" + len(text).to_bytes(8) + text
    name = objective.encode()
    return bytes(booster.save_raw("ubj")).replace(sized, b"SL" + len(name).to_bytes(8) + name)


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
        (graph(TensorProto.FLOAT16), r"cannot predict: distance is tensor\(float16\), not one of"),
        (graph(shape=("rows", 30)), r"takes 30 columns, not 1: distance"),
        (graph(shape=(5, 1)), r"distance has the shape \[5, 1\], not \[rows\] or \[rows, 1\]"),
        (graph(shape=(5, 3)), r"distance is tensor\(float\) of shape \[5, 3\], not of any number of rows"),
        (graph(shape=("rows", 1, 1)), r"distance has the shape \['rows', 1, 1\]"),
        (graph(shape=(1,)), r"distance has the shape \[1\]"),
        (graph(shape=()), r"distance has the shape \[\]"),
        (
            graph(nodes=(("Identity", "distance", "a"), ("Neg", "a", "b")), outputs=("a", "b")),
            r"it returns a \(tensor\(float\)\), b \(tensor\(float\)\): call one of them probabilities",
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
    with pytest.raises(ScoringError, match=r"holds no model.ubj or model.lgb or model.onnx"):
        predictions.load_model(tmp_path)
    trees(tmp_path)
    save(network(), tmp_path)
    with pytest.raises(ScoringError, match=r"holds model.ubj and model.onnx, not one model"):
        predictions.load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.ubj", b"\x80\x04not a model", "model.ubj is a pickle named .ubj"),
        ("model.ubj", b"{not a model", "model.ubj has a length that is no number"),
        (
            "model.ubj",
            trees_of("no such objective"),
            "model.ubj cannot be read: Unknown",
        ),  # without the time of the day
        ("model.lgb", b"hello", "model.lgb is no text file of LightGBM"),
        ("model.lgb", b"\x80\x04not a model", "model.lgb is a pickle named .lgb"),
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
    formats = ["xgboost", "lightgbm", "onnx", "onnxruntime"]
    done = subprocess.run([sys.executable, "-c", look % formats], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def columns_graph(output: str = "prediction", width: int | str = 3, type_: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model of one wide input, which returns the weighted sum of its columns."""
    weights = np.array([[1.0], [10.0], [100.0]])
    nodes = [helper.make_node("MatMul", ["all", "weights"], [output])]
    tensor = helper.make_tensor("weights", type_, weights.shape, weights.ravel())
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("all", type_, ["rows", width])],
            [helper.make_tensor_value_info(output, type_, ["rows", 1])],
            [tensor],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


WIDE = pa.table({"a": [1.0, None, 3.0], "b": pa.array([1, 2, 3], pa.int8()), "c": [True, False, True]})


@pytest.mark.parametrize("type_", [TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("width", [3, "columns"])
@pytest.mark.parametrize("named", [True, False])
def test_a_wide_input_takes_the_columns_in_their_order(
    tmp_path: Path, type_: int, width: int | str, named: bool
) -> None:
    model = columns_graph(width=width, type_=type_)
    if named:
        helper.set_model_props(model, {"columns": '["a", "b", "c"]'})
    save(model, tmp_path)
    assert score_table(tmp_path, WIDE.slice(2), ("a", "b", "c")).tolist() == [133]
    predictor = predictions.load_model(tmp_path)
    assert np.isnan(predictor.predict(WIDE)[1, 0])  # it is told which value is missing
    assert [predictor.mlflow_type(name) for name in WIDE.column_names] == ["double"] * 3
    if named:
        with pytest.raises(ScoringError, match="takes a, b, c, not c, b, a"):
            predictor.check_columns(["c", "b", "a"])
    if width == 3 or named:
        with pytest.raises(ScoringError, match=r"takes 3 columns, not 2: a, b|takes a, b, c, not a, b"):
            predictor.check_columns(["a", "b"])
    text = WIDE.set_column(0, "a", pa.array(["x"] * 3)).set_column(1, "b", pa.array(["y"] * 3))
    with pytest.raises(ScoringError, match="a is string, not a number; b is string, not a number"):
        predictor.predict(text)


@pytest.mark.parametrize("text", ["a", '["a"]', '["a", "b", 3]', "[" * 100_000, '{"a": 1}'])
def test_a_wide_input_with_other_names_is_refused(tmp_path: Path, text: str) -> None:
    model = columns_graph()
    helper.set_model_props(model, {"columns": text})
    save(model, tmp_path)
    with pytest.raises(ScoringError, match="its property columns"):
        predictions.load_model(tmp_path)


SCALARS = {
    TensorProto.DOUBLE: (pa.array([0.1, None]), "double"),
    TensorProto.INT32: (pa.array([7, -(2**31)]), "integer"),
    TensorProto.INT64: (pa.array([7, 2**62]), "long"),
    TensorProto.BOOL: (pa.array([True, False]), "boolean"),
}


@pytest.mark.parametrize("type_", SCALARS)
def test_inputs_of_each_type_get_their_values(tmp_path: Path, type_: int) -> None:
    values, mlflow_type = SCALARS[type_]
    nodes = [helper.make_node("Cast", ["value"], ["prediction"], to=TensorProto.DOUBLE)]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("value", type_, ["rows"])],
            [helper.make_tensor_value_info("prediction", TensorProto.DOUBLE, ["rows"])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    save(model, tmp_path)
    predictor = predictions.load_model(tmp_path)
    expected = [np.nan if value is None else float(value) for value in values.to_pylist()]
    assert np.array_equal(predictor.predict(pa.table({"value": values})), expected, equal_nan=True)
    assert predictor.mlflow_type("value") == mlflow_type
    if type_ == TensorProto.INT32:
        with pytest.raises(ScoringError, match="value is int64 and not whole numbers, as an int32 input takes"):
            predictor.predict(pa.table({"value": [2**31]}))
    if type_ == TensorProto.BOOL:
        for column, said in (([1, 0], "is int64, not a boolean"), ([True, None], "has missing values")):
            with pytest.raises(ScoringError, match=f"value {said}"):
                predictor.predict(pa.table({"value": column}))


def classifier(names: tuple[str, str], classes: int, **properties: str) -> onnx.ModelProto:
    """A model that returns a label and probabilities, as scikit-learn's exporter writes them."""
    shares = np.array([[0.1, 0.7, 0.2][:classes]], np.float32)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["a", "weights"], [names[1]]),
                helper.make_node("ArgMax", [names[1]], [names[0]], axis=1, keepdims=0),
            ],
            "graph",
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["rows", 1])],
            [
                helper.make_tensor_value_info(names[0], TensorProto.INT64, ["rows"]),
                helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ["rows", classes]),
            ],
            [helper.make_tensor("weights", TensorProto.FLOAT, shares.shape, shares.ravel())],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    helper.set_model_props(model, properties)
    return model


@pytest.mark.parametrize(
    "model",
    [
        classifier(("label", "probabilities"), 3),
        classifier(("output_label", "output_probability"), 3),
        classifier(("class", "shares"), 3, output="shares"),
    ],
)
def test_probabilities_are_taken_from_several_outputs(tmp_path: Path, model: onnx.ModelProto) -> None:
    save(model, tmp_path)
    predictor = predictions.load_model(tmp_path)
    table = pa.table({"a": [1.0, 2.0]})
    expected = np.array([[0.1, 0.7, 0.2], [0.2, 1.4, 0.4]])
    assert predictor.predict(table) == pytest.approx(expected)
    assert predictor.prepare_request(table)() == pytest.approx(expected)


def test_of_two_classes_the_second_is_predicted(tmp_path: Path) -> None:
    save(classifier(("label", "probabilities"), 2), tmp_path)
    assert score_table(tmp_path, pa.table({"a": [1.0, 0.5]}), ("a",)) == pytest.approx([0.7, 0.35])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (classifier(("class", "shares"), 2), "it returns class .*: call one of them probabilities, or name one in the"),
        (classifier(("a label", "shares"), 2, output="labels"), "its property output is 'labels', and it returns"),
        (classifier(("label", "shares"), 2, output="label"), "not one output of probabilities"),
    ],
)
def test_outputs_that_are_no_predictions_are_refused(tmp_path: Path, model: onnx.ModelProto, said: str) -> None:
    save(model, tmp_path)
    with pytest.raises(ScoringError, match=said):
        predictions.load_model(tmp_path)


def test_maps_of_probabilities_are_refused(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows_ = np.arange(6, dtype=np.float32).reshape(3, 2)
    save(to_onnx(LogisticRegression().fit(rows_, [0, 1, 1]), rows_), tmp_path)
    with pytest.raises(ScoringError, match=r'export the pipeline with options=\{"zipmap": False\}'):
        predictions.load_model(tmp_path)
    save(to_onnx(LogisticRegression().fit(rows_, [0, 1, 1]), rows_, options={"zipmap": False}), tmp_path)
    assert score_table(tmp_path, pa.table({"x": rows_[:, 0], "y": rows_[:, 1]}), ("x", "y")).shape == (3,)
