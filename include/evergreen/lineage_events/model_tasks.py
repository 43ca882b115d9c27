"""The tasks that make a model, judge it, change who is champion, and predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from openlineage.client.facet_v2 import RunFacet
from openlineage.client.generated.test_run import TestRunFacet

from evergreen import ledger
from evergreen.lake.datasets import Manifest, file_name_of_period, open_dataset, period_partition
from evergreen.ledger import VerdictRecorded
from evergreen.lineage_events.description import (
    MODEL_FACET,
    TEST_FACET,
    ModelRunFacet,
    TaskLineage,
    describe_champion,
    describe_gate,
    describe_version,
    gate_assertion,
)
from evergreen.lineage_events.places import lake_place, ledger_place
from evergreen.lineage_events.published import (
    DatasetFacts,
    describe_contents,
    describe_manifests,
    describe_reference,
    find_manifest,
)
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

_Reference = Mapping[str, str]


def describe_training_set(model: ModelSpec, reference: _Reference) -> TaskLineage:
    """Return what `training_set` has made, and the features that it has joined."""
    return _describe_examples(model, f"training_sets/{model.name}", reference)


def describe_look_set(model: ModelSpec, reference: _Reference) -> TaskLineage:
    """Return what `examples` of the monitor DAG has made, and the features that it has joined."""
    return _describe_examples(model, f"looks/{model.name}", reference)


def _describe_examples(model: ModelSpec, dataset: str, reference: _Reference) -> TaskLineage:
    manifest = find_manifest(dataset, reference)
    if manifest is None:
        return TaskLineage()
    return TaskLineage(
        tuple(item.as_input() for item in _describe_features(model, [manifest])),
        tuple(item.as_output() for item in describe_manifests(dataset, [manifest])),
    )


def _describe_features(model: ModelSpec, manifests: Sequence[Manifest]) -> list[DatasetFacts]:
    """Return the features that examples, or predictions, were made from: the tables of their views, and the spine."""
    contents, tables = dict[str, str](), {feature_spec(model).spine}
    for manifest in manifests:
        contents |= {**manifest.inputs["earlier_features"], **manifest.inputs["features"]}
        tables |= {view["table"] for view in manifest.inputs["definitions"].values()}
    return describe_contents(f"features/{model.feature_model}", contents, tables)


def describe_training(model: ModelSpec, training_set: _Reference, candidate: _Reference) -> TaskLineage:
    """Return the candidate that `train` has published, and the rows that it has learned from."""
    manifest = find_manifest(f"models/{model.name}", candidate)
    facets = dict[str, RunFacet]()
    if manifest:
        as_of = manifest.partition.partition("=")[2]
        facets[MODEL_FACET] = ModelRunFacet(model.name, asOf=as_of, inputs=list(manifest.inputs["features"]))
    return TaskLineage(
        tuple(item.as_input() for item in describe_reference(f"training_sets/{model.name}", training_set, ["train"])),
        tuple(item.as_output() for item in _describe_candidate(model, candidate)),
        facets,
    )


def _describe_candidate(model: ModelSpec, reference: _Reference) -> list[DatasetFacts]:
    return [replace(item, kind="MODEL") for item in describe_reference(f"models/{model.name}", reference)]


def describe_evaluation(
    model: ModelSpec,
    examples: tuple[str, _Reference],
    candidate: _Reference | str,
    champion: str | None,
    evaluation: _Reference,
) -> TaskLineage:
    """Return the evidence that a task `evaluate` has measured, and on what.

    Args:
        model: whose candidate is measured.
        examples: the dataset of the rows, `training_sets` or `looks`, and its partition.
        candidate: a candidate in the lake, or the version of one that is registered.
        champion: the version that it is compared with.
        evaluation: what was measured.
    """
    kind, rows = examples
    registered = [version for version in (candidate, champion) if isinstance(version, str)]
    facts = [
        *describe_reference(f"{kind}/{model.name}", rows, ["holdout", "recent", "label_counts"]),
        *([] if isinstance(candidate, str) else _describe_candidate(model, candidate)),
        *(describe_version(model.name, version) for version in registered),
    ]
    return TaskLineage(
        tuple(item.as_input() for item in facts),
        tuple(item.as_output() for item in describe_reference(f"evaluations/{model.name}", evaluation)),
    )


def describe_backtest(model: ModelSpec, training_set: _Reference, candidate: _Reference) -> TaskLineage:
    """Return what the task `backtest` has measured, and the dataset with the results of all dates."""
    facts = [
        *describe_reference(f"training_sets/{model.name}", training_set),
        *_describe_candidate(model, candidate),
    ]
    results = DatasetFacts(lake_place(f"backtests/{model.name}"), "FILE")
    return TaskLineage(tuple(item.as_input() for item in facts), (results.as_output(),))


def describe_verdict(model: ModelSpec, entry: int) -> TaskLineage:
    """Return the verdict in an entry of the ledger: gates are tests of the run, and assertions on the candidate."""
    event = ledger.read_verdict_event(model.name, entry)
    results = event.verdict.results
    evaluation = event.evidence.get("evaluation")
    name = PurePosixPath(evaluation).name if evaluation else ""
    measured = open_dataset(f"evaluations/{model.name}").read_manifests([name] if name else [])
    facts = describe_manifests(f"evaluations/{model.name}", measured)
    assertions = [gate_assertion(result) for result in results]
    return TaskLineage(
        (
            *(item.as_input() for item in facts),
            *(item.as_input(assertions) for item in _judged_candidate(model, event)),
        ),
        (_ledger_entry(model, entry).as_output(),),
        {TEST_FACET: TestRunFacet([describe_gate(result) for result in results]), **_model_facet(model, event)},
    )


def _judged_candidate(model: ModelSpec, event: VerdictRecorded) -> list[DatasetFacts]:
    partition = f"as_of={file_name_of_period(event.as_of)}"
    return _describe_candidate(model, {"partition": partition, "fingerprint": event.candidate_fingerprint})


def _ledger_entry(model: ModelSpec, entry: int) -> DatasetFacts:
    return DatasetFacts(ledger_place(model.name), "FILE", str(entry))


def _model_facet(model: ModelSpec, event: VerdictRecorded, version: str | None = None) -> dict[str, RunFacet]:
    verdict = event.verdict
    outcome = "promote" if verdict.promote else "inconclusive" if verdict.is_inconclusive else "reject"
    metrics = {result.gate: result.candidate for result in verdict.results if result.candidate is not None}
    facet = ModelRunFacet(
        model.name, event.candidate_content, version, event.as_of, list(event.candidate_inputs), outcome, metrics
    )
    return {MODEL_FACET: facet}


def describe_registration(model: ModelSpec, entry: int, version: str) -> TaskLineage:
    """Return the version that `register` has made of a judged candidate."""
    event = ledger.read_verdict_event(model.name, entry)
    facts = [*_judged_candidate(model, event), _ledger_entry(model, entry)]
    return TaskLineage(
        tuple(item.as_input() for item in facts),
        (describe_version(model.name, version).as_output(),),
        _model_facet(model, event, version),
    )


def describe_champion_change(model: ModelSpec, version: str) -> TaskLineage:
    """Return what is served from now on: a version that was promoted, or that a rollback has restored."""
    state = ledger.read_state(model.name)
    registration = state.find_version(version)
    event = state.find_verdict_event(registration.verdict_entry) if registration else None
    return TaskLineage(
        (describe_version(model.name, version).as_input(), _ledger_entry(model, state.head_number).as_input()),
        (describe_champion(model.name, version).as_output(), _ledger_entry(model, state.head_number).as_output()),
        _model_facet(model, event, version) if event else {},
    )


def describe_predictions(model: ModelSpec, periods: Sequence[str]) -> TaskLineage:
    """Return the predictions of these periods as they are published, with the features and versions that made them."""
    dataset = f"predictions/{model.name}"
    manifests = open_dataset(dataset).read_manifests([period_partition(period) for period in periods])
    scorers: list[Mapping[str, Any]] = [manifest.inputs["model"] for manifest in manifests]
    versions = dict.fromkeys(scorer["version"] for scorer in scorers)
    facts = [
        *(_describe_features(model, manifests) if manifests else ()),
        *(describe_version(model.name, version) for version in versions),
    ]
    return TaskLineage(
        tuple(item.as_input() for item in facts),
        tuple(item.as_output() for item in describe_manifests(dataset, manifests)),
    )
