"""`deploy/compose` with a fake docker: secrets, orders, and what it refuses before any work."""

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

# A fake docker command: it records its arguments in a file, and files of a test set its responses.
DOCKER = """#!/bin/bash
echo "$*" >>"$STATE/calls"
case "$*" in
    'volume inspect'*) [[ -e $STATE/volume ]] ;;
    'ps --all'*) echo migrate ;;
    'ps '*) [[ ! -e $STATE/running ]] || echo running ;;
    inspect*) echo "exited $(cat "$STATE/exit" 2>/dev/null || echo 0)" ;;
    'compose up'*) [[ ! -e $STATE/broken ]] ;;
    'compose logs'*) echo 'nothing was migrated: 1 fault' ;;
    version) [[ ! -e $STATE/silent ]] ;;
esac
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with the files of the script, and the fake docker command."""
    (tmp_path / "state").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "evergreen/deploy")
    docker = tmp_path / "bin/docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    return tmp_path / "evergreen"


@pytest.fixture
def run(folder: Path) -> Run:
    state = folder.parent / "state"

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}",
            "STATE": str(state),
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
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def docker_calls(folder: Path) -> list[str]:
    file = folder.parent / "state/calls"
    return file.read_text().splitlines() if file.exists() else []


def secrets(folder: Path) -> dict[str, str]:
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def refusal(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 1
    last_line = process.stderr.strip().splitlines()[-1]
    assert last_line.startswith("evergreen: ")
    return last_line


def test_up_writes_random_secrets_readable_by_the_owner_only(folder: Path, run: Run) -> None:
    process = run("up")
    assert process.returncode == 0, process.stderr
    values = secrets(folder)
    assert len(values) == len(set(values.values())) == 12
    assert min(map(len, values.values())) == 32
    assert len(values["AIRFLOW_FERNET_KEY"]) == 44
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert not [secret for secret in values.values() if secret in process.stdout + process.stderr]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".env.")] == []


def test_up_builds_starts_and_waits(folder: Path, run: Run) -> None:
    run("up")
    orders = [line for line in docker_calls(folder) if line.startswith("compose") and "version" not in line]
    assert orders == [
        "compose build migrate",
        "compose up --detach --remove-orphans",
        "compose --profile cli run --rm --no-deps -T cli up",
    ]


def test_up_keeps_existing_secrets(folder: Path, run: Run) -> None:
    run("up")
    before = (folder / ".env").read_bytes()
    assert run("up").returncode == 0
    assert (folder / ".env").read_bytes() == before


def test_up_adds_the_secrets_of_a_newer_version(folder: Path, run: Run) -> None:
    (folder / ".env").write_text("# mine\nREDIS_PASSWORD=kept\nAIRFLOW_PORT=18080")  # no newline at the end
    assert "added to .env" in run("up").stdout
    values = secrets(folder)
    assert (values["REDIS_PASSWORD"], values["AIRFLOW_PORT"]) == ("kept", "18080")
    assert len(values) == 13
    assert (folder / ".env").read_text().startswith("# mine\n")


@pytest.mark.parametrize("command", ["down", "history"])
def test_other_commands_add_them_too(folder: Path, run: Run, command: str) -> None:
    (folder.parent / "state/running").touch()
    (folder / ".env").write_text("REDIS_PASSWORD=kept\n")
    process = run(command)
    assert process.returncode == 0, process.stderr
    assert secrets(folder)["REDIS_PASSWORD"] == "kept"
    assert len(secrets(folder)) == 12
    assert "added to .env" in process.stderr
    assert "added to .env" not in process.stdout, "what a command prints may be read by a program"


def test_up_does_not_replace_lost_secrets_of_a_stack(folder: Path, run: Run) -> None:
    (folder.parent / "state/volume").touch()
    assert ".env with its passwords is missing: restore .env" in refusal(run("up"))
    assert not (folder / ".env").exists()
    assert not [line for line in docker_calls(folder) if line.startswith("compose up")]


@pytest.mark.parametrize("name", ["AIRFLOW_PORT", "MLFLOW_PORT"])
def test_up_names_a_used_port_before_any_work(folder: Path, run: Run, used_port: int, name: str) -> None:
    message = refusal(run("up", **{name: str(used_port)}))
    assert message == (
        f"evergreen: port {used_port} of this machine is in use: stop the process that uses it, or set another one, "
        f"such as {name}=18080, in .env"
    )
    assert not [line for line in docker_calls(folder) if "build" in line]


def test_up_reads_ports_from_the_env_file(folder: Path, run: Run, used_port: int) -> None:
    (folder / ".env").write_text(f"AIRFLOW_PORT=1\nAIRFLOW_PORT={used_port}\n")
    assert f"port {used_port} " in refusal(run("up", AIRFLOW_PORT=""))


def test_up_accepts_a_port_used_by_the_stack_itself(folder: Path, run: Run, used_port: int) -> None:
    (folder.parent / "state/running").touch()
    assert run("up", AIRFLOW_PORT=str(used_port)).returncode == 0


def test_up_refuses_a_port_that_is_no_number(run: Run) -> None:
    assert refusal(run("up", MLFLOW_PORT="http")) == (
        "evergreen: MLFLOW_PORT is 'http', which is not a number: correct it in .env"
    )


def test_up_names_a_missing_kubeconfig(run: Run) -> None:
    message = refusal(run("up", TRAINING_KUBECONFIG="/nowhere"))
    assert "TRAINING_KUBECONFIG is /nowhere, which is missing or not readable" in message


def test_up_names_a_docker_engine_that_is_down(folder: Path, run: Run) -> None:
    (folder.parent / "state/silent").touch()
    assert "the Docker engine does not respond" in refusal(run("up"))
    assert not (folder / ".env").exists()


@pytest.mark.parametrize("reason", ["broken", "exit"])
def test_up_shows_the_log_of_migrate_if_it_fails(folder: Path, run: Run, reason: str) -> None:
    (folder.parent / "state" / reason).write_text("1\n")
    process = run("up")
    assert "the stack did not start: see the lines above" in refusal(process)
    assert "nothing was migrated: 1 fault" in process.stderr


def test_down_keeps_the_volumes(folder: Path, run: Run) -> None:
    run("up")
    assert "are kept in volumes" in run("down").stdout
    assert docker_calls(folder)[-1] == "compose --profile cli --profile monitoring down --remove-orphans"


def test_other_commands_run_in_the_stack(folder: Path, run: Run) -> None:
    run("up")
    assert "the stack is not running" in refusal(run("retrain", "flight_delay"))
    run("doctor")
    assert docker_calls(folder)[-1] == "compose --profile cli run --rm --no-deps -T cli doctor"
    (folder.parent / "state/running").touch()
    run("rollback", "flight_delay", "--reason", "two words")
    assert docker_calls(folder)[-1].endswith("-T cli rollback flight_delay --reason two words")


@pytest.mark.parametrize("command", ["down", "doctor"])
def test_commands_without_secrets_refuse(run: Run, command: str) -> None:
    assert "there is no .env, so the stack was never started" in refusal(run(command))
