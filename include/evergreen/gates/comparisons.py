"""The gain of one scorer over another on the same rows, with confidence bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import special

from evergreen.gates.metrics import FloatArray, Metric, compute_metric, resolve_metric, sort_rows
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import PairedComparisonGate, SignificanceTest

# With fewer, the spread over resamples does not measure the error: without any such row it is zero.
MIN_DIFFERING_ROWS = 30

# Numbers per array while resampling: 4 MiB each, whatever the number of rows (up to half a million).
_CHUNK_SIZE = 2**19


@dataclass(frozen=True)
class MetricGain:
    """The gain of one scorer over another, in the metric's own unit; positive is better.

    `low` and `high` are one-sided confidence bounds of the gain: each is wrong with a chance of at most alpha.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EstimatedGain:
    """A gain, its standard error, and the degrees of freedom of that error."""

    gain: float
    standard_error: float
    degrees_of_freedom: float


def check_differing_rows(gate: PairedComparisonGate, candidate: FloatArray, reference: FloatArray, pair: str) -> None:
    """Refuse a bootstrap over too few rows that differ; with a cut, rows that are put into different classes.

    Raises:
        NotComputedError: there are some, and too few. The message begins with `pair`.
    """
    if gate.chosen_test != "bootstrap" or np.array_equal(candidate, reference):
        return
    differing = candidate != reference if gate.cut is None else (candidate >= gate.cut) != (reference >= gate.cut)
    if (rows := int(np.count_nonzero(differing))) < MIN_DIFFERING_ROWS:
        text = f"{pair} differ in {rows:,} of {candidate.size:,} rows: too few to estimate the error of the gain"
        raise NotComputedError(f"{text}, at least {MIN_DIFFERING_ROWS} are needed")


def estimate_gain(
    gate: PairedComparisonGate,
    label: FloatArray,
    candidate: FloatArray,
    reference: FloatArray,
    alpha: float,
    test: SignificanceTest,
) -> MetricGain:
    """Estimate the gain of `candidate` over `reference`, (n,) each, by the metric of `gate`, in any order of rows.

    - `delong`, of auc: the standard error of DeLong et al. (see `delong`) times the quantile of Student's t.
    - `mcnemar`, of accuracy: exact (see `mcnemar`).
    - `bootstrap`, of any metric: the standard deviation over resamples of the paired rows, times the quantile of
      Student's t with n - 1 degrees of freedom (Efron and Tibshirani 1993, "An introduction to the bootstrap",
      chapters 6 and 12). Not a percentile of the resamples: an alpha of 10⁻⁵, which the hundredth comparison of a
      model's life may have, is less than one in 2,000. So the bounds assume that the gain is nearly normal, which
      holds for means over hundreds of rows.

    Equal scores for every row are a gain of 0 with bounds of 0.

    Raises:
        NotComputedError: the metric does not exist for these rows or for some resamples, or its error cannot be
            estimated.
    """
    if np.array_equal(candidate, reference):
        return MetricGain(0.0, 0.0, 0.0)
    if test == "delong":
        return _student_t_bounds(delong(label, candidate, reference), alpha, gate.scale.maximum)
    if test == "mcnemar":
        assert gate.cut is not None
        candidate_correct, reference_correct = ((score >= gate.cut) == (label == 1) for score in (candidate, reference))
        return mcnemar(candidate_correct, reference_correct, alpha, has_margin=gate.limit != 0)
    label, candidate, reference = sort_rows([label, candidate, reference])
    metric = resolve_metric(gate)
    sign = 1 if gate.scale.higher_is_better else -1
    difference = sign * (compute_metric(metric, label, candidate) - compute_metric(metric, label, reference))
    if not np.isfinite(difference):
        raise NotComputedError(f"{gate.metric} does not exist for both on these {label.size:,} rows")
    resampled = bootstrap_differences(metric, label, candidate, reference, gate.resamples)
    if undefined := int(np.count_nonzero(~np.isfinite(resampled))):
        rows = f"{label.size:,} rows"
        if gate.scale.label_type == "binary":
            rows += f", {int(min(label.sum(), label.size - label.sum())):,} of them of the rarer class,"
        text = f"{undefined:,} of {gate.resamples:,} resamples drew rows for which {gate.metric} does not exist"
        raise NotComputedError(f"{text}: {rows} are too few")
    error = float(resampled.std(ddof=1))
    if difference and not error:
        raise NotComputedError(f"every resample shows the same gain of {difference:g}: its error is not known")
    return _student_t_bounds(EstimatedGain(difference, error, label.size - 1), alpha, gate.scale.maximum)


