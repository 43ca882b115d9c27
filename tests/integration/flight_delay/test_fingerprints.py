"""A change changes the fingerprint of what depends on it, and of nothing else."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from evergreen.feature_store import training_sets
from evergreen.feature_store.repository import feature_store
from evergreen.features import inputs
from evergreen.features.make import make
from evergreen.ingest import raw_files
from evergreen.lake import datasets, fingerprints
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import Model, Resources
from evergreen.training import candidates
from evergreen.window import Origin, Window

pytestmark = pytest.mark.integration

DAY = date(2013, 1, 12)
WINDOW = Window.between(date(2013, 1, 1), date(2013, 1, 15), Origin.MANUAL, "America/New_York")


def marks(model: Model, examples: datasets.Manifest) -> dict[str, str]:
    """Fingerprints of a day's features, of the training set, and of the model, as they would be made now."""
    parts = training_sets.split(model, WINDOW)
    columns = training_sets.feature_columns(model)
    return {
        "features": inputs.fingerprints(model, [DAY])[str(DAY)],
        "training set": fingerprints.fingerprint(training_sets._inputs(model, WINDOW, parts)),
        "model": fingerprints.fingerprint(candidates.inputs_of(model, examples, columns)),
    }


def raw_row(model: Model, _: pytest.MonkeyPatch) -> Model:
    file = raw_files.raw_file("flights", DAY)
    pd.read_parquet(file).iloc[1:].to_parquet(file, index=False, coerce_timestamps="us")
    return model


def published_day(model: Model, patch: pytest.MonkeyPatch) -> Model:
    raw_row(model, patch)
    make(model, [DAY])
    return model


def library(name: str) -> Callable[[Model, pytest.MonkeyPatch], Model]:
    def update(model: Model, patch: pytest.MonkeyPatch) -> Model:
        patch.setattr(datasets, "version", lambda n: "99" if n == name else importlib.metadata.version(n))
        return model

    return update


def trainers(name: str) -> Callable[[Model, pytest.MonkeyPatch], Model]:
    """A library of the trainer's environment, which has a lock of its own."""

    def update(model: Model, patch: pytest.MonkeyPatch) -> Model:
        lock = re.sub(rf"^{name}==.*$", f"{name}==99", candidates.LOCK.read_text(), flags=re.MULTILINE)
        changed = settings().home / "changed-requirements.txt"
        changed.write_text(lock)
        patch.setattr(candidates, "LOCK", changed)
        return model

    return update


def field(**fields: object) -> Callable[[Model, pytest.MonkeyPatch], Model]:
    return lambda model, _: model.model_copy(update=fields)


def definition(model: Model, _: pytest.MonkeyPatch) -> Model:
    from datetime import timedelta

    store = feature_store()
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
    "the holdout": (field(holdout_days=5), {"training set"}),
    "the schedule": (field(schedule="0 0 * * 1"), set()),
    "a view's TTL": (definition, {"training set"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_touches(own_january: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    apply, touched = CHANGES[change]
    model = loader.load("flight_delay")
    examples = training_sets.build(model, WINDOW)
    before = marks(model, examples)
    changed = apply(model, monkeypatch)
    after = marks(changed, examples)
    assert {step for step in before if before[step] != after[step]} == touched
