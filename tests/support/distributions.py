"""Evergreen as it is released, and installed beside an Airflow."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installation:
    """An environment before and after Evergreen was installed into it."""

    python: Path
    before: dict[str, str]
    """Version of each package that Airflow brought."""
    after: dict[str, str]


def build_distributions(source: Path, out: Path, umask: int = 0o022) -> dict[str, bytes]:
    """Return the bytes of the wheel and the source distribution of `source`, by file name."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    subprocess.run(command, check=True, capture_output=True, umask=umask)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def run_uv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("uv"), "--no-progress", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def install(python: Path, *arguments: str | Path) -> None:
    done = run_uv("pip", "install", "--python", python, *arguments)
    assert done.returncode == 0, done.stderr


def list_packages(python: Path) -> dict[str, str]:
    lines = run_uv("pip", "list", "--format", "freeze", "--python", python).stdout.splitlines()
    return dict(line.split("==") for line in lines)


def run_outside_a_checkout(python: Path, home: Path, *arguments: str) -> str:
    """Run `python` in the folder `home`, without what this environment sets, and return what it prints."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    variables |= {
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "EVERGREEN_PROJECT": str(home),
    }
    done = subprocess.run([python, *arguments], cwd=home, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
