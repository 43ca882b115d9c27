"""Scores and labels to the few hundred points that a plot shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from evergreen.gates import validation
from evergreen.gates.metrics import Floats, by_rank


@dataclass(frozen=True, eq=False)
class Scored:
    """What one model said of rows whose truth is known; every number is finite."""

    whose: str
    label: Floats
    score: Floats


@dataclass(frozen=True, eq=False)
class Roc:
    """`area` is of all rows; (`x`, `y`), false and true positive rate, of a few of them."""

    x: Floats
    y: Floats
    area: float


@dataclass(frozen=True)
class Bin:
    """Rows whose predictions are neighbours: their mean prediction, and what the labels were.

    `middle` is the mean label; `low` and `high` its 95 % bounds for classes, the 10 % and 90 % quantiles of the
    labels for amounts.
    """

    rows: int
    predicted: float
    middle: float
    low: float
    high: float


def read(values: object, what: str) -> tuple[Floats, str]:
    """(n,) floats, or none and the problem in words."""
    array = validation.column(values)
    if array is None:
        return np.empty(0), f"the {what} are not one row of numbers"
    return array, "" if array.size else f"there are no {what}"


def finite(values: object, what: str) -> tuple[Floats, str]:
    """The finite ones of them, and what was left out."""
    array, problem = read(values, what)
    kept = array[_usable(array)]
    if lost := array.size - kept.size:
        problem = f"{lost:,} of {array.size:,} {what} are NaN or infinite"
    return kept, problem


def scored(whose: str, label: object, score: object, classes: bool) -> tuple[Scored | None, str]:
    """Rows with a label (of `classes`: 0 or 1) and a score, and what is wrong with the others; None without any."""
    truth, lost = read(label, "labels")
    said, problem = read(score, f"{whose}'s scores")
    if lost or problem:
        return None, lost or problem
    if truth.size != said.size:
        return None, f"the {whose} has {said.size:,} scores for {truth.size:,} labels"
    known = np.isin(truth, (0, 1)) if classes else _usable(truth)
    kept = known & _usable(said)
    problems = []
    if strange := int(truth.size - known.sum()):
        wanted = "neither 0 nor 1" if classes else "NaN or infinite"
        problems.append(f"{strange:,} of {truth.size:,} labels are {wanted}")
    if strange := int(said.size - _usable(said).sum()):
        problems.append(f"{strange:,} of {said.size:,} scores of the {whose} are NaN or infinite")
    found = Scored(whose, truth[kept], said[kept]) if kept.any() else None
    return found, " and ".join(problems)


def _usable(values: Floats) -> NDArray[np.bool_]:
    # Axes cannot be drawn over numbers whose difference overflows.
    return np.isfinite(values) & (np.abs(values) < 1e100)


def roc(of: Scored, points: int = 512) -> Roc | None:
    """The curve, with at most twice `points` of its corners; None when there is only one class.

    Corners are taken at equal steps of x + y, on either side of each. Between two of them that are not neighbours
    the curve rises by at most d = 2 / (points - 1) and stays in their rectangle: at most d² / 8 of area is lost,
    and over all of them 1 / (2 · (points - 1)), here less than 0.001.
    """
    positive = of.label == 1
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-of.score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(of.score[order])), order.size - 1)  # of rows with equal scores
    hits = np.cumsum(positive[order])[last]
    y = np.concatenate([[0.0], hits / hits[-1]])
    misses = last + 1 - hits
    x = np.concatenate([[0.0], misses / misses[-1]])
    area = float(np.trapezoid(y, x))
    wanted = np.linspace(0, 2, points)
    after = np.searchsorted(x + y, wanted, side="left").clip(1, x.size - 1)
    chosen = np.unique(np.concatenate([after - 1, after, [x.size - 1]]))
    return Roc(x[chosen], y[chosen], area)


def bins(of: Scored, number: int = 10) -> list[Bin]:
    """Rows of class 0 and 1 by prediction, equally many in a bin, but equal predictions together.

    Bounds: Wilson 1927, Journal of the American Statistical Association 22:209-212.
    """
    made = []
    for predicted, label in _by_rank(of, number):
        hits = int((label == 1).sum())
        bounds = binomtest(hits, label.size).proportion_ci(0.95, method="wilson")
        made.append(
            Bin(label.size, float(predicted.mean()), hits / label.size, float(bounds.low), float(bounds.high))
        )
    return made


def amount_bins(of: Scored, number: int = 20) -> list[Bin]:
    """Rows of amounts by prediction, as `bins`."""
    made = []
    for predicted, label in _by_rank(of, number):
        low, high = np.quantile(label, [0.1, 0.9])
        made.append(Bin(label.size, float(predicted.mean()), float(label.mean()), float(low), float(high)))
    return made


def _by_rank(of: Scored, number: int) -> list[tuple[Floats, Floats]]:
    place = by_rank(of.score, number)
    return [(of.score[place == bin_], of.label[place == bin_]) for bin_ in np.unique(place)]


def sample(of: Scored, rows: int = 400) -> tuple[Floats, Floats]:
    """Prediction and label of rows spread evenly over the predictions, whatever the order they come in."""
    order = np.lexsort((of.label, of.score))
    chosen = order[np.linspace(0, order.size - 1, min(rows, order.size)).astype(int)]
    return of.score[chosen], of.label[chosen]


def edges(*columns: Floats, number: int = 40, tails: float = 0.0) -> Floats:
    """Of bars of equal width over all values, or over all but a share `tails` at either end."""
    values = np.concatenate(columns)
    low, high = np.quantile(values, [tails, 1 - tails])
    made: Floats = np.histogram_bin_edges(values, bins=number, range=(low, high))
    return made


def shares(values: Floats, between: Floats) -> Floats:
    """Per bar, the share of all `values` that lies in it, in %."""
    counts, _ = np.histogram(values, between)
    return 100 * counts / max(values.size, 1)


def distribution(values: Floats, points: int = 300) -> tuple[Floats, Floats]:
    """The empirical distribution function: values, and the share of rows at or below each, in %."""
    ordered = np.sort(values)
    share = np.arange(1, ordered.size + 1) / ordered.size
    chosen = np.unique(np.linspace(0, ordered.size - 1, min(points, ordered.size)).astype(int))
    return ordered[chosen], 100 * share[chosen]
