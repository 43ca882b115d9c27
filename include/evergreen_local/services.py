"""The three engines: how each is started on this machine, and how one sees that it is ready, wherever it runs."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from evergreen.settings import redact_url, settings
from evergreen_local import airflow_settings
from evergreen_local.processes import STACK_VARIABLE

LOOPBACK_HOST = "127.0.0.1"
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class ServiceEndpoint:
    """One engine at one address, and whether it answers there."""

    title: str
    url: str
    is_ready: Callable[[], bool]


@dataclass(frozen=True)
class LocalService(ServiceEndpoint):
    """An engine, and how to start it."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    child_names: tuple[str, ...] = ()  # what it starts and does not start again: words of their command lines


def external_services() -> dict[str, ServiceEndpoint]:
    """The engines that the settings name, and that we therefore do not start.

    An Airflow elsewhere knows its own: beside it we start nothing.
    """
    now = settings()
    found = {}
    if "spark" in now.model_fields_set and now.spark.startswith("sc://"):
        host, port = parse_host_and_port(now.spark, 15002)
        found["spark"] = ServiceEndpoint("Spark Connect", redact_url(now.spark), port_check(port, host))
    if "mlflow" in now.model_fields_set and now.mlflow.startswith("http"):
        found["mlflow"] = ServiceEndpoint(
            "MLflow", now.mlflow_ui or redact_url(now.mlflow), _http_check(f"{now.mlflow}/health")
        )
    if now.airflow:
        address = redact_url(now.airflow)
        found["airflow"] = ServiceEndpoint("Airflow", now.airflow_ui or address, _airflow_health_check(address))
    return found


def parse_host_and_port(url: str, default_port: int) -> tuple[str, int]:
    """Host and port of an address; `port` if it names none."""
    parts = urlsplit(url)
    return parts.hostname or LOOPBACK_HOST, parts.port or default_port


def spark_service(home: Path, port: int) -> LocalService:
    """A Spark Connect server. It is the leader of its session: Spark's scripts replace themselves by Java."""
    from evergreen.features.spark import spark_connect_command

    folder = home / "spark"
    command, variables = spark_connect_command(LOOPBACK_HOST, port, folder)
    environment = {
        **_inherited_environment(home, excluded_prefixes=("SPARK_", "PYSPARK_")),
        **variables,
        **spark_client_environment(home),
    }
    return LocalService(
        "Spark Connect", f"sc://localhost:{port}", port_check(port), tuple(command), environment, folder
    )


def spark_client_environment(home: Path) -> Mapping[str, str]:
    """What a client of our Spark server needs: without it, anybody on this machine could run code as us."""
    file = home / "spark" / "token"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(secrets.token_hex(16))
    return {"SPARK_CONNECT_AUTHENTICATE_TOKEN": file.read_text()}


def mlflow_service(home: Path, port: int) -> LocalService:
    """An MLflow server; clients send it the files of a model, it keeps them."""
    url = f"http://{LOOPBACK_HOST}:{port}"
    command = (
        *(str(_BIN / "mlflow"), "server", "--host", LOOPBACK_HOST, "--port", str(port)),
        *("--workers", "1"),  # four, the default, take 46 s and 1.4 GB to start
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db"),
        *("--artifacts-destination", str(home / "mlflow-artifacts")),
    )
    environment = {
        **_inherited_environment(home, excluded_prefixes=("MLFLOW_",)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # workers for jobs that nobody sends
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    return LocalService("MLflow", url, _http_check(f"{url}/health"), command, environment, home / "mlflow")


def airflow_service(home: Path, port: int, service_environment: Mapping[str, str]) -> LocalService:
    """`airflow standalone`; its tasks find the other engines by `engines`, variables of the environment."""
    url = f"http://{LOOPBACK_HOST}:{port}"
    folder = home / "airflow"
    logs, trigger_logs = free_port(8793), free_port(8794)
    environment = {
        # Settings that stem from another Airflow, such as its database, are none of ours.
        **_inherited_environment(home, excluded_prefixes=("AIRFLOW_",)),
        **airflow_settings.airflow_environment(folder, url, port, logs, trigger_logs),
        **service_environment,
    }
    return LocalService(
        "Airflow",
        url,
        _airflow_health_check(url),
        (str(_BIN / "airflow"), "standalone"),
        environment,
        folder,
        child_names=(
            "schedule",
            "dag-proc",
            "trigger",
        ),  # Airflow changes, and cuts short, how they are called
    )


def free_port(preferred: int, excluded: Iterable[int] = ()) -> int:
    """`wanted`, or the next port at which nobody listens."""
    excluded = set(excluded)
    return next(port for port in range(preferred, 65536) if port not in excluded and _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        if attempt.connect_ex((LOOPBACK_HOST, port)) == 0:
            return False
    with socket.socket() as attempt:
        # Connections of a server that has just ended must not keep its port from its successor.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK_HOST, port))
        except OSError:
            return False
    return True


def _inherited_environment(home: Path, excluded_prefixes: tuple[str, ...]) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(excluded_prefixes)}
    environment["PATH"] = f"{_BIN}:{environment.get('PATH', os.defpath)}"  # `airflow standalone` looks for airflow
    # What happens between our own processes goes through no proxy.
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, [environment.get(name), LOOPBACK_HOST, "localhost"]))
    environment["PYTHONUNBUFFERED"] = "1"
    environment[STACK_VARIABLE] = str(home)
    return environment


def port_check(port: int, host: str = LOOPBACK_HOST) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with socket.create_connection((host, port), timeout=1):
                return True
        except OSError:
            return False

    return ready


def _http_check(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        return _get(url) is not None

    return ready


def _airflow_health_check(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        health = _get(f"{url}/api/v2/monitor/health")
        parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return health is not None and all((health.json().get(part) or {}).get("status") == "healthy" for part in parts)

    return ready


def _get(url: str) -> httpx.Response | None:
    try:
        answer = httpx.get(url, timeout=5, trust_env=False)
    except httpx.TransportError:
        return None
    return answer if answer.status_code == 200 else None


def parse_port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])
