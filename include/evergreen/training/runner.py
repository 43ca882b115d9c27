"""Runs the trainer of a model, and leaves what it made: files first, named by their content, the result last."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterable, Mapping
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


def run_training(job: Job, folder: UPath, checkpoints: Checkpoints) -> None:
    """Train, unless that is done. Of several processes that train together, the one that `writes` leaves the model.

    Raises:
        OtherCode: what is here is not what the job is about.
        Preempted, or whatever the trainer raises.
    """
    versions = _check_code_and_libraries(job)
    if is_training_complete(job.fingerprint, folder):
        print("this job is done already")
        return
    with tempfile.TemporaryDirectory() as scratch, identify_full_volume():
        output = Path(scratch)
        metrics = import_module(f"evergreen_models.{job.model}.train").fit(job, output, checkpoints)
        checkpoints.flush()
        if checkpoints.is_writer:
            _write_result(job, folder, output, metrics, versions)


def training_code(model_name: str, code_packages: Iterable[str]) -> dict[str, str]:
    """Return hashes of the code that trains the model, by module or file."""
    return fingerprints.code_of((f"evergreen_models.{model_name}.train",), (), code_packages)


def is_training_complete(fingerprint: str, folder: UPath) -> bool:
    """Whether the model of the job in `folder` is there, whole."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            fetch_model_files(fingerprint, folder, Path(scratch))
    except TrainingError:
        return False
    return True


def fetch_model_files(fingerprint: str, folder: UPath, target: Path) -> TrainingResult:
    """Copy the files of the model, if it is whole and of the job with this fingerprint, into `target`.

    Raises:
        TrainingError: it is missing, of another job, or a file differs from its hash.
    """
    where = folder / OUTPUT_FOLDER
    try:
        result = TrainingResult.read(where / RESULT_FILE)
    except (OSError, ValidationError) as error:
        raise TrainingError(f"{where}: no valid {RESULT_FILE}, so no model: {error}") from None
    if result.fingerprint != fingerprint:
        raise TrainingError(f"{where}: holds the model of job {result.fingerprint[:12]}, not {fingerprint[:12]}")
    for name, digest in result.files.items():
        try:
            storage.download(where / digest / name, target / name)
        except OSError as error:
            raise TrainingError(f"{where}: {name} cannot be read: {error}") from None
        if storage.file_sha256(target / name) != digest:
            raise TrainingError(f"{where}: {name} was changed after it was written")
    return result


def _write_result(
    job: Job, folder: UPath, output: Path, metrics: Mapping[str, float], environment: Mapping[str, str]
) -> None:
    files = {file.name: storage.file_sha256(file) for file in sorted(output.iterdir())}
    for name, digest in files.items():
        storage.upload(output / name, folder / OUTPUT_FOLDER / digest / name)
    result = TrainingResult(fingerprint=job.fingerprint, files=files, metrics=metrics, environment=environment)
    result.write(folder / OUTPUT_FOLDER / RESULT_FILE)


def _check_code_and_libraries(job: Job) -> dict[str, str]:
    """The versions of what is here, if they and the code are those of the job."""
    here = training_code(job.model, job.code_packages)
    other = [name for name in {**here, **job.modules} if here.get(name) != job.modules.get(name)]
    versions = {name: _installed_version(name) for name in job.libraries}
    other += [
        f"{name} ({versions[name] or 'missing'} here, {wanted} wanted)"
        for name, wanted in job.libraries.items()
        if versions[name] != wanted
    ]
    if other:
        raise CodeMismatchError(
            f"the trainer's environment differs from what the job was planned with: {', '.join(other)}; build its "
            "image, or `make trainer`, from the sources that Airflow has"
        )
    return {"python": platform.python_version(), **job.libraries}


def _installed_version(package: str) -> str | None:
    """Installed version, without the part that tells a build for CPUs from one for GPUs."""
    for name in (package, package.removesuffix("-cpu")):  # xgboost-cpu is xgboost where there are GPUs
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None
