"""How often a gate promotes what it should not, and what it should, over a model's whole life: by simulation.

    python benchmarks/gates.py [--histories 10000] [--retrains 100] [--json FILE]

Labels and the scores of two models are drawn row by row, as in a holdout of 14 days with 200 rows each and 20 % of
class 1, and judged by the gate that judges real models, with days as clusters. Scores are binormal (Green and Swets
1966): a row's score is a normal number, shifted up for class 1; the two models share 90 % of their noise, as a model
and its retrained self do. The true gain in AUC differs from day to day, with a standard deviation of 0, 0.01 or 0.02.
Beside it, on the same rows: the same gate with every row as a cluster of its own, a DeLong test at p < 0.05 in every
run, and "promote if the AUC is higher".
Goal: at most 5 % of histories ever promote a model that is not better, whatever the number of retrains and the spread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import special, stats

from evergreen.gates import AgainstChampionGate, EarlierComparison, Evidence
from evergreen.gates.alpha_spending import next_alpha
from evergreen.gates.clusters import RowClusters
from evergreen.gates.comparisons import delong
from evergreen.gates.kinds.metric import compute_against_champion

CHAMPION_AUC = 0.70
SHARE = 0.20  # of class 1
SHARED_NOISE = 0.90
DAYS = 14
SPREADS = (0.0, 0.01, 0.02)  # standard deviations of the true gain of a day
POWER_SPREAD = 0.01
FIRST = date(2013, 1, 4)
BETTER = AgainstChampionGate(metric="auc", must_be="better", name="gate")
NOT_WORSE = AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.01, name="gate")
RULES = ("Evergreen, by days", "the same by rows", "p < 0.05 in each run, by rows", "promote if higher")


@dataclass(frozen=True)
class World:
    """What is true of every candidate, beside the champion of its day."""

    name: str
    gate: AgainstChampionGate
    least: float
    most: float  # true gains in AUC, drawn evenly between the two
    spread: float = 0.0


WORLDS = (
    World("as good as the champion", BETTER, 0.0, 0.0),
    World("worse by 0 to 1 points", BETTER, -0.01, 0.0),
    World("worse by the margin of 1 point, not_worse is asked", NOT_WORSE, -0.01, -0.01),
)


def distance(auc: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """How far apart the two classes lie, in standard deviations of either."""
    return np.asarray(np.sqrt(2) * special.ndtri(auc))


def rows(random: np.random.Generator, n: int, gain: float, spread: float, number: int) -> Evidence:
    """The holdout of the retrain `number`: about `n` rows, equally many of each day, and both models' scores."""
    start, end = holdout(number)
    of_day = round(n / DAYS)
    label = np.tile(np.arange(of_day) < round(of_day * SHARE), DAYS).astype(float)
    shared = np.sqrt(SHARED_NOISE) * random.standard_normal(label.size)
    auc = CHAMPION_AUC + np.repeat(gain + spread * random.standard_normal(DAYS), of_day)

    def score(auc: NDArray[np.float64] | float) -> NDArray[np.float64]:
        own = np.sqrt(1 - SHARED_NOISE) * random.standard_normal(label.size)
        return special.expit(shared + own + distance(auc) * label)

    days = [day for number in range(DAYS) for day in [str(start + timedelta(number))] * of_day]
    return Evidence(label, score(auc), score(CHAMPION_AUC), days=(start, end), clusters={"day": days})


def holdout(number: int) -> tuple[date, date]:
    """Days that no other retrain is judged on."""
    start = FIRST + timedelta(DAYS * number)
    return start, start + timedelta(DAYS)


def by_rows(drawn: Evidence) -> tuple[float, float, float]:
    """The gain, its error and its degrees of freedom, with every row as a cluster of its own."""
    label, candidate, champion = map(np.asarray, (drawn.label, drawn.candidate, drawn.champion))
    found = delong(label, candidate, champion, RowClusters(("row",), (np.arange(label.size),)))
    return found.gain, found.standard_error, found.degrees_of_freedom


def history(world: World, retrains: int, n: int, seed: int) -> list[int]:
    """One life: how often each of RULES promoted."""
    random = np.random.default_rng(seed)
    promoted = [0] * len(RULES)
    past: list[EarlierComparison] = []
    past_by_rows: list[EarlierComparison] = []
    limit, budget = world.gate.limit, 1 - world.gate.confidence
    for number in range(retrains):
        drawn = rows(random, n, random.uniform(world.least, world.most), world.spread, number)
        record = compute_against_champion(world.gate, drawn, past)
        assert record.alpha, record.reason
        passed = record.outcome == "passed"
        past.append(EarlierComparison(holdout(number), (("gate", record.alpha, passed),)))
        gain, error, freedom = by_rows(drawn)
        alpha = next_alpha(budget, "gate", holdout(number), past_by_rows)
        passed_by_rows = gain - stats.t.isf(alpha, freedom) * error > limit
        past_by_rows.append(EarlierComparison(holdout(number), (("gate", alpha, passed_by_rows),)))
        promoted[0] += passed
        promoted[1] += passed_by_rows
        promoted[2] += (gain - limit) / error > stats.norm.ppf(0.95)
        promoted[3] += gain > 0
    return promoted


