"""Batches from a Parquet file that need not fit into memory, in an order that depends on the seed alone.

In each epoch the row groups are in a new order. Each of the processes that train together takes an equal share of the
rows in that order, reads it window by window (a few row groups), and shuffles each window::

    row groups      7 2 9 4 0 5 8 1 3 6           a new order for each epoch
    processes       |   0    |    1    |          a share may start within a row group
    windows         |7 2 |9 4|4 0|5 8 |...        decoded one ahead of the one in use
    batches         |.|.|.|.|.|.|.|.|.|           the same number in each process; every row once

So the batch of a step is known without those before it: an attempt that resumes from a checkpoint decodes nothing
earlier, except for the first rows of a window. Memory does not grow with the file, only with `shuffle_rows` and the
size of a row group.
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

from evergreen.errors import TrainingDataError
from evergreen.training.rows import TrainingRows
from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics, open_parquet
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch, interleave, to_float32

_READERS = 2  # one waits for the store or the disk while the other decodes
_GROUP_ORDER, _ROW_ORDER = 1, 2  # independent random orders, though the seed is the same


@dataclass(frozen=True)
class BatchPlan:
    """Divides the rows of a file, given the sizes of its row groups, into steps, processes and windows."""

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
        return -(-self.rows // self.batch_rows)

    def rank_range(self, rank: int) -> tuple[int, int]:
        """Return the rows of an epoch that the process reads: start, stop."""
        return self.rows * rank // self.world_size, self.rows * (rank + 1) // self.world_size

    def batch_range(self, step: int, rank: int) -> tuple[int, int]:
        """Return the rows of a process's share that are its part of the step: start, stop."""
        start, stop = self.rank_range(rank)
        step_in_epoch, rows = step % self.steps_per_epoch, stop - start
        return rows * step_in_epoch // self.steps_per_epoch, rows * (step_in_epoch + 1) // self.steps_per_epoch

    def rows_in_step(self, step: int) -> int:
        """Return the rows of the step, over all processes."""
        return sum(stop - start for start, stop in (self.batch_range(step, p) for p in range(self.world_size)))

    def windows(self, epoch: int) -> Iterator[ShuffleWindow]:
        """Return the windows of this process's share."""
        start, stop = self.rank_range(self.rank)
        slices: list[RowGroupSlice] = []
        window_start = group_start = 0
        for group in _generator(_GROUP_ORDER, self.seed, epoch).permutation(len(self.row_group_sizes)).tolist():
            size = self.row_group_sizes[group]
            next_slice = RowGroupSlice(group, max(start - group_start, 0), min(stop - group_start, size))
            group_start += size
            if not next_slice:
                continue
            window_rows = sum(map(len, slices))
            if slices and window_rows + len(next_slice) > self.shuffle_rows:
                yield ShuffleWindow(epoch, window_start, tuple(slices))
                slices, window_start = [], window_start + window_rows
            slices.append(next_slice)
        if slices:
            yield ShuffleWindow(epoch, window_start, tuple(slices))

    def permutation(self, window: ShuffleWindow) -> NDArray[np.int64]:
        """Return the order in which the rows of the window are used."""
        generator = _generator(_ROW_ORDER, self.seed, window.epoch, self.rank, window.start)
        return generator.permutation(len(window))


@dataclass(frozen=True)
class RowGroupSlice:
    """A range of rows of one row group."""

    group: int
    start: int
    stop: int

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)


