"""What a real offline store, and a real model, say of what servers have logged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb

from evergreen import ledger
from evergreen.errors import ScoringError
from evergreen.features.served_after import ServedAfter
from evergreen.lake.datasets import Manifest, open_dataset
from evergreen.ledger import AlarmRaised, ChampionTenure, LedgerState
from evergreen.monitoring import served_periods, service, serving_logs
from evergreen.monitoring.period_rows import RegisteredModels
from evergreen.monitoring.record import read_record, read_report
from evergreen.monitoring.served_days import SERVED_INPUTS, ChampionServing, collect_serving
from evergreen.monitoring.served_periods import compare_new_logs, read_served
from evergreen.monitoring.served_reference import SERVED, serving_dataset
from evergreen.monitoring.service import measure_performance, monitor_periods, preview_record
from evergreen.monitoring.serving_logs import logs_folder
from evergreen.periods import Calendar
from evergreen.registry import versions
from evergreen.scoring.predictions import TableScorer
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.storage import put
from support.ledger_events import day, promotion, verdict_event
from support.ponds import ZONE, publish
from support.serving_logs import INPUTS, INSTANT, log_table, write_log

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("online", ["sqlite"], indirect=True)]

END = "2013-01-10"
AS_OF = 5  # days after 1 January


@pytest.fixture
def champion(ponds: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> xgb.Booster:
    """A champion with data until 6 January, that is opened without a registry, and the training set it learned from."""
    rng = np.random.default_rng(1)
    rows = 4000
    # Days differ, and within a day a level hardly changes, as in what is served.
    wind, level = rng.random(rows) * 5, (rng.random(60) * 10)[np.arange(rows) % 60] + rng.random(rows) / 4
    data = xgb.DMatrix(np.column_stack([wind, level]), label=level > wind, feature_names=list(INPUTS.column_names))
    booster = xgb.train({"max_depth": 2, "nthread": 1, "objective": "binary:logistic"}, data, 5)
    folder = tmp_path / "model"
    folder.mkdir()
    booster.save_model(folder / "model.ubj")
    monkeypatch.setattr(RegisteredModels, "open", lambda *_: (folder, INPUTS))

    training_set = publish_training_set(ponds, wind, level)
    verdict = verdict_event(AS_OF).model_copy(update={"fingerprints": {"training_set": training_set.content_hash}})
    for event in (verdict, promotion("1", AS_OF, 1)):
        ledger.append_decision(ponds.name, "ada", lambda _, event=event: event)
    return booster


def publish_training_set(
    model: ModelSpec, wind: np.ndarray, level: np.ndarray, fingerprint: str = "f" * 64
) -> Manifest:
    dates = [date(2012, 11, 1) + timedelta(days=number % 60) for number in range(len(wind))]
    days = np.array(dates, "datetime64[D]")
    table = pa.table({"day": days, "wind": wind, "levels__level": level})
    dataset, partition = open_dataset(f"training_sets/{model.name}"), f"as_of={day(AS_OF)}"
    staged = dataset.stage(partition, fingerprint)
    files = {name: staged / f"{name}.parquet" for name in ("train", "holdout")}
    pq.write_table(table.filter(days < np.datetime64("2012-12-20")), files["train"])
    pq.write_table(table.filter(days >= np.datetime64("2012-12-20")), files["holdout"])
    return dataset.publish(partition, fingerprint, files, {"definitions": {}})


def state(model: ModelSpec) -> tuple[LedgerState, ChampionTenure]:
    found = ledger.read_state(model.name)
    assert found.champion_tenure
    return found, found.champion_tenure


def served_rows(
    booster: xgb.Booster, model: ModelSpec, number: int, count: int = 24, **changes: Callable[[int], Any]
) -> pa.Table:
    """Return the log of a day of January: request n is half an hour into hour n, and all is as it should be."""
    at = [datetime(2013, 1, number, n % 24, 30, tzinfo=ZoneInfo(ZONE)).astimezone(UTC) for n in range(count)]
    values = {"wind": lambda n: n / 10, "levels__level": lambda n: number + n % 24 / 100, "pond": lambda n: "ab"[n % 2]}
    made = {name: [make(n) for n in range(count)] for name, make in (values | changes).items()}
    inputs = np.array([made["wind"], made["levels__level"]], np.float64).T
    predicted = booster.predict(xgb.DMatrix(inputs, feature_names=list(INPUTS.column_names)))
    columns = {name: pa.array(made[name], pa.float64()) for name in ("wind", "levels__level")}
    columns |= {"pond": pa.array(made["pond"], pa.string()), "request_time": pa.array(at, INSTANT)}
    columns["prediction"] = pa.array(predicted.astype(np.float64))
    ids = [f"{number:02}-{n:04}" for n in range(count)]
    return log_table(ids, columns, content=state(model)[1].content)


def write(model: ModelSpec, number: int, table: pa.Table, name: str = "a") -> None:
    write_log(logs_folder(model.name) / f"day=2013-01-{number:02}/{name}.parquet", table)


def compare(model: ModelSpec, end: str = END) -> tuple[list[str], ChampionServing]:
    found, tenure = state(model)
    problems = compare_new_logs(model, found, tenure, end)
    return problems, collect_serving(model, tenure, problems)


def test_what_is_served_as_it_is_offline_has_no_skew(
    ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(*range(1, 10))
    for number in (7, 8):
        write(ponds, number, served_rows(champion, ponds, number))
    write(ponds, 8, served_rows(champion, ponds, 8), "delivered again")
    problems, serving = compare(ponds)
    assert (problems, serving.problems) == ([], ())
    assert serving.summary
    assert (serving.summary.rows, serving.summary.duplicates, serving.summary.sampled) == (48, 24, 48)
    assert (serving.summary.features, serving.summary.differing_features) == (1, 0)
    assert (serving.summary.predictions, serving.summary.differing_predictions) == (48, 0)
    series, _ = serving.series[SERVED_INPUTS]
    assert {name.column for name in series.names} == {f"{SERVED}.wind", f"{SERVED}.levels__level"}
    assert (series.reference_days, len(series.days)) == (60, 62)
    before = {name: serving_dataset(ponds.name).manifest(name) for name in serving_dataset(ponds.name).partitions()}
    with monkeypatch.context() as patch:
        patch.setattr(RegisteredModels, "open", lambda *_: pytest.fail("a model is opened, and nothing is new"))
        assert compare(ponds)[1].fingerprint == serving.fingerprint
    after = {name: serving_dataset(ponds.name).manifest(name) for name in serving_dataset(ponds.name).partitions()}
    assert before == after
    digits = state(ponds)[1].content[:16]
    assert list(before) == [f"attempts={digits}", "day=2013-01-07", "day=2013-01-08", f"reference={digits}"]


def test_causes_are_named_with_an_example(ponds: ModelSpec, champion: xgb.Booster) -> None:
    """A server that is a day behind, one that lacks a key, one that serves what has expired, one that is too early."""
    publish(1, 2, 3, ponds="abz")  # z has left: its last row is older than the ttl on the 8th
    publish(*range(4, 10))
    wrong = {**{n: 7 + n / 100 for n in range(10)}, 10: None, 11: 99.0, 12: 3.23}

    def level(number: int) -> float | None:
        return wrong.get(number, 8 + number / 100)

    def pond(number: int) -> str:
        return "z" if number == 12 else "ab"[number % 2]

    write(ponds, 8, served_rows(champion, ponds, 8, levels__level=level, pond=pond))
    problems, serving = compare(ponds)
    assert not problems
    (period,) = serving.periods
    (skew,) = period.skew
    assert (skew.column, skew.rows) == ("levels__level", 13)
    assert skew.causes == {
        "the value of one period earlier: the online store was behind": 10,
        "the row is older than the view's ttl, and the server did not leave it out": 1,
        "the server had no value: the key was not in the online store": 1,
        "no row of the offline store explains it": 1,
    }
    assert skew.example == "7.0 served, 8.0 offline, of id '08-0000', at 2013-01-08T05:30:00+00:00, pond 'a'"


def test_served_after_counts(ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it, a row is expected later: what a server had before is named."""
    publish(*range(1, 10))
    delayed = INPUTS.views["levels"].model_copy(
        update={"served_after": ServedAfter.declare("6h", Calendar("1d", ZONE))}
    )
    inputs = INPUTS.model_copy(update={"views": {"levels": delayed}})
    folder = RegisteredModels(ponds).open("")[0]
    monkeypatch.setattr(RegisteredModels, "open", lambda *_: (folder, inputs))
    write(ponds, 8, served_rows(champion, ponds, 8, count=12))
    (skew,) = compare(ponds)[1].periods[0].skew
    assert list(skew.causes) == ["the server had the row before `served_after` lets it be there"]


