"""Which periods of raw data were announced, and which of them a run has acknowledged.

The records outlive the watcher::

    <folder>/announcements.json                            one line a period: delivery id and time of its announcement,
                                                           and the run that has acknowledged it, once that is noticed
    <folder>/acknowledged/2013-01-01.<delivery id>         a run has begun to work on this delivery

An announcement can get lost: the watcher is killed after the record was written, or the DAG is paused. So a period
is announced again if nobody has acknowledged it for a while. Announcing twice is harmless, because a run finds
features that are built from these files already; not announcing is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from evergreen.errors import WindowError
from evergreen.lake.datasets import file_name_of_period, lake_root
from evergreen.periods import is_period
from evergreen.storage import UPath, read_version, remove_files, replace_version, update_file

_DELIVERY_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Announcement:
    """The newest announcement of a period."""

    delivery_id: str
    announced_at: datetime
    run_id: str | None = None
    """The run that works on it, as far as `acknowledge_with_pending` has noticed: then no file has to be looked at."""

    def to_json(self) -> str:
        run_id = [] if self.run_id is None else [self.run_id]
        return json.dumps([self.delivery_id, self.announced_at.isoformat(), *run_id])


@dataclass(frozen=True)
class AnnouncementStore:
    """The records in one folder, here or in an object store. Any number of watchers and runs may use it at once."""

    folder: UPath | Path

    def read_announcements(self) -> dict[str, Announcement]:
        """The newest announcement of each period."""
        stored = read_version(self._announcements_file)
        return _parse_announcements(stored and stored.data)

    def record_announcement(self, deliveries: Mapping[str, str], now: datetime) -> None:
        """Record that `deliveries` (period → delivery id) are about to be announced."""
        # An earlier delivery that came back is new again.
        remove_files([self._acknowledgement_file(period, delivery_id) for period, delivery_id in deliveries.items()])
        new = {period: Announcement(delivery_id, now) for period, delivery_id in deliveries.items()}

        update_file(self._announcements_file, lambda stored: _format_announcements(_parse_announcements(stored) | new))

    def acknowledge(self, deliveries: Mapping[str, str], run_id: str = "") -> None:
        """Record that a run works on `deliveries` (period → delivery id) from now on.

        Raises:
            WindowError: `deliveries` is not what a watcher announces.
        """
        for file in [self._acknowledgement_file(period, delivery_id) for period, delivery_id in deliveries.items()]:
            replace_version(file, run_id.encode(), None)  # the first one stays

    def acknowledge_with_pending(self, deliveries: Mapping[str, str], run_id: str = "") -> dict[str, str]:
        """Acknowledge `deliveries`, and announced periods that nobody has acknowledged; return all of them.

        Call it first in a run, before the announcement counts as lost. Airflow drops an event while an earlier one
        waits for its run; the run that the earlier one starts finds the periods of both here. Days that the run itself
        acknowledged in an earlier try are returned again. Raises what `acknowledge` raises.
        """
        self.acknowledge(deliveries, run_id)
        # Of those of the past no file is read again: the cost of a run does not grow with history.
        open_announcements = {
            period: announcement
            for period, announcement in self.read_announcements().items()
            if announcement.run_id in (None, run_id)
        }
        self.acknowledge({period: entry.delivery_id for period, entry in open_announcements.items()}, run_id)
        runs = {period: self._run_of(period, entry.delivery_id) for period, entry in open_announcements.items()}

        def note(stored: bytes | None) -> bytes | None:
            announcements = _parse_announcements(stored)
            noted = {
                period: replace(entry, run_id=runs[period])
                for period, entry in open_announcements.items()
                if runs[period] is not None
                and announcements.get(period) == entry != replace(entry, run_id=runs[period])
            }
            return _format_announcements(announcements | noted) if noted else None

        update_file(self._announcements_file, note)
        pending = {period: entry.delivery_id for period, entry in open_announcements.items() if runs[period] == run_id}
        return {**pending, **deliveries}

    def is_acknowledged(self, period: str, delivery_id: str) -> bool:
        return self._run_of(period, delivery_id) is not None

    def _run_of(self, period: str, delivery_id: str) -> str | None:
        stored = read_version(self._acknowledgement_file(period, delivery_id))
        return stored and stored.data.decode()

    @property
    def _announcements_file(self) -> UPath | Path:
        return self.folder / "announcements.json"

    def _acknowledgement_file(self, period: str, delivery_id: str) -> UPath | Path:
        if not is_period(period) or not _DELIVERY_ID.fullmatch(delivery_id):
            raise WindowError(
                f"{period!r}: {delivery_id!r} is not an announced period: it maps periods like 2013-01-01 to "
                "32 hexadecimal digits; trigger the run with `start` and `end` instead"
            )
        return self.folder / "acknowledged" / f"{file_name_of_period(period)}.{delivery_id}"


def announcement_store(model_name: str) -> AnnouncementStore:
    """The records of a model's raw data, in the configured lake."""
    return AnnouncementStore(lake_root() / "arrivals" / model_name)


def _parse_announcements(data: bytes | None) -> dict[str, Announcement]:
    records = json.loads(data) if data else {}
    return {
        period: Announcement(delivery_id, datetime.fromisoformat(announced_at), *run_id)
        for period, (delivery_id, announced_at, *run_id) in records.items()
    }


def _format_announcements(announcements: Mapping[str, Announcement]) -> bytes:
    lines = [f"{json.dumps(period)}: {entry.to_json()}" for period, entry in sorted(announcements.items())]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
