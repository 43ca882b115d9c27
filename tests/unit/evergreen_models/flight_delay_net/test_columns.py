"""Columns of a network: types, conversion, and faults, which are all reported at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from evergreen.errors import TrainingDataError
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch, interleave, to_float32

pytestmark = pytest.mark.unit

SCHEMA = pa.schema(
    {
        "minute": pa.int32(),
        "carrier": pa.string(),
        "rain": pa.float64(),
        "dest": pa.dictionary(pa.int32(), pa.string()),
        "holiday": pa.bool_(),
        "fare": pa.decimal128(8, 2),
        "empty": pa.null(),
        "when": pa.timestamp("us"),
        "label": pa.int32(),
    }
)


def test_texts_are_categories_and_the_order_is_kept() -> None:
    columns = InputColumns.from_schema(
        SCHEMA, ["carrier", "fare", "dest", "minute", "holiday", "empty"], "label", ["carrier", "dest"]
    )
    assert columns.inputs == ("carrier", "fare", "dest", "minute", "holiday", "empty")
    assert columns.categories == ("carrier", "dest")
    assert columns.numbers == ("fare", "minute", "holiday", "empty")


def test_all_faults_are_named() -> None:
    with pytest.raises(TrainingDataError) as refused:
        InputColumns.from_schema(SCHEMA, ["carrier", "when", "gone"], "late", ["dest", "minute"])
    message = str(refused.value)
    for fault in (
        "gone is missing",
        "late is missing",
        "when holds timestamp[us], neither numbers nor texts",
        "carrier holds texts: add it to `embedding_sizes`",
        "`embedding_sizes` names dest, which is no input that holds texts",
        "`embedding_sizes` names minute",
    ):
        assert fault in message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, 3], pa.int64()), [1, np.nan, 3]),
        (pa.array([1.5, None, np.inf]), [1.5, np.nan, np.inf]),
        (pa.array([True, None, False]), [1, np.nan, 0]),
        (pa.array(["1.25", None, "3"]).cast(pa.decimal128(8, 2)), [1.25, np.nan, 3]),
        (pa.nulls(3), [np.nan] * 3),
    ],
)
def test_to_float32_converts_numbers_and_missing_values(values, expected) -> None:
    np.testing.assert_array_equal(to_float32(pa.chunked_array([values])), np.array(expected, np.float32))


@pytest.mark.parametrize("rows", [0, 1, 4096, 10_000])
def test_interleave_writes_columns_side_by_side(rows: int) -> None:
    columns = [np.arange(rows, dtype=np.float32) + n for n in (0, 100_000, 200_000)]
    target = np.empty((rows, 3), np.float32)
    interleave(columns, target)
    np.testing.assert_array_equal(target, np.column_stack(columns))


def test_row_batch_takes_rows_in_any_order() -> None:
    numbers = np.arange(8, dtype=np.float32).reshape(4, 2)
    rows = RowBatch(numbers, numbers.astype(np.int32), numbers[:, 0])
    taken = rows.take(np.array([3, 0]))
    assert taken.numbers.tolist() == taken.categories.tolist() == [[6, 7], [0, 1]]
    assert RowBatch.concatenate([taken, rows]).labels.tolist() == [6, 0, 0, 2, 4, 6]
