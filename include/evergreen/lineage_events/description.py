"""The description of a task, and what it says of models and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import attr
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import RunFacet
from openlineage.client.generated.data_quality_assertions_dataset import Assertion
from openlineage.client.generated.test_run import TestExecution

from evergreen.gates.verdict import GateResult
from evergreen.lineage_events.places import Place, champion_place, registered_model_place
from evergreen.lineage_events.published import DatasetFacts

MODEL_FACET = "evergreen_model"
TEST_FACET = "test"

_STATUS = {"passed": "pass", "failed": "fail", "inconclusive": "skip", "not_computed": "fail"}


@dataclass(frozen=True)
class TaskLineage:
    """What a task has read and written, and what else its run says."""

    inputs: tuple[InputDataset, ...] = ()
    outputs: tuple[OutputDataset, ...] = ()
    run_facets: Mapping[str, RunFacet] = field(default_factory=dict)


@attr.define
class ModelRunFacet(RunFacet):
    """The model that a run is about; OpenLineage has no facet for that.

    Attributes:
        name: of the registered model.
        content: identifies the model, whatever its version is: the hash of its files and input columns.
        version: its number in MLflow; None before it is registered.
        asOf: the period until which, exclusively, it has data.
        inputs: the columns that it takes, in this order.
        verdict: promote, reject or inconclusive; None before it is judged.
        metrics: what each gate has measured of it.
    """

    name: str
    content: str | None = attr.field(default=None)
    version: str | None = attr.field(default=None)
    asOf: str | None = attr.field(default=None)  # noqa: N815 - names of facets are in camel case
    inputs: list[str] = attr.field(factory=list)
    verdict: str | None = attr.field(default=None)
    metrics: dict[str, float] = attr.field(factory=dict)


def describe_version(model: str, version: str) -> DatasetFacts:
    """Return a version in MLflow."""
    return _model_version(registered_model_place(model), version)


def describe_champion(model: str, version: str) -> DatasetFacts:
    """Return what is served: the version that the alias `champion` names."""
    return _model_version(champion_place(model), version)


def _model_version(place: Place, version: str) -> DatasetFacts:
    return DatasetFacts(place, "MODEL", version)


def describe_gate(result: GateResult) -> TestExecution:
    """Return a gate as a test of the run. One that is not computed blocks, so it has failed."""
    return TestExecution(
        name=result.gate,
        status=_STATUS[result.outcome],
        severity="error",
        type="gate",
        expected=str(result.threshold),
        actual=None if result.candidate is None else str(result.candidate),
        params={"outcome": result.outcome, "rows": result.rows, "champion": result.champion},
    )


def gate_assertion(result: GateResult) -> Assertion:
    """Return a gate as an assertion about the candidate, for who shows the quality of datasets."""
    return Assertion(
        assertion=result.gate,
        success=result.outcome == "passed",
        severity="error",
        expected=str(result.threshold),
        actual=None if result.candidate is None else str(result.candidate),
    )
