"""The labelled rows that a gate judges: the same questions, whether they are in memory or read in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evergreen.gates.clusters import NO_CLUSTERS, ClusterCounts, RowClusters, parse_clusters
from evergreen.gates.comparisons import EstimatedGain, count_differing_rows, measure_gain
from evergreen.gates.computation import (
    ColumnStats,
    compute_gate_metric,
    label_faults,
    label_type,
    prediction_stats,
    score_faults,
    to_float_array,
    to_predictions,
    weight_faults,
)
from evergreen.gates.evidence import Evidence, MissingEvidence, StreamedColumn
from evergreen.gates.metric_rows import RowDetails
from evergreen.gates.metrics import FloatArray
from evergreen.gates.score_bins import MetricValue
from evergreen.gates.verdict import NotComputedError
from evergreen.spec.gates import (
    BySliceGate,
    FairnessGate,
    LabelType,
    MetricGate,
    PairedComparisonGate,
    gate_kind_problem,
)


class JudgedRows(ABC):
    """Rows with labels and scores: those of the `candidate`, and of the references by name.

    Ask for faults first: the rest holds for rows without any.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of rows, by their labels."""

    @property
    @abstractmethod
    def label_type(self) -> LabelType:
        """What labels the gate's metric takes here."""

    @property
    @abstractmethod
    def clusters(self) -> ClusterCounts:
        """The clusters that the rows are of."""

    @abstractmethod
    def faults(self, *references: str, allow_constant: bool = False) -> list[str]:
        """Return all faults of the labels, of the candidate's scores and of those of `references`.

        With `allow_constant`, references may be constant.
        """

    @abstractmethod
    def cluster_faults(self) -> list[str]:
        """Return all faults of the clusters. With a fault, there are none."""

    @abstractmethod
    def group_fault(self) -> str | None:
        """Return what is wrong with the groups that the gate asks for, if it does."""

    @abstractmethod
    def split_by_group(self) -> dict[str, JudgedRows]:
        """Return the rows of each group, by its name and in order of names. Rows may be in no group."""

    @abstractmethod
    def count_label_ones(self) -> int:
        """Return the number of labels that are 1."""

    @property
    def has_metric(self) -> bool:
        """Whether the labels are such that the gate's metric exists, whatever the scores are."""
        return True

    @abstractmethod
    def metric(self, scorer: str, *, ignore_errors: bool = False) -> MetricValue | None:
        """Return the gate's metric of a scorer; None if it does not exist.

        With `ignore_errors`, for groups that are not judged: an error of a custom metric on so few rows blocks nothing.
        """

    @abstractmethod
    def count_differing(self, reference: str) -> int:
        """Return the number of rows whose scores differ; with a cut, of rows that are put into different classes."""

    @abstractmethod
    def measure_gain(self, reference: str) -> EstimatedGain:
        """Return the gain of the candidate over a reference; raises as `comparisons.measure_gain` does."""


def open_rows(gate: MetricGate, evidence: Evidence, references: Mapping[str, object] | None = None) -> JudgedRows:
    """Return the rows of the evidence for a gate, with the scores of the references.

    Raises:
        NotComputedError: there are no labels, the gate's metric is for models of another kind, or it counts no row.
    """
    if isinstance(evidence.label, MissingEvidence):
        raise NotComputedError(f"the labels cannot be used: {evidence.label.problem}")
    if problem := gate_kind_problem(gate, evidence.prediction_type):
        raise NotComputedError(problem)
    scorers = {"candidate": evidence.candidate, **(references or {})}
    if any(isinstance(column, StreamedColumn) for column in (evidence.label, *scorers.values())):
        from evergreen.gates.streams import StreamedRows

        return StreamedRows.from_evidence(gate, evidence, scorers)
    columns = {name: to_predictions(scores, evidence.prediction_type) for name, scores in scorers.items()}
    rows = LoadedRows(gate, evidence, to_float_array(evidence.label), columns, weights=_load_weights(evidence))
    if ":" in gate.metric and rows.size:
        rows = replace(rows, details=RowDetails.from_evidence(gate, evidence, rows.size))
    from evergreen.gates.forecasts import is_counted, select_rows
    from evergreen.gates.queries import QueryRows

    kind = evidence.prediction_type.kind if evidence.prediction_type else None
    if kind == "ranking":
        return QueryRows.from_rows(rows)
    if kind == "forecast":
        rows = select_rows(rows)
    if rows.weights is None or rows.has_size_fault:
        return rows
    counted = is_counted(gate, {"weights": rows.weights})
    return rows if counted.all() else rows.select(counted)


