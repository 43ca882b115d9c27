"""The engines: those of this machine up, down, and recorded in `stack.json`; those elsewhere only waited for.

The record is written right after each process is started, before it is ready, so that whatever happens
next, `stop` knows what there is to stop.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from evergreen import storage
from evergreen.cli.progress import Progress, ProgressStep, ProgressView
from evergreen.errors import EvergreenError
from evergreen.settings import redact_url, settings
from evergreen.spec import Frozen
from evergreen_local import java, processes, services
from evergreen_local.processes import ProcessIdentity
from evergreen_local.services import LocalService

STOP_TIMEOUT_S = 15.0
"""Seconds that a process gets to end by itself."""

_READY_TIMEOUT_S = 300.0
_CHILDREN_TIMEOUT_S = 30.0  # by then an engine has started its parts
_TAIL = 15


class StackError(EvergreenError):
    """An engine did not come up, or nobody knows what is up."""


class ServiceRecord(Frozen):
    """An engine that was started: who it is, where it answers, and the addresses it was told."""

    process: ProcessIdentity
    url: str
    log: Path
    environment: Mapping[str, str] = {}


class StackRecord(Frozen):
    """What `stack.json` holds."""

    services: Mapping[str, ServiceRecord] = {}

    def with_service(self, name: str, service: ServiceRecord) -> StackRecord:
        return StackRecord(services={**self.services, name: service})

    @classmethod
    def read(cls, home: Path) -> StackRecord:
        """What was recorded last; empty if nothing was.

        Raises:
            StackError: the file holds something else.
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


@dataclass(frozen=True)
class ServiceAddresses:
    """Where the engines answer, with what they ask of us, and where people see their pages."""

    airflow: str
    mlflow: str
    spark: str

    @property
    def airflow_ui(self) -> str:
        return settings().airflow_ui or redact_url(self.airflow)

    @property
    def mlflow_ui(self) -> str:
        return settings().mlflow_ui or redact_url(self.mlflow)


def bring_up_stack(progress: Progress) -> ServiceAddresses:
    """Start what is not up, all at once, and wait until everything answers.

    Raises:
        JavaError: there is no Java for Spark.
        StackError: an engine ended or stayed silent; with the last lines of its log.
    """
    started = start_stack(progress)
    return wait_for_stack(progress, started)


@dataclass(frozen=True)
class StackStartup:
    """Engines that were started, found running, or are elsewhere, on their way to answer."""

    services: Mapping[str, services.ServiceEndpoint]
    record: StackRecord
    newly_started: frozenset[str]


def start_stack(progress: Progress) -> StackStartup:
    """Start what is not up; returns without waiting for it to answer."""
    given = services.external_services()
    if "airflow" in given:
        return StackStartup(given, StackRecord(), frozenset())
    named = settings().model_fields_set
    if "spark" not in named:
        java.require_java()
    home = _create_home()
    with _lock(home, progress):
        record = StackRecord.read(home)
        found: dict[str, services.ServiceEndpoint] = dict(given)
        fresh = set()
        makers = {"spark": services.spark_service, "mlflow": services.mlflow_service}
        told = {"EVERGREEN_HOME": str(home)}
        secret: Mapping[str, str] = {}
        for name, port in (("spark", 15002), ("mlflow", 5000)):
            if name in named:
                continue
            record, found[name], new = _ensure_service(home, record, name, port, makers[name], {})
            fresh |= {name} if new else set()
            told[f"EVERGREEN_{name.upper()}"] = found[name].url
        if "spark" not in named:
            secret = services.spark_client_environment(home)
        record, found["airflow"], new = _ensure_service(
            home,
            record,
            "airflow",
            8080,
            lambda home, port: services.airflow_service(home, port, {**told, **secret}),
            told,
        )
        fresh |= {"airflow"} if new else set()
    return StackStartup(found, record, frozenset(fresh))


def wait_for_stack(progress: Progress, startup: StackStartup) -> ServiceAddresses:
    """Wait until every engine answers."""
    began = time.monotonic()
    seconds: dict[str, float] = {}
    waited = False
    while len(seconds) < len(startup.services):
        for name, engine in startup.services.items():
            if name not in seconds and engine.is_ready():
                seconds[name] = time.monotonic() - began
                if name in startup.newly_started or waited:
                    progress.print(f"✓ {engine.title} answers at {engine.url} after {seconds[name]:.0f} s")
        _check_alive(startup, set(seconds), time.monotonic() - began)
        steps = tuple(
            ProgressStep(
                engine.title,
                "success" if name in seconds else "running",
                seconds.get(name, time.monotonic() - began),
            )
            for name, engine in startup.services.items()
        )
        if len(seconds) < len(steps):
            waited = True
            progress.update(
                ProgressView("waiting for the engines", len(seconds), len(steps), "up", steps, change_key=len(seconds))
            )
            time.sleep(0.5)
    progress.clear()
    if not (startup.newly_started or waited):
        progress.print("everything is up already")
    return _resolve_addresses({name: engine.url for name, engine in startup.services.items()})


