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
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.storage import atomic_write, file_lock

SETTLE_TIME = timedelta(seconds=3)
"""A file that has not changed for so long is taken for finished, until it changes again."""
ANNOUNCEMENT_TIMEOUT = timedelta(seconds=60)
"""An announcement by an earlier watcher that nobody took for so long is taken for lost."""
REANNOUNCE_AFTER = timedelta(minutes=15)
"""One of its own that nobody took for so long: perhaps the DAG was paused. A run that only queues takes it later."""
MAX_DAYS_PER_ANNOUNCEMENT = 400
"""Days in one announcement at most: it travels through a database. The next look announces the others."""

_MAGIC = b"PAR1"
_MIN_FILE_SIZE = 12  # magic, length of the footer, magic
_DELIVERY_ID = re.compile(r"[0-9a-f]{32}")
# What the stores that fsspec knows tell about the version of a file. Never when it was read.
_VERSION_KEYS = (
    *("ETag", "LastModified", "VersionId"),  # S3
    *("etag", "generation", "updated", "md5Hash"),  # Google
    *("last_modified", "mtime", "created", "ino"),  # Azure; SFTP and other file servers; memory
)

log = logging.getLogger(__name__)


class RawFileInfo(NamedTuple):
    """What a listing tells about one file; `version` is all that changes when the file is written anew."""

    source: str
    path: str
    size: int
    version: str


@dataclass(frozen=True)
class DayObservation:
    """The files of a day, which look the same `since` then."""

    files: tuple[RawFileInfo, ...]
    delivery_id: str
    unchanged_since: datetime


@dataclass(frozen=True)
class Announcement:
    """Which files of a day were announced last, and when."""

    delivery_id: str
    announced_at: datetime


class AnnounceAction(Enum):
    """What to do about a complete day."""

    ANNOUNCE = auto()
    WAIT = auto()  # announced by an earlier watcher: may still be taken
    SKIP = auto()


def compute_delivery_id(files: Sequence[RawFileInfo]) -> str:
    """Tells one delivery of a day from the next without reading it."""
    return compute_fingerprint(sorted([file.source, file.size, file.version] for file in files))[:32]


def complete_days(listings: Sequence[Mapping[str, RawFileInfo]]) -> dict[str, tuple[RawFileInfo, ...]]:
    """The days of which every source (one listing each) has its file."""
    if not listings:
        return {}
    days = {}
    for day in listings[0]:
        files = tuple(listing[day] for listing in listings if day in listing)
        if len(files) == len(listings):
            days[day] = files
    return days


def update_observations(
    previous: Mapping[str, DayObservation], files_by_day: Mapping[str, tuple[RawFileInfo, ...]], now: datetime
) -> dict[str, DayObservation]:
    """What this look saw. A day whose files are as they were keeps the time since when they are."""
    seen = {}
    for day, files in files_by_day.items():
        known = previous.get(day)
        seen[day] = known if known and known.files == files else DayObservation(files, compute_delivery_id(files), now)
    return seen


def decide_announcement(
    delivery_id: str, last_announcement: Announcement | None, is_acknowledged: bool, now: datetime
) -> AnnounceAction:
    """Judge a complete day that this watcher has not announced, by what was `announced` before."""
    if last_announcement is None or last_announcement.delivery_id != delivery_id:
        return AnnounceAction.ANNOUNCE
    if is_acknowledged:
        return AnnounceAction.SKIP
    return (
        AnnounceAction.ANNOUNCE
        if _time_between(now, last_announcement.announced_at) >= ANNOUNCEMENT_TIMEOUT
        else AnnounceAction.WAIT
    )


