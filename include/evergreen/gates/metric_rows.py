"""What a metric of a model folder gets besides labels and predictions, if it takes one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.evidence import Evidence, MetricRows, MissingEvidence, NoChampion
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import MetricGate

Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class RowDetails:
    """Columns of all rows, (m,) each, and which of them are meant, in order: (n,) row numbers."""

    rows: NDArray[np.intp]
    columns: Mapping[str, Values] = field(default_factory=dict)
    groups: Mapping[str, Values] = field(default_factory=dict)
    candidate: Values | None = None
    champion: Values | None = None

    @classmethod
    def from_evidence(cls, gate: MetricGate, evidence: Evidence, count: int) -> RowDetails:
        """Return those of evidence in memory, with `count` rows.

        Raises:
            NotComputedError: columns that the gate asks for are missing, or not of these rows.
        """
        available = evidence.columns if isinstance(evidence.columns, Mapping) else {}
        columns = {name: available.get(name, MissingEvidence("it was not collected")) for name in gate.columns}
        if faults := [
            f"the column {name} is not known: {column.problem}"
            for name, column in columns.items()
            if isinstance(column, MissingEvidence)
        ]:
            raise NotComputedError(*faults)
        values = {name: _to_values(column) for name, column in columns.items()}
        if faults := [
            f"the column {name} has {len(column):,} values for {count:,} labels"
            for name, column in values.items()
            if len(column) != count
        ]:
            raise NotComputedError(*faults)
        named = evidence.groups if isinstance(evidence.groups, Mapping) else {}
        groups = {name: _to_values(column) for name, column in named.items() if not isinstance(column, MissingEvidence)}
        champion = evidence.champion
        return cls(
            np.arange(count),
            values,
            {name: column for name, column in groups.items() if len(column) == count},
            np.asarray(evidence.candidate),
            None if isinstance(champion, NoChampion | MissingEvidence) else np.asarray(champion),
        )

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> RowDetails:
        """Return those of some of the rows."""
        return replace(self, rows=self.rows[rows])

    def describe(self, label: Values, prediction: Values, weight: Values) -> MetricRows:
        """Return the rows with these labels, predictions and weights (n,), without those that do not count."""
        counted = weight > 0
        rows = self.rows[counted]
        return MetricRows(
            label[counted],
            prediction[counted],
            weight[counted],
            {name: column[rows] for name, column in self.columns.items()},
            {name: column[rows] for name, column in self.groups.items()},
            None if self.candidate is None else self.candidate[rows],
            None if self.champion is None else self.champion[rows],
        )


def _to_values(column: Any) -> Values:
    """Return numbers as they are, and texts as objects, so that None stays None."""
    return column if isinstance(column, np.ndarray) else np.array(column, dtype=object if _has_text(column) else None)


def _has_text(column: Any) -> bool:
    return any(value is None or isinstance(value, str) for value in column)
