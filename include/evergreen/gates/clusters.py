"""Which rows may differ together: days with their weather, entities with their habits.

Rows of one day are no independent evidence: on a day of storms all of them are easy, or hard, for one of two models.
So the unit of every interval and test is the cluster: rows of different clusters are independent, rows of one cluster
may be anything (Cameron and Miller 2015, Journal of Human Resources 50:317-372).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.evidence import Evidence, MissingEvidence
from evergreen.gates.metrics import FloatArray
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import DAY_CLUSTER, MIN_CLUSTERS, ORIGIN_CLUSTER, TARGET_CLUSTER

_DAYS = (DAY_CLUSTER, TARGET_CLUSTER, ORIGIN_CLUSTER)

HOLDOUT_ADVICE = (", so raise holdout", ", so judge more rows, or take a larger holdout")
"""How the reason of too few days, and of too few clusters of another kind, ends: by what to do about it."""

ClusterCodes = NDArray[np.intp]
"""(n,) the number of each row's cluster, from 0 on."""


class TooFewClustersError(NotComputedError):
    """The rows are of too few clusters to estimate an error."""


class ClusteredVariance(NamedTuple):
    """The variance of an estimate by the spread between clusters, and its degrees of freedom.

    `changes` is what each cluster changes of the estimate (k,), in the clusters' order, up to a factor; empty where it
    is not known.
    """

    variance: float
    degrees_of_freedom: float
    changes: FloatArray = np.empty(0)


class RowVariance(NamedTuple):
    """The variance of an estimate by all ways of clusters, and its degrees of freedom; `by_days` is that of days."""

    variance: float
    degrees_of_freedom: float
    by_days: ClusteredVariance | None


class ClusterCounts(ABC):
    """How many clusters rows are of, in one way to three."""

    names: tuple[str, ...]

    @property
    @abstractmethod
    def counts(self) -> tuple[int, ...]:
        """The number of clusters by each of `names`."""

    @property
    def days(self) -> int | None:
        """Return the number of days, or None if they are no clusters."""
        return dict(zip(self.names, self.counts, strict=True)).get(DAY_CLUSTER)

    def describe(self) -> str:
        """Return their numbers in words, such as "14 days" or "14 days and 3,120 values of plane"."""
        return " and ".join(count_clusters(name, count) for name, count in zip(self.names, self.counts, strict=True))

    def combine_ways(
        self, ways: Sequence[ClusteredVariance], pairs: Callable[[], Iterable[ClusteredVariance]] | None
    ) -> RowVariance:
        """Return the variance of an estimate from that by each way of clusters, and by `pairs` of the first and others.

        For two ways: the sum of both, less the variance by pairs, which both contain (Cameron, Gelbach and Miller 2011,
        Journal of Business & Economic Statistics 29:238-249), but never less than by either way alone, and the smaller
        degrees of freedom (MacKinnon, Nielsen and Webb 2024, "Jackknife inference with two-way clustering"). For three,
        what the second and the third have in common stays in twice, unless the first has it too: as without `pairs`,
        the variance is larger then, and the bounds are on the safe side.

        Raises:
            TooFewClustersError: the reason says how many would do.
        """
        if not ways:
            raise TooFewClustersError("it is not known which rows may differ together")
        if faults := list(filter(None, map(_count_fault, self.names, self.counts, ways))):
            raise TooFewClustersError(*faults)
        by_days = dict(zip(self.names, ways, strict=True)).get(DAY_CLUSTER)
        if len(ways) == 1:
            return RowVariance(ways[0].variance, ways[0].degrees_of_freedom, by_days)
        variances = [way.variance for way in ways]
        shared = sum(pair.variance for pair in pairs()) if pairs else 0.0
        freedom = min(way.degrees_of_freedom for way in ways)
        return RowVariance(max(sum(variances) - shared, *variances), freedom, by_days)


@dataclass(frozen=True, eq=False)
class RowClusters(ClusterCounts):
    """The clusters of rows (n,), in one way to three: `codes` of each of `names`."""

    names: tuple[str, ...]
    codes: tuple[ClusterCodes, ...]

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> RowClusters:
        """Number the clusters of each column (n,) in the order of their names."""
        codes = (
            np.unique(np.asarray(values, dtype=str), return_inverse=True)[1].ravel() for values in columns.values()
        )
        return cls(tuple(columns), tuple(codes))

    def take(self, rows: NDArray[np.intp]) -> RowClusters:
        """Return the clusters of some of the rows, or of all in another order."""
        return RowClusters(self.names, tuple(_renumber(codes[rows]) for codes in self.codes))

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(int(codes.max()) + 1 if codes.size else 0 for codes in self.codes)

    def variance(
        self, one_way: Callable[[ClusterCodes], ClusteredVariance], *, subtract_pairs: bool = True
    ) -> RowVariance:
        """Return the variance of an estimate whose variance by one way of clusters is `one_way`, as `combine_ways`.

        Without `subtract_pairs` it is larger, so the bounds are on the safe side.
        """
        ways = [one_way(codes) for codes in self.codes]

        def pairs() -> Iterator[ClusteredVariance]:
            for codes, count in zip(self.codes[1:], self.counts[1:], strict=True):
                if np.array_equal(codes, self.codes[0]):  # such as those of a single horizon
                    yield ways[0]
                elif subtract_pairs:
                    yield one_way(_renumber(self.codes[0] * count + codes))

        return self.combine_ways(ways, pairs)


