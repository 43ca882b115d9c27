"""Batches from a Parquet file that need not fit into memory, in an order that depends on the seed alone.

In each epoch the row groups come in a new order. Each of the processes that train together takes an equal share of
the rows in that order, reads it window by window (a few row groups), and shuffles each window::

    row groups      7 2 9 4 0 5 8 1 3 6           a new order for each epoch
    processes       |   0    |    1    |          a share may begin within a row group
    windows         |7 2 |9 4|4 0|5 8 |...        decoded one ahead of the one that is learned from
    batches         |.|.|.|.|.|.|.|.|.|           the same number in each process; all rows, each once

So the batch of a step is known without those before it: who goes on from a checkpoint decodes nothing that was
passed but the first rows of a window. Memory does not grow with the file, only with `window_rows` and the size of
a row group.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evergreen import storage
from evergreen.errors import TrainingDataError
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch, interleave, to_float32
from evergreen_models.flight_delay_net.scales import ColumnStatistics, open_parquet

_READERS = 2  # of row groups: one waits for the store or the disk while another decodes
_GROUP_ORDER, _ROW_ORDER = 1, 2  # orders that have nothing to do with each other, though the seed is the same


@dataclass(frozen=True)
class BatchPlan:
    """How the rows of a file, by the sizes of its row groups, are divided into steps, processes and windows."""

    row_group_sizes: tuple[int, ...]
    batch_rows: int
    shuffle_rows: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def rows(self) -> int:
        return sum(self.row_group_sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Of an epoch."""
        return -(-self.rows // self.batch_rows)

    def rank_range(self, rank: int) -> tuple[int, int]:
        """The rows of an epoch that are this process's: from, until."""
        return self.rows * rank // self.world_size, self.rows * (rank + 1) // self.world_size

    def batch_range(self, step: int, rank: int) -> tuple[int, int]:
        """The rows of a process's share that are its batch of the step: from, until."""
        start, stop = self.rank_range(rank)
        turn, rows = step % self.steps_per_epoch, stop - start
        return rows * turn // self.steps_per_epoch, rows * (turn + 1) // self.steps_per_epoch

    def rows_in_step(self, step: int) -> int:
        """Over all processes."""
        return sum(stop - start for start, stop in (self.batch_range(step, p) for p in range(self.world_size)))

    def windows(self, epoch: int) -> Iterator[ShuffleWindow]:
        """Those of this process's share."""
        start, stop = self.rank_range(self.rank)
        pieces: list[RowGroupSlice] = []
        begun = at = 0
        for group in _generator(_GROUP_ORDER, self.seed, epoch).permutation(len(self.row_group_sizes)).tolist():
            size = self.row_group_sizes[group]
            piece = RowGroupSlice(group, max(start - at, 0), min(stop - at, size))
            at += size
            if not piece:
                continue
            held = sum(map(len, pieces))
            if pieces and held + len(piece) > self.shuffle_rows:
                yield ShuffleWindow(epoch, begun, tuple(pieces))
                pieces, begun = [], begun + held
            pieces.append(piece)
        if pieces:
            yield ShuffleWindow(epoch, begun, tuple(pieces))

    def permutation(self, window: ShuffleWindow) -> NDArray[np.int64]:
        """The order in which the rows of the window are taken."""
        about = (self.seed, window.epoch, self.rank, window.start)
        return _generator(_ROW_ORDER, *about).permutation(len(window))


@dataclass(frozen=True)
class RowGroupSlice:
    """Rows of a row group: from, until."""

    group: int
    start: int
    stop: int

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)


@dataclass(frozen=True)
class ShuffleWindow:
    """Rows that are in memory together; `start` is the place of its first in the process's share of the epoch."""

    epoch: int
    start: int
    slices: tuple[RowGroupSlice, ...]

    def __len__(self) -> int:
        return sum(map(len, self.slices))

    @property
    def stop(self) -> int:
        return self.start + len(self)


