"""How often monitoring alarms falsely in a year without drift, and how soon it finds a drift or a break: by simulation.

    python benchmarks/monitoring.py [--years 200] [--seed 1] [--json FILE]

A model's columns are drawn day by day: 10,000 rows, whose mean differs from day to day by a tenth of the standard
deviation of rows. That difference follows the weekday, the day before (a first-order autoregression), and what all
columns have in common (30 % of its variance). Of seven columns one is categorical, with eight values. The champion has
180 days of reference, then 365 days are monitored. What judges are the functions of the product, from histograms on.

Beside it, on the same histograms:

- *Evidently's defaults*, re-implemented here: for more than 1,000 rows a numeric column has drifted if W1 / sd > 0.1, a
  categorical one if the Jensen–Shannon distance > 0.1; the data has drifted if half of the columns have
  (evidently 0.7, `DataDriftPreset`). The reference is all of the 180 days.
- *Any column* of these, without the half.
- *Raw tests*: any column with p < 0.05, by Kolmogorov–Smirnov (on the bins) or χ².
- *Raw tests, Bonferroni*: the same at 0.05 / columns.

Goals: at most one false alarm a year in the mean; a shift of 1.5 standard deviations between days in 3 of 34 columns is
found within 21 days in 80 % of cases; a break (another unit, a frozen column, a missing one) on its first day. A
column is frozen at some value, or at its usual mean, where its level does not move.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import special, stats

from evergreen.monitoring.alarms import Alarm, judge_days
from evergreen.monitoring.histograms import ColumnBins
from evergreen.monitoring.series import ColumnCounts, build_series

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

ROWS = 10_000
REFERENCE_DAYS, MONITORED_DAYS = 180, 365
BETWEEN_DAYS = 0.1  # standard deviation of a day's mean, in those of rows
SHARED_VARIANCE = 0.3
CATEGORIES = 8
FIND_WITHIN_DAYS = 21
SHIFTED_COLUMNS = 3
MILES_TO_KM = 1.609
BOUNDS = tuple(map(float, special.ndtri(np.arange(1, 20) / 20)))
NUMERIC = ColumnBins("examples", "", "numeric", (-4.0, *BOUNDS, 4.0))
CATEGORICAL = ColumnBins("examples", "", "categorical", tuple(f"value {n}" for n in range(CATEGORIES)))
PERIODS = tuple(date(2013, 1, 1) + timedelta(n) for n in range(REFERENCE_DAYS + MONITORED_DAYS))


@dataclass(frozen=True)
class World:
    """What is drawn: the columns, and how the days hang together."""

    columns: int
    memory: float
    weekly: float = 1.0  # standard deviation of weekdays' means, in those between days
    heavy_tails: bool = False  # of what days differ by: t with 4 degrees of freedom


@dataclass(frozen=True)
class Year:
    """The histograms of a simulated model; the first days are the reference."""

    bins: Mapping[str, ColumnBins]
    counts: Mapping[str, ColumnCounts]
    rows: Counts

    def alarms(self) -> tuple[Alarm, ...]:
        columns = {name: (self.bins[name], self.counts[name]) for name in self.bins}
        return judge_days(build_series(PERIODS, REFERENCE_DAYS, {"examples": self.rows}, columns)).alarms


def draw_levels(world: World, rng: np.random.Generator) -> Array:
    """Return the mean of each day and column, (days, columns), in standard deviations between days."""
    shape = (len(PERIODS), world.columns)
    draw: Callable[[tuple[int, ...]], Array] = rng.standard_normal
    if world.heavy_tails:
        draw = lambda size: rng.standard_t(4, size) / np.sqrt(2)  # noqa: E731 - of variance 1
    noise = np.sqrt(SHARED_VARIANCE) * draw((shape[0], 1)) + np.sqrt(1 - SHARED_VARIANCE) * draw(shape)
    levels = np.empty(shape)
    levels[0] = noise[0]
    for day in range(1, shape[0]):
        levels[day] = world.memory * levels[day - 1] + np.sqrt(1 - world.memory**2) * noise[day]
    weekdays = np.array([day.weekday() for day in PERIODS])
    return levels + world.weekly * rng.standard_normal((7, world.columns))[weekdays]


def draw_year(world: World, rng: np.random.Generator, levels: Array, factors: Array | None = None) -> Year:
    """Return the histograms of days with these levels; `factors` (days, columns) multiply a numeric column's values."""
    rows = rng.poisson(ROWS, len(PERIODS))
    bins, counts = dict[str, ColumnBins](), dict[str, ColumnCounts]()
    for number in range(world.columns):
        name, mean = f"column {number}", BETWEEN_DAYS * levels[:, number]
        if number % 7 == 6:
            bins[name] = CATEGORICAL
            slopes = np.linspace(-1.5, 1.5, CATEGORIES)
            shares = special.softmax(-np.arange(CATEGORIES) / 3 + mean[:, None] * slopes, axis=1)
            shares = np.hstack([shares, np.zeros((len(mean), 1))])
        else:
            bins[name] = NUMERIC
            # Values are 3 or so, as lengths are, so that another unit moves all of them.
            factor = np.ones(len(mean)) if factors is None else factors[:, number]
            edges = ((np.asarray(NUMERIC.bounds) + 3) / factor[:, None]) - 3 - mean[:, None]
            below = np.hstack([np.zeros((len(mean), 1)), special.ndtr(edges), np.ones((len(mean), 1))])
            shares = np.diff(below, axis=1)
        drawn = rng.multinomial(rows, shares)
        missing = rng.binomial(rows, 0.01)
        counts[name] = ColumnCounts(rows + missing, missing, drawn)
    return Year(bins, counts, rows)


