"""Loads models and predicts: one class per file format, chosen by the name of the model's file.

To add a format, add a class here and a check of its files in `evergreen.scoring.formats`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import types

from evergreen.errors import ScoringError, first_line


class Predictor(ABC):
    """A model, loaded from its file.

    Tables have exactly the columns that it learned from, in that order.
    """

    library: ClassVar[str]
    """The module that runs it, imported only to load a model: it may take a second."""
    mlflow_flavor: ClassVar[str]
    """The module of `mlflow` that writes such a model."""
    is_positional: ClassVar[bool]
    """Whether it identifies its inputs by their order, not by their names."""
    input_columns: tuple[str, ...]
    """The columns it takes, as stored in its file; empty if they are not."""

    @abstractmethod
    def __init__(self, file: Path, threads: int | None = None):
        """Load `file`, to predict on this many threads; None leaves their number to the library.

        Raises:
            ScoringError: it cannot be read, or is not a model that takes columns and returns probabilities.
        """
        self._file = file

    def check_columns(self, columns: Sequence[str]) -> None:
        """Check that the model takes these columns.

        Raises:
            ScoringError: they are others, or in another order if the model is positional.
        """
        comparable = list if self.is_positional else sorted
        if self.input_columns and comparable(self.input_columns) != comparable(columns):
            raise ScoringError(f"{self._file.name} takes {', '.join(self.input_columns)}, not {', '.join(columns)}")

    @abstractmethod
    def predict(self, table: pa.Table) -> NDArray[Any]:
        """Return the model's output for the rows of `table`, (n, …); callers must check its shape.

        Raises:
            ScoringError: columns are of a type that it cannot take; all are named.
        """

    @abstractmethod
    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        """Return a function that predicts these rows, converted already; raises a ScoringError as `predict` does."""

    @abstractmethod
    def mlflow_type(self, name: str) -> str:
        """Return the MLflow type of the input `name`."""

    @abstractmethod
    def save_model_arguments(self) -> Mapping[str, Any]:
        """Return the arguments of the flavor's `save_model`, model included, to write the same file again."""

    @classmethod
    @abstractmethod
    def pip_requirement(cls, environment: Mapping[str, str]) -> str:
        """Return the pip requirement to run it; `environment` has the versions of its training."""


class XGBoostPredictor(Predictor):
    """Trees, or a linear model, in UBJSON. All inputs are numbers; a missing one is NaN."""

    library = "xgboost"
    mlflow_flavor = "xgboost"
    is_positional = True

    def __init__(self, file: Path, threads: int | None = None):
        import xgboost

        super().__init__(file, threads)
        try:
            self._booster = xgboost.Booster({"nthread": threads} if threads else None, model_file=file)
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise ScoringError(f"{file.name} cannot be read: {_stable_message(error, file)}") from None
        self.input_columns = tuple(self._booster.feature_names or ())

    def predict(self, table: pa.Table) -> NDArray[Any]:
        import xgboost

        rows = self._to_rows(table)
        try:
            return self._booster.predict(xgboost.DMatrix(rows, feature_names=table.column_names))
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise _scoring_error(self._file, _stable_message(error, self._file)) from None

    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        return partial(self._booster.inplace_predict, self._to_rows(table))

    def mlflow_type(self, name: str) -> str:  # noqa: ARG002 - all are numbers
        return "double"

    def save_model_arguments(self) -> Mapping[str, Any]:
        return {"xgb_model": self._booster, "model_format": "ubj"}

    @classmethod
    def pip_requirement(cls, environment: Mapping[str, str]) -> str:
        # Wheels with and without CUDA have two names; the server chooses one.
        for name in ("xgboost-cpu", "xgboost"):
            if name in environment:
                return f"xgboost=={environment[name]}"
        import xgboost

        return f"xgboost=={xgboost.__version__}"

    def _to_rows(self, table: pa.Table) -> NDArray[np.float32]:
        """Return what the library itself makes of the columns of an Arrow table. pandas has other nulls."""
        wrong = [f"{field.name} is {field.type}, not a number" for field in table.schema if not _is_numeric(field.type)]
        if wrong:
            raise _scoring_error(self._file, *wrong)
        return np.column_stack([_to_float32(column) for column in table.columns])


