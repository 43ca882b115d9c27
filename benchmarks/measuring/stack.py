"""A stack to measure, and the CPU time and memory of its processes: those that carry its home."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from evergreen.client.airflow import AirflowClient, Json
from evergreen.periods import Calendar
from evergreen.settings import settings
from evergreen_local import stack
from evergreen_local.progress import Progress

LOOK = 5.0  # seconds; a look costs half a second of a processor: the kernel adds up every page


class Meter(threading.Thread):
    """Peak memory, shared pages counted once, of the processes of a home."""

    def __init__(self, home: Path, look: float = LOOK):
        super().__init__(daemon=True)
        self.home, self.look, self.peak, self.stopped = str(home), look, 0, threading.Event()

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("EVERGREEN_HOME") == self.home and process.pid != os.getpid():
                    yield process

    def cpu_seconds(self) -> float:
        """Of all processes there are, and of those that have ended and were children of them."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def run(self) -> None:
        while not self.stopped.wait(self.look):
            total = 0
            for process in self.processes():
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak = max(self.peak, total)


@contextmanager
def metered(home: Path, look: float = LOOK) -> Iterator[Meter]:
    meter = Meter(home, look)
    meter.start()
    try:
        yield meter
    finally:
        meter.stopped.set()
        meter.join()


def environment(home: Path, **more: str) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**passed, "EVERGREEN_HOME": str(home), **more}


_DELIVER = """
import sys, time
from datetime import date, timedelta
from evergreen.ingest import raw_files
from evergreen.ingest.announcements import announcement_store
from evergreen.ingest.watcher import RawDataWatcher, WatchedSource
from evergreen_models.flight_delay.raw import deliver

deliver([str(date(2013, 1, 1) + timedelta(n)) for n in range(int(sys.argv[1]))])
store = announcement_store("flight_delay")
sources = dict.fromkeys(("flights", "weather"), WatchedSource())
watcher = RawDataWatcher(str(raw_files.raw_folder()), sources, store)
while not (deliveries := watcher.poll()):
    time.sleep(1)
store.acknowledge(deliveries)
"""


def deliver(home: Path, days: int) -> None:
    """Put the first raw days of the year into a home, as if their arrival had been dealt with: no watcher tells."""
    command = [sys.executable, "-c", _DELIVER, str(days)]
    subprocess.run(command, env=environment(home), check=True, capture_output=True)


def backfill(
    airflow: AirflowClient, meter: Meter, dag_id: str, calendar: Calendar, days: Sequence[str], max_active_runs: int
) -> tuple[float, float, list[Json]]:
    """Backfill a DAG with a run per day, as the UI does; return wall and CPU seconds, and the runs, which succeeded."""
    meter.peak = 0
    began, cpu = time.monotonic(), meter.cpu_seconds()
    first, last = (calendar.start(day) for day in (days[0], days[-1]))
    airflow.create_backfill(dag_id, first, last, "completed", max_active_runs)
    while airflow.active_backfill(dag_id):
        time.sleep(1)
    wall, cpu = time.monotonic() - began, meter.cpu_seconds() - cpu
    runs = airflow.dag_runs(dag_id, logical_date_gte=first.isoformat(), logical_date_lte=last.isoformat())
    assert [run["state"] for run in runs] == ["success"] * len(days)
    return wall, cpu, runs


@contextmanager
def running(home: Path, dag_id: str, **more: str) -> Iterator[AirflowClient]:
    """A stack over `home` with more variables in its environment; its Airflow has parsed `dag_id`."""
    before = dict(os.environ)
    os.environ.update(environment(home, **more))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    settings.cache_clear()
    with Progress() as progress:
        try:
            airflow = AirflowClient(stack.bring_up_stack(progress).airflow)
            while airflow.dag(dag_id) is None:
                time.sleep(1)
            time.sleep(10)  # what starts along with the engines
            yield airflow
        finally:
            stack.stop_stack(progress)
            os.environ.clear()
            os.environ.update(before)
            settings.cache_clear()
