"""What monitoring publishes of a champion: the same record for the same histograms, in whatever order they came."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import ledger
from evergreen.errors import DatasetError
from evergreen.lake.datasets import Manifest, open_dataset, period_partition
from evergreen.ledger import AlarmRaised
from evergreen.monitoring import matured, matured_days, page, service
from evergreen.monitoring.matured import HoldoutPerformance, MaturedPeriods
from evergreen.monitoring.matured_days import ChampionPerformance
from evergreen.monitoring.performance import DailyMetric
from evergreen.monitoring.period_rows import RegisteredModels
from evergreen.monitoring.record import MonitoringRecord, monitoring_dataset, read_record, read_report, record_partition
from evergreen.monitoring.service import PREDICTIONS, measure_performance, monitor_periods, preview_record
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ModelSpec, ScorePolicy
from support.ledger_events import MODEL, content, day, promotion, verdict_event

pytestmark = pytest.mark.unit

FIRST, AS_OF, BROKEN, END = 30, 60, 70, 80
INPUTS = ("distance", "origin_weather__temperature", "carrier_delays__late__share", "gone__feature")
ROWS = 400
METADATA = {
    "holdout": [day(50), day(AS_OF)],
    "label_counts": {},
    "missing": {"label": "it is not there"},
    "exact": True,
}
METADATA |= {"no_champion": None}


@pytest.fixture(autouse=True)
def champion(home: Path) -> None:
    """An empty lake, and a ledger with one champion."""
    event = verdict_event(AS_OF).model_copy(update={"candidate_inputs": INPUTS})
    event = event.model_copy(update={"evidence": {"evaluation": f"evaluations/{MODEL}/as_of=x"}})
    for item in (event, promotion("1", AS_OF, 1)):
        ledger.append_decision(MODEL, "ada", lambda _, item=item: item)


def spec() -> ModelSpec:
    return load_spec(MODEL)


def publish(dataset: str, partition: str, inputs: dict[str, Any], **tables: dict[str, Any]) -> Manifest:
    opened, fingerprint = open_dataset(dataset), f"{abs(hash(str(tables))):064x}"[:64]
    staged = opened.stage(partition, fingerprint)
    files = {name: staged / f"{name}.parquet" for name in tables}
    for name, file in files.items():
        pq.write_table(pa.table(tables[name]), file)
    if dataset.startswith("evaluations/"):
        files["metadata"] = staged / "metadata.json"
        files["metadata"].write_text(json.dumps(METADATA))
    return opened.publish(partition, fingerprint, files, inputs)


def publish_day(number: int, *, factor: float = 1.0, rows: int = ROWS, **columns: Any) -> None:
    rng = np.random.default_rng(number)
    level = rng.normal(0, 0.1)
    spine = {"distance": factor * (500 + 100 * rng.standard_normal(rows) + 10 * level), "late": np.zeros(rows)}
    spine |= columns
    weather = {"temperature": rng.normal(level, 1, 24), "event_timestamp": np.zeros(24)}
    delays = {"late__share": rng.random(30), "carrier": rng.choice(["AA", "UA"], 30).astype(object)}
    partition = f"day={day(number)}"
    publish(f"features/{MODEL}", partition, {}, departures=spine, origin_weather=weather, carrier_delays=delays)


def publish_days(first: int, end: int, broken: int = BROKEN) -> None:
    for number in range(first, end):
        publish_day(number, factor=1.609 if number >= broken else 1.0)


def alarms_in_ledger() -> list[AlarmRaised]:
    return [entry.event for entry in ledger.read_state(MODEL).entries if isinstance(entry.event, AlarmRaised)]


def data_problems(record: MonitoringRecord | None) -> tuple[str, ...]:
    """Return what could not be monitored of the data: these features have no labels, and the evaluation is gone."""
    assert record
    is_of_labels = [problem.startswith("performance") for problem in record.problems]
    assert any(is_of_labels)
    return tuple(problem for problem, is_other in zip(record.problems, is_of_labels, strict=True) if not is_other)


def monitor(end: int, model: ModelSpec | None = None) -> MonitoringRecord:
    record = monitor_periods(model or spec(), day(end), "ada")
    assert record is not None
    return record


def test_a_break_is_recorded_and_raised_once() -> None:
    publish_days(FIRST, END)
    record = monitor(END)
    assert (record.champion_version, record.reference_days, record.periods) == ("1", AS_OF - FIRST, END - AS_OF)
    assert record.judged_until == date.fromisoformat(day(END - 1))
    assert data_problems(record) == ("inputs that no published table has are not monitored: gone__feature",)
    (alarm,) = record.open_alarms
    assert (alarm.rule, str(alarm.opened)) == ("break", day(BROKEN))
    assert {change.column for change in alarm.changes} == {"departures.distance"}
    (event,) = alarms_in_ledger()
    assert (event.champion, str(event.day)) == ("1", day(BROKEN))

    dataset = monitoring_dataset(MODEL)
    before = {name: dataset.manifest(name) for name in dataset.partitions()}
    assert monitor(END) == record
    assert {name: dataset.manifest(name) for name in dataset.partitions()} == before
    assert alarms_in_ledger() == [event]
    assert read_record(MODEL, record.champion_content) == record


def measure(end: int, model: ModelSpec | None = None) -> MonitoringRecord:
    record = measure_performance(model or spec(), day(end), "ada")
    assert record is not None
    return record


def rules(record: MonitoringRecord) -> list[str]:
    return sorted(alarm.rule for alarm in record.open_alarms)


def test_alarms_of_data_do_not_wait_for_performance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What scores may be killed, or fail in any way: what the data shows is published by then."""
    publish_days(FIRST, END)
    monkeypatch.setattr(RegisteredModels, "__enter__", fail_with(KeyboardInterrupt()))
    monkeypatch.setattr(matured_days, "measure_holdout", refuse_to_measure)
    assert rules(monitor(END)) == ["break"]
    monkeypatch.undo()
    monkeypatch.setattr(MaturedPeriods, "_inputs", fail_with(RuntimeError("no server\nTraceback")))
    record = measure(END)
    assert "performance is not measured: no server" in record.problems
    assert rules(record) == ["break"]
    assert read_record(MODEL, record.champion_content) == record


