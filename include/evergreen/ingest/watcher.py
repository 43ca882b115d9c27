"""Watch for raw data: find complete periods of raw files that have not been announced yet.

A `RawDataWatcher` polls a prefix, one listing per source::

    <prefix>/flights/day=2013-01-01/flights.parquet
    <prefix>/weather/day=2013-01-01/weather.parquet

A period is complete when every source has its file, none of the files has changed for a while, and each begins and
ends as Parquet does. Other names, such as those of temporary files, are ignored.

The file of a source whose periods may be absent is awaited for some hours after the end of the period, and not longer. If
it arrives later, the period has changed, and is announced again.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, NamedTuple

from evergreen.errors import WindowError
from evergreen.ingest.announcements import Announcement, AnnouncementStore
from evergreen.lake.datasets import partition_period
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.periods import Calendar
from evergreen.storage import AbstractFileSystem, UPath, is_local, storage_path

SETTLE_TIME = timedelta(seconds=3)
"""A file that has not changed for this long is complete, until it changes again."""
ANNOUNCEMENT_TIMEOUT = timedelta(seconds=60)
"""An announcement of an earlier watcher that is not acknowledged for this long is lost."""
REANNOUNCE_AFTER = timedelta(minutes=15)
"""A period that is not acknowledged for this long is announced again, in case the DAG was paused. Longer than
ANNOUNCEMENT_TIMEOUT, because a queued run acknowledges late."""
RECHECK_INTERVAL = timedelta(seconds=60)
"""Time between two reads of a file that is not complete Parquet."""
MAX_PERIODS_PER_ANNOUNCEMENT = 400
"""An announcement travels through Airflow's database. The next poll announces the remaining periods."""

_PARTITION_KEYS = ("day=", "period=")
_MAGIC = b"PAR1"
_MIN_FILE_SIZE = 12  # magic, length of the footer, magic
# Keys of fsspec's listings that identify the version of a file. Never the access time.
_VERSION_KEYS = (
    *("ETag", "LastModified", "VersionId"),  # S3
    *("etag", "generation", "updated", "md5Hash"),  # Google
    *("last_modified", "mtime", "created", "ino"),  # Azure; SFTP and other file servers; memory
)

log = logging.getLogger(__name__)


class RawFileInfo(NamedTuple):
    """One file of a listing; `version` changes whenever the file is written."""

    source: str
    path: str
    size: int
    version: str


@dataclass(frozen=True)
class PeriodObservation:
    """The files of a period, as they have been since `unchanged_since`."""

    files: tuple[RawFileInfo, ...]
    delivery_id: str
    unchanged_since: datetime


def compute_delivery_id(files: Sequence[RawFileInfo]) -> str:
    """Identify a delivery of a period without reading its files."""
    return compute_fingerprint(sorted([file.source, file.size, file.version] for file in files))[:32]


def decide_announcement(
    delivery_id: str, last_announcement: Announcement | None, is_acknowledged: bool, now: datetime
) -> Literal["announce", "wait", "skip"]:
    """Decide about a complete period that this watcher has not announced.

    It waits while a run may still acknowledge the announcement of an earlier watcher.
    """
    if last_announcement is None or last_announcement.delivery_id != delivery_id:
        return "announce"
    if is_acknowledged:
        return "skip"
    return "announce" if abs(now - last_announcement.announced_at) >= ANNOUNCEMENT_TIMEOUT else "wait"


