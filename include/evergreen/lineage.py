"""Where a version of a model comes from, back to the raw files: read from ledger and manifests alone.

Each step is found by the hash that the next one recorded of it, and not by its name, so what is shown is what the
version was made from. What is not in the lake any more, or was replaced since, is named as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from evergreen import ledger, storage
from evergreen.errors import DataVersionError
from evergreen.lake import datasets
from evergreen.lake.datasets import Manifest, open_dataset
from evergreen.ledger import LedgerState, VerdictRecorded


@dataclass(frozen=True)
class FeaturePeriod:
    """Features of one period as a training set read them.

    `raw` has the SHA-256 of each raw file that they were made from, by name; None of a file that did not exist. It is
    None itself if these features are not in force any more: `problem` says why.
    """

    period: str
    content: str
    raw: Mapping[str, str | None] | None = None
    problem: str | None = None


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
    features: tuple[FeaturePeriod, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def raw_files(self) -> dict[str, set[str | None]]:
        """Return the SHA-256 of each raw file, by name: several if periods saw different ones, as of a register."""
        hashes: dict[str, set[str | None]] = {}
        for period in self.features:
            for name, sha256 in (period.raw or {}).items():
                hashes.setdefault(name, set()).add(sha256)
        return dict(sorted(hashes.items()))


def trace_version(model: str, version: str | None = None) -> Lineage:
    """Return the lineage of a version of `model`, by default of its champion.

    Raises:
        DataVersionError: the ledger knows no such version, or no champion.
        DatasetError: a manifest is damaged.
    """
    state = ledger.read_state(_check_model(model))
    registration = state.find_version(version or state.champion or "")
    if registration is None:
        raise DataVersionError(_unknown_version(model, version, state))
    verdict = state.find_verdict_event(registration.verdict_entry)
    assert verdict is not None, "the ledger accepts no registration without its verdict"
    trace = Lineage(model, registration.version, registration.content, registration.verdict_entry, verdict)
    return _trace_candidate(trace)


def _trace_candidate(trace: Lineage) -> Lineage:
    partition = f"as_of={datasets.file_name_of_period(trace.verdict.as_of)}"
    fingerprint = trace.verdict.candidate_fingerprint
    candidate = open_dataset(f"models/{trace.model}").manifest(partition)
    if candidate is None or candidate.fingerprint != fingerprint:
        return _stop(trace, f"candidate {fingerprint[:12]}", candidate)
    trace = replace(trace, candidate=candidate)
    train_hash = candidate.inputs["training_set"]
    training_set = open_dataset(f"training_sets/{trace.model}").manifest(partition)
    if training_set is None or training_set.files["train"].sha256 != train_hash:
        return _stop(trace, f"training set with the train file {train_hash[:12]}", training_set)
    inputs = training_set.inputs
    dataset = open_dataset(f"features/{inputs['feature_model']}")
    contents = {**inputs["earlier_features"], **inputs["features"]}
    published = {manifest.partition: manifest for manifest in dataset.read_manifests(list(contents))}
    features = tuple(_trace_period(name, content, published.get(name)) for name, content in sorted(contents.items()))
    return replace(trace, training_set=training_set, features=features)


def _trace_period(partition: str, content: str, manifest: Manifest | None) -> FeaturePeriod:
    period = datasets.partition_period(partition)
    if manifest is None:
        return FeaturePeriod(period, content, problem="has expired")
    if manifest.content_hash != content:
        return FeaturePeriod(period, content, problem=f"was replaced since, by {manifest.content_hash[:12]}")
    return FeaturePeriod(period, content, manifest.inputs["raw"])


def _stop(trace: Lineage, missing: str, in_force: Manifest | None) -> Lineage:
    reason = f"was replaced since, by {in_force.fingerprint[:12]}" if in_force else "is not in the lake any more"
    return replace(trace, problems=(*trace.problems, f"{missing} {reason}"))


def _check_model(model: str) -> str:
    try:
        return storage.check_file_name(model)
    except ValueError as error:
        raise DataVersionError(f"no model: {error}") from None


def _unknown_version(model: str, version: str | None, state: LedgerState) -> str:
    versions = ", ".join(dict.fromkeys(item.version for item in state.registrations)) or "none"
    if version is None:
        return f"{model} has no champion: name a version; the ledger knows {versions}"
    return f"{model} has no version {version[:80]!a}: the ledger knows {versions}"
