"""Versions in the MLflow registry: registered with a signed manifest and their evidence, verified before each use."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

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
from evergreen.errors import (
    Fault,
    InputsChangedError,
    RegistryError,
    ScoringError,
    SignatureError,
    first_line,
    validation_problem,
)
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.gates import Verdict
from evergreen.lake import datasets, fingerprints
from evergreen.local_services import accepts_connections
from evergreen.registry import signing
from evergreen.registry.tracking import tracking_uri
from evergreen.scoring import predictions, predictors
from evergreen.scoring.predictions import Champion
from evergreen.scoring.predictors import Predictor
from evergreen.settings import parse_host_and_port, settings
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath
from evergreen.training import TrainingResult, candidates, cost
from evergreen.training.attempt import read_attempts

ARTIFACTS_FOLDER = "mlflow-artifacts"
"""Folder in the home folder with the files of versions, of a registry that needs no other machine."""
CANDIDATE_ALIAS = "candidate"
NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's choice depends on what is missing

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0

_INPUTS_KEY = "evergreen_inputs"
# For those who load the file without Evergreen, which undoes the transform.
_TRANSFORM_KEY, _TRANSFORM_TAG = "evergreen_target_transform", "evergreen.target_transform"
_FINGERPRINT_TAG, _MANIFEST_TAG, _SIGNED_BY_TAG = "evergreen.fingerprint", "evergreen.manifest", "evergreen.signed_by"


def registry_client() -> mlflow.MlflowClient:
    """Return a client of MLflow at `tracking_uri`."""
    url = tracking_uri()
    uri = url.get_secret_value()
    login = urlsplit(uri)
    if login.scheme in ("http", "https") and login.username:
        # MLflow's errors show its URI.
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(login.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(login.password or "")
        uri = str(url)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def get_champion_version(model: ModelSpec) -> ModelVersion | None:
    """Return the version that the ledger's champion is registered as, or None without a champion.

    Its files are not verified: `open_champion` does that.

    Raises:
        RegistryError: it is not registered any more.
    """
    state = ledger.read_state(model.name)
    return _find_version(model.name, state, state.champion_content) if state.champion_content else None


def find_champion(model: ModelSpec) -> Champion | None:
    """Return the champion to compare a candidate with, or None if there is none.

    Raises:
        RegistryError: it is not registered any more.
    """
    state = ledger.read_state(model.name)
    tenure = state.champion_tenure
    if tenure is None:
        return None
    version = _find_version(model.name, state, tenure.content)
    return Champion(
        str(version.version), tenure.labels_until, content=tenure.content, accepted_change=state.accepted_change
    )


def hash_candidate(candidate: datasets.Manifest) -> str:
    """Return the content hash that the candidate's version has, or will have, in the ledger."""
    return ledger.hash_model(*predictions.model_identity(candidate))


