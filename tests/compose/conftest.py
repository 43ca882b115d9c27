"""A stack of docker-compose.yaml from nothing, with a champion in it; removed in the end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from measuring.compose import COMMAND, Stack, remove, unfit


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
    if reason := unfit():
        pytest.skip(reason)
    found = TestedStack()
    try:
        found.does("up")
        found.does("retrain")
        yield found
    finally:
        remove()
