"""How a champion does by labels that mature: measured once, revised where they come late, and an alarm of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException
from sklearn import metrics

from evergreen import batch_predictions, ledger
from evergreen.feature_store import training_sets
from evergreen.lake import datasets
from evergreen.ledger import AlarmRaised
from evergreen.monitoring import matured
from evergreen.monitoring.matured import PeriodPerformance, read_periods
from evergreen.monitoring.record import MonitoringRecord, read_report
from evergreen.monitoring.service import measure_performance, monitor_periods, preview_record
from evergreen.registry import versions
from evergreen.spec.model import ModelSpec
from support import parcels
from support.calendars import DAYS, later

pytestmark = pytest.mark.integration

TRAIN = """
import pyarrow.parquet as pq
import xgboost as xgb


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=table[job.label].to_numpy(), nthread=1)
    options = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "seed": job.seed}
    xgb.train(options, data, 20).save_model(output / "model.ubj")
    return {"rows": float(table.num_rows)}
"""
GATES = [
    {"kind": "threshold", "metric": "brier", "at_most": 0.5},
    {"kind": "against_champion", "metric": "log_loss", "must_be": "better", "margin": 0.01, "name": "loss"},
    {"kind": "against_champion", "metric": "auc", "must_be": "not_worse", "margin": 0.2, "name": "order"},
]
START = later(parcels.FIRST, 32)
END = later(START, 40)


def outcomes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    return {"outcome": (size + random.normal(scale=0.3, size=size.size) > 0.5).astype(np.int64)}


def write(monkeypatch: pytest.MonkeyPatch, use_models: Any, root: Path, **options: Any) -> ModelSpec:
    """Write the model, publish its features, and make a champion as of START."""
    model = parcels.write_parcels(root, monkeypatch, use_models, TRAIN, outcomes, kind="binary", gates=GATES, **options)
    assert parcels.retrain(model, START, *parcels.ALL_INPUTS).verdict.promote
    return model


def read_spine(day: str) -> tuple[datasets.Manifest, pa.Table]:
    dataset = datasets.open_dataset("features/parcels")
    manifest = dataset.manifest(f"day={day}")
    assert manifest
    return manifest, pq.read_table(dataset.file_path(manifest, "orders"))


def change_spine(day: str, change: Callable[[pa.Table], pa.Table], name: str) -> None:
    """Publish the examples of a day anew."""
    dataset, (manifest, spine) = datasets.open_dataset("features/parcels"), read_spine(day)
    items = pq.read_table(dataset.file_path(manifest, "items"))
    staged = dataset.stage(f"day={day}", name)
    files = {table: staged / f"{table}.parquet" for table in ("orders", "items")}
    pq.write_table(change(spine), files["orders"])
    pq.write_table(items, files["items"])
    dataset.publish(f"day={day}", name, files, {"changed": name})


def set_labels(change: Callable[[np.ndarray], Any]) -> Callable[[pa.Table], pa.Table]:
    def apply(spine: pa.Table) -> pa.Table:
        number = spine.schema.get_field_index("outcome")
        return spine.set_column(number, "outcome", pa.array(change(spine["outcome"].to_numpy()), pa.int64()))

    return apply


def monitor(model: ModelSpec, end: str) -> MonitoringRecord:
    """Run what the tasks `watch` and `measure` run."""
    assert monitor_periods(model, end, "a test")
    record = measure_performance(model, end, "a test")
    assert record
    return record


def performances(model: ModelSpec) -> dict[str, PeriodPerformance]:
    return {period: item for period, (_, item) in read_periods(model).items()}


def score_day(model: ModelSpec, day: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and the champion's predictions of a day, by hand."""
    import xgboost as xgb

    rows = training_sets.build_look_set(model, parcels.window(model, END), day, later(day, 1))
    table = pq.read_table(training_sets.look_dataset(model).file_path(rows, "holdout"))
    champion = versions.find_champion(model)
    assert champion
    with versions.open_model(model.name, champion.content) as (folder, _):
        booster = xgb.Booster(model_file=folder / "model.ubj")
        names = list(versions.read_model_inputs(folder).column_names)
    return table["label"].to_numpy(), booster.predict(xgb.DMatrix(table.select(names).to_pandas()))


