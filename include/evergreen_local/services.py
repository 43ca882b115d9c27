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

from evergreen.settings import settings, shown
from evergreen_local import airflow_settings
from evergreen_local.processes import MARK

HOST = "127.0.0.1"
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Engine:
    """One engine at one address, and whether it answers there."""

    title: str
    url: str
    ready: Callable[[], bool]


@dataclass(frozen=True)
class Service(Engine):
    """An engine, and how to start it."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    parts: tuple[str, ...] = ()  # what it starts and does not start again: words of their command lines


def elsewhere() -> dict[str, Engine]:
    """The engines that the settings name, and that we therefore do not start.

    An Airflow elsewhere knows its own: beside it we start nothing.
    """
    now = settings()
    found = {}
    if "spark" in now.model_fields_set and now.spark.startswith("sc://"):
        host, port = host_of(now.spark, 15002)
        found["spark"] = Engine("Spark Connect", shown(now.spark), listens(port, host))
    if "mlflow" in now.model_fields_set and now.mlflow.startswith("http"):
        found["mlflow"] = Engine(
            "MLflow", now.mlflow_ui or shown(now.mlflow), _answers(f"{now.mlflow}/health")
        )
    if now.airflow:
        address = shown(now.airflow)
        found["airflow"] = Engine("Airflow", now.airflow_ui or address, _airflow_is_healthy(address))
    return found


def host_of(url: str, port: int) -> tuple[str, int]:
    """Host and port of an address; `port` if it names none."""
    parts = urlsplit(url)
    return parts.hostname or HOST, parts.port or port


def spark(home: Path, port: int) -> Service:
    """A Spark Connect server. It is the leader of its session: Spark's scripts replace themselves by Java."""
    from evergreen.features.spark import server

    folder = home / "spark"
    command, variables = server(HOST, port, folder)
    environment = {
        **_inherited(home, without=("SPARK_", "PYSPARK_")),
        **variables,
        **spark_client(home),
    }
    return Service(
        "Spark Connect", f"sc://localhost:{port}", listens(port), tuple(command), environment, folder
    )


def spark_client(home: Path) -> Mapping[str, str]:
    """What a client of our Spark server needs: without it, anybody on this machine could run code as us."""
    file = home / "spark" / "token"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(secrets.token_hex(16))
    return {"SPARK_CONNECT_AUTHENTICATE_TOKEN": file.read_text()}


def mlflow(home: Path, port: int) -> Service:
    """An MLflow server; clients send it the files of a model, it keeps them."""
    url = f"http://{HOST}:{port}"
    command = (
        *(str(_BIN / "mlflow"), "server", "--host", HOST, "--port", str(port)),
        *("--workers", "1"),  # four, the default, take 46 s and 1.4 GB to start
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db"),
        *("--artifacts-destination", str(home / "mlflow-artifacts")),
    )
    environment = {
        **_inherited(home, without=("MLFLOW_",)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # workers for jobs that nobody sends
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    return Service("MLflow", url, _answers(f"{url}/health"), command, environment, home / "mlflow")


def airflow(home: Path, port: int, engines: Mapping[str, str]) -> Service:
    """`airflow standalone`; its tasks find the other engines by `engines`, variables of the environment."""
    url = f"http://{HOST}:{port}"
    folder = home / "airflow"
    logs, trigger_logs = free_port(8793), free_port(8794)
    environment = {
        # Settings that stem from another Airflow, such as its database, are none of ours.
        **_inherited(home, without=("AIRFLOW_",)),
        **airflow_settings.environment(folder, url, port, logs, trigger_logs),
        **engines,
    }
    return Service(
        "Airflow",
        url,
        _airflow_is_healthy(url),
        (str(_BIN / "airflow"), "standalone"),
        environment,
        folder,
        parts=("schedule", "dag-proc", "trigger"),  # Airflow changes, and cuts short, how they are called
    )


def free_port(wanted: int, taken: Iterable[int] = ()) -> int:
    """`wanted`, or the next port at which nobody listens."""
    taken = set(taken)
    return next(port for port in range(wanted, 65536) if port not in taken and _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        if attempt.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket() as attempt:
        # Connections of a server that has just ended must not keep its port from its successor.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError:
            return False
    return True


def _inherited(home: Path, without: tuple[str, ...]) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    environment["PATH"] = (
        f"{_BIN}:{environment.get('PATH', os.defpath)}"  # `airflow standalone` looks for airflow
    )
    # What happens between our own processes goes through no proxy.
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, [environment.get(name), HOST, "localhost"]))
    environment["PYTHONUNBUFFERED"] = "1"
    environment[MARK] = str(home)
    return environment


def listens(port: int, host: str = HOST) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with socket.create_connection((host, port), timeout=1):
                return True
        except OSError:
            return False

    return ready


def _answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        return _get(url) is not None

    return ready


def _airflow_is_healthy(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        health = _get(f"{url}/api/v2/monitor/health")
        parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return health is not None and all(
            (health.json().get(part) or {}).get("status") == "healthy" for part in parts
        )

    return ready


def _get(url: str) -> httpx.Response | None:
    try:
        answer = httpx.get(url, timeout=5, trust_env=False)
    except httpx.TransportError:
        return None
    return answer if answer.status_code == 200 else None


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])
