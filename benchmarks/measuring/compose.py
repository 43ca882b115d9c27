"""The stack of docker-compose.yaml, to measure and to disturb. Needs Docker, and root here to kill with -9."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evergreen.client.airflow import AirflowClient, AirflowError
from evergreen.settings import REPOSITORY, SecretUrl

SERVICES = (
    *("postgres", "redis", "s3", "mlflow", "spark"),
    *("api-server", "scheduler", "dag-processor", "triggerer"),
)
PORTS = {"AIRFLOW_PORT": 8080, "MLFLOW_PORT": 5000}
"""Variables that name a port of this machine, and what it is without them."""
ENV = REPOSITORY / ".env"
COMMAND = str(REPOSITORY / "deploy" / "compose")


class DockerError(Exception):
    """What it says on standard error."""


class Stack:
    """Its containers by the names of their services."""

    def __init__(self) -> None:
        self._asked: AirflowClient | None = None

    def run(self, *words: str, log: Path) -> subprocess.Popen[str]:
        """`deploy/compose` with these words, in the background."""
        with log.open("a") as stream:
            return subprocess.Popen([COMMAND, *words], stdout=stream, stderr=subprocess.STDOUT, text=True)

    def container(self, service: str, running: bool = True) -> str:
        labels = ["com.docker.compose.project=evergreen", f"com.docker.compose.service={service}"]
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        return docker("ps", "--quiet", *([] if running else ["--all"]), *filters).split("\n")[0]

    def secrets(self) -> Mapping[str, str]:
        """What `.env` holds."""
        lines = ENV.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def airflow(self) -> AirflowClient:
        """As its one user, from this machine."""
        password, port = self.secrets()["AIRFLOW_PASSWORD"], self.port("AIRFLOW_PORT")
        return AirflowClient(SecretUrl(f"http://admin:{password}@localhost:{port}"))

    def port(self, variable: str) -> int:
        return int(os.environ.get(variable) or self.secrets().get(variable) or PORTS[variable])

    def running(self, task: str) -> bool:
        """Whether a task of this name is running, in whatever run."""
        try:
            self._asked = self._asked or self.airflow()  # one login for many looks
            found = self._asked.task_instances("~", states=["running"])
        except AirflowError:
            self._asked = None
            return False
        return any(instance["task_id"] == task for instance in found)

    def reaches(self, task: str, command: subprocess.Popen[str]) -> bool:
        """Wait until a task of this name is running; False if `command`, which should bring it about, ended before."""
        while command.poll() is None:
            if self.running(task):
                return True
            time.sleep(0.2)  # a task may be over within a second
        return False

    def stop(self, service: str, seconds: float) -> None:
        self._away(service, seconds, "stop", "start")

    def kill(self, service: str) -> None:
        """Kill -9 from outside, as the kernel does it: the engine restarts it, as after every death."""
        container = self.container(service)
        os.kill(int(docker("inspect", "--format", "{{.State.Pid}}", container)), signal.SIGKILL)

    def pause(self, service: str, seconds: float) -> None:
        """It refuses nothing, and answers nothing."""
        self._away(service, seconds, "pause", "unpause")

    def _away(self, service: str, seconds: float, leave: str, come_back: str) -> None:
        container = self.container(service)
        docker(leave, container)
        time.sleep(seconds)
        docker(come_back, container)

    def is_up(self, service: str) -> bool:
        return bool(self.container(service))

    def python(self, program: str, service: str = "scheduler") -> Any:
        """What a Python program prints, as JSON, where the tasks run."""
        return json.loads(docker("exec", "--interactive", self.container(service), "python", "-", stdin=program))

    def memory(self) -> Mapping[str, float]:
        """MiB, by service."""
        lines = docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}").splitlines()
        found: dict[str, float] = {}
        for line in lines:
            name, amount = line.split()[:2]
            if name.startswith("evergreen"):
                service = re.split(r"[-_]", name, maxsplit=1)[1]
                service = re.sub(r"[-_](\d+|(tmp|run[-_]).*)$", "", service)
                found[service] = found.get(service, 0.0) + _mib(amount)
        return found


def unfit() -> str:
    """Why there should be no stack made and removed here; empty if there may."""
    if shutil.which("docker") is None or subprocess.run(["docker", "version"], capture_output=True).returncode:
        return "there is no docker that answers"
    if volumes() or ENV.exists():
        return "there is a stack on this machine already, or its .env: it is left alone"
    return ""


def remove() -> None:
    """Stop the stack, and lose what it holds."""
    subprocess.run([COMMAND, "down"], capture_output=True)
    if left := volumes():
        docker("volume", "rm", *left)
    ENV.unlink(missing_ok=True)


def volumes() -> list[str]:
    return docker("volume", "ls", "--quiet", "--filter", "name=evergreen_").split()


def docker(*words: str, stdin: str | None = None) -> str:
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise DockerError(f"docker {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


_UNITS = {"kB": 1e3, "KiB": 2**10, "MB": 1e6, "MiB": 2**20, "GB": 1e9, "GiB": 2**30, "B": 1}


def _mib(amount: str) -> float:
    unit = next(unit for unit in _UNITS if amount.endswith(unit))
    return float(amount.removesuffix(unit)) * _UNITS[unit] / 2**20
