"""Means, deviations and vocabularies of a file, computed in one pass over its row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from evergreen.errors import TrainingDataError
from evergreen.training.rows import TrainingRows
from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics, compute_column_statistics
from evergreen_models.flight_delay_net.columns import UNKNOWN_CODE, InputColumns
from support.training_data import CATEGORIES, INPUTS, NUMBERS, table, write

pytestmark = pytest.mark.unit


def input_columns(rows: pa.Table, *inputs: str) -> InputColumns:
    names = inputs or INPUTS
    texts = [name for name in names if pa.types.is_string(rows.schema.field(name).type)]
    return InputColumns.from_schema(rows.schema, names, "label", texts)


def compute(rows: pa.Table, folder: Path, *inputs: str, group_rows: int = 700, min_rows: int = 1) -> ColumnStatistics:
    file = write(rows, folder / "train.parquet", group_rows)
    return compute_column_statistics(TrainingRows(file), input_columns(rows, *inputs), min_rows)


def test_statistics_are_those_of_all_rows(tmp_path: Path) -> None:
    rows = table(5_000)
    statistics = compute(rows, tmp_path)
    expected = [rows[name].to_pandas().astype(np.float32).astype(float) for name in NUMBERS]
    np.testing.assert_allclose(statistics.means, [column.mean() for column in expected], rtol=1e-12)
    np.testing.assert_allclose(statistics.deviations, [column.std(ddof=0) for column in expected], rtol=1e-12)
    assert statistics.vocabularies == tuple(CATEGORIES.values())
    assert statistics.rows == 5_000


def test_statistics_are_repeatable_and_survive_json(tmp_path: Path) -> None:
    rows = table(3_000)
    statistics = compute(rows, tmp_path)
    assert compute(rows, tmp_path) == statistics
    assert ColumnStatistics.from_json(statistics.to_json()) == statistics


def test_encode_uses_vocabulary_positions_and_unknown(tmp_path: Path) -> None:
    rows = table(2_000)
    rare = pa.array(["XX", "", None, *rows["carrier"].to_pylist()[3:]], pa.string())
    rows = rows.set_column(rows.column_names.index("carrier"), "carrier", rare)
    statistics = compute(rows, tmp_path, min_rows=2)
    assert statistics.vocabularies[0] == CATEGORIES["carrier"]
    values = pa.chunked_array([["UA", "AA"], ["XX", "", None, "B6", "ZZ"], []], pa.string())
    assert statistics.encode(0, values).tolist() == [3, 1, UNKNOWN_CODE, UNKNOWN_CODE, UNKNOWN_CODE, 2, UNKNOWN_CODE]
    assert statistics.encode(0, values.dictionary_encode()).tolist() == statistics.encode(0, values).tolist()


def test_missing_numbers_and_constant_columns(tmp_path: Path) -> None:
    rows = table(4)
    for name, numbers in {
        "gaps": [1.0, None, 3.0, None],
        "broken": [np.inf, 2.0, -np.inf, 4.0],
        "same": [5.0, 5.0, 5.0, 5.0],
        "none": [None] * 4,
    }.items():
        rows = rows.append_column(name, pa.array(numbers, pa.float64()))
    statistics = compute(rows, tmp_path, "gaps", "broken", "same", "none", group_rows=1)
    assert statistics.means == (2.0, 3.0, 5.0, 0.0)
    assert statistics.deviations == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "has no rows"),
        ([0, 1, None], "1 of 3 rows have a label that is neither 0 nor 1"),
        ([0, 1, 2, 3], "2 of 4 rows have a label that is neither 0 nor 1"),
        ([1, 1, 1], "the label of all 3 rows is 1"),
    ],
)
def test_useless_labels_are_refused(tmp_path: Path, labels: list[int | None], message: str) -> None:
    rows = table(len(labels)).drop_columns("label").append_column("label", pa.array(labels, pa.int32()))
    with pytest.raises(TrainingDataError, match=message):
        compute(rows, tmp_path)


def test_too_many_categories_are_refused(tmp_path: Path) -> None:
    rows = table(100_001)
    rows = rows.append_column("flight", pc.cast(rows["row"], pa.string()))
    with pytest.raises(TrainingDataError, match="flight has more than 100,000 different texts"):
        compute(rows, tmp_path, "flight", group_rows=50_000)
