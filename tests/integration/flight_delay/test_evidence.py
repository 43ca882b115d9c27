"""All that gates may ask for, measured on real days: what is found, and what is said when it cannot be had."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import xgboost
from feast import FeatureService

from evergreen import evaluation
from evergreen.evaluation.online import sample
from evergreen.feature_store import online_store, training_sets
from evergreen.feature_store.repository import feature_store, locked
from evergreen.features.inputs import dataset as features_dataset
from evergreen.gates import (
    AgainstChampion,
    Baseline,
    BySlice,
    Evidence,
    Fairness,
    Gate,
    Missing,
    NoChampion,
    OnlineEqualsOffline,
    OnlineSample,
    PredictionDrift,
    SameSignature,
    Serving,
    Signature,
    Threshold,
    judge,
)
from evergreen.lake import datasets, fingerprints
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.gates import Quantity
from evergreen.spec.model import Model
from evergreen.training import candidates
from evergreen.training.backends import process
from evergreen.window import Origin, Window, midnight
from support import onnx_models

pytestmark = pytest.mark.integration

ZONE = "America/New_York"
SPEC = loader.load("flight_delay")
FEW_ROUNDS = {**SPEC.parameters, "rounds": 12}
AUC = Threshold(metric="auc", at_least=0.5)
EVERYTHING: tuple[Gate, ...] = (
    AUC,
    AgainstChampion(metric="auc", must_be="not_worse", margin=0.02),
    BySlice(metric="auc", by="carrier", margin=0.1),
    BySlice(metric="auc", by="nullif(origin, 'JFK')", margin=0.1),
    Fairness(by="carrier", cut=0.5, at_most=0.9),
    Baseline(metric="log_loss"),
    Baseline(metric="brier", against="route_delays__late_rate_24h"),
    Serving(quantity="single_p99_ms", at_most=1000),
    SameSignature(),
    OnlineEqualsOffline(entities=50),
    PredictionDrift(at_most=0.5),
)
FEATURES = 31


def window(end: int) -> Window:
    return Window.between(date(2013, 1, 1), date(2013, 1, end), Origin.MANUAL, ZONE)


def judged_by(*gates: Gate) -> Model:
    return SPEC.model_copy(update={"gates": gates, "parameters": FEW_ROUNDS})


MODEL = judged_by(*EVERYTHING)


def retrain(end: int) -> tuple[datasets.Manifest, datasets.Manifest]:
    examples = training_sets.build(MODEL, window(end))
    source = training_sets.dataset(MODEL)
    return examples, process.train(MODEL, examples, source, training_sets.feature_columns(MODEL))


Made = tuple[Path, datasets.Manifest, datasets.Manifest]


@pytest.fixture(scope="module")
def made(january: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A home with online features, a training set and a candidate as of 18 January. Not to be changed."""
    home = tmp_path_factory.mktemp("evidence") / "home"
    shutil.copytree(january, home)
    before = os.environ["EVERGREEN_HOME"]
    os.environ["EVERGREEN_HOME"] = str(home)
    settings.cache_clear()
    feature_store.cache_clear()
    online_store.materialize(MODEL, window(18))
    examples, candidate = retrain(18)
    os.environ["EVERGREEN_HOME"] = before
    settings.cache_clear()
    feature_store.cache_clear()
    return home, examples, candidate


@pytest.fixture
def examples(made: Made) -> datasets.Manifest:
    return made[1]


@pytest.fixture
def candidate(made: Made) -> datasets.Manifest:
    return made[2]


