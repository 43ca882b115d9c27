"""How often monitoring falsely finds a loss of performance in a year without one, and how soon a loss: by simulation.

    python benchmarks/performance_alarms.py [--years 200] [--seed 1] [--json FILE]

A champion has one metric, whose value of each day is drawn: normal, or t with 4 degrees of freedom, with a weekly
season of half that size, and a memory (the correlation with the day before). After the holdout, 365 days are judged by
the functions of the product. A loss begins after 30 of these days, in standard deviations between days. Years in which
days were too much alike to raise anything are those "without alarms".
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from evergreen.monitoring.performance import DailyMetric, judge_performance

DAYS = 365
FIND_WITHIN_DAYS = 28
WEEKLY = 0.5
LOSSES, START = (1.0, 1.5, 2.0, 3.0), 30
FIRST = date(2013, 1, 1)


@dataclass(frozen=True)
class World:
    """How days hang together."""

    holdout_days: int
    memory: float
    heavy_tails: bool = False


def draw_days(world: World, seed: tuple[int, int], days: int) -> NDArray[np.float64]:
    """Return the value of each day, of the holdout and of so many since, in standard deviations between days."""
    rng, size = np.random.default_rng(seed), world.holdout_days + days
    noise = rng.standard_t(4, size) / np.sqrt(2) if world.heavy_tails else rng.standard_normal(size)
    values = np.empty(size)
    values[0] = noise[0]
    for day in range(1, size):
        values[day] = world.memory * values[day - 1] + np.sqrt(1 - world.memory**2) * noise[day]
    return values + WEEKLY * np.resize(rng.standard_normal(7), size)


def alarm_days(world: World, values: NDArray[np.float64]) -> list[int] | None:
    """Return on which days since the holdout alarms are raised; 1 is the first. None if none can be."""
    days = tuple(FIRST + timedelta(number) for number in range(len(values)))
    rows = np.full(len(values), 1000.0)
    judged = judge_performance(DailyMetric("log_loss", False, days, world.holdout_days, values, rows), 1)
    if isinstance(judged, str):
        return None
    return [(alarm.opened - days[world.holdout_days]).days + 1 for alarm in judged[1].alarms]


def count_false_alarms(world: World, years: int, seed: int) -> tuple[float, float]:
    """Return the mean number of alarms of a year without a loss, and the share of years that can have none."""
    raised = [alarm_days(world, draw_days(world, (seed, year), DAYS)) for year in range(years)]
    return sum(len(days or ()) for days in raised) / years, raised.count(None) / years


def find_losses(world: World, loss: float, years: int, seed: int) -> dict[str, float]:
    """Return the share of losses that an alarm finds in time, and the median of days until then."""
    delays = []
    for year in range(years):
        values = draw_days(world, (seed, year), START + 2 * FIND_WITHIN_DAYS)
        values[world.holdout_days + START :] += loss
        days = alarm_days(world, values) or ()
        delays.append(next((day - START for day in days if day > START), float("inf")))
    return {"found": float(np.mean(np.array(delays) <= FIND_WITHIN_DAYS)), "median days": float(np.median(delays))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=200, help="simulated years of each line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    worlds = [World(days, memory) for days in (14, 56) for memory in (0.0, 0.3, 0.5, 0.7, 0.9)]
    worlds.insert(2, World(14, 0.3, heavy_tails=True))
    begun, results = time.monotonic(), list[dict[str, object]]()
    table = Table("holdout", "memory", "tails", "false alarms a year", "without alarms")
    for loss in LOSSES:
        table.add_column(f"{loss:g} sd", justify="right")
    for world in worlds:
        false, silent = count_false_alarms(world, options.years, options.seed)
        results.append({"world": asdict(world), "false alarms a year": false, "without alarms": silent})
        cells = []
        for loss in LOSSES:
            found = find_losses(world, loss, max(options.years // 4, 1), options.seed + 1)
            results.append({"world": asdict(world), "loss": loss, **found})
            cells.append(f"{found['found']:.0%} ({found['median days']:.0f})")
        tails = "heavy" if world.heavy_tails else "normal"
        table.add_row(f"{world.holdout_days} days", str(world.memory), tails, f"{false:.2f}", f"{silent:.0%}", *cells)
    console = Console(width=140)
    console.print(table)
    console.print(f"found in {FIND_WITHIN_DAYS} days (median); {time.monotonic() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
