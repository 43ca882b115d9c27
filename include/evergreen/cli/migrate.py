"""`evergreen migrate`: databases and buckets as this version needs them, before anything of this version starts.

Each of those that the environment names: Airflow's database, MLflow's, and the buckets of ledger, jobs and artifacts.
All of them, Feast's registry and the online store must let us in before any is touched: a wrong password is told of at
the start, not by the first task that needs it. To migrate what is migrated already changes nothing.

`evergreen migrate --wait` is for what starts along with it, and must not before it is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from evergreen.cli.doctor import ChecksFailedError, databases, places
from evergreen.cli.doctor.seen import CheckFailedError, UnreachableError
from evergreen.cli.progress import Progress, ProgressView, format_duration
from evergreen.errors import EvergreenError, Fault
from evergreen.settings import Settings, redact_url, settings

_CONNECT_TIMEOUT_S = 120.0  # seconds until a server must answer that was started along with this
_MIGRATION_TIMEOUT_S = 600.0  # seconds that somebody else has to migrate
_TAIL = 5


class MigrationError(EvergreenError):
    """A database was not brought to this version."""


def migrate(progress: Progress) -> None:
    """Bring all that the environment names to this version.

    Raises:
        NotWellError: something does not answer, or does not let us in; nothing was changed.
        MigrationError: a schema cannot be brought to this version.
    """
    began = time.monotonic()
    schemas, buckets = configured_databases(os.environ), configured_buckets(os.environ, settings())
    servers = list(_server_checks(schemas, buckets, settings()))
    deadline = time.monotonic() + _CONNECT_TIMEOUT_S
    progress.update(ProgressView("waiting for databases and buckets", 0, len(servers), "there"))
    with ThreadPoolExecutor(len(servers) or 1) as pool:
        if faults := list(filter(None, pool.map(partial(_check_server, deadline), servers))):
            raise ChecksFailedError("nothing was migrated", faults)
        progress.update(ProgressView("migrating", 0, len(schemas), "databases"))
        for said in pool.map(_migrate_database, schemas, schemas.values()):
            progress.print(said)
    for name, uri in buckets.items():
        progress.print(f"✓ {name}: {uri}")
    progress.clear()
    progress.print(f"all is ready, after {format_duration(time.monotonic() - began)}")


def wait_for_migration() -> None:
    """Wait until somebody else has brought the databases that the environment names to this version.

    Raises:
        MigrationError: nobody has, within ten minutes.
    """
    deadline = time.monotonic() + _MIGRATION_TIMEOUT_S
    for name, url in configured_databases(os.environ).items():
        told = ""
        while problem := _schema_problem(url) or ("" if _VERSION_CHECKS[name](url) else "is of another version"):
            if problem != told:
                print(f"waiting: {name}'s database {redact_url(url)}: {problem}", flush=True)
                told = problem
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"{name}'s database {redact_url(url)} is not of this version: `evergreen migrate` brings it there"
                )
            time.sleep(1)


def configured_databases(environment: Mapping[str, str]) -> dict[str, str]:
    """The databases whose schema is Airflow's or MLflow's, by their own variables: name → SQLAlchemy's URL."""
    variables = {"Airflow": "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "MLflow": "MLFLOW_BACKEND_STORE_URI"}
    return {name: environment[variable] for name, variable in variables.items() if environment.get(variable)}


def configured_buckets(environment: Mapping[str, str], config: Settings) -> dict[str, str]:
    """What lies in an object store: name → URI."""
    uris = {
        "ledger": config.ledger,
        "jobs": config.jobs,
        "artifacts": environment.get("MLFLOW_ARTIFACTS_DESTINATION", ""),
    }
    return {name: uri for name, uri in uris.items() if "://" in uri and not uri.startswith("file:")}


_ServerCheck = tuple[str, str, Callable[[], object]]  # what it is, where, and how to see that it lets us in


def _server_checks(schemas: Mapping[str, str], buckets: Mapping[str, str], config: Settings) -> Iterator[_ServerCheck]:
    for name, url in {**schemas, "Feast": config.feast_registry}.items():
        yield f"{name}'s database", url, partial(_connect, url)
    if "://" in config.online_store:
        yield "online store", config.online_store, partial(databases.check_online_store, config.online_store)
    for name, uri in buckets.items():
        yield name, uri, partial(_prepare_bucket, uri, append_only=name == "ledger")


def _connect(url: str) -> None:
    with databases.connect_database(url):
        pass


def _prepare_bucket(uri: str, append_only: bool) -> None:
    places.ensure_bucket(uri)
    places.check_bucket(uri, append_only)


def _check_server(deadline: float, server: _ServerCheck) -> Fault | None:
    """What is wrong with it; one that does not answer may have been started along with this, and is waited for."""
    what, where, look = server
    while True:
        try:
            look()
            return None
        except CheckFailedError as wrong:
            if not isinstance(wrong, UnreachableError) or time.monotonic() > deadline:
                return Fault(f"{what}, {redact_url(where)}", wrong.problem, wrong.fix)
        time.sleep(0.5)


def _schema_problem(url: str) -> str:
    """What is wrong with a database in which there should be a schema; empty if there is one."""
    try:
        with databases.connect_database(url) as (connection, _):
            return "" if connection.dialect.has_table(connection, "alembic_version") else "is empty"
    except CheckFailedError as wrong:
        return wrong.problem


def _airflow_is_current(_: str) -> bool:
    return subprocess.run(_AIRFLOW_CHECK_COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _mlflow_is_current(url: str) -> bool:
    try:
        databases.check_mlflow_database(url)
    except CheckFailedError:
        return False
    return True


def _migrate_database(name: str, url: str) -> str:
    """Let the engine's own command migrate its database; gives what to say of it."""
    began = time.monotonic()
    done = subprocess.run(_COMMANDS[name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        return f"✓ {name}'s database: of this version, after {format_duration(time.monotonic() - began)}"
    if "Can't locate revision" in done.stdout:
        raise MigrationError(
            f"{name}'s database {redact_url(url)} is of a newer version than this one: start that version, or restore the "
            "backup from before it"
        )
    told = [line.replace(url, redact_url(url)) for line in done.stdout.splitlines() if line.strip()]
    raise MigrationError("\n  ".join([f"{name}'s database {redact_url(url)} was not migrated:", *told[-_TAIL:]]))


_COMMANDS = {
    "Airflow": (sys.executable, "-m", "airflow", "db", "migrate"),
    # MLflow wants the address as an argument, password and all, and a command line is for everybody's eyes.
    "MLflow": (
        *(sys.executable, "-c"),
        "import os; from mlflow.db import commands; commands(['upgrade', os.environ['MLFLOW_BACKEND_STORE_URI']])",
    ),
}

_VERSION_CHECKS = {"Airflow": _airflow_is_current, "MLflow": _mlflow_is_current}
# It looks once a second for so long: Airflow takes seconds to be imported.
_AIRFLOW_CHECK_COMMAND = (
    sys.executable,
    "-m",
    "airflow",
    "db",
    "check-migrations",
    "--migration-wait-timeout",
    "60",
)
