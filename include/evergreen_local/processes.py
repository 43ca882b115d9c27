"""Processes that outlive the command that started them, found again only if they are still the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from evergreen.spec import Frozen

STACK_VARIABLE = "EVERGREEN_STACK"
"""Environment variable that every process we start hands down to its own: the home it works for."""

# Start times come in hundredths of a second, counted from a boot time that may be corrected by a little.
_START_TIME_TOLERANCE_S = 2.0


class ProcessIdentity(Frozen):
    """A process that we started as the leader of a session, told apart from a later one with its number."""

    pid: int
    start_time: float

    @property
    def age_seconds(self) -> float:
        """Seconds since its start."""
        return time.time() - self.start_time


def start_process(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> ProcessIdentity:
    """Start `command` detached, as leader of its own session, printing to `log`; an older log is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        started = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        started = 0.0
    return ProcessIdentity(pid=process.pid, start_time=started)


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process still runs; another one that has its number now does not count."""
    try:
        process = psutil.Process(identity.pid)
        return abs(process.create_time() - identity.start_time) < _START_TIME_TOLERANCE_S and _is_running(process)
    except psutil.NoSuchProcess:
        return False


def missing_children(identity: ProcessIdentity, child_names: Sequence[str]) -> list[str]:
    """Those of `parts` that no living child of that very process is: what has died and will not come back.

    A part is a word of its child's command line. `airflow standalone` lives on without its scheduler or its
    triggerer.
    """
    try:
        children = [child for child in psutil.Process(identity.pid).children() if _is_running(child)]
    except psutil.NoSuchProcess:
        return list(child_names)
    lines = []
    for child in children:
        with suppress(psutil.Error):
            lines.append(" ".join(child.cmdline()))
    return [part for part in child_names if not any(part in line for line in lines)]


def stop_session(identity: ProcessIdentity, home: Path, timeout: float) -> int:
    """End the whole session of `identity`, by force after `patience` seconds. Gives how many ended."""
    return _terminate(lambda: _session_processes(identity, home), timeout)


def stop_home_processes(home: Path, timeout: float) -> int:
    """End every process that works for `home`, recorded or not. Gives how many ended."""
    return _terminate(
        lambda: [p for p in psutil.process_iter() if _belongs_to_home(p, home) and _is_running(p)], timeout
    )


def _terminate(list_processes: Callable[[], list[psutil.Process]], timeout: float) -> int:
    members = list_processes()
    _signal(members, signal.SIGTERM)
    stubborn = _wait_for_exit(members, timeout)
    # Whoever was forked while the others were being told.
    late = [process for process in list_processes() if process not in members]
    _signal([*stubborn, *late], signal.SIGKILL)
    _wait_for_exit([*stubborn, *late], 5)
    return len(members) + len(late)


def _wait_for_exit(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those that still run after `patience` seconds."""
    deadline = time.monotonic() + timeout
    while (left := [process for process in processes if _is_running(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _is_running(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended but was not laid to rest by its parent does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _session_processes(identity: ProcessIdentity, home: Path) -> list[psutil.Process]:
    """The processes of the session that `identity` leads, also when its leader has died before them.

    While the leader lives, its number belongs to it. When it does not, the number may have gone to a
    stranger: then only processes that carry our mark count.
    """
    session = [p for p in psutil.process_iter() if _session_id(p) == identity.pid and _is_running(p)]
    if is_alive(identity):
        return session
    return [process for process in session if process.pid != identity.pid and _belongs_to_home(process, home)]


def _session_id(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def _belongs_to_home(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get(STACK_VARIABLE) == str(home)
    except (psutil.Error, OSError):
        return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # refuses, too, if the number has gone to another process
        except psutil.NoSuchProcess:
            continue
