"""Versions in the MLflow registry: registered with a signed manifest and their evidence, verified before each use."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

# Read when MLflow is imported. Its default would let a registered file run code on loading.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from mlflow.types import ColSpec, Schema
from pydantic import ValidationError

from evergreen import ledger, storage
from evergreen.errors import RegistryError, ScoringError, first_line, validation_problem
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.gates import Verdict
from evergreen.lake import datasets, fingerprints
from evergreen.registry import signing
from evergreen.scoring import predictions, predictors
from evergreen.scoring.predictors import Predictor
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.training import TrainingResult, candidates, cost
from evergreen.training.attempt import read_attempts

CANDIDATE_ALIAS = "candidate"
NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's choice depends on what is missing

_INPUTS_KEY = "evergreen_inputs"
_FINGERPRINT_TAG, _MANIFEST_TAG, _SIGNED_BY_TAG = "evergreen.fingerprint", "evergreen.manifest", "evergreen.signed_by"


def registry_client() -> mlflow.MlflowClient:
    """Return a client of the configured MLflow server."""
    uri = settings().mlflow.get_secret_value()
    login = urlsplit(uri)
    if login.scheme in ("http", "https") and login.username:
        # MLflow's errors show its URI.
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(login.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(login.password or "")
        uri = str(settings().mlflow)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def get_champion_version(model: ModelSpec) -> ModelVersion | None:
    """Return the registered version that the ledger names champion, or None before the first promotion.

    Raises:
        RegistryError: the version is not registered any more.
    """
    version = ledger.read_state(model.name).champion
    if version is None:
        return None
    try:
        return registry_client().get_model_version(model.name, version)
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            raise missing_version_error(model.name, "champion", version) from None
        raise


def missing_version_error(model_name: str, alias: str, version: str) -> RegistryError:
    return RegistryError(
        f"{alias} of {model_name} is version {version} by the ledger, but MLflow has no such version: it was deleted, "
        f"or {settings().mlflow} is not the registry that the ledger is about; restore the registry, or roll back"
    )


def holdout_start(version: ModelVersion) -> date:
    """Return the first day whose labels the version has not learned from."""
    return date.fromisoformat(version.tags["evergreen.holdout"])


def register_candidate(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    verdict: Verdict,
    report: Path,
) -> str:
    """Register the candidate with its manifest, verdict and fingerprints; return its version.

    A candidate that an earlier attempt or a concurrent run has registered keeps its version.

    Raises:
        ScoringError: the candidate's file is not the one that was published, or takes other columns.
        SignatureError: its files may not be registered, or the key cannot sign them.
    """
    client = registry_client()
    fingerprint = candidate.fingerprint
    for registered in client.search_model_versions(f"name = '{model.name}'"):
        if registered.tags.get(_FINGERPRINT_TAG) == fingerprint:
            client.set_registered_model_alias(model.name, CANDIDATE_ALIAS, registered.version)
            return str(registered.version)
    experiment = _get_or_create_experiment(client, model)
    source = candidates.candidate_dataset(model)
    result = TrainingResult.model_validate_json(source.file_path(candidate, "result.json").read_bytes())
    as_of = training_set.inputs["as_of"]
    with mlflow.start_run(experiment_id=experiment, run_name=f"as of {as_of}") as run:
        mlflow.log_params({**model.parameters, "seed": model.seed})
        training_cost = _training_cost(model, candidate)
        mlflow.log_metrics({**result.metrics, **_verdict_metrics(verdict), **training_cost.metrics})
        mlflow.set_tags({"evergreen.model": model.name, "evergreen.team": model.owner})
        mlflow.log_dict(json.loads(candidate.to_json()), "evidence/model.json")
        mlflow.log_dict(json.loads(training_set.to_json()), "evidence/training_set.json")
        mlflow.log_dict(verdict.model_dump(mode="json"), "evidence/verdict.json")
        mlflow.log_text(report.read_text(), "evidence/gate_report.html")
        model_inputs = ModelInputs.from_training_set(training_set, candidate.inputs["features"])
        inputs = model_inputs.column_names
        manifest_tags: dict[str, str] = {}
        with _open_candidate(model, candidate) as (file, predictor):
            predictor.check_columns(inputs)

            def save_model(path: str, **options: Any) -> None:
                flavor = import_module(f"mlflow.{predictor.mlflow_flavor}")
                flavor.save_model(path=path, **predictor.save_model_arguments(), **options)
                # A library may write what it has read in other bytes: register the bytes that were judged.
                shutil.copyfile(file, Path(path, file.name))
                # Before MLflow uploads the folder.
                manifest_tags.update(_write_manifest(Path(path), signing.ModelIdentity(model.name, fingerprint)))

            logged = mlflow.models.Model.log(
                artifact_path=None,
                name="model",
                flavor=SimpleNamespace(save_model=save_model),
                flavor_name=predictor.mlflow_flavor,
                signature=ModelSignature(
                    Schema([ColSpec(predictor.mlflow_type(name), name, required=False) for name in inputs]),
                    Schema([ColSpec("double")]),
                ),
                # Given, not inferred: inferring installs nothing but takes ten seconds.
                pip_requirements=[predictor.pip_requirement(result.environment)],
                metadata={_INPUTS_KEY: model_inputs.model_dump(mode="json")},
            )
        version = mlflow.register_model(
            logged.model_uri,
            model.name,
            tags={
                _FINGERPRINT_TAG: fingerprint,
                **manifest_tags,
                "evergreen.data": training_set.content_hash,
                "evergreen.code": fingerprints.compute_fingerprint(candidate.inputs["code"]),
                "evergreen.environment": fingerprints.compute_fingerprint(dict(result.environment)),
                "evergreen.as_of": as_of,
                "evergreen.holdout": training_set.inputs["holdout"],
                "evergreen.verdict": verdict.reason,
                "evergreen.team": model.owner,
                "evergreen.cost": training_cost.summary,
                "evergreen.run": run.info.run_id,
            },
        )
    client.set_registered_model_alias(model.name, CANDIDATE_ALIAS, version.version)
    return str(version.version)


@contextmanager
def open_artifact(model: str, version: str) -> Iterator[tuple[Path, ModelVersion]]:
    """Yield a temporary folder with the verified files of a registered version, and its entry in the registry.

    Raises:
        ScoringError: the registry cannot provide the files.
        SignatureError: they are not what was registered, not signed although signing is on, or may not be loaded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, model_version = _download_version(registry_client(), model, version, Path(scratch))
        # The downloaded copy is used, so nobody can change the files after the check.
        identity, manifest = _version_identity(model_version), model_version.tags.get(_MANIFEST_TAG)
        signing.verify_files(folder, identity, manifest, settings().signing_public_key)
        yield folder, model_version


