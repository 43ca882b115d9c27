"""Rankings: rows are ordered within each query by their scores, and every metric is a mean of values by query.

So a query takes the place of a row: what is clustered, put into groups, counted and compared are queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.evidence import MissingEvidence
from evergreen.gates.judged_rows import LoadedRows
from evergreen.gates.metrics import FloatArray
from evergreen.spec.gates import MetricGate


def query_values(gate: MetricGate, label: FloatArray, score: FloatArray, queries: NDArray[np.intp]) -> FloatArray:
    """Return the metric of each query (q,), of rows (n,) with the number of their query.

    Labels are how relevant a row is, from 0 on. The row with the highest score is first; of equal scores the least
    relevant, since a tie puts nothing in order. NaN for a query without a relevant row, which no order can get right.

    - `ndcg`: Σ gain / log₂(1 + place) over the first k, as a share of the best order's; the gain is the label (Järvelin
      and Kekäläinen 2002, ACM Transactions on Information Systems 20:422-446).
    - `map`: the mean, over relevant rows, of the share of relevant rows up to there; those beyond k count 0. With k,
      of as many rows as could be found: at most k (Manning, Raghavan and Schütze 2008, "Introduction to information
      retrieval", section 8.4).
    - `mrr`: 1 / place of the first relevant row, 0 beyond k (Voorhees 1999, TREC-8, 77-82).
    - `recall_at_k`: the share of relevant rows that are among the first k.
    """
    count = int(queries.max()) + 1 if queries.size else 0
    order = np.lexsort((label, -score, queries))
    numbers, gain = queries[order], label[order]
    starts = np.searchsorted(numbers, np.arange(count))
    place = np.arange(numbers.size) - starts[numbers] + 1
    within = place <= (gate.k or np.inf)

    def add_up(values: FloatArray) -> FloatArray:
        return np.bincount(numbers, values, count).astype(np.float64)

    relevant = (gain > 0).astype(np.float64)
    total = add_up(relevant)
    if gate.metric == "ndcg":
        best = gain[np.lexsort((-gain, numbers))]
        discount = np.where(within, 1 / np.log2(1 + place), 0.0)
        value, highest = add_up(gain * discount), add_up(best * discount)
    elif gate.metric == "recall_at_k":
        value, highest = add_up(relevant * within), total
    elif gate.metric == "map":
        hits = np.cumsum(relevant)
        hits -= (hits - relevant)[starts][numbers]  # of the queries before
        value, highest = add_up(relevant * within * hits / place), np.minimum(total, gate.k or np.inf)
    else:
        first = np.full(count, np.inf)
        np.minimum.at(first, numbers[relevant > 0], place[relevant > 0])
        value, highest = np.where(first <= (gate.k or np.inf), 1 / first, 0.0), np.ones(count)
    return np.where(total > 0, value / np.where(highest > 0, highest, 1), np.nan)


@dataclass(eq=False)
class QueryRows(LoadedRows):
    """The queries of rows in memory: the score of a query is its value of the gate's metric."""

    rows: LoadedRows | None = None
    query_fault: str = ""

    @classmethod
    def from_rows(cls, rows: LoadedRows) -> QueryRows:
        """Return the queries of these rows."""
        evidence, size = rows.evidence, rows.size
        names = evidence.queries
        fault = _queries_fault(names, size)
        if fault or any(column is None or column.size != size for column in rows.score_columns.values()):
            nothing = dict.fromkeys(rows.score_columns)
            return cls(rows.gate, evidence, None, nothing, rows=rows, query_fault=fault)
        assert rows.label_column is not None  # a fault
        codes = np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].ravel()
        with np.errstate(all="ignore"):  # of invalid rows, which are faults
            values = {
                name: query_values(rows.gate, rows.label_column, column, codes)
                for name, column in rows.score_columns.items()
                if column is not None
            }
        first = np.unique(codes, return_index=True)[1]
        exists = np.isfinite(next(iter(values.values())))
        clusters, groups = (
            {name: _of_queries(column, codes, first, exists) for name, column in dict(columns or {}).items()}
            for columns in (evidence.clusters, evidence.groups)
        )
        return cls(
            rows.gate,
            replace(evidence, clusters=clusters, groups=groups),
            np.zeros(int(exists.sum())),
            {name: column[exists] for name, column in values.items()},
            rows=rows,
        )

    def faults(self, *references: str, allow_constant: bool = False) -> list[str]:
        assert self.rows
        faults = self.rows.faults(*references, allow_constant=allow_constant)
        if self.query_fault:
            faults.append(self.query_fault)
        if not faults and self.size < self.gate.min_rows:
            text = f"{self.size:,} queries with a relevant row are too few"
            faults.append(f"{text}, at least {self.gate.min_rows:,} are needed")
        return faults


def _queries_fault(names: Any, rows: int) -> str:
    """Return what is wrong with the column of queries; empty if nothing is."""
    if isinstance(names, MissingEvidence):
        return f"the queries are not known: {names.problem}"
    if isinstance(names, str) or not hasattr(names, "__len__") or len(names) != rows:
        return "the queries are not one row of names, one for each label"
    if unnamed := sum(not isinstance(name, str) for name in names):
        return f"{unnamed:,} of {rows:,} rows have no query: fill the column, or leave these rows out"
    return ""


def _of_queries(column: Any, codes: NDArray[np.intp], first: NDArray[np.intp], exists: NDArray[np.bool_]) -> Any:
    """Return the value of each query that exists, of a column by row, unless rows of a query differ."""
    if isinstance(column, MissingEvidence | str) or not hasattr(column, "__len__") or len(column) != codes.size:
        return column  # a fault elsewhere
    values = np.asarray(column, dtype=object)
    if differing := int(np.count_nonzero(values != values[first][codes])):
        text = f"{differing:,} rows have another value than the first of their query, and a query is of one"
        return MissingEvidence(f"{text}: take another column, such as that of the queries")
    return values[first][exists].tolist()


def values_by_query(
    gate: MetricGate, label: FloatArray, score: FloatArray, queries: Sequence[str], days: NDArray[Any]
) -> tuple[FloatArray, FloatArray, NDArray[Any]]:
    """Return 0, the value, and the day of each query that has a relevant row, as labels, scores and days of rows."""
    codes = np.unique(np.asarray(queries, dtype=str), return_inverse=True)[1].ravel()
    values = query_values(gate, label, score, codes)
    exists = np.isfinite(values)
    first = np.unique(codes, return_index=True)[1]
    return np.zeros(int(exists.sum())), values[exists], days[first][exists]
