"""Categories of tree models: text, or numbers, to the codes that the trees know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from evergreen.scoring.predictors.base import is_numeric, scoring_error
from evergreen.training.categories import OTHER, UNSEEN_RULES

_NAMED_VALUES = 3  # in a message


class CategoryCodes:
    """The mapping that a model was trained with, by column, and what becomes of a value that it does not have."""

    def __init__(self, categories: Mapping[str, pa.Array], unseen: str):
        """Take the categories of each column in the order of their codes.

        Raises:
            ValueError: there is no such rule for unseen values, or `other` is no category of a column.
        """
        if unseen not in UNSEEN_RULES:
            raise ValueError(f"says {unseen[:40]!r} about unseen categories, not one of {', '.join(UNSEEN_RULES)}")
        # A file does not say of which type no categories are.
        self._categories = {
            name: values.cast(pa.string()) if types.is_null(values.type) else values
            for name, values in categories.items()
        }
        self._unseen = unseen
        self._other: dict[str, int] = {}
        for name, values in (self._categories if unseen == OTHER else {}).items():
            position = pc.index(values, OTHER).as_py() if types.is_string(values.type) else -1
            if position < 0:
                raise ValueError(f"has no category {OTHER!r} of {name} for values that it has not seen")
            self._other[name] = position

    def __contains__(self, name: object) -> bool:
        return name in self._categories

    def mlflow_type(self, name: str) -> str:
        """Return the MLflow type of a column with categories."""
        type_ = self._categories[name].type
        if types.is_string(type_):
            return "string"
        if types.is_boolean(type_):
            return "boolean"
        return "long" if types.is_integer(type_) else "double"

    def encode_columns(
        self, table: pa.Table, to_numbers: Callable[[pa.ChunkedArray], NDArray[Any]], file: Path
    ) -> list[NDArray[Any]]:
        """Return the columns (n,) of a table in order: the codes of those with categories, the numbers of the others.

        Raises:
            ScoringError: columns have values that the model in `file` does not take; all are named.
        """
        columns, problems = [], []
        for name in table.column_names:
            try:
                columns.append(self.encode(name, table[name]) if name in self else to_numbers(table[name]))
            except ValueError as problem:
                problems.append(f"{name} {problem}")
        if problems:
            raise scoring_error(file, *problems)
        return columns

    def encode(self, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
        """Return the codes (n,) of a column, float32, NaN where its value is missing.

        Raises:
            ValueError: it has values of another type, or unseen ones that are an error.
        """
        categories = self._categories[name]
        values = column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
        is_text = types.is_string(values.type) or types.is_large_string(values.type)
        if not types.is_null(values.type) and (
            is_text != types.is_string(categories.type) or not (is_text or is_numeric(values.type))
        ):
            raise ValueError(f"is {column.type}, and its categories are {categories.type}")
        try:
            values = values.cast(categories.type)
        except pa.ArrowInvalid:
            raise ValueError(f"is {column.type}, and its categories are {categories.type}") from None
        codes = pc.index_in(values, value_set=categories, skip_nulls=True)
        is_unseen = pc.and_(pc.is_null(codes), pc.is_valid(values))
        if self._unseen == "error" and pc.any(is_unseen).as_py():
            unseen_values = pc.unique(pc.filter(values, is_unseen)).to_pylist()
            suffix = f" and {len(unseen_values) - _NAMED_VALUES} more" if len(unseen_values) > _NAMED_VALUES else ""
            raise ValueError(
                f"has categories that are not in the model: {', '.join(map(repr, unseen_values[:3]))}{suffix}"
            )
        if name in self._other:
            codes = pc.if_else(is_unseen, pa.scalar(self._other[name], pa.int32()), codes)
        return codes.cast(pa.float32()).to_numpy().astype(np.float32)
