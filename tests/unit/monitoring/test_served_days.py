"""What periods of a serving log add up to, and which skew alarms see."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from evergreen.lake.datasets import Manifest
from evergreen.monitoring import served_periods
from evergreen.monitoring.alarms import BREAK_BUDGET, DRIFT_BUDGET, judge_days
from evergreen.monitoring.baseline import MIN_REFERENCE_DAYS
from evergreen.monitoring.histograms import ColumnBins, Histogram
from evergreen.monitoring.series import SeriesName
from evergreen.monitoring.served_days import SERVING_BUDGET, input_series, skew_series, summarize
from evergreen.monitoring.served_periods import ColumnSkew, PredictionSkew, ServedPeriod, score_what_can_be
from evergreen.monitoring.served_reference import SERVED, ServedReference
from evergreen.periods import Calendar
from evergreen.spec import Frozen

pytestmark = pytest.mark.unit

BINS = ColumnBins(SERVED, "x", "numeric", tuple(float(bound) for bound in range(-5, 6)))
DAYS = Calendar("1d", "UTC")
FIRST = date(2024, 3, 1)
SHARE = SERVING_BUDGET / (DRIFT_BUDGET + BREAK_BUDGET) / 2
X, Y, PREDICTION = (SeriesName(f"{SERVED}.{name}", "skew") for name in ("x", "y", "prediction"))


def served(period: str, *, x: int = 0, wrong: int = 0, rows: int = 1000, **fields: object) -> ServedPeriod:
    skew = [ColumnSkew(column="x", rows=x, causes={"late": x}, example=f"of {period}")] if x else []
    values = {
        "period": period,
        "champion_version": "1",
        "champion_content": "a" * 64,
        "rows": 10 * rows,
        "duplicates": 3,
        "other_models": {"2": 4},
        "sampled": rows,
        "features": ("x", "y"),
        "skew": skew,
        "prediction": PredictionSkew(rows=rows, differing=wrong, largest=wrong / 10 or None) if rows else None,
    }
    return ServedPeriod.model_validate(values | fields)


def day(number: int) -> str:
    return str(FIRST + timedelta(days=number))


def test_shares_are_compared_with_days_without_a_difference() -> None:
    series = skew_series([served(day(0), x=10), served(day(2), wrong=500), served(day(3), rows=0)], DAYS)
    assert series
    assert series.names == (PREDICTION, X, Y)
    assert series.weights.sum() == pytest.approx(1)
    assert (series.reference_days, series.days[0]) == (MIN_REFERENCE_DAYS, FIRST - timedelta(MIN_REFERENCE_DAYS))
    assert not series.values[: series.reference_days].any()
    assert series.days[series.reference_days :] == (FIRST, FIRST + timedelta(2), FIRST + timedelta(3))
    assert series.values[-3:-1].tolist() == [[0, 0.01, 0], [0.5, 0, 0]]
    assert np.isnan(series.values[-1]).all()


def test_hours_of_a_day_add_up() -> None:
    hours = Calendar("1h", "UTC")
    periods = [served(f"2024-03-01T{hour:02}:00Z", x=hour) for hour in range(4)]
    series = skew_series(periods, hours)
    assert series
    assert series.days[-1] == FIRST
    assert series.days[-2] == FIRST - timedelta(1)
    assert series.values[-1, 1] == pytest.approx(6 / 4000)
    weeks = skew_series([served("2024-03-04", x=1)], Calendar("1w", "UTC"))
    assert weeks
    assert weeks.days[-1] - weeks.days[-2] == timedelta(7)


def test_a_large_skew_is_an_alarm_at_once_and_a_small_one_later() -> None:
    none = skew_series([served(day(number)) for number in range(700)], DAYS)
    assert none
    assert not judge_days(none, SHARE).alarms
    at_once = skew_series([served(day(number), x=150 if number == 5 else 0) for number in range(20)], DAYS)
    assert at_once
    [alarm] = judge_days(at_once, SHARE).alarms
    assert (alarm.kind, alarm.opened, alarm.series[0].name) == ("break", FIRST + timedelta(5), X)
    lasting = skew_series([served(day(number), x=20 if number >= 5 else 0) for number in range(60)], DAYS)
    assert lasting
    [alarm] = judge_days(lasting, SHARE).alarms
    assert (alarm.kind, alarm.series[0].name) == ("drift", X)
    assert alarm.opened <= FIRST + timedelta(25)
    ends = skew_series([served(day(number), x=150 if number < 3 else 0) for number in range(60)], DAYS)
    assert ends
    assert judge_days(ends, SHARE).alarms[0].closed
    few = skew_series([served(day(0), rows=5, x=1)], DAYS)
    assert few
    assert not judge_days(few, SHARE).alarms, "one row of few is no alarm"


def test_nothing_to_compare_is_no_series() -> None:
    assert skew_series([served(day(0), features=(), prediction=None)], DAYS) is None


def test_the_summary_is_of_the_last_periods() -> None:
    foreign = {"foreign": tuple(f"file {n}" for n in range(9)), "foreign_files": 30}
    periods = [served(day(0), x=999, **foreign), *(served(day(n), x=n, wrong=n) for n in range(1, 15))]
    summary = summarize(periods)
    assert (summary.first_period, summary.last_period, summary.rows) == (day(1), day(14), 140_000)
    assert (summary.duplicates, summary.other_models, summary.sampled) == (42, 56, 14_000)
    assert (summary.features, summary.differing_features) == (2, 1)
    (column,) = summary.columns
    assert (column.differing, column.rows, column.example) == (105, 14_000, f"of {day(14)}")
    assert (summary.differing_predictions, summary.largest_difference) == (105, 1.4)
    assert not summary.foreign_files
    assert isinstance(summary, Frozen)
    with_files = summarize(periods[:3])
    assert (with_files.foreign_files, len(with_files.foreign)) == (30, 9)


@pytest.mark.parametrize("bad", [(), (0,), (41, 42, 99), tuple(range(100))])
def test_rows_that_a_model_refuses_are_left_out(bad: tuple[int, ...]) -> None:
    def score(table: pa.Table) -> np.ndarray:
        if refused := sorted(set(bad) & set(table["x"].to_pylist())):
            raise KeyError(f"category {refused[0]}")
        return np.column_stack([table["x"].to_numpy()] * 2).astype(float)

    rows, values, reason = score_what_can_be(score, pa.table({"x": range(100)}))
    assert rows.tolist() == [number for number in range(100) if number not in bad]
    assert values[:, 1].tolist() == rows.tolist() if rows.size else not values.size
    assert reason == (f"'category {bad[0]}'" if bad else "")


def test_how_often_rows_are_scored_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def score(table: pa.Table) -> np.ndarray:
        calls.append(table.num_rows)
        if any(number % 97 == 0 for number in table["x"].to_pylist()):
            raise ValueError("NaN for 1 of 1 rows")
        return table["x"].to_numpy().astype(float)

    monkeypatch.setattr(served_periods, "MAX_SCORING_CALLS", 200)
    rows, values, reason = score_what_can_be(score, pa.table({"x": range(10_000)}))
    assert (len(calls), reason) == (200, "NaN for 1 of 1 rows")
    assert 1000 < rows.size < 10_000 - 104, "what is left by then is left out"
    assert values.tolist() == rows.tolist()


def count(rng: np.random.Generator, rows: int, shift: float = 0.0) -> dict[str, Histogram]:
    counts = np.histogram(np.clip(rng.normal(shift, 1, rows), -4.9, 4.9), np.arange(-5, 6))[0]
    return {BINS.name: Histogram(rows, 0, np.append(0, np.append(counts, 0)))}


def test_inputs_are_compared_with_the_days_of_the_training_set() -> None:
    """Rows of the training set and of a period are samples of different sizes: that alone is no change."""
    rng = np.random.default_rng(5)
    days = {FIRST - timedelta(number): count(rng, 1500) for number in range(120, 0, -1)}
    reference = ServedReference(Manifest("reference=a", "f", {}, {}), (BINS,), days, ())
    calm = {day(number): count(rng, 10_000) for number in range(-3, 60)}
    series = input_series(reference, calm, DAYS)
    assert {name.measure for name in series.names} == {"level", "shape", "spread", "missing"}
    assert (series.reference_days, len(series.days)) == (120, 180), "a day of the reference is no day of the log"
    assert not judge_days(series, SHARE).alarms
    shifted = {**calm, **{day(number): count(rng, 10_000, 0.7) for number in range(30, 60)}}
    alarm = judge_days(input_series(reference, shifted, DAYS), SHARE).alarms[0]
    assert FIRST + timedelta(30) <= alarm.opened <= FIRST + timedelta(45)
