"""The input and the output of a training attempt: two JSON files, the same for a process and a pod.

Each job has a folder of its own, whose URI is all that an attempt is given::

    <jobs>/flight_delay/3f9a…/            named by the job's fingerprint, so never by the attempt
        job.json
        checkpoints/                       see evergreen.training.checkpoints
        output/<sha256>/model.ubj          the model's files, named by their content
        output/result.json                 written last: without it there is no model
        attempts/<id>.json                 see evergreen.training.attempt
"""

from __future__ import annotations

import math
import operator
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field

from evergreen import storage
from evergreen.spec import Frozen
from evergreen.spec.prediction_type import ForecastSeries
from evergreen.storage import Sha256, UPath

JOB_FILE, RESULT_FILE = "job.json", "result.json"
OUTPUT_FOLDER, CHECKPOINTS_FOLDER, ATTEMPTS_FOLDER = "output", "checkpoints", "attempts"

MAX_FILES = 1000
"""Of a model, and of a checkpoint."""
MAX_METRICS = 500
"""MLflow takes 1000 at once, those of the verdict and the costs among them."""

_MAX_METRIC_NAME_LENGTH = 250  # of MLflow, as the pattern
_METRIC_NAME_PATTERN = re.compile(r"[/\w.\- :]+")


def check_metric_name(name: str) -> str:
    """Return `name` if MLflow takes it as the name of a metric.

    Raises:
        ValueError: it does not.
    """
    if len(name) > _MAX_METRIC_NAME_LENGTH:
        raise ValueError(f"has a name of {len(name)} characters, and MLflow takes {_MAX_METRIC_NAME_LENGTH}")
    if not _METRIC_NAME_PATTERN.fullmatch(name):
        raise ValueError("has a name that MLflow refuses: use letters, digits, spaces, and any of _ - . : /")
    if posixpath.normpath(name) != name or name.startswith(("/", "..")) or name == ".":
        raise ValueError("has a name that MLflow refuses: it takes a `/` only between two parts")
    return name


def check_metric_value(value: Any) -> float:
    """Return `value` as a float.

    Raises:
        ValueError: it is no number, NaN or infinite.
    """
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"is {ascii(value)[:40]}, no finite number: leave it out where it is not known")
    return number


def check_model_file_name(name: str) -> str:
    """Return `name` if it can be the name of a model's file.

    Raises:
        ValueError: it is no file name, or that of the result.
    """
    if storage.check_file_name(name) == RESULT_FILE:
        raise ValueError(f"{RESULT_FILE} is the name of the result itself")
    return name


ModelFileName = Annotated[str, AfterValidator(check_model_file_name)]
MetricName = Annotated[str, AfterValidator(check_metric_name)]


def jobs_root(job_folder: UPath) -> UPath:
    """Return the folder of all jobs. Pods write below it, so nothing below it may be a link."""
    return job_folder.parent.parent


class JsonFile(Frozen):
    """A record that is stored as one JSON file of limited size, below `jobs_root`. A pod may have written it."""

    max_bytes: ClassVar[int] = 2**20

    def write(self, file: UPath | Path) -> None:
        """Write the record.

        Raises:
            ValueError: it is larger than `read` accepts.
        """
        data = (self.model_dump_json(indent=1) + "\n").encode()
        if len(data) > self.max_bytes:
            raise ValueError(f"{file.name} would have {len(data):,} bytes, and may have {self.max_bytes:,}")
        storage.put(file, data)

    @classmethod
    def read(cls, file: UPath, root: UPath) -> Self:
        """Return the record in `file`, which is below `root`.

        Raises:
            OSError: the file is missing, too large, or reached through a link.
            ValidationError: it holds something else.
        """
        return cls.model_validate_json(storage.read_untrusted(file, root, cls.max_bytes))


class Job(JsonFile):
    """One training job. Holds no credential, and nothing that differs between attempts."""

    max_bytes = 2**24

    model: str = Field(description="model folder whose train.fit runs")
    fingerprint: str = Field(description="of the data, code and parameters: identifies the job")
    training_data: str = Field(description="URI of the Parquet file to learn from")
    training_data_sha256: Sha256 = Field(description="of its content")
    training_data_size: int = Field(ge=0, description="in bytes")
    features: tuple[str, ...] = Field(min_length=1, description="input columns, in the model's order")
    label: str
    classes: tuple[str | int, ...] = Field(
        (), exclude_if=operator.not_, description="of the label, in the order in which the model returns probabilities"
    )
    quantiles: tuple[float, ...] = Field(
        (), exclude_if=operator.not_, description="that the model predicts, in the order in which it returns them"
    )
    query: str | None = Field(
        None, exclude_if=operator.not_, description="column of the training data: which rows are ranked together"
    )
    forecast: ForecastSeries | None = Field(
        None, exclude_if=operator.not_, description="columns of the training data: series and horizon; and the season"
    )
    weight: str | None = Field(
        None, exclude_if=operator.not_, description="column of the training data: how much each row counts"
    )
    target_transform: str | None = Field(
        None, description="what was done to the label before `fit` sees it; the model's file undoes it"
    )
    parameters: Mapping[str, Any]
    seed: int
    threads: int = Field(ge=1)
    gpu: int = Field(ge=0)
    processes: int = Field(ge=1)
    checkpoint_seconds: float = Field(gt=0)
    code_packages: tuple[str, ...] = Field((), description="packages of the user's own that the trainer may import")
    modules: Mapping[str, str] = Field(description="SHA-256 of each module of the trainer, and of files beside it")
    libraries: Mapping[str, str] = Field(description="version of each package that the model depends on")


class TrainingResult(JsonFile):
    """Written last, when every file of the model is complete."""

    fingerprint: str
    files: Mapping[ModelFileName, Sha256] = Field(
        min_length=1, max_length=MAX_FILES, description="SHA-256 of each file of the model"
    )
    metrics: Mapping[MetricName, Annotated[float, Field(allow_inf_nan=False)]] = Field(max_length=MAX_METRICS)
    environment: Mapping[str, str] = Field(description="versions of Python and of the job's libraries")