def _load_weights(evidence: Evidence) -> FloatArray | None:
    """Return the weights (n,); None if all rows count alike.

    Raises:
        NotComputedError: they are missing, or no numbers from 0 on; or they are for a ranking.
    """
    if evidence.weights is None:
        return None
    if isinstance(evidence.weights, MissingEvidence):
        raise NotComputedError(f"the weights cannot be used: {evidence.weights.problem}")
    if evidence.prediction_type and evidence.prediction_type.kind == "ranking":
        raise NotComputedError("rows of a ranking have no weights, since its metrics are of queries: leave them out")
    weights, label = to_float_array(evidence.weights), to_float_array(evidence.label)
    stats = None if weights is None else ColumnStats.from_array(weights)
    if faults := weight_faults(stats, 0 if label is None else label.size):
        raise NotComputedError(*faults)
    return weights


def find_groups(
    gate: BySliceGate | FairnessGate, evidence: Evidence
) -> Sequence[str | None] | StreamedColumn | MissingEvidence:
    """Return the group of each row, as the gate asks for them."""
    groups = evidence.groups if isinstance(evidence.groups, Mapping) else {}
    available = ", ".join(sorted(groups)) or "nothing"
    return groups.get(gate.group_by, MissingEvidence(f"there are those by {available}"))