def test_predictions_of_another_model_are_named_with_version_and_rows(ponds: ModelSpec, champion: xgb.Booster) -> None:
    publish(*range(1, 10))
    table = served_rows(champion, ponds, 8)
    wrong = table["prediction"].to_numpy().copy()
    wrong[[3, 5]] += 0.25
    wrong[6] = np.nan
    write(ponds, 8, table.set_column(table.column_names.index("prediction"), "prediction", pa.array(wrong)))
    _, serving = compare(ponds)
    (problem,) = serving.problems
    assert problem.startswith(
        "serving log: 2013-01-08: 3 of 24 predictions are not what version 1 gives for the logged inputs, by up to "
        "0.25: ids 08-0003, 08-0005, 08-0006"
    )
    assert serving.summary
    assert serving.summary.differing_predictions == 3


def test_hostile_values_keep_no_row_from_being_compared(ponds: ModelSpec, champion: xgb.Booster) -> None:
    """Infinite inputs are refused by XGBoost with all rows; keys may be any text."""
    publish(*range(1, 10))
    table = served_rows(champion, ponds, 8)
    wind = table["wind"].to_numpy().copy()
    wind[[1, 2]] = np.inf, -np.inf
    ponds_of_rows = ["a\x00b", "'; DROP TABLE ids; --", *table["pond"].to_pylist()[2:]]
    for name, values in (("wind", pa.array(wind)), ("pond", pa.array(ponds_of_rows))):
        table = table.set_column(table.column_names.index(name), name, values)
    write(ponds, 8, table)
    problems, serving = compare(ponds)
    assert problems == []
    assert serving.problems == (
        "serving log: 2013-01-08: 2 rows have infinite inputs: their predictions are not compared",
    )
    assert serving.summary
    assert (serving.summary.predictions, serving.summary.differing_predictions) == (22, 0)
    (skew,) = serving.periods[0].skew
    assert (skew.rows, sum(skew.causes.values())) == (2, 2)


