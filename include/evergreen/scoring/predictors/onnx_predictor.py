"""Models in ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import types

from evergreen.errors import ScoringError
from evergreen.scoring.predictors.base import (
    Predictor,
    is_numeric,
    scoring_error,
    stable_message,
    to_float32,
    to_float64,
)

COLUMNS_PROPERTY = "columns"
"""Property of a model with one wide input: the names of its columns, as a list in JSON."""
OUTPUT_PROPERTY = "output"
"""Property of a model with several outputs: the name of the one that is the prediction."""

_PROBABILITIES = ("probabilities", "output_probability", "probability")
"""Names of the prediction among several outputs, those of scikit-learn's exporter first."""
_FLOATS = ("tensor(float)", "tensor(double)")


class OnnxPredictor(Predictor):
    """A graph with one input per column, of shape [rows] or [rows, 1]; or one wide input for all, [rows, columns].

    An input is a float or double (a missing one is NaN), a string (a missing one is empty), or an int32, int64 or bool
    (none may be missing). Everything before the first layer, such as looking up categories, is part of the graph.

    Of several outputs the prediction is the one that the property `output` names, or else the one named
    `probabilities`, `output_probability` or `probability`. Of two classes, as scikit-learn's exporter returns them
    beside a label, it is the probability of the second one.
    """

    library = "onnxruntime"
    mlflow_flavor = "onnx"

    def __init__(self, file: Path, threads: int | None = None):
        import onnxruntime

        super().__init__(file, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.use_deterministic_compute = True
        options.log_severity_level = 3  # errors: its warnings are for the author of the graph
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no other common class
            raise ScoringError(f"{file.name} cannot be read: {stable_message(error, file)}") from None
        properties = self._session.get_modelmeta().custom_metadata_map
        self._graph_inputs = self._session.get_inputs()
        self._wide = _find_wide_input(self._graph_inputs)
        self.is_positional = self._wide is not None
        problems = []
        if self._wide:
            names, problem = _wide_columns(self._wide, properties.get(COLUMNS_PROPERTY))
            self.input_columns = names
            problems += [problem] if problem else []
        else:
            self.input_columns = tuple(graph_input.name for graph_input in self._graph_inputs)
            problems += [problem for graph_input in self._graph_inputs for problem in _input_problems(graph_input)]
        outputs = self._session.get_outputs()
        chosen = _find_output(outputs, properties.get(OUTPUT_PROPERTY))
        if isinstance(chosen, str):
            problems.append(chosen)
        else:
            self._output = chosen.name
            self._takes_second_class = len(outputs) > 1 and list(chosen.shape[1:]) == [2]
        if problems:
            raise ScoringError(f"{file.name} cannot predict: {'; '.join(problems)}")

    def check_columns(self, columns: Sequence[str]) -> None:
        width = self._wide.shape[1] if self._wide else None
        if isinstance(width, int) and width != len(columns):
            raise ScoringError(f"{self._file.name} takes {width} columns, not {len(columns)}: {', '.join(columns)}")
        super().check_columns(columns)

    def predict(self, table: pa.Table) -> NDArray[Any]:
        try:
            request = self.prepare_request(table)
            return np.asarray(request())
        except ScoringError:
            raise
        except Exception as error:  # as above
            raise scoring_error(self._file, stable_message(error, self._file)) from None

    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        feed = self._input_feed(table)
        if self._takes_second_class:
            return lambda: self._session.run([self._output], feed)[0][:, 1]
        return lambda: self._session.run([self._output], feed)[0]

    def mlflow_type(self, name: str) -> str:
        graph_input = self._wide or next(item for item in self._graph_inputs if item.name == name)
        return _TENSOR_TYPES[graph_input.type].mlflow_type

    def save_model_arguments(self) -> Mapping[str, Any]:
        import onnx

        return {
            "onnx_model": onnx.load(self._file, load_external_data=False),
            "save_as_external_data": False,
            # As in evaluation. MLflow would try a GPU first, and warn if there is none.
            "onnx_execution_providers": ["CPUExecutionProvider"],
        }

    @classmethod
    def pip_requirement(cls, environment: Mapping[str, str]) -> str:  # noqa: ARG003 - training does not need it
        return f"onnxruntime=={version('onnxruntime')}"

    def _input_feed(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        """Return each column as the graph takes it."""
        inputs = (
            [(name, self._wide) for name in table.column_names]
            if self._wide
            else [(graph_input.name, graph_input) for graph_input in self._graph_inputs]
        )
        feeds, problems = {}, []
        for name, graph_input in inputs:
            try:
                values = _TENSOR_TYPES[graph_input.type].convert(table[name])
            except (pa.ArrowException, ValueError) as error:
                problems.append(f"{name} {error}")
            else:
                feeds[name] = values.reshape(-1, 1) if len(graph_input.shape) == 2 else values
        if problems:
            raise scoring_error(self._file, *problems)
        return {self._wide.name: np.hstack(list(feeds.values()))} if self._wide else feeds


def _find_wide_input(inputs: Sequence[Any]) -> Any:
    """Return the only input, if it is one of several columns, or of a number of columns that it does not say."""
    if len(inputs) != 1 or len(inputs[0].shape) != 2 or inputs[0].shape[1] == 1:
        return None
    return inputs[0]


def _wide_columns(wide: Any, text: str | None) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the columns of a wide input, none if they are not known, and what is wrong with it."""
    rows, width = wide.shape
    if isinstance(rows, int) or wide.type not in _TENSOR_TYPES:
        return (), f"{wide.name} is {wide.type} of shape {wide.shape}, not of any number of rows of {_TYPE_NAMES}"
    if text is None:
        return (), None
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return (), f"its property {COLUMNS_PROPERTY} is no list of names in JSON"
    if isinstance(width, int) and width != len(names):
        return (), f"its property {COLUMNS_PROPERTY} names {len(names)} columns, and {wide.name} has {width}"
    return tuple(names), None


def _find_output(outputs: Sequence[Any], declared: str | None) -> Any:
    """Return the output that is the prediction, or why there is none, as text."""
    names = ", ".join(f"{output.name} ({output.type})" for output in outputs)
    by_name = {output.name: output for output in outputs}
    if declared is not None and declared not in by_name:
        return f"its property {OUTPUT_PROPERTY} is {declared[:60]!r}, and it returns {names}"
    if len(outputs) == 1:
        chosen = outputs[0]
    else:
        name = declared or next((name for name in _PROBABILITIES if name in by_name), None)
        if name is None:
            return (
                f"it returns {names}: call one of them {_PROBABILITIES[0]}, or name one in the model's property "
                f"`{OUTPUT_PROPERTY}`"
            )
        chosen = by_name[name]
    if chosen.type.startswith("seq(map("):
        return f'{chosen.name} is {chosen.type}: export the pipeline with options={{"zipmap": False}}'
    if chosen.type not in _FLOATS:
        return f"it returns {names}, not one output of probabilities"
    return chosen


class _TensorType(NamedTuple):
    """The type of an ONNX input; `convert` raises ValueError or an Arrow error for columns of another type."""

    mlflow_type: str
    convert: Callable[[pa.ChunkedArray], NDArray[Any]]


def _to_whole(type_: pa.DataType, column: pa.ChunkedArray) -> NDArray[Any]:
    if not is_numeric(column.type):
        raise ValueError(f"is {column.type}, not a number")
    if column.null_count:
        raise ValueError(f"has missing values, which an {type_} input cannot hold")
    try:
        return column.cast(type_).to_numpy()
    except pa.ArrowInvalid:
        raise ValueError(f"is {column.type} and not whole numbers, as an {type_} input takes") from None


def _to_booleans(column: pa.ChunkedArray) -> NDArray[Any]:
    if not types.is_boolean(column.type):
        raise ValueError(f"is {column.type}, not a boolean")
    if column.null_count:
        raise ValueError("has missing values, which a bool input cannot hold")
    return column.to_numpy()


def _to_strings(column: pa.ChunkedArray) -> NDArray[Any]:
    values = column.type.value_type if types.is_dictionary(column.type) else column.type
    if not (types.is_string(values) or types.is_large_string(values) or types.is_null(values)):
        raise ValueError(f"is {column.type}, not text")
    return column.cast(pa.string()).fill_null("").to_numpy()


_TENSOR_TYPES: Mapping[str, _TensorType] = {
    "tensor(float)": _TensorType("double", to_float32),
    "tensor(double)": _TensorType("double", to_float64),
    "tensor(int64)": _TensorType("long", partial(_to_whole, pa.int64())),
    "tensor(int32)": _TensorType("integer", partial(_to_whole, pa.int32())),
    "tensor(bool)": _TensorType("boolean", _to_booleans),
    "tensor(string)": _TensorType("string", _to_strings),
}


_TYPE_NAMES = ", ".join(_TENSOR_TYPES)


def _input_problems(graph_input: Any) -> list[str]:
    """Return the problems of an input of an ONNX graph, as ONNX Runtime describes it."""
    problems = []
    if graph_input.type not in _TENSOR_TYPES:
        problems.append(f"{graph_input.name} is {graph_input.type}, not one of {_TYPE_NAMES}")
    rows, *rest = graph_input.shape or [0]
    if isinstance(rows, int) or rest not in ([], [1]):
        problems.append(
            f"{graph_input.name} has the shape {graph_input.shape}, not [rows] or [rows, 1] for a column, nor "
            "[rows, columns] for all"
        )
    return problems
