"""Where a version of a model, or a batch of predictions, comes from, back to the raw files; and what became of it.

Only ledger, manifests and the reports of expectations are read: one file for each period of features or predictions,
and two for each raw file; in an object store sixteen at a time.

Each step is found by the hash that the next one recorded of it, and not by its name, so what is shown is what the
version was made from. What is not in the lake any more, or was replaced since, is named as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from evergreen import ledger, storage
from evergreen.errors import DatasetError, DataVersionError, validation_problem
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest, open_dataset
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.ledger import ChampionLost, LedgerEvent, LedgerState, Registration, VerdictRecorded
from evergreen.storage import FileName, Sha256

_Inputs = TypeVar("_Inputs")

_READERS = 16
_MAX_REPORT_BYTES = 2**24
_NAMED_BY_ALIAS: Mapping[str, Callable[[LedgerState], str | None]] = MappingProxyType(
    {
        "champion": lambda state: state.champion,
        "previous": lambda state: state.previous_champion,
        "challenger": lambda state: state.challenger,
    }
)


class _RawInputs(TypedDict):
    """What a period of features names as its inputs, as far as it is read here; anybody may have written it."""

    raw: dict[str, Sha256 | None]
    code: dict[str, str]


class _FeatureInputs(TypedDict):
    """Of a training set, or of predictions: the contents of features."""

    feature_model: FileName
    features: dict[FileName, str]
    earlier_features: dict[FileName, str]


class _TrainingSetInputs(_FeatureInputs):
    start: str
    as_of: str
    known_before: str


class _Code(TypedDict):
    modules: dict[str, str]
    libraries: dict[str, str]


class _CandidateInputs(TypedDict):
    training_set: Sha256
    code: _Code


class _ScoringModel(TypedDict):
    version: str
    content: str


class _PredictionInputs(_FeatureInputs):
    model: _ScoringModel


class _CheckInputs(TypedDict):
    file: Sha256


class _CheckReport(TypedDict):
    faults: list[object]
    results: Annotated[dict[str, list[object]], Field(max_length=1000)]


@dataclass(frozen=True)
class FeaturePeriod:
    """Features of one period as a training set read them.

    `raw` has the SHA-256 of each raw file that they were made from, by name; None of a file that did not exist. It is
    None itself if these features are not in force any more: `problem` says why. `code` is the fingerprint of the code
    that has built them, with the versions of its libraries.
    """

    period: str
    content: str
    raw: Mapping[str, str | None] | None = None
    problem: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class RawFileCheck:
    """The expectations that a raw file of these bytes was validated against last.

    `expectations` and `faults` are counts, or None where no report is about these bytes: `problem` says why.
    """

    name: str
    sha256: str
    expectations: int | None = None
    faults: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class ChampionSpan:
    """A time at which a version was champion; `end` is None while it is. `event` is why it became champion."""

    since: datetime
    end: datetime | None
    entry: int
    event: LedgerEvent


@dataclass(frozen=True)
class PredictedPeriod:
    """The batch predictions of a period, as published: their number, and the hash of their files."""

    period: str
    rows: int
    content: str


@dataclass(frozen=True)
class Lineage:
    """What a version was made from. `candidate` and `training_set` are None if they are not in the lake any more."""

    model: str
    version: str
    content: str
    verdict_entry: int
    verdict: VerdictRecorded
    candidate: Manifest | None = None
    training_set: Manifest | None = None
    feature_model: str | None = None
    features: tuple[FeaturePeriod, ...] = ()
    checks: tuple[RawFileCheck, ...] = ()
    champion: tuple[ChampionSpan, ...] = ()
    predictions: tuple[PredictedPeriod, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def raw_files(self) -> dict[str, set[str | None]]:
        """Return the `raw_file_hashes` of its features."""
        return raw_file_hashes(self.features)


def raw_file_hashes(features: Sequence[FeaturePeriod]) -> dict[str, set[str | None]]:
    """Return the SHA-256 of each raw file, by name: several if periods saw different ones, as of a register."""
    hashes: dict[str, set[str | None]] = {}
    for period in features:
        for name, sha256 in (period.raw or {}).items():
            hashes.setdefault(name, set()).add(sha256)
    return dict(sorted(hashes.items()))


@dataclass(frozen=True)
class PredictionLineage:
    """What the batch predictions of a period were made from: a version of the model, and features."""

    model: str
    predictions: Manifest
    version: str
    content: str
    feature_model: str
    features: tuple[FeaturePeriod, ...]
    checks: tuple[RawFileCheck, ...]


def trace_predictions(model: str, period: str) -> PredictionLineage:
    """Return the lineage of the batch predictions of a period.

    Raises:
        DataVersionError: none are published.
        DatasetError: a manifest is damaged.
    """
    dataset = open_dataset(f"predictions/{_check_model(model)}")
    partition = datasets.period_partition(period)
    manifest = dataset.manifest(partition) if partition in dataset.partitions(partition) else None
    if manifest is None:
        newest = next(map(datasets.partition_period, reversed(dataset.partitions())), None)
        extent = f"the newest are those of {newest}" if newest else "there are none"
        raise DataVersionError(f"{model} has no published predictions of {period[:80]!a}: {extent}")
    inputs = _read_inputs(_PREDICTION_INPUTS, dataset, manifest)
    features = _trace_features(inputs)
    scorer, feature_model = inputs["model"], inputs["feature_model"]
    checks = _trace_checks(feature_model, features)
    return PredictionLineage(model, manifest, scorer["version"], scorer["content"], feature_model, features, checks)


def trace_version(model: str, version: str | None = None) -> Lineage:
    """Return the lineage of a version of `model`, or of the one that an alias names in the ledger: by default champion.

    Raises:
        DataVersionError: the ledger knows no such version, or the alias names none.
        DatasetError: a manifest is damaged.
    """
    state = ledger.read_state(_check_model(model))
    alias = version or "champion"
    named = _NAMED_BY_ALIAS[alias](state) if alias in _NAMED_BY_ALIAS else alias
    registration = state.find_version(named) if named else None
    if registration is None:
        raise DataVersionError(_unknown_version(model, alias, named, state))
    verdict = state.find_verdict_event(registration.verdict_entry)
    assert verdict is not None, "the ledger accepts no registration without its verdict"
    trace = Lineage(
        model,
        registration.version,
        registration.content,
        registration.verdict_entry,
        verdict,
        champion=_champion_spans(state, registration),
        predictions=_predictions_by(model, registration.content),
        problems=tuple(
            f"before entry {registration.entry_number}, version {registration.version} named another model, "
            f"{earlier.content[:12]}"
            for earlier in state.registrations
            if earlier.version == registration.version and earlier.content != registration.content
        ),
    )
    return _trace_candidate(trace)


def _trace_candidate(trace: Lineage) -> Lineage:
    partition = f"as_of={datasets.file_name_of_period(trace.verdict.as_of)}"
    fingerprint = trace.verdict.candidate_fingerprint
    candidates = open_dataset(f"models/{trace.model}")
    candidate = candidates.manifest(partition)
    if candidate is None or candidate.fingerprint != fingerprint:
        return _stop(trace, f"candidate {fingerprint[:12]}", candidate)
    trace = replace(trace, candidate=candidate)
    train_hash = _read_inputs(_CANDIDATE_INPUTS, candidates, candidate)["training_set"]
    training_sets = open_dataset(f"training_sets/{trace.model}")
    training_set = training_sets.manifest(partition)
    train_file = training_set.files.get("train") if training_set else None
    if training_set is None or train_file is None or train_file.sha256 != train_hash:
        return _stop(trace, f"training set with the train file {train_hash[:12]}", training_set)
    inputs = _read_inputs(_TRAINING_SET_INPUTS, training_sets, training_set)
    features, feature_model = _trace_features(inputs), inputs["feature_model"]
    checks = _trace_checks(feature_model, features)
    return replace(trace, training_set=training_set, feature_model=feature_model, features=features, checks=checks)


def _trace_features(inputs: _FeatureInputs) -> tuple[FeaturePeriod, ...]:
    """Return the features that the inputs of a training set, or of predictions, name."""
    dataset = open_dataset(f"features/{inputs['feature_model']}")
    contents = {**inputs["earlier_features"], **inputs["features"]}
    published = {manifest.partition: manifest for manifest in dataset.read_manifests(list(contents))}
    return tuple(
        _trace_period(dataset, name, content, published.get(name)) for name, content in sorted(contents.items())
    )


def _trace_period(dataset: Dataset, partition: str, content: str, manifest: Manifest | None) -> FeaturePeriod:
    period = datasets.partition_period(partition)
    if manifest is None:
        return FeaturePeriod(period, content, problem="has expired")
    if manifest.content_hash != content:
        return FeaturePeriod(period, content, problem=f"was replaced since, by {manifest.content_hash[:12]}")
    inputs = _read_inputs(_RAW_INPUTS, dataset, manifest)
    return FeaturePeriod(period, content, inputs["raw"], code=compute_fingerprint(inputs["code"]))


def _trace_checks(feature_model: str, features: Sequence[FeaturePeriod]) -> tuple[RawFileCheck, ...]:
    """Return what is known of the expectations of each raw file, by name and bytes."""
    dataset = open_dataset(f"checks/{feature_model}")
    hashes = raw_file_hashes(features)
    published = {manifest.partition: manifest for manifest in dataset.read_manifests(list(hashes))}
    files = [(name, value) for name, values in hashes.items() for value in sorted(filter(None, values))]
    with ThreadPoolExecutor(_READERS) as pool:  # of an object store, each is a request that mostly waits
        return tuple(pool.map(lambda file: _trace_check(dataset, file[0], file[1], published.get(file[0])), files))


def _trace_check(dataset: Dataset, name: str, file_hash: str, manifest: Manifest | None) -> RawFileCheck:
    if manifest is None:
        return RawFileCheck(name, file_hash, problem="its report has expired")
    if _read_inputs(_CHECK_INPUTS, dataset, manifest)["file"] != file_hash:
        return RawFileCheck(name, file_hash, problem="its report is about another version")
    entry = manifest.files.get("report")
    path = dataset.published_path(manifest, "report") if entry else None
    stored = storage.read_version(path, _MAX_REPORT_BYTES) if path else None
    if not (entry and path and stored):
        return RawFileCheck(name, file_hash, problem="its report is missing")
    datasets.check_published_hash(path, hashlib.sha256(stored.data).hexdigest(), entry.sha256)
    try:
        report = _CHECK_REPORT.validate_json(stored.data)
    except ValidationError as error:
        raise DatasetError(f"{path} is no report of expectations: {validation_problem(error)}") from None
    return RawFileCheck(name, file_hash, sum(map(len, report["results"].values())), len(report["faults"]))


def _champion_spans(state: LedgerState, registration: Registration) -> tuple[ChampionSpan, ...]:
    """Return every time at which the model of this version was champion, also under another version."""
    ends = [*(tenure.entry_number for tenure in state.tenures), state.vacant_since][1:]
    spans = []
    for tenure, end_entry in zip(state.tenures, ends, strict=True):
        if tenure.content == registration.content:
            entry = state.entries[tenure.entry_number - 1]
            loss = state.entries.find_last(ChampionLost, end_entry, lost_version=tenure.version)
            if loss and loss.number > entry.number:
                end_entry = loss.number  # the place was vacant until the next champion
            end = state.entries[end_entry - 1].recorded_at if end_entry else None
            spans.append(ChampionSpan(entry.recorded_at, end, entry.number, entry.event))
    return tuple(spans)


def _predictions_by(model: str, content: str) -> tuple[PredictedPeriod, ...]:
    """Return the published periods that the model with this content has predicted."""
    dataset = open_dataset(f"predictions/{model}")
    return tuple(
        PredictedPeriod(
            datasets.partition_period(manifest.partition),
            sum(file.rows or 0 for file in manifest.files.values()),
            manifest.content_hash,
        )
        for manifest in dataset.manifests()
        if _read_inputs(_PREDICTION_INPUTS, dataset, manifest)["model"]["content"] == content
    )


def _read_inputs(adapter: TypeAdapter[_Inputs], dataset: Dataset, manifest: Manifest) -> _Inputs:
    try:
        return adapter.validate_python(dict(manifest.inputs))
    except ValidationError as error:
        path = dataset.manifest_path(manifest.partition)
        raise DatasetError(
            f"the inputs in {path} are not those of such a manifest: {validation_problem(error)}: build the partition "
            "again; find out who can write to the lake"
        ) from None


def _stop(trace: Lineage, missing: str, in_force: Manifest | None) -> Lineage:
    reason = f"was replaced since, by {in_force.fingerprint[:12]}" if in_force else "is not in the lake any more"
    return replace(trace, problems=(*trace.problems, f"{missing} {reason}"))


def _check_model(model: str) -> str:
    try:
        return storage.check_file_name(model)
    except ValueError as error:
        raise DataVersionError(f"no model: {error}") from None


def _unknown_version(model: str, requested: str, named: str | None, state: LedgerState) -> str:
    versions = ", ".join(dict.fromkeys(item.version for item in state.registrations)) or "none"
    if named is None:
        return f"{model} has no {requested}: name a version; the ledger knows {versions}"
    if requested != named:
        return f"the {requested} of {model}, {named}, is not registered; the ledger knows {versions}"
    return (
        f"{model} has no version {requested[:80]!a}: the ledger knows {versions}. "
        "What was registered in MLflow by others has no lineage"
    )


_RAW_INPUTS = TypeAdapter(_RawInputs)
_TRAINING_SET_INPUTS = TypeAdapter(_TrainingSetInputs)
_CANDIDATE_INPUTS = TypeAdapter(_CandidateInputs)
_PREDICTION_INPUTS = TypeAdapter(_PredictionInputs)
_CHECK_INPUTS = TypeAdapter(_CheckInputs)
_CHECK_REPORT = TypeAdapter(_CheckReport)
