"""Kill -9 of every part of the stack, again and again, while days are backfilled, arrive and are corrected.

    python benchmarks/kill.py [--rounds 50] [--seed 1] [--days 180]

Airflow's components and the Spark Connect server run as processes of their own, as under systemd or Kubernetes:
one that dies is started again at once. Two thirds of the days are asked for by backfills, one after the other;
the others arrive one by one, and now and then a day that was there is corrected, or put back as it was. Every
few seconds one of these is killed:

    scheduler         and with it its workers and their tasks, as when its container ends
    scheduler alone   its tasks live on, while the next scheduler gives them to others
    triggerer         which waits for other runs, and watches for arrivals
    worker            its task is left alone, and may go on for a while beside its own second try
    task              with all that it has started
    Spark             the JVM of the Connect server

Afterwards every delivered day must be published once per content, with the bytes that an undisturbed plain process
publishes. Renames and folders are counted by the kernel (inotify, so Linux only), nothing is patched.

A worker that dies before its task has begun leaves it queued until the scheduler starts anew, for LocalExecutor cannot
take a task back. After a minute a person would see that, and restart it: such restarts are counted.

Airflow waits minutes until it takes a silent part for dead; here these times are seconds (`IMPATIENT`), or the
rounds would take hours. Clearing is what a person would do with a failed run; runs that need it are counted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, timedelta
from itertools import pairwise
from pathlib import Path

import pandas as pd
import psutil

from evergreen import storage
from evergreen.client.airflow import AirflowClient, AirflowError
from evergreen.features import inputs
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.settings import SecretUrl, settings
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.window import midnight
from evergreen_local import processes, services
from evergreen_local.processes import ProcessIdentity
from measuring.stack import deliver, environment

NAME, ZONE = "flight_delay", "America/New_York"
DAG = f"{NAME}.features"
FIRST = date(2013, 1, 1)
TABLES = len(feature_spec(loader.load_spec(NAME)).tables)
AT_ONCE = 8  # days per backfill
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
STUCK_AFTER = timedelta(seconds=80)
MOST_CLEARS = 5  # of one run
CALM = 40.0  # seconds in which days still arrive, after the last kill and the last backfill
HANGS_AFTER = 17 * 60.0  # seconds without anything new: an arrival that got lost is told of again after 15 minutes

IMPATIENT = {
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "12",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
}

UNDISTURBED = """
import sys
from datetime import date
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.spec import loader

run_feature_pipeline(loader.load_spec("flight_delay"), list(map(date.fromisoformat, sys.argv[1:])))
"""


def said(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# What is killed, and comes back.


@dataclass
class Component:
    """A process that is started again whenever it ends."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    logs: Path
    identity: ProcessIdentity | None = None
    starts: int = 0

    def start(self) -> None:
        self.starts += 1
        log = self.logs / f"{self.name}-{self.starts:03}.log"
        self.identity = processes.start_process(self.command, self.environment, self.folder, log)

    @property
    def alive(self) -> bool:
        return self.identity is not None and processes.is_alive(self.identity)


