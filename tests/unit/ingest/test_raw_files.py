"""Raw files are hashed once, and again whenever they may have changed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from evergreen import storage
from evergreen.ingest import raw_files
from evergreen.ingest.raw_files import RawFile
from evergreen.settings import settings

pytestmark = pytest.mark.unit

AGE_S = 2.0


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    settings.cache_clear()
    file = raw_files.raw_file("flights", "2013-01-01")
    file.parent.mkdir(parents=True)
    file.write_text("first")
    yield file
    settings.cache_clear()


def hash_file(file: Path) -> str:
    delivery = RawFile("flights", "2013-01-01")
    return raw_files.hash_raw_files([delivery])[delivery]


def cache() -> Path:
    return settings().cache / "raw_hashes" / "flights.json"


def test_a_young_file_is_not_cached(file: Path) -> None:
    assert hash_file(file) == storage.file_sha256(file)
    assert not cache().exists()


def test_a_file_that_has_not_changed_is_not_read_again(file: Path) -> None:
    time.sleep(AGE_S)
    assert hash_file(file) == storage.file_sha256(file)
    entries = json.loads(cache().read_text())
    entries["flights-2013-01-01"]["sha256"] = "from the cache"
    cache().write_text(json.dumps(entries))
    assert hash_file(file) == "from the cache"


def test_a_changed_file_is_hashed_again(file: Path) -> None:
    time.sleep(AGE_S)
    first, times = hash_file(file), file.stat()

    def keep_times() -> None:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    file.write_text("other")
    assert hash_file(file) == storage.file_sha256(file) != first
    # Of equal size and modification time, written in place or moved there.
    file.write_text("third")
    keep_times()
    assert hash_file(file) == storage.file_sha256(file) != first
    copy = file.with_name("copy")
    copy.write_text("again")
    shutil.move(copy, file)
    keep_times()
    assert hash_file(file) == storage.file_sha256(file) != first


def test_hashes_of_several_sources_are_cached_apart(file: Path) -> None:
    register = raw_files.raw_file("planes")
    register.parent.mkdir(parents=True)
    register.write_text("planes")
    time.sleep(AGE_S)
    daily, planes = RawFile("flights", "2013-01-01"), RawFile("planes", None)
    expected = {daily: storage.file_sha256(file), planes: storage.file_sha256(register)}
    assert raw_files.hash_raw_files([daily, planes]) == expected
    assert raw_files.hash_raw_files([planes, daily]) == expected
    assert sorted(path.name for path in cache().parent.glob("*.json")) == ["flights.json", "planes.json"]
