"""A model whose trainer hashes a value repeatedly: fast, and every step depends on all steps before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evergreen.training import Job, runner

TRAINER = """
import hashlib, json, time

def fit(job, output, checkpoints):
    latest = checkpoints.load_latest()
    step, value = (latest.step, latest.files["value"]) if latest else (0, b"")
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
def make_job(tmp_path: Path, use_models: Callable[..., None]) -> Make:
    """Make jobs of the model `hashing`, which other processes can import too."""
    folder = tmp_path / "models" / "hashing"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "train.py").write_text(TRAINER)
    use_models(folder.parent)

    def make(**fields: Any) -> Job:
        defaults: dict[str, Any] = dict(
            model="hashing",
            fingerprint="f" * 64,
            training_data="none.parquet",
            training_data_sha256="0" * 64,
            training_data_size=0,
            features=("a",),
            label="label",
            parameters={"steps": 5},
            seed=1,
            threads=1,
            gpu=0,
            processes=1,
            checkpoint_seconds=60,
            modules=runner.training_code("hashing", ()),
            libraries={},
        )
        return Job(**{**defaults, **fields})

    return make