def verify_version(model: str, version: str, candidate_fingerprint: str | None = None) -> None:
    """Refuse a version that `open_artifact` would refuse, or that is not the candidate with this fingerprint.

    Raises:
        ScoringError, SignatureError: as `open_artifact`.
        RegistryError: the version is another candidate: somebody has changed the registry.
    """
    with open_artifact(model, version) as (_, model_version):
        fingerprint = model_version.tags.get(_FINGERPRINT_TAG)
    if candidate_fingerprint and fingerprint != candidate_fingerprint:
        raise RegistryError(
            f"version {version} of {model} is candidate {fingerprint}, and {candidate_fingerprint} was judged: find "
            "out who changed the registry; the champion stays"
        )


def sign_version(model: str, version: str) -> None:
    """Sign a registered version with the configured key, for example after signing was turned on or the key rotated.

    A version without a manifest gets one of its present files: the caller vouches for them.

    Raises:
        ScoringError: the registry cannot provide the files.
        SignatureError: they are not what was registered, may not be loaded, or the key cannot sign them.
    """
    client = registry_client()
    with tempfile.TemporaryDirectory() as scratch:
        folder, model_version = _download_version(client, model, version, Path(scratch))
        logged_model = (model_version.source or "").removeprefix("models:/")
        if not logged_model.startswith("m-"):
            raise ScoringError(
                f"version {version} of {model} is stored at {model_version.source}, not as a logged model: retrain"
            )
        identity = _version_identity(model_version)
        if manifest := model_version.tags.get(_MANIFEST_TAG):
            signing.verify_files(folder, identity, manifest, trusted_keys=None)
        tags = _write_manifest(folder, identity)
        for name in (signing.MANIFEST_FILE, signing.SIGNATURE_FILE):
            if (folder / name).exists():
                client.log_model_artifact(logged_model, str(folder / name))
    for tag, value in tags.items():
        client.set_model_version_tag(model, version, tag, value)


