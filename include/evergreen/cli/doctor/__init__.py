"""`evergreen doctor`: checks everything that Evergreen depends on, as the servers themselves see it.

A check is a function that returns `CheckPassed`, or raises `CheckFailedError` with a fix. Checks run concurrently and
leave nothing behind; none delays the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evergreen.cli.doctor import cluster, databases, environment, features, routes, servers, sources, storage
from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed
from evergreen.cli.options import print_json
from evergreen.client.addresses import ServiceAddresses, service_addresses
from evergreen.errors import EvergreenError, Fault, FaultsError, first_line
from evergreen.settings import Settings, redact_url, settings
from evergreen.storage import is_local

_CHECK_TIMEOUT_S = 60.0  # checks have shorter timeouts of their own; this covers what those do not reach
_MAX_CLOCK_SKEW_S = 5.0  # Airflow's tokens tolerate 10


class ChecksFailedError(FaultsError):
    """Checks have found problems."""


@dataclass(frozen=True)
class DoctorCheck:
    """A check: what it checks, where that is, and the function."""

    subject: str
    location: str
    run: Callable[[], CheckPassed]


@dataclass(frozen=True)
class CheckResult:
    """Result of a check; it has passed if it has no fix."""

    check: DoctorCheck
    message: str
    fix: str = ""

    @property
    def passed(self) -> bool:
        return not self.fix

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check.subject,
            "location": self.check.location,
            "passed": self.passed,
            "message": self.message,
            "fix": self.fix or None,
        }


def doctor_checks(config: Settings, addresses: ServiceAddresses | None) -> Iterator[DoctorCheck]:
    """Yield all checks for these settings, and for the services at `addresses`."""

    def check(subject: str, function: Callable[..., CheckPassed], target: object, **options: bool) -> DoctorCheck:
        return DoctorCheck(subject, str(target), partial(function, target, **options))

    yield DoctorCheck("settings", "the environment", environment.check_environment_variables)
    models = ", ".join(map(str, config.models))
    yield DoctorCheck("models", models, environment.check_models)
    yield DoctorCheck("raw data", redact_url(config.raw), sources.check_sources)
    yield check("lake", storage.check_lake, config.lake)
    yield check("ledger", storage.check_storage, config.ledger, append_only=True)
    yield check("jobs", storage.check_storage, config.jobs)
    yield DoctorCheck("entries", config.ledger, storage.check_ledger_entries)
    yield DoctorCheck("features", str(config.lake), features.check_features)
    if config.tables:
        yield DoctorCheck("tables", f"{config.tables}, in {config.lake}", features.check_tables)
    yield DoctorCheck("serving", str(config.feature_repo), features.check_serving)
    yield check("Feast's registry", databases.check_feast_registry, config.feast_registry)
    yield check("online store", databases.check_online_store, config.online_store)
    if addresses:
        yield check("Airflow", servers.check_airflow, addresses.airflow)
    else:
        yield DoctorCheck("Airflow", "this machine", servers.report_airflow_down)
    mlflow = addresses.mlflow if addresses else config.mlflow
    if mlflow.get_secret_value().startswith("http"):
        yield check("MLflow", servers.check_mlflow, mlflow)
    else:
        yield check("MLflow's database", databases.check_mlflow_database, mlflow)
    spark = addresses.spark if addresses else config.spark
    if spark.get_secret_value().startswith("sc://"):
        shared = config.spark_exchange or (config.lake if is_local(config.lake) else config.cache)
        run = partial(servers.check_spark_connect, spark, shared)
        yield DoctorCheck("Spark Connect", str(spark), run)
    else:
        yield DoctorCheck("Java", "this machine, for Spark", environment.check_java)
        if config.spark_exchange or not spark.get_secret_value().startswith("local"):
            yield DoctorCheck("Spark", str(spark), servers.check_spark)
    if config.training_backend == "pod":
        run = partial(cluster.check_kubernetes, config.pods)
        yield DoctorCheck("Kubernetes", f"namespace {config.pods.namespace}", run)
    else:
        yield check("trainer", environment.check_trainer, config.trainer)
    for name, route in config.notifications.routes.items():
        run = partial(routes.check_route, name, route, addresses.airflow if addresses else None)
        yield DoctorCheck(f"route {name}", route.notifier.rpartition(".")[2], run)
    for name in ("signing_key", "signing_passphrase", "signing_public_key", "prices"):
        if file := getattr(config, name):
            yield check(name, environment.check_file_readable, file)


def run_checks(checks: Sequence[DoctorCheck]) -> Iterator[CheckResult]:
    """Run all checks concurrently; yield their results in order, each as soon as it is known."""
    results: dict[int, CheckResult] = {}

    def run(number: int) -> None:
        results[number] = _run_check(checks[number])

    # Not a pool: a check that hangs must not keep the command from ending.
    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(checks))]
    for thread in threads:
        thread.start()
    for number, thread in enumerate(threads):
        thread.join(_CHECK_TIMEOUT_S)
        timeout = f"no response within {_CHECK_TIMEOUT_S:.0f} s"
        yield results.get(number) or CheckResult(checks[number], timeout, "see its log, or restart it")


def run_doctor(console: Console, as_json: bool = False) -> None:
    """Run all checks for the current settings, and print their results.

    Raises:
        ChecksFailedError: Checks have failed; names all of them.
    """
    checks = list(doctor_checks(settings(), service_addresses()))
    with Console(stderr=True).status("running checks"):
        results = list(run_checks(checks))
    if as_json:
        print_json(console, [result.to_json() for result in results])
    else:
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("", "check", "location", "result"):
            table.add_column(column, overflow="fold", no_wrap=column in ("", "check"))
        for result in results:
            sign = Text("✓", style="green") if result.passed else Text("✗", style="red")
            table.add_row(sign, result.check.subject, Text(result.check.location), Text(result.message))
        console.print(table, soft_wrap=False)
    failures = [result for result in results if not result.passed]
    if failures:
        faults = [Fault(f"{r.check.subject}, {r.check.location}", r.message, r.fix) for r in failures]
        raise ChecksFailedError(f"{len(failures)} of {len(results)} checks failed", faults)
    if not as_json:
        console.print(f"all {len(results)} checks passed", style="green")


def _run_check(check: DoctorCheck) -> CheckResult:
    try:
        outcome = check.run()
    except CheckFailedError as failure:
        return CheckResult(check, failure.problem, failure.fix)
    except EvergreenError as error:
        return CheckResult(check, str(error), "see the message")
    except Exception as error:  # a check that crashes has not passed
        problem = f"the check crashed: {type(error).__name__}: {first_line(error)}"
        return CheckResult(check, problem, "unexpected: fix what the error names, then run it again")
    if outcome.clock_skew is not None and abs(outcome.clock_skew) > _MAX_CLOCK_SKEW_S:
        relation = "ahead of" if outcome.clock_skew > 0 else "behind"
        return CheckResult(
            check,
            f"its clock is {abs(outcome.clock_skew):.0f} s {relation} this machine's",
            "synchronize both by NTP (chrony or systemd-timesyncd): tokens and signatures expire by the clock",
        )
    return CheckResult(check, outcome.message)
