"""The monitoring report shows what was judged, whichever of inputs and predictions it is."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest

from evergreen.monitoring.alarms import Judgement, judge_days
from evergreen.monitoring.matured_days import ChampionPerformance
from evergreen.monitoring.page import create_page
from evergreen.monitoring.performance import DailyMetric, judge_performance
from evergreen.monitoring.record import MonitoringRecord
from evergreen.monitoring.series import DailySeries, SeriesName
from evergreen.reports.monitoring import PerformancePoint, render_monitoring_report
from evergreen.spec.loader import load_spec

pytestmark = pytest.mark.unit

FIRST = date(2024, 1, 1)
RECORD = MonitoringRecord(
    champion_version="1",
    champion_content="a" * 64,
    as_of="2024-03-01",
    reference_days=60,
    judged_until=None,
    periods=0,
    alarms=(),
    problems=(),
)

NOTHING = ChampionPerformance()


def judge(table: str, days: int, reference_days: int, start: int = 0) -> tuple[DailySeries, Judgement]:
    values = np.random.default_rng(1).normal(3, 0.1, (days, 2))
    names = (SeriesName(table, "rows"), SeriesName(f"{table}.x", "level"))
    dates = tuple(FIRST + timedelta(days=start + number) for number in range(days))
    series = DailySeries(dates, reference_days, names, np.full(2, 0.5), values)
    return series, judge_days(series)


@pytest.mark.parametrize(
    "judged",
    [
        {},
        {"inputs": judge("departures", 70, 60)},
        {"batch predictions": judge("batch predictions", 70, 30)},
        {"inputs": judge("departures", 60, 60), "batch predictions": judge("batch predictions", 40, 30, 60)},
        {"inputs": judge("departures", 90, 60), "batch predictions": judge("batch predictions", 30, 28, 60)},
    ],
    ids=["nothing", "inputs", "predictions", "predictions, and inputs of no day yet", "both"],
)
def test_evidence_is_that_of_what_was_judged(judged: dict[str, tuple[DailySeries, Judgement]]) -> None:
    page = create_page(load_spec("flight_delay"), RECORD, judged, "auc", (), NOTHING)
    assert page.evidence.keys() == page.evidence_days.keys() == judged.keys()
    for label, (series, judgement) in judged.items():
        assert page.evidence_days[label] == judgement.days
        at = [page.days.index(day) for day in judgement.days]
        for number, name in enumerate(series.names):
            assert page.deviations[name.column][at].tolist() == np.abs(judgement.deviations[:, number]).tolist()
    assert "</html>" in render_monitoring_report(page)


def test_performance_is_shown_by_day_with_promotions() -> None:
    days = tuple(FIRST + timedelta(number) for number in range(60))
    values = np.random.default_rng(2).normal(0.5, 0.05, 60)
    values[40:] += 0.4
    values[20] = np.nan
    metric = DailyMetric("<log_loss>", False, days, 14, values, np.full(60, 100.0))
    judged = judge_performance(metric, 1)
    assert not isinstance(judged, str)
    calibration = ((10.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    earlier = {"<log_loss>": {FIRST - timedelta(1): 0.6}}
    performance = ChampionPerformance((metric,), calibration, earlier, ("2024-01-20: labels came late",))
    verdicts = (PerformancePoint(days[14], 0.5, True),)
    page = create_page(load_spec("flight_delay"), RECORD, {"performance": judged}, "auc", verdicts, performance)
    (shown,) = page.matured
    assert (shown.earlier_days, shown.earlier_values.tolist()) == ((FIRST - timedelta(1),), [0.6])
    assert shown.mean[-1] == pytest.approx(np.nanmean(values[14:]))
    assert (page.deviations, page.rows, page.days) == ({}, {}, ())
    assert page.evidence["performance"].max() >= 1
    text = render_monitoring_report(page)
    assert f"&lt;log_loss&gt; {shown.mean[-1]:.4g}, on the holdout {np.mean(values[:14]):.4g}" in text
    assert "0.20 of 0.10" in text
    assert "<li>2024-01-20: labels came late</li>" in text
    assert text == render_monitoring_report(page)
    empty = DailyMetric("auc", True, days[:1], 1, np.full(1, np.nan), np.zeros(1))
    performance = ChampionPerformance((empty,))
    assert "not known" in render_monitoring_report(
        create_page(load_spec("flight_delay"), RECORD, {}, "auc", (), performance)
    )
