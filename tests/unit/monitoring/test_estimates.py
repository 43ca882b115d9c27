"""Estimates of periods: made once of what is published, beside what labels have shown, and nothing acts on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import ledger
from evergreen.lake.datasets import open_dataset, period_partition
from evergreen.ledger import ChampionTenure
from evergreen.monitoring import estimates as module
from evergreen.monitoring.estimates import (
    ChampionEstimates,
    collect_estimates,
    compare_estimates,
    estimate_new,
    estimates_dataset,
)
from evergreen.monitoring.matured_days import ChampionPerformance
from evergreen.monitoring.page import create_page
from evergreen.monitoring.performance import DailyMetric
from evergreen.monitoring.record import MonitoringRecord
from evergreen.monitoring.served_periods import ServedPeriod
from evergreen.monitoring.served_reference import serving_dataset
from evergreen.reports.monitoring import render_monitoring_report
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ModelSpec
from support.ledger_events import MODEL, day, promotion, verdict_event

pytestmark = pytest.mark.unit

AS_OF, END, ROWS = 60, 70, 200
PROBABILITIES = np.linspace(0.05, 0.95, ROWS)


@pytest.fixture
def tenure(home: Path) -> ChampionTenure:
    for event in (verdict_event(AS_OF), promotion("1", AS_OF, 1)):
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)
    found = ledger.read_state(MODEL).champion_tenure
    assert found
    return found


def spec(*metrics: str, **changes: Any) -> ModelSpec:
    gates = tuple(AgainstChampionGate(name=name, metric=name, must_be="better") for name in metrics or ("log_loss",))
    return load_spec(MODEL).model_copy(update={"gates": gates, **changes})


def publish(dataset: str, number: int, inputs: Mapping[str, Any], **tables: Any) -> None:
    opened, name = open_dataset(f"{dataset}/{MODEL}"), f"{abs(hash(str(tables))):064x}"[:64]
    staged = opened.stage(period_partition(day(number)), name)
    files = {table: staged / f"{table}.parquet" for table in tables}
    for table, file in files.items():
        pq.write_table(pa.table(tables[table]), file)
    opened.publish(period_partition(day(number)), name, files, inputs)


def publish_batch(number: int, content: str, values: Any = PROBABILITIES) -> None:
    publish("features", number, {}, departures={"x": [1]})
    publish("predictions", number, {"model": {"content": content}}, predictions={"prediction": values})


def publish_log(number: int, content: str, values: Any, rows: int | None = None, calendar: str = "") -> None:
    """Publish the sample of a period whose log has `rows` rows; `calendar` is the period, if it is no day."""
    period, opened = calendar or day(number), serving_dataset(MODEL)
    served = ServedPeriod(
        period=period, champion_version="1", champion_content=content, rows=rows or len(values), duplicates=0,
        other_models={}, sampled=len(values), features=(),
    )  # fmt: skip
    name = f"{abs(hash((period, str(values), rows))):064x}"[:64]
    staged = opened.stage(period_partition(period), name)
    pq.write_table(pa.table({"prediction": values}), staged / "predictions.parquet")
    (staged / "logged.json").write_text(served.model_dump_json())
    files = {"predictions": staged / "predictions.parquet", "logged": staged / "logged.json"}
    opened.publish(period_partition(period), name, files, {"champion": content})


def estimate(model: ModelSpec, tenure: ChampionTenure, end: int = END) -> tuple[list[str], ChampionEstimates]:
    problems = estimate_new(model, tenure, day(end))
    return problems, collect_estimates(model, tenure, problems)


def entropy(values: np.ndarray) -> float:
    return float(-(values * np.log(values) + (1 - values) * np.log(1 - values)).mean())


def test_periods_are_estimated_once_from_batches_before_logs(tenure: ChampionTenure) -> None:
    publish_batch(61, tenure.content)
    publish_batch(62, "b" * 64)  # of another model
    publish("features", 63, {}, departures={"x": [1]})
    for number in (61, 63, 64):  # no features of the last one are published
        publish_log(number, tenure.content, PROBABILITIES / 2)
    problems, found = estimate(spec(), tenure)
    assert (problems, found.problems) == ([], ())
    (metric,) = found.metrics
    assert metric.values == {
        date.fromisoformat(day(61)): pytest.approx(entropy(PROBABILITIES)),
        date.fromisoformat(day(63)): pytest.approx(entropy(PROBABILITIES / 2)),
    }
    dataset = estimates_dataset(MODEL)
    before = {name: dataset.manifest(name) for name in dataset.partitions()}
    assert estimate(spec(), tenure)[1].fingerprint == found.fingerprint
    assert {name: dataset.manifest(name) for name in dataset.partitions()} == before
    assert len(before) == 2
    assert serving_dataset(MODEL).exists()
    assert list(collect_estimates(spec(), tenure, end=day(63)).metrics[0].values) == [date.fromisoformat(day(61))]


def test_many_predictions_are_sampled(tenure: ChampionTenure, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_batch(61, tenure.content, np.tile(PROBABILITIES, 100))
    monkeypatch.setattr(module, "ESTIMATE_ROWS", 4000)
    (metric,) = estimate(spec(), tenure)[1].metrics
    assert list(metric.values.values()) == [pytest.approx(entropy(PROBABILITIES), rel=0.02)]


def test_what_are_no_probabilities_is_named_and_the_rest_goes_on(tenure: ChampionTenure) -> None:
    publish_batch(61, tenure.content, np.append(PROBABILITIES, [np.nan, 7.0]))
    publish_batch(62, tenure.content)
    problems, found = estimate(spec("log_loss", "brier"), tenure)
    assert problems == []
    named = "1 of 201 predictions are no probabilities"
    assert found.problems == (
        f"estimates: {day(61)}: 1 of 202 predictions are NaN or infinite: they are left out",
        f"estimates: {day(61)}: brier: {named}", f"estimates: {day(61)}: log_loss: {named}",
    )  # fmt: skip
    assert [len(metric.values) for metric in found.metrics] == [1, 1]
    file = estimates_dataset(MODEL).root / "_manifests" / f"day={day(62)}.json"
    file.write_text("{")
    assert "is no manifest" in collect_estimates(spec(), tenure).problems[0]


def test_a_damaged_manifest_costs_no_other_period(tenure: ChampionTenure) -> None:
    for number in (61, 62, 63):
        publish_batch(number, tenure.content)
    estimate(spec(), tenure, 62)
    for dataset, number in (("estimates", 61), ("predictions", 62)):
        (open_dataset(f"{dataset}/{MODEL}").root / "_manifests" / f"day={day(number)}.json").write_text("{")
    problems, found = estimate(spec(), tenure)
    assert [problem.split(" is no manifest")[0].split(": ")[1] for problem in problems] == [day(61), day(62)]
    assert list(found.metrics[0].values) == [date.fromisoformat(day(63))]


def test_predictions_that_are_no_numbers_are_left_out_and_named(tenure: ChampionTenure) -> None:
    """One that a server logged as NaN costs no estimate, and the others stand for the rows that have a number."""
    publish("features", 61, {}, departures={"x": [1]})
    publish_log(61, tenure.content, np.append(PROBABILITIES, [np.nan, np.inf]), rows=2 * (ROWS + 2))
    publish_batch(62, tenure.content, np.full(3, np.nan))
    found = estimate(spec(), tenure)[1]
    (metric,) = found.metrics
    assert metric.values == {date.fromisoformat(day(61)): pytest.approx(entropy(PROBABILITIES))}
    assert found.problems == (
        f"estimates: {day(61)}: 2 of 202 predictions are NaN or infinite: they are left out",
        f"estimates: {day(62)}: log_loss: 3 of 3 predictions are no probabilities",
    )
    manifest = estimates_dataset(MODEL).manifest(period_partition(day(61)))
    assert manifest
    stored = json.loads(estimates_dataset(MODEL).file_path(manifest, "estimate").read_bytes())
    assert (stored["rows"], stored["left_out"], stored["sums"]["log_loss"][-1]) == (ROWS, 2, pytest.approx(2 * ROWS))


def test_a_regression_says_that_none_is_available(tenure: ChampionTenure) -> None:
    publish_batch(61, tenure.content)
    problems, found = estimate(spec("rmse", kind="regression"), tenure)
    assert problems == []
    (metric,) = found.metrics
    assert (metric.values, estimates_dataset(MODEL).exists()) == ({}, False)
    assert metric.problem == "predictions of kind regression do not say how wrong they are: labels have to come"
    (record,) = compare_estimates(found, ())
    assert (record.days, record.last, record.problem) == (0, None, metric.problem)


def test_without_predictions_none_is_available(tenure: ChampionTenure) -> None:
    (metric,) = estimate(spec(), tenure)[1].metrics
    assert metric.problem
    assert metric.problem.startswith("no predictions of the champion are published")


def test_periods_that_fail_are_the_reason_and_one_line(tenure: ChampionTenure) -> None:
    """Not that there are no predictions; each says another number of rows."""
    for number in (61, 62, 63):
        publish_batch(number, tenure.content, np.append(PROBABILITIES, [7.0] * number))
    problems, found = estimate(spec(), tenure)
    assert problems == []
    (metric,) = found.metrics
    assert metric.problem == (
        f"no period could be estimated, the last one, {day(63)}: 63 of 263 predictions are no probabilities"
    )
    assert found.problems == (
        f"estimates: 3 days, {day(61)} – {day(63)}: log_loss: 63 of 263 predictions are no probabilities",
    )
    for file in open_dataset(f"predictions/{MODEL}").root.rglob("*.parquet"):
        file.write_bytes(b"no Parquet")
    for file in estimates_dataset(MODEL).root.rglob("day=*.json"):
        file.unlink()
    problems, found = estimate(spec(), tenure)
    assert len(problems) == 3
    (metric,) = found.metrics
    assert metric.problem
    assert metric.problem.startswith(f"{day(63)}: ")


def test_hours_of_a_log_weigh_by_the_rows_that_it_has(tenure: ChampionTenure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a busy hour no more rows are sampled than of a quiet one."""
    periods = [f"{day(61)}T{hour:02}:00Z" for hour in (6, 7)]
    monkeypatch.setattr(module, "published_periods", lambda *_: periods)
    monkeypatch.setattr(
        module, "feature_spec", lambda model: feature_spec(model).model_copy(update={"period": "1h", "timezone": "UTC"})
    )
    publish_log(0, tenure.content, PROBABILITIES, 300, calendar=periods[0])
    publish_log(0, tenure.content, PROBABILITIES / 2, 900, calendar=periods[1])
    (metric,) = estimate(spec(), tenure)[1].metrics
    expected = (300 * entropy(PROBABILITIES) + 900 * entropy(PROBABILITIES / 2)) / 1200
    assert list(metric.values.values()) == [pytest.approx(expected)]


