"""Sends notifications by notifier classes of Airflow: those of providers, and two of our own.

What a notification says comes from people and from data, so it is never a template itself: arguments are templates, in
which `notification` has its plain lines and its escaped forms (`evergreen.notifications.events.Notification`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from airflow.sdk import BaseHook, BaseNotifier

from evergreen.errors import Fault, NotificationError, SettingsError
from evergreen.notifications.events import Notification
from evergreen.settings import NotificationRoute, variable_name

_DEFAULT_TIMEOUT_S = 10.0
_ALERT_LENGTH = timedelta(hours=1)  # then it counts as resolved: an event does not last

# Of each provider, what says the message; who receives it is in the settings. By prefix of the import path.
_PROVIDER_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "airflow.providers.smtp.": {
        "subject": "{{ notification.title }}",
        "html_content": "{{ notification.html }}",
        "custom_headers": {"Message-ID": "<{{ notification.key }}@evergreen.invalid>"},
    },
    "airflow.providers.slack.": {"text": "{{ notification.slack }}"},
    "airflow.providers.pagerduty.": {
        "summary": "{{ notification.title }}",
        "severity": "{{ notification.severity }}",
        "source": "{{ notification.model }}",
        "dedup_key": "{{ notification.key }}",
        "custom_details": {"text": "{{ notification.text }}", "report": "{{ notification.link or '' }}"},
    },
    "airflow.providers.apprise.": {"title": "{{ notification.title }}", "body": "{{ notification.text }}"},
}


def send_by_route(route_name: str, route: NotificationRoute, notification: Notification) -> None:
    """Send a notification by the notifier of a route.

    Raises:
        SettingsError: the class cannot be imported, or does not take the arguments.
        Exception: whatever the notifier raises.
    """
    notifier = create_notifier(route_name, route)
    context: Any = {"notification": notification}
    # Not by calling it: Airflow would write the message of what it raises to the log, and that may hold an address.
    notifier.render_template_fields(context)
    notifier.notify(context)


def create_notifier(route_name: str, route: NotificationRoute) -> BaseNotifier:
    """Return the notifier of a route.

    Raises:
        SettingsError: the class cannot be imported, or does not take the arguments.
    """
    prefix = next((prefix for prefix in _PROVIDER_ARGUMENTS if route.notifier.startswith(prefix)), "")
    arguments = {**_PROVIDER_ARGUMENTS.get(prefix, {}), **route.arguments}
    module, _, name = route.notifier.rpartition(".")
    location = variable_name("notifications", "routes", route_name)
    try:
        notifier: BaseNotifier = getattr(import_module(module), name)(**arguments)
    except (ImportError, AttributeError) as error:
        problem, fix = f"{route.notifier} cannot be imported: {error}", "install its provider where tasks run"
        raise SettingsError("the environment", [Fault(location, problem, fix)]) from None
    except TypeError as error:
        problem, fix = f"{route.notifier} does not take these arguments: {error}", "correct `arguments`"
        raise SettingsError("the environment", [Fault(location, problem, fix)]) from None
    return notifier


def used_connections(notifier: BaseNotifier) -> dict[str, tuple[str, ...]]:
    """Return the Airflow connections that a notifier sends by, and of each the types that it may have.

    A class says so itself (`connection_argument` and `connection_types`), or the hooks of its provider do. Empty if
    neither does.
    """
    if name := getattr(notifier, "connection_argument", None):
        return {getattr(notifier, name): tuple(getattr(notifier, "connection_types", ()))}
    connections: dict[str, tuple[str, ...]] = {}
    for hook in _provider_hooks(type(notifier).__module__):
        connection = getattr(notifier, hook.conn_name_attr, None)
        if isinstance(connection, str):
            connections[connection] = (*connections.get(connection, ()), hook.conn_type)
    return connections


def _provider_hooks(module: str) -> Iterator[Any]:
    """Yield the hooks that the provider with this module declares, each of which has a type of connections."""
    for provider in entry_points(group="apache_airflow_provider"):
        if f"{module}.".startswith(f"{provider.module.rpartition('.')[0]}."):
            for declared in provider.load()().get("connection-types") or ():
                hook_module, _, name = declared["hook-class-name"].rpartition(".")
                hook = getattr(import_module(hook_module), name)
                if getattr(hook, "conn_name_attr", None) and getattr(hook, "conn_type", None):
                    yield hook


class WebhookNotifier(BaseNotifier):
    """Posts a notification as JSON, with its key in the header `Idempotency-Key`.

    The Airflow connection has the address as its host, `https://host/path`, or `host` with scheme and port of their
    own; and for authentication login and password, or a password alone, which is sent as a bearer token.
    """

    connection_argument = "connection"
    connection_types = ("http", "https", "generic")

    def __init__(self, connection: str, timeout_seconds: float = _DEFAULT_TIMEOUT_S, **options: Any):
        super().__init__(**options)
        self.connection, self.timeout_seconds = connection, timeout_seconds

    def notify(self, context: Any) -> None:
        """Send it.

        Raises:
            NotificationError: the receiver cannot be reached, or did not accept it.
        """
        import httpx

        notification: Notification = context["notification"]
        connection = BaseHook.get_connection(self.connection)
        address = self.find_address(connection)
        headers, login = {"Idempotency-Key": notification.key}, None
        if connection.login:
            login = (connection.login, connection.password or "")
        elif connection.password:
            headers["Authorization"] = f"Bearer {connection.password}"
        # Messages name the host alone: in many addresses of webhooks the path is a secret.
        receiver = f"{address.host}, of the connection {self.connection},"
        try:
            with (
                httpx.Client(timeout=self.timeout_seconds, follow_redirects=False, trust_env=True) as client,
                client.stream(
                    "POST", self.complete_url(address), json=self.body(notification), headers=headers, auth=login
                ) as response,
            ):
                status = response.status_code  # the rest of the response may never end
        except httpx.HTTPError as error:
            raise NotificationError(f"{receiver} cannot be reached: {type(error).__name__}") from None
        if not 200 <= status < 300:
            raise NotificationError(f"{receiver} responded with status {status}")

    @staticmethod
    def find_address(connection: Any) -> Any:
        """Return the URL that a connection names."""
        import httpx

        host = connection.host or ""
        url = host if "://" in host else f"{connection.schema or 'https'}://{host}"
        address = httpx.URL(url.rstrip("/"))
        return address.copy_with(port=connection.port) if connection.port and address.port is None else address

    def complete_url(self, address: Any) -> Any:
        """Return the URL that is posted to."""
        return address

    def body(self, notification: Notification) -> Any:
        """Return what is posted, as JSON."""
        return notification.model_dump(mode="json")


class AlertmanagerNotifier(WebhookNotifier):
    """Sends a notification as an alert to Prometheus Alertmanager, which routes, groups and silences it.

    The Airflow connection has the address of Alertmanager, without `/api/v2/alerts`. The alert ends by itself after an
    hour.
    """

    def complete_url(self, address: Any) -> Any:
        """Return the URL of its API."""
        return f"{str(address).rstrip('/')}/api/v2/alerts"

    def body(self, notification: Notification) -> Any:
        """Return a list of one alert. Sent again, it is the same one: its labels identify it."""
        name = "".join(word.capitalize() for word in notification.event.split("_"))
        alert = {
            "labels": {
                "alertname": f"Evergreen{name}",
                "model": notification.model,
                "team": notification.team,
                "severity": notification.severity,
                "key": notification.key,
            },
            "annotations": {"summary": notification.title, "description": notification.text},
            "startsAt": notification.occurred_at.isoformat(),
            "endsAt": (max(notification.occurred_at, datetime.now(UTC)) + _ALERT_LENGTH).isoformat(),
        }
        return [{**alert, "generatorURL": notification.link} if notification.link else alert]
