"""By how much one scorer beats another on the same rows, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import special

from evergreen.errors import EvergreenError
from evergreen.gates.bootstrap import bootstrap_differences
from evergreen.gates.metrics import FloatArray, compute_metric, resolve_metric
from evergreen.gates.validation import sort_rows
from evergreen.spec.gates import PairedComparisonGate, SignificanceTest


@dataclass(frozen=True)
class MetricGain:
    """Of one scorer over another, in the metric's own unit; positive is better.

    `low` and `high` are one-sided confidence bounds of the gain: each is wrong with a chance of at most the level.
    """

    value: float
    low: float
    high: float


class NotComparableError(EvergreenError):
    """These rows cannot tell how the two compare; the message is a sentence for people."""


def estimate_gain(
    gate: PairedComparisonGate,
    label: FloatArray,
    candidate: FloatArray,
    reference: FloatArray,
    alpha: float,
    test: SignificanceTest,
) -> MetricGain:
    """The gain of `one` over `other`, (n,) each, by the metric of `gate`; independent of the order of rows.

    - `delong`, of auc: the error of DeLong et al. (see `delong`) times the quantile of Student's t.
    - `mcnemar`, of accuracy: exact (see `mcnemar`).
    - `bootstrap`, of any metric: the standard deviation over resamples of the paired rows, times the quantile of
      Student's t with n - 1 degrees of freedom (Efron and Tibshirani 1993, "An introduction to the bootstrap",
      chapters 6 and 12). Not a percentile of the resamples: a level of 10⁻⁵, which the hundredth comparison of a
      model's life may have, is less than one of 2,000. The bounds so lean on the gain being nearly normal, which for
      means over hundreds of rows it is.

    The same score for every row is a gain of 0 with bounds of 0.

    Raises:
        NotComparable: the metric does not exist for these rows or for some resamples, or nothing can be said about
            the error.
    """
    if np.array_equal(candidate, reference):
        return MetricGain(0.0, 0.0, 0.0)
    if test == "delong":
        found = delong(label, candidate, reference)
        return _student_t_bounds(found.gain, found.standard_error, found.degrees_of_freedom, alpha, gate.scale.maximum)
    if test == "mcnemar":
        assert gate.cut is not None
        right = label == 1
        return mcnemar(
            (candidate >= gate.cut) == right,
            (reference >= gate.cut) == right,
            alpha,
            has_margin=gate.limit != 0,
        )
    label, candidate, reference = sort_rows([label, candidate, reference])
    metric = resolve_metric(gate)
    sign = 1 if gate.scale.higher_is_better else -1
    difference = sign * (compute_metric(metric, label, candidate) - compute_metric(metric, label, reference))
    if not np.isfinite(difference):
        raise NotComparableError(f"{gate.metric} does not exist for both on these {label.size:,} rows")
    resampled = bootstrap_differences(metric, label, candidate, reference, gate.resamples)
    if lost := int(np.count_nonzero(~np.isfinite(resampled))):
        text = f"{lost:,} of {gate.resamples:,} resamples drew rows for which {gate.metric} does not exist"
        raise NotComparableError(f"{text}: {label.size:,} rows, {_describe_rarer_class(gate, label)}, are too few")
    error = float(resampled.std(ddof=1))
    if difference and not error:
        raise NotComparableError(f"every resample shows the same gain of {difference:g}: its error cannot be told")
    return _student_t_bounds(difference, error, label.size - 1, alpha, gate.scale.maximum)


def _describe_rarer_class(gate: PairedComparisonGate, label: FloatArray) -> str:
    if gate.scale.label_type == "continuous":
        return "as they are"
    return f"{int(min(label.sum(), label.size - label.sum())):,} of them of the rarer class"


@dataclass(frozen=True)
class DeLongEstimate:
    """The gain in AUC, its standard error, and the degrees of freedom of that error."""

    gain: float
    standard_error: float
    degrees_of_freedom: float


def delong(label: FloatArray, candidate: FloatArray, reference: FloatArray) -> DeLongEstimate:
    """The AUC of `one` minus that of `other`, (n,) each, with the error of a difference between paired AUCs.

    A row's placement is the share of rows of the other class that it is rightly ordered with, ties half. The AUC is
    the mean placement of either class; the variance of a difference of AUCs is the sum, over the classes, of the
    variance of the differences of placements over the number of rows (DeLong, DeLong and Clarke-Pearson 1988,
    Biometrics 44:837-845). Placements come from midranks in O(n log n) (Sun and Xu 2014, IEEE Signal Processing
    Letters 21:1389-1393), here of a single sort per scorer. All sums are of whole numbers, so exact.

    A sum of two variances estimated from few rows each is no known variance: its degrees of freedom are those of
    Welch and Satterthwaite, as for placements in Brunner and Munzel 2000, Biometrical Journal 42:17-25. With many
    rows of both classes Student's t is the normal of the paper of 1988; with twenty of one class it is wider, which
    bounds at small levels need.

    Raises:
        NotComparable: fewer than two rows of a class; or the two differ and every row says so by the same amount.
    """
    positive = label == 1
    positives = int(np.count_nonzero(positive))
    negatives = label.size - positives
    if min(positives, negatives) < 2:
        raise NotComparableError(f"{positives:,} rows of class 1 and {negatives:,} of class 0: AUC needs 2 of each")
    ahead = _doubled_placements(positive, candidate) - _doubled_placements(positive, reference)
    won, spread_positive = _total_and_spread(ahead[positive])
    _, spread_negative = _total_and_spread(ahead[~positive])
    pairs = positives * negatives
    # The spreads are of twice the placements before they were divided by the rows of the other class.
    variances = (
        spread_positive / (4 * pairs**2 * (positives - 1)),
        spread_negative / (4 * pairs**2 * (negatives - 1)),
    )
    variance = sum(variances)
    if not variance:
        if won:
            raise NotComparableError(
                f"all {positives:,} rows of class 1 gain the same: the error cannot be told from them"
            )
        return DeLongEstimate(0.0, 0.0, float(label.size - 2))
    freedom = variance**2 / (variances[0] ** 2 / (positives - 1) + variances[1] ** 2 / (negatives - 1))
    return DeLongEstimate(won / (2 * pairs), sqrt(variance), freedom)


def mcnemar(
    candidate_correct: NDArray[np.bool_],
    reference_correct: NDArray[np.bool_],
    alpha: float,
    *,
    has_margin: bool,
) -> MetricGain:
    """The share of rows that `one` has right minus that of `other`, (n,) each of whether it was right; exact.

    Only rows that one has right and the other wrong tell the two apart; were they equally good, each would be
    right in half of them (McNemar 1947, Psychometrika 12:153-157). The share of those that `one` has right has the
    bounds of Clopper and Pearson (1934, Biometrika 26:404-413), from the binomial distribution, not from a normal one.

    Without a `margin` only the sign of the gain is asked for, and the bounds are those of the share, times the part
    of rows that tell. So `low` lies above 0 exactly when the exact one-sided binomial test rejects at `level`. With a
    margin that part matters too, and it is known from these rows only: a tenth of the level goes to its own bound of
    Clopper and Pearson, and both together are wrong with a chance of at most `level` (Bonferroni).
    """
    rows = candidate_correct.size
    wins, losses = (
        int(np.count_nonzero(candidate_correct & ~reference_correct)),
        int(np.count_nonzero(reference_correct & ~candidate_correct)),
    )
    telling = wins + losses
    if not telling and not has_margin:
        return MetricGain(0.0, 0.0, 0.0)
    # With a margin, how large the telling part may be widens a bound below 0, how small it may be one above.
    for_share, for_part = (0.9 * alpha, 0.1 * alpha) if has_margin else (alpha, None)
    least = 2 * _clopper_pearson_lower_bound(wins, telling, for_share) - 1
    most = 1 - 2 * _clopper_pearson_lower_bound(losses, telling, for_share)
    if for_part is None:
        smallest = largest = telling / rows
    else:
        smallest, largest = (
            _clopper_pearson_lower_bound(telling, rows, for_part),
            1 - _clopper_pearson_lower_bound(rows - telling, rows, for_part),
        )
    return MetricGain(
        (wins - losses) / rows,
        least * (smallest if least > 0 else largest),
        most * (largest if most > 0 else smallest),
    )


def _clopper_pearson_lower_bound(hits: int, trials: int, alpha: float) -> float:
    """The lower bound of Clopper and Pearson for a chance that hit so often. The upper one is 1 - that of misses."""
    return float(special.betaincinv(hits, trials - hits + 1, alpha)) if hits else 0.0


def _student_t_bounds(
    difference: float, standard_error: float, degrees_of_freedom: float, alpha: float, maximum: float
) -> MetricGain:
    """The bounds, not beyond what a difference between values from 0 to `largest` can be."""
    width = -float(special.stdtrit(degrees_of_freedom, alpha)) * standard_error if standard_error else 0.0
    return MetricGain(difference, max(difference - width, -maximum), min(difference + width, maximum))


def _doubled_placements(positive: NDArray[np.bool_], score: FloatArray) -> NDArray[np.int64]:
    """For each row, twice the number of rows of the other class that it is rightly ordered with; ties count one.

    Rows of class 1 should lie above those of class 0.
    """
    order = score.argsort()
    ordered, is_one = score[order], positive[order]
    ones, zeros = np.flatnonzero(is_one), np.flatnonzero(~is_one)  # places in the order
    ahead = np.empty(score.size, dtype=np.int64)
    new = ordered[1:] != ordered[:-1]
    if new.all():
        ahead[order[ones]] = 2 * (ones - np.arange(ones.size))
        ahead[order[zeros]] = 2 * (ones.size + np.arange(zeros.size) - zeros)
        return ahead
    # Equal scores make a run, [start, end), and share what lies below: half at its start, half at its end.
    edges = np.concatenate(([0], np.flatnonzero(new) + 1, [score.size]))
    one_below = np.searchsorted(ones, edges)
    twice_ones = np.repeat(one_below[:-1] + one_below[1:], np.diff(edges))
    twice_all = np.repeat(edges[:-1] + edges[1:], np.diff(edges))
    ahead[order] = np.where(is_one, twice_all - twice_ones, 2 * ones.size - twice_ones)
    return ahead


def _total_and_spread(numbers: NDArray[np.int64]) -> tuple[int, int]:
    """The sum of (m,) whole numbers, and m times the sum of squares about their mean; exact."""
    total = int(numbers.sum())
    peak = max(int(numbers.max()), -int(numbers.min()), 1)
    # So many squares are sure to add up within 64 bits; Python adds up the rest.
    at_once = (2**63 - 1) // peak**2
    squares = sum(int(np.dot(part, part)) for part in _chunks(numbers, at_once))
    return total, numbers.size * squares - total**2


def _chunks(numbers: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [numbers[start : start + size] for start in range(0, numbers.size, size)]
