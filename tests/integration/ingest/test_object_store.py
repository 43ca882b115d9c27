"""Raw data in an object store: found, hashed once per version, and read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from evergreen.ingest import raw_files
from evergreen.ingest.declared_files import read_as_declared
from evergreen.ingest.raw_files import RawFile, hash_raw_files, raw_folder
from evergreen.ingest.watcher import WatchedSource, list_complete_days
from evergreen.lake.datasets import Dataset
from evergreen.settings import settings
from evergreen.spec.model import RawSource
from support import s3_server
from support.s3_server import S3

pytestmark = pytest.mark.integration

DAY = date(2013, 3, 1)
FILES = dict(path="orders/dt=%Y-%m-%d/", format="csv", marker="_SUCCESS")
ORDERS = RawSource(name="orders", columns={"x": "int64"}, files=FILES)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[S3]:
    with s3_server.running("evergreen") as server:
        server.use(monkeypatch)
        monkeypatch.setenv("EVERGREEN_RAW", "s3://evergreen/raw")
        settings.cache_clear()
        yield server


def put(name: str, content: bytes) -> None:
    fs = raw_folder().fs
    fs.pipe_file(f"evergreen/raw/orders/{name}", content)


def test_parts_in_a_bucket_are_read_when_they_are_complete(s3: S3, tmp_path: Path) -> None:
    sources = {"orders": WatchedSource.from_source(ORDERS)}
    delivery = RawFile.from_source(ORDERS, DAY)
    put("dt=2013-03-01/b.csv", b"x\n2\n")
    put("dt=2013-03-01/a.csv", b"x\n1\n")
    assert list_complete_days(raw_folder(), sources, datetime.now(UTC), "UTC") == {}
    assert hash_raw_files([delivery]) == {}
    put("dt=2013-03-01/_SUCCESS", b"")
    assert list(list_complete_days(raw_folder(), sources, datetime.now(UTC), "UTC")) == ["2013-03-01"]
    declared = read_as_declared(ORDERS, delivery, hash_raw_files([delivery])[delivery], Dataset(tmp_path / "copies"))
    assert pq.read_table(declared.path)["x"].to_pylist() == [1, 2]


def test_faults_name_the_object(s3: S3, tmp_path: Path) -> None:
    put("dt=2013-03-01/a.csv", b"x\n0.7\n")
    put("dt=2013-03-01/_SUCCESS", b"")
    delivery = RawFile.from_source(ORDERS, DAY)
    declared = read_as_declared(ORDERS, delivery, hash_raw_files([delivery])[delivery], Dataset(tmp_path / "copies"))
    assert declared.faults[0].location == "s3://evergreen/raw/orders/dt=2013-03-01/a.csv: x"


def test_an_object_is_hashed_once_per_version(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    hash_part = raw_files._hash_part

    def count(part: Any) -> str:
        reads.append(part.name)
        return hash_part(part)

    monkeypatch.setattr(raw_files, "_hash_part", count)
    delivery = RawFile.from_source(ORDERS, DAY)
    put("dt=2013-03-01/a.csv", b"x\n1\n")
    put("dt=2013-03-01/_SUCCESS", b"")
    first = hash_raw_files([delivery])
    assert hash_raw_files([delivery]) == first
    assert reads == ["a.csv"]
    put("dt=2013-03-01/a.csv", b"x\n2\n")
    assert hash_raw_files([delivery]) != first
    assert reads == ["a.csv"] * 2
