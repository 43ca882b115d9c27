"""Locks that a database keeps for processes on several machines, and releases when their connection ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import make_url

from evergreen import storage
from evergreen.errors import Fault, SettingsError
from evergreen.settings import settings, variable_name


@contextmanager
def database_lock(url: str, name: str) -> Iterator[None]:
    """Hold the lock `name` of the database at `url`, a URL of SQLAlchemy; other callers wait.

    PostgreSQL and MySQL hold it for the connection, so it ends with the process. A database in SQLite is of one
    machine, so its lock is a file of that.

    Raises:
        SettingsError: the database has no such locks.
    """
    digest = hashlib.sha256(name.encode()).digest()
    value: int | str
    match make_url(url).get_backend_name():
        case "sqlite":
            with storage.file_lock(settings().home / "locks" / f"{digest.hex()[:32]}.lock"):
                yield
            return
        case "postgresql":
            query, value = "SELECT pg_advisory_lock(:name)", int.from_bytes(digest[:8], signed=True)
        case "mysql" | "mariadb":
            query, value = "SELECT GET_LOCK(:name, -1)", digest.hex()[:32]
        case backend:
            fix = "use PostgreSQL or MySQL, or a lake in a folder"
            fault = Fault(
                variable_name("feast_registry"), f"a database of {backend} has no locks that tasks share", fix
            )
            raise SettingsError("the environment", [fault])
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(query), {"name": value})
        yield  # closing the connection releases it
