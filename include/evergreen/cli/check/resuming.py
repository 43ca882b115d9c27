"""Whether training that is interrupted, and goes on from its checkpoint, gives the model of undisturbed training."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evergreen.cli.check.locations import ModelFault
from evergreen.cli.check.steps import SkippedStepError
from evergreen.errors import TrainingError
from evergreen.evaluation.row_files import iter_tables
from evergreen.feature_store.training_sets import training_set_dataset
from evergreen.lake import datasets
from evergreen.scoring.predictions import TableScorer, candidate_folder
from evergreen.settings import settings
from evergreen.spec.loader import model_folder
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath
from evergreen.training import candidates
from evergreen.training.attempt import ResourceAllocation, attempt_environment, trainer_environment
from evergreen.training.job import JOB_FILE, Job, jobs_root
from evergreen.training.runner import fetch_model_files

_TRAINER_FILE = "train.py"
_RELATIVE_TOLERANCE = 1e-6  # single precision
_LOG_LINES = 5
_TIMEOUT_S = 600  # of an attempt: there is one period's data


def find_resuming_faults(
    model: ModelSpec, training_set: datasets.Manifest, candidate: datasets.Manifest
) -> tuple[list[ModelFault], str]:
    """Train the job of `candidate` again, interrupted twice; return the faults, and what was found.

    It is stopped after the first step that its trainer records, and again after the half of the others.

    Raises:
        SkippedStepError: the trainer records no steps, or trains in several processes.
        TrainingError: an attempt has failed.
    """
    if model.resources.processes > 1:
        raise SkippedStepError("it trains in several processes, which are interrupted together in a pod only")
    source = candidates.job_folder(model, candidate.fingerprint)
    job = Job.read(source / JOB_FILE, jobs_root(source))
    resumed_folder = _copy_job(job, source, "resumed")
    first = _run_attempt(model, resumed_folder, 1)
    if not first["recorded_steps"]:
        raise SkippedStepError("train.py records no steps: an interrupted training begins anew")
    # How many steps there are shows one that is never stopped.
    undisturbed_folder = _copy_job(job, source, "undisturbed")
    count = _run_attempt(model, undisturbed_folder, 0)["recorded_steps"]
    attempts = [_run_attempt(model, resumed_folder, steps) for steps in ([count // 2] if count > 2 else []) + [0]]
    file = model_folder(model.name) / _TRAINER_FILE
    if count > 1 and not all(attempt["resumed_step"] for attempt in attempts):
        fix = "call checkpoints.load_latest(), and go on after its step"
        return [ModelFault(file, None, "fit", "begins anew after an interruption, although it records steps", fix)], ""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("resumed", "undisturbed")}
        for folder in folders.values():
            folder.mkdir()
        resumed = fetch_model_files(job.fingerprint, resumed_folder, folders["resumed"])
        undisturbed = fetch_model_files(job.fingerprint, undisturbed_folder, folders["undisturbed"])
        text = f"interrupted twice within {count:,} steps"
        if resumed.files == undisturbed.files:
            return [], f"the same files after it was {text}"
        with candidate_folder(model, candidate) as folder:
            predictions = {
                name: _predict(model, training_set, candidate, path)
                for name, path in {**folders, "candidate": folder}.items()
            }
    if _are_equal(predictions["resumed"], predictions["undisturbed"]):
        return [], f"other files, and the same predictions after it was {text}"
    if not _are_equal(predictions["undisturbed"], predictions["candidate"]):
        problem = "gives other predictions when the same job is trained twice, without an interruption"
        fix = "seed every generator with job.seed, and train with job.threads"
        return [ModelFault(file, None, "fit", problem, fix)], ""
    rows = int((~_equal_rows(predictions["resumed"], predictions["undisturbed"])).sum())
    problem = f"gives other predictions after an interruption: for {rows:,} of {len(predictions['resumed']):,} rows"
    fix = "keep in the checkpoint all that the next step depends on: weights, optimizer, order of rows, generators"
    return [ModelFault(file, None, "fit", problem, fix)], ""


def _copy_job(job: Job, source: UPath, name: str) -> UPath:
    """Return a folder with the same job and nothing else, so that it is trained anew."""
    folder = source.parent / f"{job.fingerprint}-{name}"
    job.write(folder / JOB_FILE)
    return folder


def _run_attempt(model: ModelSpec, folder: UPath, stop_after: int) -> Mapping[str, Any]:
    allocation = ResourceAllocation.from_resources(model.resources)
    command = [
        str(settings().trainer),
        "-m",
        "evergreen.training.interruption",
        str(folder / JOB_FILE),
        str(stop_after),
    ]
    variables = trainer_environment() | attempt_environment("", model.owner, allocation)
    process = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if process.returncode:
        lines = "\n".join(process.stderr.splitlines()[-_LOG_LINES:])
        raise TrainingError(f"an attempt that goes on after an interruption ended with {process.returncode}:\n{lines}")
    result: Mapping[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def _predict(
    model: ModelSpec, training_set: datasets.Manifest, candidate: datasets.Manifest, folder: Path
) -> np.ndarray[Any, Any]:
    """Return the predictions (n,) or (n, outputs) for the holdout of the model in a folder."""
    holdout = training_set_dataset(model).file_path(training_set, "holdout")
    features = tuple(candidate.inputs["features"])
    scorer = TableScorer(folder, pq.read_schema(holdout).names, features, model.prediction_type)
    return np.concatenate([scorer.score(table) for table in iter_tables(holdout, features)])


def _are_equal(predictions: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> bool:
    return bool(_equal_rows(predictions, reference).all())


def _equal_rows(predictions: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    equal = np.isclose(predictions, reference, rtol=_RELATIVE_TOLERANCE, atol=0, equal_nan=True)
    return equal.reshape(len(equal), -1).all(axis=1)
