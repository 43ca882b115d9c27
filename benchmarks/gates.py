"""How often a gate promotes what it should not, and what it should, over a model's whole life: by simulation.

    python benchmarks/gates.py [--histories 10000] [--retrains 100] [--json FILE]

Candidates are judged as evidence grows: on a holdout of 14 days, then every week, until they are promoted, hopeless,
or out of days. 20,000 rows a week. The true gain in AUC of a day is normal, with a standard deviation (*spread*) of 0,
0.01 or 0.02 and a correlation from day to day (*lag*) of 0, 0.15 or 0.3; the noise of sampling comes on top, of the
size that `delong` measures on rows of two models with 90 % of their noise in common.

What is drawn is the gain of each day, for all histories at once, and what judges are the functions of the product
that judge a gain: alpha, levels of looks, hopelessness, and the chance of an error with correlated days. The table
`rows` draws rows instead, and judges them by `judge_evidence` and `judge_next_look`, to check that both agree.

Beside it, on the holdout alone: one test by rows at p < 0.05 in every run, "promote if higher", and the gate of commit
8f1aec1, which took rows as independent and spent alpha as `lifetime` does.
Goals: at most 5 % of histories ever promote a model that is not better; of promotions, at most 5 % are of such a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import special, stats

from evergreen.gates import AgainstChampionGate, EarlierComparison, Evidence, judge_evidence, judge_next_look
from evergreen.gates.alpha_spending import AlphaSpend, DayCorrelation, next_alpha
from evergreen.gates.clusters import RowClusters
from evergreen.gates.comparisons import delong
from evergreen.gates.day_correlation import (
    chance_beyond,
    correlated_weight,
    count_informative_days,
    day_autocorrelation,
    possible_errors,
)
from evergreen.gates.group_sequential import is_hopeless, look_levels, max_days
from evergreen.spec.gates import Guarantee

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

CHAMPION_AUC = 0.70
SHARE = 0.20  # of class 1
SHARED_NOISE = 0.90
HOLDOUT_DAYS = 14
WEEK = 7
ROWS_A_WEEK = 20_000
FIRST = date(2013, 1, 4)
ERROR = 0.05
BATCH = 2_500  # histories at a time, for memory
GATE = AgainstChampionGate(metric="auc", must_be="better", name="gate", guarantee="lifetime")
TABLES = ("lives", "rates", "power", "anytime", "rows")
RULES = ("Evergreen", "8f1aec1, by rows", "p < 0.05 in each run", "promote if higher")
ENTITIES, ENTITY_SPREAD = 400, 0.05


@dataclass(frozen=True)
class World:
    """What is true of the gains of candidates.

    `gains` are the true ones, in AUC, one drawn for each candidate with equal chances; `limit` is what has to be
    exceeded: 0 for `better`, -margin for `not_worse`.
    """

    name: str
    gains: tuple[float, ...]
    limit: float = 0.0
    spread: float = 0.0
    lag: float = 0.0
    rows: int = ROWS_A_WEEK
    entities: bool = False
    guarantee: Guarantee = "lifetime"
    accumulates: bool = True  # or the holdout alone decides


@cache
def noise_of_a_row() -> float:
    """The standard deviation of the sampling noise of a gain in AUC, times the root of the number of rows."""
    random, n = np.random.default_rng(0), 200_000
    label = (np.arange(n) < SHARE * n).astype(float)
    candidate, champion = scores(random, label, np.full(n, CHAMPION_AUC))
    found = delong(label, candidate, champion, RowClusters(("row",), (np.arange(n),)))
    return found.standard_error * float(np.sqrt(n))


def scores(random: np.random.Generator, label: Array, auc: Array) -> tuple[Array, Array]:
    """Binormal scores (Green and Swets 1966) of a candidate with the AUC of each row, and of the champion."""

    def draw(auc: Array | float) -> Array:
        own = np.sqrt(1 - SHARED_NOISE) * random.standard_normal(label.size)
        return np.asarray(special.expit(shared + own + np.sqrt(2) * special.ndtri(auc) * label))

    shared = np.sqrt(SHARED_NOISE) * random.standard_normal(label.size)
    return draw(auc), draw(CHAMPION_AUC)


class DrawnGains:
    """The gains of one candidate in each history by day (histories, days), drawn as far as looks need them."""

    def __init__(self, world: World, gain: Array, random: np.random.Generator):
        self._world, self._random, self._gain = world, random, gain
        self._noise = noise_of_a_row() / np.sqrt(world.rows / WEEK)
        self.daily = np.empty((gain.size, 0))
        self._spread = random.standard_normal(gain.size)  # of the day before, in units of the world's
        self._entities = np.zeros((gain.size, 0))
        if world.entities:
            # An entity's own effect stays the same on all days, its noise does not.
            self._entities = ENTITY_SPREAD * random.standard_normal((gain.size, ENTITIES))
            self._gain = gain + self._entities.mean(axis=1)
        self._entity_noise = np.zeros_like(self._entities)

    def draw(self, days: int) -> None:
        """Draw until there are `days`."""
        size, new, world = self._gain.size, days - self.daily.shape[1], self._world
        # One number has both the true gain of the day and its noise, where days are independent.
        spread, noise = (world.spread, self._noise) if world.lag else (0.0, np.hypot(world.spread, self._noise))
        added = self._gain[:, None] + noise * self._random.standard_normal((size, new))
        if world.lag and spread:
            innovations = np.sqrt(1 - world.lag**2) * self._random.standard_normal((new, size))
            for day in range(new):
                self._spread = world.lag * self._spread + innovations[day]
                added[:, day] += spread * self._spread
        self.daily = np.concatenate([self.daily, added], axis=1)
        if world.entities:
            scale = self._noise * np.sqrt(ENTITIES * new)
            self._entity_noise += scale * self._random.standard_normal(self._entity_noise.shape)

    def keep(self, histories: Mask) -> None:
        """Drop all other histories."""
        self._gain, self.daily, self._spread = self._gain[histories], self.daily[histories], self._spread[histories]
        self._entities, self._entity_noise = self._entities[histories], self._entity_noise[histories]

    def estimate(self) -> tuple[Array, Array, Array]:
        """Gain, squared error, and the part of it by days: those of means with clusters of equal size."""
        days = self.daily.shape[1]
        by_days = self.daily.var(axis=1, ddof=1) / days
        if not self._world.entities:
            return self.daily.mean(axis=1), by_days, by_days
        by_entities = (self._entities + self._entity_noise / days).var(axis=1, ddof=1) / ENTITIES
        pairs = self._noise**2 / days
        total = np.maximum(by_days + by_entities - pairs, np.maximum(by_days, by_entities))
        return self.daily.mean(axis=1), total, by_days


@dataclass
class Pool:
    """What each history has learned about the correlation of days."""

    days: Array
    total: Array

    def weight(self, histories: NDArray[np.intp], days: int, correlation: Array) -> Array:
        n = self.days[histories] + count_informative_days(days)
        mean = (self.total[histories] + count_informative_days(days) * correlation) / n
        return np.asarray(correlated_weight(n, mean))

    def learn(self, days: Array, correlation: Array) -> None:
        informative = np.maximum(days - (HOLDOUT_DAYS - count_informative_days(HOLDOUT_DAYS)), 0)
        self.days += informative
        self.total += informative * correlation


@dataclass
class Comparison:
    """How one comparison ended in each history: (histories,) each; `passed_by` are shares, by look."""

    passed: Mask
    days: Array
    by_rows: NDArray[np.bool_]
    passed_by: list[float]


def compare(world: World, gain: Array, alpha: float, pool: Pool, random: np.random.Generator) -> Comparison:
    """One comparison in each history, at one alpha, with all of its looks."""
    last, drawn = max_days(alpha, HOLDOUT_DAYS) if world.accumulates else HOLDOUT_DAYS, DrawnGains(world, gain, random)
    passed, ended, correlation = np.zeros(gain.size, bool), np.zeros(gain.size), np.zeros(gain.size)
    waiting = np.arange(gain.size)
    look_days: tuple[int, ...] = ()
    passed_by, rows = [], np.zeros((3, gain.size), bool)
    for days in range(HOLDOUT_DAYS, last + 1, WEEK):
        if waiting.size:
            drawn.draw(days)
            look_days = (*look_days, days)
            mean, variance, by_days = drawn.estimate()
            if days == HOLDOUT_DAYS:
                rows = promote_by_rows(world, mean, alpha)
            measured = day_autocorrelation(drawn.daily)
            ended[waiting], correlation[waiting] = days, measured
            weight = pool.weight(waiting, days, measured)
            errors = possible_errors(np.sqrt(variance), days - 1, days, by_days, weight)
            chance = np.asarray(chance_beyond(mean - world.limit, errors))
            suffices = chance <= look_levels(alpha, look_days, last)[-1]
            passed[waiting[suffices]] = True
            goes_on = ~suffices
            if days < last:
                goes_on &= ~is_hopeless(alpha, look_days, last, chance)
            drawn.keep(goes_on)
            waiting = waiting[goes_on]
        passed_by.append(float(passed.mean()))
    pool.learn(ended, correlation)
    return Comparison(passed, ended, rows, passed_by)


def promote_by_rows(world: World, mean: Array, alpha: float) -> Mask:
    """Of the rules beside Evergreen: whether each promotes on the holdout, as if rows were independent."""
    z = (mean - world.limit) / (noise_of_a_row() / np.sqrt(world.rows / WEEK * HOLDOUT_DAYS))
    return np.stack([z > -special.ndtri(alpha), z > -special.ndtri(ERROR), mean > world.limit])


def empty_pool(size: int) -> Pool:
    return Pool(np.zeros(size), np.zeros(size))


def period(number: int) -> tuple[date, date]:
    """Days that no other comparison is judged on."""
    start = FIRST + timedelta(70 * number)
    return start, start + timedelta(HOLDOUT_DAYS)


@cache
def alpha_after(number: int, promotions: int, guarantee: Guarantee) -> float:
    """Alpha of the comparison `number`, from 0 on, if the last `promotions` before it passed, and no others."""
    earlier: list[EarlierComparison] = []
    for k in range(number):
        passed = k >= number - promotions
        alpha = next_alpha(ERROR, "gate", period(k), earlier, guarantee) if passed else 1e-9
        earlier.append(EarlierComparison(period(k), (AlphaSpend("gate", alpha, passed),), passed))
    return next_alpha(ERROR, "gate", period(number), earlier, guarantee)


def live(world: World, retrains: int, histories: int, seed: int, weeks: int | None = None) -> dict[str, Any]:
    """The lives of one world, and how often each of RULES promoted wrongly.

    With `weeks`, a life ends after them, and each comparison takes the weeks of its days.
    """
    sums: dict[str, Any] = {"ever": np.zeros(len(RULES)), "good": 0, "wrong": 0, "rate": 0.0, "comparisons": 0}
    for start in range(0, histories, BATCH):
        size = min(BATCH, histories - start)
        random = np.random.default_rng([seed, start])
        pool, ever = empty_pool(size), np.zeros((len(RULES), size), bool)
        promotions, streak, used = (np.zeros(size, int) for _ in range(3))
        good, wrong = np.zeros(size), np.zeros(size)
        for number in range(retrains):
            active = used < weeks * WEEK if weeks else np.ones(size, bool)
            if not active.any():
                break
            gain = random.choice(world.gains, size)
            is_bad = gain <= world.limit
            # What the kind of guarantee depends on.
            known = streak if world.guarantee == "lifetime" else promotions
            passed, days = np.zeros(size, bool), np.zeros(size)
            for key in np.unique(known[active]):
                of_key = active & (known == key)
                alpha = alpha_after(number, int(key), world.guarantee)
                part = Pool(pool.days[of_key], pool.total[of_key])
                found = compare(world, gain[of_key], alpha, part, random)
                pool.days[of_key], pool.total[of_key] = part.days, part.total
                passed[of_key], days[of_key] = found.passed, found.days
                ever[1:, of_key] |= is_bad[of_key] & found.by_rows
            ever[0] |= passed & is_bad
            good += passed & ~is_bad
            wrong += passed & is_bad
            streak = np.where(active, np.where(passed, streak + 1, 0), streak)
            promotions += passed
            used += days.astype(int)
            sums["comparisons"] += int(active.sum())
        sums["ever"] += ever.sum(axis=1)
        sums["good"] += good.sum()
        sums["wrong"] += wrong.sum()
        sums["rate"] += (wrong / np.maximum(good + wrong, 1)).sum()
    return {
        "ever": [float(count) / histories for count in sums["ever"]],
        **{key: float(sums[key]) / histories for key in ("good", "wrong", "rate", "comparisons")},
    }


def learned_pool(world: World, comparisons: int, size: int, random: np.random.Generator) -> Pool:
    """What a model knows of its days after so many comparisons that failed."""
    pool = empty_pool(size)
    for number in range(comparisons):
        alpha = alpha_after(number, 0, "lifetime")
        compare(world, np.zeros(size), alpha, pool, random)
    return pool


def power(world: World, number: int, promotions: int, draws: int) -> dict[str, Any]:
    """The chance that a candidate that is truly better is promoted by each look, as the model's comparison `number`."""
    random = np.random.default_rng([number, promotions, world.rows])
    pool = learned_pool(world, number, draws, random)
    alpha = alpha_after(number, promotions, world.guarantee)
    last = max_days(alpha, HOLDOUT_DAYS)
    gain = np.full(draws, world.gains[0])
    found = compare(world, gain, alpha, pool, random)
    alone = DrawnGains(world, gain, random)
    alone.draw(last)
    mean, variance, _ = alone.estimate()
    one = float((special.stdtr(last - 1, -mean / np.sqrt(variance)) <= alpha).mean())
    return {"alpha": alpha, "last": last, "one_test": one, "looks": found.passed_by, "by_end": found.passed_by[-1]}


