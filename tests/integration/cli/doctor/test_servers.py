"""The checks of Airflow, MLflow and Spark Connect, with fake servers."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from evergreen.cli.doctor import servers
from evergreen.settings import SecretUrl
from integration.cli.doctor.conftest import FakeServer
from support.checks import failure

pytestmark = pytest.mark.integration

AIRFLOW, MLFLOW = version("apache-airflow"), version("mlflow")
UNUSED_URL = "http://127.0.0.1:9"
ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/evergreen-doctor"


def health(**unhealthy: str) -> dict[str, dict[str, str]]:
    parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    return {part: {"status": unhealthy.get(part, "healthy")} for part in parts}


@pytest.fixture
def airflow(server: FakeServer) -> FakeServer:
    server.responses = {
        "GET /api/v2/monitor/health": (200, health()),
        "GET /api/v2/version": (200, {"version": AIRFLOW}),
        "GET /auth/token": (201, {"access_token": "t"}),
        "POST /auth/token": lambda body: (
            (201, {"access_token": "t"}) if b'"password":"right"' in body else (401, {"detail": "Invalid credentials"})
        ),
        "GET /api/v2/importErrors": (200, {"import_errors": [], "total_entries": 0}),
        "GET /api/v2/dags": (200, {"dags": [], "total_entries": 0}),
    }
    return server


@pytest.fixture
def mlflow(server: FakeServer) -> FakeServer:
    stored: list[bytes] = []
    server.responses = {
        "GET /version": (200, MLFLOW),
        "GET /api/2.0/mlflow/registered-models/search": (200, {}),
        f"PUT {ARTIFACT}/probe": lambda body: (200, str(stored.append(body))),
        f"GET {ARTIFACT}/probe": lambda _: (200, stored[-1].decode()),
        f"DELETE {ARTIFACT}": (200, ""),
    }
    return server


def with_login(url: str, password: str) -> str:
    return url.replace("//", f"//admin:{password}@")


def test_check_airflow_passes(airflow: FakeServer) -> None:
    outcome = servers.check_airflow(SecretUrl(airflow.url))
    assert outcome.message == f"Airflow {AIRFLOW}, all components healthy, authentication succeeded"
    assert outcome.clock_skew == pytest.approx(0, abs=2)


def test_check_airflow_names_the_first_paused_dags(airflow: FakeServer) -> None:
    dags = [{"dag_id": f"demand_{number}.retrain"} for number in range(7)]
    airflow.responses["GET /api/v2/dags"] = (200, {"dags": dags, "total_entries": 7})
    message = servers.check_airflow(SecretUrl(airflow.url)).message
    assert message.endswith("; paused: " + ", ".join(f"demand_{number}.retrain" for number in range(5)) + ", …")


def test_check_airflow_measures_the_clock_skew(airflow: FakeServer) -> None:
    airflow.clock_skew = 90
    assert servers.check_airflow(SecretUrl(airflow.url)).clock_skew == pytest.approx(90, abs=2)


def test_check_airflow_authenticates(airflow: FakeServer) -> None:
    assert "authentication succeeded" in servers.check_airflow(SecretUrl(with_login(airflow.url, "right"))).message
    problem, fix = failure(servers.check_airflow, SecretUrl(with_login(airflow.url, "wrong")))
    assert "authentication failed: Invalid credentials" in problem
    assert fix == "correct EVERGREEN_AIRFLOW"
    assert "wrong" not in problem


def test_check_airflow_names_unhealthy_components(airflow: FakeServer) -> None:
    airflow.responses["GET /api/v2/monitor/health"] = (
        200,
        health(triggerer="unhealthy", scheduler="unhealthy"),
    )
    assert failure(servers.check_airflow, SecretUrl(airflow.url))[0] == "scheduler, triggerer: not healthy"


def test_check_airflow_names_another_version(airflow: FakeServer) -> None:
    airflow.responses["GET /api/v2/version"] = (200, {"version": "3.1.8"})
    assert (
        failure(servers.check_airflow, SecretUrl(airflow.url))[0] == f"is Airflow 3.1.8, but this client is {AIRFLOW}"
    )


def test_check_airflow_accepts_another_patch_version(airflow: FakeServer) -> None:
    airflow.responses["GET /api/v2/version"] = (200, {"version": ".".join([*AIRFLOW.split(".")[:2], "99"])})
    assert "authentication succeeded" in servers.check_airflow(SecretUrl(airflow.url)).message


@pytest.mark.parametrize(
    ("trace", "cause"),
    [
        ("Traceback\n  …\nValueError: no such model", "ValueError: no such model"),
        (
            "evergreen.errors.SpecError: model churn: 1 fault\n  - name: is missing\n\n"
            "The above exception was the direct cause of the following exception:\n\nTraceback\n  …\nDagFileError: no",
            "model churn: 1 fault\n  - name: is missing",
        ),
    ],
)
def test_check_airflow_names_import_errors(airflow: FakeServer, trace: str, cause: str) -> None:
    error = {"filename": "churn.py", "stack_trace": trace}
    airflow.responses["GET /api/v2/importErrors"] = (200, {"import_errors": [error], "total_entries": 1})
    assert (
        failure(servers.check_airflow, SecretUrl(airflow.url))[0]
        == f"1 DAG files cannot be imported: churn.py: {cause}"
    )


@pytest.mark.parametrize("check", [servers.check_airflow, servers.check_mlflow])
def test_check_reports_a_server_that_is_down(check: object) -> None:
    problem, fix = failure(check, SecretUrl(UNUSED_URL))  # type: ignore[arg-type]
    assert problem.startswith("does not respond: ")
    assert fix == f"start it, or correct the address {UNUSED_URL}"


def test_check_mlflow_passes_and_removes_its_artifact(mlflow: FakeServer) -> None:
    assert (
        servers.check_mlflow(SecretUrl(mlflow.url)).message == f"MLflow {MLFLOW}, reads its registry, stores artifacts"
    )
    assert mlflow.requests[-1] == f"DELETE {ARTIFACT}"


def test_check_mlflow_reports_an_outdated_database(mlflow: FakeServer) -> None:
    mlflow.responses["GET /api/2.0/mlflow/registered-models/search"] = (500, "out-of-date\ndatabase schema")
    assert failure(servers.check_mlflow, SecretUrl(mlflow.url)) == (
        "status 500: out-of-date database schema",
        "see its log; its database may be missing or outdated",
    )


def test_check_mlflow_reports_a_rejected_host_name(mlflow: FakeServer) -> None:
    mlflow.responses["GET /api/2.0/mlflow/registered-models/search"] = (403, "Invalid Host header")
    problem, fix = failure(servers.check_mlflow, SecretUrl(mlflow.url))
    assert problem == f"rejects the host name {mlflow.url.removeprefix('http://')}"
    assert "--allowed-hosts" in fix


def test_check_mlflow_reports_artifacts_that_are_not_stored(mlflow: FakeServer) -> None:
    mlflow.responses[f"PUT {ARTIFACT}/probe"] = (500, "AccessDenied")
    assert failure(servers.check_mlflow, SecretUrl(mlflow.url))[0] == "cannot store an artifact: 500 AccessDenied"


def test_check_mlflow_accepts_artifacts_that_are_not_proxied(mlflow: FakeServer) -> None:
    mlflow.responses[f"PUT {ARTIFACT}/probe"] = (503, "disabled due to … running with `--no-serve-artifacts`")
    assert servers.check_mlflow(SecretUrl(mlflow.url)).message.endswith("does not proxy artifacts")


def test_check_spark_connect_reports_a_server_that_is_down(tmp_path: Path) -> None:
    problem, fix = failure(servers.check_spark_connect, SecretUrl("sc://127.0.0.1:9"), tmp_path)
    assert problem.startswith("does not respond: ")
    assert fix == "start it, or correct EVERGREEN_SPARK"
