"""What a training process is given, and what it leaves: two JSON files, the same for a process and a pod."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

RESULT = "result.json"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, file: Path) -> None:
        file.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        return cls.model_validate_json(file.read_text())


class Job(_File):
    """One training job. Holds no credential, and nothing that differs between attempts."""

    model: str = Field(description="folder under models/ whose train.fit runs")
    fingerprint: str = Field(description="of the data, code and parameters: what this job is the only one of")
    train: str = Field(description="URI of the Parquet file to learn from")
    features: tuple[str, ...] = Field(min_length=1, description="input columns, in the model's order")
    label: str
    parameters: Mapping[str, Any]
    seed: int
    threads: int = Field(ge=1)
    gpu: int = Field(ge=0)


class Result(_File):
    """Left last, when every file of the model is complete: without it there is no model."""

    fingerprint: str
    files: Mapping[str, str] = Field(min_length=1, description="SHA-256 of each file of the model")
    metrics: Mapping[str, float]
    environment: Mapping[str, str] = Field(description="versions of what it was trained with")
