"""What is wrong with the weights of examples, before anything is learned or judged by them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault, RawDataError, SpecError
from evergreen.ingest.row_groups import ROW_GROUP_ROWS
from evergreen.spec.model import ModelSpec


def check_weights(model: ModelSpec, files: Mapping[str, Path]) -> None:
    """Refuse weights of examples, in files by name, that are no numbers from 0 on.

    Raises:
        RawDataError: some are null, NaN, infinite or negative; or all of a file are 0. All faults are named.
        SpecError: there is no such column, or it holds no numbers.
    """
    assert model.weight
    faults = []
    for name, file in files.items():
        schema = pq.read_schema(file)
        if model.weight not in schema.names:
            problem, fix = f"{model.weight} is no column of the spine", f"it has {', '.join(schema.names)}"
            raise SpecError(f"model {model.name}", [Fault("weight", problem, fix)])
        dtype = schema.field(model.weight).type
        if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
            problem = f"{model.weight} is {dtype}"
            raise SpecError(f"model {model.name}", [Fault("weight", problem, "let features.py return numbers")])
        faults += [
            Fault(f"weight, {name}", problem, f"fill {model.weight} with numbers from 0 on")
            for problem in _find_problems(file, model.weight)
        ]
    if faults:
        raise RawDataError(f"model {model.name}", faults)


def _find_problems(file: Path, column: str) -> list[str]:
    rows = nulls = infinite = negative = 0
    total = 0.0
    with pq.ParquetFile(file) as source:
        for batch in source.iter_batches(ROW_GROUP_ROWS, columns=[column]):
            values = batch.column(0).drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
            rows += len(batch)
            nulls += len(batch) - values.size
            infinite += int(np.count_nonzero(~np.isfinite(values)))
            negative += int(np.count_nonzero(values < 0))
            total += float(values.sum())
    counts = ((nulls, "null"), (infinite, "NaN or infinite"), (negative, "below 0"))
    problems = [f"{count:,} of {rows:,} rows have a weight that is {problem}" for count, problem in counts if count]
    return [f"all {rows:,} rows have the weight 0"] if rows and not problems and not total else problems