def read_model_inputs(folder: Path) -> ModelInputs:
    """Return the inputs of the registered model whose files are in `folder`.

    Raises:
        ScoringError: the files do not list them.
    """
    try:
        metadata = mlflow.models.Model.load(str(folder)).metadata or {}
        return ModelInputs.model_validate(metadata[_INPUTS_KEY])
    except ValidationError as error:
        raise ScoringError(f"its MLmodel file does not list its inputs: {validation_problem(error)}") from None
    except (MlflowException, OSError, KeyError) as error:
        raise ScoringError(f"its MLmodel file does not list its inputs: {error}") from None


def _write_manifest(folder: Path, identity: signing.ModelIdentity) -> dict[str, str]:
    """Write a manifest, signed if a key is configured; return the version's tags about it."""
    config = settings()
    key = signing.SigningKey(config.signing_key, config.signing_passphrase) if config.signing_key else None
    manifest = signing.write_model_manifest(folder, identity, key)
    if not key:
        return {_MANIFEST_TAG: manifest}
    # Here, so that an untrusted key is noticed before anything is registered.
    signing.verify_files(folder, identity, manifest, config.signing_public_key)
    return {_MANIFEST_TAG: manifest, _SIGNED_BY_TAG: signing.claimed_key_hash(folder) or ""}


@contextmanager
def _open_candidate(model: ModelSpec, candidate: datasets.Manifest) -> Iterator[tuple[Path, Predictor]]:
    """Yield the candidate's file, as it was published, and the model in it."""
    with predictions.candidate_folder(model, candidate) as folder:
        file = predictions.model_file(folder)
        if storage.file_sha256(file) != candidate.files[file.name].sha256:
            raise ScoringError(
                f"{file.resolve()} was changed after it was published: remove it and its manifest, and train again"
            )
        yield file, predictors.PREDICTORS[file.name](file)


def _download_version(
    client: mlflow.MlflowClient, model: str, version: str, scratch: Path
) -> tuple[Path, ModelVersion]:
    try:
        model_version = client.get_model_version(model, version)
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model}/{version}", dst_path=str(scratch)))
    except (MlflowException, OSError) as error:
        raise ScoringError(f"its artifact cannot be loaded: {first_line(error)}") from None
    (folder / REGISTERED_MODEL_META_FILE_NAME).unlink(missing_ok=True)  # added by the download
    return folder, model_version


def _version_identity(version: ModelVersion) -> signing.ModelIdentity:
    return signing.ModelIdentity(version.name, version.tags.get(_FINGERPRINT_TAG, ""))


def _training_cost(model: ModelSpec, candidate: datasets.Manifest) -> cost.TrainingCost:
    """Return the cost of all attempts at the candidate's training job."""
    file = settings().prices
    attempts = read_attempts(candidates.job_folder(model, candidate.fingerprint))
    return cost.total_cost(attempts, cost.PriceTable.read(file) if file else None)


def _get_or_create_experiment(client: mlflow.MlflowClient, model: ModelSpec) -> str:
    """Return the id of the model's experiment. A concurrent run may create it first."""
    experiment = client.get_experiment_by_name(model.name)
    if experiment is None:
        # A server decides where artifacts go. Without one they would go to the working directory.
        is_local = settings().mlflow.get_secret_value().startswith("sqlite:")
        location = (settings().home / "mlflow-artifacts" / model.name).as_uri() if is_local else None
        with suppress(MlflowException):
            return client.create_experiment(model.name, artifact_location=location)
        experiment = client.get_experiment_by_name(model.name)
        assert experiment
    return experiment.experiment_id


def _verdict_metrics(verdict: Verdict) -> Mapping[str, float]:
    return {
        f"{result.gate}.{role}": value
        for result in verdict.results
        for role, value in (("candidate", result.candidate), ("champion", result.champion))
        if value is not None
    }
