"""`deploy/cluster` with a fake kubectl: secrets, orders, and what it refuses before any work."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.settings import REPOSITORY

pytestmark = pytest.mark.integration

# A fake kubectl: it records its arguments and what it reads in files, and files of a test set its responses.
KUBECTL = """#!/bin/bash
echo "$*" >>"$STATE/calls"
case "$*" in
    version) [[ ! -e $STATE/silent ]] ;;
    *'get secret login'*) [[ -e $STATE/secrets ]] ;;
    *'get persistentvolumeclaims'*) [[ ! -e $STATE/volumes ]] || echo persistentvolumeclaim/data-postgres-0 ;;
    *'create --filename -') cat >"$STATE/secrets" ;;
    *'apply --filename -') cat >>"$STATE/applied" ;;
    *'rollout status'*) [[ "$*" != *"$(cat "$STATE/broken" 2>/dev/null || echo nothing)"* ]] ;;
esac
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def run(tmp_path: Path, state: Path) -> Run:
    (tmp_path / "bin").mkdir()
    kubectl = tmp_path / "bin/kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{kubectl.parent}:{os.environ['PATH']}"
        return subprocess.run(
            [REPOSITORY / "deploy/cluster", *arguments],
            env={"PATH": path, "STATE": str(state), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return call


def calls(state: Path) -> str:
    file = state / "calls"
    return file.read_text() if file.exists() else ""


def test_up_writes_random_secrets_once_and_shows_none(run: Run, state: Path) -> None:
    process = run("up")
    assert process.returncode == 0, process.stderr
    written = (state / "secrets").read_text()
    values = re.findall(r'(?:PASSWORD|SECRET\w*|KEY|AUTH|secretKey"?): "([^"]*)"', written)
    assert len(set(values)) >= 10
    assert min(map(len, values)) >= 32
    assert not [value for value in values if value in process.stdout + process.stderr + calls(state)]
    assert run("up").returncode == 0
    assert (state / "secrets").read_text() == written


def test_up_applies_the_image_that_is_named(run: Run, state: Path) -> None:
    assert run("up", IMAGE="registry.example.com/ml/evergreen:1", NAMESPACE="trial").returncode == 0
    applied = (state / "applied").read_text()
    assert applied.count("image: registry.example.com/ml/evergreen:1") == 2
    assert "image: evergreen:stack" not in applied
    assert "--namespace trial " in calls(state)
    assert "--namespace evergreen " not in calls(state)


def test_up_refuses_volumes_whose_secrets_are_lost(run: Run, state: Path) -> None:
    (state / "volumes").touch()
    process = run("up")
    assert process.returncode == 1
    assert "its secrets are missing: restore them" in process.stderr
    assert not (state / "applied").exists()


def test_up_names_the_part_that_does_not_start(run: Run, state: Path) -> None:
    (state / "broken").write_text("deployment/scheduler")
    process = run("up")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("evergreen: scheduler did not become ready")


@pytest.mark.parametrize("command", ["up", "down", "doctor"])
def test_needs_a_cluster(run: Run, state: Path, command: str) -> None:
    (state / "silent").touch()
    process = run(command)
    assert process.returncode == 1
    assert "the cluster does not respond" in process.stderr
    assert calls(state) == "version\n"


def test_commands_need_a_stack(run: Run) -> None:
    process = run("doctor")
    assert process.returncode == 1
    assert "run 'make up STACK=kubernetes'" in process.stderr


def test_commands_run_in_a_pod(run: Run, state: Path) -> None:
    (state / "secrets").touch()
    assert run("history", "flight_delay").returncode == 0
    assert calls(state).strip().endswith("-- evergreen history flight_delay")


def test_down_keeps_volumes_and_secrets(run: Run, state: Path) -> None:
    assert run("down").returncode == 0
    deleted = "\n".join(line for line in calls(state).splitlines() if " delete " in line)
    assert "deployment,statefulset,job" in deleted
    assert not re.search("secret|volume|namespace evergreen delete namespace", deleted.replace("--namespace", ""))