@dataclass(eq=False)
class LoadedRows(JudgedRows):
    """Rows in memory: every number is exact, and equal for the same rows in any order."""

    gate: MetricGate
    evidence: Evidence
    label_column: FloatArray | None
    score_columns: Mapping[str, FloatArray | None]
    parsed_clusters: tuple[RowClusters, list[str]] | None = None
    """The clusters and their faults, once they were asked for."""
    weights: FloatArray | None = None
    details: RowDetails | None = None
    """What a metric of the model folder may ask for."""

    @property
    def size(self) -> int:
        return 0 if self.label_column is None else self.label_column.size

    @property
    def label_type(self) -> LabelType:
        return label_type(self.gate, self.evidence.prediction_type)

    @property
    def clusters(self) -> RowClusters:
        return self._parse_clusters()[0]

    @property
    def has_metric(self) -> bool:
        label, prediction = self.label_column, self.evidence.prediction_type
        if label is None:
            return False
        if self.gate.metric == "auc_ovr" and prediction:
            counts = np.array([np.count_nonzero(label == number) for number in range(len(prediction.outputs))])
            return bool((counts >= 2).all() and (label.size - counts >= 2).all())
        return self.gate.metric != "r2" or bool(label.size and label.min() < label.max())

    @property
    def has_size_fault(self) -> bool:
        """Whether scores are not (n,) or (n, outputs) for n labels, which is one of the `faults`."""
        return any(column is None or len(column) != self.size for column in self.score_columns.values())

    def select(self, rows: NDArray[np.bool_]) -> LoadedRows:
        """Return some of the rows, without the others in any of the evidence by row; there may be no size fault."""
        clusters, groups = (
            {name: _take_names(column, rows) for name, column in dict(columns or {}).items()}
            for columns in (self.evidence.clusters, self.evidence.groups)
        )
        return replace(
            self,
            evidence=replace(self.evidence, clusters=clusters, groups=groups),
            label_column=self._label[rows],
            score_columns={name: self._score(name)[rows] for name in self.score_columns},
            weights=None if self.weights is None else self.weights[rows],
            details=self.details and self.details.take(rows),
        )

    def faults(self, *references: str, allow_constant: bool = False) -> list[str]:
        label = None if self.label_column is None else ColumnStats.from_array(self.label_column)
        prediction = self.evidence.prediction_type
        faults = label_faults(self.gate, label, prediction)
        for name in ("candidate", *references):
            column = self.score_columns[name]
            score = None if column is None else prediction_stats(column)
            faults += score_faults(self.gate, name, score, label, prediction, allow_constant and name in references)
        return faults

    def cluster_faults(self) -> list[str]:
        return self._parse_clusters()[1]

    def group_fault(self) -> str | None:
        gate = self.gate
        assert isinstance(gate, BySliceGate | FairnessGate)
        names, group_by = find_groups(gate, self.evidence), gate.group_by
        if isinstance(names, MissingEvidence):
            return f"the groups by {group_by} are not known: {names.problem}"
        if isinstance(names, str | StreamedColumn) or not hasattr(names, "__len__"):
            return f"the groups by {group_by} are not one row of names"
        if self.size and len(names) != self.size:
            return f"there are {len(names):,} groups by {group_by} for {self.size:,} labels"
        if invalid := sorted({repr(name) for name in names if not (name is None or isinstance(name, str))}):
            return f"groups by {group_by} are names or None, not {', '.join(invalid[:3])}"
        return None if any(name is not None for name in names) else f"no row has a group by {group_by}"

    def split_by_group(self) -> dict[str, JudgedRows]:
        assert isinstance(self.gate, BySliceGate | FairnessGate)
        indices: dict[str, list[int]] = {}
        for row, name in enumerate(find_groups(self.gate, self.evidence)):  # type: ignore[arg-type]  # else a fault
            if name is not None:
                indices.setdefault(str(name), []).append(row)
        return {name: self._take(np.asarray(indices[name], dtype=np.intp)) for name in sorted(indices)}

    def count_label_ones(self) -> int:
        return int(np.count_nonzero(self._label == 1))

    def metric(self, scorer: str, *, ignore_errors: bool = False) -> MetricValue | None:
        value = compute_gate_metric(
            self.gate,
            self._label,
            self._score(scorer),
            self.evidence.prediction_type,
            weights=self.weights,
            details=self.details,
            ignore_errors=ignore_errors,
        )
        return None if value is None else MetricValue(value)

    def count_differing(self, reference: str) -> int:
        assert isinstance(self.gate, PairedComparisonGate)
        scores = (self._score("candidate"), self._score(reference))
        return count_differing_rows(self.gate, *scores, self.evidence.prediction_type)

    def measure_gain(self, reference: str) -> EstimatedGain:
        assert isinstance(self.gate, PairedComparisonGate)
        scores = (self._score("candidate"), self._score(reference))
        prediction = self.evidence.prediction_type
        return measure_gain(self.gate, self._label, *scores, self.clusters, prediction, self.weights, self.details)

    @property
    def _label(self) -> FloatArray:
        assert self.label_column is not None  # a fault
        return self.label_column

    def _score(self, scorer: str) -> FloatArray:
        column = self.score_columns[scorer]
        assert column is not None  # a fault
        return column

    def _parse_clusters(self) -> tuple[RowClusters, list[str]]:
        if self.parsed_clusters is None:
            self.parsed_clusters = parse_clusters(self.evidence, self.size)
        return self.parsed_clusters

    def _take(self, rows: NDArray[np.intp]) -> LoadedRows:
        scores = {name: self._score(name)[rows] for name in self.score_columns}
        clusters = self.clusters.take(rows) if self.parsed_clusters else NO_CLUSTERS
        return replace(
            self,
            label_column=self._label[rows],
            score_columns=scores,
            parsed_clusters=(clusters, []),
            weights=None if self.weights is None else self.weights[rows],
            details=self.details and self.details.take(rows),
        )


def _take_names(column: Any, rows: NDArray[np.bool_]) -> Any:
    """Return these rows of a column of names, unless it has a fault."""
    if isinstance(column, MissingEvidence | str) or not hasattr(column, "__len__") or len(column) != rows.size:
        return column
    return [name for name, is_taken in zip(column, rows.tolist(), strict=True) if is_taken]
