"""`deploy/compose` before and around what Docker does: secrets, and what is refused in one sentence before any work."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evergreen.settings import REPOSITORY

pytestmark = pytest.mark.integration

# Docker as the script sees it: what it was asked is written down, and what it answers is set by files.
DOCKER = """#!/bin/bash
echo "$*" >>"$TOLD/asked"
case "$*" in
    'volume inspect'*) [[ -e $TOLD/volume ]] ;;
    'ps --all'*) echo migrate ;;
    'ps '*) [[ ! -e $TOLD/running ]] || echo running ;;
    wait*) cat "$TOLD/exit" 2>/dev/null || echo 0 ;;
    'compose up'*) [[ ! -e $TOLD/broken ]] ;;
    'compose logs'*) echo 'nothing was migrated: 1 fault' ;;
    version) [[ ! -e $TOLD/silent ]] ;;
esac
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with what the script needs, on ports that are free."""
    (tmp_path / "told").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "evergreen/deploy")
    docker = tmp_path / "bin/docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    return tmp_path / "evergreen"


@pytest.fixture
def run(folder: Path) -> Run:
    told = folder.parent / "told"

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}",
            "TOLD": str(told),
            "AIRFLOW_PORT": str(free_port()),
            "MLFLOW_PORT": str(free_port()),
            **variables,
        }
        return subprocess.run(
            [folder / "deploy/compose", *arguments],
            env={name: value for name, value in environment.items() if value},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return call


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def asked(folder: Path) -> list[str]:
    file = folder.parent / "told/asked"
    return file.read_text().splitlines() if file.exists() else []


def secrets(folder: Path) -> dict[str, str]:
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("evergreen: ")
    return last


def test_up_writes_secrets_that_nobody_can_guess_or_read(folder: Path, run: Run) -> None:
    done = run("up")
    assert done.returncode == 0, done.stderr
    found = secrets(folder)
    assert len(found) == len(set(found.values())) == 10
    assert min(map(len, found.values())) == 32
    assert len(found["AIRFLOW_FERNET_KEY"]) == 44
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert not [secret for secret in found.values() if secret in done.stdout + done.stderr]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".env.")] == []


def test_up_builds_starts_and_waits(folder: Path, run: Run) -> None:
    run("up")
    orders = [line for line in asked(folder) if line.startswith("compose") and "version" not in line]
    assert orders == [
        "compose build migrate",
        "compose up --detach --remove-orphans",
        "compose --profile cli run --rm --no-deps -T cli up",
    ]


def test_secrets_that_are_there_stay(folder: Path, run: Run) -> None:
    run("up")
    before = (folder / ".env").read_bytes()
    assert run("up").returncode == 0
    assert (folder / ".env").read_bytes() == before


def test_what_a_newer_version_needs_besides_is_added(folder: Path, run: Run) -> None:
    (folder / ".env").write_text("# mine\nREDIS_PASSWORD=kept\nAIRFLOW_PORT=18080")  # and no end of line
    assert "added to .env" in run("up").stdout
    found = secrets(folder)
    assert (found["REDIS_PASSWORD"], found["AIRFLOW_PORT"]) == ("kept", "18080")
    assert len(found) == 11
    assert (folder / ".env").read_text().startswith("# mine\n")


def test_lost_secrets_of_a_stack_that_is_there_are_not_replaced(folder: Path, run: Run) -> None:
    (folder.parent / "told/volume").touch()
    assert ".env with its passwords is gone: restore .env" in refused(run("up"))
    assert not (folder / ".env").exists()
    assert not [line for line in asked(folder) if line.startswith("compose up")]


@pytest.mark.parametrize("name", ["AIRFLOW_PORT", "MLFLOW_PORT"])
def test_a_taken_port_is_named_before_any_work(folder: Path, run: Run, taken: int, name: str) -> None:
    said = refused(run("up", **{name: str(taken)}))
    assert said == (
        f"evergreen: port {taken} of this machine is taken: stop what listens there, or name another one, "
        f"as {name}=18080 in .env"
    )
    assert not [line for line in asked(folder) if "build" in line]


def test_a_port_is_also_read_from_the_file(folder: Path, run: Run, taken: int) -> None:
    (folder / ".env").write_text(f"AIRFLOW_PORT=1\nAIRFLOW_PORT={taken}\n")
    assert f"port {taken} " in refused(run("up", AIRFLOW_PORT=""))


def test_a_port_that_is_taken_by_the_stack_itself_is_right(folder: Path, run: Run, taken: int) -> None:
    (folder.parent / "told/running").touch()
    assert run("up", AIRFLOW_PORT=str(taken)).returncode == 0


def test_no_number_is_no_port(run: Run) -> None:
    assert refused(run("up", MLFLOW_PORT="http")) == (
        "evergreen: MLFLOW_PORT is 'http', and should be a number: correct it in .env"
    )


def test_a_kubeconfig_that_is_not_there_is_named(run: Run) -> None:
    assert "TRAINING_KUBECONFIG is /nowhere, which is not there" in refused(run("up", TRAINING_KUBECONFIG="/nowhere"))


def test_a_silent_engine_is_named(folder: Path, run: Run) -> None:
    (folder.parent / "told/silent").touch()
    assert "the Docker engine does not answer" in refused(run("up"))
    assert not (folder / ".env").exists()


@pytest.mark.parametrize("how", ["broken", "exit"])
def test_what_migrate_said_is_shown_when_the_stack_does_not_come_up(folder: Path, run: Run, how: str) -> None:
    (folder.parent / "told" / how).write_text("1\n")
    done = run("up")
    assert "the stack did not come up: the lines above say why" in refused(done)
    assert "nothing was migrated: 1 fault" in done.stderr


def test_down_keeps_the_volumes(folder: Path, run: Run) -> None:
    run("up")
    assert "is kept in volumes" in run("down").stdout
    assert asked(folder)[-1] == "compose --profile cli down --remove-orphans"


def test_other_commands_run_in_the_stack(folder: Path, run: Run) -> None:
    run("up")
    assert "the stack is not up" in refused(run("retrain", "flight_delay"))
    run("doctor")
    assert asked(folder)[-1] == "compose --profile cli run --rm --no-deps -T cli doctor"
    (folder.parent / "told/running").touch()
    run("rollback", "flight_delay", "--reason", "two words")
    assert asked(folder)[-1].endswith("-T cli rollback flight_delay --reason two words")


@pytest.mark.parametrize("command", ["down", "doctor"])
def test_without_secrets_nothing_was_ever_started(run: Run, command: str) -> None:
    assert "there is no .env, so the stack was never started" in refused(run(command))
