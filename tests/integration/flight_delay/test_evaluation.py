"""From a training set to a registered version, in one process: what blocks, what is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
import xgboost
from feast import FeatureService

from evergreen import evaluation, ledger
from evergreen.errors import RawDataError
from evergreen.feature_store import training_sets
from evergreen.feature_store.repository import open_feature_store
from evergreen.features.inputs import published_manifests
from evergreen.gates import GateResult, Verdict, judge_evidence
from evergreen.lake import datasets
from evergreen.lineage_events import feature_tasks, model_tasks
from evergreen.periods import Calendar, Duration
from evergreen.promotion import service
from evergreen.promotion.service import EvaluationContext
from evergreen.registry import versions
from evergreen.spec import loader
from evergreen.training.backends import process
from evergreen.window import RunReason, Window

pytestmark = pytest.mark.integration

ZONE = "America/New_York"
SPEC = loader.load_spec("flight_delay")
# Of 17 days. The online store is empty here, and tests share the cores: these gates would withhold the comparison.
GATES = tuple(gate for gate in SPEC.gates if gate.kind not in ("online_equals_offline", "serving"))
MODEL = SPEC.model_copy(update={"holdout": Duration(8, "d"), "gates": GATES})


def window(end: int, start: int = 1) -> Window:
    return Window.from_range(f"2013-01-{start:02d}", f"2013-01-{end:02d}", RunReason.MANUAL, Calendar("1d", ZONE))


def retrain(end: int) -> tuple[datasets.Manifest, datasets.Manifest]:
    examples = training_sets.build_training_set(MODEL, window(end))
    source = training_sets.training_set_dataset(MODEL)
    return examples, process.train_in_process(MODEL, examples, source, training_sets.model_input_columns(MODEL))


@pytest.fixture
def registered(own_january: Path) -> tuple[datasets.Manifest, datasets.Manifest, str]:
    """A candidate as of 11 January, registered."""
    examples, candidate = retrain(11)
    return examples, candidate, register(examples, candidate)


def judged(scores: datasets.Manifest) -> Verdict:
    return judge_evidence(MODEL.gates, evaluation.load_evidence(MODEL, scores))


def register(examples: datasets.Manifest, candidate: datasets.Manifest) -> str:
    scores = evaluation.collect_evidence(MODEL, examples, candidate, None)
    context = EvaluationContext("a run", RunReason.MANUAL, examples, candidate, scores, None)
    entry = service.judge_candidate(MODEL, context)
    return versions.register_candidate(MODEL, examples, candidate, entry, service.verdict_report_path(MODEL, entry))


def champion_of(version: str, labels_until: str = "2013-01-04") -> evaluation.Champion:
    content = ledger.read_state(MODEL.name).content_of(version) or "of nothing that was registered"
    return evaluation.Champion(version, labels_until, content=content)


def compared(verdict: Verdict) -> GateResult:
    return next(record for record in verdict.results if record.gate == "auc_against_champion")


def against(version: str, end: int = 18) -> GateResult:
    """What the gate says of a candidate as of `end`, judged against a version that has seen labels until 4 January."""
    examples, candidate = retrain(end)
    champion = champion_of(version)
    verdict = judged(evaluation.collect_evidence(MODEL, examples, candidate, champion))
    assert verdict.promote == (not [r for r in verdict.results if r.outcome != "passed"])
    return compared(verdict)


def test_a_registered_version_tells_all_that_made_it(registered: tuple) -> None:
    examples, candidate, version = registered
    known = mlflow.MlflowClient().get_model_version(MODEL.name, version)
    assert version == "1"
    assert known.tags["evergreen.data"] == examples.content_hash
    assert known.tags["evergreen.fingerprint"] == candidate.fingerprint
    assert known.tags["evergreen.as_of"] == "2013-01-11"
    assert known.tags["evergreen.holdout"] == "2013-01-03"
    for tag in ("code", "environment", "verdict", "run"):
        assert known.tags[f"evergreen.{tag}"]
    with versions.open_artifact(MODEL.name, version) as (folder, _):
        assert versions.read_model_inputs(folder).column_names == tuple(candidate.inputs["features"])
        assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pickle", ".joblib")]
    assert_lineage_events(examples, candidate, version)


def assert_lineage_events(examples: datasets.Manifest, candidate: datasets.Manifest, version: str) -> None:
    """What OpenLineage is told has the contents that were published, back to raw files."""
    days = [datasets.partition_period(name) for name in examples.inputs["features"]]
    published = {day: item.content_hash for day, item in published_manifests(MODEL, days).items()}
    checked = feature_tasks.describe_check(MODEL, days)
    made = feature_tasks.describe_publication(MODEL, published)
    raw = {dataset.name: dataset for dataset in made.inputs}
    assert raw.keys() == {dataset.name for dataset in checked.inputs}
    for dataset in checked.inputs:
        results = dataset.inputFacets["dataQualityAssertions"].assertions
        assert len(results) > 1, "those of Great Expectations"
        assert {result.success for result in results} == {True}
        assert dataset.facets["version"] == raw[dataset.name].facets["version"]
    joined = model_tasks.describe_training_set(MODEL, examples.reference)
    tables = {dataset.name: dataset for dataset in made.outputs}
    assert {dataset.name for dataset in joined.inputs} <= tables.keys()
    assert all(dataset.facets["version"] == tables[dataset.name].facets["version"] for dataset in joined.inputs)
    trained = model_tasks.describe_training(MODEL, examples.reference, candidate.reference)
    judged = model_tasks.describe_verdict(MODEL, 1)
    assert trained.outputs[0].facets["version"] in [dataset.facets.get("version") for dataset in judged.inputs]
    assert [test.name for test in judged.run_facets["test"].tests] == [gate.name for gate in MODEL.gates]
    registered = model_tasks.describe_registration(MODEL, 1, version)
    content = ledger.read_state(MODEL.name).content_of(version)
    assert registered.run_facets["evergreen_model"].content == content
    assert registered.outputs[0].facets["version"].datasetVersion == version


def test_registering_twice_gives_one_version(registered: tuple) -> None:
    examples, candidate, version = registered
    assert register(examples, candidate) == version


def test_the_champion_is_scored_again_on_the_candidates_own_holdout(registered: tuple) -> None:
    _, _, version = registered
    examples, candidate = retrain(18)
    champion = champion_of(version)
    scores = evaluation.collect_evidence(MODEL, examples, candidate, champion)
    table = pq.read_table(evaluation.evaluation_dataset(MODEL).file_path(scores, "scores"))
    assert table.num_rows == examples.files["holdout"].rows
    with versions.open_artifact(MODEL.name, version) as (folder, _):
        booster = xgboost.Booster(model_file=folder / "model.ubj")
    holdout = pq.read_table(training_sets.training_set_dataset(MODEL).file_path(examples, "holdout"))
    features = list(candidate.inputs["features"])
    expected = booster.predict(xgboost.DMatrix(holdout.select(features).to_pandas()))
    assert table["champion"].to_numpy() == pytest.approx(expected.astype(float), abs=0)
    verdict = judged(scores)
    assert compared(verdict).champion is not None


@pytest.mark.slow
def test_a_champion_that_has_seen_the_holdout_blocks(registered: tuple) -> None:
    _, _, version = registered
    examples, candidate = retrain(18)
    seen = champion_of(version, "2013-01-15")
    verdict = judged(evaluation.collect_evidence(MODEL, examples, candidate, seen))
    assert not verdict.promote
    assert compared(verdict).outcome == "not_computed"
    assert "has seen labels until 2013-01-15, the holdout starts 2013-01-10" in compared(verdict).reason


def test_a_champion_whose_artifact_is_gone_blocks_until_it_is_back(registered: tuple, own_january: Path) -> None:
    _, _, version = registered
    shutil.move(own_january / "mlflow-artifacts", own_january / "lost")
    found = against(version)
    assert found.outcome == "not_computed"
    assert f"version {version} cannot be scored" in found.reason
    shutil.move(own_january / "lost", own_january / "mlflow-artifacts")
    assert against(version).champion is not None


@pytest.mark.slow
def test_a_champion_that_was_never_registered_blocks(registered: tuple) -> None:
    found = against("77")
    assert found.outcome == "not_computed"
    assert "version 77 cannot be scored" in found.reason


def test_a_champion_with_a_feature_more_is_compared(registered: tuple) -> None:
    _, _, version = registered
    before = against(version)
    store = open_feature_store("flight_delay")
    views = [view for view in store.list_feature_views() if view.name != "aircraft"]
    store.delete_feature_service(MODEL.feature_service)
    store.apply([FeatureService(name=MODEL.feature_service, features=views)])
    found = against(version)
    assert found.champion is not None
    assert found.champion == before.champion


def test_a_window_too_short_for_a_holdout_is_refused(own_january: Path) -> None:
    with pytest.raises(RawDataError, match="only 7 days of data"):
        training_sets.build_training_set(MODEL, window(8))


def test_days_without_features_are_named(own_january: Path) -> None:
    with pytest.raises(RawDataError, match="day=2013-01-18: has no published features") as refused:
        training_sets.build_training_set(MODEL, window(20))
    assert len(refused.value.faults) == 2


def test_online_features_never_go_back(own_january: Path, use_home: Callable[[Path], Path]) -> None:
    from evergreen.feature_store import online_store
    from evergreen.feature_store.repository import open_feature_store

    def temperature() -> float:
        rows = [{"origin": "JFK"}]
        response = (
            open_feature_store("flight_delay").get_online_features(["origin_weather:temperature"], rows).to_dict()
        )
        return response["temperature"][0]

    assert online_store.materialize_features(MODEL, window(18)) == {
        "start": "2013-01-16",
        "end": "2013-01-18",
    }
    newest = temperature()
    assert newest is not None
    assert online_store.materialize_features(MODEL, window(12)) == {}
    assert temperature() == newest
    assert online_store.materialize_features(MODEL, window(18)) == {}
