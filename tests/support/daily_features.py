"""Features of models that a test writes, published day by day without Spark, and the window of their retrains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.lake import datasets
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window
from support.calendars import DAYS


def publish_tables(model: str, day: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Publish the tables of a day, each by its columns."""
    dataset, partition = datasets.open_dataset(f"features/{model}"), datasets.period_partition(day)
    staged = dataset.stage(partition, f"of-{day}")
    files = {name: staged / f"{name}.parquet" for name in tables}
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), files[name])
    dataset.publish(partition, f"of-{day}", files, {})


def retrain_window(model: ModelSpec, as_of: str, first: str) -> Window:
    """Return the window of a retrain as of a day, of a model whose data begins on the day `first`."""
    start = as_of
    for duration in model.history:
        start = DAYS.period_before(start, duration)
    return Window.from_range(max(first, start), as_of, RunReason.SCHEDULE, DAYS)
