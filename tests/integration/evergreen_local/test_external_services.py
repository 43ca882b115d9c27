"""Engines that the settings name: they are waited for, and nothing is started beside them."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.cli.progress import Progress
from evergreen.client.airflow import AirflowClient, AirflowError
from evergreen.settings import settings
from evergreen_local import processes, report, services, stack
from evergreen_local.stack import ServiceAddresses, StackError
from integration.cli.doctor.conftest import Told
from integration.cli.doctor.conftest import server as server

pytestmark = pytest.mark.integration

HEALTHY = {part: {"status": "healthy"} for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")}


@pytest.fixture
def elsewhere(home: Path, server: Told, monkeypatch: pytest.MonkeyPatch) -> Told:
    """One server that is Airflow, MLflow and Spark's port at once; and nothing may be started."""
    server.answers = {
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
        raise AssertionError("something is started")

    monkeypatch.setattr(processes, "start", refuse)
    return server


def test_up_waits_and_starts_nothing(elsewhere: Told) -> None:
    with Progress() as progress:
        found = stack.bring_up_stack(progress)
    assert found == ServiceAddresses(settings().airflow or "", elsewhere.url, settings().spark)
    assert found.airflow_ui == elsewhere.url
    assert not (settings().home / "stack.json").exists()


def test_up_waits_for_one_that_is_late(elsewhere: Told) -> None:
    elsewhere.answers["GET /health"] = (503, "not yet")
    threading.Timer(1.2, lambda: elsewhere.answers.update({"GET /health": (200, "OK")})).start()
    with Progress() as progress:
        stack.bring_up_stack(progress)


def test_one_that_never_answers_is_named(elsewhere: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.answers["GET /health"] = (503, "not yet")
    monkeypatch.setattr(stack, "_READY_TIMEOUT_S", 0.5)
    with (
        Progress() as progress,
        pytest.raises(StackError, match=r"MLflow at .* does not answer .* `evergreen doctor`"),
    ):
        stack.bring_up_stack(progress)


def test_people_see_the_address_that_is_theirs(elsewhere: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_AIRFLOW_UI", "https://airflow.example.com")
    settings.cache_clear()
    with Progress() as progress:
        found = stack.bring_up_stack(progress)
    assert services.external_services()["airflow"].url == "https://airflow.example.com"
    client = AirflowClient(found.airflow, found.airflow_ui)
    assert client.run_page_url("d", "r") == "https://airflow.example.com/dags/d/runs/r"


def test_user_and_password_are_those_of_the_address(elsewhere: Told) -> None:
    assert AirflowClient(settings().airflow or "").import_errors() == []
    with pytest.raises(AirflowError, match=r"does not let us in: Invalid credentials\. EVERGREEN_AIRFLOW has"):
        AirflowClient((settings().airflow or "").replace("pa%20ss", "other")).import_errors()


@pytest.mark.parametrize(("terminal", "said"), [(True, "password pa ss"), (False, "(the one in EVERGREEN_AIRFLOW)")])
def test_a_password_is_for_eyes_and_for_no_log(elsewhere: Told, terminal: bool, said: str) -> None:
    with Progress() as progress:
        progress.console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
        report.show_addresses(progress, ServiceAddresses(settings().airflow or "", "http://m", "sc://s"))
        printed = progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert said in printed
    assert terminal or "pa ss" not in printed


@pytest.mark.parametrize(
    ("variables", "says"),
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
def test_a_server_or_folder_that_is_not_there_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    told = CliRunner().invoke(app, ["history", "flight_delay"])
    assert told.exit_code == 1
    assert says in told.stderr
    assert told.stderr.strip().endswith("`evergreen doctor` looks for the reason")
    assert len(told.stderr.strip().splitlines()) == 1
