"""The MLflow registry: candidates go in sealed, with all that made them, and its aliases follow the ledger."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

from evergreen import ledger, storage
from evergreen.errors import RegistryError, ScoringError, first_line
from evergreen.gates import Verdict
from evergreen.lake import datasets, fingerprints
from evergreen.registry import signing
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.training import TrainingResult, candidates, cost
from evergreen.training.attempt import read_attempts

if TYPE_CHECKING:
    from evergreen.scoring.predictors import Predictor

CHAMPION_ALIAS, CANDIDATE_ALIAS, PREVIOUS_ALIAS, CHALLENGER_ALIAS = (
    "champion",
    "candidate",
    "previous",
    "challenger",
)

_INPUTS_KEY = "evergreen_inputs"
_FINGERPRINT_TAG, _MANIFEST_TAG, _SIGNED_BY_TAG = (
    "evergreen.fingerprint",
    "evergreen.manifest",
    "evergreen.signed_by",
)  # tags


def get_champion_version(model: ModelSpec) -> ModelVersion | None:
    """The registered version that is champion by the ledger, or None if none has been promoted.

    Raises:
        RegistryError: it is not registered any more.
    """
    version = ledger.read_state(model.name).champion
    if version is None:
        return None
    try:
        return _client().get_model_version(model.name, version)
    except MlflowException as error:
        if error.error_code in _NOT_FOUND_CODES:
            raise RegistryError(_missing_version_message(model.name, CHAMPION_ALIAS, version)) from None
        raise


def holdout_start(version: ModelVersion) -> date:
    """The first day whose labels the version has not learned from."""
    return date.fromisoformat(version.tags["evergreen.holdout"])


def register_candidate(
    model: ModelSpec,
    training_set: datasets.Manifest,
    candidate: datasets.Manifest,
    verdict: Verdict,
    report: Path,
) -> str:
    """Register the candidate, its files sealed, with its verdict and fingerprints; gives its version.

    A candidate that is registered already, by an earlier attempt or a twin, keeps its version.

    Raises:
        ScoringError: the candidate's file is not the one that was published, or takes other columns.
        SignatureError: its files may not be registered, or the key cannot sign them.
    """
    client = _client()
    mark = candidate.fingerprint
    for known in client.search_model_versions(f"name = '{model.name}'"):
        if known.tags.get(_FINGERPRINT_TAG) == mark:
            client.set_registered_model_alias(model.name, CANDIDATE_ALIAS, known.version)
            return str(known.version)
    experiment = _get_or_create_experiment(client, model)
    source = candidates.candidate_dataset(model)
    result = TrainingResult.read(source.file_path(candidate, "result.json"))
    day, holdout = training_set.inputs["as_of"], training_set.inputs["holdout"]
    with mlflow.start_run(experiment_id=experiment, run_name=f"as of {day}") as run:
        mlflow.log_params({**model.parameters, "seed": model.seed})
        spent = _training_cost(model, candidate)
        mlflow.log_metrics({**result.metrics, **_verdict_metrics(verdict), **spent.metrics})
        mlflow.set_tags({"evergreen.model": model.name, "evergreen.team": model.owner})
        mlflow.log_dict(json.loads(candidate.to_json()), "evidence/model.json")
        mlflow.log_dict(json.loads(training_set.to_json()), "evidence/training_set.json")
        mlflow.log_dict(verdict.model_dump(mode="json"), "evidence/verdict.json")
        mlflow.log_text(report.read_text(), "evidence/gate_report.html")
        inputs = tuple(candidate.inputs["features"])
        seal = _ManifestWriter(signing.ModelIdentity(model.name, mark))
        with _open_candidate(model, candidate) as (file, predictor):
            predictor.check_columns(inputs)
            logged = mlflow.models.Model.log(
                artifact_path=None,
                name="model",
                flavor=_ModelFlavor(file, predictor, seal),
                flavor_name=predictor.mlflow_flavor,
                signature=ModelSignature(
                    Schema([ColSpec(predictor.mlflow_type(name), name, required=False) for name in inputs]),
                    Schema([ColSpec("double")]),
                ),
                # Given, not inferred: inferring installs nothing but takes ten seconds.
                pip_requirements=[predictor.pip_requirement(result.environment)],
                metadata={_INPUTS_KEY: list(inputs)},
            )
        version = mlflow.register_model(
            logged.model_uri,
            model.name,
            tags={
                _FINGERPRINT_TAG: mark,
                **seal.tags,
                "evergreen.data": training_set.content_hash,
                "evergreen.code": fingerprints.compute_fingerprint(candidate.inputs["code"]),
                "evergreen.environment": fingerprints.compute_fingerprint(dict(result.environment)),
                "evergreen.as_of": day,
                "evergreen.holdout": holdout,
                "evergreen.verdict": verdict.reason,
                "evergreen.team": model.owner,
                "evergreen.cost": spent.summary,
                "evergreen.run": run.info.run_id,
            },
        )
    client.set_registered_model_alias(model.name, CANDIDATE_ALIAS, version.version)
    return str(version.version)


def sync_aliases(model_name: str) -> ledger.LedgerState:
    """Let the aliases `champion`, `previous` and `challenger` show what the ledger says; gives what it says.

    MLflow's aliases know no condition: the last who writes wins, also one who read the ledger long ago. So each
    who writes looks at the ledger again afterwards, and goes on until it has not moved. Then the last write is
    always followed by a look, and only who is killed in between leaves an alias behind, for `repair`.

    Until the first promotion nothing is deleted: what is there was put there before there was a ledger.

    Raises:
        LedgerError: the ledger is damaged.
        RegistryError: a version is not registered any more.
    """
    client = _client()
    state = ledger.read_state(model_name)
    while True:
        if (
            _try_set_aliases(client, model_name, state)
            and ledger.read_state(model_name).head_number == state.head_number
        ):
            return state
        state = ledger.read_state(model_name)


def repair_aliases(model_name: str) -> AliasRepair:
    """Tell how the aliases stand to the ledger, and make them right. Safe at any time, beside promotions too.

    Raises:
        LedgerError, RegistryError: as `follow`.
    """
    client = _client()
    while True:
        state = ledger.read_state(model_name)
        found = _read_aliases(client, model_name)
        if (
            ledger.read_state(model_name).head_number == state.head_number
        ):  # or it is not the state that the aliases should show
            break
    sync_aliases(model_name)
    return AliasRepair(model_name, tuple(_alias_status(alias, found.get(alias), state) for alias in _LEDGER_ALIASES))


@dataclass(frozen=True)
class AliasStatus:
    """How one alias stood to the ledger.

    Attributes:
        found: the version that had it.
        right: the version that has it by the ledger.
        finding: `behind` shows what was right once: a crash leaves that, and whoever moves it by hand to such a
            version. `missing` is not there, and should be: never set because of a crash, or deleted by hand.
    """

    alias: str
    actual_version: str | None
    expected_version: str | None
    status: Literal["right", "behind", "moved by hand", "missing"]
    message: str


@dataclass(frozen=True)
class AliasRepair:
    """What `repair` found, alias by alias."""

    model: str
    aliases: tuple[AliasStatus, ...]

    @property
    def was_consistent(self) -> bool:
        return all(alias.status == "right" for alias in self.aliases)

    @property
    def messages(self) -> tuple[str, ...]:
        return tuple(alias.message for alias in self.aliases)


@contextmanager
def open_artifact(model: ModelSpec, version: str) -> Iterator[Path]:
    """A folder with the files of a registered version, verified, for as long as the context lasts.

    Raises:
        ScoringError: the registry cannot give them.
        SignatureError: they are not what was registered, not signed where signing is on, or may not be loaded.
    """
    with _download_verified(model.name, version) as (folder, _):
        yield folder


def verify_version(model: str, version: str, candidate_fingerprint: str | None = None) -> None:
    """Refuse a version that `artifact` would refuse, or that is not the `candidate` with this fingerprint, if given.

    Raises:
        ScoringError, SignatureError: as `artifact`.
        RegistryError: it is another candidate: somebody has changed the registry.
    """
    with _download_verified(model, version) as (_, known):
        there = known.tags.get(_FINGERPRINT_TAG)
    if candidate_fingerprint and there != candidate_fingerprint:
        raise RegistryError(
            f"version {version} of {model} is candidate {there}, and {candidate_fingerprint} was judged: find out who changed "
            "the registry; the champion stays"
        )


def sign_version(model: str, version: str) -> None:
    """Sign a registered version with the key that is configured: one from before signing was on, or of an older key.

    A version without a manifest gets one of the files as they are: whoever calls this vouches for them.

    Raises:
        ScoringError: the registry cannot give its files.
        SignatureError: they are not what was registered, may not be loaded, or the key cannot sign them.
    """
    client = _client()
    with tempfile.TemporaryDirectory() as scratch:
        folder, known = _download_version(client, model, version, Path(scratch))
        logged = (known.source or "").removeprefix("models:/")
        if not logged.startswith("m-"):
            raise ScoringError(f"version {version} of {model} lies at {known.source}, not as a logged model: retrain")
        seal = _ManifestWriter(_version_identity(known))
        if manifest := known.tags.get(_MANIFEST_TAG):
            signing.verify_files(folder, seal.identity, manifest, trusted_keys=None)
        seal.write(folder)
        for name in (signing.MANIFEST_FILE, signing.SIGNATURE_FILE):
            if (folder / name).exists():
                client.log_model_artifact(logged, str(folder / name))
    for tag, value in seal.tags.items():
        client.set_model_version_tag(model, version, tag, value)


def read_input_columns(folder: Path) -> tuple[str, ...]:
    """The input columns, in order, of the model whose registered files lie in `folder`.

    Raises:
        ScoringError: the files do not tell.
    """
    try:
        return tuple((mlflow.models.Model.load(str(folder)).metadata or {})[_INPUTS_KEY])
    except (MlflowException, OSError, KeyError) as error:
        raise ScoringError(f"its MLmodel file does not list its inputs: {error}") from None


@dataclass
class _ManifestWriter:
    """The seal on the files of `subject`; the version's `tags` tell of it."""

    identity: signing.ModelIdentity
    tags: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Seal the folder, with the key that is configured."""
        chosen = settings()
        key = signing.SigningKey(chosen.signing_key, chosen.signing_passphrase) if chosen.signing_key else None
        self.tags[_MANIFEST_TAG] = signing.write_model_manifest(folder, self.identity, key)
        if key:
            # Here, so that a key that nobody trusts is noticed before anything is registered.
            signing.verify_files(folder, self.identity, self.tags[_MANIFEST_TAG], chosen.signing_public_key)
            self.tags[_SIGNED_BY_TAG] = signing.claimed_key_hash(folder) or ""


@dataclass(frozen=True)
class _ModelFlavor:
    """MLflow's flavour for the model in `file`, whose folder is sealed when it is written, before MLflow takes it."""

    file: Path
    predictor: Predictor
    manifest_writer: _ManifestWriter

    def save_model(self, path: str, **options: Any) -> None:
        flavour = import_module(f"mlflow.{self.predictor.mlflow_flavor}")
        flavour.save_model(path=path, **self.predictor.save_model_arguments(), **options)
        # A library may write what it has read in other bytes: those that were judged are registered.
        shutil.copyfile(self.file, Path(path, self.file.name))
        self.manifest_writer.write(Path(path))


