"""`deploy/compose up` against a docker command that reports one state of the migration after the other."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from evergreen.settings import REPOSITORY

DOCKER = r"""#!/bin/bash
# Takes the next line of `states` at each inspect, and writes down every call.
echo "$*" >>"$FOLDER/calls"
case "$1" in
    ps) echo container ;;
    inspect) head -n 1 "$FOLDER/states"; sed -i 1d "$FOLDER/states" ;;
    volume) exit 1 ;; # no earlier stack
    wait) sleep 60 ;; # as for a container that has ended
esac
"""


def bring_up(folder: Path, *states: str) -> tuple[int, str]:
    """Exit code of `deploy/compose up`, and the calls of docker, while the migration goes through these states."""
    (folder / "deploy").mkdir()
    shutil.copy(REPOSITORY / "deploy" / "compose", folder / "deploy" / "compose")
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "FOLDER": str(folder)}
    done = subprocess.run([folder / "deploy" / "compose", "up"], env=environment, capture_output=True, timeout=20)
    return done.returncode, (folder / "calls").read_text()


def test_up_waits_for_the_migration_and_then_for_the_services(tmp_path: Path) -> None:
    code, calls = bring_up(tmp_path, "created 0", "running 0", "exited 0")
    assert code == 0
    assert calls.count("\ninspect ") == 3
    assert calls.rstrip().endswith("cli up")


@pytest.mark.parametrize("state", ["exited 1", "dead 137"])
def test_failed_migration_is_shown_and_nothing_is_awaited(tmp_path: Path, state: str) -> None:
    code, calls = bring_up(tmp_path, state)
    assert code == 1
    assert "compose logs --tail 20 migrate" in calls
    assert "cli up" not in calls
