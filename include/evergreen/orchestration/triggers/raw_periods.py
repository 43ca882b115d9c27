"""The event trigger that starts runs when complete periods of raw data arrive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from evergreen.errors import Fault, SpecError
from evergreen.ingest.announcements import AnnouncementStore
from evergreen.ingest.watcher import RawDataWatcher, WatchedSource
from evergreen.orchestration.triggers import serialize_trigger
from evergreen.periods import Calendar

log = logging.getLogger(__name__)

_MAX_RETRY_WAIT_S = 30.0  # between two polls while the store cannot be listed


class RawDataTrigger(BaseEventTrigger):
    """Fires `{"periods": {"2013-01-01": delivery id, …}}` once for all periods that one poll finds complete.

    prefix: folder of the raw files, a local path or any URI that fsspec opens.
    sources: the sources that are no registers, by name, each as `WatchedSource.to_json` returns it; a complete period
        has data of each.
    records_folder: local folder of the `AnnouncementStore`; the run that an event starts calls its
        `acknowledge_with_pending` first.
    period, timezone: the calendar of the periods; one that is not over is not complete.
    first, end: the periods to watch for, first ≤ period < end; None: all.

    The event follows the last byte of a period by at most the longest settle time of its sources and two polls.
    """

    def __init__(
        self,
        prefix: str,
        sources: Mapping[str, Mapping[str, Any]],
        records_folder: str,
        *,
        period: str = "1d",
        timezone: str = "UTC",
        first: str | None = None,
        end: str | None = None,
        poll_seconds: float = 1,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not sources:
            fault = Fault("sources", "all are registers, so no period ever arrives", "give the DAG a schedule only")
            raise SpecError(f"watcher of {prefix}", [fault])
        self.prefix = prefix
        # Plain types: Airflow identifies a trigger by the JSON of its arguments.
        self.sources = {name: dict(source) for name, source in sources.items()}
        self.records_folder = str(records_folder)
        self.period, self.timezone, self.first, self.end = period, timezone, first, end
        self.poll_seconds = float(poll_seconds)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return serialize_trigger(self)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        watcher = RawDataWatcher(
            self.prefix,
            {name: WatchedSource.from_json(source) for name, source in self.sources.items()},
            AnnouncementStore(Path(self.records_folder)),
            calendar=Calendar(self.period, self.timezone),
            first=self.first,
            end=self.end,
        )
        last_error: type[Exception] | None = None
        wait = self.poll_seconds
        while True:
            try:
                periods = await asyncio.to_thread(watcher.poll)
            except Exception as error:
                # Any exception: a store may be unreachable for an hour, and the watcher must survive that.
                if type(error) is not last_error:
                    log.exception(
                        "Cannot look for arrivals in %s (records in %s): %s: %s. Retrying; periods that arrive "
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
                if periods:
                    yield TriggerEvent({"periods": periods})  # type: ignore[no-untyped-call]
            await asyncio.sleep(wait)