def wasserstein_distance(counts: Counts, reference: Counts, bounds: Sequence[float]) -> float:
    """Return the distance W1 of two histograms of a numeric column, in standard deviations of the reference.

    W1 = ∫ |F − G| (Vallender 1974), with F and G linear between bounds, and what is beyond the outermost bounds at
    these: so it is a lower bound for values out of the reference's range. 0 if the reference has one value only.

    Args:
        counts: of shape (len(bounds) + 1,), as in `Histogram`.
        reference: of the same shape.
        bounds: as in `ColumnBins`.
    """
    edges = np.asarray(bounds, np.float64)
    centers = np.concatenate(([edges[0]], (edges[1:] + edges[:-1]) / 2, [edges[-1]]))
    q = reference / max(reference.sum(), 1)
    mean = float(q @ centers)
    deviation = float(np.sqrt(q @ (centers - mean) ** 2))
    if not deviation or not counts.sum():
        return 0.0
    difference = np.cumsum(counts / counts.sum())[:-1] - np.cumsum(q)[:-1]  # at each bound
    lower, upper, widths = difference[:-1], difference[1:], np.diff(edges)
    # Of a line between two bounds: a trapezoid, or two triangles where it crosses zero.
    crosses = lower * upper < 0
    size = np.abs(lower) + np.abs(upper)
    areas = np.where(crosses, (lower**2 + upper**2) / np.where(size > 0, size, 1), size) / 2
    return float(areas @ widths / deviation)


def evidently_columns(year: Year) -> NDArray[np.bool_]:
    """Return which columns have drifted by Evidently's defaults, (monitored days, columns)."""
    flags = []
    for name, bins in year.bins.items():
        reference = year.counts[name].counts[:REFERENCE_DAYS].sum(axis=0)
        days = year.counts[name].counts[REFERENCE_DAYS:]
        if bins.kind == "numeric":
            flags.append([wasserstein_distance(day, reference, [float(b) for b in bins.bounds]) > 0.1 for day in days])
            continue
        p, q = days / np.maximum(days.sum(axis=1, keepdims=True), 1), reference / reference.sum()
        mixed = (p + q) / 2
        divergence = (special.rel_entr(p, mixed) + special.rel_entr(q, mixed)).sum(axis=1) / 2
        flags.append(list(np.sqrt(divergence) > 0.1))
    return np.array(flags).T


def raw_p_values(year: Year) -> Array:
    """Return the p-value of each column against the whole reference, (monitored days, columns)."""
    p_values = []
    for name, bins in year.bins.items():
        reference = year.counts[name].counts[:REFERENCE_DAYS].sum(axis=0)
        days = year.counts[name].counts[REFERENCE_DAYS:]
        p, q = days / days.sum(axis=1, keepdims=True), reference / reference.sum()
        if bins.kind == "numeric":
            distance = np.abs(np.cumsum(p - q, axis=1)).max(axis=1)
            size = days.sum(axis=1) * reference.sum() / (days.sum(axis=1) + reference.sum())
            p_values.append(stats.kstwobign.sf(distance * np.sqrt(size)))
        else:
            expected = q[q > 0] * days.sum(axis=1, keepdims=True)
            p_values.append(stats.chi2.sf(((days[:, q > 0] - expected) ** 2 / expected).sum(axis=1), (q > 0).sum() - 1))
    return np.array(p_values).T


def count_false_alarms(world: World, years: int, seed: int) -> dict[str, float]:
    """Return the mean number of alarms, or of days with one, of a year without drift."""
    totals: dict[str, list[float]] = {}
    for number in range(years):
        rng = np.random.default_rng([seed, number])
        year = draw_year(world, rng, draw_levels(world, rng))
        alarms, drifted, p_values = year.alarms(), evidently_columns(year), raw_p_values(year)
        for name, value in {
            "drift alarms": sum(alarm.kind == "drift" for alarm in alarms),
            "break alarms": sum(alarm.kind == "break" for alarm in alarms),
            "days: Evidently's defaults": (drifted.mean(axis=1) >= 0.5).sum(),
            "days: Evidently, any column": drifted.any(axis=1).sum(),
            "days: raw tests": (p_values < 0.05).any(axis=1).sum(),
            "days: raw tests, Bonferroni": (p_values < 0.05 / world.columns).any(axis=1).sum(),
        }.items():
            totals.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in totals.items()}