def full_rows(world: World, retrains: int, seed: int) -> list[bool]:
    """One life by rows: whether each comparison passed; what is drawn is judged by the functions that judge models."""
    random, earlier, passed = np.random.default_rng(seed), [], []
    gate = GATE.model_copy(update={"guarantee": world.guarantee})
    of_day = round(world.rows / WEEK)
    for number in range(retrains):
        start = FIRST + timedelta(70 * number)
        spread = [random.standard_normal()]
        for _ in range(48):
            spread.append(world.lag * spread[-1] + np.sqrt(1 - world.lag**2) * random.standard_normal())
        daily = world.gains[0] + world.spread * np.array(spread)
        label = np.tile(np.arange(of_day) < round(of_day * SHARE), 49).astype(float)
        candidate, champion = scores(random, label, np.repeat(CHAMPION_AUC + daily, of_day))
        names = np.repeat([str(start + timedelta(day)) for day in range(49)], of_day).tolist()
        verdict = None
        for days in range(HOLDOUT_DAYS, 50, WEEK):
            n = days * of_day
            evidence = Evidence(
                label[:n],
                candidate[:n],
                champion[:n],
                days=(start, start + timedelta(days)),
                clusters={"day": names[:n]},
            )
            if verdict is None:
                verdict = judge_evidence([gate], evidence, earlier, accumulates=True)
            else:
                verdict = judge_next_look([gate], evidence, earlier, verdict)
            if not verdict.is_inconclusive:
                break
        [result] = verdict.results
        assert result.alpha
        assert result.days
        assert result.day_correlation is not None
        passed.append(verdict.promote)
        earlier.append(
            EarlierComparison(
                (start, result.looks[-1].end),
                (AlphaSpend("gate", result.alpha, verdict.promote),),
                verdict.promote,
                tuple(look.end for look in result.looks),
                (DayCorrelation("gate", result.days, result.day_correlation),),
            )
        )
    return passed


