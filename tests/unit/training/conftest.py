"""A trainer that hashes a value again and again: quick, and every step depends on all steps before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pytest

from evergreen.lake import fingerprints
from evergreen.training import Job

TRAINER = """
import hashlib, json, time

def fit(job, output, checkpoints):
    found = checkpoints.load_latest()
    step, value = (found.step, found.files["value"]) if found else (0, b"")
    if problem := job.parameters.get("problem"):
        exec(problem)
    while step < job.parameters["steps"]:
        step, value = step + 1, hashlib.sha256(value).digest()
        print(f"step {step}", flush=True)
        time.sleep(job.parameters.get("pause", 0))
        checkpoints.record_step(step, lambda: {"value": value})
    (output / "model.json").write_text(json.dumps(value.hex()))
    return {"steps": float(step)}
"""

Make = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Jobs of the model `hashing`, which other processes can import too."""
    sources = tmp_path / "sources"
    folder = sources / "evergreen_models" / "hashing"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "train.py").write_text(TRAINER)
    monkeypatch.setenv("PYTHONPATH", str(sources))
    models = import_module("evergreen_models")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder.parent)])
    invalidate_caches()

    def make(**fields: Any) -> Job:
        defaults: dict[str, Any] = dict(
            model="hashing",
            fingerprint="f" * 64,
            training_data="none.parquet",
            features=("a",),
            label="label",
            parameters={"steps": 5},
            seed=1,
            threads=1,
            gpu=0,
            processes=1,
            checkpoint_seconds=60,
            modules=fingerprints.code_of(("evergreen_models.hashing.train",), ()),
            libraries={},
        )
        return Job(**{**defaults, **fields})

    yield make
    for name in [name for name in sys.modules if name.startswith("evergreen_models.hashing")]:
        del sys.modules[name]
