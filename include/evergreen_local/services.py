"""The services of the local stack: their commands, environments and readiness checks, wherever they run."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TextIO

import httpx

from evergreen.client.addresses import SPARK_TOKEN_FILE, SPARK_TOKEN_VARIABLE
from evergreen.local_services import accepts_connections
from evergreen.settings import LOOPBACK_HOST, STACK_VARIABLE, parse_host_and_port, settings, variable_name
from evergreen.storage import is_local

_BIN = Path(sys.executable).parent
_SHARED_ENV_FILE = Path(__file__).with_name("airflow.env")
_reservations: dict[int, TextIO] = {}  # by port; the kernel drops their locks when this process ends
_AIRFLOW_COMPONENTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")


@dataclass(frozen=True)
class ServiceEndpoint:
    """A service at a URL, and a function that returns whether it is ready."""

    title: str
    url: str
    is_ready: Callable[[], bool]


@dataclass(frozen=True)
class LocalService(ServiceEndpoint):
    """A service and how to start it."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path


def external_services() -> dict[str, ServiceEndpoint]:
    """Return the services that the settings name, which are therefore not started here.

    An external Airflow has its own MLflow and Spark: if there is one, nothing is started.
    """
    config = settings()
    configured = config.model_fields_set
    endpoints = {}
    spark, mlflow = config.spark.get_secret_value(), config.mlflow.get_secret_value()
    if "spark" in configured and spark.startswith("sc://"):
        host, port = parse_host_and_port(spark, 15002)
        endpoints["spark"] = ServiceEndpoint("Spark Connect", str(config.spark), port_check(port, host))
    if "mlflow" in configured and mlflow.startswith("http"):
        url = config.mlflow_ui or str(config.mlflow)
        endpoints["mlflow"] = ServiceEndpoint("MLflow", url, _http_check(f"{config.mlflow}/health"))
    if config.airflow:
        url = str(config.airflow)
        endpoints["airflow"] = ServiceEndpoint("Airflow", config.airflow_ui or url, _airflow_health_check(url))
    return endpoints


def spark_service(home: Path, port: int) -> LocalService:
    """Return a Spark Connect server. It leads its session: Spark's scripts replace themselves by Java."""
    from evergreen.features.spark import spark_connect_command

    folder = home / "spark"
    command, variables = spark_connect_command(LOOPBACK_HOST, port, folder)
    environment = {
        **_inherited_environment(home, excluded_prefixes=("SPARK_", "PYSPARK_")),
        **variables,
        **spark_client_environment(home),
    }
    url = f"sc://localhost:{port}"
    return LocalService("Spark Connect", url, port_check(port), tuple(command), environment, folder)


def spark_exchange_environment() -> Mapping[str, str]:
    """Return the variable by which tasks and the server of this machine exchange files, unless the settings name one.

    Also of a lake in an object store, the server reads what tasks have on their disk.
    """
    current = settings()
    if is_local(current.lake) or "spark_exchange" in current.model_fields_set:
        return {}
    return {variable_name("spark_exchange"): str(current.cache.absolute())}


def spark_client_environment(home: Path) -> Mapping[str, str]:
    """Return the variables with the token of the local Spark server.

    Without a token, every user of this machine could run code as this user.
    """
    file = home / SPARK_TOKEN_FILE
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(secrets.token_hex(16))
    return {SPARK_TOKEN_VARIABLE: file.read_text()}