def anytime_chance(
    alpha: float, gain_by_error: float, days: Sequence[int], draws: int, precision: float
) -> list[float]:
    """The same chance by each look, for an anytime-valid t.

    Wang and Ramdas 2023, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance": a
    Gaussian mixture over the gain in units of the daily spread, of the given precision in days. One-sided: the mixture
    of positive gains has at most twice the value.
    """
    random = np.random.default_rng(0)
    daily = gain_by_error + random.standard_normal((draws, max(days)))
    passed, shares = np.zeros(draws, bool), []
    for n in days:
        t = daily[:, :n].mean(axis=1) / (daily[:, :n].std(axis=1, ddof=1) / np.sqrt(n))
        small = precision / (n + precision)
        e = np.sqrt(small) * ((1 + t**2 / (n - 1)) / (1 + small * t**2 / (n - 1))) ** (n / 2)
        passed |= (t > 0) & (2 * e >= 1 / alpha)
        shares.append(float(passed.mean()))
    return shares


def interval(share: float, trials: int) -> str:
    """95 % (Wilson 1927, J. American Statistical Association 22:209-212)."""
    found = stats.binomtest(round(share * trials), trials).proportion_ci(0.95, "wilson")
    return f"{100 * share:.2f} % ({100 * found.low:.2f} – {100 * found.high:.2f})"