class BatchStream:
    """The batches of one process.

    Raises:
        TrainingDataError: there are fewer rows than processes could share.
    """

    def __init__(self, uri: str, columns: InputColumns, statistics: ColumnStatistics, plan: BatchPlan):
        self.uri, self.columns, self.statistics, self.plan = uri, columns, statistics, plan
        if plan.rows // plan.world_size < plan.steps_per_epoch:
            raise TrainingDataError(
                f"{uri}: {plan.rows} rows in batches of {plan.batch_rows} are too few for {plan.world_size} "
                "processes: raise batch_rows, or train with fewer"
            )

    def batches(self, first: int, last: int) -> Iterator[RowBatch]:
        """Those of the steps `first` ≤ step < `last`, counted over all epochs, one after the other."""
        with ExitStack() as held:
            readers = held.enter_context(_ReaderPool(self.uri, self.columns, self.statistics))
            windows = self._prefetch(readers, self._windows_between(first, last))
            held.callback(windows.close)
            window: _ShuffledWindow | None = None
            for step in range(first, last):
                at, stop = self.plan.batch_range(step, self.plan.rank)
                parts = []
                while at < stop:
                    if window is None or not window.contains(step // self.plan.steps_per_epoch, at):
                        window = None  # let go of before the next is asked for
                        window = next(windows)
                    parts.append(window.take(at, stop))
                    at += len(parts[-1])
                yield RowBatch.concatenate(parts)

    def _windows_between(self, first: int, last: int) -> Iterator[ShuffleWindow]:
        for epoch in range(first // self.plan.steps_per_epoch, -(-last // self.plan.steps_per_epoch)):
            passed = 0
            if epoch == first // self.plan.steps_per_epoch:
                passed, _ = self.plan.batch_range(first, self.plan.rank)
            yield from (window for window in self.plan.windows(epoch) if window.stop > passed)

    def _prefetch(self, readers: _ReaderPool, windows: Iterator[ShuffleWindow]) -> Generator[_ShuffledWindow]:
        """Each window when it is asked for; the one after it is decoded meanwhile."""
        following = next(((window, readers.submit(window)) for window in windows), None)
        while following:
            window, decoding = following
            rows = decoding.wait()
            following = next(((window, readers.submit(window)) for window in windows), None)
            yield _ShuffledWindow(window, rows, self.plan.permutation(window))


@dataclass(frozen=True)
class _ShuffledWindow:
    window: ShuffleWindow
    rows: RowBatch
    permutation: NDArray[np.int64]

    def contains(self, epoch: int, position: int) -> bool:
        return self.window.epoch == epoch and self.window.start <= position < self.window.stop

    def take(self, position: int, stop: int) -> RowBatch:
        """Its rows from the place `at` of the share on, until `stop` or its end."""
        start = self.window.start
        return self.rows.take(self.permutation[position - start : min(stop, self.window.stop) - start])


@dataclass(frozen=True)
class _PendingWindow:
    target: RowBatch
    futures: list[Future[None]]

    def wait(self) -> RowBatch:
        for piece in self.futures:
            piece.result()
        return self.target


class _ReaderPool:
    """Threads that decode row groups, each with the file open for itself: an open one serves one reader at a time."""

    def __init__(self, uri: str, columns: InputColumns, statistics: ColumnStatistics):
        self._columns, self._statistics = columns, statistics
        self._files: SimpleQueue[pq.ParquetFile] = SimpleQueue()
        self._open_files = ExitStack()
        metadata = None
        for _ in range(_READERS):
            file = open_parquet(
                self._open_files.enter_context(storage.storage_path(uri).open("rb")),
                columns,
                metadata=metadata,
            )
            metadata = file.metadata
            self._files.put(file)
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="decode")

    def __enter__(self) -> _ReaderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._open_files.close()

    def submit(self, window: ShuffleWindow) -> _PendingWindow:
        target = RowBatch.empty(len(window), self._columns)
        pieces, at = [], 0
        for piece in window.slices:
            part = slice(at, at + len(piece))
            into = RowBatch(target.numbers[part], target.categories[part], target.labels[part])
            pieces.append(self._threads.submit(self._decode, piece, into))
            at = part.stop
        return _PendingWindow(target, pieces)

    def _decode(self, piece: RowGroupSlice, target: RowBatch) -> None:
        file = self._files.get()
        try:
            table = file.read_row_group(piece.group, columns=self._columns.names)
        finally:
            self._files.put(file)
        table = table.slice(piece.start, len(piece))
        interleave([to_float32(table[name]) for name in self._columns.numbers], target.numbers)
        codes = [self._statistics.encode(n, table[name]) for n, name in enumerate(self._columns.categories)]
        interleave(codes, target.categories)
        target.labels[:] = to_float32(table[self._columns.label])


def _generator(*parts: int) -> np.random.Generator:
    return np.random.default_rng(parts)
