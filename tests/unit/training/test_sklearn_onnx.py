"""A pipeline of scikit-learn becomes a graph that predicts the same from the columns as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from evergreen.scoring import predictions
from evergreen.training import sklearn_onnx
from evergreen.training.outcome import TrainerOutputError
from evergreen.training.sklearn_onnx import pipeline_frame, save_pipeline

pytestmark = pytest.mark.unit

ROWS = 300
_GENERATOR = np.random.default_rng(2)
TABLE = pa.table(
    {
        "größe": pa.array(np.where(_GENERATOR.random(ROWS) < 0.2, None, _GENERATOR.normal(size=ROWS)), pa.float64()),
        "store": pa.array(np.array(["Nord", "süd", "", None], object)[_GENERATOR.integers(4, size=ROWS)], pa.string()),
        "visits": _GENERATOR.integers(9, size=ROWS),
        "open": pa.array([None, True, False] * (ROWS // 3), pa.bool_()),
    }
)
CLASSES = _GENERATOR.integers(3, size=ROWS)


def fitted(estimator: Any, label: np.ndarray) -> Pipeline:
    # No tree behind a scaler: it would compare numbers that are rounded in another way.
    numbers = [SimpleImputer()] if "n_estimators" in estimator.get_params() else [SimpleImputer(), StandardScaler()]
    steps = make_column_transformer(
        (make_pipeline(*numbers), ["größe", "visits", "open"]),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["store"]),
    )
    return make_pipeline(steps, estimator).fit(pipeline_frame(TABLE), label)


@pytest.mark.parametrize(
    ("estimator", "label", "shape"),
    [
        (LogisticRegression(), CLASSES > 0, (ROWS, 1)),
        (LogisticRegression(), CLASSES, (ROWS, 3)),
        (LogisticRegression(), np.array(["a", "b", "c"])[CLASSES], (ROWS, 3)),
        (RandomForestClassifier(10, random_state=0), CLASSES > 0, (ROWS, 1)),
        (GradientBoostingRegressor(n_estimators=20), CLASSES * 1.5, (ROWS, 1)),
        (PoissonRegressor(), CLASSES, (ROWS, 1)),
    ],
)
def test_a_graph_predicts_what_the_pipeline_does(
    tmp_path: Path, estimator: Any, label: np.ndarray, shape: tuple[int, ...]
) -> None:
    pipeline = fitted(estimator, label)
    save_pipeline(pipeline, TABLE.slice(0, 50), tmp_path)
    predictor = predictions.load_model(tmp_path)
    assert set(predictor.input_columns) == set(TABLE.column_names)
    assert [predictor.mlflow_type(name) for name in TABLE.column_names] == ["double", "string", "double", "double"]
    new = TABLE.set_column(1, "store", pa.array(["unknown"] * ROWS))
    for table in (TABLE, new, TABLE.slice(3, 1)):
        frame = pipeline_frame(table)
        expected = pipeline.predict_proba(frame) if hasattr(pipeline, "predict_proba") else pipeline.predict(frame)
        expected = expected.reshape(len(frame), -1)
        expected = expected[:, 1:] if expected.shape[1] == 2 else expected
        actual = predictor.predict(table.select(predictor.input_columns))
        assert actual.shape == (len(frame), shape[1])
        assert actual == pytest.approx(expected, abs=1e-5)
    mlflow.onnx.save_model(path=str(tmp_path / "saved"), **predictor.save_model_arguments())
    answer = mlflow.pyfunc.load_model(str(tmp_path / "saved")).predict(pipeline_frame(TABLE))
    (values,) = answer.values() if isinstance(answer, dict) else (answer.to_numpy(),)
    assert np.ravel(values) == pytest.approx(np.ravel(predictor.predict(TABLE)), abs=1e-7)


@pytest.mark.parametrize(
    "pipeline", [LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())], ids=["alone", "scaled"]
)
def test_numbers_need_no_step_that_names_columns(tmp_path: Path, pipeline: Any) -> None:
    numbers = TABLE.select(["visits"]).append_column("size", pa.array(_GENERATOR.normal(size=ROWS)))
    pipeline.fit(pipeline_frame(numbers), CLASSES)
    save_pipeline(pipeline, numbers, tmp_path)
    predictor = predictions.load_model(tmp_path)
    assert predictor.predict(numbers) == pytest.approx(pipeline.predict_proba(pipeline_frame(numbers)), abs=1e-5)


def test_the_same_pipeline_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_pipeline(fitted(LogisticRegression(), CLASSES), TABLE, tmp_path / name)
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (tmp_path / "two" / "model.onnx").read_bytes()


def unknown() -> Pipeline:
    return fitted(make_pipeline(FunctionTransformer(np.sin), LogisticRegression()), CLASSES > 0)


def different() -> Pipeline:
    pipeline = fitted(LogisticRegression(), CLASSES > 0)
    pipeline.predict_proba = lambda frame: np.full((len(frame), 2), 0.5)
    return pipeline


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (unknown, "skl2onnx cannot export the pipeline: .* → use steps that it knows"),
        (different, r"the graph and the pipeline differ by up to 0\.\d+, most for .*store"),
    ],
)
def test_a_pipeline_that_cannot_be_exported_leaves_no_file(
    tmp_path: Path, make: Callable[[], Pipeline], said: str
) -> None:
    with pytest.raises(TrainerOutputError, match=said):
        save_pipeline(make(), TABLE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_exporter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(TrainerOutputError, match="skl2onnx is not in the trainer's environment → add skl2onnx"):
        save_pipeline(fitted(LogisticRegression(), CLASSES), TABLE, tmp_path)


def test_columns_that_are_neither_numbers_nor_text_are_named() -> None:
    table = pa.table({"at": pa.array([0], pa.timestamp("us")), "tags": pa.array([["a"]]), "x": [1]})
    with pytest.raises(ValueError, match=r"at is timestamp\[us\], .*; tags is list"):
        pipeline_frame(table)


def test_values_are_those_that_a_graph_is_given() -> None:
    frame = pipeline_frame(TABLE.slice(0, 0))
    assert list(frame.dtypes) == [np.float32, object, np.float32, np.float32]
    text = pa.table({"s": pa.array(["a", None, "a"]).dictionary_encode()})
    assert pipeline_frame(text)["s"].tolist() == ["a", "", "a"]
    assert sklearn_onnx.ONNX_FILE == "model.onnx"
    assert isinstance(frame, pd.DataFrame)
