"""Training as a process of its own on this machine, and what is believed of what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from evergreen import lake
from evergreen.errors import TrainingError
from evergreen.model import Model
from evergreen.training.job import RESULT, Job, Result

_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONPATH",
)


def train(
    model: Model, training_set: lake.Manifest, source: lake.Dataset, features: tuple[str, ...]
) -> lake.Manifest:
    """Train on the file `train` of a training set; publish and give the model.

    Raises:
        TrainingError: the process failed, or what it left is not a model of this job.
    """
    target = dataset(model)
    inputs = inputs_of(model, training_set, features)
    mark = lake.fingerprint(inputs)
    partition = training_set.partition
    if done := target.published(partition, mark):
        print(f"the model {partition} is published already with fingerprint {mark[:12]}")
        return done
    folder = target.stage(partition, mark)
    job = Job(
        model=model.name,
        fingerprint=mark,
        train=str(source.path(training_set, "train")),
        features=features,
        label="label",
        parameters=model.parameters,
        seed=model.seed,
        threads=model.resources.cpu,
        gpu=model.resources.gpu,
    )
    job.write(folder / "job.json")
    output = folder / "output"
    _run([sys.executable, "-m", "evergreen.training", str(folder / "job.json"), str(output)], model)
    result = believe(output, mark)
    files = {name: output / name for name in (*result.files, RESULT)}
    return target.publish(partition, mark, files, inputs)


def inputs_of(model: Model, training_set: lake.Manifest, features: tuple[str, ...]) -> dict[str, Any]:
    """What a trained model depends on, and nothing else."""
    return {
        "training_set": training_set.files["train"].sha256,
        "features": features,
        "parameters": dict(model.parameters),
        "seed": model.seed,
        "resources": model.resources.model_dump(),
        "code": lake.code((f"models.{model.name}.train",), model.training_libraries),
    }


def dataset(model: Model) -> lake.Dataset:
    return lake.dataset(f"models/{model.name}")


def believe(output: Path, fingerprint: str) -> Result:
    """The result in `output`, if it is whole and of the job with this fingerprint.

    Raises:
        TrainingError: it is missing, of another job, or a file differs from its hash.
    """
    try:
        result = Result.read(output / RESULT)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{output}: no valid {RESULT}, so no model: {error}") from None
    if result.fingerprint != fingerprint:
        raise TrainingError(
            f"{output}: holds the model of job {result.fingerprint[:12]}, not {fingerprint[:12]}"
        )
    for name, digest in result.files.items():
        if not (output / name).is_file() or lake.sha256(output / name) != digest:
            raise TrainingError(f"{output}: {name} is missing or was changed after it was written")
    return result


def environment() -> dict[str, str]:
    """What a process that trains or loads a model gets of this one's environment; no credential is among it."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def _run(command: list[str], model: Model) -> None:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as process:
        assert process.stdout
        last = ""
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
            code = process.wait(timeout=60)
        except BaseException:
            process.kill()  # a task that is ended must not leave its training behind
            raise
    if code:
        raise TrainingError(f"training {model.name} ended with exit code {code}: {last}")