@dataclass(frozen=True)
class ShuffleWindow:
    """Rows that are in memory together; `start` is the position of the first in the process's share of the epoch."""

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
        TrainingDataError: there are too few rows for so many processes.
    """

    def __init__(self, rows: TrainingRows, columns: InputColumns, statistics: ColumnStatistics, plan: BatchPlan):
        self.rows, self.columns, self.statistics, self.plan = rows, columns, statistics, plan
        if plan.rows // plan.world_size < plan.steps_per_epoch:
            raise TrainingDataError(
                f"{rows.source}: {plan.rows} rows in batches of {plan.batch_rows} are too few for {plan.world_size} "
                "processes: raise batch_rows, or train with fewer"
            )

    def batches(self, first: int, last: int) -> Iterator[RowBatch]:
        """Return the batches of the steps `first` ≤ step < `last`, counted over all epochs."""
        with ExitStack() as stack:
            readers = stack.enter_context(_ReaderPool(self.rows, self.columns, self.statistics))
            windows = self._prefetch(readers, self._windows_between(first, last))
            stack.callback(windows.close)
            window: _ShuffledWindow | None = None
            for step in range(first, last):
                position, stop = self.plan.batch_range(step, self.plan.rank)
                parts = []
                while position < stop:
                    if window is None or not window.contains(step // self.plan.steps_per_epoch, position):
                        window = None  # free its memory before the next one is requested
                        window = next(windows)
                    parts.append(window.take(position, stop))
                    position += len(parts[-1])
                yield RowBatch.concatenate(parts)

    def _windows_between(self, first: int, last: int) -> Iterator[ShuffleWindow]:
        for epoch in range(first // self.plan.steps_per_epoch, -(-last // self.plan.steps_per_epoch)):
            position = 0
            if epoch == first // self.plan.steps_per_epoch:
                position, _ = self.plan.batch_range(first, self.plan.rank)
            yield from (window for window in self.plan.windows(epoch) if window.stop > position)

    def _prefetch(self, readers: _ReaderPool, windows: Iterator[ShuffleWindow]) -> Generator[_ShuffledWindow]:
        """Return each window when it is requested, while the next one is being decoded."""
        submitted = ((window, readers.submit(window)) for window in windows)
        upcoming = next(submitted, None)
        while upcoming:
            window, pending = upcoming
            rows = pending.wait()
            upcoming = next(submitted, None)
            yield _ShuffledWindow(window, rows, self.plan.permutation(window))


@dataclass(frozen=True)
class _ShuffledWindow:
    window: ShuffleWindow
    rows: RowBatch
    permutation: NDArray[np.int64]

    def contains(self, epoch: int, position: int) -> bool:
        return self.window.epoch == epoch and self.window.start <= position < self.window.stop

    def take(self, position: int, stop: int) -> RowBatch:
        """Return the rows from `position` of the share to `stop`, or to the end of the window."""
        start = self.window.start
        return self.rows.take(self.permutation[position - start : min(stop, self.window.stop) - start])


@dataclass(frozen=True)
class _PendingWindow:
    target: RowBatch
    futures: list[Future[None]]

    def wait(self) -> RowBatch:
        for future in self.futures:
            future.result()
        return self.target


class _ReaderPool:
    """Threads that decode row groups. Each opens the file itself: an open file serves one reader at a time."""

    def __init__(self, rows: TrainingRows, columns: InputColumns, statistics: ColumnStatistics):
        self._columns, self._statistics = columns, statistics
        self._files: SimpleQueue[pq.ParquetFile] = SimpleQueue()
        self._open_files = ExitStack()
        for _ in range(_READERS):
            self._files.put(self._open_files.enter_context(open_parquet(rows, columns)))
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="decode")

    def __enter__(self) -> _ReaderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._open_files.close()

    def submit(self, window: ShuffleWindow) -> _PendingWindow:
        target = RowBatch.allocate(len(window), self._columns)
        futures, start = [], 0
        for rows in window.slices:
            part = slice(start, start + len(rows))
            part_target = RowBatch(target.numbers[part], target.categories[part], target.labels[part])
            futures.append(self._threads.submit(self._decode, rows, part_target))
            start = part.stop
        return _PendingWindow(target, futures)

    def _decode(self, rows: RowGroupSlice, target: RowBatch) -> None:
        file = self._files.get()
        try:
            table = file.read_row_group(rows.group, columns=self._columns.names)
        finally:
            self._files.put(file)
        table = table.slice(rows.start, len(rows))
        interleave([to_float32(table[name]) for name in self._columns.numbers], target.numbers)
        codes = [self._statistics.encode(n, table[name]) for n, name in enumerate(self._columns.categories)]
        interleave(codes, target.categories)
        target.labels[:] = to_float32(table[self._columns.label])


def _generator(*parts: int) -> np.random.Generator:
    return np.random.default_rng(parts)
