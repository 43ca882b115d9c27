"""`evergreen migrate`: upgrades databases and creates buckets for this version, before any service of it starts.

It migrates what the environment configures: the databases of Airflow and MLflow, and the buckets of lake, ledger, jobs
and artifacts. It first checks access to all of these, to Feast's registry and to the online store: a wrong password is
reported before anything is changed. Running it again changes nothing.

`evergreen migrate --wait` is for services that start at the same time and must not run before it is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rich.console import Console

from evergreen.cli.doctor import ChecksFailedError, databases, storage
from evergreen.cli.doctor.outcomes import CheckFailedError, UnreachableError
from evergreen.errors import EvergreenError, Fault
from evergreen.settings import SecretUrl, Settings, settings

_CONNECT_TIMEOUT_S = 120.0  # for servers that start at the same time
_MIGRATION_TIMEOUT_S = 600.0  # for another process to migrate
_TAIL = 5  # lines of a failed command's output

_COMMANDS = {
    "Airflow": (sys.executable, "-m", "airflow", "db", "migrate"),
    # MLflow's own command takes the URL as an argument, and everybody can read command lines and their passwords.
    "MLflow": (
        *(sys.executable, "-c"),
        "import os; from mlflow.db import commands; commands(['upgrade', os.environ['MLFLOW_BACKEND_STORE_URI']])",
    ),
}
# With a timeout of its own: it checks once a second, while importing Airflow takes seconds.
_AIRFLOW_CHECK_COMMAND = (sys.executable, "-m", "airflow", "db", "check-migrations", "--migration-wait-timeout", "60")

_ServerCheck = tuple[str, str, Callable[[], object]]  # subject, location, function


class MigrationError(EvergreenError):
    """A database was not upgraded to this version."""


def migrate(console: Console) -> None:
    """Upgrade all databases and create all buckets that the environment configures.

    Raises:
        ChecksFailedError: A server does not respond, or authentication failed; nothing was changed.
        MigrationError: A schema cannot be upgraded to this version.
    """
    start = time.monotonic()
    schemas, buckets = configured_databases(os.environ), configured_buckets(os.environ, settings())
    servers = list(_server_checks(schemas, buckets, settings()))
    with ThreadPoolExecutor(len(servers) or 1) as pool:
        console.print(f"checking {len(servers)} databases and buckets")
        if faults := list(filter(None, pool.map(partial(_check_server, start + _CONNECT_TIMEOUT_S), servers))):
            raise ChecksFailedError("nothing was migrated", faults)
        for message in pool.map(_migrate_database, schemas, schemas.values()):
            console.print(message)
    for name, uri in buckets.items():
        console.print(f"✓ {name}: {uri}")
    console.print(f"migration finished after {time.monotonic() - start:.0f} s")


def wait_for_migration(console: Console) -> None:
    """Wait until another process has upgraded the configured databases to this version.

    Raises:
        MigrationError: They were not upgraded within ten minutes.
    """
    deadline = time.monotonic() + _MIGRATION_TIMEOUT_S
    for name, url in configured_databases(os.environ).items():
        database = f"{name}'s database {url}"
        reported = ""
        while problem := _schema_problem(name, url):
            if problem != reported:
                console.print(f"waiting: {database}: {problem}")
                reported = problem
            if time.monotonic() > deadline:
                raise MigrationError(f"{database} does not have this version's schema: run `evergreen migrate`")
            time.sleep(1)


def configured_databases(environment: Mapping[str, str]) -> dict[str, SecretUrl]:
    """Return name and SQLAlchemy URL of the databases of Airflow and MLflow, from their own variables."""
    variables = {"Airflow": "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "MLflow": "MLFLOW_BACKEND_STORE_URI"}
    return {name: SecretUrl(environment[variable]) for name, variable in variables.items() if environment.get(variable)}


def configured_buckets(environment: Mapping[str, str], config: Settings) -> dict[str, str]:
    """Return name and URI of everything that is stored in an object store."""
    artifacts = environment.get("MLFLOW_ARTIFACTS_DESTINATION", "")
    uris = {"lake": str(config.lake), "ledger": config.ledger, "jobs": config.jobs, "artifacts": artifacts}
    return {name: uri for name, uri in uris.items() if "://" in uri and not uri.startswith("file:")}


def _server_checks(
    schemas: Mapping[str, SecretUrl], buckets: Mapping[str, str], config: Settings
) -> Iterator[_ServerCheck]:
    for name, url in {**schemas, "Feast": config.feast_registry}.items():
        yield f"{name}'s database", str(url), partial(_check_connection, url)
    if "://" in config.online_store.get_secret_value():
        yield "online store", str(config.online_store), partial(databases.check_online_store, config.online_store)
    for name, uri in buckets.items():
        yield name, uri, partial(_prepare_bucket, uri, append_only=name == "ledger")


def _check_connection(url: SecretUrl) -> None:
    with databases.connect_database(url):
        pass


def _prepare_bucket(uri: str, append_only: bool) -> None:
    storage.ensure_bucket(uri)
    storage.check_bucket(uri, append_only)


def _check_server(deadline: float, server: _ServerCheck) -> Fault | None:
    """Return the fault of a server; one that does not respond may be starting, and has time until `deadline`."""
    subject, location, check = server
    while True:
        try:
            check()
            return None
        except CheckFailedError as failure:
            if not isinstance(failure, UnreachableError) or time.monotonic() > deadline:
                return Fault(f"{subject}, {location}", failure.problem, failure.fix)
        time.sleep(0.5)


def _schema_problem(name: str, url: SecretUrl) -> str:
    """Return why the schema of a database is not that of this version; empty if it is."""
    try:
        with databases.connect_database(url) as (connection, _):
            if not connection.dialect.has_table(connection, "alembic_version"):
                return "is empty"
        if name == "MLflow":
            databases.check_mlflow_database(url)
            return ""
    except CheckFailedError as failure:
        return failure.problem
    process = subprocess.run(_AIRFLOW_CHECK_COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return "has the schema of another version" if process.returncode else ""


def _migrate_database(name: str, url: SecretUrl) -> str:
    """Run the service's own command to upgrade its database; return a message."""
    start = time.monotonic()
    process = subprocess.run(_COMMANDS[name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    database = f"{name}'s database {url}"
    if process.returncode == 0:
        return f"✓ {database}: upgraded to this version in {time.monotonic() - start:.0f} s"
    if "Can't locate revision" in process.stdout:
        raise MigrationError(
            f"{database} belongs to a newer version than this one: start that version, or restore the backup from "
            "before its migration"
        )
    lines = [line.replace(url.get_secret_value(), str(url)) for line in process.stdout.splitlines() if line.strip()]
    raise MigrationError("\n  ".join([f"{database} was not migrated:", *lines[-_TAIL:]]))
