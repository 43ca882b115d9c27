"""From a training set to a champion, in one process: what blocks, what is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xgboost

from evergreen import evaluation, lake, registry
from evergreen import model as models
from evergreen.errors import RawDataError, ScoringError
from evergreen.store import training_set
from evergreen.training import local
from evergreen.window import Origin, Window

pytestmark = pytest.mark.integration

ZONE = "America/New_York"
MODEL = models.load("flight_delay")


def window(end: int, start: int = 1) -> Window:
    return Window.between(date(2013, 1, start), date(2013, 1, end), Origin.MANUAL, ZONE)


def retrain(end: int) -> tuple[lake.Manifest, lake.Manifest]:
    examples = training_set.build(MODEL, window(end))
    source = training_set.dataset(MODEL)
    return examples, local.train(MODEL, examples, source, training_set.feature_columns(MODEL))


@pytest.fixture
def registered(own_january: Path) -> tuple[lake.Manifest, lake.Manifest, str]:
    """A candidate as of 11 January, registered and made champion."""
    examples, candidate = retrain(11)
    verdict, file = evaluation.verdict(MODEL, evaluation.evaluate(MODEL, examples, candidate, None))
    version = registry.register(MODEL, examples, candidate, verdict, file)
    registry.promote(MODEL, version)
    return examples, candidate, version


def test_a_registered_version_tells_all_that_made_it(registered: tuple) -> None:
    examples, candidate, version = registered
    champion = registry.champion(MODEL)
    assert champion is not None
    assert str(champion.version) == version == "1"
    assert champion.tags["evergreen.data"] == examples.content
    assert champion.tags["evergreen.fingerprint"] == candidate.fingerprint
    assert registry.as_of(champion) == date(2013, 1, 11)
    assert registry.holdout_start(champion) == date(2013, 1, 4)
    for tag in ("code", "environment", "verdict", "run"):
        assert champion.tags[f"evergreen.{tag}"]
    with registry.artifact(MODEL, version) as folder:
        assert registry.inputs_of(folder) == tuple(candidate.inputs["features"])
        assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pickle", ".joblib")]


def test_registering_twice_gives_one_version(registered: tuple) -> None:
    examples, candidate, version = registered
    verdict, file = evaluation.verdict(MODEL, evaluation.evaluate(MODEL, examples, candidate, None))
    assert registry.register(MODEL, examples, candidate, verdict, file) == version


def test_the_champion_is_scored_again_on_the_candidates_own_holdout(registered: tuple) -> None:
    _, _, version = registered
    examples, candidate = retrain(18)
    champion = evaluation.Champion(version, date(2013, 1, 4))
    scores = evaluation.evaluate(MODEL, examples, candidate, champion)
    table = pq.read_table(evaluation.dataset(MODEL).path(scores, "scores"))
    assert table.num_rows == examples.files["holdout"].rows
    with registry.artifact(MODEL, version) as folder:
        booster = xgboost.Booster(model_file=folder / "model.ubj")
    holdout = pq.read_table(training_set.dataset(MODEL).path(examples, "holdout"))
    features = list(candidate.inputs["features"])
    expected = booster.predict(xgboost.DMatrix(holdout.select(features).to_pandas()))
    assert table["champion"].to_numpy() == pytest.approx(expected.astype(float), abs=0)
    verdict, _ = evaluation.verdict(MODEL, scores)
    compared = next(r for r in verdict.records if r.gate == "auc_not_worse_than_champion")
    assert compared.champion is not None
    assert compared.interval is not None


def test_a_champion_that_has_seen_the_holdout_blocks(registered: tuple) -> None:
    _, _, version = registered
    examples, candidate = retrain(18)
    seen = evaluation.Champion(version, date(2013, 1, 15))
    verdict, _ = evaluation.verdict(MODEL, evaluation.evaluate(MODEL, examples, candidate, seen))
    assert not verdict.promote
    compared = next(r for r in verdict.records if r.gate == "auc_not_worse_than_champion")
    assert compared.outcome == "not_computed"
    assert "has seen labels until 2013-01-15, the holdout starts 2013-01-11" in compared.reason


def test_a_champion_whose_artifact_is_gone_blocks(registered: tuple, own_january: Path) -> None:
    _, _, version = registered
    examples, candidate = retrain(18)
    shutil.rmtree(own_january / "mlflow-artifacts")
    champion = evaluation.Champion(version, date(2013, 1, 4))
    verdict, _ = evaluation.verdict(MODEL, evaluation.evaluate(MODEL, examples, candidate, champion))
    assert not verdict.promote
    assert f"version {version} cannot be scored" in verdict.reason or any(
        f"version {version} cannot be scored" in record.reason for record in verdict.records
    )


def test_a_window_too_short_for_a_holdout_is_refused(own_january: Path) -> None:
    with pytest.raises(RawDataError, match="only 7 days of data"):
        training_set.build(MODEL, window(8))


def test_days_without_features_are_named(own_january: Path) -> None:
    with pytest.raises(RawDataError, match="day=2013-01-18: has no published features") as refused:
        training_set.build(MODEL, window(20))
    assert len(refused.value.faults) == 2


def test_nothing_that_is_no_model_is_scored(own_january: Path, tmp_path: Path) -> None:
    holdout = pq.read_table(
        training_set.dataset(MODEL).path(training_set.build(MODEL, window(18)), "holdout")
    )
    with pytest.raises(ScoringError, match=r"holds no model.ubj"):
        evaluation.score(tmp_path, holdout, ("distance",))
    (tmp_path / "model.ubj").write_bytes(b"\x80\x04not a model")
    with pytest.raises(ScoringError, match="lacks nothing_like_it"):
        evaluation.score(tmp_path, holdout, ("nothing_like_it",))
    with pytest.raises(ScoringError, match="cannot score"):
        evaluation.score(tmp_path, holdout, ("distance",))


def test_online_features_never_go_back(own_january: Path, use_home: Callable[[Path], Path]) -> None:
    from evergreen.store import online
    from evergreen.store.repository import feature_store

    def temperature() -> float:
        rows = [{"origin": "JFK"}]
        response = feature_store().get_online_features(["origin_weather:temperature"], rows).to_dict()
        return response["temperature"][0]

    assert online.materialize(MODEL, window(18)) == {"start": "2013-01-16", "end": "2013-01-18"}
    newest = temperature()
    assert newest is not None
    assert online.materialize(MODEL, window(12)) == {}
    assert temperature() == newest
    assert online.materialize(MODEL, window(18)) == {}
