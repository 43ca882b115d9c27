"""Checks of databases: Feast's registry, the online store, and MLflow's where no server is in front of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed, ClockProbe, UnreachableError
from evergreen.cli.doctor.storage import check_folder
from evergreen.settings import SecretUrl

if TYPE_CHECKING:
    from sqlalchemy import Connection

_feast_import = threading.Lock()


def import_feast() -> None:
    """Import Feast, in one thread at a time: its modules import one another in a circle."""
    with _feast_import:
        import feast.infra.registry.sql  # noqa: F401


def check_feast_registry(url: SecretUrl) -> CheckPassed:
    """Check Feast's registry: reachable, and with all its tables, or none: the first task creates them."""
    import_feast()
    import sqlalchemy
    from feast.infra.registry.sql import metadata

    with connect_database(url) as (connection, outcome):
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        expected = set(metadata.tables)
        if tables & expected and (missing := expected - tables):
            raise CheckFailedError(
                f"tables are missing: {', '.join(sorted(missing))}: it belongs to another version of Feast",
                "restore its backup for the version before, or `evergreen feast registry create-schema` for this one",
            )
        return outcome


def check_mlflow_database(url: SecretUrl) -> CheckPassed:
    """Check MLflow's database: reachable, and of this version."""
    with connect_database(url) as (connection, outcome):
        from mlflow.store.db import utils

        if connection.dialect.has_table(connection, "alembic_version"):
            revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            if revision != utils._get_latest_schema_revision():  # noqa: SLF001 - no public function returns it
                raise CheckFailedError(
                    f"its schema {revision} belongs to another version of MLflow",
                    "back it up, then `evergreen migrate`",
                )
        return outcome


def check_online_store(address: SecretUrl) -> CheckPassed:
    """Check that the online store accepts values and does not evict them."""
    url = address.get_secret_value()
    if "://" not in url:
        return check_folder(Path(url))
    import redis

    from evergreen.feature_store.online_backends import connect_redis

    clock = ClockProbe()
    try:
        with connect_redis(url, socket_connect_timeout=5, socket_timeout=10) as server:
            seconds, micros = server.time()
            clock_skew = clock.skew(seconds + micros / 1e6)
            info = server.info()
            server.set("_evergreen_doctor", "probe", ex=60)
            server.delete("_evergreen_doctor")
    except redis.AuthenticationError as error:
        raise CheckFailedError(
            f"authentication failed: {error}", "correct user and password in EVERGREEN_ONLINE_STORE"
        ) from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise UnreachableError(f"does not respond: {error}", "start it, or correct EVERGREEN_ONLINE_STORE") from None
    except redis.ResponseError as error:
        raise CheckFailedError(
            f"refuses a value: {error}", "give it more memory, and this user permission to read and write all keys"
        ) from None
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        raise CheckFailedError(
            f"silently evicts values when its memory is full (maxmemory-policy {policy})",
            "set maxmemory-policy to noeviction",
        )
    return CheckPassed(f"Redis {info.get('redis_version')}, accepts values and keeps them", clock_skew)


@contextmanager
def connect_database(url: SecretUrl) -> Iterator[tuple[Connection, CheckPassed]]:
    """Connect to the database at the SQLAlchemy URL `url`; also yields what the server reports about itself.

    Raises:
        CheckFailedError: It does not exist, does not respond, or authentication failed.
    """
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

    try:
        address = sqlalchemy.make_url(url.get_secret_value())
        if address.database and address.drivername.startswith("sqlite"):
            check_folder(Path(address.database).parent)
        options: dict[str, Any] = {}
        if address.drivername.startswith("postgresql"):
            # The default is the server's encoding, which _describe_server checks.
            options["connect_args"] = {"connect_timeout": 5, "client_encoding": "utf8"}
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, **options)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise CheckFailedError(
            f"not a database URL: {error}", "use the form postgresql+psycopg://user:password@host/name"
        ) from None
    clock = ClockProbe()
    try:
        with closing(engine.connect()) as connection:
            yield connection, _describe_server(connection, clock)
    except OperationalError as error:
        raise connection_failure(str(error.orig)) from None


def connection_failure(message: str) -> CheckFailedError:
    """Return the failed check for the message of a database driver."""
    lines = message.strip().splitlines()
    cause = next((line for line in reversed(lines) if "FATAL" in line), lines[0])
    if "password authentication failed" in message or "no password supplied" in message:
        return CheckFailedError(
            f"authentication failed: {cause}",
            "correct the password; a database keeps the one it was created with, whatever the environment says later",
        )
    if "does not exist" in message:
        return CheckFailedError(cause, "create it, or correct the URL")
    return UnreachableError(f"does not respond: {cause}", "start it, or correct the URL")


def _describe_server(connection: Connection, clock: ClockProbe) -> CheckPassed:
    if connection.dialect.name != "postgresql":
        return CheckPassed(f"{connection.dialect.name}, reachable")
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise CheckFailedError(
            f"stores text as {encoding}, which clients cannot read",
            "create it again: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )
    version = connection.exec_driver_sql("SHOW server_version").scalar()
    server_time = connection.exec_driver_sql("SELECT clock_timestamp()").scalar()
    assert isinstance(server_time, datetime)
    return CheckPassed(f"Postgres {version}, reachable", clock.skew(server_time))
