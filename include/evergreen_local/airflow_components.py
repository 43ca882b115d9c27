"""Runs the components of Airflow on one machine, as `airflow standalone` does, and none listens beyond the loopback.

    python -m evergreen_local.airflow_components <port of the log server>

The scheduler and the triggerer would each serve logs on all addresses of the machine; no setting of Airflow 3.3 binds
these servers to one. So both are told not to, and one server of the same application serves the logs of both.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from evergreen.settings import LOOPBACK_HOST

_BIN = Path(sys.executable).parent
_COMPONENTS = (
    ("scheduler", "--skip-serve-logs"),
    ("dag-processor",),
    ("api-server",),
    ("triggerer", "--skip-serve-logs"),
)
_LOG_APPLICATION = "airflow.utils.serve_logs.log_server:get_app"


def get_hostname() -> str:
    """Return the name under which components find the logs of one another: Airflow's `hostname_callable`."""
    return LOOPBACK_HOST


def run_components(log_port: int) -> None:
    """Upgrade Airflow's database, start all components, and wait for them; SIGTERM ends all."""
    subprocess.run([_BIN / "airflow", "db", "migrate"], check=True)
    log_server = [sys.executable, "-m", "uvicorn", "--factory", _LOG_APPLICATION, "--no-access-log"]
    commands = [[str(_BIN / "airflow"), *component] for component in _COMPONENTS]
    commands.append([*log_server, "--host", LOOPBACK_HOST, "--port", str(log_port)])
    processes = [subprocess.Popen(command) for command in commands]

    def stop(*_: object) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    for process in processes:
        process.wait()


if __name__ == "__main__":
    run_components(int(sys.argv[1]))
