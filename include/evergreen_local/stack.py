"""The local stack: starts and stops services and records them in `stack.json`; waits for external services.

The record is written right after each process is started, before it is ready, so that `stop_stack` always knows it.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from evergreen import ledger, storage
from evergreen.cli.doctor.environment import require_java
from evergreen.cli.options import print_json
from evergreen.cli.tables import list_challengers
from evergreen.client.addresses import ServiceAddresses, resolve_addresses
from evergreen.errors import EvergreenError
from evergreen.local_services import STACK_FILE
from evergreen.settings import parse_host_and_port, settings, variable_name
from evergreen.spec import Frozen
from evergreen.spec.loader import model_names
from evergreen_local import processes, services
from evergreen_local.processes import ProcessIdentity
from evergreen_local.progress import Progress, ProgressStep, ProgressView
from evergreen_local.services import LocalService, ServiceEndpoint

STOP_TIMEOUT_S = 15.0
"""Time for a process to end after SIGTERM."""

_READY_TIMEOUT_S = 300.0
_RESPONSE_TIMEOUT_S = 60.0
_TAIL = 15  # lines of a log


class StackError(EvergreenError):
    """A service did not start, or the record of services is not readable."""


class ServiceRecord(Frozen):
    """A started service; `environment` has the addresses of other services that it was given."""

    process: ProcessIdentity
    url: str
    log: Path
    environment: Mapping[str, str] = {}


class StackRecord(Frozen):
    """Content of `stack.json`."""

    services: Mapping[str, ServiceRecord] = {}

    def with_service(self, name: str, service: ServiceRecord) -> StackRecord:
        return StackRecord(services={**self.services, name: service})

    @classmethod
    def read(cls, home: Path) -> StackRecord:
        """Return the record; empty if there is none.

        Raises:
            StackError: The file is invalid.
        """
        try:
            return cls.model_validate_json(_record_file(home).read_text())
        except FileNotFoundError:
            return cls()
        except ValidationError:
            raise StackError(f"{_record_file(home)} is not readable: delete it, then run `evergreen down`") from None

    def write(self, home: Path) -> None:
        with storage.atomic_write(_record_file(home)) as scratch:
            scratch.write_text(self.model_dump_json(indent=1) + "\n")


def bring_up_stack(progress: Progress) -> ServiceAddresses:
    """Start all services that do not run, concurrently, and wait until all are ready.

    Raises:
        JavaError: There is no Java for Spark.
        StackError: A service ended or does not respond; with the last lines of its log.
    """
    return wait_for_stack(progress, start_stack(progress))


@dataclass(frozen=True)
class StackStartup:
    """All services of a stack, not yet ready: external, running already, or newly started."""

    services: Mapping[str, ServiceEndpoint]
    record: StackRecord
    newly_started: frozenset[str]


def start_stack(progress: Progress) -> StackStartup:
    """Start all services that do not run, without waiting for them."""
    endpoints = services.external_services()
    if "airflow" in endpoints:
        return StackStartup(endpoints, StackRecord(), frozenset())
    factories = {"spark": (services.spark_service, 15002), "mlflow": (services.mlflow_service, 5000)}
    factories = {name: factory for name, factory in factories.items() if name not in settings().model_fields_set}
    if "spark" in factories:
        require_java()
    home = settings().home.resolve()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)  # logs, tokens and data are private
    with _lock(home, progress):
        old_record = record = StackRecord.read(home)
        addresses = {variable_name("home"): str(home)}
        for name, (factory, port) in factories.items():
            record, endpoints[name] = _ensure_service(home, record, name, port, factory, {})
            addresses[variable_name(name)] = endpoints[name].url
        own_spark = {}
        if "spark" in factories:
            own_spark = {**services.spark_client_environment(home), **services.spark_exchange_environment()}

        def create_airflow(home: Path, port: int) -> LocalService:
            return services.airflow_service(home, port, {**addresses, **own_spark})

        record, endpoints["airflow"] = _ensure_service(home, record, "airflow", 8080, create_airflow, addresses)
    started = {name for name, service in record.services.items() if old_record.services.get(name) != service}
    return StackStartup(endpoints, record, frozenset(started))


def wait_for_stack(progress: Progress, startup: StackStartup) -> ServiceAddresses:
    """Wait until all services are ready."""
    start = time.monotonic()
    ready: dict[str, float] = {}  # seconds
    has_waited = False
    while len(ready) < len(startup.services):
        for name, service in startup.services.items():
            if name not in ready and service.is_ready():
                ready[name] = time.monotonic() - start
                if name in startup.newly_started or has_waited:
                    progress.print(f"✓ {service.title} is ready at {service.url} after {ready[name]:.0f} s")
        elapsed = time.monotonic() - start
        _check_alive(startup, set(ready), elapsed)
        if len(ready) < len(startup.services):
            has_waited = True
            steps = tuple(
                ProgressStep(service.title, "success" if name in ready else "running", ready.get(name, elapsed))
                for name, service in startup.services.items()
            )
            title = "waiting for services"
            progress.update(ProgressView(title, len(ready), len(steps), "ready", steps, change_key=len(ready)))
            time.sleep(0.5)
    progress.clear()
    if not (startup.newly_started or has_waited):
        progress.print("all services are running already")
    return resolve_addresses({name: service.url for name, service in startup.services.items()})


def stop_stack(progress: Progress) -> None:
    """Stop all services that were started, and what is left of services that have died."""
    home = settings().home.resolve()
    if not home.is_dir():
        progress.print("no service is running")
        return
    with _lock(home, progress):
        record = StackRecord.read(home) if _record_file(home).exists() else StackRecord()
        count = 0
        # Airflow first: its tasks use the others.
        for name in sorted(record.services, key=lambda name: name != "airflow"):
            progress.update(ProgressView(f"stopping {name}", 0, 1, "stopped"))
            count += processes.stop_session(record.services[name].process, home, STOP_TIMEOUT_S)
        progress.update(ProgressView("stopping other processes", 0, 1, "stopped"))
        count += processes.stop_home_processes(home, STOP_TIMEOUT_S)
        _record_file(home).unlink(missing_ok=True)
    progress.clear()
    progress.print(f"stopped {count} processes" if count else "no service was running")


def show_stack_status(console: Console, as_json: bool) -> None:
    """Print state, URL and log of each service."""
    rows = [
        {
            "service": name,
            "state": "up" if processes.is_alive(service.process) else "dead",
            "url": service.url,
            "log": service.log,
        }
        for name, service in StackRecord.read(settings().home.resolve()).services.items()
    ] + [
        {"service": name, "state": "up" if endpoint.is_ready() else "down", "url": endpoint.url, "log": None}
        for name, endpoint in services.external_services().items()
    ]
    if as_json:
        print_json(console, rows)
        return
    for row in rows:
        location = f"log {row['log']}" if row["log"] else "external"
        console.print(f"{row['service']:8} {row['state']:5} {row['url']}  {location}")
    if not rows:
        console.print("no service is running; `evergreen up` starts them")
    for line in list_challengers({name: ledger.read_state(name) for name in model_names()}):
        console.print(line)


def log_tail(log: Path, lines: int = _TAIL) -> str:
    """Return the last lines of a log, without empty ones."""
    try:
        text = log.read_bytes()[-20_000:].decode(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:]) or "(the log is empty)"


def _ensure_service(
    home: Path,
    record: StackRecord,
    name: str,
    port: int,
    factory: Callable[[Path, int], LocalService],
    addresses: Mapping[str, str],
) -> tuple[StackRecord, LocalService]:
    """Return the recorded service if it is intact, responds, and has these `addresses`; else start a new one."""
    service_record = record.services.get(name)
    if service_record:
        port = parse_host_and_port(service_record.url)[1]
        if processes.is_alive(service_record.process) and service_record.environment == addresses:
            service, age = factory(home, port), service_record.process.age_seconds
            if age < _READY_TIMEOUT_S or _responds(service):
                return record, service
        processes.stop_session(service_record.process, home, STOP_TIMEOUT_S)  # also what is left of a dead one
    service = factory(home, services.free_port(port))
    log = home / "logs" / f"{name}.log"
    identity = processes.start_process(service.command, service.environment, service.folder, log)
    started = ServiceRecord(process=identity, url=service.url, log=log, environment=addresses)
    record = record.with_service(name, started)
    record.write(home)
    return record, service


def _responds(service: LocalService) -> bool:
    """Return whether a service gets ready: a busy one responds late, and a part of Airflow that died starts again."""
    deadline = time.monotonic() + _RESPONSE_TIMEOUT_S
    while not service.is_ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(2)
    return True


def _check_alive(startup: StackStartup, ready: set[str], seconds: float) -> None:
    for name, service in startup.services.items():
        problem = ""
        if name not in ready and seconds > _READY_TIMEOUT_S:
            problem = f"does not respond after {seconds:.0f} s"
        if not isinstance(service, LocalService):
            if problem:
                raise StackError(f"{service.title} at {service.url} {problem}: `evergreen doctor` finds the cause")
            continue
        started = startup.record.services[name]
        if not processes.is_alive(started.process):
            problem = "has exited"
        if problem:
            raise StackError(f"{service.title} {problem}. The end of {started.log}:\n{log_tail(started.log)}")


def _record_file(home: Path) -> Path:
    return home / STACK_FILE


@contextmanager
def _lock(home: Path, progress: Progress) -> Iterator[None]:
    """Let only one command at a time start or stop services."""
    with (home / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.print("waiting for another evergreen command that starts or stops services")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
