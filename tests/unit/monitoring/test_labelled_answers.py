"""What was served is judged by posted labels: a function of files, whenever it is computed, and nothing acts on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import ledger
from evergreen.lake.datasets import open_dataset, period_partition
from evergreen.ledger import ChampionTenure
from evergreen.monitoring import labelled_answers as module
from evergreen.monitoring.estimates import ChampionEstimates, EstimatedMetric
from evergreen.monitoring.labelled_answers import (
    LabelledAnswers,
    collect_labelled,
    labelled_dataset,
    measure_labelled,
    summarize_labelled,
)
from evergreen.monitoring.matured_days import ChampionPerformance
from evergreen.monitoring.page import create_page
from evergreen.monitoring.performance import DailyMetric
from evergreen.monitoring.record import MonitoringRecord
from evergreen.monitoring.served_periods import ServedPeriod
from evergreen.monitoring.served_reference import serving_dataset
from evergreen.monitoring.serving_logs import logs_folder
from evergreen.reports.monitoring import render_monitoring_report
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import load_spec
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import ForecastSeries
from support.ledger_events import MODEL, day, promotion, verdict_event
from support.serving_logs import INSTANT, write_log

pytestmark = pytest.mark.unit

AS_OF, END, ROWS = 60, 70, 40
PROBABILITIES = np.linspace(0.05, 0.95, ROWS)
IDS = [f"id-{number:02}" for number in range(ROWS)]
ACTUAL = (np.arange(ROWS) % 3 == 0).astype(np.int64)
POSTED = datetime(2013, 4, 1, tzinfo=UTC)
OTHER = "b" * 64


@pytest.fixture
def tenure(home: Path) -> ChampionTenure:
    for event in (verdict_event(AS_OF), promotion("1", AS_OF, 1)):
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)
    found = ledger.read_state(MODEL).champion_tenure
    assert found
    return found


def spec(*metrics: str, **changes: Any) -> ModelSpec:
    gates = tuple(AgainstChampionGate(name=name, metric=name, must_be="better") for name in metrics or ("log_loss",))
    return load_spec(MODEL).model_copy(update={"gates": gates, "label": "late", **changes})


def serve(number: int, contents: Mapping[str, Sequence[str]], values: Any = PROBABILITIES, **more: Any) -> None:
    """Publish the answers of a day, by the content of the model, as they are when its log has been compared."""
    ids = [name for names in contents.values() for name in names]
    models = [content for content, names in contents.items() for _ in names]
    moment = datetime.fromisoformat(day(number)).replace(hour=12, tzinfo=UTC)
    answers = pa.table(
        {
            "prediction_id": ids,
            "request_time": pa.array([moment] * len(ids), INSTANT),
            "model_version": ["7" if content == OTHER else "1" for content in models],
            "model_content": models,
            "key__origin": pa.array(ids, pa.string()),
            "prediction": pa.array(list(values)[: len(ids)], pa.float64()),
        }
    )
    served = ServedPeriod(
        period=day(number), champion_version="1", champion_content=next(iter(contents)), rows=len(ids), duplicates=0,
        other_models={}, sampled=len(ids), features=(), **more,
    )  # fmt: skip
    opened, name = serving_dataset(MODEL), f"{abs(hash(str(answers))):064x}"[:64]
    staged = opened.stage(period_partition(day(number)), name)
    files = {"answers": staged / "answers.parquet", "logged": staged / "logged.json"}
    pq.write_table(answers, files["answers"])
    files["logged"].write_text(served.model_dump_json())
    opened.publish(period_partition(day(number)), name, files, {"champion": next(iter(contents))})


def post(number: int, ids: Sequence[str], labels: Any, hours: int = 0, name: str = "a") -> Path:
    table = pa.table(
        {
            "prediction_id": pa.array(ids, pa.string()),
            "label_known_at": pa.array([POSTED + timedelta(hours=hours)] * len(ids), INSTANT),
            "late": pa.array(labels),
        }
    )
    return write_log(logs_folder(MODEL) / f"labels/day={day(number)}/{name}.parquet", table)


def measure(model: ModelSpec, tenure: ChampionTenure, end: int = END) -> tuple[list[str], LabelledAnswers]:
    problems = measure_labelled(model, tenure, day(end))
    return problems, collect_labelled(model, tenure, problems)


def entropy(values: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.where(labels == 1, np.log(values), np.log(1 - values)).mean())


def published() -> dict[str, Any]:
    dataset = labelled_dataset(MODEL)
    return {name: dataset.manifest(name) for name in dataset.partitions("day=")}


def test_without_labels_nothing_is_read_or_published(tenure: ChampionTenure) -> None:
    serve(61, {tenure.content: IDS})
    problems, found = measure(spec(), tenure)
    assert (problems, found, labelled_dataset(MODEL).exists()) == ([], LabelledAnswers(), False)
    assert summarize_labelled(spec(), found, ()) is None


def test_what_was_served_is_judged_once_by_the_gates_metrics(tenure: ChampionTenure) -> None:
    serve(61, {tenure.content: IDS[:30], OTHER: IDS[30:]})
    post(61, IDS[10:], ACTUAL[10:])
    problems, found = measure(spec("log_loss", "brier"), tenure)
    assert (problems, found.problems) == ([], ())
    loss, brier = found.metrics
    today = date.fromisoformat(day(61))
    assert loss.values == {today: pytest.approx(entropy(PROBABILITIES[10:30], ACTUAL[10:30]))}
    assert loss.other_values == {today: pytest.approx(entropy(PROBABILITIES[30:], ACTUAL[30:]))}
    assert brier.values == {today: pytest.approx(np.mean((PROBABILITIES - ACTUAL)[10:30] ** 2))}
    (period,) = found.periods
    assert [(item.version, item.predictions, item.labelled) for item in period.models] == [("1", 30, 20), ("7", 10, 10)]
    before = published()
    post(62, IDS, ACTUAL)  # nothing was served on that day
    problems, again = measure(spec("log_loss", "brier"), tenure)
    assert published() == before, "nothing is computed again"
    assert problems == [
        f"posted labels: {day(62)}: what servers answered is not known: their log is absent, or not compared yet; a "
        "label belongs into the folder of the request's period"
    ]
    assert again.periods == found.periods


def test_a_weight_may_be_called_as_columns_are_here(tenure: ChampionTenure) -> None:
    serve(61, {tenure.content: IDS})
    weights = np.arange(ROWS)[::-1].astype(np.float64)
    for name in ("id", "content", "moment", "value", "query"):
        file = post(61, IDS, ACTUAL)
        write_log(file, pq.read_table(file).append_column(name, pa.array(weights)))
        problems, found = measure(spec(weight=name), tenure)
        losses = -np.where(ACTUAL == 1, np.log(PROBABILITIES), np.log(1 - PROBABILITIES))
        assert (problems, found.problems) == ([], ())
        assert [*found.metrics[0].values.values()] == [pytest.approx(np.average(losses, weights=weights))], name


def test_a_metric_that_needs_more_than_labels_says_so(tenure: ChampionTenure) -> None:
    series = ForecastSeries(series=("origin",), horizon="ahead", season=7)
    model = spec("mase", "rmse", kind="forecast", forecast=series, clusters=("day",))
    serve(61, {tenure.content: IDS})
    post(61, IDS, ACTUAL)
    _, found = measure(model, tenure)
    scales = "mase: the scales of the rows are not known: neither the log nor posted labels have them"
    assert found.problems == (f"posted labels: {day(61)}: version 1: {scales}",)
    rmse = np.sqrt(np.mean((PROBABILITIES - ACTUAL) ** 2))
    assert [[*metric.values.values()] for metric in found.metrics] == [[], [pytest.approx(rmse)]]


def test_labels_that_come_late_twice_and_out_of_order_end_alike(
    tenure: ChampionTenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that are killed, that know less, and that come again publish what one run does at once."""
    for number in (61, 62):
        serve(number, {tenure.content: IDS})
        post(number, IDS[:20], ACTUAL[:20])
    with monkeypatch.context() as patch:
        patch.setattr(module, "_publish_period", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            measure_labelled(spec(), tenure, day(END))
    assert published() == {}
    measure(spec(), tenure)
    post(61, IDS[20:], ACTUAL[20:], name="b")
    post(61, IDS[:20], ACTUAL[:20], name="c")  # delivered again
    measure(spec(), tenure)
    measure(spec(), tenure, end=62)  # a run for an earlier day
    stepwise = published()
    for file in labelled_dataset(MODEL).root.rglob("day=*.json"):
        file.unlink()
    _, found = measure(spec(), tenure)
    assert published().keys() == stepwise.keys()
    for name, manifest in published().items():
        assert (manifest.fingerprint, manifest.content_hash) == (
            stepwise[name].fingerprint,
            stepwise[name].content_hash,
        )
    (metric,) = found.metrics
    assert metric.values[date.fromisoformat(day(61))] == pytest.approx(entropy(PROBABILITIES, ACTUAL))


def test_a_correction_shows_what_was_before(tenure: ChampionTenure) -> None:
    serve(61, {tenure.content: IDS})
    post(61, IDS, 1 - ACTUAL)
    measure(spec(), tenure)
    post(61, IDS, ACTUAL, hours=3, name="corrected")
    _, found = measure(spec(), tenure)
    record = summarize_labelled(spec(), found, ())
    assert record
    (row,) = record.periods
    assert (record.corrected, row.values["log_loss"]) == (27 + 13, pytest.approx(entropy(PROBABILITIES, ACTUAL)))
    assert row.first_values["log_loss"] == pytest.approx(entropy(PROBABILITIES, 1 - ACTUAL))


def test_what_is_published_stays_when_its_sources_are_gone(tenure: ChampionTenure) -> None:
    serve(61, {tenure.content: IDS})
    staged = open_dataset(f"features/{MODEL}").stage(period_partition(day(61)), "f" * 64)
    moment = datetime.fromisoformat(day(61)).replace(hour=12, tzinfo=UTC)
    spine = {"event_timestamp": pa.array([moment] * 2, INSTANT), "origin": IDS[:2], "late": [0, 0]}
    pq.write_table(pa.table(spine), staged / "departures.parquet")
    features = open_dataset(f"features/{MODEL}")
    features.publish(period_partition(day(61)), "f" * 64, {"departures": staged / "departures.parquet"}, {})
    labels = post(61, IDS, ACTUAL)
    _, found = measure(spec(), tenure)
    (named,) = found.problems
    assert "1 labels are not those of the spine for the same keys and time: ids id-00;" in named
    before = published()
    for file in features.root.rglob("day=*.json"):
        file.unlink()
    assert measure(spec(), tenure)[1].periods == found.periods
    for file in serving_dataset(MODEL).root.rglob("day=*.json"):
        file.unlink()
    problems, again = measure(spec(), tenure)
    assert (problems, again.periods) == ([], found.periods)
    post(61, IDS[:1], 1 - ACTUAL[:1], name="b")  # too late: nobody knows any more what was answered
    (problem,) = measure(spec(), tenure)[0]
    assert "what servers answered is not known" in problem
    labels.unlink()
    assert measure(spec(), tenure)[1].periods == found.periods
    assert published() == before


def test_wrong_files_and_labels_are_named_and_the_rest_counts(
    tenure: ChampionTenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (61, 62):
        serve(number, {tenure.content: IDS})
        post(number, IDS, ACTUAL)
    folder = logs_folder(MODEL) / "labels"
    (folder / f"day={day(61)}/text.parquet").write_text("no Parquet")
    post(61, ["nobody"], [1], name="unknown")
    elsewhere = write_log(tmp_path / "secret.parquet", pq.read_table(folder / f"day={day(61)}/a.parquet"))
    (folder / f"day={day(61)}/link.parquet").symlink_to(elsewhere)
    (folder / f"day={day(63)}").symlink_to(tmp_path)
    for name in ("day=2013-3-4", "newest", ".unfinished", "_temporary"):
        (folder / name).mkdir()
    problems, found = measure(spec(), tenure)
    assert problems.pop() == (
        "posted labels: labels/day=2013-3-4 and 1 more are not read: folders are named as those of the log, such as "
        "day=2013-03-01"
    )
    assert problems == [
        f"posted labels: labels/day={day(63)} is a link, and is not read: put the files into the folder themselves"
    ]
    link, text, unknown = found.problems[2:]
    assert link.startswith(f"posted labels: labels/day={day(61)}/link.parquet: cannot be read: ")
    assert "it is a link" in link
    assert text.startswith(f"posted labels: labels/day={day(61)}/text.parquet: cannot be read: ")
    assert unknown.startswith(f"posted labels: {day(61)}: 1 labels are of ids that no log of the period has")
    assert (found.periods[0].foreign_files, found.periods[0].labelled) == (2, ROWS)
    assert len(found.metrics[0].values) == 2
    monkeypatch.setattr("evergreen.monitoring.serving_logs.MAX_LOG_BYTES", 10)
    problems, found = measure(spec(), tenure)
    assert sum("they are not read: its labels have" in problem for problem in problems) == 2
    assert len(found.metrics[0].values) == 2, "what was published is still known"


def test_a_period_that_fails_is_named_and_comes_last(tenure: ChampionTenure, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (61, 62, 63):
        serve(number, {tenure.content: IDS})
        post(number, IDS, ACTUAL)
    publish, begun = module._publish_period, list[str]()

    def fail_one(model: Any, gates: Any, period: str, *rest: Any) -> None:
        begun.append(period)
        if period == day(62):
            raise OSError(28, "No space left on device")
        publish(model, gates, period, *rest)

    monkeypatch.setattr(module, "_publish_period", fail_one)
    problems, found = measure(spec(), tenure)
    assert begun == [day(63), day(62), day(61)]
    assert problems == [f"posted labels: {day(62)}: they cannot be judged: [Errno 28] No space left on device"]
    assert len(found.periods) == 2
    begun.clear()
    os.utime(post(63, IDS, ACTUAL, name="z"), (1, 1))
    times = iter([0.0, 0.0, 1e9])
    problems = measure_labelled(spec(), tenure, day(END), clock=lambda: next(times))
    assert begun == [day(63)]
    assert problems == ["posted labels: 1 more periods are judged by the next runs"]


def test_a_damaged_manifest_costs_no_other_period(tenure: ChampionTenure) -> None:
    for number in (61, 62, 63, 64):
        serve(number, {tenure.content: IDS})
        post(number, IDS, ACTUAL)
    measure(spec(), tenure, 63)
    for dataset, number in ((labelled_dataset(MODEL), 61), (serving_dataset(MODEL), 63)):
        (dataset.root / "_manifests" / f"day={day(number)}.json").write_text("{")
    problems, found = measure(spec(), tenure)
    assert [problem.split(" is no manifest")[0].split(": ")[1] for problem in problems] == [day(61), day(63)]
    assert [item.period for item in found.periods] == [day(62), day(64)]


def test_the_page_shows_it_beside_matured_labels_and_the_estimate(tenure: ChampionTenure) -> None:
    serve(61, {tenure.content: IDS[:30], OTHER: IDS[30:]}, has_all_answers=False)
    post(61, IDS, ACTUAL)
    post(61, IDS[:1], 1 - ACTUAL[:1], hours=2, name="b")
    found = measure(spec(), tenure)[1]
    days = tuple(date.fromisoformat(day(number)) for number in (50, 61, 62))
    matured = DailyMetric("log_loss", False, days, 1, np.array([0.1, 0.6, np.nan]), np.ones(3))
    record = summarize_labelled(spec(), found, [matured])
    assert record
    (metric,) = record.metrics
    assert metric.last
    assert (metric.matured_days, metric.distance) == (1, pytest.approx(abs(metric.last - 0.6)))
    monitored = MonitoringRecord(
        champion_version="1", champion_content=tenure.content, as_of=day(AS_OF), reference_days=0, judged_until=None,
        periods=0, alarms=(), problems=(), labels=record,
    )  # fmt: skip
    estimates = ChampionEstimates((EstimatedMetric("log_loss", {days[1]: 0.5, days[2]: 0.4}),))
    page = create_page(spec(), monitored, {}, "", (), ChampionPerformance((matured,)), estimates, found)
    text = render_monitoring_report(page)
    assert "Performance of what was served, by posted labels" in text
    assert "<b>Nothing acts on it.</b>" in text
    assert f"<td>{day(61)}</td><td>1</td><td>30</td><td>30</td>" in text
    assert "predictions, of a sample" in text
    assert "1 labels were corrected later: the value before is in brackets" in text
    assert f"({entropy(PROBABILITIES[:30], ACTUAL[:30]):.4g})" in text
    assert text == render_monitoring_report(page)
    without = create_page(spec(), monitored.model_copy(update={"labels": None}), {}, "", (), ChampionPerformance())
    assert "by posted labels" not in render_monitoring_report(without)