def register_candidate(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    verdict_entry: int,
    report: UPath | Path,
) -> str:
    """Register the candidate that was judged in entry `verdict_entry` of the ledger; return its version.

    A candidate that an earlier attempt or a concurrent run has registered keeps its version, if that still has its
    files. Otherwise it is registered again: this also brings back a champion that was deleted. A version without an
    entry in the ledger, such as one of an attempt that was killed, is never used.

    Raises:
        InputsChangedError: the candidate is not the one that was judged.
        ScoringError: the candidate's file is not the one that was published, or takes other columns.
        SignatureError: its files may not be registered, or the key cannot sign them.
    """
    client = registry_client()
    verdict_event = ledger.read_verdict_event(model.name, verdict_entry)
    content, verdict = verdict_event.candidate_content, verdict_event.verdict
    if predictions.model_identity(candidate) != (verdict_event.candidate_files, verdict_event.candidate_inputs):
        raise InputsChangedError(
            f"the candidate {candidate.fingerprint[:12]} of {model.name} is not the one that entry {verdict_entry} of "
            "the ledger judged: clear the run from its evaluate task on"
        )
    registration = ledger.read_state(model.name).find_registration(content)
    if registration and (present := _intact_version(model.name, content)):
        client.set_registered_model_alias(model.name, CANDIDATE_ALIAS, present)
        return present
    fingerprint = candidate.fingerprint
    experiment = _get_or_create_experiment(client, model)
    source = candidates.candidate_dataset(model)
    result = TrainingResult.model_validate_json(source.file_path(candidate, "result.json").read_bytes())
    as_of = training_set.inputs["as_of"]
    with mlflow.start_run(experiment_id=experiment, run_name=f"as of {as_of}") as run:
        mlflow.log_params({**model.parameters, "seed": model.seed})
        training_cost = _training_cost(model, candidate)
        mlflow.log_metrics({**result.metrics, **_verdict_metrics(verdict), **training_cost.metrics})
        reason_tags = _reason_tags(verdict_event)
        mlflow.set_tags({"evergreen.model": model.name, "evergreen.team": model.owner, **reason_tags})
        mlflow.log_dict(json.loads(candidate.to_json()), "evidence/model.json")
        mlflow.log_dict(json.loads(training_set.to_json()), "evidence/training_set.json")
        mlflow.log_dict(verdict.model_dump(mode="json"), "evidence/verdict.json")
        mlflow.log_text(report.read_text(), "evidence/gate_report.html")
        model_inputs = ModelInputs.from_training_set(training_set, candidate.inputs["features"], model.prediction_type)
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
                metadata={
                    _INPUTS_KEY: model_inputs.model_dump(mode="json"),
                    **_transform_note(_TRANSFORM_KEY, predictor.target_transform),
                },
            )
        # What follows may be killed before the ledger knows the version: then it is nobody's, and a retry adds another.
        version = mlflow.register_model(
            logged.model_uri,
            model.name,
            tags={
                _FINGERPRINT_TAG: fingerprint,
                **manifest_tags,
                **_transform_note(_TRANSFORM_TAG, predictor.target_transform),
                **reason_tags,
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

    def decide(state: ledger.LedgerState) -> ledger.VersionRegistered | ledger.LedgerEntry:
        latest = state.find_registration(content)
        if latest and latest != registration:  # a concurrent run was first
            return state.entries[latest.entry_number - 1]
        return ledger.VersionRegistered(
            version=str(version.version), verdict_entry=verdict_entry, manifest_sha256=manifest_tags[_MANIFEST_TAG]
        )

    event = ledger.append_decision(model.name, verdict_event.run, decide).event
    assert isinstance(event, ledger.VersionRegistered)
    client.set_registered_model_alias(model.name, CANDIDATE_ALIAS, event.version)
    return event.version


def _reason_tags(event: ledger.VerdictRecorded) -> dict[str, str]:
    """Return why the run exists that trained the candidate, and what the alarms say that asked for it, if some did."""
    return {
        "evergreen.run_reason": event.run_reason.value,
        **({"evergreen.cause": event.cause} if event.cause else {}),
    }


@contextmanager
def open_champion(model: str) -> Iterator[tuple[Path, ModelVersion]]:
    """Yield a temporary folder with the champion's files, as `open_model` does: those that the gates have judged.

    Raises:
        RegistryError: there is no champion, it is not registered any more, or MLflow is not running.
        ScoringError, SignatureError: as `open_model`.
    """
    content = ledger.read_state(model).champion_content
    if content is None:
        raise RegistryError(f"{model} has no champion: promote a version first")
    check_server_accepts_connections()
    with open_model(model, content) as opened:
        yield opened


@contextmanager
def open_model(model: str, content: str) -> Iterator[tuple[Path, ModelVersion]]:
    """Yield a temporary folder with the files of the model of this content, and its version in MLflow.

    The files are those that were judged and registered, by their hashes in the ledger. MLflow's tags are not read.

    Raises:
        RegistryError: it is not registered any more.
        ScoringError: the registry cannot provide the files.
        SignatureError: they are not what was registered, not signed although signing is on, or may not be loaded.
    """
    state = ledger.read_state(model)
    model_version = _find_version(model, state, content)
    with tempfile.TemporaryDirectory() as scratch:
        # The downloaded copy is used, so nobody can change the files after the check.
        folder = _download_version(model_version, Path(scratch))
        _verify_folder(model, state, content, folder, settings().signing_public_key)
        yield folder, model_version


@contextmanager
def open_artifact(model: str, version: str) -> Iterator[tuple[Path, ModelVersion]]:
    """Yield a temporary folder with the files of what is registered as a version, as `open_model` does.

    Raises:
        RegistryError: the version is not in the ledger, or what was registered as it is gone.
        ScoringError, SignatureError: as `open_model`.
    """
    with open_model(model, _registered_content(model, ledger.read_state(model), version)) as opened:
        yield opened


def find_candidate_version(model: str) -> str:
    """Return the version with the alias `candidate`: the last one that was registered, or judged again.

    Raises:
        RegistryError: there is none.
    """
    try:
        return str(registry_client().get_model_version_by_alias(model, CANDIDATE_ALIAS).version)
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            raise RegistryError(f"{model} has no {CANDIDATE_ALIAS}: nothing was registered yet") from None
        raise


def verify_version(model: str, version: str, content: str | None = None) -> None:
    """Refuse a version unless its files are what was registered as it, and the model of this content.

    Raises:
        RegistryError: the version is another candidate, or is not in the ledger.
        ScoringError, SignatureError: as `open_model`.
    """
    state = ledger.read_state(model)
    actual = _registered_content(model, state, version)
    if content and actual != content:
        raise RegistryError(
            f"version {version} of {model} is candidate {_fingerprint(state, actual)}, and "
            f"{content[:12]} was judged: find out who changed the registry; the champion stays"
        )
    with open_model(model, actual):
        pass


def sign_version(model: str, version: str) -> None:
    """Sign a registered version with the configured key, for example after signing was turned on or the key rotated.

    Raises:
        RegistryError: the ledger does not say what the version is.
        ScoringError: the registry cannot provide the files.
        SignatureError: they are not what was registered, may not be loaded, or the key cannot sign them.
    """
    client, state = registry_client(), ledger.read_state(model)
    content = _registered_content(model, state, version)
    model_version = _find_version(model, state, content)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _download_version(model_version, Path(scratch))
        logged_model = (model_version.source or "").removeprefix("models:/")
        if not logged_model.startswith("m-"):
            raise ScoringError(
                f"version {version} of {model} is stored at {model_version.source}, not as a logged model: retrain"
            )
        _verify_folder(model, state, content, folder, trusted_keys=None)
        tags = _write_manifest(folder, signing.ModelIdentity(model, _fingerprint(state, content)))
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


def _transform_note(name: str, transform: str | None) -> dict[str, str]:
    return {name: transform} if transform else {}


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


def _download_version(version: ModelVersion, scratch: Path) -> Path:
    source = f"models:/{version.name}/{version.version}"
    try:
        stored = _find_stored_folder(version)
        if stored:
            folder = Path(shutil.copytree(stored, scratch / "model"))
        else:
            folder = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(scratch)))
    except (MlflowException, OSError) as error:
        raise ScoringError(f"its artifact cannot be loaded: {first_line(error)}") from None
    (folder / REGISTERED_MODEL_META_FILE_NAME).unlink(missing_ok=True)  # added by the download
    if not any(folder.iterdir()):  # as of a disk that is not mounted
        raise ScoringError(f"its artifact cannot be loaded: there is no file at {version.source}")
    return folder


