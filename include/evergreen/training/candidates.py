"""Candidate models in the lake: the job that trains one, and the checks before its files are published."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.errors import Fault, SpecError
from evergreen.lake import datasets, fingerprints
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath
from evergreen.training import runner
from evergreen.training.job import CHECKPOINTS_FOLDER, JOB_FILE, RESULT_FILE, Job


def candidate_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"models/{model.name}")


def find_published_candidate(
    model: ModelSpec, training_set: datasets.Manifest, features: tuple[str, ...]
) -> datasets.Manifest | None:
    """Return the model that was trained from exactly these inputs, or None."""
    fingerprint = fingerprints.compute_fingerprint(candidate_inputs(model, training_set, features))
    return candidate_dataset(model).find(training_set.partition, fingerprint)


def prepare_job(
    model: ModelSpec, training_set: datasets.Manifest, dataset: datasets.Dataset, features: tuple[str, ...]
) -> UPath:
    """Write the job that trains on the file `train` of a training set, and return the job's file.

    Raises:
        SpecError: the model names a library that the trainer's environment does not have.
    """
    inputs = candidate_inputs(model, training_set, features)
    fingerprint = fingerprints.compute_fingerprint(inputs)
    folder = job_folder(model, fingerprint)
    data, digest = dataset.file_path(training_set, "train"), training_set.files["train"].sha256
    job = Job(
        model=model.name,
        fingerprint=fingerprint,
        training_data=_training_data_uri(folder, data, digest),
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
    return folder / JOB_FILE


def publish_candidate(
    model: ModelSpec, training_set: datasets.Manifest, features: tuple[str, ...]
) -> datasets.Manifest:
    """Publish the model that the job of this training set left.

    Raises:
        TrainingError: the model is incomplete, or belongs to another job.
    """
    inputs = candidate_inputs(model, training_set, features)
    fingerprint = fingerprints.compute_fingerprint(inputs)
    dataset, partition, folder = candidate_dataset(model), training_set.partition, job_folder(model, fingerprint)
    staged = dataset.stage(partition, fingerprint)
    result = runner.fetch_model_files(fingerprint, folder, staged)
    result.write(staged / RESULT_FILE)
    files = {name: staged / name for name in (*result.files, RESULT_FILE)}
    manifest = dataset.publish(partition, fingerprint, files, inputs)
    storage.remove(folder / CHECKPOINTS_FOLDER)
    return manifest


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
    """Return the versions of the model's libraries in the lock of the trainer's environment.

    Raises:
        SpecError: the lock lacks a library; all of them are listed.
    """
    lock = settings().trainer_requirements
    pins = _read_pins(lock) if model.training_libraries else {}
    if missing := [name for name in model.training_libraries if name not in pins]:
        problem, fix = f"{{}} is not in {lock}", "add it there, or correct its name"
        faults = [Fault("training_libraries", problem.format(name), fix) for name in missing]
        raise SpecError(f"model {model.name}", faults)
    return {name: pins[name] for name in model.training_libraries}


def _training_data_uri(folder: UPath, file: Path, digest: str) -> str:
    """Return a URI that everyone who can read the job can read; jobs in an object store need a copy there."""
    if storage.is_local(folder):
        return str(file)
    copy = folder.parent / "data" / f"{digest}.parquet"
    if not copy.exists():
        storage.upload(file, copy)
    return str(copy)


@cache
def _read_pins(lock: Path) -> dict[str, str]:
    if not lock.is_file():
        return {}
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))