@dataclass(frozen=True)
class AnnouncementStore:
    """What outlives a watcher, in one local folder. Any number of watchers and runs may use it at once."""

    folder: Path

    def read_announcements(self) -> dict[str, Announcement]:
        """The last announcement of each day."""
        try:
            lines = json.loads(self._announcements_file.read_text())
        except FileNotFoundError:
            return {}
        return {day: Announcement(files, datetime.fromisoformat(at)) for day, (files, at) in lines.items()}

    def record_announcement(self, days: Mapping[str, str], now: datetime) -> None:
        """Record that `days` (ISO day → identity) are about to be announced."""
        with file_lock(self.folder / ".lock"):
            for day, files in days.items():  # files that came back: they are to be taken anew
                self._acknowledgement_file(day, files).unlink(missing_ok=True)
            lines = {
                day: [was.delivery_id, was.announced_at.isoformat()] for day, was in self.read_announcements().items()
            }
            lines |= {day: [files, now.isoformat()] for day, files in days.items()}
            entries = [f"{json.dumps(day)}: {json.dumps(line)}" for day, line in sorted(lines.items())]
            with atomic_write(self._announcements_file) as scratch:
                scratch.write_text("{\n" + ",\n".join(entries) + "\n}\n")

    def acknowledge(self, days: Mapping[str, str], run_id: str = "") -> None:
        """Record that a run works on `days` (ISO day → identity) from now on. Again changes nothing."""
        marks = [self._acknowledgement_file(day, files) for day, files in days.items()]
        for mark in marks:
            if not mark.exists():
                with atomic_write(mark) as scratch:
                    scratch.write_text(run_id)

    def pending_days(self, run_id: str) -> dict[str, str]:
        """Announced days (ISO day → identity) that nobody has taken, and those that `run` took when it last tried.

        Airflow drops an event when another one before it still waits for its run; the run that comes of that
        one finds the days of all here.
        """
        left = {}
        for day, was in self.read_announcements().items():
            with suppress(FileNotFoundError):
                if self._acknowledgement_file(day, was.delivery_id).read_text() != run_id:
                    continue
            left[day] = was.delivery_id
        return left

    def is_acknowledged(self, day: str, delivery_id: str) -> bool:
        return self._acknowledgement_file(day, delivery_id).exists()

    @property
    def _announcements_file(self) -> Path:
        return self.folder / "announced.json"

    def _acknowledgement_file(self, day: str, delivery_id: str) -> Path:
        if not _is_day(day) or not _DELIVERY_ID.fullmatch(delivery_id):
            raise WindowError(
                f"{day!r}: {delivery_id!r} is no announced day: an announcement maps days like 2013-01-01 to 32 "
                "hexadecimal digits; start the run by hand with `start` and `end` instead"
            )
        return self.folder / "taken" / f"{day}.{delivery_id}"


