"""Writes a pipeline of scikit-learn as `model.onnx`, which holds no code.

The exporter is skl2onnx. It and scikit-learn are imported where they are used: they are in the trainer's environment,
or in that of the user's own image.
"""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.training.outcome import TrainerOutputError

if TYPE_CHECKING:
    import onnx
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

ONNX_FILE = "model.onnx"
OPSETS = {"": 18, "ai.onnx.ml": 3}
TOLERANCE = 1e-4
"""How far a prediction of the graph may be from that of the pipeline, of the larger of the two or 1: graphs compute
with 32 bits."""


def pipeline_frame(table: pa.Table) -> pd.DataFrame:
    """Return the columns as the graph will have them: to train on, so that pipeline and graph see the same values.

    Numbers and booleans are float32, a missing one is NaN; text is `str`, a missing one is empty.

    Raises:
        ValueError: a column is neither; all are named.
    """
    import pandas as pd
    import pyarrow as pa

    columns, problems = {}, []
    for field in table.schema:
        column = table[field.name]
        if _is_text(field.type):
            columns[field.name] = column.cast(pa.string()).fill_null("").to_numpy().astype(object)
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_boolean(field.type):
            columns[field.name] = column.cast(pa.float32(), safe=False).to_numpy()
        else:
            problems.append(f"{field.name} is {field.type}, neither a number nor text")
    if problems:
        raise ValueError("; ".join(problems))
    return pd.DataFrame(columns)


def save_pipeline(pipeline: Any, sample: pa.Table, output: Path) -> None:
    """Write a fitted pipeline, which takes `pipeline_frame`s, as `model.onnx` in the folder `output`.

    The graph has one input for each column of `sample`, by its name, and one output: what `predict` returns (n, 1), or
    the probabilities of a classifier (n, classes), of the second class only if there are two (n, 1). Nothing is written
    unless pipeline and graph agree on `sample`: give it rows with missing values and rare categories.

    Raises:
        TrainerOutputError: a package is missing, the exporter does not know a step of the pipeline, or its graph
            predicts something else.
    """
    convert, types_ = _exporter()
    frame = pipeline_frame(sample)
    is_classifier = hasattr(pipeline, "predict_proba")
    inputs = [
        (name, types_.StringTensorType([None, 1]) if values.dtype == object else types_.FloatTensorType([None, 1]))
        for name, values in frame.items()
    ]
    try:
        model = convert(
            exported := _with_columns(pipeline, frame),
            name="pipeline",  # or it is a random one
            initial_types=inputs,
            target_opset=OPSETS,
            options={id(exported): {"zipmap": False}} if is_classifier else None,
        )
    except Exception as error:  # of many classes
        raise TrainerOutputError(
            f"skl2onnx cannot export the pipeline: {type(error).__name__}: {' '.join(str(error).split())[:300]} → use "
            "steps that it knows (https://onnx.ai/sklearn-onnx/supported.html), or train trees with XGBoost or LightGBM"
        ) from None
    _flatten_inputs(model)
    expected = pipeline.predict_proba(frame) if is_classifier else pipeline.predict(frame)
    _keep_prediction(model, has_two_classes=is_classifier and expected.shape[1] == 2)
    content = model.SerializeToString()
    _check_agreement(content, frame, expected[:, 1:] if is_classifier and expected.shape[1] == 2 else expected)
    (output / ONNX_FILE).write_bytes(content)


def _exporter() -> tuple[Any, Any]:
    try:
        return import_module("skl2onnx").convert_sklearn, import_module("skl2onnx.common.data_types")
    except ImportError as error:
        raise TrainerOutputError(
            f"a pipeline cannot be exported: {error.name} is not in the trainer's environment → add skl2onnx and "
            "scikit-learn to its requirements (and to the spec's training_libraries)"
        ) from None


def _with_columns(pipeline: Any, frame: pd.DataFrame) -> Any:
    """Return a pipeline that begins with a step that takes columns one by one, as the graph has them."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    first = pipeline.steps[0][1] if isinstance(pipeline, Pipeline) else pipeline
    if isinstance(first, ColumnTransformer):
        return pipeline
    columns = ColumnTransformer([("columns", "passthrough", list(frame.columns))]).fit(frame)
    return Pipeline([("columns", columns), ("pipeline", pipeline)])


def _is_text(type_: pa.DataType) -> bool:
    import pyarrow as pa

    values = type_.value_type if pa.types.is_dictionary(type_) else type_
    return bool(pa.types.is_string(values) or pa.types.is_large_string(values))


def _flatten_inputs(model: onnx.ModelProto) -> None:
    """Make each input [rows] instead of [rows, 1]: a column, as MLflow hands it over."""
    import numpy as np
    from onnx import helper, numpy_helper

    shape = "evergreen_column_shape"
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1], np.int64), shape))
    used = {name for node in model.graph.node for name in node.input}
    for number, graph_input in enumerate(model.graph.input):
        inner = f"evergreen_column_{number}"
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name == graph_input.name:
                    node.input[position] = inner
        if graph_input.name in used:
            model.graph.node.insert(0, helper.make_node("Reshape", [graph_input.name, shape], [inner]))
        dims = graph_input.type.tensor_type.shape.dim
        dims[0].dim_param = "rows"
        del dims[1:]


def _keep_prediction(model: onnx.ModelProto, has_two_classes: bool) -> None:
    """Leave one output; of two classes, the probability of the second."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    prediction = model.graph.output[-1]
    if has_two_classes:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "evergreen_second"))
        model.graph.node.append(
            helper.make_node("Gather", [prediction.name, "evergreen_second"], ["probability"], axis=1)
        )
        prediction = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 1])
    only_output = type(prediction)()
    only_output.CopyFrom(prediction)
    del model.graph.output[:]
    model.graph.output.append(only_output)


def _check_agreement(content: bytes, frame: pd.DataFrame, expected: NDArray[Any]) -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {item.name: frame[item.name].to_numpy() for item in session.get_inputs()})
    expected = np.asarray(expected, np.float64).reshape(len(frame), -1)
    if actual.shape != expected.shape:
        raise TrainerOutputError(f"the graph predicts {list(actual.shape)}, and the pipeline {list(expected.shape)}")
    scale = np.maximum(1, np.maximum(np.abs(expected), np.abs(actual)))
    differences = np.abs(actual - expected) / scale
    worst = float(differences.max(initial=0))
    if not math.isfinite(worst) or worst > TOLERANCE:
        row = int(np.argmax(differences.max(axis=1)))
        values = json.dumps(frame.iloc[row].to_dict(), default=str)[:300]
        raise TrainerOutputError(
            f"the graph and the pipeline differ by up to {worst:g}, most for {values} → train on `pipeline_frame`, and "
            "leave out the step that differs"
        )
