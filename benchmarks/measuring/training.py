"""Training jobs to measure, on made-up data: numbers with gaps, categories, and a label that follows from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen import storage
from evergreen.lake import fingerprints
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.training import Job, candidates, runner
from evergreen.training.attempt import trainer_environment

NUMBERS = tuple(f"view__number_{n:02}" for n in range(24))
CATEGORIES = {"carrier": 16, "origin": 3, "dest": 105}
LABEL = "label"


def write_training_set(file: Path, rows: int, *, seed: int = 2013, row_group: int = 65_536) -> Path:
    """So many rows, drawn from `seed`, in row groups as those of a training set."""
    draw = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {}
    signal = np.zeros(rows)
    for n, name in enumerate(NUMBERS):
        values = draw.normal(size=rows)
        signal += values * (0.5 if n < 6 else 0.0)
        columns[name] = pa.array(values, mask=draw.random(rows) < 0.05)
    for name, kinds in CATEGORIES.items():
        codes = draw.integers(kinds, size=rows)
        signal += draw.normal(scale=0.3, size=kinds)[codes]
        columns[name] = pa.DictionaryArray.from_arrays(codes, [f"{name}{code}" for code in range(kinds)]).cast("string")
    columns[LABEL] = pa.array((signal + draw.logistic(size=rows) > 1.2).astype(np.int32))
    pq.write_table(pa.table(columns), file, row_group_size=row_group)
    return file


def job_of(name: str, train: Path, *, checkpoint_seconds: float, **parameters: object) -> Job:
    """A job of the model `name` as it ships, but for the parameters given, on the data in `train`."""
    model = loader.load_spec(name)
    categories = CATEGORIES if "torch" in model.training_libraries else {}  # trees are given numbers
    spoken_of = {**model.parameters, **parameters}
    return Job(
        model=name,
        fingerprint=fingerprints.compute_fingerprint([name, storage.file_sha256(train), spoken_of]),
        training_data=str(train),
        training_data_sha256=storage.file_sha256(train),
        training_data_size=train.stat().st_size,
        features=(*NUMBERS, *categories),
        label=LABEL,
        parameters=spoken_of,
        seed=model.seed,
        threads=model.resources.cpu,
        gpu=0,
        processes=1,
        checkpoint_seconds=checkpoint_seconds,
        modules=runner.training_code(name, model.code_packages, model.target_transform),
        libraries=candidates.pinned_library_versions(model),
    )


def start(job: Job, folder: Path) -> subprocess.Popen[str]:
    """An attempt at `job`, kept in `folder`, as the process backend starts it; what it prints is on its stdout."""
    file = folder / "job.json"
    job.write(storage.storage_path(str(file)))
    return subprocess.Popen(
        [str(settings().trainer), "-m", "evergreen.training", str(file)],
        env=trainer_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