def _find_stored_folder(version: ModelVersion) -> Path | None:
    """Return the folder with the files of a version that the local stack's server has stored; None if it serves them.

    Without the server MLflow refuses the URIs that it gave them, since these are paths below a folder of the server.

    Raises:
        ScoringError: they are files of another server.
    """
    registry = tracking_uri()
    if registry.get_secret_value().startswith(("http:", "https:")):
        return None
    uri = urlsplit(registry_client().get_model_version_download_uri(version.name, version.version))
    if uri.scheme != "mlflow-artifacts":
        return None
    root = (settings().home / ARTIFACTS_FOLDER).resolve()
    folder = (root / uri.path.lstrip("/")).resolve()
    if uri.netloc or not folder.is_relative_to(root) or not folder.is_dir():
        raise ScoringError(
            f"its artifact cannot be loaded: an MLflow server has stored it, {folder} is not there, and {registry} is "
            "no server: start it by `evergreen up`, or set EVERGREEN_MLFLOW to its address"
        )
    return folder


def check_server_accepts_connections() -> None:
    """Refuse a server that is down at once: MLflow's client would try for minutes."""
    url = tracking_uri()
    address = url.get_secret_value()
    ports = {"http": 80, "https": 443}
    scheme = urlsplit(address).scheme
    if scheme not in ports:
        return
    host, port = parse_host_and_port(address, ports[scheme])
    has_proxy = not {scheme, "all"}.isdisjoint(getproxies()) and not proxy_bypass(host)
    if not has_proxy and not accepts_connections(host, port, timeout=_CONNECT_TIMEOUT_S):
        raise RegistryError(
            f"MLflow is not running at {url}: start it, correct EVERGREEN_MLFLOW, or unset that for the MLflow of "
            "`evergreen up`, whose files can be read while it is down"
        )


