"""Text in pandas frames, the same with every version of pandas.

pandas 3 has a type of its own for text, in which a missing value is NaN. Such a column has another Arrow type, another
engine evaluates its regular expressions, and Spark and Great Expectations treat it differently.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
from pandas.api.types import is_object_dtype, is_string_dtype


def text_as_objects(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with text columns as Python strings and None, of type `object`; other columns are unchanged."""
    result = frame.copy(deep=False)
    for position, dtype in enumerate(frame.dtypes):
        if not is_object_dtype(dtype) and is_string_dtype(dtype):
            distinct: dict[str, str] = {}  # equal values share one object: rows are many, carriers few
            values = frame.iloc[:, position].tolist()
            text = [distinct.setdefault(value, value) if isinstance(value, str) else None for value in values]
            column: Any = pd.Series(text, frame.index, object)  # only of a series does pandas 3 keep this type
            result.isetitem(position, column)
    return result


def text_as_strings(table: pa.Table) -> pa.Table:
    """Return the table with each column of `large_string`, which pandas 3 writes, as `string`."""
    fields = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))
