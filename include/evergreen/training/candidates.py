"""Trained models in the lake: the job that makes one, and what is believed of what it leaves."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.errors import Fault, SpecError
from evergreen.lake import datasets, fingerprints
from evergreen.settings import REPOSITORY, settings
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath
from evergreen.training import runner
from evergreen.training.job import CHECKPOINTS_FOLDER, JOB_FILE, RESULT_FILE, Job

TRAINER_REQUIREMENTS = REPOSITORY / "trainer" / "requirements.txt"


def candidate_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"models/{model.name}")


def find_published_candidate(
    model: ModelSpec, training_set: datasets.Manifest, features: tuple[str, ...]
) -> datasets.Manifest | None:
    """The model that was made from just this before, or None."""
    mark = fingerprints.compute_fingerprint(candidate_inputs(model, training_set, features))
    return candidate_dataset(model).find(training_set.partition, mark)


def prepare_job(
    model: ModelSpec, training_set: datasets.Manifest, dataset: datasets.Dataset, features: tuple[str, ...]
) -> UPath:
    """Write the job that trains on the file `train` of a training set, and give its file.

    Raises:
        SpecError: the model names a library that the trainer's environment has not.
    """
    inputs = candidate_inputs(model, training_set, features)
    mark = fingerprints.compute_fingerprint(inputs)
    place = job_folder(model, mark)
    job = Job(
        model=model.name,
        fingerprint=mark,
        training_data=_training_data_uri(
            place, dataset.file_path(training_set, "train"), training_set.files["train"].sha256
        ),
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
    job.write(place / JOB_FILE)
    return place / JOB_FILE


def publish_candidate(
    model: ModelSpec, training_set: datasets.Manifest, features: tuple[str, ...]
) -> datasets.Manifest:
    """Publish the model that the job of this training set left, if it is whole and that job's; give it.

    Raises:
        TrainingError: it is not.
    """
    inputs = candidate_inputs(model, training_set, features)
    mark = fingerprints.compute_fingerprint(inputs)
    target, partition, place = candidate_dataset(model), training_set.partition, job_folder(model, mark)
    staged = target.stage(partition, mark)
    result = runner.fetch_model_files(mark, place, staged)
    result.write(staged / RESULT_FILE)
    files = {name: staged / name for name in (*result.files, RESULT_FILE)}
    manifest = target.publish(partition, mark, files, inputs)
    storage.remove(place / CHECKPOINTS_FOLDER)
    return manifest


def job_folder(model: ModelSpec, fingerprint: str) -> UPath:
    return storage.storage_path(settings().jobs) / model.name / fingerprint


def candidate_inputs(model: ModelSpec, training_set: datasets.Manifest, features: tuple[str, ...]) -> dict[str, Any]:
    """What a trained model depends on, and nothing else."""
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


def _training_data_uri(folder: UPath, file: Path, digest: str) -> str:
    """The URI of the training data for whoever reaches the job: in an object store it lies there too."""
    if storage.is_local(folder):
        return str(file)
    copy = folder.parent / "data" / f"{digest}.parquet"
    if not copy.exists():
        storage.upload(file, copy)
    return str(copy)


def pinned_library_versions(model: ModelSpec) -> dict[str, str]:
    """Versions of the model's libraries by the lock of the trainer's environment, which need not be this one."""
    pins = _read_pins(TRAINER_REQUIREMENTS)
    missing = [
        Fault(
            "training_libraries",
            f"{name} is not in trainer/requirements.txt",
            "add it there, or correct its name",
        )
        for name in model.training_libraries
        if name not in pins
    ]
    if missing:
        raise SpecError(f"model {model.name}", missing)
    return {name: pins[name] for name in model.training_libraries}


@cache
def _read_pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))
