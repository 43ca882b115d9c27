"""Watch for raw data: find complete periods of raw files that have not been announced yet.

A `RawDataWatcher` polls a prefix, one listing per source::

    <prefix>/flights/day=2013-01-01/flights.parquet         by default
    <prefix>/rides/dt=2013-01-01/part-0.csv.gz …            where the source says so

A period is complete when every source has all that it declares: its file, a marker, a number of parts; when nothing of
it has changed for a while; and when each Parquet file begins and ends as such. Other names, such as those of temporary
files, are ignored.

The data of a source that may lack periods is awaited for some hours after the end of the period, and not longer. If
it arrives later, the period has changed, and is announced again.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache, partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from evergreen.errors import WindowError
from evergreen.ingest.announcements import Announcement, AnnouncementStore
from evergreen.ingest.path_templates import PeriodTemplate, period_path, period_template, source_template
from evergreen.ingest.raw_files import RawPart, complete_parts, find_local_file, remote_part, walk_folder
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.periods import Calendar
from evergreen.spec.model import RawSource
from evergreen.spec.origins import ONE_PARQUET_FILE, Origin, RawFiles, RawQuery, RawTable
from evergreen.storage import AbstractFileSystem, UPath, is_local, storage_path

SETTLE_TIME = timedelta(seconds=2)
"""A file that has not changed for this long is complete, until it changes again."""
QUIET_TIME = timedelta(seconds=10)
"""The same for a folder without a marker or a number of parts: another part may still come."""
ANNOUNCEMENT_TIMEOUT = timedelta(seconds=60)
"""An announcement of an earlier watcher that is not acknowledged for this long is lost."""
REANNOUNCE_AFTER = timedelta(minutes=15)
"""A period that is not acknowledged for this long is announced again, in case the DAG was paused. Longer than
ANNOUNCEMENT_TIMEOUT, because a queued run acknowledges late."""
RECHECK_INTERVAL = timedelta(seconds=60)
"""Time between two reads of a file that is not complete Parquet."""
EXTRACT_INTERVAL = timedelta(seconds=10)
"""Time between two looks at a database or a table."""
MAX_PERIODS_PER_ANNOUNCEMENT = 400
"""An announcement travels through Airflow's database. The next poll announces the remaining periods."""

_ORIGIN_KINDS: dict[str, type[RawFiles] | type[RawQuery] | type[RawTable]] = {
    kind.__name__: kind for kind in (RawFiles, RawQuery, RawTable)
}
_MAGIC = b"PAR1"
_MIN_FILE_SIZE = 12  # magic, length of the footer, magic

log = logging.getLogger(__name__)


class RawFileInfo(NamedTuple):
    """One file of a listing; `version` changes whenever the file is written."""

    source: str
    path: str
    size: int
    version: str
    name: str = ""
    is_parquet: bool = True


Listing = dict[str, tuple[RawFileInfo, ...]]
"""The files of each period."""


