"""The stack of docker-compose.yaml: how soon it is at work, what it takes, and retrains that lose a server meanwhile.

    python benchmarks/stack.py [--faults postgres redis ...] [--embedded 8]

Begins with a stack of its own, from nothing, and removes it at the end; refuses where one is there already. Each fault
strikes while a task of a retrain runs; the retrain is asked for by `deploy/compose retrain`, and asked for again if it
fails, as a person would. Each round brings the model a week further. A champion is rolled back, too, before the first
fault. In the end the first weeks are made again by the embedded engines, which nobody disturbs, and compared.

    hit       whether the task was running when the fault struck
    asked     how often the command was given: 1 if the run ended right by itself
    promoted  champions made in this round
    aliases   whether those of MLflow were what the ledger says
    staged    datasets that were left half made in the lake, for the next who wants them
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evergreen.client.airflow import AirflowError
from measuring.compose import SERVICES, DockerError, Stack, docker, remove, unfit
from measuring.stack import environment

STATE = Path(__file__).parent / "measuring" / "state.py"
GIVE_UP = 4
MODEL = "flight_delay"


@dataclass(frozen=True)
class Fault:
    service: str
    what: str
    task: str
    strike: Callable[[Stack], None]


def stopped(service: str, task: str, seconds: float = 20) -> Fault:
    return Fault(service, f"stopped, {seconds:.0f} s", task, lambda stack: stack.stop(service, seconds))


def killed(service: str, task: str) -> Fault:
    return Fault(service, "killed -9", task, lambda stack: stack.kill(service))


def silent(service: str, task: str, seconds: float = 60) -> Fault:
    return Fault(service, f"silent, {seconds:.0f} s", task, lambda stack: stack.pause(service, seconds))


def emptied() -> Fault:
    command = ("sh", "-c", "redis-cli flushall")
    return Fault("redis", "emptied", "train", lambda stack: docker("exec", stack.container("redis"), *command) and None)


FAULTS = (
    *(stopped("postgres", "training_set"), killed("postgres", "promote"), stopped("postgres", "train", 60)),
    *(stopped("redis", "materialize"), killed("redis", "materialize"), emptied()),
    *(stopped("s3", "judge"), killed("s3", "train"), stopped("s3", "promote", 60)),
    *(stopped("mlflow", "evaluate"), killed("mlflow", "register"), silent("mlflow", "register")),
    *(stopped("spark", "build"), killed("spark", "build")),
    *(stopped("api-server", "train"), killed("api-server", "judge"), silent("postgres", "judge")),
    *(stopped("scheduler", "train"), killed("scheduler", "training_set"), killed("scheduler", "promote")),
    *(stopped("dag-processor", "train"), killed("dag-processor", "materialize")),
    *(stopped("triggerer", "train"), killed("triggerer", "train")),
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--faults", nargs="*", default=list(SERVICES), help="only those of these services")
    arguments.add_argument("--embedded", type=int, default=8, help="weeks to make again; 0 for none")
    asked = arguments.parse_args()
    if reason := unfit():
        sys.exit(f"{reason}, and nothing is measured")
    stack = Stack()
    with tempfile.TemporaryDirectory() as scratch, watched(stack) as peak:
        log = Path(scratch, "log")
        try:
            measured(stack, asked.faults, log)
            there = stack.python(STATE.read_text())
        except BaseException:
            print(log.read_text()[-3000:], file=sys.stderr)
            raise
        print(f"memory: {peak['all'] / 1024:.2f} GiB at most, of all containers together")
        for name in sorted(peak):
            print(f"  {name:28} {peak[name]:6.0f} MiB")
        if asked.embedded:
            compare(embedded(Path(scratch, "home"), asked.embedded), there)
    remove()


def measured(stack: Stack, services: Sequence[str], log: Path) -> None:
    """Bring it up and strike."""
    begun = time.time()
    if stack.run("up", log=log).wait():
        raise SystemExit("the stack did not come up")
    up = time.time() - begun
    retrain = stack.run("retrain", MODEL, log=log)
    first = first_task(stack) - begun
    if retrain.wait():
        raise SystemExit("the first retrain failed")
    print(f"up after {up:.0f} s, the first task after {first:.0f} s", flush=True)
    for words in (("rollback", MODEL), ("release", MODEL, "2")):
        assert stack.run(*words, "--reason", "the benchmark", log=log).wait() == 0
    state = stack.python(STATE.read_text())
    row("service", "fault", "while", "hit", "asked", "seconds", "promoted", "aliases", "staged")
    faults = [Fault("none", "none", "train", lambda _: None)]
    faults += [fault for fault in FAULTS if fault.service in services]
    for fault in faults:
        before = state["promoted"]
        begun = time.time()
        hit, asked = struck(stack, fault, log)
        seconds = time.time() - begun
        wait_until_whole(stack)
        state = stack.python(STATE.read_text())
        new = state["promoted"][len(before) :]
        row(
            fault.service, fault.what, fault.task, "yes" if hit else "no", str(asked), f"{seconds:.0f}",
            str(len(new)), str(state["aliases"]), str(state["staged"]),
        )  # fmt: skip
        assert len(set(state["promoted"])) == len(state["promoted"]), "promoted twice"


def struck(stack: Stack, fault: Fault, log: Path) -> tuple[bool, int]:
    """Have the model brought a week further, with the fault; whether it struck, and how often it was asked for."""
    command = stack.run("retrain", MODEL, log=log)
    if hit := stack.reaches(fault.task, command):
        fault.strike(stack)
    asked = 1
    while command.wait():
        if asked == GIVE_UP:
            raise SystemExit(f"{fault.service} {fault.what}: the retrain fails however often it is asked for")
        wait_until_whole(stack)
        command = stack.run("retrain", MODEL, log=log)
        asked += 1
    return hit, asked


def first_task(stack: Stack) -> float:
    """When the first task began."""
    while True:
        try:
            begun = [i["start_date"] for i in stack.airflow().task_instances("~") if i["start_date"]]
        except AirflowError:
            begun = []
        if begun:
            return datetime.fromisoformat(min(begun)).timestamp()
        time.sleep(0.5)


def wait_until_whole(stack: Stack) -> None:
    deadline = time.time() + 120
    while missing := [service for service in SERVICES if not stack.is_up(service)]:
        if time.time() > deadline:
            raise SystemExit(f"{', '.join(missing)} did not come back")
        time.sleep(1)


@contextmanager
def watched(stack: Stack) -> Iterator[dict[str, float]]:
    """Peak memory in MiB, by container and of all at one moment."""
    peak: dict[str, float] = {"all": 0.0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(5):
            try:
                now = dict(stack.memory())
            except DockerError:  # one of them is going away at this moment
                continue
            now["all"] = sum(now.values())
            peak.update({name: max(amount, peak.get(name, 0.0)) for name, amount in now.items()})

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def embedded(home: Path, weeks: int) -> Any:
    """The same weeks on the engines of this machine, undisturbed."""
    command = str(Path(sys.executable).parent / "evergreen")
    run = {"env": environment(home), "check": True, "capture_output": True, "text": True}
    try:
        subprocess.run([command, "retrain", MODEL], **run)
        for words in (("rollback", MODEL), ("release", MODEL, "2")):
            subprocess.run([command, *words, "--reason", "the benchmark"], **run)
        for _ in range(weeks - 2):
            subprocess.run([command, "retrain", MODEL], **run)
        addresses = json.loads((home / "stack.json").read_text())["services"]
        run["env"] = environment(home, EVERGREEN_MLFLOW=addresses["mlflow"]["url"])
        return json.loads(subprocess.run([sys.executable, str(STATE)], **run).stdout)
    finally:
        subprocess.run([command, "down"], env=environment(home), capture_output=True)


def compare(here: Any, there: Any) -> None:
    assert there["jobs"] == len(there["models"]), "a model is half there"
    for what in ("contents", "predictions", "verdicts"):
        differ = sorted(name for name, mine in here[what].items() if there[what].get(name) != mine)
        print(f"{what}: {len(here[what])} of the embedded engines, {len(differ)} differ in the stack {differ[:5]}")
    count = len(here["promoted"])
    same = "the same" if here["promoted"] == there["promoted"][:count] else "others"
    print(f"champions: {count} of the embedded engines, a rollback among them; {same} in the stack")


def row(*cells: str) -> None:
    widths = (14, 14, 13, 5, 6, 8, 9, 9, 7)
    print("".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)), flush=True)


if __name__ == "__main__":
    main()
