"""Runs a model's trainer and stores what it wrote: first the files, named by their content, then the result."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evergreen import storage
from evergreen.errors import Fault, TrainingError, first_line, validation_problem
from evergreen.lake import fingerprints
from evergreen.storage import UPath
from evergreen.training import early_stopping, target_transform
from evergreen.training.checkpoints import Checkpoints
from evergreen.training.job import (
    MAX_FILES,
    MAX_METRICS,
    OUTPUT_FOLDER,
    RESULT_FILE,
    Job,
    TrainingResult,
    check_metric_name,
    check_metric_value,
    check_model_file_name,
    jobs_root,
)
from evergreen.training.outcome import CodeMismatchError, TrainerOutputError
from evergreen.training.volumes import identify_full_volume

_MAX_FAULTS = 10  # that a message names: it has to fit into the pod's status

log = logging.getLogger(__name__)


def run_training(job: Job, folder: UPath, checkpoints: Checkpoints) -> None:
    """Train the job in `folder`, unless its model is complete. Of several processes, only the writer stores the model.

    Raises:
        CodeMismatchError: the code or libraries here differ from the job's.
        TrainerOutputError: the trainer has left a folder or a link, or returned a metric that MLflow would refuse.
        TrainingPreempted: see `Checkpoints.record_step`; also whatever the trainer raises.
    """
    versions = _check_code_and_libraries(job)
    if is_training_complete(job.fingerprint, folder):
        log.info("this job is complete already")
        return
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryDirectory() as data,
        identify_full_volume(),
    ):
        output = Path(scratch)
        transformed_job = target_transform.transform_labels(job, Path(data))
        metrics = import_module(f"evergreen_models.{job.model}.train").fit(transformed_job, output, checkpoints)
        checkpoints.flush()
        if checkpoints.is_writer:
            metrics = _check_output(output, metrics)
            _finish_model(output, job.target_transform)
            files = {file.name: storage.file_sha256(file) for file in sorted(output.iterdir())}
            for name, digest in files.items():
                storage.upload(output / name, folder / OUTPUT_FOLDER / digest / name)
            result = TrainingResult(fingerprint=job.fingerprint, files=files, metrics=metrics, environment=versions)
            result.write(folder / OUTPUT_FOLDER / RESULT_FILE)


def training_code(model_name: str, code_packages: Iterable[str], transform: str | None = None) -> dict[str, str]:
    """Return hashes of the code that trains the model, by module or file; `transform` is what its labels go through."""
    modules = [f"evergreen_models.{model_name}.train", early_stopping.__name__]  # `_finish_model` runs the latter
    if transform:
        modules.append(target_transform.__name__)
    return fingerprints.code_of(modules, (), code_packages)


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

    Nothing in the folder is believed: a pod has written it. `target` is the only place that is written to.

    Raises:
        TrainingError: the model is missing, belongs to another job, has a name that is none, or a file does not match
            its hash, or is reached through a link.
    """
    output, root = folder / OUTPUT_FOLDER, jobs_root(folder)
    try:
        result = TrainingResult.read(output / RESULT_FILE, root)
    except ValidationError as error:
        raise TrainingError(f"{output}: no valid {RESULT_FILE}, so no model: {validation_problem(error)}") from None
    except OSError as error:
        raise TrainingError(f"{output}: no valid {RESULT_FILE}, so no model: {error}") from None
    if result.fingerprint != fingerprint:
        raise TrainingError(f"{output}: holds the model of job {result.fingerprint[:12]}, not {fingerprint[:12]}")
    for name, digest in result.files.items():
        try:
            content_hash = storage.download(output / digest / name, target / name, root)
        except OSError as error:
            raise TrainingError(f"{output}: {name} cannot be read: {error}") from None
        if content_hash != digest:
            raise TrainingError(f"{output}: {name} was changed after it was written")
    return result


def _check_output(output: Path, metrics: Any) -> dict[str, float]:
    """Return the metrics as floats, if they and the files in `output` can be taken over."""
    files = sorted(output.iterdir())
    faults = [fault for file in files[:MAX_FILES] if (fault := _file_fault(file))]
    if not files:
        faults.append(Fault("fit", "has written no file", "write the model's file to its argument `output`"))
    if len(files) > MAX_FILES:
        faults.append(Fault("fit", f"has written {len(files):,} files", f"write {MAX_FILES:,} or fewer"))
    values: dict[str, float] = {}
    if not isinstance(metrics, Mapping):
        faults.append(Fault("fit", f"returns {type(metrics).__name__}, not a dict of metrics", "return {}, or metrics"))
        metrics = {}
    if len(metrics) > MAX_METRICS:
        faults.append(Fault("fit", f"returns {len(metrics):,} metrics", f"return {MAX_METRICS} or fewer"))
    for name, value in list(metrics.items())[:MAX_METRICS]:
        try:
            values[check_metric_name(str(name))] = check_metric_value(value)
        except ValueError as problem:
            faults.append(Fault(f"metric {ascii(name)[:60]}", str(problem)))
    if faults:
        rest = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        raise TrainerOutputError(f"fit's output is refused: {'; '.join([*map(str, faults[:_MAX_FAULTS]), *rest])}")
    return values


def _finish_model(output: Path, transform: str | None) -> None:
    """Make the model's file predict the same for each of its readers.

    XGBoost's ends with the best round, and what was done to the label is undone.
    """
    file = output / early_stopping.XGBOOST_FILE
    try:
        if file.exists():
            early_stopping.cut_to_best_round(file)
    except ValueError as error:  # XGBoost's own errors are such, too
        raise TrainerOutputError(f"fit's output is refused: {file.name}: {first_line(error)}") from None
    if transform:
        target_transform.write_transform(output, transform)


def _file_fault(file: Path) -> Fault | None:
    location = f"output {ascii(file.name)[:60]}"
    if file.is_dir() and not file.is_symlink():
        return Fault(location, "is a folder", "write its files beside one another, or one file")
    if not storage.is_plain_file(file):
        return Fault(location, "is a link or a device", "write the file itself")
    try:
        check_model_file_name(file.name)
    except ValueError as problem:
        return Fault("output", str(problem), "rename it")
    return None


def _check_code_and_libraries(job: Job) -> dict[str, str]:
    """Return the versions of Python and the job's libraries, if code and libraries are those of the job."""
    modules = training_code(job.model, job.code_packages, job.target_transform)
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
