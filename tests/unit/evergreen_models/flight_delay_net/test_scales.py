"""Means, deviations and vocabularies of a file, found in one pass that never holds more than a row group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from evergreen.errors import TrainingDataError
from evergreen_models.flight_delay_net.columns import UNKNOWN_CODE, InputColumns
from evergreen_models.flight_delay_net.scales import ColumnStatistics, compute_column_statistics
from support.training_data import CATEGORIES, INPUTS, NUMBERS, table, write

pytestmark = pytest.mark.unit


def columns_of(rows: pa.Table, *inputs: str) -> InputColumns:
    names = inputs or INPUTS
    texts = [name for name in names if pa.types.is_string(rows.schema.field(name).type)]
    return InputColumns.from_schema(rows.schema, names, "label", texts)


def learned(rows: pa.Table, folder: Path, *inputs: str, group_rows: int = 700, rare: int = 1) -> ColumnStatistics:
    file = write(rows, folder / "train.parquet", group_rows)
    return compute_column_statistics(str(file), columns_of(rows, *inputs), rare)


def test_they_are_those_of_all_rows_at_once(tmp_path: Path) -> None:
    rows = table(5_000)
    scales = learned(rows, tmp_path)
    expected = [rows[name].to_pandas().astype(np.float32).astype(float) for name in NUMBERS]
    np.testing.assert_allclose(scales.means, [column.mean() for column in expected], rtol=1e-12)
    np.testing.assert_allclose(scales.deviations, [column.std(ddof=0) for column in expected], rtol=1e-12)
    assert scales.vocabularies == tuple(CATEGORIES.values())
    assert scales.rows == 5_000


def test_the_same_file_gives_the_same_bits_and_json_keeps_them(tmp_path: Path) -> None:
    rows = table(3_000)
    one, other = learned(rows, tmp_path), learned(rows, tmp_path)
    assert one == other
    assert ColumnStatistics.from_json(one.to_json()) == one


def test_a_category_is_its_place_in_the_vocabulary_and_what_is_not_in_it_is_unknown(tmp_path: Path) -> None:
    rows = table(2_000)
    rare = pa.array(["XX", "", None, *rows["carrier"].to_pylist()[3:]], pa.string())
    rows = rows.set_column(rows.column_names.index("carrier"), "carrier", rare)
    scales = learned(rows, tmp_path, rare=2)
    assert scales.vocabularies[0] == CATEGORIES["carrier"]
    asked = pa.chunked_array([["UA", "AA"], ["XX", "", None, "B6", "ZZ"], []], pa.string())
    assert scales.encode(0, asked).tolist() == [
        3,
        1,
        UNKNOWN_CODE,
        UNKNOWN_CODE,
        UNKNOWN_CODE,
        2,
        UNKNOWN_CODE,
    ]
    assert scales.encode(0, asked.dictionary_encode()).tolist() == scales.encode(0, asked).tolist()


def test_what_is_no_number_counts_for_nothing_and_what_never_varies_has_no_spread(tmp_path: Path) -> None:
    rows = table(4)
    for name, values in {
        "gaps": [1.0, None, 3.0, None],
        "broken": [np.inf, 2.0, -np.inf, 4.0],
        "same": [5.0, 5.0, 5.0, 5.0],
        "none": [None] * 4,
    }.items():
        rows = rows.append_column(name, pa.array(values, pa.float64()))
    scales = learned(rows, tmp_path, "gaps", "broken", "same", "none", group_rows=1)
    assert scales.means == (2.0, 3.0, 5.0, 0.0)
    assert scales.deviations == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "has no rows"),
        ([0, 1, None], "1 of 3 rows have a label that is neither 0 nor 1"),
        ([0, 1, 2, 3], "2 of 4 rows have a label that is neither 0 nor 1"),
        ([1, 1, 1], "the label of all 3 rows is 1"),
    ],
)
def test_labels_that_teach_nothing_are_refused(tmp_path: Path, labels: list[int | None], said: str) -> None:
    rows = table(len(labels)).drop_columns("label").append_column("label", pa.array(labels, pa.int32()))
    with pytest.raises(TrainingDataError, match=said):
        learned(rows, tmp_path)


def test_a_column_in_which_every_text_is_another_is_no_category(tmp_path: Path) -> None:
    rows = table(100_001)
    rows = rows.append_column("flight", pc.cast(rows["row"], pa.string()))
    with pytest.raises(TrainingDataError, match="flight has more than 100,000 different texts"):
        learned(rows, tmp_path, "flight", group_rows=50_000)
