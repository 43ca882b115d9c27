"""CPU time and memory of all processes of a stack: those that carry its home in their environment."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

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
