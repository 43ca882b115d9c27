"""How often a champion is rolled back by chance, and how soon a worse one is, by looks at each day since its promotion.

    python benchmarks/auto_rollback.py --lives 400

A life is a promotion and the days after it. The gain of the one before varies from day to day by 1, with a memory: the
correlation with the day before. Losses that both models have in common vary much more, and weekdays differ.
"""

from __future__ import annotations

import argparse
from datetime import date, timedelta

import numpy as np

from evergreen.monitoring.paired_days import DaysLook, PairedDays, judge_paired_days
from evergreen.spec.auto_rollback import AutoRollbackPolicy
from evergreen.spec.gates import AgainstChampionGate

ROWS, DAYS = 1000, 28
START = date(2024, 1, 1)


def simulate(rng: np.random.Generator, gain: float, memory: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the loss, and of rows, of the champion and the one before, of shape (days, 2) each."""
    noise, gains = rng.normal(size=DAYS), np.empty(DAYS)
    gains[0] = noise[0]
    for day in range(1, DAYS):
        gains[day] = memory * gains[day - 1] + np.sqrt(1 - memory**2) * noise[day]
    losses = 50 + 5 * rng.normal(size=DAYS) + 5 * np.sin(np.arange(DAYS) * 2 * np.pi / 7)
    rows = rng.integers(ROWS // 2, 3 * ROWS // 2, DAYS).astype(float)
    champion, previous = (np.column_stack([loss * rows, rows]) for loss in (losses, losses - gain - gains))
    return champion, previous


def decided_on(gate: AgainstChampionGate, champion: np.ndarray, previous: np.ndarray, first_look: int) -> int | None:
    """Return the days after which the one before is found to be better."""
    for size in range(first_look, DAYS + 1):
        days = tuple(START + timedelta(number) for number in range(size))
        rows = int(champion[:size, 1].sum())
        look = judge_paired_days(gate, PairedDays(days, champion[:size], previous[:size], rows, rows), first_look, DAYS)
        if isinstance(look, DaysLook) and look.is_better:
            return size
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lives", type=int, default=400)
    parser.add_argument("--confidence", type=float, default=AutoRollbackPolicy().confidence)
    options = parser.parse_args()
    gate = AgainstChampionGate(metric="mae", must_be="better", confidence=options.confidence, name="auto_rollback")
    print("| memory | gain, in sd between days | rolled back | median days |\n|---|---|---|---|")
    for memory in (0.0, 0.3, 0.5):
        for gain in (0.0, 0.5, 1.0, 2.0, 4.0):
            rng = np.random.default_rng(1)
            lives = [simulate(rng, gain, memory) for _ in range(options.lives)]
            found = [size for life in lives if (size := decided_on(gate, *life, AutoRollbackPolicy().min_days))]
            median = f"{np.median(found):g}" if found else "–"
            print(f"| {memory:g} | {gain:g} | {100 * len(found) / len(lives):.1f} % | {median} |", flush=True)


if __name__ == "__main__":
    main()