def test_periods_are_measured_once_and_a_loss_raises_an_alarm(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    model = write(monkeypatch, use_models, tmp_path, label_delay="2d")
    for number in range(21, 32):  # when the holdout of a week and the days since are enough to compare with
        change_spine(later(START, number), set_labels(lambda labels: 1 - labels), "flipped")
    end = later(START, 14)
    record = monitor(model, end)
    measured = performances(model)
    assert list(measured) == [later(START, number) for number in range(12)], "labels of two days are not complete"
    label, score = score_day(model, START)
    first = measured[START]
    assert (first.rows, first.labelled, first.is_published) == (parcels.ROWS, parcels.ROWS, False)
    assert first.sums["loss"] == pytest.approx((parcels.ROWS * metrics.log_loss(label, score), parcels.ROWS), rel=1e-5)
    assert first.sums["order"] == pytest.approx((parcels.ROWS * metrics.roc_auc_score(label, score), parcels.ROWS))
    assert np.sum(first.calibration, axis=0) == pytest.approx((parcels.ROWS, score.sum(), label.sum()))
    holdout = ledger.read_state(model.name).find_verdict_event(1)
    assert holdout
    (loss, order) = record.performance
    results = {result.gate: result.candidate for result in holdout.verdict.results}
    assert loss.holdout == pytest.approx(results["loss"])  # all days have as many rows
    assert order.holdout == pytest.approx(results["order"], abs=0.05)  # within days
    assert (loss.days, str(loss.last_day)) == (12, later(START, 11))
    assert loss.mean == pytest.approx(
        np.mean([item.sums["loss"][0] / item.sums["loss"][1] for item in measured.values()])
    )

    before = read_periods(model)
    monitor(model, end)
    assert read_periods(model) == before
    with monkeypatch.context() as patch:
        patch.setattr(versions, "open_model", refuse)
        assert monitor(model, end) == record, "nothing is scored again"
        assert preview_record(model, end, with_performance=True) == record

    opened = list[str]()
    monkeypatch.setattr(versions, "open_model", count_calls(versions.open_model, opened))
    record = monitor(model, later(START, 32))
    assert len(opened) == 1, "the model is opened once, whatever the number of periods"
    alarms = {alarm.change_names: alarm for alarm in record.open_alarms if alarm.rule == "performance"}
    assert alarms.keys() == {("loss performance",), ("order performance",)}
    assert all(later(START, 22) < str(alarm.opened) < later(START, 32) for alarm in alarms.values())
    raised = [entry.event for entry in ledger.read_state(model.name).entries if isinstance(entry.event, AlarmRaised)]
    losses = [event for event in raised if event.rule == "performance"]
    assert {(event.champion, event.champion_content) for event in losses} == {("1", record.champion_content)}
    assert {event.changes: event.day for event in losses} == {name: alarm.opened for name, alarm in alarms.items()}
    page = (read_report(model.name, record.champion_content) or b"").decode()
    assert "Performance on matured labels" in page
    assert "Calibration on matured labels" in page


def count_calls(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        calls.append(arguments[0])
        return function(*arguments)

    return counted


def refuse(*_: Any) -> Any:
    raise AssertionError("nothing is due")


def test_late_and_contradicting_labels_revise_the_past_visibly(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    model = write(monkeypatch, use_models, tmp_path, label_delay="1d")
    late, contradicted, wrong, gone, known_later = (later(START, number) for number in range(5))
    _, spine = read_spine(late)
    half = pa.array([None if row % 2 else value for row, value in enumerate(spine["outcome"].to_pylist())], pa.int64())
    column = spine.schema.get_field_index("outcome")
    change_spine(late, lambda table: table.set_column(column, "outcome", half), "half")
    change_spine(wrong, set_labels(lambda labels: labels + 1), "wrong")
    change_spine(gone, lambda table: table.slice(0, 0), "gone")
    known = spine.schema.get_field_index("label_known_at")
    times = [DAYS.start(known_later) + timedelta(hours=23 if row % 3 else 49) for row in range(parcels.ROWS)]
    times_column = pa.array(times, pa.timestamp("us", "UTC"))
    change_spine(known_later, lambda table: table.set_column(known, "label_known_at", times_column), "later")
    end = later(START, 6)
    record = monitor(model, end)
    first = performances(model)
    assert {day: item.labelled for day, item in first.items()} == {
        late: 30, contradicted: 60, wrong: 60, gone: 0, known_later: 40
    }  # fmt: skip
    problems = "; ".join(record.problems)
    assert f"performance: {wrong}: loss: " in problems
    assert "labels are neither 0 nor 1" in problems
    assert f"performance: {gone}: no row has a known label" in problems
    assert (first[wrong].sums, record.revisions) == ({}, ())
    assert record.performance[0].days == 3
    partition = "day=" + known_later
    manifest = matured.performance_dataset(model.name).manifest(partition)
    assert preview_record(model, later(START, 7), with_performance=True)
    assert matured.performance_dataset(model.name).manifest(partition) == manifest, "a backfill revises nothing"

    change_spine(late, lambda _: spine, "whole")
    change_spine(contradicted, set_labels(lambda labels: np.where(np.arange(60) < 5, 1 - labels, labels)), "other")
    end = later(START, 8)
    record = monitor(model, end)
    second = performances(model)
    assert second[late].labelled == second[known_later].labelled == 60
    for day, reason, labelled in (
        (late, "labelled rows were corrected, labels came late", 30),
        (contradicted, "labels contradict earlier ones", 60),
        (known_later, "labels came late", 40),
    ):
        (revision,) = second[day].revisions
        assert (revision.as_of, revision.reason, revision.labelled) == (end, reason, labelled)
        assert revision.values["loss"] == pytest.approx(np.divide(*first[day].sums["loss"]))
        assert any(text.startswith(f"{day}: {reason}, known until {end}") for text in record.revisions), (
            record.revisions
        )
    assert not second[wrong].revisions
    assert monitor(model, end) == record

    preview = preview_record(model, later(START, 6), with_performance=True)
    assert preview
    assert performances(model) == second, "a backfill changes nothing that is published"
    monkeypatch.setattr(matured, "publish_period_record", refuse)
    preview_model = matured.MaturedPeriods(model, ledger.read_state(model.name), later(START, 6))
    seen_then = preview_model.measure_new(is_preview=True)
    assert seen_then[known_later].labelled == 40, "labels that were known later do not count then"
    assert list(seen_then) == list(first)


def test_published_predictions_are_measured_as_they_were_made(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    model = write(monkeypatch, use_models, tmp_path, score={}, label_delay="1d")
    state = ledger.read_state(model.name)
    scoring = batch_predictions.find_scoring_model(state)
    assert scoring
    scored, corrected, unscored = (later(START, number) for number in range(3))
    batch_predictions.publish_predictions(model, [scored, corrected], scoring, rescore=False)
    label, score = score_day(model, corrected)
    # An example that came later has no prediction.
    _, spine = read_spine(corrected)
    number = spine.schema.get_field_index("item")
    items = pa.array([*spine["item"].to_pylist()[:-1], 7], pa.int64())
    change_spine(corrected, lambda table: table.set_column(number, "item", items), "another")
    record = monitor(model, later(START, 4))
    measured = performances(model)
    assert [measured[day].is_published for day in (scored, corrected, unscored)] == [True, True, False]
    assert measured[corrected].labelled == parcels.ROWS - 1
    assert f"performance: {corrected}: 1 of 60 labelled rows have no published prediction" in "; ".join(record.problems)
    expected = 59 * metrics.log_loss(label[:-1], score[:-1])
    assert measured[corrected].sums["loss"] == pytest.approx((expected, 59), rel=1e-5)

    # Sums of another metric are not taken for those of a gate that has its name. Its limit may change.
    gates = tuple(gate.model_copy(update={"margin": 0.02}) if gate.name == "loss" else gate for gate in model.gates)
    other_limit = model.model_copy(update={"gates": gates})
    assert read_periods(other_limit) == read_periods(model)
    gates = tuple(gate.model_copy(update={"metric": "brier"}) if gate.name == "loss" else gate for gate in model.gates)
    other = model.model_copy(update={"gates": gates})
    assert all(item.sums.keys() == {"order"} for item in performances(other).values())
    brier = monitor(other, later(START, 4))
    assert performances(other)[corrected].sums["loss"][0] == pytest.approx(np.sum((label[:-1] - score[:-1]) ** 2))
    assert brier.performance[0].holdout != record.performance[0].holdout
    assert not brier.revisions
    monitor(model, later(START, 4))

    # A champion that cannot be loaded is named, and what was predicted is measured nevertheless.
    batch_predictions.publish_predictions(model, [later(START, 4)], scoring, rescore=False)
    change_spine(later(START, 5), lambda table: table.slice(0, 0), "empty")
    monkeypatch.setattr(versions, "open_model", unloadable)
    record = monitor(model, later(START, 6))
    assert list(performances(model)) == [scored, corrected, unscored, later(START, 4)]
    problem = f"performance: {later(START, 3)}: version 1 cannot be measured: the artifact is gone"
    assert problem in record.problems
    assert record.periods == 6
    assert [alarm.rule for alarm in record.open_alarms] == ["break"], "alarms of data do not need the registry"


def unloadable(*_: Any) -> Any:
    raise MlflowException("the artifact is gone")
