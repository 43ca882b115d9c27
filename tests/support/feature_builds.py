"""Publishes features in a process of its own, with the Spark that its environment names, and prints their hashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def build_command(model: str, periods: Sequence[str]) -> list[str]:
    """Return the command of a process that publishes the features of `periods`."""
    return [sys.executable, __file__, model, *periods]


def build_environment(**variables: str) -> dict[str, str]:
    """Return the environment of that process, with these variables."""
    paths = os.pathsep.join([str(_ROOT / "include"), str(_ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, **variables}


def build_features(model: str, periods: Sequence[str], variables: Mapping[str, str]) -> dict[str, str]:
    """Publish the features of `periods` in another process, and return the content hash of each period."""
    process = subprocess.run(
        build_command(model, periods), env=build_environment(**variables), capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-5000:]
    hashes: dict[str, str] = json.loads(process.stdout.splitlines()[-1])
    return hashes


if __name__ == "__main__":
    from evergreen.features.pipeline import run_feature_pipeline
    from evergreen.spec import loader

    _, model_name, *named_periods = sys.argv
    print(json.dumps(run_feature_pipeline(loader.load_spec(model_name), named_periods)))
