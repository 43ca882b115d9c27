"""Where raw data is delivered, in which parts, and its hashes.

raw/flights/day=2013-01-01/flights.parquet      the default: one file per source and day; delivered by others
raw/rides/dt=2013-01-01/part-0.csv.gz …         any other place and form that a source declares
extracts/rides-3f9a12bc/                        what was read of a query or a table
raw_hashes/flights.json                         a cache: SHA-256 of each delivery and the versions it belongs to

Light: no engine is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from evergreen import storage
from evergreen.errors import Fault
from evergreen.ingest.path_templates import name_pattern, period_path, source_template
from evergreen.lake.datasets import Dataset, file_name_of_period, open_dataset, period_partition
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.settings import settings
from evergreen.spec.model import RawSource
from evergreen.spec.origins import ONE_PARQUET_FILE, Origin, RawFiles, RawQuery, RawTable
from evergreen.storage import UPath, is_local, storage_path

EXTRACT = "rows"
"""Name of the file of an extract."""

_MIN_AGE_NS = 2_000_000_000  # coarser than the timestamps of any file system in use
# Keys of fsspec's listings that identify the version of a file. Never the access time.
_VERSION_KEYS = (
    *("ETag", "LastModified", "VersionId"),  # S3
    *("etag", "generation", "updated", "md5Hash"),  # Google
    *("last_modified", "mtime", "created", "ino"),  # Azure; SFTP and other file servers; memory
)
_CONTENT_KEYS = ("ETag", "etag", "md5Hash", "generation")  # those that no second write keeps
_COPY_BYTES = 1 << 20


class ExtractError(ValueError):
    """A query or a table cannot be read, or not yet; tells the fix."""

    def __init__(self, problem: str, fix: str):
        super().__init__(problem)
        self.fix = fix


class RawPart(NamedTuple):
    """One file of a delivery; `version` changes whenever it is written."""

    name: str
    path: str
    size: int
    version: str
    is_file: bool = True
    """Whether it is a regular file; a link, a pipe or a folder that is linked is none."""


@dataclass(frozen=True)
class RawFile:
    """What is delivered of a source for one period; `period` is None if it has one delivery for all of them."""

    source: str
    period: str | None
    origin: Origin = ONE_PARQUET_FILE

    @classmethod
    def from_source(cls, source: RawSource, period: str | None) -> RawFile:
        return cls(source.name, period, source.origin)

    @property
    def path(self) -> UPath:
        """Its file or folder; with `*` in its name if that is what parts are named like."""
        assert isinstance(self.origin, RawFiles)
        key = None if self.period is None else period_partition(self.period).partition("=")[0]
        return raw_folder() / period_path(source_template(self.source, self.origin, key), self.period)

    @property
    def location(self) -> str:
        """Where it comes from, for messages."""
        if isinstance(self.origin, RawFiles):
            return display_path(self.path)
        if isinstance(self.origin, RawQuery):
            return f"{self.name} (query on {self.origin.connection})"
        return f"{self.name} (table {display_path(self.origin.location)})"

    @property
    def name(self) -> str:
        return f"{self.source}-{file_name_of_period(self.period)}" if self.period else self.source


def raw_folder() -> UPath:
    """The folder that raw files are delivered to."""
    return storage_path(settings().raw)


def raw_file(source: str, period: str | None = None) -> UPath:
    """Path of the raw file of `source` by default: one per period, or one for all of them if `period` is None."""
    return RawFile(source, period).path


def extracts(source: str, origin: RawQuery | RawTable) -> Dataset:
    """What was read of a query or a table, a partition per period: its raw data, from then on."""
    identity = origin.model_dump(
        mode="json", include={"connection", "sql", "format", "location", "catalog", "time_column"}
    )
    return open_dataset(f"extracts/{source}-{compute_fingerprint(identity)[:8]}")


def part_folder(file: RawFile) -> UPath:
    """The folder, here or in an object store, that holds the parts of a delivery."""
    return raw_folder() if isinstance(file.origin, RawFiles) else storage_path(str(settings().cache))


def is_delivered(file: RawFile) -> bool:
    return find_parts(file) is not None


def find_parts(file: RawFile) -> list[RawPart] | None:
    """Return the parts of a delivery, in order of their names; None if it is not there, or not complete."""
    if not isinstance(file.origin, RawFiles):
        dataset = extracts(file.source, file.origin)
        manifest = dataset.manifest(file.name)
        if manifest is None:
            return None
        rows = manifest.files[EXTRACT]
        return [RawPart(EXTRACT, str(dataset.file_path(manifest, EXTRACT)), rows.size, rows.sha256)]
    return complete_parts(file.origin, list_parts(file))


def complete_parts(files: RawFiles, parts: list[RawPart]) -> list[RawPart] | None:
    """Return what counts of the files that are there; None if they are not complete."""
    data = [part for part in parts if not is_hidden(part.name) and part.name != files.marker]
    if files.marker:
        return data if any(part.name == files.marker for part in parts) else None
    return data if len(data) >= (files.part_count or 1) else None


def missing_fault(file: RawFile) -> Fault:
    """Return the fault of a delivery that is not there, or not complete."""
    if not isinstance(file.origin, RawFiles):
        return Fault(file.location, "has not been read yet", "clear the run from the start")
    fix, location = "deliver it, then clear the run", file.location
    if parts := [part for part in list_parts(file) if not is_hidden(part.name)]:
        if file.origin.marker:
            return Fault(location, f"is not complete: {len(parts)} parts, and no {file.origin.marker}", fix)
        return Fault(location, f"is not complete: {len(parts)} of {file.origin.part_count} parts", fix)
    return Fault(location, "missing", fix)


def list_parts(file: RawFile) -> list[RawPart]:
    """Return all files of a delivery in order of their names, also hidden ones; an empty list if there is none."""
    assert isinstance(file.origin, RawFiles)
    path = file.path
    if not file.origin.has_parts:
        part = _find_file(path)
        return [part] if part else []
    folder, pattern = (path, None) if file.origin.is_folder else (path.parent, name_pattern(path.name))
    if is_local(folder):
        parts = walk_folder(str(folder), deep=pattern is None)
    else:
        folder.fs.invalidate_cache()
        root = folder.path.rstrip("/")
        parts = (remote_part(root, key, info) for key, info in _find_remote(folder).items() if not key.endswith("/"))
    return sorted(part for part in parts if pattern is None or pattern.fullmatch(part.name))


def is_hidden(name: str) -> bool:
    """Whether a file, by its path in the folder of a period, is no data: it is being written, or is about others."""
    return any(segment.startswith((".", "_")) for segment in name.split("/"))


def display_path(path: object) -> str:
    """Return a path for messages, on one line whatever its name is."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def walk_folder(folder: str, prefix: str = "", *, deep: bool = True) -> Iterator[RawPart]:
    """Yield the files in a local folder, and in folders in it; links are not followed."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except (FileNotFoundError, NotADirectoryError):  # not there yet, or not any more
        return
    for entry in listed:
        name = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if deep and not is_hidden(entry.name):
                yield from walk_folder(entry.path, f"{name}/")
            continue
        with suppress(FileNotFoundError):
            yield _local_part(name, entry.path, entry.stat(follow_symlinks=False))


def remote_part(root: str, key: str, info: Mapping[str, Any]) -> RawPart:
    """Return what a listing of fsspec says about a file below `root`."""
    version = " ".join(f"{name}={info[name]}" for name in _VERSION_KEYS if name in info)
    return RawPart(key.removeprefix(f"{root}/"), key, int(info["size"] or 0), version)


def find_local_file(path: str) -> RawPart | None:
    """Return a single local file, also if it is a link to one; None if there is none."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _local_part(path.rpartition("/")[2], path, status) if stat.S_ISREG(status.st_mode) else None


