"""What has arrived: complete days of raw files that nobody has been told about yet.

A `Watch` looks at a prefix again and again, one listing per source::

    <prefix>/flights/day=2013-01-01/flights.parquet
    <prefix>/weather/day=2013-01-01/weather.parquet

A day is complete when every source has its file, none of them has changed for a while, and each begins
and ends as Parquet does. Other names, so half-written and temporary files, are not seen at all.

Records of what was announced, and of what was taken up by a run, survive the watcher::

    <records>/announced.json                  one line a day: identity of its files, when; written first
    <records>/taken/2013-01-01.<identity>     a run has begun to work on these files

An announcement can get lost on its way: the watcher is killed after the record was written, or the DAG
was paused. So a later watcher announces a day again that was announced a while ago and never taken. Told
twice is harmless, for a run finds features that are made of these files already; never told is not.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from evergreen.errors import WindowError
from evergreen.lake.fingerprints import fingerprint
from evergreen.storage import locked, replacing

SETTLE = timedelta(seconds=3)
"""A file that has not changed for so long is taken for finished, until it changes again."""
LOST_AFTER = timedelta(seconds=60)
"""An announcement by an earlier watcher that nobody took for so long is taken for lost."""
UNTAKEN_AFTER = timedelta(minutes=15)
"""One of its own that nobody took for so long: perhaps the DAG was paused. A run that only queues takes it later."""
MOST_DAYS = 400
"""Days in one announcement at most: it travels through a database. The next look announces the others."""

_MAGIC = b"PAR1"
_SMALLEST = 12  # magic, length of the footer, magic
_IDENTITY = re.compile(r"[0-9a-f]{32}")
# What the stores that fsspec knows tell about the version of a file. Never when it was read.
_VERSION_KEYS = (
    *("ETag", "LastModified", "VersionId"),  # S3
    *("etag", "generation", "updated", "md5Hash"),  # Google
    *("last_modified", "mtime", "created", "ino"),  # Azure; SFTP and other file servers; memory
)

log = logging.getLogger(__name__)


class RawFile(NamedTuple):
    """What a listing tells about one file; `version` is all that changes when the file is written anew."""

    source: str
    path: str
    size: int
    version: str


@dataclass(frozen=True)
class Sighting:
    """The files of a day, which look the same `since` then."""

    files: tuple[RawFile, ...]
    identity: str
    since: datetime


@dataclass(frozen=True)
class Announced:
    """Which files of a day were announced last, and when."""

    identity: str
    at: datetime


class Verdict(Enum):
    """What to do about a complete day."""

    ANNOUNCE = auto()
    WAIT = auto()  # announced by an earlier watcher: may still be taken
    DONE = auto()


def identity_of(files: Sequence[RawFile]) -> str:
    """Tells one delivery of a day from the next without reading it."""
    return fingerprint(sorted([file.source, file.size, file.version] for file in files))[:32]


def complete_days(listings: Sequence[Mapping[str, RawFile]]) -> dict[str, tuple[RawFile, ...]]:
    """The days of which every source (one listing each) has its file."""
    if not listings:
        return {}
    days = {}
    for day in listings[0]:
        files = tuple(listing[day] for listing in listings if day in listing)
        if len(files) == len(listings):
            days[day] = files
    return days


def sightings(
    before: Mapping[str, Sighting], days: Mapping[str, tuple[RawFile, ...]], now: datetime
) -> dict[str, Sighting]:
    """What this look saw. A day whose files are as they were keeps the time since when they are."""
    seen = {}
    for day, files in days.items():
        known = before.get(day)
        seen[day] = known if known and known.files == files else Sighting(files, identity_of(files), now)
    return seen


def verdict(identity: str, announced: Announced | None, taken: bool, now: datetime) -> Verdict:
    """Judge a complete day that this watcher has not announced, by what was `announced` before."""
    if announced is None or announced.identity != identity:
        return Verdict.ANNOUNCE
    if taken:
        return Verdict.DONE
    return Verdict.ANNOUNCE if _apart(now, announced.at) >= LOST_AFTER else Verdict.WAIT


@dataclass(frozen=True)
class Records:
    """What outlives a watcher, in one local folder. Any number of watchers and runs may use it at once."""

    folder: Path

    def announced(self) -> dict[str, Announced]:
        """The last announcement of each day."""
        try:
            lines = json.loads(self._announced.read_text())
        except FileNotFoundError:
            return {}
        return {day: Announced(files, datetime.fromisoformat(at)) for day, (files, at) in lines.items()}

    def announce(self, days: Mapping[str, str], now: datetime) -> None:
        """Record that `days` (ISO day → identity) are about to be announced."""
        with locked(self.folder / ".lock"):
            for day, files in days.items():  # files that came back: they are to be taken anew
                self._taken(day, files).unlink(missing_ok=True)
            lines = {day: [was.identity, was.at.isoformat()] for day, was in self.announced().items()}
            lines |= {day: [files, now.isoformat()] for day, files in days.items()}
            entries = [f"{json.dumps(day)}: {json.dumps(line)}" for day, line in sorted(lines.items())]
            with replacing(self._announced) as scratch:
                scratch.write_text("{\n" + ",\n".join(entries) + "\n}\n")

    def take(self, days: Mapping[str, str], run: str = "") -> None:
        """Record that a run works on `days` (ISO day → identity) from now on. Again changes nothing."""
        marks = [self._taken(day, files) for day, files in days.items()]
        for mark in marks:
            if not mark.exists():
                with replacing(mark) as scratch:
                    scratch.write_text(run)

    def left_to(self, run: str) -> dict[str, str]:
        """Announced days (ISO day → identity) that nobody has taken, and those that `run` took when it last tried.

        Airflow drops an event when another one before it still waits for its run; the run that comes of that
        one finds the days of all here.
        """
        left = {}
        for day, was in self.announced().items():
            with suppress(FileNotFoundError):
                if self._taken(day, was.identity).read_text() != run:
                    continue
            left[day] = was.identity
        return left

    def is_taken(self, day: str, identity: str) -> bool:
        return self._taken(day, identity).exists()

    @property
    def _announced(self) -> Path:
        return self.folder / "announced.json"

    def _taken(self, day: str, identity: str) -> Path:
        if not _is_day(day) or not _IDENTITY.fullmatch(identity):
            raise WindowError(
                f"{day!r}: {identity!r} is no announced day: an announcement maps days like 2013-01-01 to 32 "
                "hexadecimal digits; start the run by hand with `start` and `end` instead"
            )
        return self.folder / "taken" / f"{day}.{identity}"


def take(records: Path | str, days: Mapping[str, str], run: str = "") -> dict[str, str]:
    """Record that `run` works on the announced `days` from now on, so that they are not announced again.

    Call it first thing in the run: what is announced and not taken counts as lost. Gives these days and those
    that were announced as well and that nobody has taken, which are taken, too.

    Raises:
        WindowError: `days` is not what a watcher announces.
    """
    found = Records(Path(records))
    found.take(days, run)
    left = found.left_to(run)
    found.take(left, run)
    return {**left, **days}


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Watch:
    """One watcher, from its start until it is killed."""

    prefix: str
    sources: Sequence[str]
    records: Records
    settle: timedelta = SETTLE
    timezone: str = "UTC"  # of the days: one that is not over there is still arriving
    first_day: date | None = None
    last_day: date | None = None
    clock: Callable[[], datetime] = _now
    _seen: dict[str, Sighting] = field(default_factory=dict)
    _told: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    _done: dict[str, str] = field(default_factory=dict)
    _broken: dict[str, tuple[str, datetime]] = field(default_factory=dict)

    def look(self) -> dict[str, str]:
        """The days to announce now (ISO day → identity), which are on record as announced from here on."""
        now = self.clock()
        self._seen = sightings(self._seen, complete_days(self._listings()), now)
        settled = {
            day: sighting
            for day, sighting in self._seen.items()
            if _apart(now, sighting.since) >= self.settle
            and self._is_awaited(date.fromisoformat(day), now)
            and not self._is_in_hand(day, sighting.identity, now)
        }
        due = self._whole(self._due(settled, now), now)
        days = {day: due[day].identity for day in sorted(due)[:MOST_DAYS]}
        if days:
            self.records.announce(days, now)
            self._told |= {day: (identity, now) for day, identity in days.items()}
        return days

    def _is_awaited(self, day: date, now: datetime) -> bool:
        first, last = self.first_day or day, self.last_day or day
        return first <= day <= last and day < now.astimezone(ZoneInfo(self.timezone)).date()

    def _is_in_hand(self, day: str, identity: str, now: datetime) -> bool:
        """A run has taken it, or this watcher has told of it and may expect that one will."""
        told, at = self._told.get(day, ("", now))
        return self._done.get(day) == identity or (told == identity and _apart(now, at) < UNTAKEN_AFTER)

    def _due(self, settled: Mapping[str, Sighting], now: datetime) -> dict[str, Sighting]:
        if not settled:
            return {}
        announced = self.records.announced()
        due = {}
        for day, sighting in settled.items():
            taken = self.records.is_taken(day, sighting.identity)
            judged = verdict(sighting.identity, announced.get(day), taken, now)
            if judged is Verdict.ANNOUNCE:
                due[day] = sighting
            elif judged is Verdict.DONE:
                self._done[day] = sighting.identity
        return due

    def _whole(self, due: Mapping[str, Sighting], now: datetime) -> dict[str, Sighting]:
        """Those whose files are whole Parquet. The others are told once and read again after a while only."""
        unread = {
            day: sighting
            for day, sighting in due.items()
            if day not in self._broken
            or self._broken[day][0] != sighting.identity
            or _apart(now, self._broken[day][1]) >= LOST_AFTER
        }
        whole, complaints = {}, []
        broken = _unreadable(self._fs, [file for sighting in unread.values() for file in sighting.files])
        for day, sighting in unread.items():
            faults = [broken[file] for file in sighting.files if file in broken]
            if not faults:
                whole[day] = sighting
                continue
            if self._broken.get(day, ("",))[0] != sighting.identity:
                complaints += faults
            self._broken[day] = (sighting.identity, now)
        if complaints:
            log.warning("%s. The day is announced once every file of it can be read.", ", ".join(complaints))
        return whole

    def _listings(self) -> list[dict[str, RawFile]]:
        list_source = _list_local if isinstance(self._fs, LocalFileSystem) else _list_remote
        self._fs.invalidate_cache()
        return [dict(list_source(self._fs, self._root, source)) for source in self.sources]

    @cached_property
    def _store(self) -> tuple[AbstractFileSystem, str]:
        fs, root = url_to_fs(self.prefix)
        return fs, root.rstrip("/")

    @property
    def _fs(self) -> AbstractFileSystem:
        return self._store[0]

    @property
    def _root(self) -> str:
        return self._store[1]


def _list_local(_: AbstractFileSystem, root: str, source: str) -> Iterator[tuple[str, RawFile]]:
    # Asks for the one name that counts in each folder: a tenth of what fsspec's walk costs, and an error
    # is an error, where the walk takes a folder that it cannot read for an empty one.
    try:
        with os.scandir(f"{root}/{source}") as entries:
            folders = [entry for entry in entries if entry.name.startswith("day=")]
    except FileNotFoundError:  # no drop of it yet
        return
    for folder in folders:
        path = f"{folder.path}/{source}.parquet"
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        day = folder.name.removeprefix("day=")
        if stat.S_ISREG(status.st_mode) and _is_day(day):
            # The change time tells apart what a copy with kept times does not.
            version = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
            yield day, RawFile(source, path, status.st_size, version)


def _list_remote(fs: AbstractFileSystem, root: str, source: str) -> Iterator[tuple[str, RawFile]]:
    try:
        found: dict[str, dict[str, Any]] = fs.find(f"{root}/{source}", detail=True)
    except FileNotFoundError:
        return
    for path, info in found.items():
        folder, _, name = path.removeprefix(f"{root}/{source}/").rpartition("/")
        day = folder.removeprefix("day=")
        if name == f"{source}.parquet" and folder == f"day={day}" and _is_day(day):
            version = " ".join(f"{key}={info[key]}" for key in _VERSION_KEYS if key in info)
            yield day, RawFile(source, path, int(info["size"] or 0), version)


def _unreadable(fs: AbstractFileSystem, files: Sequence[RawFile]) -> dict[RawFile, str]:
    """Those of `files` that do not begin and end as Parquet does, and a few words on each."""
    faults = {file: f"{file.path} is no whole Parquet file" for file in files if file.size < _SMALLEST}
    large = [file for file in files if file not in faults]
    paths = [file.path for file in large for _ in range(2)]
    starts = [start for file in large for start in (0, file.size - len(_MAGIC))]
    ends = [end for file in large for end in (len(_MAGIC), file.size)]
    read: list[bytes | Exception] = fs.cat_ranges(paths, starts, ends, on_error="return") if large else []
    for file, *pieces in zip(large, read[::2], read[1::2], strict=True):
        for piece in pieces:
            if isinstance(piece, FileNotFoundError | PermissionError):
                faults[file] = f"{file.path} cannot be read ({type(piece).__name__})"
            elif isinstance(piece, Exception):
                raise piece
            elif piece != _MAGIC:
                faults[file] = f"{file.path} is no whole Parquet file"
    return faults


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _apart(one: datetime, other: datetime) -> timedelta:
    """Time between both, whichever is later: a clock that was set back must not stop the watch for long."""
    return abs(one - other)
