"""A day's number of rows is a series of its own: it moves no other one."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest
from scipy import special

from evergreen.monitoring.alarms import Judgement, judge_days
from evergreen.monitoring.histograms import ColumnBins
from evergreen.monitoring.series import ColumnCounts, DailySeries, build_series

pytestmark = pytest.mark.unit

REFERENCE, MONITORED = 120, 60
START = date(2024, 1, 1)
BOUNDS = tuple(map(float, range(20)))
NUMBER = ColumnBins("sales", "amount", "numeric", BOUNDS)
TEXT = ColumnBins("sales", "shop", "categorical", tuple(f"shop {n:02}" for n in range(30)))


def draw(rows: np.ndarray, seed: int, between_days: float) -> DailySeries:
    """Return the series of two numbers and two texts; their means differ between days, and some are missing."""
    rng = np.random.default_rng(seed)
    columns = {}
    for number in range(4):
        bins, means = (NUMBER, TEXT)[number % 2], between_days * rng.standard_normal((len(rows), 1))
        slopes = np.linspace(-1.5, 1.5, bins.size - 1)
        # Texts are as shops are: a few have most rows, and many hardly any.
        base = np.zeros(bins.size - 1) if bins is NUMBER else -np.arange(bins.size - 1) / 4
        shares = special.softmax(base + means * slopes, axis=1)
        missing = rng.binomial(rows, 0.002)
        unseen = rng.binomial(rows - missing, 0.001)
        counts = rng.multinomial(rows - missing - unseen, shares)
        counts = np.hstack([unseen[:, None], counts] if bins is NUMBER else [counts, unseen[:, None]])
        columns[f"column {number}"] = (bins, ColumnCounts(rows, missing, counts))
    days = [START + timedelta(n) for n in range(len(rows))]
    return build_series(days, REFERENCE, {"sales": rows}, columns)


def named_measures(judgement: Judgement) -> set[str]:
    return {changed.name.measure for alarm in judgement.alarms for changed in alarm.series}


@pytest.mark.parametrize("usual", [100, 500, 5000])
@pytest.mark.parametrize("factor", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("between_days", [0.0, 0.1])
def test_a_change_of_volume_names_rows_alone(usual: int, factor: float, between_days: float) -> None:
    rng = np.random.default_rng(usual)
    rows = np.append(rng.poisson(usual, REFERENCE), rng.poisson(usual * factor, MONITORED))
    assert named_measures(judge_days(draw(rows, 1, between_days))) == {"rows"}


@pytest.mark.parametrize("few", [1, 5, 30, 120])
def test_a_day_of_few_rows_breaks_in_rows_alone(few: int) -> None:
    rows = np.random.default_rng(3).poisson(500, REFERENCE + MONITORED)
    rows[REFERENCE + 10] = few
    assert named_measures(judge_days(draw(rows, 2, 0.1))) == {"rows"}


def test_a_change_is_found_while_the_volume_changes() -> None:
    rows = np.append(np.full(REFERENCE, 2000), np.full(MONITORED, 400))
    series = draw(rows, 4, 0.1)
    level = [str(name) for name in series.names].index("column 0 level")
    series.values[REFERENCE:, level] += 0.2
    breaks = [alarm for alarm in judge_days(series).alarms if alarm.kind == "break"]
    assert breaks[0].opened == START + timedelta(REFERENCE)
    assert {str(changed.name) for changed in breaks[0].series} == {"sales rows", "column 0 level"}


def judge_column(counts: np.ndarray, bins: ColumnBins = NUMBER) -> Judgement:
    rows, days = counts.sum(axis=1), [START + timedelta(n) for n in range(len(counts))]
    columns = {"column": (bins, ColumnCounts(rows, np.zeros_like(rows), counts))}
    return judge_days(build_series(days, REFERENCE, {"sales": rows}, columns))


def draw_narrow_days(rows: int, seed: int) -> np.ndarray:
    """Return the histograms of a column whose days have few of the reference's values each, as temperatures have."""
    rng, days = np.random.default_rng(seed), REFERENCE + MONITORED
    level = 10 + 6 * np.sin(np.arange(days)) + rng.normal(0, 1, days)
    values = rng.normal(level[:, None], rng.uniform(1.2, 1.8, (days, 1)), (days, rows))
    return np.stack([np.histogram(day, [-np.inf, *BOUNDS, np.inf])[0] for day in values])


@pytest.mark.parametrize("values", [1, 2])
def test_a_frozen_column_is_found_though_its_level_is_usual(values: int) -> None:
    counts = draw_narrow_days(72, 5)
    usual = judge_column(counts)
    assert not usual.alarms
    for day in range(REFERENCE, len(counts)):
        top = int(counts[day].argmax())
        counts[day] = 0
        counts[day, top - values + 1 : top + 1] = 72 // values
    judgement = judge_column(counts)
    assert "level" not in named_measures(judgement)
    (alarm,) = (alarm for alarm in judgement.alarms if "column spread" in [str(item.name) for item in alarm.series])
    spread = next(changed for changed in alarm.series if changed.name.measure == "spread")
    assert spread.effect < -np.log(2)
    assert (alarm.opened - START).days - REFERENCE < (1 if values == 1 else 14)


def test_a_column_that_is_nearly_constant_has_no_break_of_spread() -> None:
    rng = np.random.default_rng(6)
    flag = ColumnBins("sales", "flag", "categorical", ("no", "yes"))
    for share in (0.0, 0.0005):
        yes = rng.binomial(2000, share, REFERENCE + MONITORED)
        counts = np.stack([2000 - yes, yes, np.zeros_like(yes)], axis=1)
        assert not judge_column(counts, flag).alarms
        counts[REFERENCE + 10] = 1960, 40, 0
        counts[REFERENCE + 20] = 2000, 0, 0
        assert not judge_column(counts, flag).alarms, "two rows in a hundred are no break"


def test_a_break_names_all_measures_that_are_far() -> None:
    """Beyond the reference all rows share a bin, so days spread less: the same change, though no major one."""
    counts = np.random.default_rng(7).multinomial(2000, np.full(21, 1 / 21), REFERENCE + MONITORED)
    counts[REFERENCE:, -1] += counts[REFERENCE:, :8].sum(axis=1)
    counts[REFERENCE:, :8] = 0
    (alarm,) = judge_column(counts).alarms
    assert (alarm.kind, (alarm.opened - START).days) == ("break", REFERENCE)
    assert {changed.name.measure for changed in alarm.series} == {"level", "shape", "spread"}
