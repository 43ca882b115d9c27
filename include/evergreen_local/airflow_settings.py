"""How Airflow runs on one machine for one person: deploy/airflow.env, and what differs from machine to machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evergreen.settings import REPOSITORY

_SHARED_ENV_FILE = REPOSITORY / "deploy" / "airflow.env"


def airflow_environment(home: Path, url: str, port: int, log_port: int, trigger_log_port: int) -> Mapping[str, str]:
    """Environment variables of all of Airflow's processes; nothing of it is read from anywhere else."""
    return {
        **shared_airflow_environment(),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        # One person, one machine: whoever reaches the loopback address is admin, without a password to keep.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # Two stacks on one machine must not fight for the default ports of these two.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_port),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_log_port),
        # Keeps process titles out of the memory that holds the environment, by which `stop` knows our own.
        "SPT_NOENV": "1",
    }


def shared_airflow_environment() -> Mapping[str, str]:
    """The settings that hold wherever Airflow runs on one machine: docker-compose.yaml reads the same file."""
    lines = (line for line in _SHARED_ENV_FILE.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)
