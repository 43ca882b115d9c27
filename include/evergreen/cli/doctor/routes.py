"""Checks of routes of notifications: the notifier, and the Airflow connection that it sends by. Nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed
from evergreen.client.airflow import AirflowClient, AirflowError
from evergreen.errors import SettingsError
from evergreen.settings import NotificationRoute, SecretUrl, settings, variable_name

_DATABASE_BACKEND = "MetastoreBackend"  # Airflow's API is asked instead


@dataclass(frozen=True)
class _Connection:
    """An Airflow connection, and where it is."""

    place: str
    conn_type: str
    host: str | None
    schema: str | None
    port: int | None


def check_route(name: str, route: NotificationRoute, airflow: SecretUrl | None) -> CheckPassed:
    """Check that the notifier can be created, and that its connection exists and is of a type that it speaks.

    A connection is looked for where Airflow does: in the secrets backend and the variables of this environment, and in
    Airflow's database, by its API at `airflow`.
    """
    from evergreen.orchestration.notifiers import WebhookNotifier, create_notifier, used_connections  # loads Airflow

    variable = variable_name("notifications", "routes", name)
    try:
        notifier = create_notifier(name, route)
    except SettingsError as error:
        raise CheckFailedError(error.faults[0].problem, error.faults[0].fix) from None
    notifier_name = route.notifier.rpartition(".")[2]
    messages = []
    for connection_id, types in used_connections(notifier).items():
        if "{{" in connection_id or "{%" in connection_id:
            messages.append("its connection is a template, and was not looked for")
            continue
        connection = _find_connection(connection_id, types, airflow)
        if connection.conn_type not in types:
            problem = f"connection {connection_id}, {connection.place}, is of type {connection.conn_type or 'none'}"
            problem += f", and {notifier_name} speaks {' or '.join(types)}"
            raise CheckFailedError(problem, f"correct it, or `arguments` of {variable}")
        if isinstance(notifier, WebhookNotifier) and not _has_web_address(notifier, connection):
            problem = f"connection {connection_id}, {connection.place}, has no address of http or https"
            fix = 'name it in JSON: {"conn_type": "http", "host": "https://host/path"}'
            raise CheckFailedError(problem, fix)
        messages.append(f"connection {connection_id}, of type {connection.conn_type}, is {connection.place}")
    if not messages:
        return CheckPassed(f"{notifier_name} takes the arguments; by which connection it sends is not known here")
    return CheckPassed("; ".join(messages))


def _find_connection(connection_id: str, types: tuple[str, ...], airflow: SecretUrl | None) -> _Connection:
    is_local = settings().airflow is None
    if not is_local:  # a local stack passes no variable of another Airflow to its own
        for backend in _secrets_backends():
            place = _describe_backend(backend, connection_id)
            try:
                connection = backend.get_connection(connection_id)
            except Exception as error:  # of any class, and its message may have a secret in it
                problem = f"connection {connection_id} cannot be read {place}: {type(error).__name__}"
                raise CheckFailedError(problem, "correct it, or the access to it") from None
            if connection is not None:
                return _Connection(place, connection.conn_type, connection.host, connection.schema, connection.port)
    create = f"create it: `airflow connections add {connection_id} --conn-type {types[0]} …`"
    if airflow is None:
        raise CheckFailedError(f"connection {connection_id} cannot be looked for: Airflow is not running", "start it")
    try:
        stored = AirflowClient(airflow).connection(connection_id)
    except AirflowError as error:
        problem = f"connection {connection_id} cannot be looked for: {error}"
        raise CheckFailedError(problem, "correct EVERGREEN_AIRFLOW, or what its user may read") from None
    if stored is None:
        elsewhere = "" if is_local else f", and neither is AIRFLOW_CONN_{connection_id.upper()} set here"
        raise CheckFailedError(f"connection {connection_id} is not in Airflow{elsewhere}", create)
    return _Connection("in Airflow", stored["conn_type"], stored.get("host"), stored.get("schema"), stored.get("port"))


def _secrets_backends() -> Iterator[Any]:
    from airflow.configuration import ensure_secrets_loaded

    return (backend for backend in ensure_secrets_loaded() if type(backend).__name__ != _DATABASE_BACKEND)


def _describe_backend(backend: Any, connection_id: str) -> str:
    if type(backend).__name__ == "EnvironmentVariablesBackend":
        return f"in AIRFLOW_CONN_{connection_id.upper()}"
    return f"in {type(backend).__name__}"


def _has_web_address(notifier: Any, connection: _Connection) -> bool:
    try:
        address = notifier.find_address(connection)
    except Exception:  # of any class: it is no URL
        return False
    return address.scheme in ("http", "https") and bool(address.host)
