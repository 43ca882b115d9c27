"""A stack of docker-compose.yaml from nothing, with a champion in it; removed in the end."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from measuring import state
from measuring.compose import COMMAND, Stack, docker, remove, unfit

DISK, KEEPER = "evergreen_evergreen", "tests-disk"
DISK_PAGES = 3 * 2**18  # of 4 KiB: the doctor wants 2 GiB free
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

    def retrain_during(self, fault: AbstractContextManager[None], task: str) -> str:
        """What a retrain that fails says, with a fault from when this task of it runs until it has failed."""
        with tempfile.TemporaryDirectory() as scratch:
            log = Path(scratch, "log")
            command = self.run("retrain", log=log)
            assert self.reaches(task, command), log.read_text()
            with fault:
                assert command.wait() != 0, log.read_text()
            return log.read_text()

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Nobody can write to the lake's volume until the context ends."""
        docker("exec", KEEPER, "sh", "-c", "cat /dev/zero >/lake/filler || true")
        try:
            yield
        finally:
            docker("exec", KEEPER, "rm", "/lake/filler")

    @contextmanager
    def read_only_s3(self) -> Iterator[None]:
        """The S3 server of these tests refuses to write until the context ends."""
        docker("exec", self.container("minio"), "sh", "-c", "echo PUT >/data/refuses")
        try:
            yield
        finally:
            docker("exec", self.container("minio"), "rm", "/data/refuses")


@pytest.fixture(scope="session")
def stack() -> Iterator[LiveStack]:
    """Its lake is on a disk so small that it can be filled."""
    if reason := unfit():
        pytest.skip(reason)
    found = LiveStack()
    try:
        options = ("type=tmpfs", "device=tmpfs", f"o=nr_blocks={DISK_PAGES},uid=10001,gid=10001")
        docker("volume", "create", *(word for option in options for word in ("--opt", option)), DISK)
        found.does("up")
        # What such a disk holds is gone when nobody uses it any more: this container does until the end.
        keeper = ["--detach", "--init", "--name", KEEPER, "--network", "none", "--volume", f"{DISK}:/lake"]
        docker("run", *keeper, "--entrypoint", "sleep", "evergreen:stack", "1d")
        found.does("retrain")
        yield found
    finally:
        subprocess.run(["docker", "rm", "--force", KEEPER], capture_output=True)
        remove()