def _find_version(model: str, state: ledger.LedgerState, content: str) -> ModelVersion:
    """Return the version in MLflow that is registered with this content."""
    registration = state.find_registration(content)
    if registration is None:
        raise RegistryError(_missing_problem(model, state, content, "none of its versions in MLflow is that"))
    try:
        return registry_client().get_model_version(model, registration.version)
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            problem = (
                f"MLflow has no such version: it was deleted, or {tracking_uri()} is not the registry that the "
                "ledger is about"
            )
            raise RegistryError(_missing_problem(model, state, content, problem)) from None
        raise


def _missing_problem(model: str, state: ledger.LedgerState, content: str, problem: str) -> str:
    """Say which model is missing, and every way out."""
    name = state.name_of(content, content[:12])
    roles = {state.champion_content: "champion", state.challenger_content: "challenger"}
    registration = next((item for item in reversed(state.registrations) if item.content == content), None)
    verdict_event = registration and state.find_verdict_event(registration.verdict_entry)
    if content == state.challenger_content:
        verdict_event = verdict_event or state.challenger_event
    run = verdict_event.run if verdict_event else "its run"
    fixes = [f"clear the register task of {run}, which registers it again from the lake", "restore the registry"]
    if content == state.champion_content:
        fixes += ["roll back", f"if its files are gone for good, `evergreen declare-lost {model}`"]
    return (
        f"{roles.get(content, 'a model')} of {model} is version {name} by the ledger, but {problem}. "
        f"Way out: {'; or '.join(fixes)}"
    )


def _registered_content(model: str, state: ledger.LedgerState, version: str) -> str:
    registration = state.find_version(version)
    if registration is None:
        raise RegistryError(
            f"version {version} of {model} is not in its ledger, so nothing says what it must hold: clear the register "
            "task of its run, which registers what was judged"
        )
    return registration.content


def _fingerprint(state: ledger.LedgerState, content: str) -> str:
    registration = state.find_registration(content)
    verdict_event = registration and state.find_verdict_event(registration.verdict_entry)
    assert verdict_event
    return verdict_event.candidate_fingerprint


def _verify_folder(
    model: str, state: ledger.LedgerState, content: str, folder: Path, trusted_keys: Path | None
) -> None:
    """Refuse files that are not those of the registration of `content` in the ledger."""
    registration = state.find_registration(content)
    verdict_event = registration and state.find_verdict_event(registration.verdict_entry)
    assert registration
    assert verdict_event
    identity = signing.ModelIdentity(model, verdict_event.candidate_fingerprint)
    signing.verify_files(folder, identity, registration.manifest_sha256, trusted_keys)
    faults = [
        Fault(name, "is not the file that was judged", f"clear the register task of {verdict_event.run}")
        for name, sha256 in verdict_event.candidate_files.items()
        if not (folder / name).is_file() or storage.file_sha256(folder / name) != sha256
    ]
    if faults:
        raise SignatureError(f"the files of {model}", faults)


def _intact_version(model: str, content: str) -> str | None:
    """Return the version that has the files of this content; None if it, or a file, was deleted or changed."""
    try:
        with open_model(model, content) as (_, model_version):
            return str(model_version.version)
    except (RegistryError, ScoringError) as error:
        log.warning("%s: it is registered again", error)
        return None


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
        is_local = tracking_uri().get_secret_value().startswith("sqlite:")
        location = (settings().home / ARTIFACTS_FOLDER / model.name).as_uri() if is_local else None
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