@dataclass
class RawDataWatcher:
    """One watcher of a prefix, from its start until it is killed.

    It compares times in either order: a clock that was set back must not stop it for long.
    """

    prefix: str
    sources: Mapping[str, int | None]
    """Hours after the end of a period, until which the file of a source may still arrive; None: it has to arrive."""
    announcements: AnnouncementStore
    settle_time: timedelta = SETTLE_TIME
    calendar: Calendar = Calendar("1d", "UTC")  # a period that is not over is still arriving
    first: str | None = None
    end: str | None = None
    clock: Callable[[], datetime] = field(default=partial(datetime.now, UTC))
    _observations: dict[str, PeriodObservation] = field(default_factory=dict)
    _announced: dict[str, Announcement] = field(default_factory=dict)
    _acknowledged: dict[str, str] = field(default_factory=dict)
    _unreadable: dict[str, tuple[str, datetime]] = field(default_factory=dict)

    def poll(self) -> dict[str, str]:
        """Return the periods to announce now (period → delivery id), recorded as announced."""
        now = self.clock()
        self._update_observations(now)
        settled = {
            period: observation
            for period, observation in self._observations.items()
            if abs(now - observation.unchanged_since) >= self.settle_time
            and self._is_expected(period, now)
            and not self._is_handled(period, observation.delivery_id, now)
        }
        due = self._filter_readable(self._select_due(settled, now), now)
        periods = {period: due[period].delivery_id for period in sorted(due)[:MAX_PERIODS_PER_ANNOUNCEMENT]}
        if periods:
            self.announcements.record_announcement(periods, now)
            self._announced |= {period: Announcement(delivery_id, now) for period, delivery_id in periods.items()}
        return periods

    def _is_expected(self, period: str, now: datetime) -> bool:
        is_of_data = (self.first or period) <= period and not (self.end and period >= self.end)
        return is_of_data and period < self.calendar.period_at(now)

    def _is_handled(self, period: str, delivery_id: str, now: datetime) -> bool:
        """Whether a run has acknowledged the period, or may still do so after this watcher's announcement."""
        announcement = self._announced.get(period)
        return self._acknowledged.get(period) == delivery_id or (
            announcement is not None
            and announcement.delivery_id == delivery_id
            and abs(now - announcement.announced_at) < REANNOUNCE_AFTER
        )

    def _select_due(self, observations: Mapping[str, PeriodObservation], now: datetime) -> dict[str, PeriodObservation]:
        announcements = self.announcements.read_announcements() if observations else {}
        due = {}
        for period, observation in observations.items():
            delivery_id = observation.delivery_id
            is_acknowledged = self.announcements.is_acknowledged(period, delivery_id)
            action = decide_announcement(delivery_id, announcements.get(period), is_acknowledged, now)
            if action == "announce":
                due[period] = observation
            elif action == "skip":
                self._acknowledged[period] = delivery_id
        return due

    def _filter_readable(
        self, observations: Mapping[str, PeriodObservation], now: datetime
    ) -> dict[str, PeriodObservation]:
        """Those whose files are complete Parquet. Others are logged once, and read again after RECHECK_INTERVAL."""
        unchecked = {
            period: observation
            for period, observation in observations.items()
            if not (failure := self._unreadable.get(period))
            or failure[0] != observation.delivery_id
            or abs(now - failure[1]) >= RECHECK_INTERVAL
        }
        faults_by_file = _find_unreadable(
            self._folder.fs, [file for period in unchecked.values() for file in period.files]
        )
        readable, new_faults = {}, []
        for period, observation in unchecked.items():
            faults = [faults_by_file[file] for file in observation.files if file in faults_by_file]
            if not faults:
                readable[period] = observation
                continue
            if self._unreadable.get(period, ("",))[0] != observation.delivery_id:
                new_faults += faults
            self._unreadable[period] = (observation.delivery_id, now)
        if new_faults:
            log.warning("%s. The period is announced once all of its files can be read.", ", ".join(new_faults))
        return readable

    def _update_observations(self, now: datetime) -> None:
        """Observe the periods for which every source has its file; a period whose files have not changed stays as it was."""
        observations = {}
        current = self.calendar.period_at(now)
        expected = self.calendar.between(self.first, min(current, self.end or current)) if self.first else ()
        for period, files in list_complete_periods(self._folder, self.sources, now, self.calendar, expected).items():
            observation = self._observations.get(period)
            if observation is None or observation.files != files:
                observation = PeriodObservation(files, compute_delivery_id(files), now)
            observations[period] = observation
        self._observations = observations

    @cached_property
    def _folder(self) -> UPath:
        return storage_path(self.prefix)


def list_complete_periods(
    folder: UPath, sources: Mapping[str, int | None], now: datetime, calendar: Calendar, expected: Iterable[str] = ()
) -> dict[str, tuple[RawFileInfo, ...]]:
    """Return the files of each period for which every one of at least one source has its file.

    `sources` has the hours after the end of a period after which its file may be absent; None: never. So a period that
    is `expected` may have no file at all.
    """
    list_source = _list_local if is_local(folder) else _list_remote
    folder.fs.invalidate_cache()
    listings = {source: dict(list_source(folder.fs, folder.path.rstrip("/"), source)) for source in sources}
    periods = {period for period in set[str]().union(*listings.values()) if _is_period_of(calendar, period)} | set(
        expected
    )

    def is_complete(period: str) -> bool:
        waits = [sources[source] for source, listing in listings.items() if period not in listing]
        hours = [wait for wait in waits if wait is not None]
        if len(hours) < len(waits) or not waits:  # most periods: this runs every two seconds, for each of them
            return not waits
        return now >= calendar.end(period) + timedelta(hours=max(hours))

    return {
        period: tuple(listing[period] for listing in listings.values() if period in listing)
        for period in periods
        if is_complete(period)
    }


@lru_cache(maxsize=2**17)
def _is_period_of(calendar: Calendar, name: str) -> bool:
    try:
        return bool(calendar.parse(name))
    except WindowError:
        return False


def _list_local(_: AbstractFileSystem, root: str, source: str) -> Iterator[tuple[str, RawFileInfo]]:
    # Asks for the one name that counts in each folder: a tenth of what fsspec's walk costs, and an error
    # is an error, where the walk takes a folder that it cannot read for an empty one.
    try:
        with os.scandir(f"{root}/{source}") as entries:
            folders = [entry for entry in entries if entry.name.startswith(_PARTITION_KEYS)]
    except FileNotFoundError:  # no drop of it yet
        return
    for folder in folders:
        path = f"{folder.path}/{source}.parquet"
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISREG(status.st_mode):
            # The change time tells apart what a copy with kept times does not.
            version = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
            yield partition_period(folder.name), RawFileInfo(source, path, status.st_size, version)


def _list_remote(fs: AbstractFileSystem, root: str, source: str) -> Iterator[tuple[str, RawFileInfo]]:
    try:
        listing: dict[str, dict[str, Any]] = fs.find(f"{root}/{source}", detail=True)
    except FileNotFoundError:
        return
    for path, info in listing.items():
        folder, _, name = path.removeprefix(f"{root}/{source}/").rpartition("/")
        if name == f"{source}.parquet" and folder.startswith(_PARTITION_KEYS) and "/" not in folder:
            version = " ".join(f"{key}={info[key]}" for key in _VERSION_KEYS if key in info)
            yield partition_period(folder), RawFileInfo(source, path, int(info["size"] or 0), version)


def _find_unreadable(fs: AbstractFileSystem, files: Sequence[RawFileInfo]) -> dict[RawFileInfo, str]:
    """Those of `files` that do not begin and end as Parquet does, with the reason."""
    faults = {file: f"{file.path} is not a complete Parquet file" for file in files if file.size < _MIN_FILE_SIZE}
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
                faults[file] = f"{file.path} is not a complete Parquet file"
    return faults
