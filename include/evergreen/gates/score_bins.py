"""Ranks of scores, for rows that are too many to sort: from counts in bins, with a bound of the error.

Edges are quantiles of an even sample of the scores. Each edge is a bin of its own, so equal scores that are frequent
are known as equal; between two edges there is an open bin, in which no order is known. A bin that holds many rows of
one score therefore costs nothing, and open bins are narrow where scores are dense.

What the order within open bins could change is added up from the counts themselves, so the bound holds for any scores,
also where the sample was a bad one. With 65,536 bins, open ones hold about a 65,536th of the rows each: an AUC is known
to within about 10⁻⁵.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.metrics import CALIBRATION_BINS, FloatArray
from evergreen.gates.verdict import NotComputedError

MAX_BINS = 65_536
SAMPLE_ROWS = 2**20

DECILES = 10
# Where so many rows are in one open bin, tenths cannot be told apart.
_MAX_OPEN_SHARE = 0.01

RowCounts = NDArray[np.int64]
"""Rows (bins,) in each bin, in order of scores; bins of an even number are open."""


class MetricValue(NamedTuple):
    """A metric, and by how much it may be wrong: by nothing, where rows are in memory."""

    value: float
    error: float = 0.0

    def describe_error(self) -> str:
        """Return the error for a sentence; empty if there is none."""
        return f" (known to within {self.error:.2g})" if self.error else ""


@dataclass(frozen=True, eq=False)
class ScoreBins:
    """Bins of scores: those at one of the `edges` (k,), which increase, and those between two of them."""

    edges: FloatArray

    @classmethod
    def from_sample(cls, sample: FloatArray, max_bins: int = MAX_BINS) -> ScoreBins:
        """Return bins whose edges are quantiles of the sample (n,), at most so many."""
        ordered = np.sort(sample)
        return cls(np.unique(ordered[np.linspace(0, ordered.size - 1, min(max_bins, ordered.size)).astype(np.intp)]))

    @property
    def count(self) -> int:
        return 2 * self.edges.size + 1

    def find(self, scores: FloatArray) -> NDArray[np.intp]:
        """Return the bin of each score (n,)."""
        following = np.searchsorted(self.edges, scores, side="left")
        is_edge = self.edges[np.minimum(following, self.edges.size - 1)] == scores
        return 2 * following + is_edge


def doubled_wins(positive: RowCounts, negative: RowCounts) -> int:
    """Return twice the number of pairs of rows of class 1 and 0 in which the first scores higher, ties half."""
    return int((positive * binned_placements(positive, negative)[1]).sum())


def binned_placements(positive: RowCounts, negative: RowCounts) -> NDArray[np.int64]:
    """Return twice the number of rows of the other class that a row of class 0, and one of class 1, is ordered with.

    In the right order, ties half; (2, bins), by the bin of the row.
    """
    above = positive.sum() - np.cumsum(positive)
    below = np.cumsum(negative) - negative
    return np.stack([2 * above + positive, 2 * below + negative])


def auc_error(positive: RowCounts, negative: RowCounts) -> float:
    """Return by how much an AUC from bins may be wrong: pairs in an open bin count half, and may count nothing or 1."""
    pairs = int((positive[::2] * negative[::2]).sum())
    return pairs / (2 * int(positive.sum()) * int(negative.sum()))


def binned_calibration_error(rows: RowCounts, gaps: FloatArray) -> MetricValue:
    """Return `metrics.calibration_error` from the rows, and the sum of label - score, in each bin.

    Rows of an open bin across two tenths are counted in the lower one: each changes the sums of both by at most 1.
    """
    total = int(rows.sum())
    first = np.cumsum(rows) - rows
    tenths, last_tenths = (ranks * CALIBRATION_BINS // total for ranks in (first, first + np.maximum(rows, 1) - 1))
    sums = np.bincount(np.minimum(tenths, CALIBRATION_BINS - 1), gaps, CALIBRATION_BINS)
    is_split = tenths != last_tenths
    is_split[1::2] = False  # equal scores share a tenth
    return MetricValue(float(np.abs(sums).sum()) / total, 2 * int(rows[is_split].sum()) / total)


def binned_stability_index(holdout: RowCounts, recent: RowCounts) -> MetricValue:
    """Return the population stability index from counts of both in the same bins; its error is that upwards.

    Tenths end where bins do. The true end of a tenth is in the same open bin, so that bin's rows may belong to the next
    one. The index is convex in the shares of both (it is a sum of relative entropies), so it is largest at a corner of
    what they may be.

    Raises:
        NotComputedError: an open bin has so many rows that tenths are not known.
    """
    check_open_bins(holdout)
    ends = np.cumsum(holdout)
    total = int(ends[-1])
    cuts = np.unique(np.searchsorted(ends, [-(-total * tenth // DECILES) for tenth in range(1, DECILES)]))
    cuts = cuts[ends[cuts] < total]  # nothing of the holdout lies above its largest
    at_cut = [np.where(cuts % 2 == 0, counts[cuts], 0) for counts in (holdout, recent)]
    inside, smallest, largest = [], [], []
    for counts, unsure in zip((holdout, recent), at_cut, strict=True):
        tenths = np.diff(np.cumsum(counts)[cuts], prepend=0, append=int(counts.sum()))
        inside.append(tenths)
        smallest.append(np.maximum(tenths - np.append(unsure, 0), 0))
        largest.append(tenths + np.insert(unsure, 0, 0))
    sizes = [int(counts.sum()) for counts in (holdout, recent)]
    value = float(_stability_terms(inside[0] / sizes[0], inside[1] / sizes[1], sizes).sum())
    corners = [
        _stability_terms(expected / sizes[0], actual / sizes[1], sizes)
        for expected, actual in product((smallest[0], largest[0]), (smallest[1], largest[1]))
    ]
    return MetricValue(value, max(float(np.max(corners, axis=0).sum()) - value, 0.0))


def _stability_terms(expected: FloatArray, actual: FloatArray, sizes: list[int]) -> FloatArray:
    """Return what each tenth adds; one without rows counts as half a row."""
    expected, actual = np.maximum(expected, 0.5 / sizes[0]), np.maximum(actual, 0.5 / sizes[1])
    return (actual - expected) * np.log(actual / expected)


def binned_distance(holdout: RowCounts, recent: RowCounts) -> MetricValue:
    """Return the largest distance between two distribution functions.

    Within an open bin it may be larger than at its ends: where all rows of one come before those of the other.
    """
    ends = [np.cumsum(counts) / int(counts.sum()) for counts in (holdout, recent)]
    starts = [np.insert(end[:-1], 0, 0.0) for end in ends]
    value = float(np.abs(ends[0] - ends[1]).max())
    largest = float(np.maximum(ends[0] - starts[1], ends[1] - starts[0])[::2].max())
    return MetricValue(value, max(largest - value, 0.0))


def check_open_bins(rows: RowCounts) -> None:
    """Refuse bins that a sample has placed badly; raises a NotComputedError."""
    share = float(rows[::2].max()) / int(rows.sum())
    if share > _MAX_OPEN_SHARE:
        raise NotComputedError(
            f"{100 * share:.2g} % of the scores lie between two neighbours in an even sample of them: their tenths are "
            "not known; raise EVERGREEN_EXACT_ROWS above the rows of the holdout"
        )
