"""What a training attempt is given, and what it leaves: two JSON files, the same for a process and a pod.

A job lies in a folder of its own, whose URI is all that an attempt is told::

    <jobs>/flight_delay/3f9a…/            named by the job's fingerprint, so never by the attempt
        job.json
        checkpoints/                       see evergreen.training.checkpoints
        output/<sha256>/model.ubj          the model's files, named by their content
        output/result.json                 written last: without it there is no model
        attempts/<id>.json                 see evergreen.training.attempt
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from evergreen import storage
from evergreen.spec import Frozen
from evergreen.storage import UPath

JOB_FILE, RESULT_FILE = "job.json", "result.json"
OUTPUT_FOLDER, CHECKPOINTS_FOLDER, ATTEMPTS_FOLDER = "output", "checkpoints", "attempts"


class _JsonFile(Frozen):
    def write(self, file: UPath | Path) -> None:
        storage.put(file, (self.model_dump_json(indent=1) + "\n").encode())

    @classmethod
    def read(cls, file: UPath | Path) -> Self:
        return cls.model_validate_json(file.read_bytes())


class Job(_JsonFile):
    """One training job. Holds no credential, and nothing that differs between attempts."""

    model: str = Field(description="folder under models/ whose train.fit runs")
    fingerprint: str = Field(description="of the data, code and parameters: what this job is the only one of")
    training_data: str = Field(description="URI of the Parquet file to learn from")
    features: tuple[str, ...] = Field(min_length=1, description="input columns, in the model's order")
    label: str
    parameters: Mapping[str, Any]
    seed: int
    threads: int = Field(ge=1)
    gpu: int = Field(ge=0)
    processes: int = Field(ge=1)
    checkpoint_seconds: float = Field(gt=0)
    code_packages: tuple[str, ...] = Field((), description="packages of the user's own that the trainer may import")
    modules: Mapping[str, str] = Field(description="SHA-256 of each module of the trainer, and of files beside it")
    libraries: Mapping[str, str] = Field(description="version of each package that the model depends on")


class TrainingResult(_JsonFile):
    """Left last, when every file of the model is complete: without it there is no model."""

    fingerprint: str
    files: Mapping[str, str] = Field(min_length=1, description="SHA-256 of each file of the model")
    metrics: Mapping[str, float]
    environment: Mapping[str, str] = Field(description="versions of what it was trained with")