class OnnxPredictor(Predictor):
    """A graph with one input per column, of shape [rows] or [rows, 1], and one output, the probabilities.

    An input is a float (a missing one is NaN), a string (a missing one is empty) or an int64 (none may be missing).
    Everything before the first layer, such as looking up categories, is part of the graph.
    """

    library = "onnxruntime"
    mlflow_flavor = "onnx"
    is_positional = False

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
            raise ScoringError(f"{file.name} cannot be read: {_stable_message(error, file)}") from None
        self._graph_inputs = self._session.get_inputs()
        self.input_columns = tuple(graph_input.name for graph_input in self._graph_inputs)
        outputs = self._session.get_outputs()
        problems = [problem for graph_input in self._graph_inputs for problem in _input_problems(graph_input)]
        if [output.type for output in outputs] not in (["tensor(float)"], ["tensor(double)"]):
            names = ", ".join(f"{output.name} ({output.type})" for output in outputs)
            problems.append(f"it returns {names}, not one output of probabilities")
        if problems:
            raise ScoringError(f"{file.name} cannot predict: {'; '.join(problems)}")

    def predict(self, table: pa.Table) -> NDArray[Any]:
        feeds = self._input_feed(table)
        try:
            (output,) = self._session.run(None, feeds)
        except Exception as error:  # as above
            raise _scoring_error(self._file, _stable_message(error, self._file)) from None
        return np.asarray(output)

    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        return partial(self._session.run, None, self._input_feed(table))

    def mlflow_type(self, name: str) -> str:
        return next(_TENSOR_TYPES[item.type].mlflow_type for item in self._graph_inputs if item.name == name)

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
        feeds, problems = {}, []
        for graph_input in self._graph_inputs:
            name = graph_input.name
            try:
                values = _TENSOR_TYPES[graph_input.type].convert(table[name])
            except (pa.ArrowException, ValueError) as error:
                problems.append(f"{name} {error}")
            else:
                feeds[name] = values.reshape(-1, 1) if len(graph_input.shape) == 2 else values
        if problems:
            raise _scoring_error(self._file, *problems)
        return feeds


PREDICTORS: Mapping[str, type[Predictor]] = {"model.ubj": XGBoostPredictor, "model.onnx": OnnxPredictor}


class _TensorType(NamedTuple):
    """The type of an ONNX input; `convert` raises ValueError or an Arrow error for columns of another type."""

    mlflow_type: str
    convert: Callable[[pa.ChunkedArray], NDArray[Any]]


def _to_float32(column: pa.ChunkedArray) -> NDArray[Any]:
    if not (_is_numeric(column.type) or types.is_null(column.type)):
        raise ValueError(f"is {column.type}, not a number")
    return column.cast(pa.float32(), safe=False).to_numpy()


def _to_int64(column: pa.ChunkedArray) -> NDArray[Any]:
    if not _is_numeric(column.type):
        raise ValueError(f"is {column.type}, not a number")
    if column.null_count:
        raise ValueError("has missing values, which an int64 input cannot hold")
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise ValueError(f"is {column.type} and not whole numbers, as an int64 input takes") from None


def _to_strings(column: pa.ChunkedArray) -> NDArray[Any]:
    values = column.type.value_type if types.is_dictionary(column.type) else column.type
    if not (types.is_string(values) or types.is_large_string(values) or types.is_null(values)):
        raise ValueError(f"is {column.type}, not text")
    return column.cast(pa.string()).fill_null("").to_numpy()


_TENSOR_TYPES: Mapping[str, _TensorType] = {
    "tensor(float)": _TensorType("double", _to_float32),
    "tensor(int64)": _TensorType("long", _to_int64),
    "tensor(string)": _TensorType("string", _to_strings),
}


def _input_problems(graph_input: Any) -> list[str]:
    """Return the problems of an input of an ONNX graph, as ONNX Runtime describes it."""
    problems = []
    if graph_input.type not in _TENSOR_TYPES:
        problems.append(f"{graph_input.name} is {graph_input.type}, not one of {', '.join(_TENSOR_TYPES)}")
    rows, *rest = graph_input.shape or [0]
    if isinstance(rows, int) or rest not in ([], [1]):
        problems.append(
            f"{graph_input.name} has the shape {graph_input.shape}, not [rows] or [rows, 1]: one column each"
        )
    return problems


def _is_numeric(type_: pa.DataType) -> bool:
    return bool(
        types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_) or types.is_decimal(type_)
    )


def _scoring_error(file: Path, *problems: str) -> ScoringError:
    return ScoringError(f"{file.name} cannot score the rows: {'; '.join(problems)}")


def _stable_message(error: Exception, file: Path) -> str:
    """Return the error's first line without time and scratch folder: as evidence it must be the same each time."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", first_line(error).replace(str(file), file.name))
