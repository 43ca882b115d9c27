"""The newest row of each key, read in batches, is that of the whole table: with ties, nulls and one hot key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.repo_config import RepoConfig

from evergreen.feature_store import offline_store
from evergreen.feature_store.offline_store import AsofOfflineStore
from evergreen.feature_store.online_encoding import OnlineColumn, encode_keys
from evergreen.feature_store.retrieval import read_table, read_table_in_batches

pytestmark = pytest.mark.unit

KEY, VALUE = 'the "key"', "a.b"
ROWS = 60_000


def pull_newest(folder: Path, table: pa.Table, keys: Sequence[str] = (KEY,)) -> RetrievalJob:
    pq.write_table(table, folder / "rows.parquet")
    config = RepoConfig(
        project="ponds",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store={"type": "evergreen.feature_store.offline_store.AsofOfflineStore"},
        entity_key_serialization_version=3,
    )
    source = FileSource(
        name="rows", path=str(folder / "rows.parquet"), file_format=ParquetFormat(), timestamp_field="event_timestamp"
    )
    span = datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC)
    return AsofOfflineStore.pull_latest_from_table_or_query(
        config, source, list(keys), [VALUE], "event_timestamp", None, *span
    )


@pytest.mark.parametrize("in_key_order", [False, True])
@pytest.mark.parametrize("range_rows", [ROWS, 7_000, 1_000])
def test_batches_have_the_rows_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_key_order: bool, range_rows: int
) -> None:
    numbers = np.random.default_rng(2013)
    keys = [
        None if luck < 0.1 else "pond" if luck < 0.6 else f"pond {number}"
        for luck, number in zip(numbers.random(ROWS), numbers.integers(0, 30_000, ROWS), strict=True)
    ]
    seconds = numbers.integers(0, 1_000, ROWS)
    instants = (
        pa.array(1_356_998_400 + seconds, pa.int64()).cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("us", "UTC"))
    )
    table = pa.table({KEY: pa.array(keys), VALUE: np.arange(ROWS), "event_timestamp": instants})
    newest: dict[str | None, tuple[int, int]] = {}
    for row, key in enumerate(keys):
        newest[key] = max(newest.get(key, (-1, -1)), (int(seconds[row]), row))  # of a tie, the last in the file

    monkeypatch.setattr(offline_store, "_PULL_MEMORY_MB", 40)
    monkeypatch.setattr(offline_store, "_RANGE_ROWS", range_rows)
    first, *batches = read_table_in_batches(pull_newest(tmp_path, table), 1_000, in_key_order)
    assert (first.num_rows, first.schema.names) == (0, [KEY, VALUE, "event_timestamp"])
    assert len(batches) > 3
    assert max(map(len, batches)) < ROWS / 10
    rows = pa.concat_tables(batches)
    expected = {key: row for key, (_, row) in newest.items()}
    assert dict(zip(rows[KEY].to_pylist(), rows[VALUE].to_pylist(), strict=True)) == expected
    assert len(rows) == len(expected)
    whole = read_table(pull_newest(tmp_path, table))
    assert whole.schema == first.schema
    assert whole.sort_by(VALUE).equals(rows.sort_by(VALUE))


def test_a_file_without_rows_has_columns(tmp_path: Path) -> None:
    table = pa.table({KEY: ["a"], VALUE: [1], "event_timestamp": [datetime(2013, 1, 1, tzinfo=UTC)]}).slice(0, 0)
    (only,) = read_table_in_batches(pull_newest(tmp_path, table), 10)
    assert (len(only), only.schema.names) == (0, [KEY, VALUE, "event_timestamp"])


@pytest.mark.parametrize(
    ("dtype", "field"), [(pa.string(), "string_val"), (pa.int64(), "int64_val"), (pa.int32(), "int32_val")], ids=str
)
@pytest.mark.parametrize("range_rows", [2 * ROWS, 5_000])
def test_rows_come_in_the_order_of_encoded_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: pa.DataType, field: str, range_rows: int
) -> None:
    monkeypatch.setattr(offline_store, "_RANGE_ROWS", range_rows)
    numbers = np.random.default_rng(7).integers(-(2**31), 2**31, ROWS)
    numbers = np.concatenate([numbers, [0, 1, -1, 255, 256, -256, 2**31 - 1, -(2**31)]])
    seconds = np.ones(len(numbers), np.int64) * 1_356_998_400
    columns = {
        KEY: pa.array(numbers).cast(dtype),
        "also": pa.array([f"ä{number % 7}" * (number % 5) for number in numbers]),
        VALUE: np.arange(len(numbers)),
        "event_timestamp": pa.array(seconds).cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("us", "UTC")),
    }
    keys = sorted([KEY, "also"])
    job = pull_newest(tmp_path, pa.table(columns), keys)
    rows = pa.concat_tables(read_table_in_batches(job, 1_000, in_key_order=True))
    online = {KEY: OnlineColumn(rows[KEY], field), "also": OnlineColumn(rows["also"], "string_val")}
    encoded = encode_keys(online, len(rows)).to_pylist()
    assert len(encoded) == len(set(zip(columns[KEY].to_pylist(), columns["also"].to_pylist(), strict=True)))
    assert encoded == sorted(encoded)


def test_keys_of_any_type_are_read_in_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_store, "_RANGE_ROWS", 1)
    instant = datetime(2013, 1, 1, tzinfo=UTC)
    for values in ([1.5, -0.5, None], [True, False, None], [instant, None, None], [b"b", b"a", None]):
        table = pa.table({KEY: values, VALUE: [1, 2, 3], "event_timestamp": [instant] * 3})
        rows = pa.concat_tables(read_table_in_batches(pull_newest(tmp_path, table), 10, in_key_order=True))
        assert len(rows) == len(set(values))
