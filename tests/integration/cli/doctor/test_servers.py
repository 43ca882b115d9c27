"""What the doctor makes of answers of Airflow and MLflow, right and wrong."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from evergreen.cli.doctor import servers
from integration.cli.doctor.conftest import Told
from support.checks import wrong

pytestmark = pytest.mark.integration

AIRFLOW, MLFLOW = version("apache-airflow"), version("mlflow")
NOBODY = "http://127.0.0.1:9"
ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/evergreen-doctor"


def health(**ill: str) -> dict[str, dict[str, str]]:
    parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    return {part: {"status": ill.get(part, "healthy")} for part in parts}


@pytest.fixture
def airflow(server: Told) -> Told:
    server.answers = {
        "GET /api/v2/monitor/health": (200, health()),
        "GET /api/v2/version": (200, {"version": AIRFLOW}),
        "GET /auth/token": (201, {"access_token": "t"}),
        "POST /auth/token": lambda body: (
            (201, {"access_token": "t"}) if b'"password":"right"' in body else (401, {"detail": "Invalid credentials"})
        ),
        "GET /api/v2/importErrors": (200, {"import_errors": [], "total_entries": 0}),
    }
    return server


@pytest.fixture
def mlflow(server: Told) -> Told:
    kept: list[bytes] = []
    server.answers = {
        "GET /version": (200, MLFLOW),
        "GET /api/2.0/mlflow/registered-models/search": (200, {}),
        f"PUT {ARTIFACT}/probe": lambda body: (200, str(kept.append(body))),
        f"GET {ARTIFACT}/probe": lambda _: (200, kept[-1].decode()),
        f"DELETE {ARTIFACT}": (200, ""),
    }
    return server


def with_login(url: str, password: str) -> str:
    return url.replace("//", f"//admin:{password}@")


def test_an_airflow_that_is_right(airflow: Told) -> None:
    seen = servers.check_airflow(airflow.url)
    assert seen.message == f"Airflow {AIRFLOW}, all parts alive, lets us in"
    assert seen.clock_skew == pytest.approx(0, abs=2)


def test_its_clock_is_told(airflow: Told) -> None:
    airflow.ahead = 90
    assert servers.check_airflow(airflow.url).clock_skew == pytest.approx(90, abs=2)


def test_user_and_password_are_sent_and_a_wrong_one_is_told_of(airflow: Told) -> None:
    assert "lets us in" in servers.check_airflow(with_login(airflow.url, "right")).message
    what, way_out = wrong(servers.check_airflow, with_login(airflow.url, "wrong"))
    assert "does not let us in: Invalid credentials" in what
    assert way_out == "correct EVERGREEN_AIRFLOW"
    assert "wrong" not in what


def test_a_part_that_is_dead_is_named(airflow: Told) -> None:
    airflow.answers["GET /api/v2/monitor/health"] = (
        200,
        health(triggerer="unhealthy", scheduler="unhealthy"),
    )
    assert wrong(servers.check_airflow, airflow.url)[0] == "its scheduler, its triggerer: no sign of life"


def test_another_version_is_named(airflow: Told) -> None:
    airflow.answers["GET /api/v2/version"] = (200, {"version": "3.1.8"})
    assert wrong(servers.check_airflow, airflow.url)[0] == f"is Airflow 3.1.8, and this side is {AIRFLOW}"


def test_a_patch_is_no_other_version(airflow: Told) -> None:
    airflow.answers["GET /api/v2/version"] = (200, {"version": ".".join([*AIRFLOW.split(".")[:2], "99"])})
    assert "lets us in" in servers.check_airflow(airflow.url).message


def test_a_dag_file_that_cannot_be_read_is_named(airflow: Told) -> None:
    error = {"filename": "models.py", "stack_trace": "Traceback\n  …\nValueError: no such model"}
    airflow.answers["GET /api/v2/importErrors"] = (200, {"import_errors": [error], "total_entries": 1})
    assert wrong(servers.check_airflow, airflow.url)[0] == (
        "1 DAG files cannot be read: models.py: ValueError: no such model"
    )


@pytest.mark.parametrize("look", [servers.check_airflow, servers.check_mlflow])
def test_nobody_answers(look: object) -> None:
    what, way_out = wrong(look, NOBODY)  # type: ignore[arg-type]
    assert what.startswith("does not answer: ")
    assert way_out == f"start it, or correct the address {NOBODY}"


def test_an_mlflow_that_is_right_is_left_as_it_was(mlflow: Told) -> None:
    assert servers.check_mlflow(mlflow.url).message == f"MLflow {MLFLOW}, reads its registry, keeps artifacts"
    assert mlflow.asked[-1] == f"DELETE {ARTIFACT}"


def test_a_database_of_another_version_is_told_of(mlflow: Told) -> None:
    mlflow.answers["GET /api/2.0/mlflow/registered-models/search"] = (500, "out-of-date\ndatabase schema")
    assert wrong(servers.check_mlflow, mlflow.url) == (
        "answers 500: out-of-date database schema",
        "look at its log; its database may be gone or too old",
    )


def test_a_name_that_it_does_not_answer_to(mlflow: Told) -> None:
    mlflow.answers["GET /api/2.0/mlflow/registered-models/search"] = (403, "Invalid Host header")
    what, way_out = wrong(servers.check_mlflow, mlflow.url)
    assert what == f"does not answer to the name {mlflow.url.removeprefix('http://')}"
    assert "--allowed-hosts" in way_out


def test_artifacts_that_it_cannot_keep(mlflow: Told) -> None:
    mlflow.answers[f"PUT {ARTIFACT}/probe"] = (500, "AccessDenied")
    assert wrong(servers.check_mlflow, mlflow.url)[0] == "cannot keep an artifact: 500 AccessDenied"


def test_artifacts_that_do_not_go_through_it(mlflow: Told) -> None:
    mlflow.answers[f"PUT {ARTIFACT}/probe"] = (503, "disabled due to … running with `--no-serve-artifacts`")
    assert servers.check_mlflow(mlflow.url).message.endswith("artifacts do not go through it")


def test_no_spark_at_its_address(tmp_path: Path) -> None:
    what, way_out = wrong(servers.check_spark_connect, "sc://127.0.0.1:9", tmp_path)
    assert what.startswith("does not answer: ")
    assert way_out == "start it, or correct EVERGREEN_SPARK"
