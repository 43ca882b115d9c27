"""Publishes features in a process of its own, with the Spark that its environment names, and prints their hashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Hashes = dict[str, dict[str, str]]
"""Content hashes, by model and period."""

_ROOT = Path(__file__).parents[2]


def start_build(periods: Mapping[str, Sequence[str]], **variables: str) -> subprocess.Popen[str]:
    """Start a process, the leader of its session, that publishes the features of `periods`, by model."""
    paths = os.pathsep.join([str(_ROOT / "include"), str(_ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(periods)],
        env={**os.environ, "PYTHONPATH": paths, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def build_features(periods: Mapping[str, Sequence[str]], **variables: str) -> Hashes:
    """Publish the features of `periods` in another process, and return their hashes."""
    process = start_build(periods, **variables)
    output, _ = process.communicate(timeout=600)
    # Without the lines of Java's traces, which hide what happened.
    assert process.returncode == 0, "\n".join(line for line in output.splitlines() if not line.startswith("\tat "))
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in output
    hashes: Hashes = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    return hashes


if __name__ == "__main__":
    from evergreen.features.pipeline import run_feature_pipeline
    from evergreen.spec import loader

    named = json.loads(sys.argv[1])
    print(json.dumps({name: run_feature_pipeline(loader.load_spec(name), named[name]) for name in named}))
