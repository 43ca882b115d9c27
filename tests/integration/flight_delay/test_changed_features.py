"""A champion whose features were removed, renamed or defined anew since is compared by its own, while they last."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xgboost
from feast import FeatureService, FeatureStore, FeatureView

from evergreen import evaluation, ledger
from evergreen.feature_store import training_sets
from evergreen.feature_store.repository import feature_source, open_feature_store
from evergreen.gates import Evidence, MissingEvidence, NoChampion, judge_evidence
from evergreen.lake import datasets
from evergreen.periods import Duration
from evergreen.promotion import service
from evergreen.registry import versions
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason
from support.january import JANUARY_MODEL, SPEC, train_candidate

pytestmark = pytest.mark.integration

MODEL = JANUARY_MODEL.model_copy(update={"holdout": Duration(7, "d"), "monitor": SPEC.monitor})
CHAMPION_COLUMNS = ("distance", "aircraft__aircraft_age", "origin_weather__temperature", "route_delays__late_rate_24h")


def retrain(end: int, model: ModelSpec = MODEL, columns: Sequence[str] = ()) -> tuple[datasets.Manifest, ...]:
    return train_candidate(end, model, columns=columns)


@pytest.fixture
def champion(own_january: Path) -> str:
    """A version as of 11 January that takes CHAMPION_COLUMNS."""
    examples, candidate = retrain(11, columns=CHAMPION_COLUMNS)
    scores = evaluation.collect_evidence(MODEL, examples, candidate, None)
    context = service.EvaluationContext("a run", RunReason.MANUAL, examples, candidate, scores, None)
    entry = service.judge_candidate(MODEL, context)
    page = service.verdict_report_path(MODEL, entry)
    return versions.register_candidate(MODEL, examples, candidate, entry, page)


@pytest.fixture
def expected_scores(champion: str) -> list[float]:
    """The champion's scores of 11 to 17 January, by the features that it learned."""
    examples, _ = retrain(18)
    holdout = pq.read_table(training_sets.training_set_dataset(MODEL).file_path(examples, "holdout"))
    with versions.open_artifact(MODEL.name, champion) as (folder, _):
        booster = xgboost.Booster(model_file=folder / "model.ubj")
    return booster.predict(xgboost.DMatrix(holdout.select(CHAMPION_COLUMNS).to_pandas())).astype(float).tolist()


def against(version: str, model: ModelSpec = MODEL, accepted: str | None = None) -> tuple[datasets.Manifest, Evidence]:
    """Return the evidence about a candidate as of 18 January, and what was published of it."""
    examples, candidate = retrain(18, model)
    content = ledger.read_state(MODEL.name).content_of(version)
    assert content
    against = evaluation.Champion(version, "2013-01-04", content=content, accepted_change=accepted)
    published = evaluation.collect_evidence(model, examples, candidate, against)
    return published, evaluation.load_evidence(model, published)


def define(store: FeatureStore, views: Sequence[FeatureView]) -> None:
    """Make these the views of the feature service, and the only ones that exist."""
    removed = {view.name for view in store.list_feature_views()} - {view.name for view in views}
    store.delete_feature_service(MODEL.feature_service)
    for name in removed:
        store.delete_feature_view(name)
    store.apply([*views, FeatureService(name=MODEL.feature_service, features=list(views))])


def republish(change: str, table: str) -> None:
    """Publish all days again, with `change` (SQL over `rows`) in place of a table."""
    import duckdb

    dataset = datasets.open_dataset("features/flight_delay")
    for manifest in dataset.manifests():
        folder = dataset.stage(manifest.partition, manifest.fingerprint + change)
        files = {name: dataset.file_path(manifest, name) for name in manifest.files}
        rows = pq.read_table(files[table], partitioning=None)  # noqa: F841 - DuckDB reads it
        files[table] = folder / f"{table}.parquet"
        pq.write_table(duckdb.sql(change).to_arrow_table(), files[table])
        dataset.publish(manifest.partition, f"{manifest.fingerprint[:30]}changed", files, manifest.inputs)


