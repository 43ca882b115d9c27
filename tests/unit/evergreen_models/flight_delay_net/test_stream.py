"""The order of batches: every row once per epoch over all processes, repeatable, and resumable at any step."""

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
from evergreen.training.rows import TrainingRows, open_training_rows
from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics, compute_column_statistics
from evergreen_models.flight_delay_net.columns import InputColumns, RowBatch
from evergreen_models.flight_delay_net.stream import BatchPlan, BatchStream
from support.training_data import CATEGORIES, net_job, table, write

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
def statistics(train: Path, columns: InputColumns) -> ColumnStatistics:
    return compute_column_statistics(TrainingRows(train), columns, min_category_rows=1)


def batch_plan(rank: int = 0, world_size: int = 1, seed: int = 3, batch_rows: int = 256) -> BatchPlan:
    groups = [GROUP] * (ROWS // GROUP) + [ROWS % GROUP]
    return BatchPlan(tuple(groups), batch_rows, 1_000, seed, rank, world_size)


def batches(
    train: Path, columns: InputColumns, statistics: ColumnStatistics, plan: BatchPlan, first: int = 0, epochs: int = 1
) -> list[RowBatch]:
    return list(
        BatchStream(TrainingRows(train), columns, statistics, plan).batches(first, epochs * plan.steps_per_epoch)
    )


def row_numbers(batches: list[RowBatch]) -> list[int]:
    """Return the numbers of the rows, in the order of the batches."""
    return [int(row) for batch in batches for row in batch.numbers[:, 0]]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_row_once_per_epoch_in_even_shares(
    train: Path, columns: InputColumns, statistics: ColumnStatistics, processes: int
) -> None:
    streams = [batches(train, columns, statistics, batch_plan(n, processes), epochs=2) for n in range(processes)]
    steps = batch_plan().steps_per_epoch
    assert {len(stream) for stream in streams} == {2 * steps}
    for epoch in (0, 1):
        seen = [row_numbers(stream[epoch * steps : (epoch + 1) * steps]) for stream in streams]
        assert sorted(row for rows in seen for row in rows) == list(range(ROWS))
        assert max(map(len, seen)) - min(map(len, seen)) <= 1
    for step in range(2 * steps):
        sizes = [len(stream[step]) for stream in streams]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == batch_plan(0, processes).rows_in_step(step)
        assert abs(sum(sizes) - ROWS / steps) <= processes


def test_rows_equal_those_of_the_file(train: Path, columns: InputColumns, statistics: ColumnStatistics) -> None:
    expected = table(ROWS)
    actual = RowBatch.concatenate(batches(train, columns, statistics, batch_plan()))
    expected = expected.take(pa.array(actual.numbers[:, 0].astype(int)))
    np.testing.assert_array_equal(actual.numbers[:, 1], expected["rain"].to_pandas().astype(np.float32))
    np.testing.assert_array_equal(actual.labels, expected["label"])
    for n, (name, words) in enumerate(CATEGORIES.items()):
        codes = [0 if word is None else 1 + words.index(word) for word in expected[name].to_pylist()]
        assert actual.categories[:, n].tolist() == codes


def test_object_store_gives_the_same_rows(train: Path, columns: InputColumns, statistics: ColumnStatistics) -> None:
    stored = storage.storage_path(f"memory://{train.parent.name}/train.parquet")
    storage.upload(train, stored)
    with open_training_rows(net_job(train).model_copy(update={"training_data": str(stored)})) as rows:
        assert compute_column_statistics(rows, columns, min_category_rows=1) == statistics
        remote = BatchStream(rows, columns, statistics, batch_plan()).batches(0, batch_plan().steps_per_epoch)
        assert row_numbers(list(remote)) == row_numbers(batches(train, columns, statistics, batch_plan()))


def test_order_depends_on_seed_and_epoch(train: Path, columns: InputColumns, statistics: ColumnStatistics) -> None:
    once = row_numbers(batches(train, columns, statistics, batch_plan(), epochs=2))
    assert row_numbers(batches(train, columns, statistics, batch_plan(), epochs=2)) == once
    assert once[:ROWS] != once[ROWS:]
    assert row_numbers(batches(train, columns, statistics, batch_plan(seed=4))) != once[:ROWS]
    # Not only the row groups: within a window rows are shuffled too.
    neighbours = np.abs(np.diff(once[:1_000]))
    assert np.mean(neighbours == 1) < 0.05


@pytest.mark.parametrize("first", [1, 7, 19, 20, 21, 39])
def test_batches_from_any_step_are_the_same(
    train: Path, columns: InputColumns, statistics: ColumnStatistics, first: int
) -> None:
    for plan in (batch_plan(), batch_plan(1, 3)):
        whole = batches(train, columns, statistics, plan, epochs=2)
        rest = batches(train, columns, statistics, plan, first=first, epochs=2)
        assert len(rest) == len(whole) - first
        for one, other in zip(whole[first:], rest, strict=True):
            np.testing.assert_array_equal(one.numbers, other.numbers)
            np.testing.assert_array_equal(one.categories, other.categories)


def test_earlier_windows_are_not_decoded(
    train: Path, columns: InputColumns, statistics: ColumnStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    decoded: list[int] = []
    real = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        decoded.append(group)
        return real(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    plan = batch_plan()
    batches(train, columns, statistics, plan, first=plan.steps_per_epoch - 1)
    assert len(decoded) <= 2 * 3  # the window of the last batch and perhaps the one before it, three groups each


def test_closing_early_leaves_no_thread(train: Path, columns: InputColumns, statistics: ColumnStatistics) -> None:
    import threading

    stream = iter(BatchStream(TrainingRows(train), columns, statistics, batch_plan()).batches(0, 1_000))
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_damaged_file_raises_in_the_reading_thread(
    train: Path, columns: InputColumns, statistics: ColumnStatistics, tmp_path: Path
) -> None:
    content = bytearray(train.read_bytes())
    content[4:20_000] = bytes(20_000 - 4)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(content)
    with pytest.raises((OSError, pa.ArrowException)):
        batches(damaged, columns, statistics, batch_plan())


def test_too_few_rows_for_the_processes_are_refused(
    train: Path, columns: InputColumns, statistics: ColumnStatistics
) -> None:
    with pytest.raises(TrainingDataError, match="too few for 8 processes"):
        BatchStream(TrainingRows(train), columns, statistics, batch_plan(0, 8, batch_rows=4))


def test_memory_depends_on_the_window_not_the_file(tmp_path: Path, columns: InputColumns) -> None:
    groups, rows = 100, 10_000
    file = write(table(groups * rows), tmp_path / "train.parquet", rows)
    file_statistics = compute_column_statistics(TrainingRows(file), columns, min_category_rows=1)
    plan = BatchPlan((rows,) * groups, batch_rows=1_000, shuffle_rows=2 * rows, seed=3)
    gc.collect()
    arrow, highest = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for _ in BatchStream(TrainingRows(file), columns, file_statistics, plan).batches(0, plan.steps_per_epoch):
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
def test_windows_contain_every_row_once(
    groups: list[int], batch_rows: int, window_rows: int, processes: int, epoch: int
) -> None:
    seen: list[tuple[int, int]] = []
    for process in range(processes):
        plan = BatchPlan(tuple(groups), batch_rows, window_rows, 1, process, processes)
        position = 0
        for window in plan.windows(epoch):
            assert window.start == position
            assert len(window) <= window_rows or len(window.slices) == 1
            assert sorted(plan.permutation(window)) == list(range(len(window)))
            position = window.stop
            seen += [(piece.group, row) for piece in window.slices for row in range(piece.start, piece.stop)]
        start, stop = plan.rank_range(process)
        assert position == stop - start
        assert plan.batch_range(epoch * plan.steps_per_epoch, process)[0] == 0
        assert plan.batch_range((epoch + 1) * plan.steps_per_epoch - 1, process)[1] == position
    assert sorted(seen) == [(group, row) for group, size in enumerate(groups) for row in range(size)]