def service_addresses() -> ServiceAddresses | None:
    """Where the engines are that the settings name or that were started here; None if Airflow is neither."""
    record = StackRecord.read(settings().home.resolve())
    alive = {name: engine.url for name, engine in record.services.items() if processes.is_alive(engine.process)}
    return _resolve_addresses(alive) if settings().airflow or "airflow" in alive else None


def _resolve_addresses(urls: Mapping[str, str]) -> ServiceAddresses:
    now = settings()
    named = now.model_fields_set
    return ServiceAddresses(
        airflow=now.airflow or urls["airflow"],
        mlflow=now.mlflow if "mlflow" in named else urls.get("mlflow", now.mlflow),
        spark=now.spark if "spark" in named else urls.get("spark", now.spark),
    )


def stop_stack(progress: Progress) -> None:
    """End everything that was started, also what is left of an engine that has died."""
    home = settings().home.resolve()
    if not home.is_dir():
        progress.print("nothing is up")
        return
    with _lock(home, progress):
        record = StackRecord.read(home) if _record_file(home).exists() else StackRecord()
        ended = 0
        # Airflow first: its tasks still talk to the others.
        for name in sorted(record.services, key=lambda name: name != "airflow"):
            progress.update(ProgressView(f"stopping {name}", 0, 1, "stopped"))
            ended += processes.stop_session(record.services[name].process, home, STOP_TIMEOUT_S)
        progress.update(ProgressView("looking for what is left", 0, 1, "done"))
        ended += processes.stop_home_processes(home, STOP_TIMEOUT_S)
        _record_file(home).unlink(missing_ok=True)
    progress.clear()
    progress.print(f"stopped: {ended} processes have ended" if ended else "nothing was up")


def show_stack_status(progress: Progress) -> None:
    """Say which engines are up, and where."""
    record = StackRecord.read(settings().home.resolve())
    for name, engine in record.services.items():
        progress.print(
            f"{name:8} {'up' if processes.is_alive(engine.process) else 'dead':5} {engine.url}  log {engine.log}"
        )
    given = services.external_services()
    for name, known in given.items():
        progress.print(f"{name:8} {'up' if known.is_ready() else 'gone':5} {known.url}  not started here")
    if not record.services and not given:
        progress.print("nothing is up; `evergreen up` starts everything")


def local_mlflow_url() -> str | None:
    """Where the MLflow server answers that was started here; None if none is up."""
    engine = StackRecord.read(settings().home.resolve()).services.get("mlflow")
    return engine.url if engine and processes.is_alive(engine.process) else None


def log_tail(log: Path, lines: int = _TAIL) -> str:
    """The last lines of a log that say something."""
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
    make: Callable[[Path, int], LocalService],
    service_environment: Mapping[str, str],
) -> tuple[StackRecord, LocalService, bool]:
    """The engine as recorded if it lives whole, answers, and was told what holds now; else a new one, and True."""
    known = record.services.get(name)
    if known and processes.is_alive(known.process) and known.environment == service_environment:
        service = make(home, services.parse_port(known.url))
        young = known.process.age_seconds < _READY_TIMEOUT_S
        whole = known.process.age_seconds < _CHILDREN_TIMEOUT_S or not processes.missing_children(
            known.process, service.child_names
        )
        if whole and (young or _responds(service)):
            return record, service, False
    if known:
        processes.stop_session(
            known.process, home, STOP_TIMEOUT_S
        )  # what its death has left, or what was told another address
        port = services.parse_port(known.url)
    service = make(home, services.free_port(port))
    log = home / "logs" / f"{name}.log"
    identity = processes.start_process(service.command, service.environment, service.folder, log)
    engine = ServiceRecord(process=identity, url=service.url, log=log, environment=service_environment)
    record = record.with_service(name, engine)
    record.write(home)
    return record, service, True


def _responds(service: LocalService) -> bool:
    """Whether an engine that should be ready is; one that is merely busy gets a few chances."""
    for _ in range(5):
        if service.is_ready():
            return True
        time.sleep(2)
    return False


def _check_alive(startup: StackStartup, ready: set[str], seconds: float) -> None:
    for name, engine in startup.services.items():
        ours = startup.record.services.get(name) if isinstance(engine, LocalService) else None
        silent = name not in ready and seconds > _READY_TIMEOUT_S
        if ours is None:
            if silent:
                raise StackError(
                    f"{engine.title} at {engine.url} does not answer after {seconds:.0f} s: "
                    "`evergreen doctor` looks for the reason"
                )
            continue
        died = not processes.is_alive(ours.process)
        if died or silent:
            what = "ended" if died else f"does not answer after {seconds:.0f} s"
            raise StackError(f"{engine.title} {what}. The end of {ours.log}:\n{log_tail(ours.log)}")


def _create_home() -> Path:
    home = settings().home.resolve()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)  # logs, tokens and data are nobody else's business
    return home


def _record_file(home: Path) -> Path:
    return home / "stack.json"


@contextmanager
def _lock(home: Path, progress: Progress) -> Iterator[None]:
    """Only one command at a time starts or stops engines."""
    with (home / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.print("another evergreen command is starting or stopping the engines: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
