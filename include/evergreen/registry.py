"""The MLflow registry: candidates go in with all that made them, and the champion's alias moves."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path

# Read when MLflow is imported. Its default would let a registered file run code on loading.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import mlflow.xgboost
import xgboost
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from evergreen import lake
from evergreen.errors import ScoringError
from evergreen.gates import Verdict
from evergreen.model import Model
from evergreen.settings import settings
from evergreen.training import Result

CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"

_INPUTS = "evergreen_inputs"


def champion(model: Model) -> ModelVersion | None:
    """The registered version that holds the alias `champion`, or None if there has been none."""
    return _holder(_client(), model, CHAMPION)


def as_of(version: ModelVersion) -> date:
    """What the version knows: no data of this day or later."""
    return date.fromisoformat(version.tags["evergreen.as_of"])


def holdout_start(version: ModelVersion) -> date:
    """The first day whose labels the version has not learned from."""
    return date.fromisoformat(version.tags["evergreen.holdout"])


def register(
    model: Model, training_set: lake.Manifest, candidate: lake.Manifest, verdict: Verdict, verdict_file: Path
) -> str:
    """Register the candidate with its verdict and fingerprints; gives its version.

    A candidate that is registered already, by an earlier attempt or a twin, keeps its version.
    """
    client = _client()
    mark = candidate.fingerprint
    for known in client.search_model_versions(f"name = '{model.name}'"):
        if known.tags.get("evergreen.fingerprint") == mark:
            client.set_registered_model_alias(model.name, CANDIDATE, known.version)
            return str(known.version)
    experiment = _experiment(client, model)
    source = lake.dataset(f"models/{model.name}")
    result = Result.read(source.path(candidate, "result.json"))
    day, holdout = training_set.inputs["as_of"], training_set.inputs["holdout"]
    with mlflow.start_run(experiment_id=experiment, run_name=f"as of {day}") as run:
        mlflow.log_params({**model.parameters, "seed": model.seed})
        mlflow.log_metrics({**result.metrics, **_values(verdict)})
        mlflow.log_dict(json.loads(candidate.to_json()), "evidence/model.json")
        mlflow.log_dict(json.loads(training_set.to_json()), "evidence/training_set.json")
        mlflow.log_artifact(str(verdict_file), "evidence/verdict")
        booster = xgboost.Booster(model_file=source.path(candidate, "model.ubj"))
        inputs = tuple(candidate.inputs["features"])
        logged = mlflow.xgboost.log_model(
            booster,
            name="model",
            model_format="ubj",
            signature=ModelSignature(
                Schema([ColSpec("double", name, required=False) for name in inputs]),
                Schema([ColSpec("double")]),
            ),
            # Given, not inferred: inferring installs nothing but takes ten seconds.
            pip_requirements=[f"xgboost=={result.environment['xgboost']}"],
            metadata={_INPUTS: list(inputs)},
        )
        version = mlflow.register_model(
            logged.model_uri,
            model.name,
            tags={
                "evergreen.fingerprint": mark,
                "evergreen.data": training_set.content,
                "evergreen.code": lake.fingerprint(candidate.inputs["code"]),
                "evergreen.environment": lake.fingerprint(dict(result.environment)),
                "evergreen.as_of": day,
                "evergreen.holdout": holdout,
                "evergreen.verdict": verdict.reason,
                "evergreen.run": run.info.run_id,
            },
        )
    client.set_registered_model_alias(model.name, CANDIDATE, version.version)
    return str(version.version)


def promote(model: Model, version: str) -> None:
    """Give `version` the alias `champion`; the version that held it becomes `previous`."""
    client = _client()
    before = _holder(client, model, CHAMPION)
    if before and str(before.version) == version:
        return
    if before:
        client.set_registered_model_alias(model.name, PREVIOUS, before.version)
    client.set_registered_model_alias(model.name, CHAMPION, version)


@contextmanager
def artifact(model: Model, version: str) -> Iterator[Path]:
    """A folder with the files of a registered version, for as long as the context lasts.

    Raises:
        ScoringError: the registry cannot give them.
    """
    _client()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = mlflow.artifacts.download_artifacts(f"models:/{model.name}/{version}", dst_path=scratch)
        except (MlflowException, OSError) as error:
            raise ScoringError(f"its artifact cannot be loaded: {str(error).splitlines()[0]}") from None
        yield Path(folder)


def inputs_of(folder: Path) -> tuple[str, ...]:
    """The input columns, in order, of the model whose registered files lie in `folder`.

    Raises:
        ScoringError: the files do not tell.
    """
    try:
        return tuple((mlflow.models.Model.load(str(folder)).metadata or {})[_INPUTS])
    except (MlflowException, OSError, KeyError) as error:
        raise ScoringError(f"its MLmodel file does not list its inputs: {error}") from None


def _client() -> mlflow.MlflowClient:
    mlflow.set_tracking_uri(settings().mlflow)
    return mlflow.MlflowClient(settings().mlflow)


def _experiment(client: mlflow.MlflowClient, model: Model) -> str:
    """Id of the model's experiment; a twin may make it first."""
    found = client.get_experiment_by_name(model.name)
    if found is None:
        # A server decides where artifacts go. Without one they would go to the working directory.
        local = settings().mlflow.startswith("sqlite:")
        location = (settings().home / "mlflow-artifacts" / model.name).as_uri() if local else None
        with suppress(MlflowException):
            return client.create_experiment(model.name, artifact_location=location)
        found = client.get_experiment_by_name(model.name)
        assert found
    return found.experiment_id


def _holder(client: mlflow.MlflowClient, model: Model, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(model.name, alias)
    except MlflowException as error:
        # The server says either, depending on whether the model or only the alias is missing.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _values(verdict: Verdict) -> Mapping[str, float]:
    return {
        f"{record.gate}.{who}": value
        for record in verdict.records
        for who, value in (("candidate", record.candidate), ("champion", record.champion))
        if value is not None
    }
