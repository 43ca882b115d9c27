"""The evidence about a candidate: labels and scores of the same held-out rows, and other measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

ColumnTypes = tuple[tuple[str, str], ...]
"""Names and types of columns, in order."""


@dataclass(frozen=True)
class NoChampion:
    """There is nothing to compare with, and nothing has to be: `reason` says why.

    No version has been promoted yet; or the champion's inputs can no longer be made, and a person has accepted that.
    """

    reason: str = "no champion yet: nothing to compare with"


@dataclass(frozen=True)
class MissingEvidence:
    """Evidence that should exist and does not; `problem` says why. The gates that need it block.

    For example "version 3 has seen labels until 2013-02-25, the holdout starts 2013-02-22".
    """

    problem: str


@dataclass(frozen=True)
class OnlineSample:
    """The online features of sampled entities, compared with the offline ones as of the same moment.

    `first_mismatch` describes the first value that differs; it is empty if none does.
    """

    value_count: int
    mismatch_count: int
    first_mismatch: str = ""


@dataclass(frozen=True)
class InputSignature:
    """The input columns that the model takes, and those that serving will provide."""

    model_columns: ColumnTypes
    serving_columns: ColumnTypes


class TextBatch(NamedTuple):
    """Texts of some rows: of row i it is `names[codes[i]]`, or none where the code is -1."""

    codes: NDArray[np.integer]
    names: Sequence[str]


class EvidenceRows(ABC):
    """Rows that are read in batches, because they are more than a task should keep in memory."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of rows."""

    @abstractmethod
    def batches(
        self, numbers: Sequence[str], texts: Sequence[str] = ()
    ) -> Iterator[tuple[list[ArrayLike], list[TextBatch]]]:
        """Yield these columns of numbers, and of texts, batch by batch; every call begins at the first row."""


@dataclass(frozen=True, eq=False)
class StreamedColumn:
    """A column (n,) of rows that are not in memory. `evergreen.gates.streams` reads it."""

    rows: EvidenceRows
    name: str


_NOT_MEASURED = MissingEvidence("it was not measured")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence as it was measured: `judge_evidence` names its faults in the results, nothing is checked here.

    `champion` has no default: the caller must say whether there is one. The rest is needed only by some gates.

    Of more rows than fit in memory, every (n,) is a `StreamedColumn` of the same rows. Metrics are computed from sums
    by cluster then, and ranks from bins of scores, with a bound of the error that counts against the candidate.

    Attributes:
        label: (n,) the truth: 0 or 1 for binary metrics, any number for continuous ones.
        candidate: (n,) the candidate's prediction: the probability of label 1, or a number.
        champion: (n,) the champion's for the same rows in the same order; or why there are none.
        days: (first, end): the holdout's rows are of the days first ≤ day < end, the last of which has one. A
            comparison with the champion needs them, to know whether earlier comparisons used the same rows.
        clusters: by name, such as `day`, (n,) the cluster that each row belongs to. Rows of one cluster may differ
            together; gates with an interval need one, in one way or two.
        label_counts: by day of the holdout, in ISO format, how many rows it has, and for how many of them the label is
            known: only those are among the (n,).
        groups: by `group_by` of a gate, (n,) the group that each row belongs to, None for no group.
        baselines: by `baseline` of a gate, (n,) its predictions for the same rows.
        recent_predictions: (m,) the candidate's predictions for the most recent day whose labels are not known.
        serving_costs: each `evergreen.spec.gates.ServingQuantity`, in the unit that its name ends with.
        input_signature: the model's inputs, and those that the feature service and the request provide.
        online_sample: a sample of the online store, compared with the offline one.
        holdout: (first, end): the periods that the rows are of, first ≤ period < end.
    """

    label: ArrayLike | StreamedColumn
    candidate: ArrayLike | StreamedColumn
    champion: ArrayLike | StreamedColumn | NoChampion | MissingEvidence
    days: tuple[date, date] | None = None
    clusters: Mapping[str, Sequence[str | None] | StreamedColumn | MissingEvidence] = field(default_factory=dict)
    label_counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str | None] | StreamedColumn | MissingEvidence] = field(default_factory=dict)
    baselines: Mapping[str, ArrayLike | StreamedColumn | MissingEvidence] = field(default_factory=dict)
    recent_predictions: ArrayLike | StreamedColumn | MissingEvidence = _NOT_MEASURED
    serving_costs: Mapping[str, float] | MissingEvidence = _NOT_MEASURED
    input_signature: InputSignature | MissingEvidence = _NOT_MEASURED
    online_sample: OnlineSample | MissingEvidence = _NOT_MEASURED
    holdout: tuple[str, str] | None = None


def unlabelled_share(evidence: Evidence) -> float | None:
    """Return the share of the holdout's rows whose label is not known, or None if the counts are missing or invalid."""
    try:
        rows, labelled = (sum(counts) for counts in zip(*evidence.label_counts.values(), strict=True))
        return (rows - labelled) / rows if 0 <= labelled <= rows else None
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        return None
