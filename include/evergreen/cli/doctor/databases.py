"""Databases: Feast's registry, the online store, and MLflow's where no server stands before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.cli.doctor.places import check_folder
from evergreen.cli.doctor.seen import CheckFailedError, CheckPassed, ClockProbe, UnreachableError

if TYPE_CHECKING:
    from sqlalchemy import Connection


def check_feast_registry(url: str) -> CheckPassed:
    """Feast's registry: reachable, and with its tables, or without any: the first task makes them."""
    from feast.infra.registry.sql import metadata

    with connect_database(url) as (connection, seen):
        if missing := _missing_tables(connection, set(metadata.tables)):
            raise CheckFailedError(
                f"lacks the tables {', '.join(sorted(missing))}: it is of another version of Feast",
                "restore its backup for the version before, or `evergreen feast registry create-schema` for this one",
            )
        return seen


def check_mlflow_database(url: str) -> CheckPassed:
    """MLflow's database: reachable, and of this version."""
    with connect_database(url) as (connection, seen):
        from mlflow.store.db import utils

        if connection.dialect.has_table(connection, "alembic_version"):
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            if found != utils._get_latest_schema_revision():  # noqa: SLF001 - nothing public tells it
                raise CheckFailedError(
                    f"its schema is {found}, of another version of MLflow",
                    "back it up, then `evergreen migrate`",
                )
        return seen


def check_online_store(url: str) -> CheckPassed:
    """The online store: takes a value and gives it back; and forgets none by itself."""
    if "://" not in url:
        return check_folder(Path(url).parent)
    import redis

    from evergreen.feature_store.online_backends import connect_redis as redis_at

    clock = ClockProbe()
    try:
        with redis_at(url, socket_connect_timeout=5, socket_timeout=10) as server:
            seconds, micros = server.time()
            ahead = clock.skew(seconds + micros / 1e6)
            told = server.info()
            server.set("_evergreen_doctor", "probe", ex=60)
            server.delete("_evergreen_doctor")
    except redis.AuthenticationError as error:
        raise CheckFailedError(
            f"does not let us in: {error}", "correct user and password in EVERGREEN_ONLINE_STORE"
        ) from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise UnreachableError(f"does not answer: {error}", "start it, or correct EVERGREEN_ONLINE_STORE") from None
    except redis.ResponseError as error:
        raise CheckFailedError(
            f"refuses a value: {error}", "give it memory, and this user the rights to read and write all keys"
        ) from None
    policy = str(told.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        raise CheckFailedError(
            f"forgets values when its memory is full (maxmemory-policy {policy}), and nobody would notice",
            "set maxmemory-policy to noeviction",
        )
    return CheckPassed(f"Redis {told.get('redis_version')}, keeps what it is given", ahead)


@contextmanager
def connect_database(url: str) -> Iterator[tuple[Connection, CheckPassed]]:
    """A connection to the database at `url`, SQLAlchemy's way to write it, and what it says of itself.

    Raises:
        Wrong: it does not answer, does not let us in, or does not exist.
    """
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

    try:
        address = sqlalchemy.make_url(url)
        if address.database and address.drivername.startswith("sqlite"):
            check_folder(Path(address.database).parent)
        options: dict[str, Any] = {}
        if address.drivername.startswith("postgresql"):
            # By default it is the server's, and what that may be is looked at below.
            options["connect_args"] = {"connect_timeout": 5, "client_encoding": "utf8"}
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, **options)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise CheckFailedError(
            f"is no address of a database: {error}", "write postgresql://user:password@host/name"
        ) from None
    clock = ClockProbe()
    try:
        with closing(engine.connect()) as connection:
            yield connection, _describe_server(connection, clock)
    except OperationalError as error:
        raise connection_failure(str(error.orig)) from None


def connection_failure(message: str) -> CheckFailedError:
    """Why a database did not let us in, from what it or its driver said."""
    first = next((line for line in reversed(message.strip().splitlines()) if "FATAL" in line), message.splitlines()[0])
    if "password authentication failed" in message or "no password supplied" in message:
        return CheckFailedError(
            f"does not let us in: {first}",
            "correct the password; a database keeps the one that it was made with, whatever the environment says later",
        )
    if "does not exist" in message:
        return CheckFailedError(first, "create it, or correct the address")
    return UnreachableError(f"does not answer: {first}", "start it, or correct the address")


def _describe_server(connection: Connection, clock: ClockProbe) -> CheckPassed:
    if connection.dialect.name != "postgresql":
        return CheckPassed(f"{connection.dialect.name}, reachable")
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise CheckFailedError(
            f"keeps text as {encoding}, which clients cannot read",
            "make it anew: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )
    version = connection.exec_driver_sql("SHOW server_version").scalar()
    now = connection.exec_driver_sql("SELECT clock_timestamp()").scalar()
    assert isinstance(now, datetime)
    return CheckPassed(f"Postgres {version}, reachable", clock.skew(now))


def _missing_tables(connection: Connection, tables: set[str]) -> set[str]:
    """Which of `tables` are not there, if any are."""
    import sqlalchemy

    there = set(sqlalchemy.inspect(connection).get_table_names())
    return tables - there if tables & there else set()
