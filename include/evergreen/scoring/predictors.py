"""Models as they are loaded and asked: one class per file format, chosen by the name of the model's file.

A format more is a class more, here, and a check of its files in `evergreen.scoring.formats`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import types

from evergreen.errors import ScoringError, first_line


class Predictor(ABC):
    """A model that was loaded from its file.

    Tables are given with the columns that it learned from, in that order, and no others.
    """

    library: ClassVar[str]
    """The module that runs it. Imported only where a model is: it may take a second."""
    mlflow_flavor: ClassVar[str]
    """The module of `mlflow` that writes such a model."""
    is_positional: ClassVar[bool]
    """Whether it knows its inputs by their order, not by their names."""
    input_columns: tuple[str, ...]
    """The columns it takes, as its file tells; empty if that does not."""

    @abstractmethod
    def __init__(self, file: Path, threads: int | None):
        """Load `file`, to predict on so many threads; None leaves their number to the library.

        Raises:
            ScoringError: it cannot be read, or is not a model that takes columns and gives probabilities.
        """
        self._file = file

    def check_columns(self, columns: Sequence[str]) -> None:
        """Refuse to be given other columns than those that its file tells.

        Raises:
            ScoringError: they are others, or in an order that it would take for others.
        """
        same = list if self.is_positional else sorted
        if self.input_columns and same(self.input_columns) != same(columns):
            raise ScoringError(
                f"{self._file.name} takes {', '.join(self.input_columns)}, but was to be given {', '.join(columns)}"
            )

    @abstractmethod
    def predict(self, table: pa.Table) -> NDArray[Any]:
        """The model's answer for the rows of `table`, (n, …), as it comes: whoever asks must look at its shape.

        Raises:
            ScoringError: it cannot take such columns; all that are wrong are named.
        """

    @abstractmethod
    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        """A prediction of these rows, which a server has in hand as its library takes them: all that is timed.

        Raises:
            ScoringError: as `predict`.
        """

    @abstractmethod
    def mlflow_type(self, name: str) -> str:
        """What MLflow calls the type of the input `name`."""

    @abstractmethod
    def save_model_arguments(self) -> Mapping[str, Any]:
        """What `save_model` of its flavour takes, the model among it, to write the same file again."""

    @classmethod
    @abstractmethod
    def pip_requirement(cls, environment: Mapping[str, str]) -> str:
        """What pip must install to run it; `environment` is that of its training."""


class XGBoostPredictor(Predictor):
    """Trees, or a linear model, in UBJSON. All inputs are numbers; a missing one is NaN."""

    library = "xgboost"
    mlflow_flavor = "xgboost"
    is_positional = True

    def __init__(self, file: Path, threads: int | None):
        import xgboost

        super().__init__(file, threads)
        try:
            self._booster = xgboost.Booster({"nthread": threads} if threads else None, model_file=file)
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise ScoringError(f"{file.name} cannot be read: {_first_line(error, file)}") from None
        self.input_columns = tuple(self._booster.feature_names or ())

    def predict(self, table: pa.Table) -> NDArray[Any]:
        import xgboost

        self._check_types(table)
        try:
            return self._booster.predict(xgboost.DMatrix(table.to_pandas()))
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise ScoringError(f"{self._file.name} cannot score the rows: {_first_line(error, self._file)}") from None

    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        self._check_types(table)
        rows = np.column_stack([_to_float32(column) for column in table.columns])
        return partial(self._booster.inplace_predict, rows)

    def mlflow_type(self, name: str) -> str:
        return "double"

    def save_model_arguments(self) -> Mapping[str, Any]:
        return {"xgb_model": self._booster, "model_format": "ubj"}

    @classmethod
    def pip_requirement(cls, environment: Mapping[str, str]) -> str:
        # Wheels with and without CUDA have two names; whoever serves it chooses one.
        for name in ("xgboost-cpu", "xgboost"):
            if name in environment:
                return f"xgboost=={environment[name]}"
        import xgboost

        return f"xgboost=={xgboost.__version__}"

    def _check_types(self, table: pa.Table) -> None:
        wrong = [f"{field.name} is {field.type}, not a number" for field in table.schema if not _is_numeric(field.type)]
        _raise_problems(self._file, wrong)


class OnnxPredictor(Predictor):
    """A graph with one input per column, of shape [rows] or [rows, 1], and one output, the probabilities.

    An input is a float (a missing one is NaN), a string (a missing one is empty) or an int64 (none may be missing).
    Whatever comes before the first layer, such as looking up categories, is part of the graph.
    """

    library = "onnxruntime"
    mlflow_flavor = "onnx"
    is_positional = False

    def __init__(self, file: Path, threads: int | None):
        import onnxruntime

        super().__init__(file, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.use_deterministic_compute = True
        options.log_severity_level = 3  # errors: its warnings are for who exported the graph
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no other class in common
            raise ScoringError(f"{file.name} cannot be read: {_first_line(error, file)}") from None
        self._graph_inputs = self._session.get_inputs()
        self.input_columns = tuple(found.name for found in self._graph_inputs)
        outputs = self._session.get_outputs()
        problems = [problem for found in self._graph_inputs for problem in _input_problems(found)]
        if [found.type for found in outputs] not in (["tensor(float)"], ["tensor(double)"]):
            given = ", ".join(f"{found.name} ({found.type})" for found in outputs)
            problems.append(f"it gives {given}, not one output of probabilities")
        if problems:
            raise ScoringError(f"{file.name} cannot be asked: {'; '.join(problems)}")

    def predict(self, table: pa.Table) -> NDArray[Any]:
        feeds = self._input_feed(table)
        try:
            (found,) = self._session.run(None, feeds)
        except Exception as error:  # as above
            raise ScoringError(f"{self._file.name} cannot score the rows: {_first_line(error, self._file)}") from None
        return np.asarray(found)

    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        return partial(self._session.run, None, self._input_feed(table))

    def mlflow_type(self, name: str) -> str:
        return next(_TENSOR_TYPES[found.type].mlflow_type for found in self._graph_inputs if found.name == name)

    def save_model_arguments(self) -> Mapping[str, Any]:
        import onnx

        return {
            "onnx_model": onnx.load(self._file, load_external_data=False),
            "save_as_external_data": False,
            # As it was judged. MLflow would try a GPU first, and warn wherever there is none.
            "onnx_execution_providers": ["CPUExecutionProvider"],
        }

    @classmethod
    def pip_requirement(cls, environment: Mapping[str, str]) -> str:
        return f"onnxruntime=={version('onnxruntime')}"  # it was trained without; this one has scored it

    def _input_feed(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        """Each column as the graph takes it."""
        feeds, problems = {}, []
        for found in self._graph_inputs:
            try:
                values = _TENSOR_TYPES[found.type].convert(table[found.name])
            except (pa.ArrowException, ValueError) as error:
                problems.append(f"{found.name} {error}")
            else:
                feeds[found.name] = values.reshape(-1, 1) if len(found.shape) == 2 else values
        _raise_problems(self._file, problems)
        return feeds


PREDICTORS: Mapping[str, type[Predictor]] = {"model.ubj": XGBoostPredictor, "model.onnx": OnnxPredictor}


def load_predictor(file: Path, threads: int | None = None) -> Predictor:
    """The model in `file`, which has one of the names in `BY_NAME`.

    Raises:
        ScoringError: it cannot be read, or is no model that can be asked.
    """
    return PREDICTORS[file.name](file, threads)


@dataclass(frozen=True)
class _TensorType:
    """What an ONNX input holds; `array` gives a column so, or raises ValueError or Arrow's, with what is wrong."""

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
        raise ValueError("has missing values, which an int64 input cannot show")
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
    """What is wrong with an input of an ONNX graph, as ONNX Runtime describes it."""
    problems = []
    if graph_input.type not in _TENSOR_TYPES:
        problems.append(f"{graph_input.name} is {graph_input.type}, known are {', '.join(_TENSOR_TYPES)}")
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


def _raise_problems(file: Path, problems: list[str]) -> None:
    if problems:
        raise ScoringError(f"{file.name} cannot score the rows: {'; '.join(problems)}")


def _first_line(error: Exception, file: Path) -> str:
    """The error's first line, without time of day and scratch folder: as evidence it must be the same each time."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", first_line(error).replace(str(file), file.name))
