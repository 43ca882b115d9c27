"""What a retrain as of the same period would use now, and an earlier one did not: data, features, code, or spec.

A verdict is about what its run has used. The same run again, after an edit of the model folder, would have another
verdict; so nobody takes the earlier one for that of the new code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from evergreen import evaluation, ledger
from evergreen.errors import SpecError
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.features import inputs, staleness
from evergreen.features.staleness import describe_code_differences, describe_parameter_differences
from evergreen.lake import datasets, fingerprints
from evergreen.promotion.challengers import gates_fingerprint
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.training import candidates
from evergreen.window import RunReason, Window

_OTHER_GATES = "the gates have changed, or what they measure by"
_GONE = "what it was made from is not published any more: another run has replaced it, or maintenance has removed it"


@dataclass(frozen=True)
class RetrainReferences:
    """What a run of the retrain DAG has made, as far as it has come.

    Attributes:
        training_set: `Manifest.reference` of the training set; so the others.
        verdict_entry: the entry of the ledger with its verdict.
    """

    training_set: Mapping[str, str]
    candidate: Mapping[str, str] | None = None
    evaluation: Mapping[str, str] | None = None
    verdict_entry: int | None = None


def find_changed_inputs(model: ModelSpec, run: RetrainReferences) -> list[str]:
    """Return what a retrain as of the same period would use and `run` did not, in words; nothing if nothing differs.

    The champion does not count: a run that has made its candidate champion is not outdated by that.

    Raises:
        SpecError: the definitions of features are missing or faulty.
    """
    from evergreen.feature_store import training_sets  # it loads Feast

    training_set = training_sets.training_set_dataset(model).find(**run.training_set)
    if training_set is None:
        return [_GONE]
    changes = [*_feature_changes(model, training_set), *_training_set_changes(model, training_set)]
    if run.candidate:
        candidate = candidates.candidate_dataset(model).find(**run.candidate)
        changes += [_GONE] if candidate is None else _training_changes(model, training_set, candidate)
    if run.evaluation:
        measured = evaluation.evaluation_dataset(model).find(**run.evaluation)
        changes += [_GONE] if measured is None else _evidence_changes(model, measured)
    if run.verdict_entry is not None:
        changes += _verdict_changes(model, run.verdict_entry)
    return list(dict.fromkeys(changes))


def _feature_changes(model: ModelSpec, training_set: datasets.Manifest) -> Iterator[str]:
    """Yield what makes published features stale, and how many periods are others than those that were read."""
    used = {**training_set.inputs["features"], **training_set.inputs["earlier_features"]}
    ttls = [view["ttl_seconds"] for view in training_set.inputs["definitions"].values()]
    window = _window(model, training_set.inputs["as_of"])
    published = inputs.published_manifests(model, staleness.periods_in_reach(model, window, ttls))
    yield from staleness.find_stale_features(model, published).differences
    current = {manifest.partition: manifest.content_hash for manifest in published.values()}
    if changed := [partition for partition, content in current.items() if used.get(partition) != content]:
        periods = window.calendar.describe([datasets.partition_period(partition) for partition in sorted(changed)])
        yield f"features of {periods} are new, or were built again"
    if missing := sorted(used.keys() - current.keys()):
        periods = window.calendar.describe([datasets.partition_period(partition) for partition in missing])
        yield f"features of {periods} are not read any more"


def _training_set_changes(model: ModelSpec, training_set: datasets.Manifest) -> Iterator[str]:
    """Yield what else of the spec, of the definitions and of Evergreen makes a training set."""
    from evergreen.feature_store import training_sets
    from evergreen.feature_store.declared_inputs import read_declared_inputs

    used = training_set.inputs
    window = _window(model, used["as_of"])
    periods = training_sets.TrainingPeriods.from_window(model, window)
    current = {**training_sets.spec_inputs(model, window, periods), "weight": model.weight}
    recorded = {name: used.get(name) for name in current}
    yield from describe_parameter_differences(recorded, current, "training_set")
    yield from describe_parameter_differences(used["definitions"], read_declared_inputs(model).views, "views")
    yield from describe_code_differences(used["code"], training_sets.training_set_code())


def _training_changes(model: ModelSpec, training_set: datasets.Manifest, candidate: datasets.Manifest) -> Iterator[str]:
    """Yield what of code, libraries, parameters and columns would train another model."""
    from evergreen.feature_store.declared_inputs import read_declared_inputs

    used, columns = dict(candidate.inputs), read_declared_inputs(model).columns
    try:
        candidate_inputs = candidates.candidate_inputs(model, training_set, columns)
    except SpecError:  # the lock of the trainer may not be where this is asked
        candidate_inputs = candidates.candidate_inputs(model, training_set, columns, used["code"]["libraries"])
    current = json.loads(json.dumps(candidate_inputs))  # as manifests have it, with lists for tuples
    for part in ("modules", "libraries"):
        yield from describe_code_differences(used["code"][part], current["code"][part])
    yield from describe_parameter_differences(used | {"code": None}, current | {"code": None})


def _evidence_changes(model: ModelSpec, measured: datasets.Manifest) -> Iterator[str]:
    """Yield what of gates, of the kind of model, of code and of libraries would measure something else."""
    required = json.loads(json.dumps(asdict(EvidenceRequirements.from_gates(model.gates, model.clusters))))
    if measured.inputs["requirements"] != required:
        yield _OTHER_GATES
    recorded = measured.inputs.get("prediction") or {}  # where a kind is declared
    yield from describe_parameter_differences({"kind": recorded.get("kind")}, {"kind": model.kind})
    yield from describe_code_differences(measured.inputs["code"], evaluation.evidence_code())


def _verdict_changes(model: ModelSpec, verdict_entry: int) -> Iterator[str]:
    """Yield what of gates and their code would judge otherwise."""
    recorded = ledger.read_verdict_event(model.name, verdict_entry).fingerprints
    if recorded.get("gates") != gates_fingerprint(model):
        yield _OTHER_GATES
    if recorded.get("judging") != fingerprints.compute_fingerprint(evaluation.verdict_code(model)):
        yield "the code of the gates has changed"


def _window(model: ModelSpec, as_of: str) -> Window:
    """Return the periods that a retrain as of a period uses, as `resolve_retrain_window` does."""
    spec, start = feature_spec(model), as_of
    for duration in model.history:
        start = spec.calendar.period_before(start, duration)
    return Window.from_range(max(spec.first_period, start), as_of, RunReason.MANUAL, spec.calendar)
