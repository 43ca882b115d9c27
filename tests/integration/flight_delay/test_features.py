"""The steps of a day of features, run again and at the same time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import SparkSession

from evergreen.features import checks, inputs
from evergreen.features.build import build_features
from evergreen.features.inputs import features_dataset
from evergreen.features.pipeline import publish_features, run_feature_pipeline
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec

pytestmark = pytest.mark.integration

DAY = "2013-01-12"
DAYS = [date(2013, 1, n) for n in range(1, 18)]


@pytest.fixture
def model() -> ModelSpec:
    return loader.load_spec("flight_delay")


@pytest.fixture
def unpublish(model: ModelSpec) -> Callable[[date], datasets.Manifest]:
    def forget(day: date) -> datasets.Manifest:
        manifest = features_dataset(model).manifest(datasets.period_partition(day))
        assert manifest is not None
        (features_dataset(model).root / "_manifests" / f"{datasets.period_partition(day)}.json").unlink()
        return manifest

    return forget


def rewrite(source: str, day: date | None, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    file = raw_files.raw_file(source, day)
    change(pd.read_parquet(file)).to_parquet(file, index=False, coerce_timestamps="us")


def test_a_published_day_is_not_computed_again(
    own_january: Path, model: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fingerprints = inputs.compute_period_fingerprints(model, [DAY])
    assert build_features(model, fingerprints) == {}
    assert f"{DAY}: published already" in caplog.text
    assert publish_features(model, fingerprints, {})[str(DAY)]


def test_a_day_built_alone_or_twice_has_the_same_bytes(
    own_january: Path, model: ModelSpec, unpublish: Callable[[date], datasets.Manifest]
) -> None:
    before = unpublish(DAY)
    fingerprints = inputs.compute_period_fingerprints(model, [DAY])
    one = build_features(model, fingerprints)
    assert checks.validate_features(model, one) == one
    publish_features(model, fingerprints, one)
    # The first to finish clears away what both have built: the other finds the day done.
    assert checks.validate_features(model, one) == one
    publish_features(model, fingerprints, one)
    assert features_dataset(model).manifest(datasets.period_partition(DAY)) == before
    assert not list((features_dataset(model).root / "_staging").iterdir())


def test_built_and_unpublished_days_are_reused(
    own_january: Path,
    model: ModelSpec,
    unpublish: Callable[[date], datasets.Manifest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    before = unpublish(DAY)
    fingerprints = inputs.compute_period_fingerprints(model, [DAY])
    left_behind = build_features(model, fingerprints)
    assert "computing" in caplog.text
    caplog.clear()
    assert build_features(model, fingerprints) == left_behind
    assert "computing" not in caplog.text
    publish_features(model, fingerprints, left_behind)
    assert features_dataset(model).manifest(datasets.period_partition(DAY)) == before


def test_nothing_stays_cached_in_spark(january: Path) -> None:
    # A server outlives its sessions: what one left cached would fill it, and answer others with old data.
    session = SparkSession.getActiveSession()
    assert session is not None
    assert session._jsparkSession.sharedState().cacheManager().isEmpty()


@pytest.mark.parametrize(
    ("source", "changed", "expected"),
    [("flights", 5, range(5, 15)), ("weather", 5, range(5, 7)), ("planes", None, range(1, 18))],
)
def test_a_changed_raw_row_changes_the_days_that_look_back_to_it(
    own_january: Path, model: ModelSpec, source: str, changed: int | None, expected: range
) -> None:
    before = inputs.compute_period_fingerprints(model, DAYS)
    day = changed and date(2013, 1, changed)
    rewrite(source, day or None, lambda t: t.iloc[1:])
    after = inputs.compute_period_fingerprints(model, DAYS)
    assert [day for day in before if before[day] != after[day]] == [f"2013-01-{n:02}" for n in expected]
    if changed:
        later = [date(2013, 1, n) for n in expected if n != changed]
        assert inputs.stale_periods(model, [date(2013, 1, changed)]) == later
        assert inputs.stale_periods(model, [date(2013, 1, changed - 1)]) == []


def test_corrections_end_in_the_features_of_correct_data(own_january: Path, model: ModelSpec) -> None:
    right = {manifest.partition: manifest for manifest in features_dataset(model).manifests()}
    file = raw_files.raw_file("flights", "2013-01-05")
    good = file.read_bytes()
    rewrite("flights", "2013-01-05", lambda t: t.iloc[1:])
    run_feature_pipeline(model, ["2013-01-05", *inputs.stale_periods(model, ["2013-01-05"])])
    wrong = {manifest.partition: manifest for manifest in features_dataset(model).manifests()}
    assert {p for p in right if right[p] != wrong[p]} == {f"day=2013-01-{n:02}" for n in range(5, 15)}

    file.write_bytes(good)
    run_feature_pipeline(model, ["2013-01-05", *inputs.stale_periods(model, ["2013-01-05"])])
    assert {manifest.partition: manifest for manifest in features_dataset(model).manifests()} == right
