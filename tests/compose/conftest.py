"""A stack of docker-compose.yaml from nothing, with a champion in it; removed in the end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from evergreen.settings import REPOSITORY
from measuring.compose import COMMAND, Stack, docker

ENV = REPOSITORY / ".env"


class TestedStack(Stack):
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


@pytest.fixture(scope="session")
def stack() -> Iterator[TestedStack]:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "version"], capture_output=True).returncode
    ):
        pytest.skip("there is no docker that answers")
    if volumes() or ENV.exists():
        pytest.skip("there is a stack on this machine already, or its .env: it is left alone")
    found = TestedStack()
    try:
        found.does("up")
        found.does("retrain")
        yield found
    finally:
        found.says("down")
        if left := volumes():
            docker("volume", "rm", *left)
        ENV.unlink(missing_ok=True)


def volumes() -> list[str]:
    return docker("volume", "ls", "--quiet", "--filter", "name=evergreen_").split()
