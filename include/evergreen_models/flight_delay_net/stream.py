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
from evergreen_models.flight_delay_net.columns import Columns, Rows, floats, interleave
from evergreen_models.flight_delay_net.scales import Scales, open_parquet

_READERS = 2  # of row groups: one waits for the store or the disk while another decodes
_OF_GROUPS, _OF_ROWS = 1, 2  # orders that have nothing to do with each other, though the seed is the same


@dataclass(frozen=True)
class Order:
    """How the rows of a file, by the sizes of its row groups, are divided into steps, processes and windows."""

    groups: tuple[int, ...]
    batch_rows: int
    window_rows: int
    seed: int
    process: int = 0
    processes: int = 1

    @property
    def rows(self) -> int:
        return sum(self.groups)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.rows // self.batch_rows)

    def share(self, process: int) -> tuple[int, int]:
        """The rows of an epoch that are this process's: from, until."""
        return self.rows * process // self.processes, self.rows * (process + 1) // self.processes

    def batch(self, step: int, process: int) -> tuple[int, int]:
        """The rows of a process's share that are its batch of the step: from, until."""
        start, stop = self.share(process)
        turn, rows = step % self.steps, stop - start
        return rows * turn // self.steps, rows * (turn + 1) // self.steps

    def rows_of(self, step: int) -> int:
        """Over all processes."""
        return sum(stop - start for start, stop in (self.batch(step, p) for p in range(self.processes)))

    def windows(self, epoch: int) -> Iterator[Window]:
        """Those of this process's share."""
        start, stop = self.share(self.process)
        pieces: list[Piece] = []
        begun = at = 0
        for group in _random(_OF_GROUPS, self.seed, epoch).permutation(len(self.groups)).tolist():
            size = self.groups[group]
            piece = Piece(group, max(start - at, 0), min(stop - at, size))
            at += size
            if not piece:
                continue
            held = sum(map(len, pieces))
            if pieces and held + len(piece) > self.window_rows:
                yield Window(epoch, begun, tuple(pieces))
                pieces, begun = [], begun + held
            pieces.append(piece)
        if pieces:
            yield Window(epoch, begun, tuple(pieces))

    def shuffled(self, window: Window) -> NDArray[np.int64]:
        """The order in which the rows of the window are taken."""
        about = (self.seed, window.epoch, self.process, window.start)
        return _random(_OF_ROWS, *about).permutation(len(window))


@dataclass(frozen=True)
class Piece:
    """Rows of a row group: from, until."""

    group: int
    start: int
    stop: int

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)


@dataclass(frozen=True)
class Window:
    """Rows that are in memory together; `start` is the place of its first in the process's share of the epoch."""

    epoch: int
    start: int
    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def stop(self) -> int:
        return self.start + len(self)


class Stream:
    """The batches of one process.

    Raises:
        TrainingDataError: there are fewer rows than processes could share.
    """

    def __init__(self, uri: str, columns: Columns, scales: Scales, order: Order):
        self.uri, self.columns, self.scales, self.order = uri, columns, scales, order
        if order.rows // order.processes < order.steps:
            raise TrainingDataError(
                f"{uri}: {order.rows} rows in batches of {order.batch_rows} are too few for {order.processes} "
                "processes: raise batch_rows, or train with fewer"
            )

    def batches(self, first: int, last: int) -> Iterator[Rows]:
        """Those of the steps `first` ≤ step < `last`, counted over all epochs, one after the other."""
        with ExitStack() as held:
            readers = held.enter_context(_Readers(self.uri, self.columns, self.scales))
            windows = self._ahead(readers, self._windows(first, last))
            held.callback(windows.close)
            window: _Shuffled | None = None
            for step in range(first, last):
                at, stop = self.order.batch(step, self.order.process)
                parts = []
                while at < stop:
                    if window is None or not window.holds(step // self.order.steps, at):
                        window = None  # let go of before the next is asked for
                        window = next(windows)
                    parts.append(window.take(at, stop))
                    at += len(parts[-1])
                yield Rows.together(parts)

    def _windows(self, first: int, last: int) -> Iterator[Window]:
        for epoch in range(first // self.order.steps, -(-last // self.order.steps)):
            passed = 0
            if epoch == first // self.order.steps:
                passed, _ = self.order.batch(first, self.order.process)
            yield from (window for window in self.order.windows(epoch) if window.stop > passed)

    def _ahead(self, readers: _Readers, windows: Iterator[Window]) -> Generator[_Shuffled]:
        """Each window when it is asked for; the one after it is decoded meanwhile."""
        following = next(((window, readers.begin(window)) for window in windows), None)
        while following:
            window, decoding = following
            rows = decoding.rows()
            following = next(((window, readers.begin(window)) for window in windows), None)
            yield _Shuffled(window, rows, self.order.shuffled(window))


@dataclass(frozen=True)
class _Shuffled:
    window: Window
    rows: Rows
    order: NDArray[np.int64]

    def holds(self, epoch: int, at: int) -> bool:
        return self.window.epoch == epoch and self.window.start <= at < self.window.stop

    def take(self, at: int, stop: int) -> Rows:
        """Its rows from the place `at` of the share on, until `stop` or its end."""
        start = self.window.start
        return self.rows.take(self.order[at - start : min(stop, self.window.stop) - start])


@dataclass(frozen=True)
class _Decoding:
    target: Rows
    pieces: list[Future[None]]

    def rows(self) -> Rows:
        for piece in self.pieces:
            piece.result()
        return self.target


class _Readers:
    """Threads that decode row groups, each with the file open for itself: an open one serves one reader at a time."""

    def __init__(self, uri: str, columns: Columns, scales: Scales):
        self._columns, self._scales = columns, scales
        self._files: SimpleQueue[pq.ParquetFile] = SimpleQueue()
        self._held = ExitStack()
        metadata = None
        for _ in range(_READERS):
            file = open_parquet(
                self._held.enter_context(storage.path(uri).open("rb")), columns, metadata=metadata
            )
            metadata = file.metadata
            self._files.put(file)
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="decode")

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._held.close()

    def begin(self, window: Window) -> _Decoding:
        target = Rows.empty(len(window), self._columns)
        pieces, at = [], 0
        for piece in window.pieces:
            part = slice(at, at + len(piece))
            into = Rows(target.numbers[part], target.categories[part], target.labels[part])
            pieces.append(self._threads.submit(self._decode, piece, into))
            at = part.stop
        return _Decoding(target, pieces)

    def _decode(self, piece: Piece, into: Rows) -> None:
        file = self._files.get()
        try:
            table = file.read_row_group(piece.group, columns=self._columns.all)
        finally:
            self._files.put(file)
        table = table.slice(piece.start, len(piece))
        interleave([floats(table[name]) for name in self._columns.numbers], into.numbers)
        codes = [self._scales.codes(n, table[name]) for n, name in enumerate(self._columns.categories)]
        interleave(codes, into.categories)
        into.labels[:] = floats(table[self._columns.label])


def _random(*parts: int) -> np.random.Generator:
    return np.random.default_rng(parts)
