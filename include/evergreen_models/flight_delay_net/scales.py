"""What a network must know of the data before its first step: how numbers spread, which categories there are."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen import storage
from evergreen.errors import TrainingDataError
from evergreen_models.flight_delay_net.columns import (
    UNKNOWN_CODE,
    CodeArray,
    Float32Array,
    InputColumns,
    to_float32,
)

_MAX_CATEGORIES = 100_000
"""Of a column. Its embedding would be most of the model, and each of them is seen too seldom to be learned."""


@dataclass(frozen=True)
class ColumnStatistics:
    """Of a file's columns, in their order.

    Attributes:
        rows: how many it has.
        means: of each column of numbers, over the values that are there.
        deviations: standard deviations of these, 1 where all are the same.
        vocabularies: of each column of categories, those that are not rare, in the order of their codes from 1.
    """

    rows: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    vocabularies: tuple[tuple[str, ...], ...]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        about = json.loads(data)
        return cls(
            about["rows"],
            tuple(about["means"]),
            tuple(about["deviations"]),
            tuple(map(tuple, about["vocabularies"])),
        )

    def encode(self, column: int, values: pa.ChunkedArray) -> CodeArray:
        """The codes, (rows,), of the values of a column of categories."""
        known = {word: code for code, word in enumerate(self.vocabularies[column], start=1)}
        found = []
        for chunk in _dictionary_encode(values).chunks:
            words = chunk.dictionary.to_pylist()
            table = np.array([*(known.get(word, UNKNOWN_CODE) for word in words), UNKNOWN_CODE], np.int32)
            found.append(table.take(chunk.indices.fill_null(len(words)).to_numpy()))
        return np.concatenate(found) if found else np.empty(0, np.int32)


def compute_column_statistics(uri: str, columns: InputColumns, min_category_rows: int) -> ColumnStatistics:
    """Read the Parquet file at `uri` once, row group by row group; the same file gives the same scales to the last bit.

    Raises:
        TrainingDataError: there are no rows, labels that are not 0 or 1, only one of them, or a column of texts that
            are no categories.
    """
    spreads = [_RunningVariance() for _ in columns.numbers]
    counts: list[Counter[str]] = [Counter() for _ in columns.categories]
    labels: Counter[float] = Counter()
    with storage.storage_path(uri).open("rb") as stream:
        file = open_parquet(stream, columns)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns.names)
            for name, spread in zip(columns.numbers, spreads, strict=True):
                spread.add(to_float32(table[name]))
            for name, count in zip(columns.categories, counts, strict=True):
                _count_categories(name, table[name], count)
            values, times = np.unique(to_float32(table[columns.label]), return_counts=True)
            labels.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    _check_labels(uri, columns.label, labels)
    return ColumnStatistics(
        rows=labels.total(),
        means=tuple(spread.mean for spread in spreads),
        deviations=tuple(spread.deviation for spread in spreads),
        vocabularies=tuple(
            tuple(sorted(word for word, times in count.items() if times >= min_category_rows)) for count in counts
        ),
    )


def open_parquet(stream: object, columns: InputColumns, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A file whose texts come as the codes and the dictionary that they are stored as."""
    # Buffered: the columns of a row group come in few, large reads, which an object store needs.
    return pq.ParquetFile(stream, metadata=metadata, read_dictionary=list(columns.categories), pre_buffer=True)


class _RunningVariance:
    """Mean and variance of values that come in parts (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squared_deviations = 0, 0.0, 0.0

    def add(self, part: Float32Array) -> None:
        part = part[np.isfinite(part)]
        if not len(part):
            return
        values, mean = len(part), float(part.mean(dtype=np.float64))
        squares = float(np.square(part - np.float64(mean)).sum())
        apart, total = mean - self.mean, self.count + values
        self.mean += apart * values / total
        self.squared_deviations += squares + apart**2 * self.count * values / total
        self.count = total

    @property
    def deviation(self) -> float:
        return sqrt(self.squared_deviations / self.count) if self.squared_deviations else 1.0


def _dictionary_encode(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values if pa.types.is_dictionary(values.type) else values.dictionary_encode()


def _count_categories(name: str, values: pa.ChunkedArray, counts: Counter[str]) -> None:
    for entry in _dictionary_encode(values).value_counts().to_pylist():
        if entry["values"]:  # no text, or an empty one, is no category
            counts[entry["values"]] += entry["counts"]
    if len(counts) > _MAX_CATEGORIES:
        raise TrainingDataError(
            f"{name} has more than {_MAX_CATEGORIES:,} different texts: they are no categories; leave it out"
        )


def _check_labels(uri: str, label: str, labels: Counter[float]) -> None:
    rows = labels.total()
    if not rows:
        raise TrainingDataError(f"{uri} has no rows: no label of its days was known; train as of a later day")
    if unknown := rows - labels[0.0] - labels[1.0]:
        raise TrainingDataError(f"{uri}: {unknown} of {rows} rows have a {label} that is neither 0 nor 1")
    if rows in (labels[0.0], labels[1.0]):
        raise TrainingDataError(
            f"{uri}: the {label} of all {rows} rows is {min(labels):.0f}: there is nothing to tell apart; train on "
            "more days"
        )