def refuse_to_measure(*_: Any, only_published: bool = False) -> HoldoutPerformance:
    assert only_published, "`monitor_periods` measures nothing"
    return HoldoutPerformance({})


def raise_loss(content: str, number: int, gate: str, metric: str | None = None) -> AlarmRaised:
    loss = AlarmRaised(
        champion="1",
        champion_content=content,
        rule="performance",
        day=date.fromisoformat(day(number)),
        changes=(f"{gate} performance",),
        metric=metric,
    )
    ledger.append_decision(MODEL, "ada", lambda _: loss)
    return loss


def test_a_loss_that_was_raised_stays_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it cannot be judged any more, or nothing of performance can be read: it is open then."""
    publish_days(FIRST, END)
    record, (gate,) = monitor(END), matured.monitored_gates(spec())
    loss = raise_loss(record.champion_content, 65, gate.name, matured.digest_metrics(spec())[gate.name])
    record = monitor(END)
    (alarm,) = [alarm for alarm in record.open_alarms if alarm.rule == "performance"]
    assert (str(alarm.opened), alarm.change_names) == (day(65), loss.changes)
    before = alarms_in_ledger()
    assert monitor(END) == record
    record = measure(END)
    assert alarm in record.open_alarms
    assert alarms_in_ledger() == before
    assert read_record(MODEL, record.champion_content) == record
    at_that_time = preview_record(spec(), day(65), with_performance=True)
    assert at_that_time
    assert not at_that_time.open_alarms, "a preview knows no later alarm"
    for name in ("collect_performance", "judge_performance"):
        with monkeypatch.context() as patch:
            patch.setattr(service, name, fail_with(RuntimeError("no evaluation")))
            record = measure(END)
        assert rules(record) == ["break", "performance"]
    with monkeypatch.context() as patch:
        patch.setattr(service, "collect_performance", fail_with(RuntimeError("no evaluation")))
        assert "performance is not known: no evaluation" in measure(END).problems
    assert alarms_in_ledger() == before


def test_a_loss_in_a_metric_that_is_none_now_is_named_and_not_open() -> None:
    publish_days(FIRST, END)
    record, (gate,) = monitor(END), matured.monitored_gates(spec())
    raise_loss(record.champion_content, 65, "a gate of before")
    raise_loss(record.champion_content, 66, gate.name, "0123456789abcdef")
    record = measure(END)
    assert rules(record) == ["break"]
    for number, name, why in (
        (65, "a gate of before", "no gate of that name is monitored now"),
        (66, gate.name, "its metric is another one now"),
    ):
        assert f"performance: the loss by {name} of {day(number)} is not followed: {why}" in record.problems
    assert read_record(MODEL, record.champion_content) == record


def bad_days(name: str = "auc") -> DailyMetric:
    values = 0.9 + 0.01 * np.random.default_rng(1).standard_normal(80)
    values[40:] -= 0.3
    days = tuple(date(2013, 2, 1) + timedelta(number) for number in range(80))
    return DailyMetric(name, True, days, 28, values, np.full(80, 1000.0))


def test_a_metric_that_cannot_be_judged_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_days(FIRST, END)
    performance = ChampionPerformance(
        metrics=(bad_days("broken"), bad_days("unknown"), bad_days()), not_compared=frozenset({"unknown"})
    )
    monkeypatch.setattr(service, "collect_performance", lambda *_, **__: performance)
    judge, mean = service.judge_performance, service.running_mean

    def judge_but(metric: DailyMetric, *arguments: Any) -> Any:
        return fail_with(ZeroDivisionError("no days"))() if metric.name == "broken" else judge(metric, *arguments)

    def mean_but(values: Any, memory: float) -> Any:
        means.append(memory)
        is_first = len(means) % len(performance.metrics) == 1  # of each record: before logs are compared, and after
        return fail_with(ZeroDivisionError("no mean"))() if is_first else mean(values, memory)

    means: list[float] = []
    monkeypatch.setattr(service, "judge_performance", judge_but)
    monkeypatch.setattr(service, "running_mean", mean_but)
    record = measure(END)
    assert [alarm.change_names for alarm in record.alarms if alarm.rule == "performance"] == [("auc performance",)]
    assert "performance: no alarms by broken: no days" in record.problems
    assert "performance: no alarms by unknown: its holdout is not known now" in record.problems
    assert "performance: broken has no mean: no mean" in record.problems
    assert [item.gate for item in record.performance] == ["unknown", "auc"]
    (event,) = [event for event in alarms_in_ledger() if event.rule == "performance"]
    assert event.metric == matured.digest_metrics(spec()).get("auc")


def test_a_page_without_what_cannot_be_drawn_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_days(FIRST, END)
    performance = ChampionPerformance(metrics=(bad_days(),))
    monkeypatch.setattr(service, "collect_performance", lambda *_, **__: performance)
    monkeypatch.setattr(page, "_matured_metric", fail_with(OverflowError("too large\nfor a plot")))
    record = measure(END)
    shown = read_report(MODEL, record.champion_content)
    assert shown
    assert "performance is not drawn: too large" in shown.decode()
    assert "departures.distance" in shown.decode()
    assert rules(record) == ["break", "performance"]


def fail_with(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_clock_that_is_wrong_is_a_break_of_the_time_of_day() -> None:
    """Rows are of the same day in New York, four hours later than they should be."""
    for number in range(FIRST, END):
        seconds = 50_000 + 20_000 * np.random.default_rng(number).random(ROWS)
        start = datetime.fromisoformat(day(number)).replace(tzinfo=ZoneInfo("America/New_York"))
        skew = 4 * 3600 if number >= BROKEN else 0
        publish_day(number, event_timestamp=[start + timedelta(seconds=s + skew) for s in seconds])
    (alarm,) = monitor(END).open_alarms
    assert (alarm.rule, str(alarm.opened)) == ("break", day(BROKEN))
    assert "departures.event_timestamp level" in alarm.change_names
    assert {change.column for change in alarm.changes} == {"departures.event_timestamp"}


def test_the_record_does_not_depend_on_the_order_of_runs() -> None:
    publish_days(FIRST, 67)
    monitor(65)
    publish_days(73, END)  # later days come first
    assert "6 days" in " ".join(monitor(END).problems)
    publish_days(67, 73)
    record = monitor(67)
    assert record.periods == END - AS_OF - 6, "a run for a day of the past publishes no later one, and forgets none"
    record = monitor(END)
    dataset = monitoring_dataset(MODEL)
    published = [manifest.files for manifest in dataset.manifests()]
    for name in dataset.partitions():
        dataset.manifest_path(name).unlink()
    assert monitor(END) == record
    assert [manifest.files for manifest in dataset.manifests()] == published


def test_a_corrected_day_revises_the_record_and_not_the_ledger() -> None:
    publish_days(FIRST, END)
    raised = monitor(END).open_alarms[0]
    publish_days(BROKEN, END, broken=END)
    assert not monitor(END).open_alarms
    (event,) = alarms_in_ledger()
    assert event.day == raised.opened, "what was said stays"


def published_files(pattern: str = "") -> dict[str, Manifest | None]:
    dataset = monitoring_dataset(MODEL)
    return {name: dataset.manifest(name) for name in dataset.partitions() if name.startswith(pattern)}


def test_a_preview_knows_nothing_that_came_later_and_records_nothing() -> None:
    publish_days(FIRST, END)
    preview = preview_record(spec(), day(BROKEN))
    assert preview
    assert (preview.alarms, preview.periods) == ((), BROKEN - AS_OF)
    assert preview.judged_until == date.fromisoformat(day(BROKEN - 1))
    record, entries = monitor(END), ledger.read_state(MODEL).head_number
    before = published_files()
    assert preview_record(spec(), day(BROKEN)) == preview, "histograms of later days are published now"
    on_its_day = preview_record(spec(), day(BROKEN + 1))
    assert on_its_day
    assert [(alarm.rule, str(alarm.opened)) for alarm in on_its_day.open_alarms] == [("break", day(BROKEN))]
    assert preview_record(spec(), day(AS_OF - 5)).periods == 0  # type: ignore[union-attr]
    assert published_files() == before
    assert read_record(MODEL, record.champion_content) == record
    assert ledger.read_state(MODEL).head_number == entries


def test_a_preview_appends_no_alarm_and_publishes_no_record() -> None:
    publish_days(FIRST, END)
    preview = preview_record(spec(), day(END))
    assert preview
    assert preview.open_alarms
    assert not alarms_in_ledger()
    assert not published_files("record=")
    assert len(published_files("day=")) == END - AS_OF


def test_histograms_are_published_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_days(58, END, broken=END)
    count, calls = service.count_by_bin, 0

    def count_until_killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3 + 2 * 3:  # of three tables: the reference, and two batches
            raise KeyboardInterrupt
        return count(*arguments)

    monkeypatch.setattr(service, "PERIODS_AT_ONCE", 7)
    monkeypatch.setattr(service, "count_by_bin", count_until_killed)
    with pytest.raises(KeyboardInterrupt):
        monitor(END)
    assert list(published_files("day=")) == [f"day={day(number)}" for number in range(AS_OF, AS_OF + 14)]
    monkeypatch.setattr(service, "count_by_bin", count)
    record = monitor(END)
    assert record.periods == END - AS_OF
    monkeypatch.undo()
    files = published_files()
    for name in files:
        monitoring_dataset(MODEL).manifest_path(name).unlink()
    assert monitor(END) == record
    assert published_files() == files


def test_the_record_is_made_again_when_what_it_shows_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_days(58, 63)
    record = monitor(63)
    (manifest,) = published_files("record=").values()
    assert manifest
    assert {f"evergreen.monitoring.{name}" for name in ("service", "page", "alarms")} <= manifest.inputs["code"].keys()
    assert "evergreen.reports.monitoring" in manifest.inputs["code"]
    features = feature_spec(spec()).model_copy(update={"timezone": "Asia/Tokyo"})
    for change in ({"description": "Another one"}, {"features": features}):
        monitor(63)
        (before,) = published_files("record=").values()
        monitor(63, spec().model_copy(update=change))
        (after,) = published_files("record=").values()
        assert before
        assert after
        assert before.fingerprint != after.fingerprint
        shown = read_report(MODEL, record.champion_content)
        assert shown
        assert ("Another one" in shown.decode()) == ("description" in change)


def test_inputs_that_cannot_be_compared_are_named(use_home: Any, tmp_path: Path) -> None:
    use_home(tmp_path / "other")
    names = ("distance", "scheduled", "stops", "nothing")
    event = verdict_event(AS_OF).model_copy(update={"candidate_inputs": names})
    for item in (event, promotion("1", AS_OF, 1)):
        ledger.append_decision(MODEL, "ada", lambda _, item=item: item)
    for number in range(FIRST, 63):
        columns = {"scheduled": [datetime(2013, 1, 1, tzinfo=UTC)] * 9, "stops": [[1.0]] * 9, "nothing": [None] * 9}
        publish_day(number, rows=9, **columns)
    assert data_problems(monitor(63)) == (
        "not monitored, because the reference has no numbers, texts or booleans of them: departures.scheduled, "
        "departures.stops, departures.nothing",
    )


def test_a_reference_stays_after_an_upgrade_without_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_days(52, 65)
    record = monitor(65)
    (reference,) = published_files("reference=").values()
    assert reference
    monkeypatch.setattr(service, "code_of", lambda *_: {"duckdb": "another"})
    features = open_dataset(f"features/{MODEL}")
    expired = features.manifest_path(f"day={day(54)}")
    expired.rename(expired.with_suffix(".expired"))
    assert monitor(65) == record
    assert list(published_files("reference=").values()) == [reference]
    for number in range(52, AS_OF):
        features.manifest_path(f"day={day(number)}").unlink(missing_ok=True)
    assert monitor(65) == record
    assert list(published_files("reference=").values()) == [reference]

    publish_days(52, AS_OF)
    assert monitor(65) == record
    (made_again,) = published_files("reference=").values()
    assert made_again
    assert made_again.inputs["code"] == {"duckdb": "another"}


def test_a_reference_stays_after_an_upgrade_without_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spec().model_copy(update={"score": ScorePolicy()})
    publish_days(58, 63)
    publish(f"evaluations/{MODEL}", "as_of=x", {}, scores={"candidate": np.linspace(0, 1, 400)})
    record = monitor(63, model)
    before = published_files("reference=")
    monkeypatch.setattr(service, "code_of", lambda *_: {"duckdb": "another"})
    open_dataset(f"evaluations/{MODEL}").manifest_path("as_of=x").unlink()
    assert monitor(63, model) == record
    assert published_files("reference=") == before


def test_days_that_lack_a_period_are_left_out(use_home: Any, tmp_path: Path) -> None:
    use_home(tmp_path / "other")
    # Of New York: a day begins with 12:00, since 00:00 is still the evening before.
    features = feature_spec(spec()).model_copy(update={"period": "12h", "timezone": "America/New_York"})
    model = spec().model_copy(update={"features": features, "score": ScorePolicy()})
    calendar, as_of = features.calendar, "2013-03-01T00:00Z"
    change: dict[str, Any] = {"as_of": as_of, "candidate_inputs": ("distance",)}
    event = verdict_event(50).model_copy(update=change | {"evidence": {"evaluation": "evaluations/x/as_of=x"}})
    for item in (event, promotion("1", AS_OF, 1).model_copy(update={"as_of": as_of})):
        ledger.append_decision(MODEL, "ada", lambda _, item=item: item)
    publish(f"evaluations/{MODEL}", "as_of=x", {}, scores={"candidate": np.linspace(0, 1, 100)})
    content_of_champion = ledger.read_state(MODEL).champion_content
    first, end = "2013-01-10T12:00Z", "2013-04-10T12:00Z"
    absent = ("2013-02-01T12:00Z", "2013-03-11T00:00Z")
    unanswered = ("2013-04-02T00:00Z", "2013-04-10T00:00Z")
    for number, period in enumerate(calendar.periods_between(first, end)):
        if period in absent:
            continue
        partition = period_partition(period)
        publish(
            f"features/{MODEL}",
            partition,
            {},
            departures={"distance": np.arange(20.0) + number % 3, "late": np.zeros(20)},
        )
        if period >= as_of and period not in unanswered:
            inputs = {"model": {"version": "1", "content": content_of_champion}}
            publish(f"predictions/{MODEL}", partition, inputs, predictions={"prediction": np.linspace(0, 1, 30)})
    record = monitor_periods(model, end, "ada")
    assert record
    dataset = monitoring_dataset(MODEL)
    manifest = dataset.manifest(record_partition(record.champion_content))
    assert manifest
    series = pq.read_table(dataset.file_path(manifest, "series")).to_pylist()
    rows = {
        table: {row["day"]: round(np.expm1(row["value"])) for row in series if row["column"] == table}
        for table in ("departures", PREDICTIONS)
    }
    assert {table: set(counts.values()) for table, counts in rows.items()} == {"departures": {40}, PREDICTIONS: {60}}
    days = {date(2013, 1, 10) + timedelta(days=number) for number in range(90)}
    assert rows["departures"].keys() == days - {date(2013, 2, 1), date(2013, 3, 10)}
    monitored = {item for item in days if item > date(2013, 2, 28)}
    assert rows[PREDICTIONS].keys() == monitored - {date(2013, 3, 10), date(2013, 4, 1), date(2013, 4, 9)}
    assert record.reference_days == 48, "1 February, and 28 February of which the reference has a half, are left out"
    assert record.judged_until == date(2013, 4, 9)


def test_a_spine_without_inputs_is_counted(use_home: Any, tmp_path: Path) -> None:
    use_home(tmp_path / "other")
    event = verdict_event(AS_OF).model_copy(update={"candidate_inputs": ("origin_weather__temperature",)})
    for item in (event, promotion("1", AS_OF, 1)):
        ledger.append_decision(MODEL, "ada", lambda _, item=item: item)
    publish_days(FIRST, END)
    publish_day(BROKEN, rows=ROWS // 4)
    (alarm,) = monitor(END).alarms
    assert [(change.column, change.measure) for change in alarm.changes] == [("departures", "rows")]


def test_days_without_features_or_rows_are_named() -> None:
    publish_days(FIRST, END, broken=END)
    open_dataset(f"features/{MODEL}").manifest_path(f"day={day(65)}").unlink()
    publish_day(75, rows=0)
    record = monitor(END)
    assert f"{day(65)}: no features are published" in record.problems
    assert f"departures: {day(75)}: no rows" in record.problems
    assert [(alarm.rule, str(alarm.opened), alarm.changes[0].column) for alarm in record.alarms] == [
        ("break", day(75), "departures")
    ]


def test_a_reference_that_is_too_short_is_named() -> None:
    publish_days(50, END)
    record = monitor(END)
    assert record.alarms == ()
    assert any("10 days are known to compare with, and 28 are needed" in problem for problem in record.problems)


def test_a_lake_without_the_data_of_the_champion_is_named() -> None:
    publish_days(AS_OF, END)
    record = monitor(END)
    assert record.alarms == ()
    assert any("are published any more" in problem for problem in record.problems)


def test_the_reference_stays_whatever_becomes_of_its_features() -> None:
    publish_days(FIRST, END)
    record = monitor(END)
    publish_days(FIRST, 40, broken=0)
    open_dataset(f"features/{MODEL}").manifest_path(f"day={day(50)}").unlink()
    assert monitor(END) == record


def test_predictions_are_compared_with_those_of_the_holdout() -> None:
    model = spec().model_copy(update={"score": ScorePolicy()})
    publish_days(FIRST, 100, broken=100)
    rng = np.random.default_rng(1)
    publish(f"evaluations/{MODEL}", "as_of=x", {}, scores={"candidate": rng.beta(2, 5, 4000)})
    for number in range(AS_OF, 100):
        values = rng.beta(2, 5, ROWS) if number < 95 else np.full(ROWS, 0.5)
        model_content = ledger.read_state(MODEL).champion_content if number != 70 else content(1)
        publish(
            f"predictions/{MODEL}",
            f"day={day(number)}",
            {"model": {"version": "1", "content": model_content}},
            predictions={"prediction": values},
        )
    record = monitor(100, model)
    (alarm,) = record.alarms
    assert (alarm.rule, str(alarm.opened)) == ("break", day(95))
    assert {change.column for change in alarm.changes} == {"batch predictions.prediction"}


def test_without_a_champion_there_is_nothing_to_monitor(use_home: Any, tmp_path: Path) -> None:
    use_home(tmp_path / "other")
    publish_days(0, 3)
    assert monitor_periods(spec(), day(3), "ada") is None


def test_periods_that_the_champion_has_learned_from_are_not_monitored() -> None:
    publish_days(FIRST, AS_OF)
    record = monitor(AS_OF - 5)
    assert record.periods == 0
    assert data_problems(record)[-1] == f"no period from {day(AS_OF)} on has been monitored yet"


def test_a_damaged_record_is_named() -> None:
    publish_days(FIRST, 62)
    record = monitor(62)
    dataset = monitoring_dataset(MODEL)
    manifest = dataset.manifest(record_partition(record.champion_content))
    assert manifest
    path = dataset.file_path(manifest, "record")
    path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(DatasetError, match="is not what its manifest names"):
        read_record(MODEL, record.champion_content)


def test_the_report_shows_alarms_and_escapes_names() -> None:
    publish_days(FIRST, END)
    record = monitor(END)
    page = read_report(MODEL, record.champion_content)
    assert page
    text = page.decode()
    assert f"<td>{day(BROKEN)}</td>" in text
    assert "departures.distance level (+" in text
    for title in ("Alarms", "Not monitored", "Evidence of a drift or a loss", "Columns", "Volume"):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<svg") == text.count("</svg>") >= 3
    assert "<script" not in text
    assert read_report(MODEL, content(99)) is None