def _local_part(name: str, path: str, status: os.stat_result) -> RawPart:
    # The change time tells apart what a copy with kept times does not.
    version = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return RawPart(name, path, status.st_size, version, stat.S_ISREG(status.st_mode))


def _find_file(path: UPath) -> RawPart | None:
    if is_local(path):
        return find_local_file(str(path))
    path.fs.invalidate_cache()
    try:
        info = path.fs.info(path.path)
    except FileNotFoundError:
        return None
    return remote_part(path.path.rpartition("/")[0], path.path, info) if info.get("type") == "file" else None


def _find_remote(folder: UPath) -> dict[str, dict[str, Any]]:
    try:
        listing: dict[str, dict[str, Any]] = folder.fs.find(folder.path.rstrip("/"), detail=True)
    except FileNotFoundError:
        return {}
    return listing


def hash_raw_files(files: Iterable[RawFile]) -> dict[RawFile, str]:
    """Return the SHA-256 of each delivery that is complete: of its file, or of the names and hashes of its parts.

    Parts are read only if one of them has changed since they were hashed.

    "Changed" is decided by size, inode, modification time and change time. The change time is set by the kernel, so
    no copy that preserves times goes unnoticed. A file that was modified less than two seconds ago is not cached: a
    second write within one tick of the file system's clock would keep its timestamps. In an object store its ETag, or
    the number of its version, decides. So a cached hash is as good as reading the file again, also for the last look
    of `publish_features`.
    """
    sources: dict[str, list[RawFile]] = {}
    for file in dict.fromkeys(files):
        sources.setdefault(file.source, []).append(file)
    hashes = {}
    for source, deliveries in sources.items():
        cache_file = settings().cache / "raw_hashes" / f"{source}.json"
        cache, new_entries = _read_cache(cache_file), {}
        for file in deliveries:
            parts = find_parts(file)
            if parts is None:
                continue
            if not isinstance(file.origin, RawFiles):
                hashes[file] = parts[0].version
                continue
            version, now = _delivery_version(file, parts), time.time_ns()
            entry = cache.get(file.name)
            if entry is None or entry["version"] != version:
                try:
                    entry = {"version": version, "sha256": _hash_parts(file, parts)}
                except FileNotFoundError:  # a part is gone since
                    continue
                if _is_settled(parts, now) and _delivery_version(file, find_parts(file)) == version:
                    new_entries[file.name] = entry
            hashes[file] = entry["sha256"]
        if new_entries:
            with storage.file_lock(cache_file.with_suffix(".lock")), storage.atomic_write(cache_file) as scratch:
                scratch.write_text(json.dumps(_read_cache(cache_file) | new_entries, sort_keys=True))
    return hashes