@pytest.fixture
def home(made: Made, use_home: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of what was made; the settings point at it."""
    shutil.copytree(made[0], tmp_path / "home")
    return use_home(tmp_path / "home")


def shown(model: Model, examples: datasets.Manifest, candidate: datasets.Manifest) -> Evidence:
    return evaluation.evidence(model, evaluation.evaluate(model, examples, candidate, None))


def problem(found: Any) -> str:
    assert isinstance(found, Missing), found
    assert "\n" not in found.problem
    return found.problem


def table(manifest: datasets.Manifest, name: str) -> pa.Table:
    return pq.read_table(training_sets.dataset(MODEL).path(manifest, name))


def test_all_that_is_asked_for_is_measured_published_and_read_back(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    published = evaluation.evaluate(MODEL, examples, candidate, None)
    found = evaluation.evidence(MODEL, published)
    holdout, features = table(examples, "holdout"), list(candidate.inputs["features"])
    assert found.days == (date(2013, 1, 11), date(2013, 1, 18))
    assert isinstance(found.champion, NoChampion)
    assert np.array_equal(found.label, holdout["label"].to_numpy())
    assert found.groups == {
        "carrier": holdout["carrier"].to_pylist(),
        "nullif(origin, 'JFK')": [None if o == "JFK" else o for o in holdout["origin"].to_pylist()],
    }
    prior = table(examples, "train")["label"].to_numpy().mean()
    last = holdout["route_delays__late_rate_24h"].to_pandas()
    assert last.isna().any()
    assert set(found.baselines) == {"prior", "route_delays__late_rate_24h"}
    assert found.baselines["prior"] == pytest.approx(np.full(holdout.num_rows, prior))
    assert found.baselines["route_delays__late_rate_24h"] == pytest.approx(last.fillna(prior).to_numpy())
    booster = xgboost.Booster(model_file=candidates.dataset(MODEL).path(candidate, "model.ubj"))
    recent = table(examples, "recent").select(features).to_pandas()
    assert np.array_equal(found.recent, booster.predict(xgboost.DMatrix(recent)).astype(float))
    assert set(found.serving) == set(get_args(Quantity))
    assert all(value > 0 for name, value in found.serving.items() if name != "memory_mib")
    assert isinstance(found.signature, Signature)
    assert found.signature.model == found.signature.serving
    assert [name for name, _ in found.signature.model] == features
    assert found.online == OnlineSample(50 * FEATURES, 0)
    assert "amiss" not in published.inputs
    # Found, not measured again: latencies would differ.
    assert evaluation.evaluate(MODEL, examples, candidate, None) == published
    verdict = judge(MODEL.gates, evaluation.evidence(MODEL, published))
    assert {record.outcome for record in verdict.records} <= {"passed", "failed"}, verdict.reason


def test_a_network_that_takes_categories_is_measured_like_trees(
    home: Path, examples: datasets.Manifest
) -> None:
    gates = (
        AUC,
        Serving(quantity="single_p99_ms", at_most=1000),
        SameSignature(),
        PredictionDrift(at_most=0.5),
    )
    request = ("carrier", "weekday", "origin", "distance")
    model = judged_by(*gates).model_copy(update={"request_columns": request})
    learned = examples.files["train"].schema
    columns = {
        name: "string" if learned[name] == "string" else "float"
        for name in training_sets.feature_columns(model)
    }
    target = candidates.dataset(model)
    folder = target.stage(examples.partition, "network")
    files = {"model.onnx": onnx_models.save(onnx_models.network(columns), folder)}
    candidate = target.publish(examples.partition, "network", files, {"features": list(columns)})
    found = shown(model, examples, candidate)
    holdout, recent = table(examples, "holdout"), table(examples, "recent")
    assert found.candidate == pytest.approx(onnx_models.expected(holdout, columns), abs=1e-4)
    assert found.recent == pytest.approx(onnx_models.expected(recent, columns), abs=1e-4)
    assert np.unique(found.candidate.round(3)).size > 10
    assert isinstance(found.signature, Signature)
    assert found.signature.model == found.signature.serving
    assert dict(found.signature.model)["carrier"] == "text"
    assert set(found.serving) == set(get_args(Quantity))
    verdict = judge(model.gates, found)
    assert {record.outcome for record in verdict.records} <= {"passed", "failed"}, verdict.reason


def test_nothing_is_measured_that_no_gate_asks_for(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    (home / "online.db").unlink()
    published = evaluation.evaluate(judged_by(AUC), examples, candidate, None)
    assert set(published.files) == {"about", "scores"}
    assert set(published.files["scores"].schema) == {"event_timestamp", "label", "candidate"}
    assert not (home / "online.db").exists()
    found = evaluation.evidence(judged_by(AUC), published)
    assert found.groups == found.baselines == {}
    assert problem(found.online) == problem(found.serving) == "it was not measured"


def test_evaluations_by_other_gates_lie_beside_each_other(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    one = evaluation.evaluate(judged_by(AUC), examples, candidate, None)
    model = judged_by(AUC, Baseline(metric="log_loss"))
    assert evaluation.evaluate(model, examples, candidate, None) != one
    assert evaluation.dataset(MODEL).get(one.reference) == one


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (BySlice(metric="auc", by="carier"), "'carier' cannot be computed for the holdout"),
        (Fairness(by="hour(event_timestamp", cut=0.5, at_most=0.1), "'hour(event_timestamp' cannot be"),
        (Baseline(metric="brier", against="last_value"), "'last_value' is no column of the holdout"),
    ],
)
def test_a_slip_in_a_gate_is_named_and_blocks(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest, gate: Any, expected: str
) -> None:
    model = judged_by(AUC, gate)
    published = evaluation.evaluate(model, examples, candidate, None)
    found = evaluation.evidence(model, published)
    (missing,) = (found.groups | found.baselines).values()
    assert expected in problem(missing)
    assert "its columns are flight_id, " in problem(missing)
    assert not judge(model.gates, evaluation.evidence(model, published)).promote


ONLINE = judged_by(AUC, OnlineEqualsOffline(entities=10_000))


def ask_online(examples: datasets.Manifest, candidate: datasets.Manifest) -> Any:
    return shown(ONLINE, examples, candidate).online


def test_one_wrong_value_among_all_that_are_served_is_found_and_so_is_its_repair(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    asked = table(examples, "holdout").filter(pc.equal(table(examples, "holdout")["day"], date(2013, 1, 17)))
    tail = asked["tailnum"].drop_null()[0].as_py()
    others = len(
        set(asked.select(["carrier", "origin", "dest", "tailnum"]).drop_null().to_pandas().agg(tuple, axis=1))
    )
    with closing(sqlite3.connect(home / "online.db")) as con, con:
        (key, right), *_ = [
            row
            for row in con.execute("SELECT entity_key, value FROM evergreen_aircraft")
            if tail.encode() in row[0]
        ]
        (other,) = con.execute("SELECT value FROM evergreen_aircraft WHERE value != ?", [right]).fetchone()
        con.execute("UPDATE evergreen_aircraft SET value = ? WHERE entity_key = ?", [other, key])
    found = ask_online(examples, candidate)
    assert found.compared == others * FEATURES
    assert 0 < found.different < 20  # the flights of that aircraft on that day
    assert found.example.startswith("aircraft__aircraft_age of carrier=")
    assert f"tailnum={tail} is " in found.example
    with closing(sqlite3.connect(home / "online.db")) as con, con:
        con.execute("UPDATE evergreen_aircraft SET value = ? WHERE entity_key = ?", [right, key])
    # Nothing that is recorded in the lake has changed, and yet it is looked at again.
    assert ask_online(examples, candidate).different == 0


def test_an_online_store_that_was_emptied_is_found(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    (home / "online.db").unlink()
    feature_store.cache_clear()
    found = ask_online(examples, candidate)
    assert found.different > found.compared / 2
    assert "is nothing online" in found.example


def test_an_online_store_of_another_moment_is_found(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest, tmp_path: Path
) -> None:
    (home / "online.db").unlink()
    shutil.move(home / "lake/online", tmp_path / "online")
    feature_store.cache_clear()
    online_store.materialize(MODEL, window(17))
    shutil.rmtree(home / "lake/online")
    shutil.move(tmp_path / "online", home / "lake/online")
    found = ask_online(examples, candidate)
    assert found.different > found.compared / 4


def publish_again(day: date, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Publish the features of a day with one of its tables changed."""
    source, partition = features_dataset(MODEL), datasets.day_partition(day)
    manifest = source.manifest(partition)
    assert manifest is not None
    files = {name: source.path(manifest, name) for name in manifest.files}
    rows = change(pq.read_table(files[table], partitioning=None))
    files[table] = source.stage(partition, "again") / f"{table}.parquet"
    pq.write_table(rows, files[table])
    source.publish(
        partition, fingerprints.fingerprint([manifest.fingerprint, "again"]), files, manifest.inputs
    )


def test_features_corrected_since_they_were_materialized_are_named(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    publish_again(date(2013, 1, 16), "aircraft", lambda rows: rows.slice(1))
    said = problem(ask_online(examples, candidate))
    assert said.startswith("features of 2013-01-16 were published anew since the online store was written")
    online_store.materialize(MODEL, window(18))
    assert isinstance(ask_online(examples, candidate), OnlineSample)


def test_a_store_that_was_never_or_only_half_written_is_not_compared(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    record = datasets.dataset("online/flight_delay")
    inputs = dict(record.manifest("held").inputs)
    unsure = {"until": inputs["until"], "days": {}, "views": {}}  # as it stands while it is being written
    record.publish("held", fingerprints.fingerprint(unsure), {}, unsure)
    assert "was being written when that was ended" in problem(ask_online(examples, candidate))
    shutil.rmtree(record.root)
    assert problem(ask_online(examples, candidate)) == "nothing was materialized for flight_delay yet"


def test_the_online_store_is_not_read_while_it_is_written(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    feature_store()
    found: list[Any] = []
    reader = threading.Thread(
        target=lambda: found.append(sample(MODEL, examples, table(examples, "holdout"), 5))
    )
    with locked():
        reader.start()
        reader.join(timeout=2)
        assert reader.is_alive()
    reader.join(timeout=60)
    assert found == [OnlineSample(5 * FEATURES, 0)]


def serve_without(view: str) -> None:
    """Leave a view out of the model's service, until the store is opened anew."""
    store = feature_store()
    views = [v for v in store.list_feature_views() if v.name != view]
    store.delete_feature_service("flight_delay")
    store.apply([FeatureService(name="flight_delay", features=views)])


def test_a_column_that_was_added_to_the_service_after_training_is_seen(home: Path) -> None:
    model = judged_by(AUC, SameSignature())
    before = feature_store().get_feature_service("flight_delay")
    serve_without("aircraft")
    examples, candidate = retrain(16)
    found = shown(model, examples, candidate).signature
    assert isinstance(found, Signature)
    assert sorted(found.model) == sorted(found.serving)
    feature_store().delete_feature_service("flight_delay")
    feature_store().apply([before])
    found = shown(model, examples, candidate).signature
    assert isinstance(found, Signature)
    assert set(found.serving) - set(found.model) == {("aircraft__aircraft_age", "number")}


def test_the_most_recent_day_holds_all_its_rows_and_no_label(home: Path, examples: datasets.Manifest) -> None:
    recent, holdout = table(examples, "recent"), table(examples, "holdout")
    manifest = features_dataset(MODEL).manifest("day=2013-01-17")
    assert manifest is not None
    assert recent.num_rows == manifest.files["departures"].rows
    assert set(recent["day"].to_pylist()) == {date(2013, 1, 17)}
    assert set(holdout.column_names) - set(recent.column_names) == {"label", "label_known_at"}
    # The rows whose label is known are in the holdout too, and the same.
    both = recent.filter(pc.is_in(recent["flight_id"], holdout["flight_id"]))
    known = holdout.filter(pc.equal(holdout["day"], date(2013, 1, 17)))
    assert 0 < both.num_rows == known.num_rows < recent.num_rows
    assert both.equals(known.select(both.column_names))
    for name in ("train", "holdout"):
        rows = table(examples, name)
        assert rows["label"].type == pa.int32()
        assert pc.max(rows["label_known_at"]).as_py() < midnight(date(2013, 1, 18), ZONE)


def test_when_every_label_is_known_there_is_no_recent_day(home: Path) -> None:
    for day in range(1, 11):
        publish_again(date(2013, 1, day), "departures", lambda rows: rows.filter(pc.is_valid(rows["late"])))
    for day in (11, 12):  # on which nothing flies, and all the others land
        publish_again(date(2013, 1, day), "departures", lambda rows: rows.slice(0, 0))
    examples, candidate = retrain(13)
    assert examples.files["recent"].rows == 0
    assert examples.files["recent"].schema == {
        name: type_
        for name, type_ in examples.files["train"].schema.items()
        if name not in ("label", "label_known_at")
    }
    found = shown(judged_by(AUC, PredictionDrift(at_most=0.2)), examples, candidate)
    assert problem(found.recent) == "no day of the window has rows without a known label"