def mlflow_service(home: Path, port: int) -> LocalService:
    """Return an MLflow server, which also stores the artifacts."""
    url = f"http://{LOOPBACK_HOST}:{port}"
    command = (
        *(str(_BIN / "mlflow"), "server", "--host", LOOPBACK_HOST, "--port", str(port)),
        *("--workers", "1"),  # four, the default, take 46 s and 1.4 GB to start
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db"),
        *("--artifacts-destination", str(home / "mlflow-artifacts")),
    )
    environment = {
        **_inherited_environment(home, excluded_prefixes=("MLFLOW_",)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # workers for jobs that nobody submits
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    return LocalService("MLflow", url, _http_check(f"{url}/health"), command, environment, home / "mlflow")


def airflow_service(home: Path, port: int, service_environment: Mapping[str, str]) -> LocalService:
    """Return Airflow with all its components; its tasks find the other services by `service_environment`."""
    url = f"http://{LOOPBACK_HOST}:{port}"
    folder = home / "airflow"
    log_port = str(free_port(8793))
    environment = {
        # Settings of another Airflow, such as its database, must not apply.
        **_inherited_environment(home, excluded_prefixes=("AIRFLOW_",)),
        **shared_airflow_environment(),
        **_lineage_environment(),
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(settings().project / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(settings().project / "plugins"),
        # One user, one machine: every client on the loopback address is admin, without a password.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": LOOPBACK_HOST,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # Two stacks on one machine must not compete for the default port. One server has the logs of both.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": log_port,
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": log_port,
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "evergreen_local.airflow_components.get_hostname",
        # Process titles would overwrite the environment in memory, by which `evergreen down` finds the processes.
        "SPT_NOENV": "1",
        **service_environment,
    }
    return LocalService(
        "Airflow",
        url,
        _airflow_health_check(url),
        (sys.executable, "-m", "evergreen_local.airflow_components", log_port),
        environment,
        folder,
    )


def _lineage_environment() -> Mapping[str, str]:
    """Return the settings of OpenLineage: where lineage is sent is said to whatever Airflow runs."""
    return {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW__OPENLINEAGE__")}


def shared_airflow_environment() -> Mapping[str, str]:
    """Return the variables for Airflow on one machine, which docker-compose.yaml uses, too."""
    lines = (line for line in _SHARED_ENV_FILE.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def free_port(preferred: int) -> int:
    """Return `preferred`, or the next port that is free, and reserve it until this process ends.

    A service listens seconds after its port was chosen: another stack that starts meanwhile has to choose another.
    """
    return next(port for port in range(preferred, 65536) if _reserve(port) and _is_free(port))


def _reserve(port: int) -> bool:
    """Return whether no other process has reserved the port."""
    if port in _reservations:
        return True
    try:
        file = (Path(tempfile.gettempdir()) / f"evergreen-port-{port}.lock").open("w")
    except PermissionError:
        return True  # the file of another user, whose reservations cannot be known
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _reservations[port] = file
    return True


def _is_free(port: int) -> bool:
    if accepts_connections(LOOPBACK_HOST, port, timeout=1):
        return False
    with socket.socket() as attempt:
        # Connections of a server that has just ended must not block the port for its successor.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK_HOST, port))
        except OSError:
            return False
    return True


def _inherited_environment(home: Path, excluded_prefixes: tuple[str, ...]) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(excluded_prefixes)}
    environment["PATH"] = f"{_BIN}:{environment.get('PATH', os.defpath)}"
    # Traffic between local processes uses no proxy.
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, [environment.get(name), LOOPBACK_HOST, "localhost"]))
    environment["PYTHONUNBUFFERED"] = "1"
    environment[STACK_VARIABLE] = str(home)
    return environment


def port_check(port: int, host: str = LOOPBACK_HOST) -> Callable[[], bool]:
    return partial(accepts_connections, host, port, timeout=1)


def _http_check(url: str) -> Callable[[], bool]:
    return lambda: _get(url) is not None


def _airflow_health_check(url: str) -> Callable[[], bool]:
    def is_ready() -> bool:
        health = _get(f"{url}/api/v2/monitor/health")
        return health is not None and all(
            (health.json().get(component) or {}).get("status") == "healthy" for component in _AIRFLOW_COMPONENTS
        )

    return is_ready


@cache
def _client() -> httpx.Client:
    """Return one client for all polls: each new one would read the certificates of all authorities again."""
    return httpx.Client(timeout=5, trust_env=False)


def _get(url: str) -> httpx.Response | None:
    try:
        response = _client().get(url)
    except httpx.TransportError:
        return None
    return response if response.status_code == 200 else None