def test_removed_renamed_and_redefined_views_are_made(champion: str, expected_scores: list[float]) -> None:
    store = open_feature_store("flight_delay")
    views = {view.name: view for view in store.list_feature_views()}
    views.pop("aircraft")
    weather = views.pop("origin_weather")
    renamed = FeatureView(
        name="weather",
        entities=[store.get_entity("origin")],
        ttl=weather.ttl,
        schema=weather.schema,
        source=feature_source("flight_delay", "origin_weather"),
    )
    views["route_delays"].ttl = timedelta(seconds=1)  # most rows have no value by the new definition
    define(store, [*views.values(), renamed])

    published, evidence = against(champion)
    assert evidence.champion.tolist() == pytest.approx(expected_scores, abs=0)
    own = pq.read_table(evaluation.evaluation_dataset(MODEL).file_path(published, "champion_inputs"))
    assert tuple(own.column_names) == CHAMPION_COLUMNS
    assert own["route_delays__late_rate_24h"].null_count < own.num_rows / 2
    examples, _ = retrain(18)
    learned = pq.read_table(training_sets.training_set_dataset(MODEL).file_path(examples, "holdout"))
    assert "aircraft__aircraft_age" not in learned.column_names
    assert learned["route_delays__late_rate_24h"].null_count > learned.num_rows * 0.7
    assert judge_evidence(MODEL.gates, evidence).results[1].outcome == "passed"
    assert against(champion)[0] == published, "the same step again has the same result"


def test_unchanged_features_are_those_of_the_holdout(champion: str, expected_scores: list[float]) -> None:
    published, evidence = against(champion)
    assert evidence.champion.tolist() == pytest.approx(expected_scores, abs=0)
    assert "champion_inputs" not in published.files


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "SELECT * EXCLUDE (aircraft_age), aircraft_age AS age FROM rows",
            "aircraft__aircraft_age is not in aircraft of",
        ),
        (
            "SELECT * REPLACE (aircraft_age > 10 AS aircraft_age) FROM rows",
            "aircraft__aircraft_age was int32 and is bool in aircraft of",
        ),
    ],
    ids=["a renamed column", "another type"],
)
def test_a_person_accepts_what_can_no_longer_be_made(champion: str, change: str, reason: str) -> None:
    republish(change, "aircraft")
    store = open_feature_store("flight_delay")
    define(store, [view for view in store.list_feature_views() if view.name != "aircraft"])

    _, evidence = against(champion)
    assert isinstance(evidence.champion, MissingEvidence)
    assert reason in evidence.champion.problem
    assert "evergreen accept flight_delay 1" in evidence.champion.problem
    verdict = judge_evidence(MODEL.gates, evidence)
    assert [result.outcome for result in verdict.results] == ["passed", "not_computed"]

    _, evidence = against(champion, accepted="ada accepted the change in entry 3: the registry of aircraft is closed")
    assert isinstance(evidence.champion, NoChampion)
    verdict = judge_evidence(MODEL.gates, evidence)
    assert verdict.promote
    assert verdict.results[1].alpha is None
    for part in (reason, "ada accepted the change in entry 3: the registry of aircraft is closed"):
        assert part in verdict.results[1].reason


def test_an_accepted_change_is_no_way_around_a_comparison(champion: str, expected_scores: list[float]) -> None:
    _, evidence = against(champion, accepted="ada accepted the change in entry 3: for fun")
    assert evidence.champion.tolist() == pytest.approx(expected_scores, abs=0)


def test_a_request_column_that_is_gone_is_named(champion: str) -> None:
    republish("SELECT * EXCLUDE (distance) FROM rows", "departures")
    model = MODEL.model_copy(update={"request_columns": ("departure_minute", "weekday")})
    _, evidence = against(champion, model)
    assert "distance is no column of the examples any more" in evidence.champion.problem


def test_features_move_to_another_model_folder(
    champion: str, expected_scores: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examples and features now come from a folder of another name; the champion's folder still publishes."""
    moved = datasets.open_dataset("features/flight_delay_net")
    source = datasets.open_dataset("features/flight_delay")
    for manifest in source.manifests():
        files = {name: source.file_path(manifest, name) for name in manifest.files}
        moved.publish(manifest.partition, manifest.fingerprint, files, manifest.inputs)
    repository = tmp_path / "feature_repo"
    repository.mkdir()
    for file in settings().feature_repo.iterdir():
        if file.is_file():
            (repository / file.name).write_text(file.read_text())
    text = (repository / "flight_delay.py").read_text()
    (repository / "flight_delay_net.py").write_text(
        text.replace('feature_source("flight_delay"', 'feature_source("flight_delay_net"')
    )
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(repository))
    settings.cache_clear()
    open_feature_store.cache_clear()
    net = loader.load_spec("flight_delay_net").model_copy(update={"features": SPEC.features})
    monkeypatch.setattr(loader, "load_spec", {"flight_delay_net": net, "flight_delay": SPEC}.__getitem__)
    model = MODEL.model_copy(update={"features": "flight_delay_net"})
    try:
        _, evidence = against(champion, model)
    finally:
        settings.cache_clear()
        open_feature_store.cache_clear()
    assert evidence.champion.tolist() == pytest.approx(expected_scores, abs=0)