def acknowledge_announcements(folder: Path | str, days: Mapping[str, str], run_id: str = "") -> dict[str, str]:
    """Record that `run` works on the announced `days` from now on, so that they are not announced again.

    Call it first thing in the run: what is announced and not taken counts as lost. Gives these days and those
    that were announced as well and that nobody has taken, which are taken, too.

    Raises:
        WindowError: `days` is not what a watcher announces.
    """
    found = AnnouncementStore(Path(folder))
    found.acknowledge(days, run_id)
    left = found.pending_days(run_id)
    found.acknowledge(left, run_id)
    return {**left, **days}


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class RawDataWatcher:
    """One watcher, from its start until it is killed."""

    prefix: str
    sources: Sequence[str]
    announcements: AnnouncementStore
    settle_time: timedelta = SETTLE_TIME
    timezone: str = "UTC"  # of the days: one that is not over there is still arriving
    first_day: date | None = None
    last_day: date | None = None
    clock: Callable[[], datetime] = _utc_now
    _observations: dict[str, DayObservation] = field(default_factory=dict)
    _announced: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    _acknowledged: dict[str, str] = field(default_factory=dict)
    _unreadable: dict[str, tuple[str, datetime]] = field(default_factory=dict)

    def poll(self) -> dict[str, str]:
        """The days to announce now (ISO day → identity), which are on record as announced from here on."""
        now = self.clock()
        self._observations = update_observations(self._observations, complete_days(self._list_sources()), now)
        settled = {
            day: sighting
            for day, sighting in self._observations.items()
            if _time_between(now, sighting.unchanged_since) >= self.settle_time
            and self._is_expected(date.fromisoformat(day), now)
            and not self._is_handled(day, sighting.delivery_id, now)
        }
        due = self._filter_readable(self._select_due(settled, now), now)
        days = {day: due[day].delivery_id for day in sorted(due)[:MAX_DAYS_PER_ANNOUNCEMENT]}
        if days:
            self.announcements.record_announcement(days, now)
            self._announced |= {day: (identity, now) for day, identity in days.items()}
        return days

    def _is_expected(self, day: date, now: datetime) -> bool:
        first, last = self.first_day or day, self.last_day or day
        return first <= day <= last and day < now.astimezone(ZoneInfo(self.timezone)).date()

    def _is_handled(self, day: str, delivery_id: str, now: datetime) -> bool:
        """A run has taken it, or this watcher has told of it and may expect that one will."""
        told, at = self._announced.get(day, ("", now))
        return self._acknowledged.get(day) == delivery_id or (
            told == delivery_id and _time_between(now, at) < REANNOUNCE_AFTER
        )

    def _select_due(self, observations: Mapping[str, DayObservation], now: datetime) -> dict[str, DayObservation]:
        if not observations:
            return {}
        announced = self.announcements.read_announcements()
        due = {}
        for day, sighting in observations.items():
            taken = self.announcements.is_acknowledged(day, sighting.delivery_id)
            judged = decide_announcement(sighting.delivery_id, announced.get(day), taken, now)
            if judged is AnnounceAction.ANNOUNCE:
                due[day] = sighting
            elif judged is AnnounceAction.SKIP:
                self._acknowledged[day] = sighting.delivery_id
        return due

    def _filter_readable(self, observations: Mapping[str, DayObservation], now: datetime) -> dict[str, DayObservation]:
        """Those whose files are whole Parquet. The others are told once and read again after a while only."""
        unread = {
            day: sighting
            for day, sighting in observations.items()
            if day not in self._unreadable
            or self._unreadable[day][0] != sighting.delivery_id
            or _time_between(now, self._unreadable[day][1]) >= ANNOUNCEMENT_TIMEOUT
        }
        whole, complaints = {}, []
        broken = _find_unreadable(self._fs, [file for sighting in unread.values() for file in sighting.files])
        for day, sighting in unread.items():
            faults = [broken[file] for file in sighting.files if file in broken]
            if not faults:
                whole[day] = sighting
                continue
            if self._unreadable.get(day, ("",))[0] != sighting.delivery_id:
                complaints += faults
            self._unreadable[day] = (sighting.delivery_id, now)
        if complaints:
            log.warning("%s. The day is announced once every file of it can be read.", ", ".join(complaints))
        return whole

    def _list_sources(self) -> list[dict[str, RawFileInfo]]:
        list_source = _list_local if isinstance(self._fs, LocalFileSystem) else _list_remote
        self._fs.invalidate_cache()
        return [dict(list_source(self._fs, self._root, source)) for source in self.sources]

    @cached_property
    def _filesystem(self) -> tuple[AbstractFileSystem, str]:
        fs, root = url_to_fs(self.prefix)
        return fs, root.rstrip("/")

    @property
    def _fs(self) -> AbstractFileSystem:
        return self._filesystem[0]

    @property
    def _root(self) -> str:
        return self._filesystem[1]


def _list_local(_: AbstractFileSystem, root: str, source: str) -> Iterator[tuple[str, RawFileInfo]]:
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
            yield day, RawFileInfo(source, path, status.st_size, version)


def _list_remote(fs: AbstractFileSystem, root: str, source: str) -> Iterator[tuple[str, RawFileInfo]]:
    try:
        found: dict[str, dict[str, Any]] = fs.find(f"{root}/{source}", detail=True)
    except FileNotFoundError:
        return
    for path, info in found.items():
        folder, _, name = path.removeprefix(f"{root}/{source}/").rpartition("/")
        day = folder.removeprefix("day=")
        if name == f"{source}.parquet" and folder == f"day={day}" and _is_day(day):
            version = " ".join(f"{key}={info[key]}" for key in _VERSION_KEYS if key in info)
            yield day, RawFileInfo(source, path, int(info["size"] or 0), version)


def _find_unreadable(fs: AbstractFileSystem, files: Sequence[RawFileInfo]) -> dict[RawFileInfo, str]:
    """Those of `files` that do not begin and end as Parquet does, and a few words on each."""
    faults = {file: f"{file.path} is no whole Parquet file" for file in files if file.size < _MIN_FILE_SIZE}
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


def _time_between(first: datetime, second: datetime) -> timedelta:
    """Time between both, whichever is later: a clock that was set back must not stop the watch for long."""
    return abs(first - second)
