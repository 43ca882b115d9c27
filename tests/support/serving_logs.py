"""Logs of a server, for tests: columns as a server would write them, and the inputs of the model that it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.feature_store.model_inputs import ModelInputs, ViewDefinition

CONTENT = "a" * 64
START = datetime(2013, 1, 7, 5, tzinfo=UTC)
LEVELS = ViewDefinition(
    table="levels", keys={"pond": "STRING"}, key_columns={}, ttl_seconds=72 * 3600, features={"level": "DOUBLE"}
)
INPUTS = ModelInputs(
    feature_model="ponds", columns=(("wind", "double"), ("levels__level", "double")), views={"levels": LEVELS}
)
INSTANT = pa.timestamp("us", "UTC")


def log_table(
    ids: Sequence[str | None], columns: Mapping[str, Any] | None = None, *, content: str = CONTENT
) -> pa.Table:
    """Return rows as a server of `INPUTS` logs them, a minute apart; `columns` replaces some, None drops one."""
    rows = len(ids)
    values: dict[str, Any] = {
        "prediction_id": pa.array(ids, pa.string()),
        "request_time": pa.array([START + timedelta(minutes=number) for number in range(rows)], INSTANT),
        "model_version": pa.array(["3"] * rows, pa.string()),
        "model_content": pa.array([content] * rows, pa.string()),
        "pond": pa.array(["a"] * rows, pa.string()),
        "wind": pa.array([float(number) for number in range(rows)]),
        "levels__level": pa.array([1.5] * rows),
        "prediction": pa.array([0.25] * rows),
    }
    values |= columns or {}
    return pa.table({name: value for name, value in values.items() if value is not None})


def write_log(file: Path, table: pa.Table) -> Path:
    """Write a file of a log, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file
