"""Text is the same with every version of pandas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from evergreen.ingest.frames import text_as_objects, text_as_strings

pytestmark = pytest.mark.unit

TEXT = [object, "string", pd.StringDtype("pyarrow", na_value=np.nan), pd.ArrowDtype(pa.string())]
"""Types that pandas has for text. The third is that of pandas 3."""
VALUES = ["b", None, "", "b"]


@pytest.mark.parametrize("dtype", TEXT, ids=str)
def test_text_becomes_strings_and_none(dtype: Any) -> None:
    index = [3, 3, 1, 0]
    frame = pd.DataFrame({"x": pd.Series(VALUES, index, dtype), 7: range(4)})
    before = frame.copy()
    result = text_as_objects(frame)
    assert result["x"].dtype == object
    assert list(result["x"]) == VALUES
    assert list(result.index) == index
    assert list(result.columns) == ["x", 7]
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("dtype", TEXT, ids=str)
def test_text_has_one_arrow_type(dtype: Any) -> None:
    frame = text_as_objects(pd.DataFrame({"x": pd.Series(VALUES, dtype=dtype)}))
    assert pa.Table.from_pandas(frame).column("x") == pa.chunked_array([VALUES], pa.string())


def test_equal_strings_are_one_object() -> None:
    text = pd.DataFrame({"x": pd.Series(["north-east"] * 9, dtype=TEXT[2])})
    assert len(set(map(id, text_as_objects(text)["x"]))) == 1


def test_other_columns_keep_their_types() -> None:
    frame = pd.DataFrame(
        {
            "integer": pd.array([1, None], "Int64"),
            "category": pd.Categorical(["a", None]),
            "instant": pd.Series(pd.to_datetime([0, None], unit="s", utc=True)),
            "mixed": pd.Series([1, "a"], dtype=object),
            "list": pd.Series([["a"], None], dtype=object),
        }
    )
    pd.testing.assert_frame_equal(text_as_objects(frame), frame)


def test_columns_of_one_name_are_converted_each() -> None:
    frame = pd.concat([pd.DataFrame({"x": pd.Series([value], dtype=TEXT[2])}) for value in "ab"], axis=1)
    assert text_as_objects(frame).to_numpy().tolist() == [["a", "b"]]


def test_no_rows_and_no_columns_are_kept() -> None:
    assert list(text_as_objects(pd.DataFrame({"x": pd.Series([], dtype=TEXT[2])})).dtypes) == [object]
    assert text_as_objects(pd.DataFrame(index=[1, 2])).shape == (2, 0)


def test_large_strings_become_strings() -> None:
    schema = pa.schema([("x", pa.large_string()), ("n", pa.int32())], {"made_by": "pandas"})
    table = text_as_strings(pa.table([VALUES, [1, 2, 3, None]], schema=schema))
    assert table.schema == pa.schema([("x", pa.string()), ("n", pa.int32())])
    assert table.schema.metadata == schema.metadata
    assert table.to_pydict() == {"x": VALUES, "n": [1, 2, 3, None]}