@contextmanager
def _open_candidate(model: ModelSpec, candidate: datasets.Manifest) -> Iterator[tuple[Path, Predictor]]:
    """The candidate's file, as it was published, and the model in it."""
    from evergreen.scoring import predictions, predictors

    with predictions.candidate_folder(model, candidate) as folder:
        file = predictions.model_file(folder)
        if storage.file_sha256(file) != candidate.files[file.name].sha256:
            raise ScoringError(
                f"{file.resolve()} was changed after it was published: remove it and its manifest, and train again"
            )
        yield file, predictors.load_predictor(file)


@contextmanager
def _download_verified(model: str, version: str) -> Iterator[tuple[Path, ModelVersion]]:
    """The files of a version, and what the registry says of it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, known = _download_version(_client(), model, version, Path(scratch))
        # What was downloaded is what is used: nobody can change it in between.
        signing.verify_files(
            folder, _version_identity(known), known.tags.get(_MANIFEST_TAG), settings().signing_public_key
        )
        yield folder, known


def _download_version(
    client: mlflow.MlflowClient, model: str, version: str, scratch: Path
) -> tuple[Path, ModelVersion]:
    """The files of a version as the registry has them, and what it says about the version."""
    try:
        known = client.get_model_version(model, version)
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model}/{version}", dst_path=str(scratch)))
    except (MlflowException, OSError) as error:
        raise ScoringError(f"its artifact cannot be loaded: {first_line(error)}") from None
    (folder / REGISTERED_MODEL_META_FILE_NAME).unlink(missing_ok=True)  # the download puts it there
    return folder, known


def _version_identity(version: ModelVersion) -> signing.ModelIdentity:
    return signing.ModelIdentity(version.name, version.tags.get(_FINGERPRINT_TAG, ""))


def _training_cost(model: ModelSpec, candidate: datasets.Manifest) -> cost.TrainingCost:
    """Of all attempts at the job of the candidate."""
    table = settings().prices
    prices = cost.PriceTable.read(table) if table else None
    return cost.total_cost(read_attempts(candidates.job_folder(model, candidate.fingerprint)), prices)


def _client() -> mlflow.MlflowClient:
    mlflow.set_tracking_uri(settings().mlflow)
    return mlflow.MlflowClient(settings().mlflow)


def _get_or_create_experiment(client: mlflow.MlflowClient, model: ModelSpec) -> str:
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


_NOT_FOUND_CODES = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
)  # which of them depends on what is missing
_LEDGER_ALIASES: Mapping[str, Callable[[ledger.LedgerState], str | None]] = {
    CHAMPION_ALIAS: lambda state: state.champion,
    PREVIOUS_ALIAS: lambda state: state.previous_champion,
    CHALLENGER_ALIAS: lambda state: state.challenger,
}


def _read_aliases(client: mlflow.MlflowClient, model_name: str) -> dict[str, str]:
    """Alias → version. Over HTTP versions are strings, from a database they are numbers."""
    try:
        found = client.get_registered_model(model_name).aliases
    except MlflowException as error:
        if error.error_code in _NOT_FOUND_CODES:
            return {}
        raise
    return {alias: str(version) for alias, version in found.items()}


def _try_set_aliases(client: mlflow.MlflowClient, model_name: str, state: ledger.LedgerState) -> bool:
    """Whether it could: somebody else may be at it, and MLflow refuses one of two that set a new alias at once."""
    found = _read_aliases(client, model_name)
    for alias, of in _LEDGER_ALIASES.items():
        version = of(state)
        if version == found.get(alias) or (version is None and not state.tenures):
            continue
        try:
            if version is None:
                client.delete_registered_model_alias(model_name, alias)
            else:
                client.set_registered_model_alias(model_name, alias, version)
        except MlflowException as error:
            if error.error_code in _NOT_FOUND_CODES and version is not None:
                raise RegistryError(_missing_version_message(model_name, alias, version)) from None
            if _read_aliases(client, model_name).get(alias) == found.get(alias):
                raise
            return False
    return True


def _alias_status(alias: str, actual_version: str | None, state: ledger.LedgerState) -> AliasStatus:
    of = _LEDGER_ALIASES[alias]
    # What the alias has been by the ledger, each with the entry since which it was so.
    history: list[tuple[str | None, int]] = [(None, 0)]
    for past in ledger.iter_states(state.entries):
        if of(past) != history[-1][0]:
            history.append((of(past), past.head_number))
    right, since = history[-1]
    shown = f"version {actual_version}" if actual_version else "no version"
    if actual_version == right:
        return AliasStatus(alias, actual_version, right, "right", f"{alias} is {shown}, as the ledger says")
    by_ledger = f"version {right} (entry {since})" if right else "no version"
    if not state.tenures and right is None:
        sentence = (
            f"{alias} is {shown}, but the ledger knows of no promotion: left as it is, it was set by hand or before "
            "there was a ledger"
        )
        return AliasStatus(alias, actual_version, right, "moved by hand", sentence)
    if actual_version is None:
        sentence = (
            f"{alias} was missing, and is {by_ledger} now: somebody was interrupted before it was set, or it was "
            "deleted by hand"
        )
        return AliasStatus(alias, actual_version, right, "missing", sentence)
    if actual_version in (version for version, _ in history[:-1]):
        ended = max(number for (version, _), (_, number) in pairwise(history) if version == actual_version)
        sentence = (
            f"{alias} was {shown}, which was right until entry {ended}, and is {by_ledger} now: somebody was "
            "interrupted, or has moved it by hand"
        )
        return AliasStatus(alias, actual_version, right, "behind", sentence)
    sentence = f"{alias} was {shown}, moved by hand outside the ledger, which says {by_ledger}: put right"
    return AliasStatus(alias, actual_version, right, "moved by hand", sentence)


def _missing_version_message(model_name: str, alias: str, version: str) -> str:
    return (
        f"{alias} of {model_name} is version {version} by the ledger, but MLflow has no such version: it was deleted, "
        f"or {settings().mlflow} is not the registry that the ledger is about; restore the registry, or roll back"
    )


def _verdict_metrics(verdict: Verdict) -> Mapping[str, float]:
    return {
        f"{record.gate}.{who}": value
        for record in verdict.results
        for who, value in (("candidate", record.candidate), ("champion", record.champion))
        if value is not None
    }
