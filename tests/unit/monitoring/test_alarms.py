"""Alarms of simulated years: those of `benchmarks/monitoring.py`, fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

import monitoring as simulation
from evergreen.monitoring.alarms import Alarm, judge_days
from evergreen.monitoring.record import ChangeRecord
from evergreen.monitoring.series import DailySeries, Measure, SeriesName, build_series
from monitoring import PERIODS, REFERENCE_DAYS, World

pytestmark = pytest.mark.unit

START = REFERENCE_DAYS + 100


def draw(seed: int, columns: int = 8, **shifts: float) -> simulation.Year:
    rng = np.random.default_rng(seed)
    world = World(columns, 0.3)
    levels = simulation.draw_levels(world, rng)
    for name, shift in shifts.items():
        levels[START : START + 100, int(name.removeprefix("column"))] += shift
    return simulation.draw_year(world, rng, levels)


def test_a_year_without_drift_has_one_false_alarm_at_most() -> None:
    world, years = World(34, 0.3), 6
    false = simulation.count_false_alarms(world, years, seed=11)
    assert false["drift alarms"] + false["break alarms"] <= 1
    assert false["days: raw tests"] > 300, "the same days alarm tests that take rows for independent"


def test_a_drift_of_few_columns_is_found_within_three_weeks() -> None:
    found = simulation.find_shifts(World(34, 0.3), 1.5, 6, seed=12)
    assert found["found in time"] >= 0.8


def test_breaks_alarm_on_their_first_day() -> None:
    assert set(simulation.find_breaks(World(34, 0.3), 2, seed=13).values()) == {1.0}


def test_an_alarm_names_what_changed_once_until_it_has_returned() -> None:
    alarms = draw(1, column2=4.0, column6=4.0).alarms()
    drifts = [alarm for alarm in alarms if alarm.opened >= PERIODS[START]]
    named = {changed.name.column for alarm in drifts for changed in alarm.series}
    assert named == {"column 2", "column 6"}
    assert len(drifts) <= 4, "a change that lasts 100 days is not a new one each day"
    end = PERIODS[START + 100]
    for alarm in drifts:
        assert alarm.closed is not None
        assert end <= alarm.closed <= end + timedelta(21)
    (level,) = (s for alarm in drifts for s in alarm.series if s.name == SeriesName("column 2", "level"))
    assert level.deviation > 1
    assert 0 < level.effect < 0.5


def test_an_alarm_depends_on_no_later_day() -> None:
    year = draw(2, column0=3.0)
    columns = {name: (year.bins[name], year.counts[name]) for name in year.bins}
    whole = build_series(PERIODS, REFERENCE_DAYS, {"examples": year.rows}, columns)
    alarms = judge_days(whole).alarms
    assert alarms
    for end in range(START, START + 60, 7):
        assert whole.sampling_variances is not None
        cut = replace(
            whole,
            days=whole.days[:end],
            values=whole.values[:end],
            sampling_variances=whole.sampling_variances[:end],
        )
        assert judge_days(cut).alarms == known_before(alarms, end)


def known_before(alarms: tuple[Alarm, ...], end: int) -> tuple[Alarm, ...]:
    """Return the alarms as they were seen before a day."""
    return tuple(
        Alarm(alarm.kind, alarm.opened, alarm.series, alarm.closed if alarm.closed in PERIODS[:end] else None)
        for alarm in alarms
        if alarm.opened in PERIODS[:end]
    )


def test_a_day_without_rows_is_a_break_of_its_table_alone() -> None:
    year = draw(3)
    year.rows[START] = 0
    for counts in year.counts.values():
        counts.counts[START], counts.rows[START], counts.missing[START] = 0, 0, 0
    (alarm,) = (alarm for alarm in year.alarms() if alarm.opened == PERIODS[START])
    assert alarm.kind == "break"
    assert [str(changed.name) for changed in alarm.series] == ["examples rows"]


def test_what_the_reference_never_had_breaks_if_it_is_major() -> None:
    year = draw(4)
    counts = year.counts["column 6"].counts
    moved = counts[START, 0] // 2
    counts[START, 0] -= moved
    counts[START, -1] += moved
    (alarm,) = (alarm for alarm in year.alarms() if alarm.opened == PERIODS[START])
    unseen = next(changed for changed in alarm.series if changed.name.measure == "unseen")
    assert unseen.deviation == float("inf")
    assert unseen.effect == pytest.approx(moved / counts[START].sum())


def test_a_short_reference_is_refused() -> None:
    series = DailySeries(PERIODS[:30], 27, (SeriesName("a", "level"),), np.ones(1), np.zeros((30, 1)))
    with pytest.raises(ValueError, match="27 days, and 28"):
        judge_days(series)


def simple_series(values: np.ndarray, measures: Sequence[Measure]) -> DailySeries:
    names = tuple(SeriesName(f"c{number}", measure) for number, measure in enumerate(measures))
    days = tuple(PERIODS[0] + timedelta(n) for n in range(len(values)))
    return DailySeries(days, REFERENCE_DAYS, names, np.full(len(names), 1 / len(names)), values)


def draw_series(seed: int, days: int, measures: Sequence[Measure], memory: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((REFERENCE_DAYS + days, len(measures)))
    for day in range(1, len(values)):
        values[day] = memory * values[day - 1] + np.sqrt(1 - memory**2) * values[day]
    return values


def test_a_column_that_ends_in_a_drift_is_not_named() -> None:
    """Its evidence stays as it was, and there is nothing to say of what it is now."""
    values = draw_series(0, 200, ["level", "level", "level"])
    values[REFERENCE_DAYS:, 0] += 1.5
    first = judge_days(simple_series(values, ["level"] * 3)).alarms[0]
    ends = REFERENCE_DAYS + (first.opened - PERIODS[REFERENCE_DAYS]).days
    values[ends:, 0] = np.nan
    values[ends + 20 :, 1] += 1.5
    alarms = judge_days(simple_series(values, ["level"] * 3)).alarms
    assert {changed.name.column for alarm in alarms for changed in alarm.series} == {"c1"}
    assert all(np.isfinite((changed.deviation, changed.effect)).all() for alarm in alarms for changed in alarm.series)
    values[REFERENCE_DAYS + 5 :] = np.nan
    assert judge_days(simple_series(values, ["level"] * 3)).alarms == ()


def test_a_drift_does_not_name_what_is_in_alarm_already() -> None:
    values = draw_series(0, 200, ["level", "level"])
    values[REFERENCE_DAYS:, 0] += 1.5
    first = judge_days(simple_series(values, ["level", "level"])).alarms[0]
    breaks = REFERENCE_DAYS + (first.opened - PERIODS[REFERENCE_DAYS]).days
    values[breaks:, 0] += 60
    values[breaks:, 1] += 1.5
    alarms = judge_days(simple_series(values, ["level", "level"])).alarms
    assert [str(changed.name) for alarm in alarms for changed in alarm.series] == ["c0 level", "c1 level"]


@pytest.mark.parametrize("measure", ["level", "shape"])
@pytest.mark.parametrize("memory", [0.0, 0.3])
@pytest.mark.parametrize("shift", [0.8, 1.0])
def test_a_small_drift_of_a_year_is_one_alarm(shift: float, memory: float, measure: Measure) -> None:
    counts = []
    for seed in range(8):
        values = draw_series(seed, 365, [measure], memory)
        values[REFERENCE_DAYS:] += shift
        alarms = judge_days(simple_series(values, [measure])).alarms
        counts.append(len(alarms))
        assert all(alarm.closed is None or (alarm.closed - alarm.opened).days > 14 for alarm in alarms)
    assert sum(count > 1 for count in counts) == 0
    assert sum(count == 1 for count in counts) >= 5


def test_a_one_sided_series_has_returned_below_what_is_expected() -> None:
    values = draw_series(1, 200, ["shape"])
    values[REFERENCE_DAYS + 20] += 30
    values[REFERENCE_DAYS + 21 :] -= 3
    (alarm,) = judge_days(simple_series(values, ["shape"])).alarms
    assert alarm.opened == PERIODS[REFERENCE_DAYS + 20]
    assert alarm.closed == PERIODS[REFERENCE_DAYS + 20 + 14]


def test_a_series_that_is_on_the_other_side_has_not_returned() -> None:
    values = draw_series(2, 300, ["level"])
    values[REFERENCE_DAYS + 20 : REFERENCE_DAYS + 60] += 30
    values[REFERENCE_DAYS + 60 :] -= 4
    (alarm,) = judge_days(simple_series(values, ["level"])).alarms
    assert alarm.closed is None


def test_a_constant_that_varies_deviates_without_end() -> None:
    values = np.full((REFERENCE_DAYS + 60, 1), 0.02)
    values[REFERENCE_DAYS + 10 :: 3] = 0.03
    values[REFERENCE_DAYS + 11 :: 3] = 0.019
    alarms = judge_days(simple_series(values, ["missing"])).alarms
    assert alarms
    assert all(abs(changed.deviation) == float("inf") for alarm in alarms for changed in alarm.series)


def test_what_has_no_value_is_said_to_have_none() -> None:
    change = ChangeRecord(column="c0", measure="level", deviation=None, effect=float("nan"))
    assert ChangeRecord.model_validate_json(change.model_dump_json()) == change
    assert change.describe() == "c0 level (no value)"
    assert change.model_copy(update={"effect": 0.2}).describe() == "c0 level (never in the reference)"


def test_a_break_is_found_after_a_small_change_of_a_constant() -> None:
    values = np.zeros((REFERENCE_DAYS + 60, 1))
    values[REFERENCE_DAYS + 5], values[REFERENCE_DAYS + 40 :] = 0.01, 0.9
    variances = np.full(values.shape, 1e-6)
    variances[REFERENCE_DAYS + 40 :] = 1e-4
    series = replace(simple_series(values, ["missing"]), sampling_variances=variances)
    (alarm,) = judge_days(series).alarms
    assert (alarm.kind, alarm.opened) == ("break", series.days[REFERENCE_DAYS + 40])
    assert alarm.series[0].deviation == pytest.approx(90, rel=0.1)