def test_the_page_shows_it_as_an_estimate_beside_labels(tenure: ChampionTenure) -> None:
    for number in (61, 62, 63):
        publish_batch(number, tenure.content)
    found = estimate(spec(), tenure)[1]
    days = tuple(date.fromisoformat(day(number)) for number in (50, 61, 62))
    realised = DailyMetric("log_loss", False, days, 1, np.array([0.1, 0.6, np.nan]), np.ones(3))
    (record,) = compare_estimates(found, [realised])
    expected = entropy(PROBABILITIES)
    assert (record.days, record.realised_days) == (3, 1)
    assert (record.last, record.error) == (pytest.approx(expected), pytest.approx(abs(expected - 0.6)))
    monitored = MonitoringRecord(
        champion_version="1", champion_content=tenure.content, as_of=day(AS_OF), reference_days=0, judged_until=None,
        periods=0, alarms=(), problems=(), estimates=(record,),
    )  # fmt: skip
    page = create_page(spec(), monitored, {}, "", (), ChampionPerformance((realised,)), found)
    text = render_monitoring_report(page)
    assert "Estimated performance, before labels mature" in text
    assert "An estimate: nothing acts on it" in text
    assert f"so\nfar {abs(expected - 0.6):.3g} from what labels have shown, in the mean of 1 day</li>" in text
    assert text == render_monitoring_report(page)
    nothing = estimate(spec("rmse", kind="regression"), tenure)[1]
    text = render_monitoring_report(create_page(spec(), monitored, {}, "", (), ChampionPerformance(), nothing))
    assert "rmse: not available: predictions of kind regression" in text
