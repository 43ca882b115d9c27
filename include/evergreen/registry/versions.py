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
from evergreen.errors import RegistryError, ScoringError
from evergreen.gates import Verdict
from evergreen.lake import datasets, fingerprints
from evergreen.registry import signing
from evergreen.settings import settings
from evergreen.spec.model import Model
from evergreen.training import Result, candidates, cost
from evergreen.training.attempt import attempts

if TYPE_CHECKING:
    from evergreen.scoring.predictors import Predictor

CHAMPION, CANDIDATE, PREVIOUS, CHALLENGER = "champion", "candidate", "previous", "challenger"

_INPUTS = "evergreen_inputs"
_FINGERPRINT, _MANIFEST, _SIGNED_BY = (
    "evergreen.fingerprint",
    "evergreen.manifest",
    "evergreen.signed_by",
)  # tags


def champion(model: Model) -> ModelVersion | None:
    """The registered version that is champion by the ledger, or None if none has been promoted.

    Raises:
        RegistryError: it is not registered any more.
    """
    version = ledger.state(model.name).champion
    if version is None:
        return None
    try:
        return _client().get_model_version(model.name, version)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            raise RegistryError(_gone(model.name, CHAMPION, version)) from None
        raise


def holdout_start(version: ModelVersion) -> date:
    """The first day whose labels the version has not learned from."""
    return date.fromisoformat(version.tags["evergreen.holdout"])


