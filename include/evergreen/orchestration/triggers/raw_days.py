"""The event trigger that starts runs when complete days of raw data arrive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from evergreen.errors import Fault, SpecError
from evergreen.ingest.announcements import AnnouncementStore
from evergreen.ingest.watcher import RawDataWatcher, WatchedSource
from evergreen.orchestration.triggers import serialize_trigger

log = logging.getLogger(__name__)

_MAX_RETRY_WAIT_S = 30.0  # between two polls while the store cannot be listed


class RawDataTrigger(BaseEventTrigger):
    """Fires `{"days": {"2013-01-01": delivery id, …}}` once for all days that one poll finds complete.

    prefix: folder of the raw files, a local path or any URI that fsspec opens.
    sources: the daily sources by name, each as `WatchedSource.to_json` returns it; a complete day has files of each.
    records_folder: local folder of the `AnnouncementStore`; the run that an event starts calls its
        `acknowledge_with_pending` first.
    timezone, first_day, last_day: the days to watch for, as ISO dates; a day that is not over is not complete.

    The event follows the last byte of a day by at most the longest settle time of its sources and two polls.
    """

    def __init__(
        self,
        prefix: str,
        sources: Mapping[str, Mapping[str, Any]],
        records_folder: str,
        *,
        timezone: str = "UTC",
        first_day: str | None = None,
        last_day: str | None = None,
        poll_seconds: float = 1,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not sources:
            fault = Fault("sources", "none is daily, so no day ever arrives", "give the DAG a schedule only")
            raise SpecError(f"watcher of {prefix}", [fault])
        self.prefix = prefix
        # Plain types: Airflow identifies a trigger by the JSON of its arguments.
        self.sources = {name: dict(source) for name, source in sources.items()}
        self.records_folder = str(records_folder)
        self.timezone, self.first_day, self.last_day = timezone, first_day, last_day
        self.poll_seconds = float(poll_seconds)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return serialize_trigger(self)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        watcher = RawDataWatcher(
            self.prefix,
            {name: WatchedSource.from_json(source) for name, source in self.sources.items()},
            AnnouncementStore(Path(self.records_folder)),
            timezone=self.timezone,
            first_day=date.fromisoformat(self.first_day) if self.first_day else None,
            last_day=date.fromisoformat(self.last_day) if self.last_day else None,
        )
        last_error: type[Exception] | None = None
        wait = self.poll_seconds
        while True:
            try:
                days = await asyncio.to_thread(watcher.poll)
            except Exception as error:
                # Any exception: a store may be unreachable for an hour, and the watcher must survive that.
                if type(error) is not last_error:
                    log.exception(
                        "Cannot look for arrivals in %s (records in %s): %s: %s. Retrying; days that arrive "
                        "meanwhile are announced afterwards.",
                        self.prefix,
                        self.records_folder,
                        type(error).__name__,
                        error,
                    )
                last_error = type(error)
                wait = max(self.poll_seconds, min(2 * wait, _MAX_RETRY_WAIT_S))
            else:
                if last_error:
                    log.info("Looking for arrivals in %s works again.", self.prefix)
                last_error, wait = None, self.poll_seconds
                if days:
                    yield TriggerEvent({"days": days})  # type: ignore[no-untyped-call]
            await asyncio.sleep(wait)