def bootstrap_differences(
    metric: Metric, label: FloatArray, candidate: FloatArray, reference: FloatArray, resamples: int
) -> FloatArray:
    """Return the metric of `candidate` minus that of `reference` in each resample: (resamples,), from rows (n,).

    The paired bootstrap (Efron and Tibshirani 1993, "An introduction to the bootstrap", chapters 8 and 13):
    rows are drawn with replacement, the same for both scorers. NaN where the metric does not exist.
    """
    return np.concatenate(
        [
            metric(label, candidate, counts) - metric(label, reference, counts)
            for counts in draw_resample_counts(label.size, resamples, resampling_seed(label, candidate, reference))
        ]
    )


def draw_resample_counts(rows: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Yield how often each row is drawn in each resample, in chunks (k, rows) that add up to `resamples`."""
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_SIZE // rows)
    for start in range(0, resamples, chunk):
        k = min(chunk, resamples - start)
        cells = random.integers(rows, size=(k, rows))
        cells += rows * np.arange(k)[:, None]  # each resample counts in cells of its own
        yield np.bincount(cells.ravel(), minlength=k * rows).reshape(k, rows).astype(np.float64)


def resampling_seed(*columns: FloatArray) -> int:
    """Return a seed that depends on the evidence alone, so that judging again draws the same resamples."""
    digest = sha256()
    for column in columns:
        digest.update(column.astype("<f8").tobytes())
    return int.from_bytes(digest.digest(), "big")


def delong(label: FloatArray, candidate: FloatArray, reference: FloatArray) -> EstimatedGain:
    """Return the AUC of `candidate` minus that of `reference`, (n,) each, with the error of paired AUCs.

    A row's placement is the share of rows of the other class that it is correctly ordered with, ties half. The AUC is
    the mean placement of either class; the variance of a difference of AUCs is the sum, over the classes, of the
    variance of the differences of placements over the number of rows (DeLong, DeLong and Clarke-Pearson 1988,
    Biometrics 44:837-845). Placements come from midranks in O(n log n) (Sun and Xu 2014, IEEE Signal Processing
    Letters 21:1389-1393), here of a single sort per scorer. All sums are of whole numbers, so exact.

    The sum of two variances is estimated from few rows each: its degrees of freedom are those of Welch and
    Satterthwaite, as for placements in Brunner and Munzel 2000, Biometrical Journal 42:17-25. With many rows of both
    classes Student's t is the normal of the paper of 1988; with twenty of one class it is wider, which bounds at small
    alphas need.

    Raises:
        NotComputedError: fewer than two rows of a class; or the two differ, by the same amount in every row.
    """
    positive = label == 1
    positives = int(np.count_nonzero(positive))
    negatives = label.size - positives
    if min(positives, negatives) < 2:
        raise NotComputedError(f"{positives:,} rows of class 1 and {negatives:,} of class 0: AUC needs 2 of each")
    ahead = _doubled_placements(positive, candidate) - _doubled_placements(positive, reference)
    total, spread_positive = _total_and_spread(ahead[positive])
    _, spread_negative = _total_and_spread(ahead[~positive])
    pairs = positives * negatives
    # The spreads are of twice the placements, not divided by the rows of the other class.
    variances = (spread_positive / (4 * pairs**2 * (positives - 1)), spread_negative / (4 * pairs**2 * (negatives - 1)))
    variance = sum(variances)
    if not variance:
        if total:
            raise NotComputedError(f"all {positives:,} rows of class 1 gain the same: the error is not known")
        return EstimatedGain(0.0, 0.0, float(label.size - 2))
    freedom = variance**2 / (variances[0] ** 2 / (positives - 1) + variances[1] ** 2 / (negatives - 1))
    return EstimatedGain(total / (2 * pairs), sqrt(variance), freedom)


def mcnemar(
    candidate_correct: NDArray[np.bool_], reference_correct: NDArray[np.bool_], alpha: float, *, has_margin: bool
) -> MetricGain:
    """Return the candidate's share of correct rows minus the reference's, (n,) each; exact.

    Only rows in which exactly one of them is correct distinguish the two; equally good scorers win half of these each
    (McNemar 1947, Psychometrika 12:153-157). The share that the candidate wins has the bounds of Clopper and Pearson
    (1934, Biometrika 26:404-413), from the binomial distribution, not from a normal one.

    Without a margin only the sign of the gain matters, and the bounds are those of the share, times the part of rows
    that distinguish. So `low` is above 0 exactly when the exact one-sided binomial test rejects at `alpha`. With a
    margin that part matters too, and it is known from these rows only: a tenth of alpha goes to its own bound of
    Clopper and Pearson, and both together are wrong with a chance of at most `alpha` (Bonferroni).
    """
    rows = candidate_correct.size
    wins = int(np.count_nonzero(candidate_correct & ~reference_correct))
    losses = int(np.count_nonzero(reference_correct & ~candidate_correct))
    discordant = wins + losses
    if not discordant and not has_margin:
        return MetricGain(0.0, 0.0, 0.0)
    share_alpha, part_alpha = (0.9 * alpha, 0.1 * alpha) if has_margin else (alpha, 0.0)
    low = 2 * _clopper_pearson_lower_bound(wins, discordant, share_alpha) - 1
    high = 1 - 2 * _clopper_pearson_lower_bound(losses, discordant, share_alpha)
    min_part = max_part = discordant / rows
    if has_margin:  # the largest part widens a bound below 0, the smallest one above
        min_part = _clopper_pearson_lower_bound(discordant, rows, part_alpha)
        max_part = 1 - _clopper_pearson_lower_bound(rows - discordant, rows, part_alpha)
    return MetricGain(
        (wins - losses) / rows, low * (min_part if low > 0 else max_part), high * (max_part if high > 0 else min_part)
    )


def _clopper_pearson_lower_bound(hits: int, trials: int, alpha: float) -> float:
    """Return the lower bound of Clopper and Pearson for the chance of a hit. The upper one is 1 - that of misses."""
    return float(special.betaincinv(hits, trials - hits + 1, alpha)) if hits else 0.0


def _student_t_bounds(estimate: EstimatedGain, alpha: float, maximum: float) -> MetricGain:
    """Return the bounds, not beyond the possible differences between values from 0 to `maximum`."""
    width = 0.0
    if estimate.standard_error:
        width = -float(special.stdtrit(estimate.degrees_of_freedom, alpha)) * estimate.standard_error
    return MetricGain(estimate.gain, max(estimate.gain - width, -maximum), min(estimate.gain + width, maximum))


def _doubled_placements(positive: NDArray[np.bool_], score: FloatArray) -> NDArray[np.int64]:
    """Return, for each row, twice the number of rows of the other class that it is correctly ordered with.

    Rows of class 1 belong above those of class 0; a tie counts one.
    """
    order = score.argsort()
    ordered, is_one = score[order], positive[order]
    ones, zeros = np.flatnonzero(is_one), np.flatnonzero(~is_one)  # places in the order
    ahead = np.empty(score.size, dtype=np.int64)
    changes = ordered[1:] != ordered[:-1]
    if changes.all():
        ahead[order[ones]] = 2 * (ones - np.arange(ones.size))
        ahead[order[zeros]] = 2 * (ones.size + np.arange(zeros.size) - zeros)
        return ahead
    # Equal scores are a run, [start, end), and share the rows below: half at its start, half at its end.
    edges = np.concatenate(([0], np.flatnonzero(changes) + 1, [score.size]))
    one_below = np.searchsorted(ones, edges)
    twice_ones = np.repeat(one_below[:-1] + one_below[1:], np.diff(edges))
    twice_all = np.repeat(edges[:-1] + edges[1:], np.diff(edges))
    ahead[order] = np.where(is_one, twice_all - twice_ones, 2 * ones.size - twice_ones)
    return ahead


def _total_and_spread(numbers: NDArray[np.int64]) -> tuple[int, int]:
    """Return the sum of (m,) whole numbers, and m times the sum of squares about their mean; exact."""
    total = int(numbers.sum())
    peak = max(int(numbers.max()), -int(numbers.min()), 1)
    # The squares of a chunk add up within 64 bits; Python adds up the chunks.
    size = (2**63 - 1) // peak**2
    chunks = (numbers[start : start + size] for start in range(0, numbers.size, size))
    squares = sum(int(np.dot(chunk, chunk)) for chunk in chunks)
    return total, numbers.size * squares - total**2
