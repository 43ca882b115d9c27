"""What the tasks about a model read and write: each reads the version that the one before has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evergreen import ledger
from evergreen.lake.datasets import period_partition
from evergreen.lineage_events import model_tasks
from evergreen.lineage_events.description import MODEL_FACET, TEST_FACET, TaskLineage, describe_gate
from evergreen.spec.loader import load_spec
from support.ledger_events import INPUTS, MODEL, day, rollback, verdict_event
from support.lineage_chain import AS_OF, DAYS, Chain, by_name, publish, record, version

pytestmark = pytest.mark.unit

SPEC = load_spec(MODEL)
SCORES = f"{MODEL}/scores"


@pytest.fixture
def chain(home: Path) -> Chain:
    return Chain.publish()


def model_facet(lineage: TaskLineage) -> Any:
    return lineage.run_facets[MODEL_FACET]


def registered(name: str, home: Path) -> tuple[str, str]:
    return f"mlflow+sqlite:///{home}/mlflow.db", name


def place(dataset: Any) -> tuple[str, str]:
    return dataset.namespace, dataset.name


def test_training_set_joins_features(chain: Chain) -> None:
    lineage = model_tasks.describe_training_set(SPEC, chain.training_set.reference)
    outputs, inputs = by_name(lineage.outputs), by_name(lineage.inputs)
    assert set(outputs) == {f"{MODEL}/train", f"{MODEL}/holdout"}
    assert version(outputs[f"{MODEL}/train"]) == chain.training_set.files["train"].sha256
    assert set(inputs) == {f"{MODEL}/departures", f"{MODEL}/carrier_delays"}, "the spine, and the tables of views"
    assert inputs[f"{MODEL}/carrier_delays"].inputFacets["inputStatistics"].fileCount == len(DAYS)
    assert version(inputs[f"{MODEL}/carrier_delays"])


def test_features_that_were_replaced_have_no_version(chain: Chain) -> None:
    publish(f"features/{MODEL}", period_partition(DAYS[0]), {"raw": {}}, "departures", "carrier_delays", rows=7)
    lineage = model_tasks.describe_training_set(SPEC, chain.training_set.reference)
    delays = by_name(lineage.inputs)[f"{MODEL}/carrier_delays"]
    assert version(delays) is None
    assert delays.inputFacets["inputStatistics"].fileCount == len(DAYS) - 1


def test_a_training_set_that_was_replaced_is_not_described(chain: Chain) -> None:
    lineage = model_tasks.describe_training_set(SPEC, {**chain.training_set.reference, "fingerprint": "f" * 64})
    assert lineage == TaskLineage()


def test_train_reads_the_rows_that_the_training_set_has(chain: Chain) -> None:
    lineage = model_tasks.describe_training(SPEC, chain.training_set.reference, chain.candidate.reference)
    [rows], [candidate] = lineage.inputs, lineage.outputs
    assert version(rows) == chain.training_set.files["train"].sha256
    assert rows.name.endswith(f"training_sets/{MODEL}/train")
    assert (candidate.name.split("/")[-2:], version(candidate)) == (["models", MODEL], chain.candidate.content_hash)
    assert candidate.facets["datasetType"].datasetType == "MODEL"
    facet = model_facet(lineage)
    assert (facet.name, facet.asOf, facet.inputs, facet.verdict) == (MODEL, day(AS_OF), ["distance"], None)


def test_evaluate_compares_with_a_version(chain: Chain, home: Path) -> None:
    lineage = model_tasks.describe_evaluation(
        SPEC,
        ("training_sets", chain.training_set.reference),
        chain.candidate.reference,
        "1",
        chain.evaluation.reference,
    )
    inputs = by_name(lineage.inputs)
    assert version(inputs[f"{MODEL}/holdout"]) == chain.training_set.files["holdout"].sha256
    assert f"{MODEL}/train" not in inputs
    assert version(inputs[f"models/{MODEL}"]) == chain.candidate.content_hash
    [champion] = [dataset for dataset in lineage.inputs if place(dataset) == registered(MODEL, home)]
    assert version(champion) == "1"
    assert version(by_name(lineage.outputs)[SCORES]) == chain.evaluation.files["scores"].sha256


def test_a_look_compares_two_versions(chain: Chain, home: Path) -> None:
    joined = dict(chain.training_set.inputs)
    rows = publish(f"looks/{MODEL}", "since=a_as_of=b", joined, "holdout", "label_counts")
    lineage = model_tasks.describe_look_set(SPEC, rows.reference)
    assert set(by_name(lineage.outputs)) == {f"{MODEL}/holdout", f"{MODEL}/label_counts"}
    assert version(by_name(lineage.inputs)[f"{MODEL}/departures"])
    lineage = model_tasks.describe_evaluation(SPEC, ("looks", rows.reference), "2", "1", chain.evaluation.reference)
    assert [version(dataset) for dataset in lineage.inputs if place(dataset) == registered(MODEL, home)] == ["2", "1"]
    assert f"looks/{MODEL}/holdout" in lineage.inputs[0].name


def test_judge_has_gates_as_tests(chain: Chain) -> None:
    lineage = model_tasks.describe_verdict(SPEC, chain.entry)
    facet: Any = lineage.run_facets[TEST_FACET]
    [test] = facet.tests
    assert (test.name, test.status, test.severity) == ("auc", "pass", "error")
    assert (test.expected, test.actual) == ("0.6", "0.7")
    inputs = by_name(lineage.inputs)
    [assertion] = inputs[f"models/{MODEL}"].inputFacets["dataQualityAssertions"].assertions
    assert (assertion.assertion, assertion.success) == ("auc", True)
    assert version(inputs[SCORES]) == chain.evaluation.files["scores"].sha256
    [entry] = lineage.outputs
    assert (entry.name.split("/")[-2:], version(entry)) == (["ledger", MODEL], "1")
    judged = model_facet(lineage)
    content = ledger.read_verdict_event(MODEL, chain.entry).candidate_content
    assert (judged.content, judged.version, judged.verdict) == (content, None, "promote")
    assert (judged.inputs, judged.metrics) == (list(INPUTS), {"auc": 0.7})


def test_a_gate_that_blocks_has_failed(chain: Chain) -> None:
    record(verdict_event(20, "1", passed=False))
    lineage = model_tasks.describe_verdict(SPEC, 4)
    facet: Any = lineage.run_facets[TEST_FACET]
    assert [test.status for test in facet.tests] == ["fail"]
    assert model_facet(lineage).verdict == "reject"
    [result] = ledger.read_verdict_event(MODEL, 4).verdict.results
    statuses = {outcome: describe_gate(result.model_copy(update={"outcome": outcome})).status for outcome in OUTCOMES}
    assert statuses == OUTCOMES


OUTCOMES = {"passed": "pass", "failed": "fail", "not_computed": "fail", "inconclusive": "skip"}


def test_register_makes_a_version_of_the_candidate(chain: Chain, home: Path) -> None:
    lineage = model_tasks.describe_registration(SPEC, chain.entry, "1")
    [made] = lineage.outputs
    assert (place(made), version(made)) == (registered(MODEL, home), "1")
    assert made.facets["datasetType"].datasetType == "MODEL"
    assert version(by_name(lineage.inputs)[f"models/{MODEL}"]) == chain.candidate.content_hash
    assert model_facet(lineage).version == "1"


def test_promote_says_what_is_served(chain: Chain, home: Path) -> None:
    lineage = model_tasks.describe_champion_change(SPEC, "1")
    served, entry = lineage.outputs
    assert (place(served), version(served)) == (registered(f"{MODEL}@champion", home), "1")
    assert version(entry) == str(ledger.read_state(MODEL).head_number) == "3"
    assert place(lineage.inputs[0]) == registered(MODEL, home)
    facet = model_facet(lineage)
    assert (facet.version, facet.asOf) == ("1", day(AS_OF))


def test_a_rollback_says_what_is_served(chain: Chain) -> None:
    from support.ledger_events import promotion, registration

    record(verdict_event(20, "1"), registration("2", 4), promotion("2", 20, 4, "1"), rollback("1", "2"))
    served = model_tasks.describe_champion_change(SPEC, "1").outputs[0]
    assert (served.name, version(served)) == (f"{MODEL}@champion", "1")


def test_score_names_version_and_features(chain: Chain, home: Path) -> None:
    lineage = model_tasks.describe_predictions(SPEC, [DAYS[2]])
    [predictions] = lineage.outputs
    assert predictions.name.endswith(f"predictions/{MODEL}/predictions")
    assert predictions.outputFacets["outputStatistics"].rowCount == 5
    assert version(predictions) == chain.predictions.files["predictions"].sha256
    assert [version(item) for item in lineage.inputs if place(item) == registered(MODEL, home)] == ["1"]
    assert f"{MODEL}/carrier_delays" in by_name(lineage.inputs)
    assert model_tasks.describe_predictions(SPEC, []) == TaskLineage()


def test_backtest_reads_what_a_retrain_made(chain: Chain) -> None:
    lineage = model_tasks.describe_backtest(SPEC, chain.training_set.reference, chain.candidate.reference)
    assert set(by_name(lineage.inputs)) == {f"{MODEL}/train", f"{MODEL}/holdout", f"models/{MODEL}"}
    assert [dataset.name.split("/")[-2:] for dataset in lineage.outputs] == [["backtests", MODEL]]