def find_shifts(world: World, shift: float, years: int, seed: int) -> dict[str, float]:
    """Return the share of shifts that an alarm of a shifted column finds in time, and the median of days until then."""
    delays = []
    for number in range(years):
        rng = np.random.default_rng([seed, number])
        levels, start = draw_levels(world, rng), REFERENCE_DAYS + int(rng.integers(30, 300))
        signs = rng.choice([-1, 1], SHIFTED_COLUMNS)
        levels[start:, :SHIFTED_COLUMNS] += shift * signs
        shifted = {f"column {n}" for n in range(SHIFTED_COLUMNS)}
        delays.append(first_alarm(draw_year(world, rng, levels), start, shifted))
    found = np.array(delays)
    return {"found in time": float((found <= FIND_WITHIN_DAYS).mean()), "median days": float(np.median(found))}


def find_breaks(world: World, years: int, seed: int) -> dict[str, float]:
    """Return the share of breaks of a column that alarm on their first day, by the kind of break."""
    kinds = ("another unit", "frozen column", "frozen at its mean", "missing column", "missing rows")
    found: dict[str, list[bool]] = {kind: [] for kind in kinds}
    for number in range(years):
        for kind, results in found.items():
            rng = np.random.default_rng([seed, number])
            levels, start = draw_levels(world, rng), REFERENCE_DAYS + int(rng.integers(30, 300))
            factors = np.ones(levels.shape)
            if kind == "another unit":
                factors[start:, 0] = MILES_TO_KM
            year = draw_year(world, rng, levels, factors)
            column = year.counts["column 0"]
            if kind.startswith("frozen"):
                mean = NUMERIC.size // 2  # of the bins on both sides, the upper one
                column.counts[start:] = 0
                column.counts[start:, rng.integers(3, 18) if kind == "frozen column" else mean] = year.rows[start:]
            elif kind == "missing column":
                column.counts[start:] = 0
                column.missing[start:] = column.rows[start:]
            elif kind == "missing rows":
                year.rows[start:] = 0
                for counts in year.counts.values():
                    counts.counts[start:], counts.rows[start:], counts.missing[start:] = 0, 0, 0
            results.append(first_alarm(year, start, {"column 0", "examples"}) == 1)
    return {kind: float(np.mean(results)) for kind, results in found.items()}


def first_alarm(year: Year, start: int, columns: set[str]) -> float:
    """Return the number of days, from `start` on, until an alarm names one of the columns; 1 is the first day."""
    for alarm in year.alarms():
        named = {changed.name.column for changed in alarm.series}
        if alarm.opened >= PERIODS[start] and named & columns:
            return PERIODS.index(alarm.opened) - start + 1
    return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=200, help="simulated years of each line with 34 columns")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console, begun, results = Console(width=140), time.monotonic(), list[dict[str, object]]()
    few = max(options.years // 8, 2)
    worlds = [
        *((World(34, memory), options.years) for memory in (0.0, 0.3, 0.5)),
        (World(34, 0.3, heavy_tails=True), options.years),
        *((World(300, memory), few) for memory in (0.3, 0.5)),
    ]
    table = Table("columns", "memory", "tails", "years", title="a year without drift: alarms, and days with alarms")
    for world, years in worlds:
        false = count_false_alarms(world, years, options.seed)
        if not results:
            for name in false:
                table.add_column(name, justify="right")
        results.append({"world": asdict(world), "years": years, "false alarms": false})
        tails = "heavy" if world.heavy_tails else "normal"
        figures = [f"{value:.2f}" if "alarms" in name else f"{value:.0f}" for name, value in false.items()]
        table.add_row(str(world.columns), str(world.memory), tails, str(years), *figures)
    console.print(table)
    table = Table("columns", "memory", "shift", "found in 21 days", "median days", title="a shift in 3 columns")
    for world, years in worlds:
        for shift in (1.0, 1.5):
            found = find_shifts(world, shift, years, options.seed + 1)
            results.append({"world": asdict(world), "years": years, "shift": shift, "found": found})
            share, median = found["found in time"], found["median days"]
            table.add_row(str(world.columns), str(world.memory), str(shift), f"{share:.0%}", f"{median:.0f}")
    console.print(table)
    table = Table("columns", "memory", title="breaks that alarm on their first day")
    for number, (world, years) in enumerate(worlds):
        broken = find_breaks(world, max(years // 8, 2), options.seed + 2)
        if not number:
            for name in broken:
                table.add_column(name, justify="right")
        results.append({"world": asdict(world), "breaks": broken})
        table.add_row(str(world.columns), str(world.memory), *(f"{share:.0%}" for share in broken.values()))
    console.print(table)
    console.print(f"{time.monotonic() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
