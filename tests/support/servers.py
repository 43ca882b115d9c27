"""Real servers of a test's own: MLflow as `evergreen up` starts it, on SQLite or on Postgres; Redis."""

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

_PATIENCE = 180.0  # seconds until a server must answer: MLflow takes 13 on an idle machine
_DEBIAN = Path("/usr/lib/postgresql")
_USER, _DATABASE = "evergreen", "mlflow"


@contextmanager
def mlflow_on(database: Literal["sqlite", "postgres"], folder: Path) -> Iterator[str]:
    """The URL of an MLflow server with an empty database."""
    if database == "sqlite":
        with _mlflow(folder) as url:
            yield url
    else:
        with postgres() as store, _mlflow(folder, store) as url:
            yield url


@contextmanager
def _mlflow(folder: Path, store: str | None = None) -> Iterator[str]:
    """A server that keeps its records in `store`, SQLAlchemy's URL; or else in SQLite."""
    service = services.mlflow_service(folder, free_port())
    command = [store if store and part.startswith("sqlite:") else part for part in service.command]
    with _running(command, service.environment, folder, folder / "mlflow.log", service.is_ready):
        yield service.url


def no_postgres() -> str:
    """Why no Postgres can be started here, or nothing."""
    if _postgres_programs() is None:
        return "Postgres is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and _postgres_user() is None:
        return "Postgres refuses to run as root, and there is no user `postgres` to run it as"
    return ""


def no_redis() -> str:
    """Why no Redis can be started here, or nothing."""
    return "" if shutil.which("redis-server") else "Redis is not installed: apt-get install redis-server"


@contextmanager
def redis(folder: Path, password: str, *options: str) -> Iterator[str]:
    """The address of an empty Redis that keeps nothing when it ends; `options` are its own, as on its command line."""
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
    """A Spark Connect server as `evergreen up` starts it: its address, and the token that it asks for."""
    service = services.spark_service(folder, free_port())
    log = folder / "spark.log"
    with _running(list(service.command), service.environment, service.folder, log, service.is_ready):
        yield service.url, services.spark_client_environment(folder)["SPARK_CONNECT_AUTHENTICATE_TOKEN"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind((services.LOOPBACK_HOST, 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def postgres() -> Iterator[str]:
    """SQLAlchemy's URL of an empty database, in a cluster that is made for it and removed afterwards.

    It listens on a socket in its own folder only, so it needs no port and nobody else reaches it.
    """
    programs = _postgres_programs()
    assert programs is not None, no_postgres()
    password = secrets.token_hex(16)
    # Not below pytest's folder: that belongs to the user who tests, whom Postgres may not run as.
    with tempfile.TemporaryDirectory(prefix="evergreen-postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        if user := _postgres_user():
            for path in (folder, folder / "password"):
                shutil.chown(path, user.pw_name)
        start = _as(user)
        subprocess.run(
            [
                *start,
                *(str(programs / "initdb"), "--pgdata", str(folder / "data"), "--username", _USER),
                *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        command = [
            *start,
            *(str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder)),
            *("-c", "listen_addresses=", "-c", "fsync=off"),  # its own crashes are not what is tested
        ]
        with _running(command, os.environ, folder, folder / "log", lambda: _accepts(folder, password)):
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
        deadline = time.monotonic() + _PATIENCE
        while not ready():
            if not processes.is_alive(identity) or time.monotonic() > deadline:
                raise AssertionError(f"{command[0]} did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield
    finally:
        processes.stop_session(identity, folder, timeout=20)


def _postgres_programs() -> Path | None:
    """Where `initdb` and `postgres` are. Debian leaves them off PATH, a folder per version."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = [path for path in _DEBIAN.glob("*/bin") if (path / "initdb").exists()]
    return max(versions, key=lambda path: float(path.parent.name), default=None)


def _postgres_user() -> pwd.struct_passwd | None:
    """Whom Postgres must run as instead of root, or None: as ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


def _as(user: pwd.struct_passwd | None) -> tuple[str, ...]:
    if user is None:
        return ()
    return ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--")


def _accepts(folder: Path, password: str) -> bool:
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
