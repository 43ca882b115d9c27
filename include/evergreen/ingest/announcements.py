"""Which periods of raw data were announced, and which of them a run has acknowledged.

The records outlive the watcher::

    <folder>/announcements.json                            one line a period: delivery id and time of its announcement
    <folder>/acknowledged/2013-01-01.<delivery id>         a run has begun to work on this delivery

An announcement can get lost: the watcher is killed after the record was written, or the DAG is paused. So a period
is announced again if nobody has acknowledged it for a while. Announcing twice is harmless, because a run finds
features that are built from these files already; not announcing is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from evergreen.errors import WindowError
from evergreen.lake.datasets import file_name_of_period
from evergreen.periods import is_period
from evergreen.settings import settings
from evergreen.storage import atomic_write, file_lock

_DELIVERY_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Announcement:
    """The newest announcement of a period."""

    delivery_id: str
    announced_at: datetime


@dataclass(frozen=True)
class AnnouncementStore:
    """The records in one local folder. Any number of watchers and runs may use it at once."""

    folder: Path

    def read_announcements(self) -> dict[str, Announcement]:
        """The newest announcement of each period."""
        try:
            records = json.loads((self.folder / "announcements.json").read_text())
        except FileNotFoundError:
            return {}
        return {
            period: Announcement(delivery_id, datetime.fromisoformat(announced_at))
            for period, (delivery_id, announced_at) in records.items()
        }

    def record_announcement(self, deliveries: Mapping[str, str], now: datetime) -> None:
        """Record that `deliveries` (period → delivery id) are about to be announced."""
        with file_lock(self.folder / ".lock"):
            for period, delivery_id in deliveries.items():  # an earlier delivery that came back is new again
                self._acknowledgement_file(period, delivery_id).unlink(missing_ok=True)
            announcements = self.read_announcements() | {
                period: Announcement(i, now) for period, i in deliveries.items()
            }
            lines = [
                f"{json.dumps(period)}: {json.dumps([entry.delivery_id, entry.announced_at.isoformat()])}"
                for period, entry in sorted(announcements.items())
            ]
            with atomic_write(self.folder / "announcements.json") as scratch:
                scratch.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    def acknowledge(self, deliveries: Mapping[str, str], run_id: str = "") -> None:
        """Record that a run works on `deliveries` (period → delivery id) from now on.

        Raises:
            WindowError: `deliveries` is not what a watcher announces.
        """
        for file in [self._acknowledgement_file(period, delivery_id) for period, delivery_id in deliveries.items()]:
            if not file.exists():
                with atomic_write(file) as scratch:
                    scratch.write_text(run_id)

    def acknowledge_with_pending(self, deliveries: Mapping[str, str], run_id: str = "") -> dict[str, str]:
        """Acknowledge `deliveries`, and announced periods that nobody has acknowledged; return all of them.

        Call it first in a run, before the announcement counts as lost. Airflow drops an event while an earlier one
        waits for its run; the run that the earlier one starts finds the periods of both here. Days that the run itself
        acknowledged in an earlier try are returned again. Raises what `acknowledge` raises.
        """
        self.acknowledge(deliveries, run_id)
        pending = {}
        for period, announcement in self.read_announcements().items():
            with suppress(FileNotFoundError):
                if self._acknowledgement_file(period, announcement.delivery_id).read_text() != run_id:
                    continue
            pending[period] = announcement.delivery_id
        self.acknowledge(pending, run_id)
        return {**pending, **deliveries}

    def is_acknowledged(self, period: str, delivery_id: str) -> bool:
        return self._acknowledgement_file(period, delivery_id).exists()

    def _acknowledgement_file(self, period: str, delivery_id: str) -> Path:
        if not is_period(period) or not _DELIVERY_ID.fullmatch(delivery_id):
            raise WindowError(
                f"{period!r}: {delivery_id!r} is not an announced period: an announcement maps periods like 2013-01-01 to 32 "
                "hexadecimal digits; trigger the run with `start` and `end` instead"
            )
        return self.folder / "acknowledged" / f"{file_name_of_period(period)}.{delivery_id}"


def announcement_store(model_name: str) -> AnnouncementStore:
    """The records of a model's raw data, in the configured lake."""
    return AnnouncementStore(settings().lake / "arrivals" / model_name)