class Machine(threading.Thread):
    """The components of a stack, as systemd or Kubernetes would keep them running."""

    def __init__(self, home: Path):
        super().__init__(daemon=True)
        self.home, self.logs = home, home / "logs"
        self.ended, self.lock = threading.Event(), threading.Lock()
        # Ports that no other stack looks for: what has died does not hold its port until it is back.
        spark = services.spark_service(home, services.free_port(25000 + os.getpid() % 5000))
        told = {
            "EVERGREEN_HOME": str(home),
            "EVERGREEN_SPARK": spark.url,
            "EVERGREEN_MLFLOW": f"sqlite:///{home}/mlflow.db",
            **services.spark_client_environment(home),
        }
        self.airflow = services.airflow_service(home, services.free_port(31000 + os.getpid() % 1000), told)
        environment = {**self.airflow.environment, **IMPATIENT}
        self.airflow.folder.mkdir(parents=True)
        program = self.airflow.command[0]
        subprocess.run([program, "db", "migrate"], env=environment, check=True, capture_output=True)
        self.components = {
            "spark": Component("spark", spark.command, spark.environment, spark.folder, self.logs),
            **{
                name: Component(name, (program, name), environment, self.airflow.folder, self.logs)
                for name in COMPONENTS
            },
        }

    def run(self) -> None:
        while not self.ended.wait(0.2):
            with self.lock:
                for component in self.components.values():
                    if not component.alive:
                        component.start()
                        self._end_orphaned_idle_workers()

    def stop(self) -> None:
        self.ended.set()
        self.join()
        processes.stop_home_processes(self.home, 5)

    def kill(self, kind: str, chance: random.Random) -> str:
        """Kill one of this kind; says which, or nothing if there is none at this moment."""
        with self.lock:
            if kind in ("worker", "task"):
                busy = sorted(self.workers("busy"), key=lambda worker: worker.pid)
                if not busy:
                    return ""
                worker = chance.choice(busy)
                title = _title(worker)
                task = worker.children()
                victims = [worker] if kind == "worker" else [*task, *_below(task)]
                return title.removeprefix("airflow worker -- LocalExecutor: ").strip() if _kill(victims) else ""
            component = self.components[kind.split()[0].lower()]
            if not component.alive:
                return ""
            assert component.identity is not None
            members = _session(component.identity.pid)
            if kind == "scheduler alone":
                busy = self.workers("busy")
                spared = {process.pid for process in [*busy, *_below(busy)]}
                members = [process for process in members if process.pid not in spared]
            _kill(members)
            return f"start {component.starts}, {len(members)} processes"

    def workers(self, state: str) -> list[psutil.Process]:
        """LocalExecutor's workers, who name themselves after what they do."""
        found = []
        for process in psutil.process_iter():
            title = _title(process)
            if title.startswith("airflow worker -- LocalExecutor:") and ("<idle>" in title) == (state == "idle"):
                with suppress(psutil.Error):
                    if process.environ().get("EVERGREEN_HOME") == str(self.home):
                        found.append(process)
        return found

    def _end_orphaned_idle_workers(self) -> None:
        scheduler = self.components["scheduler"].identity
        for worker in self.workers("idle"):
            with suppress(psutil.Error, ProcessLookupError):
                if scheduler is None or os.getsid(worker.pid) != scheduler.pid:
                    worker.kill()


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _below(those: Sequence[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in those:
        with suppress(psutil.Error):
            found += process.children(recursive=True)
    return found


def _session(leader: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _kill(those: Sequence[psutil.Process]) -> int:
    killed = 0
    for process in those:
        with suppress(psutil.Error):
            process.kill()
            killed += 1
    return killed


# What the kernel saw.

_CREATED, _MOVED_HERE = 0x100, 0x80
_ATTEMPT = re.compile(r"[0-9a-f]{32}")


@dataclass
class Attempt:
    """One folder in which a job stages a day."""

    day: str
    mark: str
    began: float
    files: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> float | None:
        """When the last of its files was there."""
        return max(self.files.values()) if len(self.files) == TABLES else None


@dataclass
class Seen:
    """What became of each day, in the order in which it happened."""

    published: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    attempts: dict[Path, Attempt] = field(default_factory=dict)
    kept: dict[tuple[str, str], float] = field(default_factory=dict)


class Witness(threading.Thread):
    """Counts, by inotify, how often each manifest was replaced and each day was computed."""

    def __init__(self, dataset: Path):
        super().__init__(daemon=True)
        self.manifests, self.staging, self.seen = dataset / "_manifests", dataset / "_staging", Seen()
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.inotify = self.libc.inotify_init1(os.O_CLOEXEC)
        self.watched: dict[int, Path] = {}
        for folder in (self.manifests, self.staging):
            folder.mkdir(parents=True)
            self._watch(folder)
        self.start()

    def run(self) -> None:
        while True:
            data, offset = os.read(self.inotify, 65536), 0
            while offset < len(data):
                watch, mask, _, length = struct.unpack_from("iIII", data, offset)
                name = data[offset + 16 : offset + 16 + length].rstrip(b"\0").decode()
                offset += 16 + length
                assert watch != -1, "the kernel has dropped events"
                if mask & (_CREATED | _MOVED_HERE):
                    self._happened(self.watched[watch], name, bool(mask & _MOVED_HERE))

    def _watch(self, folder: Path) -> None:
        watch = self.libc.inotify_add_watch(self.inotify, os.fsencode(folder), _CREATED | _MOVED_HERE)
        if watch >= 0:  # else it is gone already
            self.watched[watch] = folder

    def _happened(self, folder: Path, name: str, moved: bool) -> None:
        now = time.time()
        if folder == self.manifests:
            if moved and name.startswith("day="):
                mark = json.loads((folder / name).read_text())["fingerprint"]
                self.seen.published[name.removesuffix(".json")].append((now, mark))
        elif folder == self.staging:
            self._enter(folder / name)
        elif folder.parent == self.staging:
            self._staged(folder / name, now)
        else:
            self.seen.attempts[folder].files.setdefault(name, now)

    def _enter(self, folder: Path) -> None:
        """Watch a new folder, and see what was made in it before it was watched."""
        self._watch(folder)
        with suppress(FileNotFoundError):
            for path in sorted(folder.iterdir()):
                self._happened(folder, path.name, False)

    def _staged(self, folder: Path, now: float) -> None:
        day, mark = folder.parent.name[:14], folder.parent.name[15:]
        if folder.name == "cached":
            self.seen.kept.setdefault((day, mark), now)
        elif _ATTEMPT.fullmatch(folder.name) and folder not in self.seen.attempts:
            self.seen.attempts[folder] = Attempt(day, mark, now)
            self._enter(folder)


# What happens in the world meanwhile.


class World:
    """Delivers further days, and corrects delivered ones, whole files each."""

    def __init__(self, arriving: Sequence[date], chance: random.Random):
        self.arriving, self.chance = list(arriving), chance
        self.arrived: dict[date, float] = {}
        self.before: dict[date, bytes] = {}
        self.counts: Counter[str] = Counter()

    def move(self, asked: Sequence[date]) -> None:
        from evergreen_models.flight_delay.raw import deliver

        if self.before and self.chance.random() < 0.15:
            day = self.chance.choice(sorted(self.before))
            with storage.atomic_write(raw_files.raw_file("flights", day)) as scratch:
                scratch.write_bytes(self.before.pop(day))
            what = "put back"
        elif self.chance.random() < 0.2 and (there := sorted({*asked, *self.arrived} - self.before.keys())):
            day = self.chance.choice(there)
            file = raw_files.raw_file("flights", day)
            self.before[day] = file.read_bytes()
            with storage.atomic_write(file) as scratch:
                pd.read_parquet(file).iloc[1:].to_parquet(scratch, index=False, coerce_timestamps="us")
            what = "corrected"
        elif self.arriving:
            day = self.arriving.pop(0)
            deliver([day])
            self.arrived[day] = time.time()
            what = "arrived"
        else:
            return
        self.counts[what] += 1
        said(f"{day} {what}")


class Person:
    """Asks for backfills, one after the other, and clears what has failed."""

    def __init__(self, airflow: AirflowClient, machine: Machine, days: Sequence[date]):
        self.airflow, self.machine = airflow, machine
        self.parts = [days[first : first + AT_ONCE] for first in range(0, len(days), AT_ONCE)]
        self.asked, self.backfilling = 0, False
        self.clears: Counter[str] = Counter()
        self.restarts = 0
        self.reasons: Counter[str] = Counter()

    def look(self, more: bool) -> None:
        self.backfilling = self.airflow.active_backfill(DAG) is not None
        if more and self.asked < len(self.parts) and not self.backfilling:
            part = self.parts[self.asked]
            said(f"backfill of {part[0]} – {part[-1]}")
            first, last = (midnight(day, ZONE) for day in (part[0], part[-1]))
            self.airflow.create_backfill(DAG, first, last, "completed", AT_ONCE)
            self.asked, self.backfilling = self.asked + 1, True
        for run in self.airflow.dag_runs(DAG, state=["failed"]):
            self._clear(run["dag_run_id"])
        for instance in self.airflow.task_instances(DAG, states=["queued"]):
            if pd.Timestamp.now(UTC) - pd.Timestamp(instance["queued_when"]) > STUCK_AFTER:
                said(f"{instance['task_id']} of {instance['dag_run_id']} is stuck: restarting the scheduler")
                self.machine.kill("scheduler", random.Random(0))
                self.restarts += 1
                time.sleep(STUCK_AFTER.total_seconds() / 2)
                break

    def _clear(self, run_id: str) -> None:
        failed = [i for i in self.airflow.task_instances(DAG, run_id) if i["state"] == "failed"]
        refused = [line for i in failed for line in map(str, self.airflow.log(i)) if "InputsChangedError" in line]
        why = "its raw data changed meanwhile" if refused else "a task was killed too often"
        assert self.clears[run_id] < MOST_CLEARS, f"{run_id} still fails: {why}"
        said(f"clearing {run_id}, {[i['task_id'] for i in failed]}: {why}")
        self.airflow._request(
            "POST",
            f"/api/v2/dags/{DAG}/dagRuns/{run_id}/clear",
            json={"dry_run": False, "only_failed": False},
        )
        self.clears[run_id] += 1
        self.reasons[why] += 1

    @property
    def days(self) -> list[date]:
        """All that backfills were asked for."""
        return [day for part in self.parts[: self.asked] for day in part]

    def is_idle(self) -> bool:
        unfinished = self.airflow.dag_runs(DAG, state=["queued", "running", "failed"])
        return not unfinished and not self.airflow.active_backfill(DAG)


def every(chance: random.Random, shortest: float, longest: float) -> Iterator[bool]:
    """True whenever a random while has gone by since the last time."""
    due = time.monotonic() + chance.uniform(shortest, longest)
    while True:
        ripe = time.monotonic() >= due
        if ripe:
            due = time.monotonic() + chance.uniform(shortest, longest)
        yield ripe


KINDS = ("scheduler", "scheduler alone", "triggerer", "worker", "task", "Spark")


def killed(machine: Machine, world: World, person: Person, rounds: int, chance: random.Random) -> list[str]:
    """Kill until `rounds` are over, while life goes on, and for a while after; gives the kind of each kill."""
    kills: list[str] = []
    wishes: list[str] = []
    moves, looks = every(chance, 6, 14), every(chance, 2, 2)
    dues = every(chance, 4, 18)
    due = False
    calm_since = 0.0
    while not calm_since or time.monotonic() - calm_since < CALM:
        time.sleep(0.1)
        due = next(dues) or due
        if len(kills) == rounds:
            if not person.backfilling:
                calm_since = calm_since or time.monotonic()
        elif due:
            # Each kind equally often; one that is not there at this moment stays on the list.
            if len(wishes) < 2:
                wishes += chance.sample(KINDS, len(KINDS))
            for kind in list(wishes):
                if what := machine.kill(kind, chance):
                    wishes.remove(kind)
                    kills.append(kind)
                    said(f"kill {len(kills)}: {kind} ({what})")
                    due = False
                    break
        if next(moves):
            world.move(person.days)
        if next(looks):
            tolerantly(lambda: person.look(more=len(kills) < rounds))
    return kills


def tolerantly(act: Callable[[], None]) -> None:
    """A person whose click fails looks again."""
    try:
        act()
    except AirflowError as error:
        said(str(error))


def unpublished(days: Sequence[date]) -> list[str]:
    """Days that are not published with what their raw data, and their code, are now."""
    model = loader.load_spec(NAME)
    return [
        day
        for day, mark in inputs.compute_period_fingerprints(model, days).items()
        if not inputs.find_published_period(model, day, mark)
    ]


def settle(person: Person, witness: Witness, days: Sequence[date]) -> float:
    """Seconds until everything is published and nothing is under way."""
    began = time.monotonic()
    progress, since = -1, began
    while True:
        tolerantly(lambda: person.look(more=False))
        missing = unpublished(days)
        if not missing and person.is_idle():
            return time.monotonic() - began
        now = sum(map(len, witness.seen.published.values())) + sum(person.clears.values())
        if now != progress:
            progress, since = now, time.monotonic()
            said(f"settling: {len(missing)} days are not published yet {missing[:3]}")
        if time.monotonic() - since > HANGS_AFTER:
            for run in person.airflow.dag_runs(DAG, state=["queued", "running"]):
                states = {i["task_id"]: i["state"] for i in person.airflow.task_instances(DAG, run["dag_run_id"])}
                said(f"{run['dag_run_id']} {run['state']}: {states}")
            raise TimeoutError(f"nothing happens any more; not published: {missing}")
        time.sleep(2)


# What has come of it.


def faults(home: Path, clean: Path, days: Sequence[date], seen: Seen) -> list[str]:
    """What is lost, wrong or doubled; empty if all is well."""
    found = []
    for root in (home, clean):
        there = {path.stem for path in (root / f"lake/features/{NAME}/_manifests").glob("*.json")}
        if missing := {datasets.period_partition(day) for day in days} ^ there:
            found.append(f"{root.name}: missing or not delivered: {sorted(missing)}")
    for day in days:
        partition = datasets.period_partition(day)
        disturbed, plain = ((root / f"lake/features/{NAME}/_manifests/{partition}.json") for root in (home, clean))
        if disturbed.read_bytes() != plain.read_bytes():
            found.append(f"{partition}: another manifest than the plain process has made")
        for name, file in datasets.Manifest.from_json(disturbed.read_text()).files.items():
            path = home / f"lake/features/{NAME}" / file.path
            if not path.exists() or storage.file_sha256(path) != file.sha256:
                found.append(f"{partition}: {name} is not what the manifest says")
    for partition, history in seen.published.items():
        marks = [mark for _, mark in history]
        if any(one == next_ for one, next_ in pairwise(marks)):
            found.append(f"{partition}: published twice in a row from the same inputs")
    return found


def again(seen: Seen) -> Counter[str]:
    """Why days were computed once more, from inputs that an attempt had begun with before."""
    why: Counter[str] = Counter()
    by_inputs: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for attempt in seen.attempts.values():
        by_inputs[attempt.day, attempt.mark].append(attempt)
    for (day, mark), attempts in by_inputs.items():
        other = [at for at, now in seen.published[day] if not now.startswith(mark)]
        kept = seen.kept.get((day, mark), float("inf"))
        for number, attempt in enumerate(attempts[1:], 1):
            if kept < attempt.began:
                changed = any(kept < at < attempt.began for at in other)
                why["its raw data had been something else" if changed else "though it was built already"] += 1
            elif any(before.done and before.done > attempt.began for before in attempts[:number]):
                why["beside a twin that lived on"] += 1
            else:
                why["the attempt before was killed"] += 1
    return why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=180)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    scratch = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    home, clean = scratch / "killed", scratch / "plain"
    days = [FIRST + timedelta(n) for n in range(arguments.days)]
    asked = days[: len(days) * 2 // 3]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["EVERGREEN_HOME"] = str(home)
    settings.cache_clear()

    said(f"{len(asked)} days to backfill, {len(days) - len(asked)} to arrive, in {scratch}")
    deliver(home, len(asked))  # these are left to the backfills
    world = World(days[len(asked) :], chance)
    witness = Witness(home / f"lake/features/{NAME}")
    machine = Machine(home)
    began = time.monotonic()
    machine.start()
    try:
        while not machine.airflow.is_ready():
            time.sleep(1)
        airflow = AirflowClient(SecretUrl(machine.airflow.url))
        while airflow.dag(DAG) is None:
            time.sleep(1)
        airflow.set_dag_paused(DAG, False)
        said(f"the stack is up after {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        person = Person(airflow, machine, asked)
        kills = killed(machine, world, person, arguments.rounds, chance)
        delivered = sorted([*world.arrived, *person.days])
        killing = time.monotonic() - began
        settling = settle(person, witness, delivered)
        runs = airflow.dag_runs(DAG)
        tries = Counter(max(i["try_number"], 1) for i in airflow.task_instances(DAG, states=["success"]))
    finally:
        machine.stop()
    seen = witness.seen

    said("an undisturbed plain process makes the same days")
    shutil.copytree(home / "lake/raw", clean / "lake/raw")
    command = [sys.executable, "-c", UNDISTURBED, *map(str, delivered)]
    subprocess.run(command, env=environment(clean), check=True, capture_output=True)
    wrong = faults(home, clean, delivered, seen)
    left = list((home / f"lake/features/{NAME}/_staging").iterdir())

    print(f"\n{'kills':<48}{len(kills)}")
    for kind in KINDS:
        print(f"  {kind:<46}{kills.count(kind)}")
    print(f"{'days asked for by backfills':<48}{len(delivered) - world.counts['arrived']}")
    for what, count in sorted(world.counts.items()):
        print(f"{'days that ' + what if what == 'arrived' else 'days ' + what:<48}{count}")
    for kind, count in sorted(Counter(run["run_type"] for run in runs).items()):
        print(f"{'runs, ' + kind:<48}{count}")
    print(f"{'tasks that succeeded at try 1, 2, …':<48}{', '.join(str(tries[n]) for n in range(1, max(tries) + 1))}")
    waited = sorted(seen.published[datasets.period_partition(day)][0][0] - at for day, at in world.arrived.items())
    print(f"{'s from arrival to published, median, longest':<48}{waited[len(waited) // 2]:.0f}, {waited[-1]:.0f}")
    print(f"{'clears needed':<48}{sum(person.clears.values())}")
    for why, count in person.reasons.items():
        print(f"  {why:<46}{count}")
    print(f"{'restarts of the scheduler needed':<48}{person.restarts}")
    print(f"{'contents published':<48}{sum(map(len, seen.published.values()))}")
    print(f"{'computations of a day begun':<48}{len(seen.attempts)}")
    for why, count in again(seen).most_common():
        print(f"  {'again: ' + why:<46}{count}")
    print(f"{'folders of unfinished work left behind':<48}{len(left)}")
    print(f"{'wall s, while killing':<48}{killing:.0f}")
    print(f"{'wall s, until settled':<48}{settling:.0f}")
    print(f"{'verdict':<48}{'every day is there, once, equal' if not wrong else 'WRONG'}")
    if wrong:
        sys.exit("\n".join([*wrong, f"left in {scratch}"]))
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
