"""The tasks that monitor the champion: their alarms are tests of the run, which warn."""

from __future__ import annotations

from collections.abc import Sequence

from openlineage.client.generated.test_run import TestExecution, TestRunFacet

from evergreen import ledger
from evergreen.lake.datasets import open_dataset
from evergreen.lineage_events.description import TEST_FACET, TaskLineage, describe_version
from evergreen.lineage_events.published import describe_manifests
from evergreen.monitoring.record import AlarmRecord, monitoring_dataset, read_record, record_partition
from evergreen.spec.model import ModelSpec

DATA_RULES = ("break", "drift")
MEASURE_RULES = ("performance", "skew")


def describe_monitoring(model: ModelSpec, rules: Sequence[str]) -> TaskLineage:
    """Return what the record of the champion says by these rules, and the data that it is about.

    The predictions of the champion are among that data, and the histograms of each period among what is published.
    """
    champion = ledger.read_state(model.name).champion_content
    record = read_record(model.name, champion) if champion else None
    if champion is None or record is None:
        return TaskLineage()
    dataset, published = f"monitoring/{model.name}", monitoring_dataset(model.name)
    manifest = published.manifest(record_partition(champion))
    assert manifest, "the record was read from it"
    periods = list(manifest.inputs["histograms"])
    features = open_dataset(f"features/{model.feature_model}").read_manifests(periods)
    predicted = [
        item
        for item in open_dataset(f"predictions/{model.name}").read_manifests(periods)
        if item.inputs["model"]["content"] == champion
    ]
    facts = [
        *describe_manifests(f"features/{model.feature_model}", features),
        *describe_manifests(f"predictions/{model.name}", predicted),
        describe_version(model.name, record.champion_version),
    ]
    written = [manifest, *published.read_manifests(periods)]
    tests = [_describe_rule(rule, [alarm for alarm in record.open_alarms if alarm.rule == rule]) for rule in rules]
    return TaskLineage(
        tuple(item.as_input() for item in facts),
        tuple(item.as_output() for item in describe_manifests(dataset, written)),
        {TEST_FACET: TestRunFacet(tests)},
    )


def _describe_rule(rule: str, alarms: Sequence[AlarmRecord]) -> TestExecution:
    return TestExecution(
        name=rule,
        status="fail" if alarms else "pass",
        severity="warn",
        type="alarm",
        expected="0 open alarms",
        actual=f"{len(alarms)} open alarms",
        params={"changes": [name for alarm in alarms for name in alarm.change_names]},
    )
