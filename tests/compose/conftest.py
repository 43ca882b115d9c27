"""A stack of docker-compose.yaml from nothing, with a champion in it; removed in the end."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from measuring import state
from measuring.compose import COMMAND, Stack, docker, remove, unfit

STATE = Path(str(state.__file__))
"""A program that prints what the stack holds, for `Stack.python`."""


def outward_address() -> str:
    """Of this machine, as others see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect(("192.0.2.1", 9))  # sends nothing
        address: str = route.getsockname()[0]
    return address


class LiveStack(Stack):
    """The stack, and what its command says."""

    def says(self, *words: str, **variables: str) -> tuple[int, str]:
        """Exit code and output of `deploy/compose` with these words."""
        done = subprocess.run(
            [COMMAND, *words],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def does(self, *words: str) -> str:
        code, said = self.says(*words)
        assert code == 0, said
        return said

    def retrain_during(self, fault: AbstractContextManager[None], task: str) -> tuple[int, str]:
        """Exit code and output of a retrain, with a fault from when this task of it runs, if it does, to the end."""
        with tempfile.TemporaryDirectory() as scratch:
            log = Path(scratch, "log")
            command = self.run("retrain", "flight_delay", log=log)
            with fault if self.reaches(task, command) else nullcontext():
                code = command.wait()
            return code, log.read_text()

    @contextmanager
    def read_only_store(self) -> Iterator[None]:
        """The store refuses to write until the context ends."""
        path = "-locationPrefix=/buckets/evergreen/"
        self._store_shell(f"fs.configure {path} -readOnly=true -apply")
        try:
            yield
        finally:
            self._store_shell(f"fs.configure {path} -delete -apply")

    def _store_shell(self, command: str) -> None:
        docker("exec", "--interactive", self.container("s3"), "weed", "shell", stdin=f"lock\n{command}\nunlock\n")


@pytest.fixture(scope="session")
def stack() -> Iterator[LiveStack]:
    if reason := unfit():
        pytest.skip(reason)
    found = LiveStack()
    try:
        found.does("up")
        found.does("retrain", "flight_delay")
        yield found
    finally:
        remove()
