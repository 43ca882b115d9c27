"""Candidate models in the lake: the job that trains one, and the checks before its files are published."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.errors import Fault, SpecError, TrainingError
from evergreen.lake import datasets, fingerprints
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath
from evergreen.training import runner
from evergreen.training.job import CHECKPOINTS_FOLDER, JOB_FILE, RESULT_FILE, Job

log = logging.getLogger(__name__)


def candidate_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"models/{model.name}")


def train_candidate(
    model: ModelSpec,
    training_set: datasets.Manifest,
    dataset: datasets.Dataset,
    features: tuple[str, ...],
    run_job: Callable[[UPath], None],
    *,
    is_running: bool = False,
) -> datasets.Manifest:
    """Return the model that was trained from exactly these inputs; if none is published, train and publish it.

    `run_job` makes attempts at the job in a file; whatever they report, only a complete model is success. An attempt
    that `is_running` is seen to its end, even if another run has published the model meanwhile.

    Raises:
        SpecError: the model names a library that the trainer's environment does not have.
        TrainingError: the model is incomplete, or belongs to another job; also what `run_job` raises.
    """
    inputs = candidate_inputs(model, training_set, features)
    fingerprint = fingerprints.compute_fingerprint(inputs)
    candidates, partition = candidate_dataset(model), training_set.partition
    if not is_running and (published := candidates.find(partition, fingerprint)):
        log.info("model %s is already published with fingerprint %.12s", partition, fingerprint)
        return published
    folder = job_folder(model, fingerprint)
    _check_no_link(folder)
    train_file = dataset.file_path(training_set, "train")
    data: Path | UPath = train_file
    if not storage.is_local(folder):  # who can read the job must be able to read its data
        data = folder.parent / "data" / f"{training_set.files['train'].sha256}.parquet"
        if not data.exists():
            storage.upload(train_file, data)
    job = Job(
        model=model.name,
        fingerprint=fingerprint,
        training_data=str(data),
        features=features,
        label="label",
        parameters=model.parameters,
        seed=model.seed,
        threads=model.resources.cpu,
        gpu=model.resources.gpu,
        processes=model.resources.processes,
        checkpoint_seconds=model.resources.checkpoint_seconds,
        code_packages=model.code_packages,
        modules=inputs["code"]["modules"],
        libraries=inputs["code"]["libraries"],
    )
    job.write(folder / JOB_FILE)
    run_job(folder / JOB_FILE)
    _check_no_link(folder / CHECKPOINTS_FOLDER)
    staged = candidates.stage(partition, fingerprint)
    result = runner.fetch_model_files(fingerprint, folder, staged)
    result.write(staged / RESULT_FILE)
    files = {name: staged / name for name in (*result.files, RESULT_FILE)}
    manifest = candidates.publish(partition, fingerprint, files, inputs)
    storage.remove(folder / CHECKPOINTS_FOLDER)
    return manifest


def _check_no_link(folder: UPath) -> None:
    """Refuse to write or remove anything through a link that a pod may have placed among the jobs."""
    try:
        storage.check_no_link(folder, storage.storage_path(settings().jobs))
    except OSError as error:
        raise TrainingError(str(error)) from None


def job_folder(model: ModelSpec, fingerprint: str) -> UPath:
    return storage.storage_path(settings().jobs) / model.name / fingerprint


def candidate_inputs(model: ModelSpec, training_set: datasets.Manifest, features: tuple[str, ...]) -> dict[str, Any]:
    """Return everything that a trained model depends on, and nothing else."""
    return {
        "training_set": training_set.files["train"].sha256,
        "features": features,
        "parameters": dict(model.parameters),
        "seed": model.seed,
        "resources": model.resources.model_dump(include={"cpu", "gpu", "gpu_type", "processes"}),
        "code": {
            "modules": runner.training_code(model.name, model.code_packages),
            "libraries": pinned_library_versions(model),
        },
    }


def pinned_library_versions(model: ModelSpec) -> dict[str, str]:
    """Return the versions of the model's libraries in the trainer's lock; a SpecError lists those that it lacks."""
    lock = settings().trainer_requirements
    text = lock.read_text() if lock.is_file() else ""
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))
    if missing := [name for name in model.training_libraries if name not in pins]:
        problem, fix = f"{{}} is not in {lock}", "add it there, or correct its name"
        faults = [Fault("training_libraries", problem.format(name), fix) for name in missing]
        raise SpecError(f"model {model.name}", faults)
    return {name: pins[name] for name in model.training_libraries}