def lives(world: World, histories: int, retrains: int, n: int) -> list[float]:
    """Of each rule: the share of histories in which it ever promoted."""
    started, ever = time.monotonic(), np.zeros(len(RULES))
    with multiprocessing.Pool(os.cpu_count()) as pool:
        work = pool.imap_unordered(partial(history, world, retrains, n), range(histories), chunksize=10)
        for done, promoted in enumerate(work, 1):
            ever += np.array(promoted) > 0
            if done % max(1, histories // 10) == 0:
                left = (time.monotonic() - started) / done * (histories - done)
                print(f"{world.name}: {done:,} of {histories:,} histories, {left:.0f} s left", file=sys.stderr)
    return [float(share) for share in ever / histories]


def chance(gain: float, n: int, before: int, draws: int, seed: int) -> list[float]:
    """Of the gate, of one t test by days at the level 0.05, and of "if higher": the share of `draws` candidates, truly
    better by `gain`, that it promotes.

    `before` comparisons were made earlier, and none passed.
    """
    random = np.random.default_rng(seed)
    past = [EarlierComparison(holdout(number), (("gate", 0.001, False),)) for number in range(before)]
    promoted = np.zeros(3)
    for _ in range(draws):
        drawn = rows(random, n, gain, POWER_SPREAD, before)
        record = compute_against_champion(BETTER, drawn, past)
        alone = compute_against_champion(BETTER.model_copy(update={"confidence": ONE_TEST_CONFIDENCE}), drawn, ())
        promoted += [
            record.outcome == "passed",
            alone.outcome == "passed",
            (record.candidate or 0.0) > (record.champion or 0.0),
        ]
    return [float(share) for share in promoted / draws]


# The first comparison of a life spends 1 / ζ(1.6) of its budget: with this confidence, 0.05.
ONE_TEST_CONFIDENCE = 1 - 0.05 * float(special.zeta(1.6))


def bounds(share: float, trials: int) -> tuple[float, float]:
    """95 % (Wilson 1927, J. American Statistical Association 22:209-212)."""
    found = stats.binomtest(round(share * trials), trials).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def show_lives(found: dict[str, list[float]], histories: int, retrains: int, n: int, console: Console) -> None:
    table = Table(
        title=f"Histories of {retrains} retrains in which a candidate is ever promoted, "
        f"{histories:,} histories, {n:,} rows of {DAYS} days each"
    )
    for name in ("every candidate is truly", "spread of days", *RULES):
        table.add_column(name, justify="right" if name in RULES else "left")
    for name, shares in found.items():
        low, high = bounds(shares[0], histories)
        table.add_row(
            *name.rsplit(", spread ", 1),
            f"{100 * shares[0]:.2f} % ({100 * low:.2f} – {100 * high:.2f})",
            *(f"{100 * share:.1f} %" for share in shares[1:]),
        )
    console.print(table)


def show_chances(found: Sequence[dict[str, object]], console: Console) -> None:
    table = Table(title=f"Chance that a better candidate is promoted, in one run; spread of days {POWER_SPREAD}")
    names = ["rows", "better by", "Evergreen, 1st", "10th", "50th comparison", "t test by days, p < 0.05", RULES[-1]]
    for name in names:
        table.add_column(name, justify="right")
    for line in found:
        shares = [f"{100 * share:.0f} %" for share in line["shares"]]  # type: ignore[attr-defined]
        table.add_row(f"{line['rows']:,}", f"{line['points']} points", *shares)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--retrains", type=int, default=100)
    parser.add_argument("--rows", type=int, default=2_800)
    parser.add_argument("--draws", type=int, default=400, help="candidates per cell of the second table")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)

    false = {}
    for world, spread in itertools.product(WORLDS, SPREADS):
        named = replace(world, name=f"{world.name}, spread {spread:g}", spread=spread)
        false[named.name] = lives(named, arguments.histories, arguments.retrains, arguments.rows)
    show_lives(false, arguments.histories, arguments.retrains, arguments.rows, console)

    power = []
    cells = [(n, points) for n in (1_400, 2_800, 5_600, 14_000, 28_000, 70_000) for points in (1, 2)]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        asked = [
            [pool.apply_async(chance, (points / 100, n, before, arguments.draws, n)) for before in (0, 9, 49)]
            for n, points in cells
        ]
        for (n, points), answers in zip(cells, asked, strict=True):
            first, tenth, fiftieth = (answer.get() for answer in answers)
            shares = [first[0], tenth[0], fiftieth[0], *first[1:]]
            power.append({"rows": n, "points": points, "shares": shares})
            print(f"{n:,} rows, better by {points}: done", file=sys.stderr)
    show_chances(power, console)
    if arguments.json:
        arguments.json.write_text(json.dumps({"lives": false, "power": power}, indent=1) + "\n")


if __name__ == "__main__":
    main()
