"""What a model of any format can do, and what the formats have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import types

from evergreen.errors import ScoringError, first_line
from evergreen.training.target_transform import TRANSFORMS

_ADDED_PRECISION = 1e-3


class Contributions(NamedTuple):
    """What each input adds to a prediction: SHAP values (Lundberg et al. 2020, Nature Machine Intelligence 2:56-67).

    They are in the unit of the model's raw score, before a link function or a target transform is undone: log-odds of a
    probability, the logarithm of a count. For each row and output, `base` plus the sum of `values` is `score`.
    """

    values: NDArray[np.float64]
    """(n, outputs, columns)"""
    base: NDArray[np.float64]
    """(n, outputs) the mean score by what the model has learned from."""
    score: NDArray[np.float64]
    """(n, outputs) the raw score."""


class Predictor(ABC):
    """A model, loaded from its file.

    Tables have exactly the columns that it learned from, in that order.
    """

    library: ClassVar[str]
    """The module that runs it, imported only to load a model: it may take a second."""
    mlflow_flavor: ClassVar[str]
    """The module of `mlflow` that writes such a model."""
    is_positional: bool
    """Whether it identifies its inputs by their order, not by their names."""
    target_transform: str | None = None
    """What `predict` undoes, and other readers of the file do not; None if there is nothing."""
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

    def contributions(self, table: pa.Table) -> Contributions | None:  # noqa: ARG002 - of formats that have them
        """Return what each input adds to the score of each row, as the library computes it; None if it does not.

        Raises:
            ScoringError: as `predict`, or it computes none for this model.
        """
        return None

    def gains(self) -> Mapping[str, float] | None:
        """Return by how much the splits on each input have reduced the training loss; None if that is not known.

        Inputs without a split are left out.
        """
        return None

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


def check_transform(name: str | None) -> str | None:
    """Return the transform that a file names, if there is such a one; raises a ValueError if not."""
    if name is not None and name not in TRANSFORMS:
        raise ValueError(f"says that its label was transformed by {name[:40]!r}, not one of {', '.join(TRANSFORMS)}")
    return name


def is_numeric(type_: pa.DataType) -> bool:
    return bool(
        types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_) or types.is_decimal(type_)
    )


def to_float32(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return the numbers (n,), NaN where one is missing; raises a ValueError for another type."""
    return _to_floats(column, pa.float32())


def to_float64(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return the numbers (n,), NaN where one is missing; raises a ValueError for another type."""
    return _to_floats(column, pa.float64())


def _to_floats(column: pa.ChunkedArray, type_: pa.DataType) -> NDArray[Any]:
    if not (is_numeric(column.type) or types.is_null(column.type)):
        raise ValueError(f"is {column.type}, not a number")
    return column.cast(type_, safe=False).to_numpy()


def check_contributions(file: Path, parts: NDArray[Any], score: NDArray[Any]) -> Contributions:
    """Return contributions from `parts` (n, outputs, columns + 1), the base last, and raw scores (n, outputs).

    Raises:
        ScoringError: they do not add up, such as those of averaged trees, of which a library returns the sums.
    """
    parts, score = parts.astype(np.float64), score.astype(np.float64)
    sums = parts.sum(axis=2)
    # Libraries add up in 32 bits.
    size = np.maximum(np.abs(parts).sum(axis=2), np.abs(score))
    if not (np.abs(sums - score) <= _ADDED_PRECISION * (1 + size)).all():
        raise ScoringError(f"{file.name}: the contributions that its library computes do not add up to its predictions")
    return Contributions(parts[:, :, :-1], parts[:, :, -1], score)


def scoring_error(file: Path, *problems: str) -> ScoringError:
    return ScoringError(f"{file.name} cannot score the rows: {'; '.join(problems)}")


def stable_message(error: Exception, file: Path) -> str:
    """Return the error's first line without time and scratch folder: as evidence it must be the same each time."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", first_line(error).replace(str(file), file.name))
