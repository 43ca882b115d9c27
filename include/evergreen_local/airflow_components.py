"""Runs the components of Airflow on one machine, as `airflow standalone` does, and none listens beyond the loopback.

    python -m evergreen_local.airflow_components <port of the log server>

The scheduler and the triggerer would each serve logs on all addresses of the machine; no setting of Airflow 3.3 binds
these servers to one. So both are told not to, and one server of the same application serves the logs of both.

The scheduler imports what tasks share while the database is upgraded (`evergreen_local.scheduler`).

`airflow standalone` starts each component once. Here one that ends is started again, as by systemd or Kubernetes.

SQLite has one writer at a time; others wait for five seconds, and then fail, at which a scheduler ends. Here they wait
for a minute, but for the API server: it waits in its event loop, without which its own request that has the lock cannot
end. So it gives up after five seconds, and clients repeat their request.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

from evergreen.settings import LOOPBACK_HOST

_BIN = Path(sys.executable).parent
_COMPONENTS = (
    ("scheduler", "--skip-serve-logs"),
    ("dag-processor",),
    ("api-server",),
    ("triggerer", "--skip-serve-logs"),
)
_PATIENT = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS": "evergreen_local.database_connections.CONNECT_ARGS"}
_LOG_APPLICATION = "airflow.utils.serve_logs.log_server:get_app"
_POLL_S = 0.5
_LONGEST_PAUSE_S = 60.0
"""Pauses before restarts double up to this one. A component that has run for longer starts again at once."""


def get_hostname() -> str:
    """Return the name under which components find the logs of one another: Airflow's `hostname_callable`."""
    return LOOPBACK_HOST


def run_components(log_port: int) -> None:
    """Upgrade Airflow's database, and run all components until SIGTERM."""
    commands = component_commands(log_port, os.environ)
    (_, _, *arguments), environment = commands["scheduler"]
    early = [sys.executable, "-P", "-m", "evergreen_local.scheduler", *arguments]
    scheduler = subprocess.Popen(early, env=environment, stdin=subprocess.PIPE)
    subprocess.run([_BIN / "airflow", "db", "migrate"], check=True)
    with suppress(BrokenPipeError), cast(IO[bytes], scheduler.stdin) as stdin:  # one that has ended starts again
        stdin.write(b"start\n")
    supervise(commands, {"scheduler": scheduler})


def component_commands(
    log_port: int, environment: Mapping[str, str]
) -> dict[str, tuple[Sequence[str], Mapping[str, str]]]:
    """Return the command and the environment of each component, by name, of an Airflow with this environment."""
    patient = {**environment, **_PATIENT}
    commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {
        name: ([str(_BIN / "airflow"), name, *arguments], environment if name == "api-server" else patient)
        for name, *arguments in _COMPONENTS
    }
    log_server = [sys.executable, "-m", "uvicorn", "--factory", _LOG_APPLICATION, "--no-access-log"]
    commands["log server"] = [*log_server, "--host", LOOPBACK_HOST, "--port", str(log_port)], environment
    return commands


def supervise(
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]],
    started: Mapping[str, subprocess.Popen[Any]] = MappingProxyType({}),
) -> None:
    """Run commands with their environments, by name; start those that end again, and end all at SIGTERM.

    Those that are `started` are not started before they end.
    """
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    components = [_Component(name, *command, started.get(name)) for name, command in commands.items()]
    while not stopping.wait(_POLL_S):
        for component in components:
            component.start_again_if_ended()
    for component in components:
        component.process.terminate()
    for component in components:
        component.process.wait()


class _Component:
    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        started: subprocess.Popen[Any] | None,
    ) -> None:
        self.name = name
        self._start: Callable[[], subprocess.Popen[Any]] = partial(subprocess.Popen, command, env=environment)
        self.process = started or self._start()
        self._started_at = time.monotonic()
        self._restart_at: float | None = None
        self._pause = 0.0

    def start_again_if_ended(self) -> None:
        code, now = self.process.poll(), time.monotonic()
        if code is None:
            return
        if self._restart_at is None:
            has_run = now - self._started_at > _LONGEST_PAUSE_S
            self._pause = 0.0 if has_run else min(max(1.0, 2 * self._pause), _LONGEST_PAUSE_S)
            self._restart_at = now + self._pause
            sys.stderr.write(f"{self.name} ended with code {code}; it starts again in {self._pause:.0f} s\n")
        if now >= self._restart_at:
            self.process, self._started_at, self._restart_at = self._start(), now, None


if __name__ == "__main__":
    run_components(int(sys.argv[1]))
