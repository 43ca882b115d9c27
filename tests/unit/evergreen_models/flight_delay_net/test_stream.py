"""The order of batches: each row once an epoch, over all processes; the same again; and from any step on."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen import storage
from evergreen.errors import TrainingDataError
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch
from evergreen_models.flight_delay_net.scales import ColumnStatistics, compute_column_statistics
from evergreen_models.flight_delay_net.stream import BatchPlan, BatchStream
from support.training_data import CATEGORIES, table, write

pytestmark = pytest.mark.unit

ROWS, GROUP = 5_000, 330
INPUTS = ("row", "carrier", "rain", "dest")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(table(ROWS), tmp_path_factory.mktemp("data") / "train.parquet", GROUP)


@pytest.fixture(scope="module")
def columns() -> InputColumns:
    return InputColumns.from_schema(table(1).schema, INPUTS, "label", CATEGORIES)


@pytest.fixture(scope="module")
def scales(train: Path, columns: InputColumns) -> ColumnStatistics:
    return compute_column_statistics(str(train), columns, min_category_rows=1)


def order(process: int = 0, processes: int = 1, seed: int = 3, batch_rows: int = 256) -> BatchPlan:
    groups = [GROUP] * (ROWS // GROUP) + [ROWS % GROUP]
    return BatchPlan(tuple(groups), batch_rows, 1_000, seed, process, processes)


def batches(
    train: Path,
    columns: InputColumns,
    scales: ColumnStatistics,
    how: BatchPlan,
    first: int = 0,
    epochs: int = 1,
) -> list[RowBatch]:
    return list(BatchStream(str(train), columns, scales, how).batches(first, epochs * how.steps_per_epoch))


def read(found: list[RowBatch]) -> list[int]:
    """The numbers of the rows, in the order of the batches."""
    return [int(row) for batch in found for row in batch.numbers[:, 0]]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_each_row_comes_once_an_epoch_and_the_processes_share_them_evenly(
    train: Path, columns: InputColumns, scales: ColumnStatistics, processes: int
) -> None:
    streams = [batches(train, columns, scales, order(n, processes), epochs=2) for n in range(processes)]
    steps = order().steps_per_epoch
    assert {len(stream) for stream in streams} == {2 * steps}
    for epoch in (0, 1):
        seen = [read(stream[epoch * steps : (epoch + 1) * steps]) for stream in streams]
        assert sorted(row for rows in seen for row in rows) == list(range(ROWS))
        assert max(map(len, seen)) - min(map(len, seen)) <= 1
    for step in range(2 * steps):
        sizes = [len(stream[step]) for stream in streams]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == order(0, processes).rows_in_step(step)
        assert abs(sum(sizes) - ROWS / steps) <= processes


def test_rows_arrive_as_they_are_in_the_file(train: Path, columns: InputColumns, scales: ColumnStatistics) -> None:
    expected = table(ROWS)
    found = RowBatch.concatenate(batches(train, columns, scales, order()))
    expected = expected.take(pa.array(found.numbers[:, 0].astype(int)))
    np.testing.assert_array_equal(found.numbers[:, 1], expected["rain"].to_pandas().astype(np.float32))
    np.testing.assert_array_equal(found.labels, expected["label"])
    for n, (name, words) in enumerate(CATEGORIES.items()):
        codes = [0 if word is None else 1 + words.index(word) for word in expected[name].to_pylist()]
        assert found.categories[:, n].tolist() == codes


def test_from_an_object_store_they_are_the_same(train: Path, columns: InputColumns, scales: ColumnStatistics) -> None:
    stored = storage.storage_path(f"memory://{train.parent.name}/train.parquet")
    storage.upload(train, stored)
    assert compute_column_statistics(str(stored), columns, min_category_rows=1) == scales
    found = BatchStream(str(stored), columns, scales, order()).batches(0, order().steps_per_epoch)
    assert read(list(found)) == read(batches(train, columns, scales, order()))


def test_the_order_follows_from_the_seed_and_the_epoch(
    train: Path, columns: InputColumns, scales: ColumnStatistics
) -> None:
    once = read(batches(train, columns, scales, order(), epochs=2))
    assert read(batches(train, columns, scales, order(), epochs=2)) == once
    assert once[:ROWS] != once[ROWS:]
    assert read(batches(train, columns, scales, order(seed=4))) != once[:ROWS]
    # Not only the row groups: within a window rows are shuffled too.
    neighbours = np.abs(np.diff(once[:1_000]))
    assert np.mean(neighbours == 1) < 0.05


@pytest.mark.parametrize("first", [1, 7, 19, 20, 21, 39])
def test_from_any_step_on_the_batches_are_those_that_would_have_come(
    train: Path, columns: InputColumns, scales: ColumnStatistics, first: int
) -> None:
    for how in (order(), order(1, 3)):
        whole = batches(train, columns, scales, how, epochs=2)
        rest = batches(train, columns, scales, how, first=first, epochs=2)
        assert len(rest) == len(whole) - first
        for one, other in zip(whole[first:], rest, strict=True):
            np.testing.assert_array_equal(one.numbers, other.numbers)
            np.testing.assert_array_equal(one.categories, other.categories)


def test_what_was_passed_is_not_decoded(
    train: Path, columns: InputColumns, scales: ColumnStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    decoded: list[int] = []
    real = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **how: object) -> pa.Table:
        decoded.append(group)
        return real(file, group, **how)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    how = order()
    batches(train, columns, scales, how, first=how.steps_per_epoch - 1)
    assert len(decoded) <= 2 * 3  # the window of the last batch and perhaps the one before it, three groups each


def test_who_stops_early_leaves_no_thread_behind(train: Path, columns: InputColumns, scales: ColumnStatistics) -> None:
    import threading

    stream = iter(BatchStream(str(train), columns, scales, order()).batches(0, 1_000))
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_file_that_is_damaged_is_told_in_the_thread_that_learns(
    train: Path, columns: InputColumns, scales: ColumnStatistics, tmp_path: Path
) -> None:
    content = bytearray(train.read_bytes())
    content[4:20_000] = bytes(20_000 - 4)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(content)
    with pytest.raises((OSError, pa.ArrowException)):
        batches(damaged, columns, scales, order())


def test_too_few_rows_for_so_many_processes_are_refused(
    train: Path, columns: InputColumns, scales: ColumnStatistics
) -> None:
    with pytest.raises(TrainingDataError, match="too few for 8 processes"):
        BatchStream(str(train), columns, scales, order(0, 8, batch_rows=4))


def test_memory_follows_the_window_and_not_the_file(tmp_path: Path, columns: InputColumns) -> None:
    groups, rows = 100, 10_000
    file = write(table(groups * rows), tmp_path / "train.parquet", rows)
    known = compute_column_statistics(str(file), columns, min_category_rows=1)
    how = BatchPlan((rows,) * groups, batch_rows=1_000, shuffle_rows=2 * rows, seed=3)
    gc.collect()
    arrow, highest = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for _ in BatchStream(str(file), columns, known, how).batches(0, how.steps_per_epoch):
        highest = max(highest, pa.total_allocated_bytes() - arrow)
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    as_arrays = 4 * (len(INPUTS) + 1) * groups * rows
    assert arrays + highest < as_arrays / 5  # two windows of fifty, and row groups that are being decoded


@given(
    groups=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    batch_rows=st.integers(1, 60),
    window_rows=st.integers(1, 120),
    processes=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_windows_hold_each_row_of_the_epoch_once(
    groups: list[int], batch_rows: int, window_rows: int, processes: int, epoch: int
) -> None:
    seen: list[tuple[int, int]] = []
    for process in range(processes):
        how = BatchPlan(tuple(groups), batch_rows, window_rows, 1, process, processes)
        at = 0
        for window in how.windows(epoch):
            assert window.start == at
            assert len(window) <= window_rows or len(window.slices) == 1
            assert sorted(how.permutation(window)) == list(range(len(window)))
            at = window.stop
            seen += [(piece.group, row) for piece in window.slices for row in range(piece.start, piece.stop)]
        start, stop = how.rank_range(process)
        assert at == stop - start
        assert how.batch_range(epoch * how.steps_per_epoch, process)[0] == 0
        assert how.batch_range((epoch + 1) * how.steps_per_epoch - 1, process)[1] == at
    assert sorted(seen) == [(group, row) for group, size in enumerate(groups) for row in range(size)]
