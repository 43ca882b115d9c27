"""`evergreen doctor`: whether all that Evergreen stands on is there, right, and allowed, as the servers themselves say.

A check is a function that looks at one thing. It gives what it has seen, or raises `Wrong` with the way out. They run
side by side, change nothing that stays, and none keeps the others waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from evergreen.cli.doctor import cluster, databases, environment, places, servers
from evergreen.cli.doctor.seen import CheckFailedError, CheckPassed
from evergreen.cli.progress import Progress, ProgressView
from evergreen.errors import EvergreenError, Fault, FaultsError
from evergreen.settings import Settings, redact_url, settings
from evergreen_local import stack

_CHECK_TIMEOUT_S = 60.0  # seconds; each check has limits of its own, this is for what they do not reach
_MAX_CLOCK_SKEW_S = 5.0  # seconds that two clocks may differ: what Airflow forgives its tokens is 10


class ChecksFailedError(FaultsError):
    """Something is wrong with what Evergreen stands on."""


@dataclass(frozen=True)
class DoctorCheck:
    """Something to look at: what it is, where it is, and how."""

    subject: str
    location: str
    run: Callable[[], CheckPassed]


@dataclass(frozen=True)
class CheckResult:
    """What a check came to; right if it needs no way out."""

    subject: str
    location: str
    message: str
    fix: str = ""

    @property
    def passed(self) -> bool:
        return not self.fix


def doctor_checks(config: Settings, addresses: stack.ServiceAddresses | None) -> Iterator[DoctorCheck]:
    """All checks for these settings; engines that were started on this machine are at `addresses`."""
    yield DoctorCheck("settings", "the environment", environment.check_environment_variables)
    yield DoctorCheck("lake", str(config.lake), partial(places.check_folder, config.lake))
    yield DoctorCheck("ledger", config.ledger, partial(places.check_storage, config.ledger, append_only=True))
    yield DoctorCheck("jobs", config.jobs, partial(places.check_storage, config.jobs))
    yield DoctorCheck("entries", config.ledger, places.check_ledger_entries)
    yield DoctorCheck(
        "Feast's registry",
        redact_url(config.feast_registry),
        partial(databases.check_feast_registry, config.feast_registry),
    )
    yield DoctorCheck(
        "online store",
        redact_url(config.online_store),
        partial(databases.check_online_store, config.online_store),
    )
    if addresses:
        yield DoctorCheck("Airflow", redact_url(addresses.airflow), partial(servers.check_airflow, addresses.airflow))
    else:
        yield DoctorCheck("Airflow", "this machine", servers.report_airflow_down)
    mlflow = addresses.mlflow if addresses else config.mlflow
    if mlflow.startswith("http"):
        yield DoctorCheck("MLflow", redact_url(mlflow), partial(servers.check_mlflow, mlflow))
    else:
        yield DoctorCheck("MLflow's database", redact_url(mlflow), partial(databases.check_mlflow_database, mlflow))
    spark = addresses.spark if addresses else config.spark
    if spark.startswith("sc://"):
        yield DoctorCheck("Spark Connect", redact_url(spark), partial(servers.check_spark_connect, spark, config.lake))
    else:
        yield DoctorCheck("Java", "this machine, for Spark", environment.check_java)
    if config.training_backend == "pod":
        yield DoctorCheck(
            "Kubernetes", f"namespace {config.pods.namespace}", partial(cluster.check_kubernetes, config.pods)
        )
    else:
        yield DoctorCheck("trainer", str(config.trainer), partial(environment.check_trainer, config.trainer))
    for name in ("signing_key", "signing_passphrase", "signing_public_key", "prices"):
        if file := getattr(config, name):
            yield DoctorCheck(name, str(file), partial(environment.check_file_readable, Path(file)))


def run_checks(checks: Sequence[DoctorCheck]) -> Iterator[CheckResult]:
    """Make all checks at once; gives their findings in order, each as soon as those before it are there."""
    found: list[CheckResult | None] = [None] * len(checks)

    def make(number: int, check: DoctorCheck) -> None:
        found[number] = _run_check(check)

    # Not a pool: a check that hangs must not keep the command from ending.
    threads = [threading.Thread(target=make, args=(number, check), daemon=True) for number, check in enumerate(checks)]
    for thread in threads:
        thread.start()
    for number, (check, thread) in enumerate(zip(checks, threads, strict=True)):
        thread.join(_CHECK_TIMEOUT_S)
        yield found[number] or CheckResult(
            check.subject,
            check.location,
            f"gives no answer within {_CHECK_TIMEOUT_S:.0f} s",
            "look at its log, or start it anew",
        )


def run_doctor(progress: Progress) -> None:
    """Make all checks that the settings call for, and tell of each.

    Raises:
        NotWellError: something is wrong; names all of it.
    """
    todo = list(doctor_checks(settings(), stack.service_addresses()))
    progress.update(ProgressView("looking at everything", 0, len(todo), "checks"))
    findings = list(run_checks(todo))
    progress.clear()
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "what", "where", "seen"):
        table.add_column(column, overflow="fold", no_wrap=column in ("", "what"))
    for finding in findings:
        sign = Text("✓", style="green") if finding.passed else Text("✗", style="red")
        table.add_row(sign, finding.subject, Text(finding.location), Text(finding.message))
    progress.print(table)
    faults = [Fault(f"{f.subject}, {f.location}", f.message, f.fix) for f in findings if not f.passed]
    if faults:
        raise ChecksFailedError("not all is well", faults)
    progress.print(f"all {len(findings)} checks are passed", style="green")


def _run_check(check: DoctorCheck) -> CheckResult:
    try:
        seen = check.run()
    except CheckFailedError as wrong:
        return CheckResult(check.subject, check.location, wrong.problem, wrong.fix)
    except EvergreenError as error:
        return CheckResult(check.subject, check.location, str(error), "as it says")
    except Exception as error:  # a check that stumbles has not seen that all is well
        first = (str(error).splitlines() or [""])[0]
        return CheckResult(
            check.subject,
            check.location,
            f"cannot be checked: {type(error).__name__}: {first}",
            "this was not foreseen: mend what it names, then look again",
        )
    if seen.clock_skew is not None and abs(seen.clock_skew) > _MAX_CLOCK_SKEW_S:
        how = "ahead of" if seen.clock_skew > 0 else "behind"
        return CheckResult(
            check.subject,
            check.location,
            f"its clock is {abs(seen.clock_skew):.0f} s {how} this machine's",
            "keep both right by NTP (chrony or systemd-timesyncd): tokens and signatures expire by the clock",
        )
    return CheckResult(check.subject, check.location, seen.message)
