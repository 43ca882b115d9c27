"""The DAG of notifications, and what its notifiers send to real servers of this machine."""

from __future__ import annotations

import json
import runpy
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from evergreen import ledger
from evergreen.errors import NotificationError, SettingsError
from evergreen.notifications.events import Notification
from evergreen.notifications.outbox import read_outbox
from evergreen.orchestration.dags import notifications
from evergreen.orchestration.notifiers import AlertmanagerNotifier, WebhookNotifier, send_by_route
from evergreen.settings import NotificationRoute, NotificationSettings, settings
from support import tills
from support.ledger_events import verdict_event
from support.receivers import RecordingNotifier, WebReceiver, mail_receiver, web_receiver

pytestmark = pytest.mark.dag

WEBHOOK = "evergreen.orchestration.notifiers.WebhookNotifier"
HOSTILE = "<!channel> <b>{{ 7 * 7 }}</b> & {% raw %} ${HOME}"


def notification(**changes: Any) -> Notification:
    fields: dict[str, Any] = {
        "key": "evergreen-tills-alarm-3f9a",
        "event": "alarm",
        "severity": "warning",
        "model": "tills",
        "team": "tests",
        "occurred_at": "2024-01-05T00:00:00Z",
        "title": f"tills: {HOSTILE}",
        "text": HOSTILE,
        "link": "https://airflow.example.com/evergreen/tills.monitor/monitoring",
    }
    return Notification.model_validate(fields | changes)


@pytest.fixture
def receiver() -> Iterator[WebReceiver]:
    with web_receiver() as server:
        yield server


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Declare a connection of Airflow, as JSON."""

    def declare(name: str, **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps({"conn_type": "http"} | fields))

    return declare


@pytest.fixture
def route(
    receiver: WebReceiver,
    connect: Callable[..., None],
    home: Path,
    tmp_path: Path,
    use_models: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Name a route to the receiver, in a deployment with one model, whose ledger has one verdict."""
    tills.write_model(tmp_path, monkeypatch, use_models)
    connect("ops", host=f"http://127.0.0.1:{receiver.port}/hooks/secret-path", password="secret-token")
    monkeypatch.setenv("EVERGREEN_AIRFLOW_UI", "https://airflow.example.com/")
    routes = {"ops": {"arguments": {"connection": "ops"}, "teams": ["tests"]}}
    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__ROUTES", json.dumps(routes))
    settings.cache_clear()
    reject(10)
    return "ops"


def reject(day: int) -> None:
    ledger.append_decision("tills", "ada", lambda _: verdict_event(day, passed=False))


def test_without_a_route_there_is_no_dag(home: Path) -> None:
    assert notifications.notifications_dag("ops") is None


