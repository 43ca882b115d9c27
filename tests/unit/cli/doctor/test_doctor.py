"""Which checks there are for which settings, and how findings are told."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from evergreen.cli import doctor
from evergreen.cli.doctor import ChecksFailedError, DoctorCheck, environment, run_checks
from evergreen.cli.doctor.seen import CheckFailedError, CheckPassed, ClockProbe
from evergreen.cli.progress import Progress
from evergreen.errors import LedgerError
from evergreen.settings import Settings
from evergreen_local.stack import ServiceAddresses
from support.checks import wrong

pytestmark = pytest.mark.unit


def look(seen: CheckPassed | Exception) -> DoctorCheck:
    def function() -> CheckPassed:
        if isinstance(seen, Exception):
            raise seen
        return seen

    return DoctorCheck("thing", "there", function)


def subjects(addresses: ServiceAddresses | None = None, **given: object) -> list[str]:
    return [check.subject for check in doctor.doctor_checks(Settings(**given), addresses)]


def test_the_embedded_default_needs_no_server(home: Path) -> None:
    assert subjects() == [
        *("settings", "lake", "ledger", "jobs", "entries", "Feast's registry", "online store"),
        *("Airflow", "MLflow's database", "Java", "trainer"),
    ]


def test_servers_are_looked_at_where_they_are(home: Path) -> None:
    found = subjects(
        ServiceAddresses("http://a:8080", "http://m:5000", "sc://s:15002"),
        training_backend="pod",
        prices=home / "prices.toml",
    )
    assert found[-5:] == ["Airflow", "MLflow", "Spark Connect", "Kubernetes", "prices"]


def test_no_address_is_shown_with_its_password(home: Path) -> None:
    given = Settings(feast_registry="postgresql://feast:secret@db/feast", online_store="redis://:secret@redis:6379/0")
    addresses = ServiceAddresses("http://admin:secret@a:8080", "http://m:5000", "local")
    assert "secret" not in " ".join(check.location for check in doctor.doctor_checks(given, addresses))


def test_findings_come_in_order_and_one_that_stumbles_is_wrong() -> None:
    findings = list(
        run_checks(
            [
                look(CheckPassed("fine")),
                look(CheckFailedError("broken", "mend it")),
                look(LedgerError("damaged: restore it")),
                look(ZeroDivisionError("division\nby zero")),
            ]
        )
    )
    assert [finding.passed for finding in findings] == [True, False, False, False]
    assert [finding.message for finding in findings] == [
        "fine",
        "broken",
        "damaged: restore it",
        "cannot be checked: ZeroDivisionError: division",
    ]


@pytest.mark.parametrize(("ahead", "said"), [(90.0, "90 s ahead of"), (-7.2, "7 s behind")])
def test_a_clock_that_is_wrong_is_told_of(ahead: float, said: str) -> None:
    [finding] = run_checks([look(CheckPassed("fine", ahead))])
    assert finding.message == f"its clock is {said} this machine's"
    assert "NTP" in finding.fix


def test_a_clock_that_is_a_little_off_is_right() -> None:
    [finding] = run_checks([look(CheckPassed("fine", 4.0))])
    assert finding.passed


def test_clocks_are_compared_at_the_middle_of_the_question() -> None:
    clock = ClockProbe()
    time.sleep(0.2)
    assert clock.skew(time.time()) == pytest.approx(0.1, abs=0.05)
    assert clock.skew_from_header(None) is None


def test_a_check_that_hangs_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHECK_TIMEOUT_S", 0.3)
    began = time.monotonic()
    hanging = DoctorCheck("thing", "there", lambda: time.sleep(5) or CheckPassed("late"))
    findings = list(run_checks([look(CheckPassed("fine")), hanging, look(CheckPassed("fine"))]))
    assert [finding.passed for finding in findings] == [True, False, True]
    assert time.monotonic() - began < 3


def test_all_that_is_wrong_is_told_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        look(CheckFailedError("one", "do this")),
        look(CheckPassed("fine")),
        look(CheckFailedError("two", "do that")),
    ]
    monkeypatch.setattr(doctor, "doctor_checks", lambda *_: checks)
    with Progress() as progress, pytest.raises(ChecksFailedError) as caught:
        doctor.run_doctor(progress)
    assert str(caught.value).splitlines() == [
        "not all is well: 2 faults",
        "  - thing, there: one → do this",
        "  - thing, there: two → do that",
    ]


def test_a_variable_that_nothing_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("EVERGREEN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EVERGREEN_PODS__IMAGE", "image")
    assert environment.check_environment_variables().message == "1 variables, all of them known"
    monkeypatch.setenv("EVERGREEN_LEGDER", "s3://x")
    assert wrong(environment.check_environment_variables) == (
        "EVERGREEN_LEGDER: nothing reads it",
        "is EVERGREEN_LEDGER meant?",
    )


def test_the_trainer() -> None:
    assert environment.check_trainer(Path(sys.executable)).message == f"Python {sys.version.split()[0]}"
    assert wrong(environment.check_trainer, Path("/nowhere/python"))[0] == "cannot be run: No such file or directory"


def test_a_trainer_without_its_packages(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E -s -c 'import pyarrow'\n")
    python.chmod(0o755)
    assert wrong(environment.check_trainer, python)[0] == "cannot train: ModuleNotFoundError: No module named 'pyarrow'"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("")
    assert environment.check_file_readable(tmp_path / "key.pem").message == "can be read"
    assert wrong(environment.check_file_readable, tmp_path / "other.pem")[0].startswith("No such file or directory")