NO_CLUSTERS = RowClusters((), ())
"""Of rows of which it is not known which may differ together."""


def parse_clusters(evidence: Evidence, rows: int) -> tuple[RowClusters, list[str]]:
    """Return the clusters of the evidence, and all of their faults. With a fault there are none."""
    columns, faults = cluster_columns(evidence)
    if faults := faults or list(filter(None, (_column_fault(name, values, rows) for name, values in columns.items()))):
        return NO_CLUSTERS, faults
    return RowClusters.from_columns(columns), []


def cluster_columns(evidence: Evidence) -> tuple[Mapping[str, Any], list[str]]:
    """Return the columns of the evidence that name clusters, days first, and what is wrong with their number."""
    columns = evidence.clusters if isinstance(evidence.clusters, Mapping) else {}
    if not columns:
        fault = "the evidence does not say which rows may differ together: give its `clusters`, such as each row's day"
        return {}, [fault]
    if len(columns) > 3:
        return {}, [f"rows have {len(columns)} kinds of clusters, at most three are possible"]
    return {name: columns[name] for name in sorted(columns, key=lambda name: (name != DAY_CLUSTER, name))}, []


def _column_fault(name: str, values: Any, rows: int) -> str:
    if isinstance(values, MissingEvidence):
        return missing_cluster_fault(name, values)
    if isinstance(values, str) or not hasattr(values, "__len__"):
        return f"the clusters by {name} are not one row of names"
    if rows and len(values) != rows:
        return f"there are {len(values):,} clusters by {name} for {rows:,} labels"
    return unnamed_cluster_fault(name, sum(not isinstance(value, str) for value in values), rows)


def missing_cluster_fault(name: str, missing: MissingEvidence) -> str:
    """Return the fault of a column of clusters that could not be made."""
    return f"the clusters by {name} are not known: {missing.problem}"


def unnamed_cluster_fault(name: str, unnamed: int, rows: int) -> str:
    """Return the fault of a column of clusters that does not name all; empty if it does."""
    if not unnamed:
        return ""
    return f"{unnamed:,} of {rows:,} rows have no name of {name}: fill the column, or take another for `clusters`"


def _count_fault(name: str, count: int, way: ClusteredVariance) -> str:
    """Return why the clusters are too few, and how many would do; empty if there are enough.

    Clusters of unequal size count less: only as many as equal ones with the same degrees of freedom.
    """
    effective = way.degrees_of_freedom + 1
    if effective >= MIN_CLUSTERS - 1e-9:
        return ""
    enough = MIN_CLUSTERS if count < 2 else max(MIN_CLUSTERS, ceil(MIN_CLUSTERS * count / effective - 1e-9))
    weight = f", which weigh like {effective:.1f} of equal size," if effective < count - 0.05 else ""
    verb = "is" if count == 1 else "are"
    fix = HOLDOUT_ADVICE[0] if name in _DAYS else HOLDOUT_ADVICE[1]
    text = f"{count_clusters(name, count)}{weight} {verb} too few to know the error of the gain"
    return f"{text}: about {enough:,} would do{fix}"


def count_clusters(name: str, count: int) -> str:
    """Return the number of clusters in words: "14 days", "1 value of plane"."""
    if name in _DAYS:
        return f"{count:,} {name}{'' if count == 1 else 's'}"
    return f"{count:,} value{'' if count == 1 else 's'} of {name}"


def degrees_of_freedom(weight: FloatArray) -> float:
    """Return those of a variance by clusters that weigh (k,): k - 1 if all weigh the same.

    Of Satterthwaite (1946, Biometrics Bulletin 2:110-114), where rows of a cluster share all that differs between
    clusters: so the effective number of clusters is that of Carter, Schnepel and Steigerwald (2017, Review of Economics
    and Statistics 99:698-709). With independent rows there are more; then bounds are wider than they have to be.
    """
    present = weight[weight > 0]
    if present.size < 2:
        return 0.0
    shares = (present / present.max()) ** 2
    return float(shares.sum() ** 2 / (shares**2).sum()) * (present.size - 1) / present.size


def _renumber(codes: ClusterCodes) -> ClusterCodes:
    return np.unique(codes, return_inverse=True)[1].ravel()
