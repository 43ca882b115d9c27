"""What a dead lineage server costs retrains under a real scheduler: two stacks, with OpenLineage off and on.

    python benchmarks/lineage_outage.py [--pairs 4] [--servers refuses,silent,responds] [--home FOLDER]

Two stacks over the same features are up at once. One has no transport of lineage; the other sends to a port of this
machine, where nothing listens (`refuses`), a server accepts and never responds (`silent`), or one responds. Transport
and provider have their own timeouts and retries, and the settings of Evergreen's stacks. A pair is the retrain as of
one date in both stacks at the same time, so that other work of the machine slows both. A home that is given has
features, which are kept there.

Wall seconds are those of the run by Airflow, and those in which none of its tasks ran: tasks that wait for a server, or
for a slot that it holds, would add to them. CPU is that of all processes of a stack until the pair has ended. Pairs
in which the runs ended differently, as by a gate on latency, are not compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from evergreen.client.airflow import AirflowClient, Json
from evergreen.periods import Calendar
from measuring.stack import Meter, environment, running

RETRAIN = "flight_delay.retrain"
CALENDAR = Calendar("1d", "America/New_York")
FIRST_DATE = "2013-02-22"
STEP_DAYS = 7
PATIENCE_S = 12  # after a run, for processes that wait for events
SERVERS = ("refuses", "silent", "responds")


class _Responder(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving(kind: str, port: int) -> Iterator[None]:
    """Have a lineage server of this kind at the port."""
    if kind == "refuses":
        yield
    elif kind == "silent":
        kept = []  # else connections are closed
        with socket.create_server(("127.0.0.1", port), backlog=128) as listener:

            def accept() -> None:
                with suppress(OSError):
                    while True:
                        kept.append(listener.accept()[0])

            threading.Thread(target=accept, daemon=True).start()
            yield
            listener.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()
    else:
        with ThreadingHTTPServer(("127.0.0.1", port), _Responder) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield
            server.shutdown()


@dataclass(frozen=True)
class Measured:
    """A retrain: its wall seconds, those of them before and between tasks, the CPU seconds of its stack in the pair."""

    wall: float
    between: float
    cpu: float
    states: dict[str, str]


def retrain(airflow: AirflowClient, as_of: str) -> tuple[float, float, dict[str, str]]:
    """Return the seconds of a run, those of them in which no task ran, and the states of its tasks."""
    airflow.trigger_dag_run(RETRAIN, as_of, {"as_of": as_of})
    run: Json = {"state": "queued"}
    while run["state"] in ("queued", "running"):
        time.sleep(1)
        run = airflow.dag_run(RETRAIN, as_of) or run
    tasks = airflow.task_instances(RETRAIN, as_of)
    states = {task["task_id"]: task["state"] for task in tasks}
    if run["state"] != "success":
        raise SystemExit(f"the retrain as of {as_of} failed: {states}")
    wall = seconds_of(run)
    return wall, wall - sum(seconds_of(task) for task in tasks if task["start_date"]), states  # one after the other


def seconds_of(item: Json) -> float:
    start, end = (datetime.fromisoformat(item[name]) for name in ("start_date", "end_date"))
    return (end - start).total_seconds()


def measure_pair(stacks: list[tuple[AirflowClient, Meter]], as_of: str) -> list[Measured]:
    """Retrain in both stacks at once."""
    before = [meter.cpu_seconds() for _, meter in stacks]
    with ThreadPoolExecutor(len(stacks)) as pool:
        runs = list(pool.map(lambda stack: retrain(stack[0], as_of), stacks))
    time.sleep(PATIENCE_S)
    cpu = [meter.cpu_seconds() - used for (_, meter), used in zip(stacks, before, strict=True)]
    return [Measured(wall, between, used, states) for (wall, between, states), used in zip(runs, cpu, strict=True)]


def build_features(home: Path, until: str) -> None:
    script = str(Path(__file__).parent / "retrain_on_drift.py")
    command = [sys.executable, script, "--only-features", "--home", str(home), "--until", until]
    subprocess.run(command, env=environment(home), check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4, help="of each server")
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--home", type=Path, help="which has features, or gets them")
    arguments = parser.parse_args()
    kinds = arguments.servers.split(",")
    dates = [CALENDAR.shift(FIRST_DATE, STEP_DAYS * number) for number in range(1 + arguments.pairs * len(kinds))]
    scratch = Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    made, homes = arguments.home or scratch / "made", [scratch / "off", scratch / "on"]
    build_features(made, CALENDAR.shift(dates[-1], -1))
    for home in homes:
        shutil.copytree(made, home, ignore=shutil.ignore_patterns("_staging", "training_sets", "models", "backtests"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    transport = json.dumps({"type": "http", "url": f"http://127.0.0.1:{port}"})
    measured: dict[str, list[list[Measured]]] = {kind: [] for kind in kinds}
    with (
        running(homes[0], RETRAIN) as off,
        running(homes[1], RETRAIN, AIRFLOW__OPENLINEAGE__TRANSPORT=transport) as on,
    ):
        stacks = [(airflow, Meter(home)) for airflow, home in zip((off, on), homes, strict=True)]
        for airflow, _ in stacks:
            airflow.set_dag_paused(RETRAIN, False)
        for number, (as_of, kind) in enumerate(zip(dates, ["responds", *kinds * arguments.pairs], strict=True)):
            with serving(kind, port):
                pair = measure_pair(stacks, as_of)
            figures = (f"{run.wall:.1f} s, {run.between:.1f} between tasks, {run.cpu:.1f} of CPU;" for run in pair)
            print(as_of, kind, *figures, flush=True)
            if number and pair[0].states == pair[1].states:  # the first has caches to fill
                measured[kind].append(pair)
    shutil.rmtree(scratch)

    print("\n| server | pairs | wall, s: off / on | on ÷ off | between tasks, s | CPU, s: off / on | on ÷ off |")
    print("|---|---|---|---|---|---|---|")
    for kind, pairs in measured.items():
        cells = [kind, str(len(pairs))]
        for name in ("wall", "between", "cpu"):
            values = [[getattr(run, name) for run in pair] for pair in pairs]
            cells.append(" / ".join(f"{median(part):.1f}" for part in zip(*values, strict=True)))
            if name != "between":
                cells.append(f"{median(on / off for off, on in values):.3f}")
        print(f"| {' | '.join(cells)} |")
    every = list(itertools.chain(*measured.values()))
    print(f"tasks of a run: {sorted({sum(state == 'success' for state in run.states.values()) for run, _ in every})}")


if __name__ == "__main__":
    main()