def test_rows_that_cannot_be_scored_keep_no_other_from_being_compared(
    ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(*range(1, 10))
    predict = TableScorer.score

    def refuse(scorer: TableScorer, table: pa.Table) -> np.ndarray:
        if 0.5 in table["wind"].to_pylist():
            raise ScoringError("wind 0.5 is a category that the model has not learned")
        return predict(scorer, table)

    monkeypatch.setattr(TableScorer, "score", refuse)
    write(ponds, 8, served_rows(champion, ponds, 8))
    _, serving = compare(ponds)
    assert serving.problems == (
        "serving log: 2013-01-08: 1 rows are not scored: the model refuses them, or rows beside them: wind 0.5 is a "
        "category that the model has not learned",
    )
    assert serving.summary
    assert (serving.summary.predictions, serving.summary.differing_predictions) == (23, 0)


def test_a_foreign_file_is_named_and_the_rest_is_compared(ponds: ModelSpec, champion: xgb.Booster) -> None:
    publish(*range(1, 10))
    table = served_rows(champion, ponds, 8)
    write(ponds, 8, table)
    write(ponds, 8, table.drop_columns(["request_time"]), "<b>foreign</b>")
    write(ponds, 9, table.drop_columns(["wind"]), "all")
    (logs_folder(ponds.name) / "day=2013-01-08/link.parquet").symlink_to("a.parquet")
    write(ponds, 20, table)  # no features are published of it
    problems, serving = compare(ponds, "2013-01-31")
    assert problems == ["serving log: 2013-01-20: no features are published to compare with"]
    foreign = [problem for problem in serving.problems if ".parquet" in problem]
    assert len(foreign) == 3
    assert any("day=2013-01-08/<b>foreign</b>.parquet: request_time: no such column is found" in p for p in foreign)
    assert any("day=2013-01-09/all.parquet: wind: no such column is found, a number is expected" in p for p in foreign)
    assert any("link.parquet: cannot be read" in problem for problem in foreign)
    assert [period.rows for period in serving.periods] == [24, 0]


def test_a_log_in_an_object_store_is_read(
    ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(*range(1, 10))
    monkeypatch.setenv("EVERGREEN_SERVING_LOGS", "memory://logs-of-servers")
    settings.cache_clear()
    file = write_log(tmp_path / "log.parquet", served_rows(champion, ponds, 8))
    put(logs_folder(ponds.name) / "day=2013-01-08/a.parquet", file.read_bytes())
    put(logs_folder(ponds.name) / "day=2013-01-08/b.parquet", b"no Parquet")
    problems, serving = compare(ponds)
    assert problems == []
    assert serving.summary
    assert (serving.summary.rows, serving.summary.foreign_files, serving.summary.differing_features) == (24, 1, 0)


def test_a_period_is_compared_again_when_earlier_features_come(
    ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests have features of the days before, by the view's TTL; what expires changes nothing."""
    publish(1, 5, 6, 8)
    write(ponds, 8, served_rows(champion, ponds, 8, levels__level=lambda _: 7.23, pond=lambda _: "z"))
    problems, serving = compare(ponds)
    assert problems == []
    assert [skew.rows for skew in serving.periods[0].skew] == [24]
    publish(7, ponds="abz")
    problems, serving = compare(ponds)
    assert (problems, serving.periods[0].skew) == ([], ())
    (open_dataset(f"features/{ponds.name}").root / "_manifests" / "day=2013-01-01.json").unlink()
    monkeypatch.setattr(RegisteredModels, "open", lambda *_: pytest.fail("a period is compared without all features"))
    assert compare(ponds)[1].fingerprint == serving.fingerprint


def test_another_training_set_of_the_same_time_is_no_reference(ponds: ModelSpec, champion: xgb.Booster) -> None:
    publish(*range(1, 10))
    write(ponds, 8, served_rows(champion, ponds, 8))
    publish_training_set(ponds, np.full(4000, 99.0), np.full(4000, 99.0), "e" * 64)
    problems, serving = compare(ponds)
    assert problems == [
        "serving log: the distribution of inputs is not compared: the champion's training set is not in the lake any "
        "more"
    ]
    assert SERVED_INPUTS not in serving.series


def test_a_store_that_fails_once_is_no_truth(
    ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The period is not published without the file that could not be read, and the next run reads it."""
    publish(*range(1, 10))
    monkeypatch.setenv("EVERGREEN_SERVING_LOGS", "memory://logs-of-a-store-that-fails")
    settings.cache_clear()
    file = write_log(tmp_path / "log.parquet", served_rows(champion, ponds, 8))
    put(logs_folder(ponds.name) / "day=2013-01-08/a.parquet", file.read_bytes())

    def fail(*_: object) -> str:
        raise TimeoutError("503 Slow Down")

    with monkeypatch.context() as patch:
        patch.setattr(serving_logs, "download", fail)
        problems, serving = compare(ponds)
    assert problems == ["serving log: 2013-01-08: it cannot be compared: 503 Slow Down"]
    assert serving.periods == ()
    problems, serving = compare(ponds)
    assert problems == []
    assert [(period.rows, period.foreign) for period in serving.periods] == [(24, ())]


def test_what_fails_of_a_period_keeps_no_other_from_being_compared(
    ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(*range(1, 10))
    for number in (7, 8, 9):
        write(ponds, number, served_rows(champion, ponds, number))
    join = served_periods.join_as_learned

    def fail(*arguments: Any, **options: Any) -> pa.Table:
        if "day=2013-01-09" not in arguments[3]:
            raise OSError("no such table")
        return join(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(served_periods, "join_as_learned", fail)
        problems, serving = compare(ponds)
    assert problems == ["serving log: 2 days, 2013-01-07 – 2013-01-08: it cannot be compared: no such table"]
    assert [period.period for period in serving.periods] == ["2013-01-09"]
    found, tenure = state(ponds)
    seconds = iter([0.0, 0.0, 1e9])
    problems = compare_new_logs(ponds, found, tenure, END, clock=lambda: next(seconds))
    assert problems == ["serving log: 1 more periods are compared by the next runs"]
    assert compare(ponds)[0] == []
    assert len(read_served(ponds, tenure.content, [])[1]) == 3


def test_what_has_failed_comes_last(ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A period that takes all memory ends the task each time: the next run begins with another one."""
    publish(*range(1, 10))
    for number in (7, 8, 9):
        write(ponds, number, served_rows(champion, ponds, number))
    join, (found, tenure) = served_periods.join_as_learned, state(ponds)

    class Killed(BaseException):
        pass

    def kill(*arguments: Any, **options: Any) -> pa.Table:
        if "day=2013-01-08" not in arguments[3]:
            raise Killed
        return join(*arguments, **options)

    monkeypatch.setattr(served_periods, "join_as_learned", kill)
    with pytest.raises(Killed):
        compare_new_logs(ponds, found, tenure, END)
    with pytest.raises(Killed):
        compare_new_logs(ponds, found, tenure, END)
    assert list(read_served(ponds, tenure.content, [])[1]) == ["2013-01-08", "2013-01-09"]
    monkeypatch.setattr(served_periods, "join_as_learned", join)
    assert compare(ponds)[0] == []
    assert len(read_served(ponds, tenure.content, [])[1]) == 3


def test_a_backlog_opens_one_alarm(ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run has time for one period: the alarm stays that of the first day, which is the oldest."""
    publish(*range(1, 10))
    for number in (6, 7, 8, 9):
        write(ponds, number, served_rows(champion, ponds, number, levels__level=lambda n: n / 100 - 1))
    found, tenure = state(ponds)
    for _ in range(4):
        seconds = iter([0.0, 0.0, 1e9])
        compare_new_logs(ponds, found, tenure, END, clock=seconds.__next__)
        monitor_periods(ponds, END, "ada")
        with monkeypatch.context() as patch:
            patch.setattr(served_periods, "COMPARING_SECONDS", -1.0)
            record = measure_performance(ponds, END, "ada")
        assert record
        assert [str(alarm.opened) for alarm in record.alarms if alarm.rule == "skew"] == ["2013-01-06"]
    raised = [entry.event for entry in ledger.read_state(ponds.name).entries if isinstance(entry.event, AlarmRaised)]
    assert [str(event.day) for event in raised if event.rule == "skew"] == ["2013-01-06"]


def test_a_log_that_takes_all_the_time_comes_after_the_record(
    ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TimeoutOfTask(BaseException):
        pass

    def run_out(*_: object) -> list[str]:
        raise TimeoutOfTask

    publish(*range(1, 10))
    monkeypatch.setattr(service, "compare_new_logs", run_out)
    with pytest.raises(TimeoutOfTask):
        measure_performance(ponds, END, "ada")
    record = read_record(ponds.name, state(ponds)[1].content)
    assert record
    assert record.periods == 4


def test_a_period_with_too_large_files_is_named(
    ponds: ModelSpec, champion: xgb.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(*range(1, 10))
    write(ponds, 7, served_rows(champion, ponds, 7))
    for name in ("a", "b"):
        write(ponds, 8, served_rows(champion, ponds, 8), name)
    size = (logs_folder(ponds.name) / "day=2013-01-07/a.parquet").stat().st_size
    monkeypatch.setattr(serving_logs, "MAX_LOG_BYTES", size + 100)
    problems, serving = compare(ponds)
    (problem,) = problems
    assert problem.startswith("serving log: 2013-01-08: it is not compared: its log has ")
    assert f"at most {size + 100:,} are read: log a share of the requests" in problem
    assert [period.period for period in serving.periods] == ["2013-01-07"]


def test_a_skew_is_an_alarm_and_on_the_page(ponds: ModelSpec, champion: xgb.Booster) -> None:
    """It is raised once, by the watching of data and performance that is there anyway; nobody retrains for it."""
    publish(*range(1, 10))
    write(ponds, 8, served_rows(champion, ponds, 8, levels__level=lambda n: 7 + n / 100))
    write(ponds, 9, served_rows(champion, ponds, 9).drop_columns(["wind"]), "<script>")
    record = measure_performance(ponds, END, "ada")
    assert record
    (alarm,) = record.open_alarms
    assert (alarm.rule, str(alarm.opened), alarm.change_names) == (
        "skew", "2013-01-08", (f"{SERVED}.levels__level skew",)
    )  # fmt: skip
    assert record.serving
    assert (record.serving.columns[0].share, record.serving.foreign_files) == (1.0, 1)
    assert measure_performance(ponds, END, "ada") == record == read_record(ponds.name, record.champion_content)
    watched = monitor_periods(ponds, END, "ada")
    assert watched
    assert (watched.serving, watched.alarms) == (record.serving, record.alarms)
    raised = [entry.event for entry in ledger.read_state(ponds.name).entries if isinstance(entry.event, AlarmRaised)]
    assert [event.rule for event in raised] == ["skew"]
    page = read_report(ponds.name, record.champion_content)
    assert page
    assert b"<script>" not in page
    assert b"&lt;script&gt;.parquet: wind: no such column is found" in page
    assert b"1 of 1 features differ in some rows" in page
    assert b"7.0 served, 8.0 offline, of id &#39;08-0000&#39;" in page
    preview = preview_record(ponds, "2013-01-08", with_performance=True)
    assert preview
    assert (preview.serving, preview.open_alarms) == (None, ())


def test_labels_by_id_judge_what_was_served(ponds: ModelSpec, champion: xgb.Booster) -> None:
    """Also after the log is gone, and beside what data and servers show; they raise nothing."""
    publish(*range(1, 10))
    rows = served_rows(champion, ponds, 8)
    write(ponds, 8, rows)
    labels = pa.table(
        {
            "prediction_id": rows["prediction_id"],
            "label_known_at": pa.array([datetime(2013, 1, 20, tzinfo=UTC)] * rows.num_rows, INSTANT),
            "full": pa.array(np.arange(rows.num_rows) % 2 == 0),
        }
    )
    folder = logs_folder(ponds.name) / "labels/day=2013-01-08"
    write_log(folder / "a.parquet", labels.slice(0, 10))
    record = measure_performance(ponds, END, "ada")
    assert record
    assert record.labels
    (served,) = record.labels.periods
    assert (served.period, served.predictions, served.labelled, served.is_sample) == ("2013-01-08", 24, 10, False)
    assert list(served.values) == [ponds.gates[0].name]
    (logs_folder(ponds.name) / "day=2013-01-08/a.parquet").unlink()
    write_log(folder / "b.parquet", labels)
    record = measure_performance(ponds, END, "ada")
    assert record
    assert record.labels
    assert (record.labels.periods[0].labelled, record.labels.corrected, record.alarms) == (24, 0, ())
    assert measure_performance(ponds, END, "ada") == record == read_record(ponds.name, record.champion_content)
    watched = monitor_periods(ponds, END, "ada")
    assert watched
    assert watched.labels == record.labels
    page = read_report(ponds.name, record.champion_content)
    assert page
    assert b"Performance of what was served, by posted labels" in page


def test_without_a_log_nothing_is_opened(ponds: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    for event in (verdict_event(AS_OF), promotion("1", AS_OF, 1)):
        ledger.append_decision(ponds.name, "ada", lambda _, event=event: event)
    monkeypatch.setattr(versions, "open_model", lambda *_: pytest.fail("a model is opened"))
    assert compare(ponds) == ([], ChampionServing())
