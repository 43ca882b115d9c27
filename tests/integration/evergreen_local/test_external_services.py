"""External services: the stack waits for them and starts nothing."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.client.addresses import ServiceAddresses
from evergreen.client.airflow import AirflowClient, AirflowError
from evergreen.settings import SecretUrl, settings
from evergreen_local import processes, results, services, stack
from evergreen_local.progress import Progress
from evergreen_local.stack import StackError
from integration.cli.doctor.conftest import FakeServer
from integration.cli.doctor.conftest import server as server

pytestmark = pytest.mark.integration

HEALTHY = {part: {"status": "healthy"} for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")}


@pytest.fixture
def external(home: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """One server that is Airflow, MLflow and Spark at once; starting a process fails."""
    server.responses = {
        "GET /api/v2/monitor/health": (200, HEALTHY),
        "GET /health": (200, "OK"),
        "POST /auth/token": lambda body: (
            (201, {"access_token": "t"}) if b'"pa ss"' in body else (401, {"detail": "Invalid credentials"})
        ),
        "GET /api/v2/importErrors": (200, {"import_errors": [], "total_entries": 0}),
    }
    host = server.url.removeprefix("http://")
    monkeypatch.setenv("EVERGREEN_AIRFLOW", f"http://admin:pa%20ss@{host}")
    monkeypatch.setenv("EVERGREEN_MLFLOW", server.url)
    monkeypatch.setenv("EVERGREEN_SPARK", f"sc://{host}")
    settings.cache_clear()

    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(processes, "start_process", refuse)
    return server


def airflow_url() -> SecretUrl:
    assert settings().airflow
    return settings().airflow


def test_bring_up_stack_waits_and_starts_nothing(external: FakeServer) -> None:
    with Progress() as progress:
        addresses = stack.bring_up_stack(progress)
    assert addresses == ServiceAddresses(airflow_url(), SecretUrl(external.url), settings().spark)
    assert addresses.airflow_ui == external.url
    assert not (settings().home / "stack.json").exists()


def test_bring_up_stack_waits_for_a_slow_service(external: FakeServer) -> None:
    external.responses["GET /health"] = (503, "not yet")
    threading.Timer(1.2, lambda: external.responses.update({"GET /health": (200, "OK")})).start()
    with Progress() as progress:
        stack.bring_up_stack(progress)


def test_bring_up_stack_names_a_service_that_is_down(external: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    external.responses["GET /health"] = (503, "not yet")
    monkeypatch.setattr(stack, "_READY_TIMEOUT_S", 0.5)
    with (
        Progress() as progress,
        pytest.raises(StackError, match=r"MLflow at .* does not respond .* `evergreen doctor`"),
    ):
        stack.bring_up_stack(progress)


def test_urls_of_pages_use_the_address_of_the_ui(external: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_AIRFLOW_UI", "https://airflow.example.com")
    settings.cache_clear()
    with Progress() as progress:
        addresses = stack.bring_up_stack(progress)
    assert services.external_services()["airflow"].url == "https://airflow.example.com"
    client = AirflowClient(addresses.airflow, addresses.airflow_ui)
    assert client.run_page_url("d", "r") == "https://airflow.example.com/dags/d/runs/r"


def test_client_authenticates_with_the_login_of_the_url(external: FakeServer) -> None:
    assert AirflowClient(airflow_url()).import_errors() == []
    with pytest.raises(
        AirflowError, match=r"authentication failed: Invalid credentials\. Set user and password in EVERGREEN_AIRFLOW"
    ):
        AirflowClient(SecretUrl(airflow_url().get_secret_value().replace("pa%20ss", "other"))).import_errors()


@pytest.mark.parametrize(("terminal", "text"), [(True, "password pa ss"), (False, "(see EVERGREEN_AIRFLOW)")])
def test_show_addresses_hides_the_password_in_a_log(external: FakeServer, terminal: bool, text: str) -> None:
    with Progress() as progress:
        progress.console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
        results.show_addresses(progress, ServiceAddresses(airflow_url(), SecretUrl("http://m"), SecretUrl("sc://s")))
        output = progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert text in output
    assert terminal or "pa ss" not in output


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {
                "EVERGREEN_LEDGER": "s3://evergreen/ledger",
                "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
                "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "tests-secret",
            },
            "Could not connect to the endpoint URL",
        ),
        ({"EVERGREEN_LEDGER": "/dev/null/ledger"}, "Not a directory"),
    ],
)
def test_cli_reports_a_missing_server_or_folder_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    result = CliRunner().invoke(app, ["history", "flight_delay"])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.strip().endswith("`evergreen doctor` finds the cause")
    assert len(result.stderr.strip().splitlines()) == 1
