"""All that gates may ask for, measured on real days: what is found, and what is said when it cannot be had."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
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
from evergreen.evaluation.online_comparison import compare_online_store
from evergreen.evaluation.serving_inputs import serving_columns
from evergreen.feature_store import online_store, training_sets
from evergreen.feature_store.repository import feast_lock, open_feature_store
from evergreen.features.inputs import features_dataset as features_dataset
from evergreen.gates import (
    AgainstChampionGate,
    BaselineGate,
    BySliceGate,
    Evidence,
    FairnessGate,
    Gate,
    InputSignature,
    MissingEvidence,
    NoChampion,
    OnlineEqualsOfflineGate,
    OnlineSample,
    PredictionDriftGate,
    ServingGate,
    SignatureGate,
    ThresholdGate,
    judge_evidence,
)
from evergreen.lake import datasets, fingerprints
from evergreen.periods import Calendar, Duration
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.gates import ServingQuantity
from evergreen.spec.model import ModelSpec
from evergreen.training import candidates
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from support import onnx_models

pytestmark = pytest.mark.integration

ZONE = "America/New_York"
SPEC = loader.load_spec("flight_delay")
FEW_ROUNDS = {**SPEC.parameters, "rounds": 12}
AUC = ThresholdGate(metric="auc", at_least=0.5)
EVERYTHING: tuple[Gate, ...] = (
    AUC,
    AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.02),
    BySliceGate(metric="auc", group_by="carrier", margin=0.1),
    BySliceGate(metric="auc", group_by="nullif(origin, 'JFK')", margin=0.1),
    FairnessGate(group_by="carrier", cut=0.5, at_most=0.9),
    BaselineGate(metric="log_loss"),
    BaselineGate(metric="brier", baseline="route_delays__late_rate_24h"),
    ServingGate(quantity="single_p99_ms", at_most=1000),
    SignatureGate(),
    OnlineEqualsOfflineGate(sample_size=50),
    PredictionDriftGate(at_most=0.5),
)
FEATURES = 31


def window(end: int) -> Window:
    return Window.from_range("2013-01-01", f"2013-01-{end:02d}", RunReason.MANUAL, Calendar("1d", ZONE))


def judged_by(*gates: Gate) -> ModelSpec:
    return SPEC.model_copy(update={"gates": gates, "holdout": Duration(7, "d"), "parameters": FEW_ROUNDS})


MODEL = judged_by(*EVERYTHING)


def retrain(end: int) -> tuple[datasets.Manifest, datasets.Manifest]:
    examples = training_sets.build_training_set(MODEL, window(end))
    source = training_sets.training_set_dataset(MODEL)
    return examples, process.train_in_process(MODEL, examples, source, training_sets.model_input_columns(MODEL))


Made = tuple[Path, datasets.Manifest, datasets.Manifest]


@pytest.fixture(scope="module")
def made(january: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A home with online features, a training set and a candidate as of 18 January. Not to be changed."""
    home = tmp_path_factory.mktemp("evidence") / "home"
    shutil.copytree(january, home)
    before = os.environ["EVERGREEN_HOME"]
    os.environ["EVERGREEN_HOME"] = str(home)
    settings.cache_clear()
    open_feature_store.cache_clear()
    online_store.materialize_features(MODEL, window(18))
    examples, candidate = retrain(18)
    os.environ["EVERGREEN_HOME"] = before
    settings.cache_clear()
    open_feature_store.cache_clear()
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


def shown(model: ModelSpec, examples: datasets.Manifest, candidate: datasets.Manifest) -> Evidence:
    return evaluation.load_evidence(model, evaluation.collect_evidence(model, examples, candidate, None))


def problem(found: Any) -> str:
    assert isinstance(found, MissingEvidence), found
    assert "\n" not in found.problem
    return found.problem


def table(manifest: datasets.Manifest, name: str) -> pa.Table:
    return pq.read_table(training_sets.training_set_dataset(MODEL).file_path(manifest, name))


