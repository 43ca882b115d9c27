"""Statistics that a network needs before its first step: the spread of numbers, and the vocabularies of categories."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import TrainingDataError
from evergreen.training.rows import TrainingRows
from evergreen_models.flight_delay_net.columns import UNKNOWN_CODE, CodeArray, Float32Array, InputColumns, to_float32

_MAX_CATEGORIES = 100_000
"""Per column. The embedding of more would be most of the model, and each is too rare to be learned."""


@dataclass(frozen=True)
class ColumnStatistics:
    """Statistics of a file's columns, in their order.

    Attributes:
        rows: number of rows.
        means: mean of each column of numbers, without missing values.
        deviations: their standard deviations, 1 where all values are equal.
        vocabularies: the categories of each column that are not rare, in the order of their codes from 1.
    """

    rows: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    vocabularies: tuple[tuple[str, ...], ...]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        fields = json.loads(data)
        vocabularies = tuple(map(tuple, fields["vocabularies"]))
        return cls(fields["rows"], tuple(fields["means"]), tuple(fields["deviations"]), vocabularies)

    def encode(self, column: int, values: pa.ChunkedArray) -> CodeArray:
        """Return the codes, (rows,), of the values of a column of categories."""
        word_codes = {word: code for code, word in enumerate(self.vocabularies[column], start=1)}
        codes = [np.empty(0, np.int32)]
        for chunk in _dictionary_encode(values).chunks:
            words = chunk.dictionary.to_pylist()
            table = np.array([*(word_codes.get(word, UNKNOWN_CODE) for word in words), UNKNOWN_CODE], np.int32)
            codes.append(table.take(chunk.indices.fill_null(len(words)).to_numpy()))
        return np.concatenate(codes)


def compute_column_statistics(rows: TrainingRows, columns: InputColumns, min_category_rows: int) -> ColumnStatistics:
    """Read the rows once, row group by row group. The same file gives the same result to the last bit.

    Raises:
        TrainingDataError: there are no rows, labels are not 0 or 1 or all equal, or a column has too many categories.
    """
    variances = [_RunningVariance() for _ in columns.numbers]
    counts: list[Counter[str]] = [Counter() for _ in columns.categories]
    labels: Counter[float] = Counter()
    with open_parquet(rows, columns) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns.names)
            for name, variance in zip(columns.numbers, variances, strict=True):
                variance.add(to_float32(table[name]))
            for name, counter in zip(columns.categories, counts, strict=True):
                _count_categories(name, table[name], counter)
            values, occurrences = np.unique(to_float32(table[columns.label]), return_counts=True)
            labels.update(dict(zip(values.tolist(), occurrences.tolist(), strict=True)))
    _check_labels(rows.source, columns.label, labels)
    return ColumnStatistics(
        rows=labels.total(),
        means=tuple(variance.mean for variance in variances),
        deviations=tuple(variance.deviation for variance in variances),
        vocabularies=tuple(
            tuple(sorted(word for word, rows in counter.items() if rows >= min_category_rows)) for counter in counts
        ),
    )


def open_parquet(rows: TrainingRows, columns: InputColumns) -> pq.ParquetFile:
    """Open the file of the rows so that texts are read as the codes and the dictionary that they are stored as."""
    return rows.open_file(read_dictionary=list(columns.categories), pre_buffer=True)


class _RunningVariance:
    """Mean and variance of values added in parts (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squared_deviations = 0, 0.0, 0.0

    def add(self, part: Float32Array) -> None:
        part = part[np.isfinite(part)]
        if not len(part):
            return
        count, mean = len(part), float(part.mean(dtype=np.float64))
        squared_deviations = float(np.square(part - np.float64(mean)).sum())
        difference, total = mean - self.mean, self.count + count
        self.mean += difference * count / total
        self.squared_deviations += squared_deviations + difference**2 * self.count * count / total
        self.count = total

    @property
    def deviation(self) -> float:
        return sqrt(self.squared_deviations / self.count) if self.squared_deviations else 1.0


def _dictionary_encode(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values if pa.types.is_dictionary(values.type) else values.dictionary_encode()


def _count_categories(name: str, values: pa.ChunkedArray, counts: Counter[str]) -> None:
    for entry in _dictionary_encode(values).value_counts().to_pylist():
        if entry["values"]:  # a missing or empty text is no category
            counts[entry["values"]] += entry["counts"]
    if len(counts) > _MAX_CATEGORIES:
        raise TrainingDataError(
            f"{name} has more than {_MAX_CATEGORIES:,} different texts: too many for categories; leave it out"
        )


def _check_labels(uri: str, label: str, labels: Counter[float]) -> None:
    rows = labels.total()
    if not rows:
        raise TrainingDataError(f"{uri} has no rows: no label of its days was known; train as of a later day")
    if invalid := rows - labels[0.0] - labels[1.0]:
        raise TrainingDataError(f"{uri}: {invalid} of {rows} rows have a {label} that is neither 0 nor 1")
    if rows in (labels[0.0], labels[1.0]):
        raise TrainingDataError(
            f"{uri}: the {label} of all {rows} rows is {min(labels):.0f}: nothing to learn; train on more days"
        )
