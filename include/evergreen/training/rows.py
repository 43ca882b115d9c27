"""A job's training data in parts, so that a trainer need not hold all rows in memory, nor on a disk.

pyarrow is imported where it is used: Airflow's processes import this package, too.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from evergreen import storage
from evergreen.errors import TrainingDataError, first_line
from evergreen.storage import ObjectStatus, UPath
from evergreen.training.job import Job

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_VERSION_VARIABLE = "EVERGREEN_TRAINING_DATA_VERSION"  # of an object that another process has just compared
_CHUNK_BYTES = 8 << 20
_RETRY_S = 180.0  # as long as the lake's own client
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0

_T = TypeVar("_T")

log = logging.getLogger(__name__)


class TrainingRows:
    """The rows of a Parquet file, in order, one row group (of 65,536 rows in a training set) at a time."""

    def __init__(self, file: Path | PublishedObject):
        self.source = str(file)
        """The path or URI of the data, for messages."""
        self._file = file
        with self._open() as parquet_file:
            self.metadata: pq.FileMetaData = parquet_file.metadata
            self.schema: pa.Schema = parquet_file.schema_arrow
            """Of all columns of the file."""
        self.count: int = self.metadata.num_rows

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield these columns, once. A trainer that passes over its data several times calls this each time."""
        with self.open_file() as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=list(columns))

    def open_file(self, **options: Any) -> pq.ParquetFile:
        """Open the file itself, with these options of `pyarrow.parquet.ParquetFile`. It serves one thread at a time."""
        return self._open(metadata=self.metadata, **options)

    def _open(self, **options: Any) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        if isinstance(self._file, Path):
            return pq.ParquetFile(self._file, **options)
        # Buffered, because an object store needs few, large reads for the columns of a row group.
        return pq.ParquetFile(_ObjectReader(self._file), **{"pre_buffer": True, **options})


@contextmanager
def open_training_rows(job: Job) -> Iterator[TrainingRows]:
    """Open the rows of a job. Those in an object store are read where they are: each pass over them is a download.

    Raises:
        TrainingDataError: they are gone, or not those that the job names; also while they are read.
        OSError: the store fails, or refuses, for minutes.
    """
    path = storage.storage_path(job.training_data)
    if isinstance(path, Path):
        yield TrainingRows(path)
        return
    published = PublishedObject(path, job.training_data_sha256, job.training_data_size)
    published.verify(os.environ.get(_VERSION_VARIABLE, ""))
    yield TrainingRows(published)


def verify_training_data(job: Job) -> dict[str, str]:
    """Check the data of a job; return variables by which processes of the same attempt know that this was done.

    Raises as `open_training_rows`.
    """
    path = storage.storage_path(job.training_data)
    if isinstance(path, Path):
        return {}
    return {_VERSION_VARIABLE: PublishedObject(path, job.training_data_sha256, job.training_data_size).verify()}


class PublishedObject:
    """A file in an object store, of which a job names hash and size. Several threads may read it.

    Its content is compared with its hash once. From then on its version stands for that: after each range that is read
    the store is asked whether the object has been replaced. If so, even by the same content, as when it moves to
    another storage class, it is compared again.
    """

    def __init__(self, file: UPath, sha256: str, size: int):
        self.file, self.sha256, self.size = file, sha256, size
        self._version = ""
        self._lock = Lock()

    def __str__(self) -> str:
        return str(self.file)

    def verify(self, known_version: str = "") -> str:
        """Compare size and content of the object with what the job names, unless it is `known_version`.

        Returns:
            its version.

        Raises:
            TrainingDataError: it is gone, or other content.
        """
        with self._lock:
            status = self._status()
            while status.version not in (self._version, known_version):
                log.info("reading %s once, to compare it with its hash", self.file)
                if status.size != self.size or self._read_hash() != self.sha256:
                    self._version = ""
                    raise TrainingDataError(
                        f"{self.file} is not what was published: find out who can write to it, remove it if it is a "
                        "copy beside the jobs, or else the manifest of its partition, and clear the run from its "
                        "training_set task on"
                    )
                self._version, status = status.version, self._status()
            self._version = status.version
            return self._version

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, which are within the file. A connection that is cut is made anew.

        Raises as `verify`; an OSError if the store fails for minutes.
        """
        while True:
            version = self._version
            data = self._retry(partial(self._read_range, start, stop))
            if data is not None and self._status().version == version:
                return data
            self.verify()

    def _read_range(self, start: int, stop: int) -> bytes | None:
        """Return the bytes of a range; None if the object has another size by now."""
        data = storage.read_range(self.file, start, stop)
        if len(data) == stop - start:
            return data
        if self._status().size != self.size:
            return None
        raise OSError(f"{self.file}: {len(data)} bytes came instead of {stop - start}")

    def _read_hash(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, self.size, _CHUNK_BYTES):
            stop = min(start + _CHUNK_BYTES, self.size)
            digest.update(self._retry(partial(self._read_range, start, stop)) or b"")
        return digest.hexdigest()

    def _status(self) -> ObjectStatus:
        return self._retry(partial(storage.object_status, self.file))

    def _retry(self, request: Callable[[], _T]) -> _T:
        deadline, pause_s = time.monotonic() + _RETRY_S, _FIRST_PAUSE_S
        while True:
            try:
                return request()
            except (FileNotFoundError, PermissionError) as error:
                self._raise_unreadable(error)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("%s: %s: the request is repeated", self.file, first_line(error))
            time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the pods
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _raise_unreadable(self, error: OSError) -> NoReturn:
        if isinstance(error, FileNotFoundError):
            raise TrainingDataError(
                f"{self.file} is gone: it has expired, or was removed: clear the run from its training_set task on"
            ) from error
        # As when a token has expired, of which the next attempt has a new one.
        raise PermissionError(
            f"{self.file}: the store refuses to read it: give training pods the right to read training sets; S3 also "
            "says so of an object that is gone to whoever may not list its bucket"
        ) from error


class _ObjectReader(io.RawIOBase):
    """A published object as a file, for pyarrow."""

    def __init__(self, published: PublishedObject):
        self._published, self._position = published, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._published.size}[whence]
        self._position = origin + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        stop = self._published.size if size is None or size < 0 else min(self._position + size, self._published.size)
        if stop <= self._position:
            return b""
        data = self._published.read(self._position, stop)
        self._position = stop
        return data
