"""Tables into and out of Feast's offline stores, whose interface is pandas: no value changes on the way.

pandas makes a float of every integer of a column in which one is missing. So integers and booleans go in as pandas'
own nullable types, and results come out as Arrow tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.offline_store import RetrievalJob

from evergreen.ingest.frames import text_as_objects, text_as_strings
from evergreen.lake.datasets import Dataset, Manifest

_NULLABLE_DTYPES = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


_partitions: ContextVar[Sequence[str] | None] = ContextVar("partitions", default=None)


@contextmanager
def restrict_partitions(partitions: Sequence[str] | None) -> Iterator[None]:
    """Let retrievals see these partitions of datasets only; None: all. Feast's interface has no place to say so."""
    token = _partitions.set(partitions)
    try:
        yield
    finally:
        _partitions.reset(token)


def visible_manifests(dataset: Dataset) -> list[Manifest]:
    """Return the published manifests of a dataset that a retrieval sees, in the order of the partitions' names."""
    partitions = _partitions.get()
    if partitions is None:
        return dataset.manifests()
    return dataset.read_manifests(sorted(partitions))


def entity_frame(entities: pa.Table) -> pd.DataFrame:
    """Return the frame of keys and timestamps that Feast asks for."""
    return text_as_objects(entities.to_pandas(date_as_object=True, types_mapper=_NULLABLE_DTYPES.get))


def read_table(job: RetrievalJob) -> pa.Table:
    """Return the result of a retrieval."""
    return text_as_strings(job.to_arrow())


def read_table_in_batches(job: RetrievalJob, rows: int, in_key_order: bool = False) -> Iterator[pa.Table]:
    """Return the rows of `read_table` in tables of about `rows`; the first has none.

    The order is that of the keys' bytes in an online store, if asked for. Of a store that is not Evergreen's all rows
    are in memory, in its order.
    """
    if stream := getattr(job, "read_batches", None):
        yield from map(text_as_strings, stream(rows, in_key_order))
        return
    table = read_table(job)
    yield table.slice(0, 0)
    # An engine returns as many chunks as its threads made.
    yield from (pa.Table.from_batches([batch]) for batch in table.combine_chunks().to_batches(rows))
