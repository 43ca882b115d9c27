"""Kill -9 parts of a stack: an engine, a component of Airflow, or tasks at random moments in a thread."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import psutil

from evergreen_local.stack import StackRecord


def kill_engine(home: Path, name: str) -> None:
    """Kill an engine's own process, such as Spark's JVM."""
    psutil.Process(StackRecord.read(home).services[name].process.pid).kill()


def component_process(home: Path, name: str) -> psutil.Process | None:
    """The scheduler or the triggerer, by a word of its title, which Airflow changes and truncates."""
    parent = psutil.Process(StackRecord.read(home).services["airflow"].process.pid)
    running = (child for child in parent.children() if child.status() != psutil.STATUS_ZOMBIE)
    return next((child for child in running if name in " ".join(child.cmdline())), None)


def kill_component(home: Path, name: str) -> None:
    """Kill the scheduler or the triggerer, and its child processes."""
    component = component_process(home, name)
    assert component, f"no {name} runs"
    for process in [component, *component.children(recursive=True)]:
        process.kill()


def running_tasks(home: Path) -> list[psutil.Process]:
    """The processes of this stack's tasks.

    A LocalExecutor worker names itself after the task that it supervises; the task is its child.
    """
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if not title.startswith("airflow worker -- LocalExecutor:") or "<idle>" in title:
            continue
        try:
            if process.environ().get("EVERGREEN_HOME") == str(home):
                found += process.children()
        except psutil.Error:
            continue
    return found


class Killer(threading.Thread):
    """Kills a task of this stack and its child processes, `kills` times, at seeded random moments."""

    def __init__(self, home: Path, kills: int, seed: int, pause: tuple[float, float] = (0.5, 4.0)):
        super().__init__(daemon=True)
        self.home, self.kills, self.pause = home, kills, pause
        self.random = random.Random(seed)
        self.killed: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self.kills and not self.done.is_set():
            time.sleep(self.random.uniform(*self.pause))
            if tasks := running_tasks(self.home):
                victim = self.random.choice(tasks)
                children = children_of(victim)
                name = self._kill(victim)
                for process in children:
                    self._kill(process)
                if name:
                    self.killed.append(name)

    def _kill(self, process: psutil.Process) -> str:
        try:
            name = f"{process.pid} {process.name()}"
            process.kill()
            return name
        except psutil.NoSuchProcess:
            return ""


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """All descendants; none when the process ended by itself in the meantime, which would end the thread."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
