"""Weights of examples that say nothing are refused when the training set is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import RawDataError, SpecError
from evergreen.feature_store.row_weights import check_weights
from evergreen.spec.model import ModelSpec

pytestmark = pytest.mark.unit

NAN, INFINITY = float("nan"), float("inf")


def model(column: str = "worth") -> ModelSpec:
    gates: Any = [{"kind": "threshold", "metric": "mae", "at_most": 1.0}]
    return ModelSpec(
        name="demand", owner="o", features="f", feature_service="f", schedule="0 0 * * 1", weight=column, gates=gates
    )


def write(file: Path, values: list[Any], dtype: Any = None) -> Path:
    pq.write_table(pa.table({"worth": pa.array(values, dtype)}), file, row_group_size=2)
    return file


@pytest.mark.parametrize("values", [[0.0, 1.5, 1e300], [], [0, 3], [2**60]])
def test_numbers_from_0_on_are_weights(values: list[Any], tmp_path: Path) -> None:
    check_weights(model(), {"train": write(tmp_path / "a.parquet", values, None if values else pa.float32())})


def test_all_faults_of_all_files_are_named(tmp_path: Path) -> None:
    files = {
        "train": write(tmp_path / "train.parquet", [None, NAN, -INFINITY, -1.0, 2.0, None]),
        "holdout": write(tmp_path / "holdout.parquet", [0, 0, 0]),
    }
    with pytest.raises(RawDataError) as error:
        check_weights(model(), files)
    text = str(error.value)
    assert "weight, train: 2 of 6 rows have a weight that is null → fill worth with numbers from 0 on" in text
    assert "2 of 6 rows have a weight that is NaN or infinite" in text
    assert "2 of 6 rows have a weight that is below 0" in text
    assert "weight, holdout: all 3 rows have the weight 0" in text


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("value", [1.0], "value is no column of the spine"),
        ("worth", ["1"], "worth is string"),
        ("worth", [True], "bool"),
    ],
)
def test_columns_that_hold_no_weights_are_refused(column: str, values: list[Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=says):
        check_weights(model(column), {"train": write(tmp_path / "train.parquet", values)})
