"""Real servers for one test: MLflow, Spark Connect, Redis, Postgres."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from evergreen_local import processes, services

_READY_TIMEOUT_S = 180.0  # MLflow takes 13 s on an idle machine
_DEBIAN_FOLDER = Path("/usr/lib/postgresql")
_USER, _DATABASE = "evergreen", "mlflow"


@contextmanager
def mlflow_on(database: Literal["sqlite", "postgres"], folder: Path) -> Iterator[str]:
    """Yield the URL of an MLflow server with an empty database, started as `evergreen up` does."""
    if database == "sqlite":
        with _mlflow(folder) as url:
            yield url
    else:
        with postgres() as store, _mlflow(folder, store) as url:
            yield url


@contextmanager
def _mlflow(folder: Path, store: str | None = None) -> Iterator[str]:
    """Run a server with the database at the SQLAlchemy URL `store`, or else with SQLite."""
    service = services.mlflow_service(folder, free_port())
    command = [store if store and part.startswith("sqlite:") else part for part in service.command]
    with _running(command, service.environment, folder, folder / "mlflow.log", service.is_ready):
        yield service.url


def no_postgres() -> str:
    """Return why Postgres cannot be started here; empty if it can."""
    if _postgres_programs() is None:
        return "Postgres is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and _postgres_user() is None:
        return "Postgres refuses to run as root, and there is no user `postgres` to run it as"
    return ""


def no_redis() -> str:
    """Return why Redis cannot be started here; empty if it can."""
    return "" if shutil.which("redis-server") else "Redis is not installed: apt-get install redis-server"


@contextmanager
def redis(folder: Path, password: str, *options: str) -> Iterator[str]:
    """Yield the URL of an empty Redis without persistence; `options` extend its command line."""
    port = free_port()
    command = [
        *("redis-server", "--bind", services.LOOPBACK_HOST, "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--requirepass", password, *options),
    ]
    ready = services.port_check(port)
    with _running(command, os.environ, folder, folder / "redis.log", ready):
        yield f"redis://:{quote(password, safe='')}@{services.LOOPBACK_HOST}:{port}"


@contextmanager
def spark(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield URL and token of a Spark Connect server, started as `evergreen up` does."""
    service = services.spark_service(folder, free_port())
    log = folder / "spark.log"
    with _running(list(service.command), service.environment, service.folder, log, service.is_ready):
        yield service.url, services.spark_client_environment(folder)["SPARK_CONNECT_AUTHENTICATE_TOKEN"]


def free_port() -> int:
    with socket.create_server((services.LOOPBACK_HOST, 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the SQLAlchemy URL of an empty database, in a cluster that is removed afterwards.

    It listens only on a Unix socket in its own folder, so it needs no port.
    """
    programs = _postgres_programs()
    assert programs is not None, no_postgres()
    password = secrets.token_hex(16)
    # Not in pytest's folder: that belongs to the user of the test, and Postgres refuses to run as root.
    with tempfile.TemporaryDirectory(prefix="evergreen-postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        if user := _postgres_user():
            for path in (folder, folder / "password"):
                shutil.chown(path, user.pw_name)
        prefix = _run_as(user)
        subprocess.run(
            [
                *prefix,
                *(str(programs / "initdb"), "--pgdata", str(folder / "data"), "--username", _USER),
                *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        command = [
            *prefix,
            *(str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder)),
            *("-c", "listen_addresses=", "-c", "fsync=off"),  # crashes of Postgres are not tested
        ]
        with _running(command, os.environ, folder, folder / "log", lambda: _is_ready(folder, password)):
            _execute(folder, password, f"CREATE DATABASE {_DATABASE}")
            yield f"postgresql://{_USER}:{password}@/{_DATABASE}?host={folder}"


@contextmanager
def _running(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    ready: Callable[[], bool],
) -> Iterator[None]:
    identity = processes.start_process(command, environment, folder, log)
    try:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not ready():
            if not processes.is_alive(identity) or time.monotonic() > deadline:
                raise AssertionError(f"{command[0]} did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield
    finally:
        processes.stop_session(identity, folder, timeout=20)


def _postgres_programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`, which Debian does not put on PATH."""
    if program := shutil.which("initdb"):
        return Path(program).resolve().parent
    versions = [path for path in _DEBIAN_FOLDER.glob("*/bin") if (path / "initdb").exists()]
    return max(versions, key=lambda path: float(path.parent.name), default=None)


def _postgres_user() -> pwd.struct_passwd | None:
    """Return the user that must run Postgres instead of root; None for the current user."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


def _run_as(user: pwd.struct_passwd | None) -> tuple[str, ...]:
    if user is None:
        return ()
    return ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--")


def _is_ready(folder: Path, password: str) -> bool:
    import psycopg

    try:
        _execute(folder, password, "SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def _execute(folder: Path, password: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(
        host=str(folder), user=_USER, password=password, dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(statement)
