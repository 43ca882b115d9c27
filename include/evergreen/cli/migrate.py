"""`evergreen migrate`: databases and buckets as this version needs them, before anything of this version starts.

Each of those that the environment names: Airflow's database, MLflow's, and the buckets of ledger, jobs and artifacts.
All must let us in before any is touched. To migrate what is migrated already changes nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from evergreen.cli.doctor import NotWellError, databases, places
from evergreen.cli.doctor.seen import Silent, Wrong
from evergreen.cli.progress import Progress, View, duration
from evergreen.errors import EvergreenError, Fault
from evergreen.settings import Settings, settings, shown

_PATIENCE = 120.0  # seconds until a server must answer that was started along with this
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
    schemas, buckets = databases_in(os.environ), buckets_in(os.environ, settings())
    deadline = time.monotonic() + _PATIENCE
    progress.show(View("waiting for databases and buckets", 0, len(schemas) + len(buckets), "there"))
    with ThreadPoolExecutor() as pool:
        reached = [pool.submit(_reach_database, name, url, deadline) for name, url in schemas.items()]
        reached += [pool.submit(_reach_bucket, name, uri, deadline) for name, uri in buckets.items()]
        if faults := [fault for one in reached if (fault := one.result())]:
            raise NotWellError("nothing was migrated", faults)
        progress.show(View("migrating", 0, len(schemas), "databases"))
        for said in pool.map(_migrate, schemas, schemas.values()):
            progress.say(said)
    for name, uri in buckets.items():
        progress.say(f"✓ {name}: {uri}")
    progress.rest()
    progress.say(f"all is ready, after {duration(time.monotonic() - began)}")


def databases_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The databases whose schema is Airflow's or MLflow's, by their own variables: name → SQLAlchemy's URL."""
    variables = {"Airflow": "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "MLflow": "MLFLOW_BACKEND_STORE_URI"}
    return {name: environment[variable] for name, variable in variables.items() if environment.get(variable)}


def buckets_in(environment: Mapping[str, str], now: Settings) -> dict[str, str]:
    """What lies in an object store: name → URI."""
    uris = {
        "ledger": now.ledger,
        "jobs": now.jobs,
        "artifacts": environment.get("MLFLOW_ARTIFACTS_DESTINATION", ""),
    }
    return {name: uri for name, uri in uris.items() if "://" in uri and not uri.startswith("file:")}


def _reach_database(name: str, url: str, deadline: float) -> Fault | None:
    while True:
        try:
            with databases.connected(url):
                return None
        except Silent as silent:
            if time.monotonic() > deadline:
                return _fault(f"{name}'s database", url, silent)
        except Wrong as wrong:
            return _fault(f"{name}'s database", url, wrong)
        time.sleep(0.5)


def _reach_bucket(name: str, uri: str, deadline: float) -> Fault | None:
    while True:
        try:
            places.make_bucket(uri)
            places.bucket(uri, append_only=name == "ledger")
            return None
        except Silent as silent:
            if time.monotonic() > deadline:
                return _fault(name, uri, silent)
        except Wrong as wrong:
            return _fault(name, uri, wrong)
        time.sleep(0.5)


def _fault(what: str, where: str, wrong: Wrong) -> Fault:
    return Fault(f"{what}, {shown(where)}", wrong.what, wrong.way_out)


def _migrate(name: str, url: str) -> str:
    """Let the engine's own command migrate its database; gives what to say of it."""
    bin_ = Path(sys.executable).parent
    command = (
        [bin_ / "airflow", "db", "migrate"] if name == "Airflow" else [bin_ / "mlflow", "db", "upgrade", url]
    )
    began = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode == 0:
        return f"✓ {name}'s database: of this version, after {duration(time.monotonic() - began)}"
    if "Can't locate revision" in done.stdout:
        raise MigrationError(
            f"{name}'s database {shown(url)} is of a newer version than this one: start that version, or restore the "
            "backup from before it"
        )
    told = [line for line in done.stdout.splitlines() if line.strip()][-_TAIL:]
    with suppress(ValueError):
        told = [line.replace(url, shown(url)) for line in told]
    raise MigrationError("\n  ".join([f"{name}'s database {shown(url)} was not migrated:", *told]))
