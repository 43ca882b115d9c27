"""Runs a model's trainer and stores what it wrote: first the files, named by their content, then the result."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from evergreen import storage
from evergreen.errors import TrainingError
from evergreen.lake import fingerprints
from evergreen.storage import UPath
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import OUTPUT_FOLDER, RESULT_FILE, Job, TrainingResult
from evergreen.training.outcome import CodeMismatchError
from evergreen.training.volumes import identify_full_volume

log = logging.getLogger(__name__)


def run_training(job: Job, folder: UPath, checkpoints: Checkpoints) -> None:
    """Train the job in `folder`, unless its model is complete. Of several processes, only the writer stores the model.

    Raises:
        CodeMismatchError: the code or libraries here differ from the job's.
        TrainingPreempted: see `Checkpoints.record_step`; also whatever the trainer raises.
    """
    versions = _check_code_and_libraries(job)
    if is_training_complete(job.fingerprint, folder):
        log.info("this job is complete already")
        return
    with tempfile.TemporaryDirectory() as scratch, identify_full_volume():
        output = Path(scratch)
        metrics = import_module(f"evergreen_models.{job.model}.train").fit(job, output, checkpoints)
        checkpoints.flush()
        if checkpoints.is_writer:
            files = {file.name: storage.file_sha256(file) for file in sorted(output.iterdir())}
            for name, digest in files.items():
                storage.upload(output / name, folder / OUTPUT_FOLDER / digest / name)
            result = TrainingResult(fingerprint=job.fingerprint, files=files, metrics=metrics, environment=versions)
            result.write(folder / OUTPUT_FOLDER / RESULT_FILE)


def training_code(model_name: str, code_packages: Iterable[str]) -> dict[str, str]:
    """Return hashes of the code that trains the model, by module or file."""
    return fingerprints.code_of((f"evergreen_models.{model_name}.train",), (), code_packages)


def is_training_complete(fingerprint: str, folder: UPath) -> bool:
    """Return whether `folder` holds the valid model of the job with this fingerprint."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            fetch_model_files(fingerprint, folder, Path(scratch))
    except TrainingError:
        return False
    return True


def fetch_model_files(fingerprint: str, folder: UPath, target: Path) -> TrainingResult:
    """Copy the model of the job with this fingerprint from the job's `folder` to `target`.

    Raises:
        TrainingError: the model is missing, belongs to another job, or a file does not match its hash.
    """
    output = folder / OUTPUT_FOLDER
    try:
        result = TrainingResult.read(output / RESULT_FILE)
    except (OSError, ValidationError) as error:
        raise TrainingError(f"{output}: no valid {RESULT_FILE}, so no model: {error}") from None
    if result.fingerprint != fingerprint:
        raise TrainingError(f"{output}: holds the model of job {result.fingerprint[:12]}, not {fingerprint[:12]}")
    for name, digest in result.files.items():
        try:
            storage.download(output / digest / name, target / name)
        except OSError as error:
            raise TrainingError(f"{output}: {name} cannot be read: {error}") from None
        if storage.file_sha256(target / name) != digest:
            raise TrainingError(f"{output}: {name} was changed after it was written")
    return result


def _check_code_and_libraries(job: Job) -> dict[str, str]:
    """Return the versions of Python and the job's libraries, if code and libraries are those of the job."""
    modules = training_code(job.model, job.code_packages)
    differences = [name for name in {**modules, **job.modules} if modules.get(name) != job.modules.get(name)]
    for name, expected in job.libraries.items():
        installed = _installed_version(name)
        if installed != expected:
            differences.append(f"{name} ({installed or 'missing'} here, {expected} wanted)")
    if differences:
        raise CodeMismatchError(
            "the trainer's environment differs from what the job was planned with: "
            f"{', '.join(differences)}; build its image, or run `make trainer`, from the sources that Airflow has"
        )
    return {"python": platform.python_version(), **job.libraries}


def _installed_version(package: str) -> str | None:
    """Return the installed version without its local part, which tells a CPU build from one for GPUs."""
    for name in (package, package.removesuffix("-cpu")):  # xgboost-cpu is xgboost where there are GPUs
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None