def register(
    model: Model,
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
        if known.tags.get(_FINGERPRINT) == mark:
            client.set_registered_model_alias(model.name, CANDIDATE, known.version)
            return str(known.version)
    experiment = _experiment(client, model)
    source = candidates.dataset(model)
    result = Result.read(source.path(candidate, "result.json"))
    day, holdout = training_set.inputs["as_of"], training_set.inputs["holdout"]
    with mlflow.start_run(experiment_id=experiment, run_name=f"as of {day}") as run:
        mlflow.log_params({**model.parameters, "seed": model.seed})
        spent = _cost(model, candidate)
        mlflow.log_metrics({**result.metrics, **_values(verdict), **spent.metrics})
        mlflow.set_tags({"evergreen.model": model.name, "evergreen.team": model.owner})
        mlflow.log_dict(json.loads(candidate.to_json()), "evidence/model.json")
        mlflow.log_dict(json.loads(training_set.to_json()), "evidence/training_set.json")
        mlflow.log_dict(verdict.model_dump(mode="json"), "evidence/verdict.json")
        mlflow.log_text(report.read_text(), "evidence/gate_report.html")
        inputs = tuple(candidate.inputs["features"])
        seal = _Seal(signing.Subject(model.name, mark))
        with _published(model, candidate) as (file, predictor):
            predictor.expect(inputs)
            logged = mlflow.models.Model.log(
                artifact_path=None,
                name="model",
                flavor=_Flavour(file, predictor, seal),
                flavor_name=predictor.flavour,
                signature=ModelSignature(
                    Schema([ColSpec(predictor.column_type(name), name, required=False) for name in inputs]),
                    Schema([ColSpec("double")]),
                ),
                # Given, not inferred: inferring installs nothing but takes ten seconds.
                pip_requirements=[predictor.requirement(result.environment)],
                metadata={_INPUTS: list(inputs)},
            )
        version = mlflow.register_model(
            logged.model_uri,
            model.name,
            tags={
                _FINGERPRINT: mark,
                **seal.tags,
                "evergreen.data": training_set.content,
                "evergreen.code": fingerprints.fingerprint(candidate.inputs["code"]),
                "evergreen.environment": fingerprints.fingerprint(dict(result.environment)),
                "evergreen.as_of": day,
                "evergreen.holdout": holdout,
                "evergreen.verdict": verdict.reason,
                "evergreen.team": model.owner,
                "evergreen.cost": spent.sentence,
                "evergreen.run": run.info.run_id,
            },
        )
    client.set_registered_model_alias(model.name, CANDIDATE, version.version)
    return str(version.version)


def follow(model_name: str) -> ledger.State:
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
    state = ledger.state(model_name)
    while True:
        if _set_aliases(client, model_name, state) and ledger.state(model_name).head == state.head:
            return state
        state = ledger.state(model_name)


def repair(model_name: str) -> Repair:
    """Tell how the aliases stand to the ledger, and make them right. Safe at any time, beside promotions too.

    Raises:
        LedgerError, RegistryError: as `follow`.
    """
    client = _client()
    while True:
        state = ledger.state(model_name)
        found = _aliases(client, model_name)
        if ledger.state(model_name).head == state.head:  # or it is not the state that the aliases should show
            break
    follow(model_name)
    return Repair(model_name, tuple(_compare(alias, found.get(alias), state) for alias in _FOLLOWING))


@dataclass(frozen=True)
class Alias:
    """How one alias stood to the ledger.

    Attributes:
        found: the version that had it.
        right: the version that has it by the ledger.
        finding: `behind` shows what was right once: a crash leaves that, and whoever moves it by hand to such a
            version. `missing` is not there, and should be: never set because of a crash, or deleted by hand.
    """

    alias: str
    found: str | None
    right: str | None
    finding: Literal["right", "behind", "moved by hand", "missing"]
    sentence: str


@dataclass(frozen=True)
class Repair:
    """What `repair` found, alias by alias."""

    model: str
    aliases: tuple[Alias, ...]

    @property
    def was_right(self) -> bool:
        return all(alias.finding == "right" for alias in self.aliases)

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(alias.sentence for alias in self.aliases)


@contextmanager
def artifact(model: Model, version: str) -> Iterator[Path]:
    """A folder with the files of a registered version, verified, for as long as the context lasts.

    Raises:
        ScoringError: the registry cannot give them.
        SignatureError: they are not what was registered, not signed where signing is on, or may not be loaded.
    """
    with _verified(model.name, version) as (folder, _):
        yield folder


def verify(model: str, version: str, candidate: str | None = None) -> None:
    """Refuse a version that `artifact` would refuse, or that is not the `candidate` with this fingerprint, if given.

    Raises:
        ScoringError, SignatureError: as `artifact`.
        RegistryError: it is another candidate: somebody has changed the registry.
    """
    with _verified(model, version) as (_, known):
        there = known.tags.get(_FINGERPRINT)
    if candidate and there != candidate:
        raise RegistryError(
            f"version {version} of {model} is candidate {there}, and {candidate} was judged: find out who changed "
            "the registry; the champion stays"
        )


def sign(model: str, version: str) -> None:
    """Sign a registered version with the key that is configured: one from before signing was on, or of an older key.

    A version without a manifest gets one of the files as they are: whoever calls this vouches for them.

    Raises:
        ScoringError: the registry cannot give its files.
        SignatureError: they are not what was registered, may not be loaded, or the key cannot sign them.
    """
    client = _client()
    with tempfile.TemporaryDirectory() as scratch:
        folder, known = _download(client, model, version, Path(scratch))
        logged = (known.source or "").removeprefix("models:/")
        if not logged.startswith("m-"):
            raise ScoringError(
                f"version {version} of {model} lies at {known.source}, not as a logged model: retrain"
            )
        seal = _Seal(_subject(known))
        if manifest := known.tags.get(_MANIFEST):
            signing.verify(folder, seal.subject, manifest, trusted=None)
        seal.put_on(folder)
        for name in (signing.MANIFEST, signing.SIGNATURE):
            if (folder / name).exists():
                client.log_model_artifact(logged, str(folder / name))
    for tag, value in seal.tags.items():
        client.set_model_version_tag(model, version, tag, value)


def inputs_of(folder: Path) -> tuple[str, ...]:
    """The input columns, in order, of the model whose registered files lie in `folder`.

    Raises:
        ScoringError: the files do not tell.
    """
    try:
        return tuple((mlflow.models.Model.load(str(folder)).metadata or {})[_INPUTS])
    except (MlflowException, OSError, KeyError) as error:
        raise ScoringError(f"its MLmodel file does not list its inputs: {error}") from None


@dataclass
class _Seal:
    """The seal on the files of `subject`; the version's `tags` tell of it."""

    subject: signing.Subject
    tags: dict[str, str] = field(default_factory=dict)

    def put_on(self, folder: Path) -> None:
        """Seal the folder, with the key that is configured."""
        chosen = settings()
        key = signing.Key(chosen.signing_key, chosen.signing_passphrase) if chosen.signing_key else None
        self.tags[_MANIFEST] = signing.seal(folder, self.subject, key)
        if key:
            # Here, so that a key that nobody trusts is noticed before anything is registered.
            signing.verify(folder, self.subject, self.tags[_MANIFEST], chosen.signing_public_key)
            self.tags[_SIGNED_BY] = signing.signer(folder) or ""


@dataclass(frozen=True)
class _Flavour:
    """MLflow's flavour for the model in `file`, whose folder is sealed when it is written, before MLflow takes it."""

    file: Path
    predictor: Predictor
    seal: _Seal

    def save_model(self, path: str, **options: Any) -> None:
        flavour = import_module(f"mlflow.{self.predictor.flavour}")
        flavour.save_model(path=path, **self.predictor.saving(), **options)
        # A library may write what it has read in other bytes: those that were judged are registered.
        shutil.copyfile(self.file, Path(path, self.file.name))
        self.seal.put_on(Path(path))


@contextmanager
def _published(model: Model, candidate: datasets.Manifest) -> Iterator[tuple[Path, Predictor]]:
    """The candidate's file, as it was published, and the model in it."""
    from evergreen.scoring import predictions, predictors

    with predictions.candidate_folder(model, candidate) as folder:
        file = predictions.model_file(folder)
        if storage.sha256(file) != candidate.files[file.name].sha256:
            raise ScoringError(
                f"{file.resolve()} was changed after it was published: remove it and its manifest, and train again"
            )
        yield file, predictors.load(file)


@contextmanager
def _verified(model: str, version: str) -> Iterator[tuple[Path, ModelVersion]]:
    """The files of a version, and what the registry says of it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, known = _download(_client(), model, version, Path(scratch))
        # What was downloaded is what is used: nobody can change it in between.
        signing.verify(folder, _subject(known), known.tags.get(_MANIFEST), settings().signing_public_key)
        yield folder, known


def _download(
    client: mlflow.MlflowClient, model: str, version: str, scratch: Path
) -> tuple[Path, ModelVersion]:
    """The files of a version as the registry has them, and what it says about the version."""
    try:
        known = client.get_model_version(model, version)
        folder = Path(
            mlflow.artifacts.download_artifacts(f"models:/{model}/{version}", dst_path=str(scratch))
        )
    except (MlflowException, OSError) as error:
        raise ScoringError(f"its artifact cannot be loaded: {str(error).splitlines()[0]}") from None
    (folder / REGISTERED_MODEL_META_FILE_NAME).unlink(missing_ok=True)  # the download puts it there
    return folder, known


def _subject(version: ModelVersion) -> signing.Subject:
    return signing.Subject(version.name, version.tags.get(_FINGERPRINT, ""))


def _cost(model: Model, candidate: datasets.Manifest) -> cost.Cost:
    """Of all attempts at the job of the candidate."""
    table = settings().prices
    prices = cost.Prices.read(table) if table else None
    return cost.total(attempts(candidates.job_folder(model, candidate.fingerprint)), prices)


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


_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # which of them depends on what is missing
_FOLLOWING: Mapping[str, Callable[[ledger.State], str | None]] = {
    CHAMPION: lambda state: state.champion,
    PREVIOUS: lambda state: state.previous,
    CHALLENGER: lambda state: state.challenger,
}


def _aliases(client: mlflow.MlflowClient, model_name: str) -> dict[str, str]:
    """Alias → version. Over HTTP versions are strings, from a database they are numbers."""
    try:
        found = client.get_registered_model(model_name).aliases
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return {}
        raise
    return {alias: str(version) for alias, version in found.items()}


def _set_aliases(client: mlflow.MlflowClient, model_name: str, state: ledger.State) -> bool:
    """Whether it could: somebody else may be at it, and MLflow refuses one of two that set a new alias at once."""
    found = _aliases(client, model_name)
    for alias, of in _FOLLOWING.items():
        version = of(state)
        if version == found.get(alias) or (version is None and not state.reigns):
            continue
        try:
            if version is None:
                client.delete_registered_model_alias(model_name, alias)
            else:
                client.set_registered_model_alias(model_name, alias, version)
        except MlflowException as error:
            if error.error_code in _ABSENT and version is not None:
                raise RegistryError(_gone(model_name, alias, version)) from None
            if _aliases(client, model_name).get(alias) == found.get(alias):
                raise
            return False
    return True


def _compare(alias: str, found: str | None, state: ledger.State) -> Alias:
    of = _FOLLOWING[alias]
    # What the alias has been by the ledger, each with the entry since which it was so.
    history: list[tuple[str | None, int]] = [(None, 0)]
    for past in ledger.history(state.entries):
        if of(past) != history[-1][0]:
            history.append((of(past), past.head))
    right, since = history[-1]
    shown = f"version {found}" if found else "no version"
    if found == right:
        return Alias(alias, found, right, "right", f"{alias} is {shown}, as the ledger says")
    by_ledger = f"version {right} (entry {since})" if right else "no version"
    if not state.reigns and right is None:
        sentence = (
            f"{alias} is {shown}, but the ledger knows of no promotion: left as it is, it was set by hand or before "
            "there was a ledger"
        )
        return Alias(alias, found, right, "moved by hand", sentence)
    if found is None:
        sentence = (
            f"{alias} was missing, and is {by_ledger} now: somebody was interrupted before it was set, or it was "
            "deleted by hand"
        )
        return Alias(alias, found, right, "missing", sentence)
    if found in (version for version, _ in history[:-1]):
        ended = max(number for (version, _), (_, number) in pairwise(history) if version == found)
        sentence = (
            f"{alias} was {shown}, which was right until entry {ended}, and is {by_ledger} now: somebody was "
            "interrupted, or has moved it by hand"
        )
        return Alias(alias, found, right, "behind", sentence)
    sentence = f"{alias} was {shown}, moved by hand outside the ledger, which says {by_ledger}: put right"
    return Alias(alias, found, right, "moved by hand", sentence)


def _gone(model_name: str, alias: str, version: str) -> str:
    return (
        f"{alias} of {model_name} is version {version} by the ledger, but MLflow has no such version: it was deleted, "
        f"or {settings().mlflow} is not the registry that the ledger is about; restore the registry, or roll back"
    )


def _values(verdict: Verdict) -> Mapping[str, float]:
    return {
        f"{record.gate}.{who}": value
        for record in verdict.records
        for who, value in (("candidate", record.candidate), ("champion", record.champion))
        if value is not None
    }