def life_worlds() -> list[World]:
    days = [(0.0, 0.0), (0.01, 0.0), (0.01, 0.3), (0.02, 0.0), (0.02, 0.3)]
    base = [World("better", (0.0,)), World("not_worse by 1 point", (-0.01,), limit=-0.01)]
    worlds = [replace(world, spread=spread, lag=lag) for world in base for spread, lag in days]
    worlds += [replace(base[0], spread=spread, lag=0.15) for spread in (0.01, 0.02)]
    worlds += [
        replace(base[0], name="better, holdout only", spread=spread, lag=lag, accumulates=False)
        for spread, lag in ((0.0, 0.0), (0.01, 0.3), (0.02, 0.0), (0.02, 0.3))
    ]
    worlds += [
        replace(base[0], name="better, days and entities", spread=spread, lag=lag, entities=True)
        for spread, lag in ((0.0, 0.0), (0.01, 0.3), (0.02, 0.3))
    ]
    return worlds


def rate_worlds() -> list[World]:
    mixed = (0.01, 0.01, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, -0.01, -0.01)
    nearly_all_bad = (0.01, *[0.0] * 9)
    worlds = []
    for name, gains in (("3 of 10 better", mixed), ("1 of 10 better", nearly_all_bad), ("none better", (0.0,))):
        for spread, lag in ((0.01, 0.0), (0.01, 0.3), (0.02, 0.3)):
            for guarantee in ("rate", "lifetime"):
                worlds.append(World(name, gains, spread=spread, lag=lag, guarantee=guarantee))  # type: ignore[arg-type]
    return worlds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--retrains", type=int, default=100)
    parser.add_argument("--draws", type=int, default=10_000, help="candidates per cell of the table of power")
    parser.add_argument("--check-histories", type=int, default=200, help="histories by rows")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES], help="only these")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    work: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "lives": lambda: show_lives(arguments.histories, arguments.retrains, console),
        "rates": lambda: show_rates(arguments.histories, console),
        "power": lambda: show_power(arguments.draws, console),
        "anytime": lambda: show_anytime(arguments.draws, console),
        "rows": lambda: check_full_rows(arguments.check_histories, console),
    }
    figures = {name: work[name]() for name in arguments.tables}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def timed(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    started = time.monotonic()
    found = work()
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return found


def show_lives(histories: int, retrains: int, console: Console) -> list[dict[str, Any]]:
    title = f"Of {histories:,} histories of {retrains} comparisons: those that ever promote what falls short"
    table, figures = Table(title=title), []
    for name in ("gate", "spread of days", "lag", *RULES):
        table.add_column(name)
    for number, world in enumerate(life_worlds()):
        label = f"{world.name}, spread {world.spread}, lag {world.lag}"
        found = timed(label, lambda world=world, number=number: live(world, retrains, histories, number))  # type: ignore[misc]
        shares = found["ever"]
        cells = [interval(shares[0], histories), *(f"{100 * share:.1f} %" for share in shares[1:])]
        table.add_row(world.name, str(world.spread), str(world.lag), *cells)
        figures.append({"world": label, **found})
    console.print(table)
    return figures


def show_rates(histories: int, console: Console) -> list[dict[str, Any]]:
    table = Table(title=f"Two years of weekly retrains, {histories:,} histories; means of a history")
    table.add_column("candidates")
    for name in ("spread", "lag", "guarantee", "comparisons", "better promoted", "others promoted", "rate", "ever"):
        table.add_column(name)
    figures = []
    for number, world in enumerate(rate_worlds()):
        label = f"{world.name}, spread {world.spread}, lag {world.lag}, {world.guarantee}"
        seed = 100 + number // 2
        found = timed(label, lambda world=world, seed=seed: live(world, 52, histories, seed, weeks=104))  # type: ignore[misc]
        table.add_row(
            world.name,
            str(world.spread),
            str(world.lag),
            world.guarantee,
            f"{found['comparisons']:.1f}",
            f"{found['good']:.2f}",
            f"{found['wrong']:.3f}",
            f"{100 * found['rate']:.2f} %",
            interval(found["ever"][0], histories),
        )
        figures.append({"world": label, **found})
    console.print(table)
    return figures


def show_power(draws: int, console: Console) -> list[dict[str, Any]]:
    table = Table(title=f"Chance that a candidate better by 1 point is promoted, {draws:,} candidates per cell")
    for name in ("rows a week", "spread", "comparison", "alpha", "14", "21", "28", "35", "42", "49 days", "one t test"):
        table.add_column(name)
    figures = []
    cells: list[tuple[int, int, Guarantee]] = [
        (0, 0, "lifetime"),
        (9, 0, "lifetime"),
        (49, 0, "lifetime"),
        (9, 2, "rate"),
        (49, 10, "rate"),
    ]
    for rows in (2_000, 5_000, 20_000, 70_000):
        for spread in (0.0, 0.01, 0.02):
            for number, promotions, guarantee in cells:
                world = World("", (0.01,), spread=spread, rows=rows, guarantee=guarantee)
                found = power(world, number, promotions, draws)
                looks = [f"{100 * share:.0f} %" for share in found["looks"]]
                names = f"{number + 1}th, {promotions} promoted, {guarantee}"
                one = f"{100 * found['one_test']:.0f} % ({found['last']} days)"
                table.add_row(
                    f"{rows:,}", str(spread), names, f"{found['alpha']:.2g}", *looks, *[""] * (6 - len(looks)), one
                )
                figures.append({"rows": rows, "spread": spread, "comparison": names, **found})
    console.print(table)
    return figures


def show_anytime(draws: int, console: Console) -> list[dict[str, Any]]:
    table = Table(title="Independent days: one t test, group-sequential t, and anytime-valid t at its best precision")
    for name in ("alpha", "days", "one t test", "group-sequential", "anytime-valid"):
        table.add_column(name)
    figures = []
    noise = np.sqrt(0.01**2 + noise_of_a_row() ** 2 / (ROWS_A_WEEK / WEEK))
    for number in (0, 9, 49):
        alpha = alpha_after(number, 0, "lifetime")
        last = max_days(alpha, HOLDOUT_DAYS)
        looks = tuple(range(HOLDOUT_DAYS, last + 1, WEEK))
        random = np.random.default_rng(number)
        daily = 0.01 / noise + random.standard_normal((draws, last))
        levels, passed = look_levels(alpha, looks, last), np.zeros(draws, bool)
        for days, level in zip(looks, levels, strict=True):
            t = daily[:, :days].mean(axis=1) / (daily[:, :days].std(axis=1, ddof=1) / np.sqrt(days))
            passed |= special.stdtr(days - 1, -t) <= level
        one = float((special.stdtr(last - 1, -t) <= alpha).mean())
        anytime = max(anytime_chance(alpha, 0.01 / noise, looks, draws, c)[-1] for c in (1.0, 2.0, 4.0, 8.0, 16.0))
        table.add_row(f"{alpha:.2g}", str(last), *(f"{100 * share:.0f} %" for share in (one, passed.mean(), anytime)))
        figures.append({"alpha": alpha, "days": last, "one": one, "groups": float(passed.mean()), "anytime": anytime})
    console.print(table)
    return figures


def check_full_rows(histories: int, console: Console) -> list[dict[str, Any]]:
    """Draw rows, 2,100 a week, and the gains of days, for the same world: the shares of comparisons that passed."""
    table, figures = Table(title=f"The same by rows and by days: {histories} histories of 5 comparisons"), []
    for name in ("better by", "spread", "lag", "passed, by rows", "passed, by days"):
        table.add_column(name)
    for gain, spread, lag in ((0.0, 0.03, 0.3), (0.02, 0.02, 0.0), (0.03, 0.02, 0.3)):
        world = World("", (gain,), spread=spread, lag=lag, rows=2_100)
        rows = float(np.mean([full_rows(world, 5, seed) for seed in range(histories)]))
        found = live(world, 5, 10_000, 7)
        days = (found["good"] + found["wrong"]) / 5
        table.add_row(str(gain), str(spread), str(lag), interval(rows, 5 * histories), f"{100 * days:.2f} %")
        figures.append({"gain": gain, "spread": spread, "lag": lag, "rows": rows, "days": days})
    console.print(table)
    return figures


if __name__ == "__main__":
    main()
