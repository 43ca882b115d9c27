"""What `evergreen doctor` says of a route: whether its notifier and its Airflow connection fit. Nothing is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from airflow.sdk import BaseNotifier

from evergreen.cli.doctor import doctor_checks, routes
from evergreen.cli.doctor.routes import check_route
from evergreen.client.airflow import AirflowClient
from evergreen.settings import NotificationRoute, SecretUrl, Settings, settings
from support.checks import failure

pytestmark = pytest.mark.dag

AIRFLOW = SecretUrl("http://airflow")
SMTP = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
OWN = f"{__name__}.OwnNotifier"
REACHABLE = {"conn_type": "http", "host": "https://hooks.example.com/secret-path", "password": "secret-token"}


class OwnNotifier(BaseNotifier):
    """A notifier of somebody else, which does not say by what it sends."""

    def __init__(self, room: str):
        super().__init__()
        self.room = room

    def notify(self, context: Any) -> None:
        raise AssertionError("something was sent")


@pytest.fixture
def connect(home: object, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Declare a connection in the environment."""

    def declare(name: str, text: str = "", **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", text or json.dumps(fields))

    return declare


@pytest.fixture
def stored(home: object, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """An Airflow that the settings name, and the connections in its database."""
    connections: dict[str, dict[str, Any]] = {}
    monkeypatch.setenv("EVERGREEN_AIRFLOW", "http://airflow")
    settings.cache_clear()

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(200, json={"access_token": "token"})
        connection = connections.get(request.url.path.removeprefix("/api/v2/connections/"))
        return httpx.Response(200 if connection else 404, json=connection or {"detail": "not found"})

    def client(url: SecretUrl) -> AirflowClient:
        opened = AirflowClient(url)
        opened._client = httpx.Client(transport=httpx.MockTransport(respond), base_url="http://airflow")
        return opened

    monkeypatch.setattr(routes, "AirflowClient", client)
    return connections


def route(notifier: str = "evergreen.orchestration.notifiers.WebhookNotifier", **arguments: Any) -> NotificationRoute:
    return NotificationRoute(notifier=notifier, arguments=arguments)


def test_a_connection_of_the_environment_or_the_database_passes(
    connect: Callable[..., None], stored: dict[str, dict[str, Any]]
) -> None:
    connect("hook", **REACHABLE)
    stored["stored_hook"] = REACHABLE
    message = check_route("ops", route(connection="hook"), AIRFLOW).message
    assert message == "connection hook, of type http, is in AIRFLOW_CONN_HOOK"
    message = check_route("ops", route(connection="stored_hook"), AIRFLOW).message
    assert message == "connection stored_hook, of type http, is in Airflow"


def test_a_connection_that_is_nowhere_fails(stored: dict[str, dict[str, Any]]) -> None:
    problem, fix = failure(check_route, "ops", route(connection="hook"), AIRFLOW)
    assert problem == "connection hook is not in Airflow, and neither is AIRFLOW_CONN_HOOK set here"
    assert fix == "create it: `airflow connections add hook --conn-type http …`"
    problem, fix = failure(check_route, "ops", route(connection="hook"), None)
    assert (problem, fix) == ("connection hook cannot be looked for: Airflow is not running", "start it")


def test_a_local_stack_has_no_variables_of_another_airflow(
    connect: Callable[..., None], stored: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("hook", **REACHABLE)
    monkeypatch.delenv("EVERGREEN_AIRFLOW")
    settings.cache_clear()
    assert failure(check_route, "ops", route(connection="hook"), AIRFLOW)[0] == "connection hook is not in Airflow"


@pytest.mark.parametrize(
    ("options", "types"),
    [
        (route(connection="mail"), "WebhookNotifier speaks http or https or generic"),
        (route(SMTP, to="a@example.com", from_email="b@example.com", smtp_conn_id="hook"), "SmtpNotifier speaks smtp"),
    ],
    ids=["webhook", "mail"],
)
def test_a_connection_of_another_type_fails(
    connect: Callable[..., None], stored: dict[str, dict[str, Any]], options: NotificationRoute, types: str
) -> None:
    connect("mail", conn_type="smtp", host="mail.example.com")
    connect("hook", **REACHABLE)
    problem, fix = failure(check_route, "ops", options, AIRFLOW)
    assert problem.endswith(types)
    assert "EVERGREEN_NOTIFICATIONS__ROUTES__OPS" in fix
    assert "secret" not in problem + fix


def test_a_provider_says_its_own_default_and_type(stored: dict[str, dict[str, Any]]) -> None:
    stored["smtp_default"] = {"conn_type": "smtp", "host": "mail.example.com"}
    check_route("ops", route(SMTP, to="a@example.com", from_email="b@example.com"), AIRFLOW)


@pytest.mark.parametrize("text", ["https://hooks.example.com/secret-path", '{"conn_type": "http", "host": ""}'])
def test_a_webhook_needs_an_address(connect: Callable[..., None], stored: dict[str, dict[str, Any]], text: str) -> None:
    """Of a connection as a URL, Airflow takes the path for the scheme."""
    connect("hook", text)
    problem, fix = failure(check_route, "ops", route(connection="hook"), AIRFLOW)
    assert problem == "connection hook, in AIRFLOW_CONN_HOOK, has no address of http or https"
    assert '"host": "https://host/path"' in fix


def test_a_damaged_connection_shows_none_of_it(connect: Callable[..., None], stored: dict[str, dict[str, Any]]) -> None:
    connect("hook", '{"password": "secret-token",')
    problem, fix = failure(check_route, "ops", route(connection="hook"), AIRFLOW)
    assert problem.startswith("connection hook cannot be read in AIRFLOW_CONN_HOOK: ")
    assert "secret" not in problem + fix


def test_what_cannot_be_known_is_said(stored: dict[str, dict[str, Any]]) -> None:
    assert "is not known here" in check_route("ops", route(OWN, room="models"), AIRFLOW).message
    template = check_route("ops", route(connection="{{ notification.team }}"), AIRFLOW).message
    assert template == "its connection is a template, and was not looked for"


def test_a_notifier_that_does_not_fit_fails(stored: dict[str, dict[str, Any]]) -> None:
    assert "cannot be imported" in failure(check_route, "ops", route("airflow.providers.nobody.Notifier"), AIRFLOW)[0]
    assert "does not take these arguments" in failure(check_route, "ops", route(), AIRFLOW)[0]


def test_each_route_has_a_check(home: object) -> None:
    config = Settings(notifications={"routes": {"ops": {"arguments": {"connection": "hook"}}}})
    (check,) = [check for check in doctor_checks(config, None) if check.subject.startswith("route")]
    assert (check.subject, check.location) == ("route ops", "WebhookNotifier")
