"""Where raw files are delivered, one per source and period, and their hashes.

raw/flights/day=2013-01-01/flights.parquet      under the lake's root; delivered by others
raw_hashes/flights.json                         a cache: SHA-256 of each file and the version it belongs to
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.lake.datasets import period_partition
from evergreen.settings import settings

_MIN_AGE_NS = 2_000_000_000  # coarser than the timestamps of any file system in use


def raw_folder() -> Path:
    """The folder that raw files are delivered to."""
    return settings().lake / "raw"


def raw_file(source: str, period: str | None = None) -> Path:
    """Path of the raw file of `source`: one file per period, or one for all of them if `period` is None."""
    folder = raw_folder() / source
    return (folder / period_partition(period) if period else folder) / f"{source}.parquet"


def hash_raw_files(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each raw file. A file is read only if it has changed since it was hashed.

    "Changed" is decided by size, inode, modification time and change time. The change time is set by the kernel, so
    no copy that preserves times goes unnoticed. A file that was modified less than two seconds ago is not cached: a
    second write within one tick of the file system's clock would keep its timestamps. So a cached hash is as good
    as reading the file again, also for the last look of `publish_features`.
    """
    sources: dict[str, list[Path]] = {}
    for file in files:
        sources.setdefault(file.relative_to(raw_folder()).parts[0], []).append(file)
    hashes = {}
    for source, paths in sources.items():
        cache_file = settings().lake / "raw_hashes" / f"{source}.json"
        cache, new_entries = _read_cache(cache_file), {}
        for path in paths:
            key, version, now = path.parent.name, _file_version(path), time.time_ns()
            entry = cache.get(key)
            if entry is None or entry["version"] != version:
                entry = {"version": version, "sha256": storage.file_sha256(path)}
                if now - max(version[-2:]) >= _MIN_AGE_NS and _file_version(path) == version:
                    new_entries[key] = entry
            hashes[path] = entry["sha256"]
        if new_entries:
            with storage.file_lock(cache_file.with_suffix(".lock")), storage.atomic_write(cache_file) as scratch:
                scratch.write_text(json.dumps(_read_cache(cache_file) | new_entries, sort_keys=True))
    return hashes


def _read_cache(file: Path) -> dict[str, dict[str, Any]]:
    cache: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    return cache


def _file_version(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