@dataclass(frozen=True)
class WatchedSource:
    """What a watcher has to know about a source."""

    origin: Origin = ONE_PARQUET_FILE
    absence_hours: int | None = None
    """Hours after the end of a period, until which its data may still arrive; None: it has to arrive."""

    @classmethod
    def from_source(cls, source: RawSource) -> WatchedSource:
        return cls(source.origin, source.absence_hours)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> WatchedSource:
        return cls(_ORIGIN_KINDS[fields["kind"]](**fields["origin"]), fields["absence_hours"])

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes: plain types."""
        origin = self.origin.model_dump(mode="json", exclude_unset=True)
        return {"kind": type(self.origin).__name__, "origin": origin, "absence_hours": self.absence_hours}

    @cached_property
    def settle_time(self) -> timedelta:
        """How long nothing of a complete delivery has to change."""
        files = self.origin
        if not isinstance(files, RawFiles) or files.marker:
            return timedelta()
        if files.quiet_seconds is not None:
            return timedelta(seconds=files.quiet_seconds)
        return QUIET_TIME if files.has_parts and not files.part_count else SETTLE_TIME


@dataclass(frozen=True)
class PeriodObservation:
    """The files of a period, as they have been since `unchanged_since`."""

    files: tuple[RawFileInfo, ...]
    delivery_id: str
    unchanged_since: datetime


def compute_delivery_id(files: Sequence[RawFileInfo]) -> str:
    """Identify a delivery of a period without reading its files."""
    return compute_fingerprint(sorted([file.source, file.name, file.size, file.version] for file in files))[:32]


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
    sources: Mapping[str, WatchedSource]
    announcements: AnnouncementStore
    calendar: Calendar = field(default=Calendar("1d", "UTC"))  # a period that is not over is still arriving
    first: str | None = None
    end: str | None = None
    clock: Callable[[], datetime] = field(default=partial(datetime.now, UTC))
    _observations: dict[str, PeriodObservation] = field(default_factory=dict)
    _announced: dict[str, Announcement] = field(default_factory=dict)
    _acknowledged: dict[str, str] = field(default_factory=dict)
    _unreadable: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    _extract_listings: dict[str, tuple[datetime, Listing]] = field(default_factory=dict)

    def poll(self) -> dict[str, str]:
        """Return the periods to announce now (period → delivery id), recorded as announced."""
        now = self.clock()
        current = self.calendar.period_at(now)
        self._update_observations(now)
        settled = {
            period: observation
            for period, observation in self._observations.items()
            if abs(now - observation.unchanged_since) >= self._settle_time(observation)
            and self._is_expected(period, current)
            and not self._is_handled(period, observation.delivery_id, now)
        }
        due = self._filter_readable(self._select_due(settled, now), now)
        periods = {period: due[period].delivery_id for period in sorted(due)[:MAX_PERIODS_PER_ANNOUNCEMENT]}
        if periods:
            self.announcements.record_announcement(periods, now)
            self._announced |= {period: Announcement(delivery_id, now) for period, delivery_id in periods.items()}
        return periods

    def _is_expected(self, period: str, current: str) -> bool:
        return (self.first or period) <= period < min(current, self.end or current)

    def _settle_time(self, observation: PeriodObservation) -> timedelta:
        return max((self.sources[file.source].settle_time for file in observation.files), default=SETTLE_TIME)

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
            announcement = announcements.get(period)
            is_noted = announcement and announcement.delivery_id == delivery_id and announcement.run_id is not None
            is_acknowledged = bool(is_noted) or self.announcements.is_acknowledged(period, delivery_id)
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
        files = [file for period in unchecked.values() for file in period.files if file.is_parquet]
        faults_by_file = _find_unreadable(self._folder.fs, files)
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
        """Observe the periods for which every source has its file; one whose files have not changed stays as it was."""
        observations = {}
        current = self.calendar.period_at(now)
        end = min(current, self.end or current)
        expected = list(self.calendar.periods_between(self.first, end)) if self.first else []
        recent = {
            name: listing
            for name, (listed_at, listing) in self._extract_listings.items()
            if abs(now - listed_at) < EXTRACT_INTERVAL
        }
        listings = list_sources(self._folder, self.sources, now, self.calendar, expected, recent)
        for name, source in self.sources.items():
            if not isinstance(source.origin, RawFiles) and name not in recent:
                self._extract_listings[name] = (now, listings[name])
        for period, files in find_complete_periods(listings, self.sources, now, self.calendar, expected).items():
            observation = self._observations.get(period)
            if observation is None or observation.files != files:
                observation = PeriodObservation(files, compute_delivery_id(files), now)
            observations[period] = observation
        self._observations = observations

    @cached_property
    def _folder(self) -> UPath:
        return storage_path(self.prefix)


def list_complete_periods(
    folder: UPath,
    sources: Mapping[str, WatchedSource],
    now: datetime,
    calendar: Calendar,
    expected: Collection[str] = (),
) -> dict[str, tuple[RawFileInfo, ...]]:
    """Return the files of each period for which every one of at least one source has its files.

    Those of a source may be absent some hours after the end of the period, if it says so. So a period that is
    `expected` may have no file at all.
    """
    listings = list_sources(folder, sources, now, calendar, expected)
    return find_complete_periods(listings, sources, now, calendar, expected)


def list_sources(
    folder: UPath,
    sources: Mapping[str, WatchedSource],
    now: datetime,
    calendar: Calendar,
    expected: Collection[str],
    listings: Mapping[str, Listing] = MappingProxyType({}),
) -> dict[str, Listing]:
    """Return the complete periods of each source, but for those in `listings`, whose are known."""
    folder.fs.invalidate_cache()
    return {
        name: listings[name]
        if name in listings
        else dict(_list_deliveries(folder, name, source.origin, calendar))
        if isinstance(source.origin, RawFiles)
        else _list_extracts(name, source.origin, now, calendar, expected)
        for name, source in sources.items()
    }


def find_complete_periods(
    listings: Mapping[str, Listing],
    sources: Mapping[str, WatchedSource],
    now: datetime,
    calendar: Calendar,
    expected: Collection[str],
) -> Listing:
    """Do what `list_complete_periods` does, of listings."""
    periods = {*set[str]().union(*listings.values()), *expected}

    def is_complete(period: str) -> bool:
        waits = [sources[source].absence_hours for source, listing in listings.items() if period not in listing]
        hours = [wait for wait in waits if wait is not None]
        if len(hours) < len(waits) or not waits:  # most periods: this runs every second, for each of them
            return not waits
        return now >= calendar.end(period) + timedelta(hours=max(hours))

    return {
        period: tuple(file for listing in listings.values() for file in listing.get(period, ()))
        for period in periods
        if is_complete(period)
    }


@lru_cache(maxsize=2**17)
def _is_period_of(calendar: Calendar, name: str) -> bool:
    try:
        return bool(calendar.parse(name))
    except WindowError:
        return False


def _list_extracts(
    source: str, origin: RawQuery | RawTable, now: datetime, calendar: Calendar, expected: Collection[str]
) -> Listing:
    from evergreen.ingest.extracts import observe_periods  # imports what talks to databases

    versions = observe_periods(origin, expected, now, calendar)
    return {
        period: (RawFileInfo(source, source, 0, version, is_parquet=False),) for period, version in versions.items()
    }


def _list_deliveries(
    folder: UPath, source: str, files: RawFiles, calendar: Calendar
) -> Iterator[tuple[str, tuple[RawFileInfo, ...]]]:
    """Yield each period that has a complete delivery, with its parts and its marker."""
    template = period_template(source_template(source, files, calendar.partition_key))
    list_parts = _list_local if is_local(folder) else _list_remote
    if not files.has_parts:
        is_parquet = files.format == "parquet"
        for period, part in list_parts(folder, template):
            if _is_period_of(calendar, period):
                yield period, (RawFileInfo(source, part.path, part.size, part.version, part.name, is_parquet),)
        return
    deliveries: dict[str, list[RawPart]] = {}
    for period, part in list_parts(folder, template):
        deliveries.setdefault(period, []).append(part)
    for period, parts in deliveries.items():
        complete = complete_parts(files, parts)
        if complete is not None and _is_period_of(calendar, period):
            marker = [part for part in parts if part.name == files.marker]
            yield (
                period,
                tuple(
                    RawFileInfo(
                        *(source, part.path, part.size, part.version, part.name),
                        is_parquet=files.format == "parquet" and part.is_file and part.name != files.marker,
                    )
                    for part in sorted((*complete, *marker))
                ),
            )


def _list_local(folder: UPath, template: PeriodTemplate) -> Iterator[tuple[str, RawPart]]:
    # Goes into folders that match only, and asks for a single file by its name: a tenth of what fsspec's walk costs,
    # and an error is an error, where the walk takes a folder that it cannot read for an empty one.
    fixed = f"{template.fixed_folders}/" if template.fixed_folders else ""
    places = [fixed]
    for pattern in template.folders[fixed.count("/") :]:
        places = [
            f"{place}{name}/"
            for place in places
            for name in _matching_names(f"{folder}/{place}", pattern, may_be_file=place != fixed)
        ]
    for place in places:
        if isinstance(template.file, str):
            if (period := template.period_of(place)) and (part := find_local_file(f"{folder}/{place}{template.file}")):
                yield period, part
            continue
        if template.file is None:
            if period := template.period_of(place):
                yield from ((period, part) for part in walk_folder(f"{folder}/{place}".rstrip("/")))
            continue
        for name in _matching_names(f"{folder}/{place}", template.file, may_be_file=True):
            if (period := template.period_of(place + name)) and (part := find_local_file(f"{folder}/{place}{name}")):
                yield period, part


def _matching_names(folder: str, pattern: str | re.Pattern[str], *, may_be_file: bool) -> list[str]:
    """Return the names in a local folder that match; a name without a pattern, whether it exists or not."""
    if isinstance(pattern, str):
        return [pattern]
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if pattern.fullmatch(entry.name)]
    except FileNotFoundError:  # no drop of it yet
        return []
    except NotADirectoryError:
        if may_be_file:
            return []
        raise


def _list_remote(folder: UPath, template: PeriodTemplate) -> Iterator[tuple[str, RawPart]]:
    root = folder.path.rstrip("/")
    try:
        listing: dict[str, dict[str, Any]] = folder.fs.find(f"{root}/{template.fixed_folders}".rstrip("/"), detail=True)
    except FileNotFoundError:
        return
    for key, info in listing.items():
        path = key.removeprefix(f"{root}/")
        if key.endswith("/") or not (period := template.period_of(path)):
            continue
        if isinstance(template.file, str) and path != period_path(template.text, period):
            continue
        place = period_path(template.text, period) if template.file is None else path.rpartition("/")[0] + "/"
        yield period, remote_part(f"{root}/{place}".rstrip("/"), key, info)


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
