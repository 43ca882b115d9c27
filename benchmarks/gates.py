"""How often a gate promotes what it should not, and what it should, over a model's whole life: by simulation.

    python benchmarks/gates.py [--histories 10000] [--retrains 100] [--json FILE]

Labels and the scores of two models are drawn row by row, as in a weekly holdout of 1,000 rows with 20 % of class 1,
and judged by the gate that judges real models. Scores are binormal (Green and Swets 1966): a row's score is a
normal number, shifted up for class 1; the two models share 90 % of their noise, as a model and its retrained self do.
Beside it, on the same rows: "promote if the AUC is higher", and a DeLong test at p < 0.05 in every run.
Goal: at most 5 % of histories ever promote a model that is not better, whatever the number of retrains.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import special, stats

from evergreen.gates import AgainstChampionGate, EarlierComparison, Evidence
from evergreen.gates.comparisons import delong
from evergreen.gates.kinds.metric import compute_against_champion

CHAMPION_AUC = 0.70
SHARE = 0.20  # of class 1
SHARED_NOISE = 0.90
FIRST = date(2013, 1, 4)
BETTER = AgainstChampionGate(metric="auc", must_be="better", name="gate")
NOT_WORSE = AgainstChampionGate(metric="auc", must_be="not_worse", margin=0.01, name="gate")
RULES = ("Evergreen", "p < 0.05 in each run", "promote if higher")


@dataclass(frozen=True)
class World:
    """What is true of every candidate, beside the champion of its day."""

    name: str
    gate: AgainstChampionGate
    least: float
    most: float  # true gains in AUC, drawn evenly between the two


WORLDS = (
    World("as good as the champion", BETTER, 0.0, 0.0),
    World("worse by 0 to 1 points", BETTER, -0.01, 0.0),
    World("worse by the margin of 1 point, not_worse is asked", NOT_WORSE, -0.01, -0.01),
)


def distance(auc: float) -> float:
    """How far apart the two classes lie, in standard deviations of either."""
    return float(np.sqrt(2) * special.ndtri(auc))


def rows(random: np.random.Generator, n: int, gain: float) -> Evidence:
    """A holdout of `n` rows, and both models' scores."""
    label = np.zeros(n)
    label[: round(n * SHARE)] = 1
    shared = np.sqrt(SHARED_NOISE) * random.standard_normal(n)

    def score(auc: float) -> NDArray[np.float64]:
        own = np.sqrt(1 - SHARED_NOISE) * random.standard_normal(n)
        return special.expit(shared + own + distance(auc) * label)

    return Evidence(label, score(CHAMPION_AUC + gain), score(CHAMPION_AUC), days=(FIRST, FIRST))


def week(number: int) -> tuple[date, date]:
    start = FIRST + timedelta(7 * number)
    return start, start + timedelta(7)


def history(world: World, retrains: int, n: int, seed: int) -> list[int]:
    """One life: how often each of RULES promoted."""
    random = np.random.default_rng(seed)
    promoted, past = [0, 0, 0], []
    limit = world.gate.limit
    for number in range(retrains):
        drawn = rows(random, n, random.uniform(world.least, world.most))
        shown = Evidence(drawn.label, drawn.candidate, drawn.champion, days=week(number))
        record = compute_against_champion(world.gate, shown, past)
        assert record.alpha, record.reason
        passed = record.outcome == "passed"
        past.append(EarlierComparison(week(number), (("gate", record.alpha, passed),)))
        found = delong(*map(np.asarray, (drawn.label, drawn.candidate, drawn.champion)))
        promoted[0] += passed
        promoted[1] += (found.gain - limit) / found.standard_error > stats.norm.ppf(0.95)
        promoted[2] += found.gain > 0
    return promoted


def lives(world: World, histories: int, retrains: int, n: int) -> list[float]:
    """Of each rule: the share of histories in which it ever promoted."""
    started, ever = time.monotonic(), np.zeros(3)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        work = pool.imap_unordered(partial(history, world, retrains, n), range(histories), chunksize=20)
        for done, promoted in enumerate(work, 1):
            ever += np.array(promoted) > 0
            if done % max(1, histories // 10) == 0:
                left = (time.monotonic() - started) / done * (histories - done)
                print(f"{world.name}: {done:,} of {histories:,} histories, {left:.0f} s left", file=sys.stderr)
    return [float(share) for share in ever / histories]


def chance(gain: float, n: int, before: int, draws: int, seed: int) -> list[float]:
    """Of each rule: the share of `draws` candidates, truly better by `gain`, that it promotes.

    `before` comparisons were made earlier, and none passed.
    """
    random = np.random.default_rng(seed)
    past = [EarlierComparison(week(number), (("gate", 0.001, False),)) for number in range(before)]
    promoted = np.zeros(3)
    for _ in range(draws):
        drawn = rows(random, n, gain)
        shown = Evidence(drawn.label, drawn.candidate, drawn.champion, days=week(before))
        found = delong(*map(np.asarray, (drawn.label, drawn.candidate, drawn.champion)))
        promoted += [
            compute_against_champion(BETTER, shown, past).outcome == "passed",
            found.gain / found.standard_error > stats.norm.ppf(0.95),
            found.gain > 0,
        ]
    return [float(share) for share in promoted / draws]


def bounds(share: float, trials: int) -> tuple[float, float]:
    """95 % (Wilson 1927, J. American Statistical Association 22:209-212)."""
    found = stats.binomtest(round(share * trials), trials).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def show_lives(found: dict[str, list[float]], histories: int, retrains: int, n: int, console: Console) -> None:
    table = Table(
        title=f"Histories of {retrains} retrains in which a candidate is ever promoted, "
        f"{histories:,} histories, {n:,} rows each"
    )
    for name in ("every candidate is truly", *RULES):
        table.add_column(name, justify="left" if name not in RULES else "right")
    for name, shares in found.items():
        low, high = bounds(shares[0], histories)
        table.add_row(
            name,
            f"{100 * shares[0]:.2f} % ({100 * low:.2f} – {100 * high:.2f})",
            *(f"{100 * share:.1f} %" for share in shares[1:]),
        )
    console.print(table)


def show_chances(found: Sequence[dict[str, object]], console: Console) -> None:
    table = Table(title="Chance that a truly better candidate is promoted, in one run")
    names = ["rows", "better by", "Evergreen, 1st", "10th", "50th comparison", *RULES[1:]]
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
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--draws", type=int, default=400, help="candidates per cell of the second table")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 130)

    false = {world.name: lives(world, arguments.histories, arguments.retrains, arguments.rows) for world in WORLDS}
    show_lives(false, arguments.histories, arguments.retrains, arguments.rows, console)

    power = []
    cells = [(n, points) for n in (1_000, 2_000, 5_000, 10_000, 20_000, 50_000) for points in (1, 2)]
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
