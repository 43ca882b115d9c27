"""A change changes the fingerprint of what depends on it, and of nothing else."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from evergreen.feature_store import training_sets
from evergreen.feature_store.repository import open_feature_store
from evergreen.features import inputs
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.ingest import raw_files
from evergreen.lake import datasets, fingerprints
from evergreen.periods import Calendar, Duration
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec, Resources
from evergreen.training import candidates
from evergreen.window import RunReason, Window

pytestmark = pytest.mark.integration

DAY = "2013-01-12"
WINDOW = Window.from_range("2013-01-01", "2013-01-15", RunReason.MANUAL, Calendar("1d", "America/New_York"))


def marks(model: ModelSpec, examples: datasets.Manifest) -> dict[str, str]:
    """Fingerprints of a day's features, of the training set, and of the model, as they would be made now."""
    columns = training_sets.model_input_columns(model)
    return {
        "features": inputs.compute_period_fingerprints(model, [DAY])[str(DAY)],
        "training set": fingerprints.compute_fingerprint(training_sets._training_set_inputs(model, WINDOW)),
        "model": fingerprints.compute_fingerprint(candidates.candidate_inputs(model, examples, columns)),
    }


def raw_row(model: ModelSpec, _: pytest.MonkeyPatch) -> ModelSpec:
    file = raw_files.raw_file("flights", DAY)
    pd.read_parquet(file).iloc[1:].to_parquet(file, index=False, coerce_timestamps="us")
    return model


def published_day(model: ModelSpec, patch: pytest.MonkeyPatch) -> ModelSpec:
    raw_row(model, patch)
    run_feature_pipeline(model, [DAY])
    return model


def library(name: str) -> Callable[[ModelSpec, pytest.MonkeyPatch], ModelSpec]:
    def update(model: ModelSpec, patch: pytest.MonkeyPatch) -> ModelSpec:
        patch.setattr(fingerprints, "version", lambda n: "99" if n == name else importlib.metadata.version(n))
        return model

    return update


def trainers(name: str) -> Callable[[ModelSpec, pytest.MonkeyPatch], ModelSpec]:
    """A library of the trainer's environment, which has a lock of its own."""

    def update(model: ModelSpec, patch: pytest.MonkeyPatch) -> ModelSpec:
        lock = re.sub(rf"^{name}==.*$", f"{name}==99", settings().trainer_requirements.read_text(), flags=re.MULTILINE)
        changed = settings().home / "changed-requirements.txt"
        changed.write_text(lock)
        patch.setenv("EVERGREEN_TRAINER_REQUIREMENTS", str(changed))
        settings.cache_clear()
        return model

    return update


def field(**fields: object) -> Callable[[ModelSpec, pytest.MonkeyPatch], ModelSpec]:
    return lambda model, _: model.model_copy(update=fields)


def definition(model: ModelSpec, _: pytest.MonkeyPatch) -> ModelSpec:
    from datetime import timedelta

    store = open_feature_store("flight_delay")
    view = store.get_feature_view("origin_weather")
    view.ttl = timedelta(hours=5)
    store.apply([view])
    return model


CHANGES = {
    "a raw row, not yet made": (raw_row, {"features"}),
    "a raw row, made and published": (published_day, {"features", "training set"}),
    "Spark": (library("pyspark"), {"features"}),
    "what writes features": (library("pyarrow"), {"features", "training set"}),
    "Feast": (library("feast"), {"training set"}),
    "DuckDB": (library("duckdb"), {"training set"}),
    "XGBoost": (trainers("xgboost-cpu"), {"model"}),
    "a library that the trainer does without": (trainers("torch"), set()),
    "how many train together": (field(resources=Resources(processes=2)), {"model"}),
    "where training may run": (field(resources=Resources(spot=False, memory_gib=9)), set()),
    "a library that nothing depends on": (library("rich"), set()),
    "parameters": (field(parameters={"rounds": 3}), {"model"}),
    "the seed": (field(seed=7), {"model"}),
    "the holdout": (field(holdout=Duration(5, "d")), {"training set"}),
    "the schedule": (field(schedule="0 0 * * 1"), set()),
    "a view's TTL": (definition, {"training set"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_touches(own_january: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    apply, touched = CHANGES[change]
    model = loader.load_spec("flight_delay").model_copy(update={"holdout": Duration(7, "d")})  # of 14 days
    examples = training_sets.build_training_set(model, WINDOW)
    before = marks(model, examples)
    changed = apply(model, monkeypatch)
    after = marks(changed, examples)
    assert {step for step in before if before[step] != after[step]} == touched