def _delivery_version(file: RawFile, parts: list[RawPart] | None) -> str:
    return compute_fingerprint([settings().raw, file.origin.model_dump(), parts])


def _is_settled(parts: list[RawPart], now: int) -> bool:
    """Whether a second write of any of them would have another version."""
    if is_local(raw_folder()):
        return all(now - int(time_ns) >= _MIN_AGE_NS for part in parts for time_ns in part.version.split()[:2])
    return all(any(f"{key}=" in part.version for key in _CONTENT_KEYS) for part in parts)


def _hash_parts(file: RawFile, parts: list[RawPart]) -> str:
    assert isinstance(file.origin, RawFiles)
    hashes = [[part.name, _hash_part(part)] for part in parts]
    return compute_fingerprint(hashes) if file.origin.has_parts else hashes[0][1]


def _hash_part(part: RawPart) -> str:
    if not part.is_file:
        return part.version  # reading it is refused
    digest = hashlib.sha256()
    with raw_folder().fs.open(part.path, "rb") as stream:
        while chunk := stream.read(_COPY_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_cache(file: Path) -> dict[str, dict[str, Any]]:
    try:
        status = file.stat()
    except FileNotFoundError:
        return {}
    return _parse_cache(file, status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)  # read for each of many files, and replaced as a whole when one is new
def _parse_cache(file: Path, *_: int) -> dict[str, dict[str, Any]]:
    cache: dict[str, dict[str, Any]] = json.loads(file.read_text())
    return cache
