"""A job's training data in parts, so that a trainer need not hold all rows in memory.

pyarrow is imported where it is used: Airflow's processes import this package, too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evergreen import storage
from evergreen.training.job import Job

if TYPE_CHECKING:
    import pyarrow as pa


class TrainingRows:
    """The rows of a Parquet file, in order, one row group (of 65,536 rows in a training set) at a time."""

    def __init__(self, file: Path, source: str):
        import pyarrow.parquet as pq

        self.source = source
        """The URI of the data, for messages."""
        self._file = file
        self.count: int = pq.read_metadata(file).num_rows

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield these columns, once. A trainer that passes over its data several times calls this each time."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._file) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=list(columns))


@contextmanager
def open_training_rows(job: Job) -> Iterator[TrainingRows]:
    """Open the rows of a job. Those in an object store are copied to a temporary file, as they may be read often."""
    path = storage.storage_path(job.training_data)
    if isinstance(path, Path):
        yield TrainingRows(path, job.training_data)
        return
    with tempfile.NamedTemporaryFile(suffix=".parquet") as copy:
        with path.open("rb") as source:
            shutil.copyfileobj(source, copy, 2**20)
        copy.flush()
        yield TrainingRows(Path(copy.name), job.training_data)
