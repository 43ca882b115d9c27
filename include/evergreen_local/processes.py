"""Processes that outlive the command that started them, identified by PID and start time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from evergreen.settings import STACK_VARIABLE
from evergreen.spec import Frozen

# Start times have a resolution of 10 ms, and are relative to a boot time that may be corrected slightly.
_START_TIME_TOLERANCE_S = 2.0


class ProcessIdentity(Frozen):
    """Leader of a session; its start time distinguishes it from a later process with the same PID."""

    pid: int
    start_time: float

    @property
    def age_seconds(self) -> float:
        return time.time() - self.start_time


def start_process(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> ProcessIdentity:
    """Start `command` detached, as leader of its own session, with its output in `log`; keep the previous log."""
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
        start_time = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        start_time = 0.0
    return ProcessIdentity(pid=process.pid, start_time=start_time)


def is_alive(identity: ProcessIdentity) -> bool:
    """Return whether the process still runs; another one with its PID does not count."""
    try:
        process = psutil.Process(identity.pid)
        return abs(process.create_time() - identity.start_time) < _START_TIME_TOLERANCE_S and _is_running(process)
    except psutil.NoSuchProcess:
        return False


def stop_session(identity: ProcessIdentity, home: Path, timeout: float) -> int:
    """Terminate the session of `identity`, and kill it after `timeout` seconds; return the number of processes."""
    return _terminate(lambda: _session_processes(identity, home), timeout)


def stop_home_processes(home: Path, timeout: float) -> int:
    """Terminate all processes of `home`, recorded or not, like `stop_session`; return their number."""
    return _terminate(
        lambda: [p for p in psutil.process_iter() if _belongs_to_home(p, home) and _is_running(p)], timeout
    )


def _terminate(list_processes: Callable[[], list[psutil.Process]], timeout: float) -> int:
    members = list_processes()
    _signal(members, signal.SIGTERM)
    remaining = _wait_for_exit(members, timeout)
    forked = [process for process in list_processes() if process not in members]  # since the signal
    _signal([*remaining, *forked], signal.SIGKILL)
    _wait_for_exit([*remaining, *forked], 5)
    return len(members) + len(forked)


def _wait_for_exit(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Return the processes that still run after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (running := [process for process in processes if _is_running(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def _is_running(process: psutil.Process) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _session_processes(identity: ProcessIdentity, home: Path) -> list[psutil.Process]:
    """Return the processes of the session of `identity`, even if its leader has died.

    Once the leader is dead, the operating system may reuse its PID: then only processes with the variable of this home
    count.
    """
    session = [p for p in psutil.process_iter() if _session_id(p) == identity.pid and _is_running(p)]
    if is_alive(identity):
        return session
    return [process for process in session if process.pid != identity.pid and _belongs_to_home(process, home, 10)]


def _session_id(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def _belongs_to_home(process: psutil.Process, home: Path, attempts: int = 1) -> bool:
    """Return whether a process has the variable of this home; while it executes another program, it has none at all."""
    try:
        while not (variables := process.environ()) and attempts > 1:
            attempts -= 1
            time.sleep(0.05)
        return variables.get(STACK_VARIABLE) == str(home)
    except (psutil.Error, OSError):
        return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # raises also if another process has the PID
        except psutil.NoSuchProcess:
            continue
