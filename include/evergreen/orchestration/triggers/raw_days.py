"""The event trigger that tells Airflow which complete days of raw data have arrived."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from evergreen.errors import Fault, SpecError
from evergreen.ingest.watcher import SETTLE_TIME, AnnouncementStore, RawDataWatcher

log = logging.getLogger(__name__)

_MAX_RETRY_WAIT_S = 30.0  # seconds between two tries while the store cannot be listed


class RawDataTrigger(BaseEventTrigger):
    """Fires `{"days": {"2013-01-01": identity, …}}` once for all days that are complete in one look.

    prefix: where the raw drops lie, a local path or any URI that fsspec opens.
    sources: names of the daily sources; a day needs a file of each.
    records: local folder that outlives the triggerer; the run that works on an event calls
        `arrivals.take(records, days)` first.
    timezone, first_day, last_day: which days are awaited, as ISO dates; one that is not over never is.
    settle_seconds: a day is announced when its files have not changed for so long.

    From the last byte of a day to its event: `settle_seconds` and two polls at most.
    """

    def __init__(
        self,
        prefix: str,
        sources: Sequence[str],
        records_folder: str,
        *,
        timezone: str = "UTC",
        first_day: str | None = None,
        last_day: str | None = None,
        poll_seconds: float = 2,
        settle_seconds: float = SETTLE_TIME.total_seconds(),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not sources:
            fault = Fault("sources", "none is daily, so no day ever arrives", "give the DAG a schedule only")
            raise SpecError(f"watcher of {prefix}", [fault])
        self.prefix = prefix
        # Plain types: Airflow knows a trigger again by the JSON of these.
        self.sources = list(sources)
        self.records_folder = str(records_folder)
        self.timezone, self.first_day, self.last_day = timezone, first_day, last_day
        self.poll_seconds = float(poll_seconds)
        self.settle_seconds = float(settle_seconds)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "evergreen.orchestration.triggers.raw_days.RawDataTrigger", {
            "prefix": self.prefix,
            "sources": self.sources,
            "records_folder": self.records_folder,
            "timezone": self.timezone,
            "first_day": self.first_day,
            "last_day": self.last_day,
            "poll_seconds": self.poll_seconds,
            "settle_seconds": self.settle_seconds,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        watch = RawDataWatcher(
            self.prefix,
            self.sources,
            AnnouncementStore(Path(self.records_folder)),
            settle_time=timedelta(seconds=self.settle_seconds),
            timezone=self.timezone,
            first_day=date.fromisoformat(self.first_day) if self.first_day else None,
            last_day=date.fromisoformat(self.last_day) if self.last_day else None,
        )
        trouble: type[Exception] | None = None
        wait = self.poll_seconds
        while True:
            days: dict[str, str] = {}
            try:
                days = await asyncio.to_thread(watch.poll)
            except Exception as error:
                # Whatever a store raises: it may be away for an hour, and the watcher must outlive that.
                if type(error) is not trouble:
                    log.error(
                        "Cannot look for arrivals in %s (records in %s): %s: %s. Trying on; days that arrive "
                        "meanwhile are announced afterwards.",
                        self.prefix,
                        self.records_folder,
                        type(error).__name__,
                        error,
                        exc_info=error,
                    )
                trouble = type(error)
                wait = max(self.poll_seconds, min(2 * wait, _MAX_RETRY_WAIT_S))
            else:
                if trouble:
                    log.info("Looking for arrivals in %s works again.", self.prefix)
                trouble, wait = None, self.poll_seconds
            if days:
                yield TriggerEvent({"days": days})  # type: ignore[no-untyped-call]
            await asyncio.sleep(wait)