def test_required_evidence_is_measured_published_and_read_back(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    published = evaluation.collect_evidence(MODEL, examples, candidate, None)
    found = evaluation.load_evidence(MODEL, published)
    holdout, features = table(examples, "holdout"), list(candidate.inputs["features"])
    assert found.holdout == ("2013-01-11", "2013-01-18")
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
    booster = xgboost.Booster(model_file=candidates.candidate_dataset(MODEL).file_path(candidate, "model.ubj"))
    recent = table(examples, "recent").select(features).to_pandas()
    assert np.array_equal(found.recent_predictions, booster.predict(xgboost.DMatrix(recent)).astype(float))
    assert set(found.serving_costs) == set(get_args(ServingQuantity))
    assert all(value > 0 for name, value in found.serving_costs.items() if name != "memory_mib")
    assert isinstance(found.input_signature, InputSignature)
    assert found.input_signature.model_columns == found.input_signature.serving_columns
    assert [name for name, _ in found.input_signature.model_columns] == features
    moment = "keys of 2013-01-17 as of 2013-01-18 04:00:00+00:00; the online store holds values until {}"
    assert found.online_sample == OnlineSample(50 * FEATURES, 0, moment=moment.format("2013-01-18 05:00:00+00:00"))
    assert "problems" not in published.inputs
    # Found, not measured again: latencies would differ.
    assert evaluation.collect_evidence(MODEL, examples, candidate, None) == published
    verdict = judge_evidence(MODEL.gates, evaluation.load_evidence(MODEL, published))
    assert {record.outcome for record in verdict.results} <= {"passed", "failed"}, verdict.reason


def test_a_network_that_takes_categories_is_measured_like_trees(home: Path, examples: datasets.Manifest) -> None:
    gates = (
        AUC,
        ServingGate(quantity="single_p99_ms", at_most=1000),
        SignatureGate(),
        PredictionDriftGate(at_most=0.5),
    )
    request = ("carrier", "weekday", "origin", "distance")
    model = judged_by(*gates).model_copy(update={"request_columns": request})
    learned = examples.files["train"].schema
    columns = {
        name: "string" if learned[name] == "string" else "float" for name in training_sets.model_input_columns(model)
    }
    target = candidates.candidate_dataset(model)
    folder = target.stage(examples.partition, "network")
    files = {"model.onnx": onnx_models.save(onnx_models.network(columns), folder)}
    candidate = target.publish(examples.partition, "network", files, {"features": list(columns)})
    found = shown(model, examples, candidate)
    holdout, recent = table(examples, "holdout"), table(examples, "recent")
    assert found.candidate == pytest.approx(onnx_models.expected(holdout, columns), abs=1e-4)
    assert found.recent_predictions == pytest.approx(onnx_models.expected(recent, columns), abs=1e-4)
    assert np.unique(found.candidate.round(3)).size > 10
    assert isinstance(found.input_signature, InputSignature)
    assert found.input_signature.model_columns == found.input_signature.serving_columns
    assert dict(found.input_signature.model_columns)["carrier"] == "text"
    assert set(found.serving_costs) == set(get_args(ServingQuantity))
    verdict = judge_evidence(model.gates, found)
    assert {record.outcome for record in verdict.results} <= {"passed", "failed"}, verdict.reason


def test_evidence_that_no_gate_needs_is_not_measured(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    (home / "online/flight_delay.db").unlink()
    published = evaluation.collect_evidence(judged_by(AUC), examples, candidate, None)
    assert set(published.files) == {"metadata", "scores"}
    assert set(published.files["scores"].schema) == {"event_timestamp", "label", "candidate", "cluster:day"}
    assert not (home / "online/flight_delay.db").exists()
    found = evaluation.load_evidence(judged_by(AUC), published)
    assert found.groups == found.baselines == {}
    assert problem(found.online_sample) == problem(found.serving_costs) == "it was not measured"


def test_evaluations_by_other_gates_lie_beside_each_other(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    one = evaluation.collect_evidence(judged_by(AUC), examples, candidate, None)
    model = judged_by(AUC, BaselineGate(metric="log_loss"))
    assert evaluation.collect_evidence(model, examples, candidate, None) != one
    assert evaluation.evaluation_dataset(MODEL).resolve(one.reference) == one


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (BySliceGate(metric="auc", group_by="carier"), "'carier' cannot be computed for the holdout"),
        (
            FairnessGate(group_by="hour(event_timestamp", cut=0.5, at_most=0.1),
            "'hour(event_timestamp' cannot be",
        ),
        (BaselineGate(metric="brier", baseline="last_value"), "'last_value' is no column of the holdout"),
    ],
)
def test_a_slip_in_a_gate_is_named_and_blocks(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest, gate: Any, expected: str
) -> None:
    model = judged_by(AUC, gate)
    published = evaluation.collect_evidence(model, examples, candidate, None)
    found = evaluation.load_evidence(model, published)
    (missing,) = (found.groups | found.baselines).values()
    assert expected in problem(missing)
    assert "its columns are flight_id, " in problem(missing)
    assert not judge_evidence(model.gates, evaluation.load_evidence(model, published)).promote


ONLINE = judged_by(AUC, OnlineEqualsOfflineGate(sample_size=10_000))


def ask_online(examples: datasets.Manifest, candidate: datasets.Manifest) -> Any:
    return shown(ONLINE, examples, candidate).online_sample


def test_one_wrong_online_value_is_found_and_so_is_its_repair(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    asked = table(examples, "recent")  # all departures of the last day
    tail = asked["tailnum"].drop_null()[0].as_py()
    others = len(set(asked.select(["carrier", "origin", "dest", "tailnum"]).drop_null().to_pandas().agg(tuple, axis=1)))
    with closing(sqlite3.connect(home / "online/flight_delay.db")) as con, con:
        (key, right), *_ = [
            row for row in con.execute("SELECT entity_key, value FROM flight_delay_aircraft") if tail.encode() in row[0]
        ]
        (other,) = con.execute("SELECT value FROM flight_delay_aircraft WHERE value != ?", [right]).fetchone()
        con.execute("UPDATE flight_delay_aircraft SET value = ? WHERE entity_key = ?", [other, key])
    found = ask_online(examples, candidate)
    assert found.value_count == others * FEATURES
    assert 0 < found.mismatch_count < 20  # the flights of that aircraft on that day
    assert found.first_mismatch.startswith("aircraft__aircraft_age of carrier=")
    assert f"tailnum={tail} is " in found.first_mismatch
    with closing(sqlite3.connect(home / "online/flight_delay.db")) as con, con:
        con.execute("UPDATE flight_delay_aircraft SET value = ? WHERE entity_key = ?", [right, key])
    # Nothing that is recorded in the lake has changed, and yet it is looked at again.
    assert ask_online(examples, candidate).mismatch_count == 0


def test_an_online_store_that_was_emptied_is_found(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    (home / "online/flight_delay.db").unlink()
    open_feature_store.cache_clear()
    found = ask_online(examples, candidate)
    assert found.mismatch_count > found.value_count / 2
    assert "is nothing online" in found.first_mismatch


def test_an_online_store_of_another_moment_is_found(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest, tmp_path: Path
) -> None:
    (home / "online/flight_delay.db").unlink()
    shutil.move(home / "lake/online", tmp_path / "online")
    open_feature_store.cache_clear()
    online_store.materialize_features(MODEL, window(17))
    shutil.rmtree(home / "lake/online")
    shutil.move(tmp_path / "online", home / "lake/online")
    found = ask_online(examples, candidate)
    assert found.mismatch_count > found.value_count / 4


def publish_again(day: str, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Publish the features of a day with one of its tables changed."""
    source, partition = features_dataset(MODEL), datasets.period_partition(day)
    manifest = source.manifest(partition)
    assert manifest is not None
    files = {name: source.file_path(manifest, name) for name in manifest.files}
    rows = change(pq.read_table(files[table], partitioning=None))
    files[table] = source.stage(partition, "again") / f"{table}.parquet"
    pq.write_table(rows, files[table])
    source.publish(partition, fingerprints.compute_fingerprint([manifest.fingerprint, "again"]), files, manifest.inputs)


def test_features_corrected_since_they_were_materialized_are_named(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    publish_again("2013-01-16", "aircraft", lambda rows: rows.slice(1))
    said = problem(ask_online(examples, candidate))
    assert said.startswith("features of 2013-01-16 were published again since the online store was written")
    online_store.materialize_features(MODEL, window(18))
    assert isinstance(ask_online(examples, candidate), OnlineSample)


def test_a_store_that_was_never_or_only_half_written_is_not_compared(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    record = datasets.open_dataset("online/flight_delay")
    inputs = dict(record.manifest("state").inputs)
    unsure = {"watermark": inputs["watermark"], "periods": {}, "views": {}}  # as it stands while it is being written
    record.publish("state", fingerprints.compute_fingerprint(unsure), {}, unsure)
    assert "was being written when the writer ended" in problem(ask_online(examples, candidate))
    shutil.rmtree(record.root)
    assert problem(ask_online(examples, candidate)) == "nothing was materialized for flight_delay yet"


def test_the_online_store_is_not_read_while_it_is_written(
    home: Path, examples: datasets.Manifest, candidate: datasets.Manifest
) -> None:
    open_feature_store("flight_delay")
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(compare_online_store(MODEL, 5, window(18).as_of)))
    with feast_lock("flight_delay"):
        reader.start()
        reader.join(timeout=2)
        assert reader.is_alive()
    reader.join(timeout=60)
    [sample] = found
    assert (sample.value_count, sample.mismatch_count) == (5 * FEATURES, 0)


def serve_without(view: str) -> None:
    """Leave a view out of the model's service, until the store is opened again."""
    store = open_feature_store("flight_delay")
    views = [v for v in store.list_feature_views() if v.name != view]
    store.delete_feature_service("flight_delay")
    store.apply([FeatureService(name="flight_delay", features=views)])


def test_a_column_added_to_the_service_after_training_is_found(home: Path) -> None:
    model = judged_by(AUC, SignatureGate())
    before = open_feature_store("flight_delay").get_feature_service("flight_delay")
    serve_without("aircraft")
    examples, candidate = retrain(16)
    found = shown(model, examples, candidate).input_signature
    assert isinstance(found, InputSignature)
    assert sorted(found.model_columns) == sorted(found.serving_columns)
    open_feature_store("flight_delay").delete_feature_service("flight_delay")
    open_feature_store("flight_delay").apply([before])
    found = shown(model, examples, candidate).input_signature
    assert isinstance(found, InputSignature)
    assert set(found.serving_columns) - set(found.model_columns) == {("aircraft__aircraft_age", "number")}


def test_a_request_has_the_columns_that_it_had_in_the_window(home: Path, examples: datasets.Manifest) -> None:
    """A later period, of code that has not the column, says nothing about a run as of an earlier day."""
    model = judged_by(AUC, SignatureGate()).model_copy(update={"request_columns": ("carrier", "distance")})
    dataset = features_dataset(model)
    newest = dataset.newest()
    assert newest is not None
    later = "day=2013-12-31"
    assert later > newest.partition
    departures = dataset.file_path(newest, "departures")
    folder = dataset.stage(later, f"{0:064x}")
    pq.write_table(pq.read_table(departures).drop_columns(["carrier"]), folder / "departures.parquet")
    dataset.publish(later, f"{0:064x}", {"departures": folder / "departures.parquet"}, {})

    columns = serving_columns(model, examples)
    assert not isinstance(columns, MissingEvidence), columns
    assert {("carrier", "text"), ("distance", "number")} < set(columns)
    # Of a window whose last period is that one, the column is missed.
    window_inputs = examples.inputs | {"features": examples.inputs["features"] | {later: ""}}
    later_examples = replace(examples, inputs=window_inputs)
    expected = f"carrier of request_columns is no column of departures, as published for {later}"
    assert problem(serving_columns(model, later_examples)) == expected
    dataset.manifest_path(later).unlink()
    expected = f"flight_delay: features of {later} are no longer published: the types of a request are not known"
    assert problem(serving_columns(model, later_examples)) == expected


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
        assert pc.max(rows["label_known_at"]).as_py() < Calendar("1d", ZONE).start("2013-01-18")


def test_when_every_label_is_known_there_is_no_recent_day(home: Path) -> None:
    for day in range(1, 11):
        publish_again(f"2013-01-{day:02d}", "departures", lambda rows: rows.filter(pc.is_valid(rows["late"])))
    for day in (11, 12):  # on which nothing flies, and all the others land
        publish_again(f"2013-01-{day:02d}", "departures", lambda rows: rows.slice(0, 0))
    examples, candidate = retrain(13)
    assert examples.files["recent"].rows == 0
    assert examples.files["recent"].schema == {
        name: type_ for name, type_ in examples.files["train"].schema.items() if name not in ("label", "label_known_at")
    }
    found = shown(judged_by(AUC, PredictionDriftGate(at_most=0.2)), examples, candidate)
    assert problem(found.recent_predictions) == "no day of the window has rows without a known label"
