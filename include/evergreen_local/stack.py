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

from pydantic import BaseModel, ConfigDict, ValidationError

from evergreen import storage
from evergreen.cli.progress import Progress, Step, View
from evergreen.errors import EvergreenError
from evergreen.settings import settings, shown
from evergreen_local import java, processes, services
from evergreen_local.processes import Identity
from evergreen_local.services import Service

PATIENCE = 15.0
"""Seconds that a process gets to end by itself."""

_READY_WITHIN = 300.0
_WHOLE_WITHIN = 30.0  # by then an engine has started its parts
_TAIL = 15


class StackError(EvergreenError):
    """An engine did not come up, or nobody knows what is up."""


class Engine(BaseModel):
    """An engine that was started: who it is, where it answers, and the addresses it was told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: Identity
    url: str
    log: Path
    told: Mapping[str, str] = {}


class Record(BaseModel):
    """What `stack.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engines: Mapping[str, Engine] = {}

    def with_engine(self, name: str, engine: Engine) -> Record:
        return Record(engines={**self.engines, name: engine})

    @classmethod
    def read(cls, home: Path) -> Record:
        """What was recorded last; empty if nothing was.

        Raises:
            StackError: the file holds something else.
        """
        try:
            return cls.model_validate_json(_file(home).read_text())
        except FileNotFoundError:
            return cls()
        except ValidationError:
            raise StackError(f"{_file(home)} is not readable: delete it, then run `evergreen down`") from None

    def write(self, home: Path) -> None:
        with storage.replacing(_file(home)) as scratch:
            scratch.write_text(self.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class Addresses:
    """Where the engines answer, with what they ask of us, and where people see their pages."""

    airflow: str
    mlflow: str
    spark: str

    @property
    def airflow_ui(self) -> str:
        return settings().airflow_ui or shown(self.airflow)

    @property
    def mlflow_ui(self) -> str:
        return settings().mlflow_ui or shown(self.mlflow)


def up(progress: Progress) -> Addresses:
    """Start what is not up, all at once, and wait until everything answers.

    Raises:
        JavaError: there is no Java for Spark.
        StackError: an engine ended or stayed silent; with the last lines of its log.
    """
    started = start(progress)
    return wait(progress, started)


@dataclass(frozen=True)
class Started:
    """Engines that were started, found running, or are elsewhere, on their way to answer."""

    engines: Mapping[str, services.Engine]
    record: Record
    fresh: frozenset[str]


def start(progress: Progress) -> Started:
    """Start what is not up; returns without waiting for it to answer."""
    given = services.elsewhere()
    if "airflow" in given:
        return Started(given, Record(), frozenset())
    named = settings().model_fields_set
    if "spark" not in named:
        java.require()
    home = _home()
    with _lock(home, progress):
        record = Record.read(home)
        found: dict[str, services.Engine] = dict(given)
        fresh = set()
        makers = {"spark": services.spark, "mlflow": services.mlflow}
        told = {"EVERGREEN_HOME": str(home)}
        secret: Mapping[str, str] = {}
        for name, port in (("spark", 15002), ("mlflow", 5000)):
            if name in named:
                continue
            record, found[name], new = _ensure(home, record, name, port, makers[name], {})
            fresh |= {name} if new else set()
            told[f"EVERGREEN_{name.upper()}"] = found[name].url
        if "spark" not in named:
            secret = services.spark_client(home)
        record, found["airflow"], new = _ensure(
            home,
            record,
            "airflow",
            8080,
            lambda home, port: services.airflow(home, port, {**told, **secret}),
            told,
        )
        fresh |= {"airflow"} if new else set()
    return Started(found, record, frozenset(fresh))


def wait(progress: Progress, started: Started) -> Addresses:
    """Wait until every engine answers."""
    began = time.monotonic()
    seconds: dict[str, float] = {}
    waited = False
    while len(seconds) < len(started.engines):
        for name, engine in started.engines.items():
            if name not in seconds and engine.ready():
                seconds[name] = time.monotonic() - began
                if name in started.fresh or waited:
                    progress.say(f"✓ {engine.title} answers at {engine.url} after {seconds[name]:.0f} s")
        _check_alive(started, set(seconds), time.monotonic() - began)
        steps = tuple(
            Step(
                engine.title,
                "success" if name in seconds else "running",
                seconds.get(name, time.monotonic() - began),
            )
            for name, engine in started.engines.items()
        )
        if len(seconds) < len(steps):
            waited = True
            progress.show(
                View("waiting for the engines", len(seconds), len(steps), "up", steps, news=len(seconds))
            )
            time.sleep(0.5)
    progress.rest()
    if not (started.fresh or waited):
        progress.say("everything is up already")
    return _addresses({name: engine.url for name, engine in started.engines.items()})


def addresses() -> Addresses | None:
    """Where the engines are that the settings name or that were started here; None if Airflow is neither."""
    record = Record.read(settings().home.resolve())
    alive = {name: engine.url for name, engine in record.engines.items() if processes.alive(engine.process)}
    return _addresses(alive) if settings().airflow or "airflow" in alive else None


def _addresses(urls: Mapping[str, str]) -> Addresses:
    now = settings()
    named = now.model_fields_set
    return Addresses(
        airflow=now.airflow or urls["airflow"],
        mlflow=now.mlflow if "mlflow" in named else urls.get("mlflow", now.mlflow),
        spark=now.spark if "spark" in named else urls.get("spark", now.spark),
    )


def stop(progress: Progress) -> None:
    """End everything that was started, also what is left of an engine that has died."""
    home = settings().home.resolve()
    if not home.is_dir():
        progress.say("nothing is up")
        return
    with _lock(home, progress):
        record = Record.read(home) if _file(home).exists() else Record()
        ended = 0
        # Airflow first: its tasks still talk to the others.
        for name in sorted(record.engines, key=lambda name: name != "airflow"):
            progress.show(View(f"stopping {name}", 0, 1, "stopped"))
            ended += processes.stop(record.engines[name].process, home, PATIENCE)
        progress.show(View("looking for what is left", 0, 1, "done"))
        ended += processes.stop_marked(home, PATIENCE)
        _file(home).unlink(missing_ok=True)
    progress.rest()
    progress.say(f"stopped: {ended} processes have ended" if ended else "nothing was up")


def status(progress: Progress) -> None:
    """Say which engines are up, and where."""
    record = Record.read(settings().home.resolve())
    for name, engine in record.engines.items():
        progress.say(
            f"{name:8} {'up' if processes.alive(engine.process) else 'dead':5} {engine.url}  log {engine.log}"
        )
    given = services.elsewhere()
    for name, known in given.items():
        progress.say(f"{name:8} {'up' if known.ready() else 'gone':5} {known.url}  not started here")
    if not record.engines and not given:
        progress.say("nothing is up; `evergreen up` starts everything")


def mlflow() -> str | None:
    """Where the MLflow server answers that was started here; None if none is up."""
    engine = Record.read(settings().home.resolve()).engines.get("mlflow")
    return engine.url if engine and processes.alive(engine.process) else None


def tail(log: Path, lines: int = _TAIL) -> str:
    """The last lines of a log that say something."""
    try:
        text = log.read_bytes()[-20_000:].decode(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return (
        "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])
        or "(the log is empty)"
    )


def _ensure(
    home: Path,
    record: Record,
    name: str,
    port: int,
    make: Callable[[Path, int], Service],
    told: Mapping[str, str],
) -> tuple[Record, Service, bool]:
    """The engine as recorded if it lives whole, answers, and was told what holds now; else a new one, and True."""
    known = record.engines.get(name)
    if known and processes.alive(known.process) and known.told == told:
        service = make(home, services.port_of(known.url))
        young = known.process.age < _READY_WITHIN
        whole = known.process.age < _WHOLE_WITHIN or not processes.missing(known.process, service.parts)
        if whole and (young or _answers(service)):
            return record, service, False
    if known:
        processes.stop(
            known.process, home, PATIENCE
        )  # what its death has left, or what was told another address
        port = services.port_of(known.url)
    service = make(home, services.free_port(port))
    log = home / "logs" / f"{name}.log"
    identity = processes.start(service.command, service.environment, service.folder, log)
    engine = Engine(process=identity, url=service.url, log=log, told=told)
    record = record.with_engine(name, engine)
    record.write(home)
    return record, service, True


def _answers(service: Service) -> bool:
    """Whether an engine that should be ready is; one that is merely busy gets a few chances."""
    for _ in range(5):
        if service.ready():
            return True
        time.sleep(2)
    return False


def _check_alive(started: Started, ready: set[str], seconds: float) -> None:
    for name, engine in started.engines.items():
        ours = started.record.engines.get(name) if isinstance(engine, Service) else None
        silent = name not in ready and seconds > _READY_WITHIN
        if ours is None:
            if silent:
                raise StackError(
                    f"{engine.title} at {engine.url} does not answer after {seconds:.0f} s: "
                    "`evergreen doctor` looks for the reason"
                )
            continue
        died = not processes.alive(ours.process)
        if died or silent:
            what = "ended" if died else f"does not answer after {seconds:.0f} s"
            raise StackError(f"{engine.title} {what}. The end of {ours.log}:\n{tail(ours.log)}")


def _home() -> Path:
    home = settings().home.resolve()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)  # logs, tokens and data are nobody else's business
    return home


def _file(home: Path) -> Path:
    return home / "stack.json"


@contextmanager
def _lock(home: Path, progress: Progress) -> Iterator[None]:
    """Only one command at a time starts or stops engines."""
    with (home / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("another evergreen command is starting or stopping the engines: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
