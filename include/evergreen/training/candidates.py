"""Trained models in the lake: the job that makes one, and what is believed of what it leaves."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from upath import UPath

from evergreen import storage
from evergreen.errors import Fault, SpecError
from evergreen.lake import datasets, fingerprints
from evergreen.settings import REPOSITORY, settings
from evergreen.spec.model import Model
from evergreen.training import runner
from evergreen.training.job import CHECKPOINTS, JOB, RESULT, Job

LOCK = REPOSITORY / "trainer" / "requirements.txt"


def dataset(model: Model) -> datasets.Dataset:
    return datasets.dataset(f"models/{model.name}")


def published(
    model: Model, training_set: datasets.Manifest, features: tuple[str, ...]
) -> datasets.Manifest | None:
    """The model that was made from just this before, or None."""
    mark = fingerprints.fingerprint(inputs_of(model, training_set, features))
    return dataset(model).published(training_set.partition, mark)


def prepare(
    model: Model, training_set: datasets.Manifest, source: datasets.Dataset, features: tuple[str, ...]
) -> UPath:
    """Write the job that trains on the file `train` of a training set, and give its file.

    Raises:
        SpecError: the model names a library that the trainer's environment has not.
    """
    inputs = inputs_of(model, training_set, features)
    mark = fingerprints.fingerprint(inputs)
    place = job_folder(model, mark)
    job = Job(
        model=model.name,
        fingerprint=mark,
        train=_reachable(place, source.path(training_set, "train"), training_set.files["train"].sha256),
        features=features,
        label="label",
        parameters=model.parameters,
        seed=model.seed,
        threads=model.resources.cpu,
        gpu=model.resources.gpu,
        processes=model.resources.processes,
        checkpoint_seconds=model.resources.checkpoint_seconds,
        modules=inputs["code"]["modules"],
        libraries=inputs["code"]["libraries"],
    )
    job.write(place / JOB)
    return place / JOB


def accept(model: Model, training_set: datasets.Manifest, features: tuple[str, ...]) -> datasets.Manifest:
    """Publish the model that the job of this training set left, if it is whole and that job's; give it.

    Raises:
        TrainingError: it is not.
    """
    inputs = inputs_of(model, training_set, features)
    mark = fingerprints.fingerprint(inputs)
    target, partition, place = dataset(model), training_set.partition, job_folder(model, mark)
    staged = target.stage(partition, mark)
    result = runner.fetch(mark, place, staged)
    result.write(staged / RESULT)
    files = {name: staged / name for name in (*result.files, RESULT)}
    manifest = target.publish(partition, mark, files, inputs)
    storage.remove(place / CHECKPOINTS)
    return manifest


def job_folder(model: Model, fingerprint: str) -> UPath:
    return storage.path(settings().jobs) / model.name / fingerprint


def inputs_of(model: Model, training_set: datasets.Manifest, features: tuple[str, ...]) -> dict[str, Any]:
    """What a trained model depends on, and nothing else."""
    return {
        "training_set": training_set.files["train"].sha256,
        "features": features,
        "parameters": dict(model.parameters),
        "seed": model.seed,
        "resources": model.resources.model_dump(include={"cpu", "gpu", "gpu_type", "processes"}),
        "code": {
            "modules": fingerprints.code((f"evergreen_models.{model.name}.train",), ()),
            "libraries": libraries(model),
        },
    }


def _reachable(place: UPath, file: Path, digest: str) -> str:
    """The URI of the training data for whoever reaches the job: in an object store it lies there too."""
    if storage.is_local(place):
        return str(file)
    copy = place.parent / "data" / f"{digest}.parquet"
    if not copy.exists():
        storage.upload(file, copy)
    return str(copy)


def libraries(model: Model) -> dict[str, str]:
    """Versions of the model's libraries by the lock of the trainer's environment, which need not be this one."""
    pins = _pins(LOCK)
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
def _pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))