def test_a_task_for_each_route(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__ROUTES__OPS", '{"arguments": {"connection": "ops"}}')
    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__ROUTES__MODELS_A", '{"events": ["late"]}')
    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__SCHEDULE", "*/7 * * * *")
    settings.cache_clear()
    dag = notifications.notifications_dag("ops")
    assert dag
    assert sorted(dag.task_ids) == ["send_models_a", "send_ops"]
    assert dag.schedule.expression == "*/7 * * * *"  # type: ignore[union-attr]
    assert dag.is_paused_upon_creation is False
    for task in dag.tasks:
        assert task.doc_md
        assert not task.upstream_task_ids
        assert task.retries == 0
        assert task.max_active_tis_per_dag == 1
        assert task.execution_timeout


def test_the_dag_file_has_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(Path(__file__).parents[2] / "dags/notifications.py")
    assert runpy.run_path(file)["notifications"] is None
    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__ROUTES__OPS", "{}")
    settings.cache_clear()
    assert runpy.run_path(file)["notifications"].dag_id == "evergreen.notifications"


def test_a_verdict_is_delivered_once_with_its_key(route: str, receiver: WebReceiver) -> None:
    assert notifications.send.function(route) == {"sent": 0, "unsent": 0, "given_up": 0}  # history
    reject(20)
    assert notifications.send.function(route) == {"sent": 1, "unsent": 0, "given_up": 0}
    assert notifications.send.function(route) == {"sent": 0, "unsent": 0, "given_up": 0}
    [request] = receiver.requests
    assert request.path == "/hooks/secret-path"
    assert request.headers["Authorization"] == "Bearer secret-token"
    assert request.headers["Idempotency-Key"] == request.body["key"]
    assert request.body["event"] == "held_back"
    assert request.body["team"] == "tests"
    assert request.body["link"] == "https://airflow.example.com/evergreen/tills.retrain/verdicts/2"


@pytest.mark.parametrize("status", [301, 404, 500])
def test_what_a_receiver_refuses_is_sent_again(
    status: int, route: str, receiver: WebReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    notifications.send.function(route)
    reject(20)
    receiver.status = status
    with pytest.raises(NotificationError, match=f"1 notifications are unsent: .* responded with status {status}"):
        notifications.send.function(route)
    assert "secret" not in caplog.text
    receiver.status = 204
    assert notifications.send.function(route)["sent"] == 1
    first, second = receiver.requests
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.body == second.body


def test_no_log_has_the_error_of_a_foreign_notifier(
    route: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    notifications.send.function(route)
    reject(20)
    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__ROUTES", '{"ops": {"notifier": "support.receivers.FailingNotifier"}}')
    settings.cache_clear()
    with pytest.raises(NotificationError, match="1 notifications are unsent: .*ConnectionError") as caught:
        notifications.send.function(route)
    structlog.get_logger("here").error("this test sees the log of Airflow")
    logged = "".join(capfd.readouterr())
    assert "this test sees the log of Airflow" in logged
    assert "secret-token" not in logged + caplog.text + str(caught.value)


def test_a_receiver_that_hangs_holds_up_no_other(
    route: str, receiver: WebReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifications.send.function(route)
    reject(20)
    receiver.hangs = True
    with monkeypatch.context() as patch:
        arguments = {"connection": "ops", "timeout_seconds": 0.5}
        patch.setenv("EVERGREEN_NOTIFICATIONS__ROUTES", json.dumps({"ops": {"arguments": arguments}}))
        settings.cache_clear()
        with pytest.raises(NotificationError, match="cannot be reached: ReadTimeout"):
            notifications.send.function(route)
    settings.cache_clear()
    receiver.hangs = False
    assert notifications.send.function(route)["sent"] == 1


def test_a_receiver_that_is_down(route: str, connect: Callable[..., None], receiver: WebReceiver) -> None:
    notifications.send.function(route)
    reject(20)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        connect("ops", host="127.0.0.1", schema="http", port=taken.getsockname()[1])
        with pytest.raises(NotificationError, match="127.0.0.1, of the connection ops, cannot be reached"):
            notifications.send.function(route)
    assert len(read_outbox(route).unsent) == 1


def test_a_connection_in_parts(receiver: WebReceiver, connect: Callable[..., None]) -> None:
    connect("parts", host="127.0.0.1", schema="http", port=receiver.port, login="ada", password="secret")
    WebhookNotifier("parts")({"notification": notification()})
    [request] = receiver.requests
    assert request.headers["Authorization"].startswith("Basic ")
    assert request.body["text"] == HOSTILE


def test_an_alert_for_alertmanager(receiver: WebReceiver, connect: Callable[..., None]) -> None:
    connect("alertmanager", host=f"http://127.0.0.1:{receiver.port}/")
    for _ in range(2):
        AlertmanagerNotifier("alertmanager")({"notification": notification(event="waiting_for_approval")})
    first, second = (request.body[0] for request in receiver.requests)
    assert receiver.requests[0].path == "/api/v2/alerts"
    assert (
        first["labels"]
        == second["labels"]
        == {
            "alertname": "EvergreenWaitingForApproval",
            "model": "tills",
            "team": "tests",
            "severity": "warning",
            "key": "evergreen-tills-alarm-3f9a",
        }
    )
    assert first["startsAt"] == "2024-01-05T00:00:00+00:00" < first["endsAt"]
    assert first["generatorURL"] == notification().link


def test_a_mail_by_the_provider(connect: Callable[..., None]) -> None:
    with mail_receiver() as server:
        extra = {"disable_ssl": True, "disable_tls": True}
        connect("smtp_default", conn_type="smtp", host="127.0.0.1", port=server.port, extra=extra)
        route = NotificationRoute(
            notifier="airflow.providers.smtp.notifications.smtp.SmtpNotifier",
            arguments={"to": "ops@example.com", "from_email": "evergreen@example.com"},
        )
        send_by_route("mail", route, notification())
    [mail] = server.mails
    assert mail["Subject"] == f"tills: {HOSTILE}"
    assert mail["To"] == "ops@example.com"
    assert mail["Message-ID"] == "<evergreen-tills-alarm-3f9a@evergreen.invalid>"
    [part] = mail.iter_parts()
    assert "&lt;b&gt;{{ 7 * 7 }}&lt;/b&gt; &amp; {% raw %}" in part.get_content()  # type: ignore[attr-defined]
    assert "<b>" not in part.get_content()  # type: ignore[attr-defined]


def test_arguments_of_a_route_are_templates(receiver: WebReceiver, connect: Callable[..., None]) -> None:
    route = NotificationRoute(
        notifier="support.receivers.RecordingNotifier", arguments={"text": "{{ notification.slack }}", "to": ["x"]}
    )
    send_by_route("own", route, notification())
    assert RecordingNotifier.texts.pop().splitlines()[1] == (
        "&lt;!channel&gt; &lt;b&gt;{{ 7 * 7 }}&lt;/b&gt; &amp; {% raw %} ${HOME}"
    )


@pytest.mark.parametrize(
    ("notifier", "arguments", "problem"),
    [
        ("airflow.providers.nowhere.Notifier", {}, "cannot be imported: .*install its provider"),
        ("evergreen.orchestration.notifiers.Nothing", {}, "cannot be imported"),
        (WEBHOOK, {"connection": "ops", "url": "https://example.com"}, "does not take these arguments: .*url"),
        (WEBHOOK, {}, "does not take these arguments: .*connection"),
    ],
)
def test_a_route_that_cannot_work_says_why(notifier: str, arguments: dict[str, Any], problem: str) -> None:
    route = NotificationRoute(notifier=notifier, arguments=arguments)
    with pytest.raises(SettingsError, match=f"EVERGREEN_NOTIFICATIONS__ROUTES__OPS: .*{problem}"):
        send_by_route("ops", route, notification())


@pytest.mark.parametrize(
    "wrong",
    [
        {"routes": {"Ops": {}}},
        {"routes": {"a b": {}}},
        {"routes": {"ops": "{"}},
        {"routes": {"ops": "[]"}},
        {"routes": {"ops": {"events": ["everything"]}}},
        {"routes": {"ops": {"notifier": "os"}}},
        {"routes": {"ops": {"url": "x"}}},
        {"schedule": "sometimes"},
        {"schedule": "* * * * * *"},
        {"give_up_days": 0},
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NotificationSettings.model_validate(wrong)
