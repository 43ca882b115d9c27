"""How far a histogram is from that of the reference.

These are effect sizes, no p-values: with a million rows, any difference has one of nearly 0, whether or not it matters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from evergreen.monitoring.histograms import Counts

FloatValues = NDArray[np.float64]

_PSEUDO_ROWS = 0.5  # a bin, so that an empty one gives a finite PSI: as many as Jeffreys' prior of a multinomial has
_CONSTANT_SPREAD = 0.05  # of the largest entropy, so that a constant has a logarithm
_MIN_EXPECTED_ROWS = 5  # in a bin, for the distribution of χ² to be near (Cochran 1954)


def population_stability_index(counts: Counts, reference: Counts) -> FloatValues:
    """Return the PSI, Σ (p − q) ln(p / q) over bins, of histograms with the same bins; NaN where one is empty.

    It is the symmetric divergence of Jeffreys (1946), J = KL(p‖q) + KL(q‖p). Banks read 0.1 as a shift to look at and
    0.25 as a major one (Siddiqi, Credit Risk Scorecards, 2006). The pseudo-rows of `counts` are distributed as the
    reference: so a bin that is empty in both adds nothing, however few rows `counts` has.

    Args:
        counts: of shape (…, bins).
        reference: of shape (bins,).
    """
    q = (reference + _PSEUDO_ROWS) / (reference.sum() + _PSEUDO_ROWS * len(reference))
    pseudo_rows = _PSEUDO_ROWS * len(reference)
    p = (counts + pseudo_rows * q) / (counts.sum(axis=-1, keepdims=True) + pseudo_rows)
    index = ((p - q) * np.log(p / q)).sum(axis=-1)
    return np.where((counts.sum(axis=-1) > 0) & (reference.sum() > 0), index, np.nan)


def root_psi(counts: Counts, reference: Counts, usual_rows: float) -> tuple[FloatValues, FloatValues]:
    """Return √PSI of days without what their number of rows explains, and its variance by that number alone.

    Of rows that are drawn from the reference, the PSI is that of (1/n + 1/N) χ² with one degree of freedom less than
    there are bins (Yurdakul, Statistical Properties of Population Stability Index, 2018): its mean depends on the
    number n of rows. So it is subtracted. What is left has either sign, and so has its root: thus it is 0 in the mean,
    whatever n.

    Both are of shape (days,), and NaN for days with less than five rows a bin.

    Args:
        counts: of shape (days, bins).
        reference: of shape (bins,).
        usual_rows: of a day. Bins in which these let expect less than five rows are taken together.
    """
    is_rare = reference * usual_rows < _MIN_EXPECTED_ROWS * reference.sum()
    counts = np.hstack([counts[:, ~is_rare], counts[:, is_rare].sum(axis=1, keepdims=True)])
    reference = np.append(reference[~is_rare], reference[is_rare].sum())
    rows, bins = counts.sum(axis=1), int((reference > 0).sum())
    scale = 1 / np.maximum(rows, 1) + 1 / max(reference.sum(), 1)
    excess = population_stability_index(counts, reference) - (bins - 1) * scale
    excess[rows < _MIN_EXPECTED_ROWS * bins] = np.nan
    # The mean square of the root is the mean of |excess|, which the standard deviation of χ² bounds.
    variances = np.where(np.isnan(excess), np.nan, np.sqrt(2 * (bins - 1)) * scale)
    return np.sign(excess) * np.sqrt(np.abs(excess)), variances


def mean_rank(counts: Counts, reference: Counts) -> FloatValues:
    """Return the mean rank of the rows of `counts` in the distribution of the reference, from 0 to 1; NaN without rows.

    The *mean ridit* of Bross (1958): 0.5 if both are alike, and the chance that a row is above one of the reference,
    ties counted half. A value far away moves it no more than the largest of the reference. Shapes as above.
    """
    rows = counts.sum(axis=-1)
    return np.where(rows > 0, counts @ _ridits(reference) / np.maximum(rows, 1), np.nan)


def rank_variance(reference: Counts) -> float:
    """Return the variance of the rank of one row of the reference; at most 1/12."""
    q = reference / max(reference.sum(), 1)
    return float(q @ (_ridits(reference) - 0.5) ** 2)


def log_spread(counts: Counts, reference: Counts) -> tuple[FloatValues, FloatValues]:
    """Return how much the rows of each day differ from one another, and its variance by their number alone.

    That is ln(H / ln(bins) + 0.05), of the entropy H of a day's own histogram: wherever its values are, and 0 or so of
    a day that has all bins of the reference alike, −3 of a constant. The entropy of few rows is smaller than that of
    what they are drawn from; Grassberger's estimator (2003, arXiv:physics/0307138) has hardly any of that bias. The
    variance is that of Basharin (1959) to the second order, of rows that are drawn from the reference.

    Both are of shape (days,), and NaN for days with fewer rows than there are bins.

    Args:
        counts: of shape (days, bins).
        reference: of shape (bins,).
    """
    rows, bins = counts.sum(axis=1), counts.shape[1]
    size, occupied = np.maximum(rows, 1), np.maximum(counts, 1)
    signs = np.where(occupied % 2, -1.0, 1.0)
    terms = special.digamma(occupied) + signs / 2 * (
        special.digamma((occupied + 1) / 2) - special.digamma(occupied / 2)
    )
    entropy = np.maximum(np.log(size) - (counts * terms).sum(axis=1) / size, 0.0)
    entropy[(counts > 0).sum(axis=1) <= 1] = 0.0
    spread = np.log(entropy / np.log(bins) + _CONSTANT_SPREAD)
    q = reference / max(reference.sum(), 1)
    surprise = -np.log(np.where(q > 0, q, 1.0))
    usual = float(q @ surprise)
    entropy_variance = float(q @ (surprise - usual) ** 2) / size + ((q > 0).sum() - 1) / (2 * size**2)
    variances = entropy_variance / (usual + _CONSTANT_SPREAD * np.log(bins)) ** 2
    is_short = rows < bins
    return np.where(is_short, np.nan, spread), np.where(is_short, np.nan, variances)


def _ridits(reference: Counts) -> FloatValues:
    q = reference / max(reference.sum(), 1)
    ridits: FloatValues = np.cumsum(q) - q / 2
    return ridits
