"""The checks for given settings, and their results."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from evergreen.cli import create_console, doctor
from evergreen.cli.doctor import ChecksFailedError, DoctorCheck, environment, run_checks, run_doctor
from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed, ClockProbe
from evergreen.client.addresses import ServiceAddresses
from evergreen.errors import LedgerError
from evergreen.settings import SecretUrl, Settings
from support.checks import failure

pytestmark = pytest.mark.unit


def check_with(outcome: CheckPassed | Exception) -> DoctorCheck:
    def function() -> CheckPassed:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return DoctorCheck("thing", "there", function)


def subjects(addresses: ServiceAddresses | None = None, **options: object) -> list[str]:
    return [check.subject for check in doctor.doctor_checks(Settings(**options), addresses)]


def test_doctor_checks_of_the_defaults_need_no_server(home: Path) -> None:
    assert subjects() == [
        *("settings", "models", "raw data", "lake", "ledger", "jobs", "entries", "features", "serving"),
        *("Feast's registry", "online store"),
        *("Airflow", "MLflow's database", "Java", "trainer"),
    ]


def test_doctor_checks_of_configured_servers(home: Path) -> None:
    names = subjects(
        ServiceAddresses(SecretUrl("http://a:8080"), SecretUrl("http://m:5000"), SecretUrl("sc://s:15002")),
        training_backend="pod",
        prices=home / "prices.toml",
    )
    assert names[-5:] == ["Airflow", "MLflow", "Spark Connect", "Kubernetes", "prices"]


@pytest.mark.parametrize(
    "options", [{"spark": "spark://master:7077"}, {"spark_exchange": "s3://bucket/exchange"}], ids=["cluster", "store"]
)
def test_a_spark_that_shares_no_process_or_disk_is_started(home: Path, options: dict[str, str]) -> None:
    names = subjects(**options)
    assert names[names.index("Java") + 1] == "Spark"


def test_tables_are_checked_if_there_are_any(home: Path) -> None:
    names = subjects(tables="delta")
    assert names[names.index("features") + 1] == "tables"


def test_doctor_checks_show_no_password(home: Path) -> None:
    config = Settings(feast_registry="postgresql://feast:secret@db/feast", online_store="redis://:secret@redis:6379/0")
    airflow, mlflow = SecretUrl("http://admin:secret@a:8080"), SecretUrl("http://m:secret@m:5000")
    addresses = ServiceAddresses(airflow, mlflow, SecretUrl("local"))
    assert "secret" not in repr([addresses, *doctor.doctor_checks(config, addresses)])


def test_run_checks_keeps_the_order_and_reports_crashes() -> None:
    results = list(
        run_checks(
            [
                check_with(CheckPassed("fine")),
                check_with(CheckFailedError("broken", "fix it")),
                check_with(LedgerError("damaged: restore it")),
                check_with(ZeroDivisionError("division\nby zero")),
            ]
        )
    )
    assert [result.passed for result in results] == [True, False, False, False]
    assert [result.message for result in results] == [
        "fine",
        "broken",
        "damaged: restore it",
        "the check crashed: ZeroDivisionError: division",
    ]


@pytest.mark.parametrize(("skew", "message"), [(90.0, "90 s ahead of"), (-7.2, "7 s behind")])
def test_run_checks_reports_clock_skew(skew: float, message: str) -> None:
    [result] = run_checks([check_with(CheckPassed("fine", skew))])
    assert result.message == f"its clock is {message} this machine's"
    assert "NTP" in result.fix


def test_run_checks_tolerates_a_small_clock_skew() -> None:
    [result] = run_checks([check_with(CheckPassed("fine", 4.0))])
    assert result.passed


def test_clock_probe_compares_at_the_middle_of_the_request() -> None:
    clock = ClockProbe()
    time.sleep(0.2)
    assert clock.skew(time.time()) == pytest.approx(0.1, abs=0.05)
    assert clock.skew_from_header(None) is None


def test_run_checks_times_out_a_check_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHECK_TIMEOUT_S", 0.3)
    start = time.monotonic()
    hanging = DoctorCheck("thing", "there", lambda: time.sleep(5) or CheckPassed("late"))
    results = list(run_checks([check_with(CheckPassed("fine")), hanging, check_with(CheckPassed("fine"))]))
    assert [result.passed for result in results] == [True, False, True]
    assert time.monotonic() - start < 3


def test_run_doctor_raises_all_failures_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        check_with(CheckFailedError("one", "do this")),
        check_with(CheckPassed("fine")),
        check_with(CheckFailedError("two", "do that")),
    ]
    monkeypatch.setattr(doctor, "doctor_checks", lambda *_: checks)
    with pytest.raises(ChecksFailedError) as caught:
        doctor.run_doctor(create_console())
    assert str(caught.value).splitlines() == [
        "2 of 3 checks failed: 2 faults",
        "  - thing, there: one → do this",
        "  - thing, there: two → do that",
    ]


def test_check_environment_variables_reports_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("EVERGREEN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EVERGREEN_PODS__IMAGE", "image")
    assert environment.check_environment_variables().message == "1 variables, all known"
    monkeypatch.setenv("EVERGREEN_LEGDER", "s3://x")
    assert failure(environment.check_environment_variables) == (
        "EVERGREEN_LEGDER: unknown variable",
        "did you mean EVERGREEN_LEDGER?",
    )


def test_check_trainer_reports_its_version() -> None:
    assert environment.check_trainer(Path(sys.executable)).message == f"Python {sys.version.split()[0]}"
    assert (
        failure(environment.check_trainer, Path("/nowhere/python"))[0] == "cannot be started: No such file or directory"
    )


def test_check_trainer_names_a_missing_package(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E -s -c 'import pyarrow'\n")
    python.chmod(0o755)
    assert (
        failure(environment.check_trainer, python)[0] == "cannot train: ModuleNotFoundError: No module named 'pyarrow'"
    )


def test_check_file_readable(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("")
    assert environment.check_file_readable(tmp_path / "key.pem").message == "readable"
    assert failure(environment.check_file_readable, tmp_path / "other.pem")[0].startswith("No such file or directory")


def test_check_models_names_the_broken_ones(tmp_path: Path, use_models: Callable[..., None]) -> None:
    assert "all valid" in environment.check_models().message
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/model.py").write_text("MODEL = (\n")
    use_models(tmp_path)
    with pytest.raises(CheckFailedError, match=r"1 of \d model folders have no DAGs: model torn: 1 fault"):
        environment.check_models()


def test_run_doctor_prints_json(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [check_with(CheckPassed("fine")), check_with(CheckFailedError("broken", "mend it"))]
    monkeypatch.setattr(doctor, "doctor_checks", lambda *_: checks)
    text = StringIO()
    with pytest.raises(ChecksFailedError):
        run_doctor(Console(file=text, width=40), as_json=True)
    rows = json.loads(text.getvalue())
    assert [(row["passed"], row["message"], row["fix"]) for row in rows] == [
        (True, "fine", None),
        (False, "broken", "mend it"),
    ]
