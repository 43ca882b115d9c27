"""Candidate models in the lake: the job that trains one, and the checks before its files are published."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
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
from evergreen.training.recent_attempts import register_job

_OTHER_SCHEMES = {"s3a": "s3", "gcs": "gs"}

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
    job = Job(
        model=model.name,
        fingerprint=fingerprint,
        training_data=str(_provide_training_data(training_set, dataset, folder)),
        training_data_sha256=training_set.files["train"].sha256,
        training_data_size=training_set.files["train"].size,
        features=features,
        label="label",
        classes=model.classes,
        quantiles=model.quantiles,
        query=model.query,
        forecast=model.forecast,
        weight=model.weight,
        target_transform=model.target_transform,
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
    register_job(folder, datetime.now(UTC))
    run_job(folder / JOB_FILE)
    _check_no_link(folder / CHECKPOINTS_FOLDER)
    staged = candidates.stage(partition, fingerprint)
    result = runner.fetch_model_files(fingerprint, folder, staged)
    result.write(staged / RESULT_FILE)
    files = {name: staged / name for name in (*result.files, RESULT_FILE)}
    manifest = candidates.publish(partition, fingerprint, files, inputs)
    storage.remove(folder / CHECKPOINTS_FOLDER)
    return manifest


def _provide_training_data(
    training_set: datasets.Manifest, dataset: datasets.Dataset, job_folder: UPath
) -> UPath | Path:
    """Return where the trainer of a job reads its data.

    Who can read a job in an object store can also read a lake there: by the same client, with rights to its training
    sets. From a lake that is a folder, or in another kind of store, the data is copied to the jobs.
    """
    if storage.is_local(job_folder):
        return dataset.file_path(training_set, "train")
    published = dataset.published_path(training_set, "train")
    if _have_same_client(published, job_folder):
        return published
    copy = job_folder.parent / "data" / f"{training_set.files['train'].sha256}.parquet"
    if not copy.exists():
        storage.upload(dataset.file_path(training_set, "train"), copy)
    return copy


def _have_same_client(first: UPath | Path, second: UPath | Path) -> bool:
    """Return whether both are in object stores of one kind, which has one client with one set of credentials."""
    if isinstance(first, Path) or isinstance(second, Path):
        return False
    kinds = {_OTHER_SCHEMES.get(path.protocol, path.protocol) for path in (first, second)}
    return len(kinds) == 1 and kinds != {"memory"}  # where obstore keeps its objects apart from those of fsspec


def _check_no_link(folder: UPath) -> None:
    """Refuse to write or remove anything through a link that a pod may have placed among the jobs."""
    try:
        storage.check_no_link(folder, storage.storage_path(settings().jobs))
    except OSError as error:
        raise TrainingError(str(error)) from None


def job_folder(model: ModelSpec, fingerprint: str) -> UPath:
    return storage.storage_path(settings().jobs) / model.name / fingerprint


def candidate_inputs(
    model: ModelSpec,
    training_set: datasets.Manifest,
    features: tuple[str, ...],
    libraries: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return everything that a trained model depends on, and nothing else; `libraries` are by default the pinned ones.

    Raises:
        SpecError: the model names a library that the trainer's environment does not have.
    """
    # Named where it is declared only: other candidates keep their fingerprints.
    transform = {"target_transform": model.target_transform} if model.target_transform else {}
    return {
        **transform,
        "training_set": training_set.files["train"].sha256,
        "features": features,
        "parameters": dict(model.parameters),
        "seed": model.seed,
        "resources": model.resources.model_dump(include={"cpu", "gpu", "gpu_type", "processes"}),
        "code": {
            "modules": runner.training_code(model.name, model.code_packages, model.target_transform),
            "libraries": pinned_library_versions(model) if libraries is None else dict(libraries),
        },
        **({"classes": model.classes} if model.classes else {}),
        **({"quantiles": model.quantiles} if model.quantiles else {}),
        **({"query": model.query} if model.query else {}),
        **({"weight": model.weight} if model.weight else {}),
        **({"forecast": model.forecast.model_dump(mode="json")} if model.forecast else {}),
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
