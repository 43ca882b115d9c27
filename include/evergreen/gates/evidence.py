"""The evidence about a candidate: labels and scores of the same held-out rows, and other measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from evergreen.spec.prediction_type import PredictionType

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
    """The online features of sampled keys, compared with the offline ones as of the same moment.

    A value is *expired* if the key's last row is older than the TTL of its view: offline there is none, and online
    Feast still serves it. Each description is of the first value that is counted, with the cause; empty if none is.
    """

    value_count: int
    mismatch_count: int
    """Values that differ, without the expired ones."""
    first_mismatch: str = ""
    expired_count: int = 0
    first_expired: str = ""
    changed_count: int = 0
    """Expired values that are not those of the key's last row either."""
    first_changed: str = ""
    moment: str = ""
    """As of when they were compared."""


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
    """A column (n,) of rows that are not in memory, or (n, outputs). `evergreen.gates.streams` reads it."""

    rows: EvidenceRows
    name: str
    output: int | None = None
    """Of several numbers per row, the only one that is meant."""


_NOT_MEASURED = MissingEvidence("it was not measured")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence as it was measured: `judge_evidence` names its faults in the results, nothing is checked here.

    `champion` has no default: the caller must say whether there is one. The rest is needed only by some gates.

    Of more rows than fit in memory, every (n,) is a `StreamedColumn` of the same rows. Metrics are computed from sums
    by cluster then, and ranks from bins of scores, with a bound of the error that counts against the candidate.

    Attributes:
        label: (n,) the truth: 0 or 1 for binary metrics, any number for continuous ones, the number of the class (from
            0 on, in the order of `prediction_type.classes`) of several classes.
        candidate: (n,) the candidate's prediction: the probability of label 1, or a number; (n, outputs) of a kind
            with several numbers per row. So are those of the champion and of baselines.
        champion: (n,) the champion's for the same rows in the same order; or why there are none.
        days: (first, end): the holdout's rows are of the days first ≤ day < end, the last of which has one. A
            comparison with the champion needs them, to know whether earlier comparisons used the same rows.
        clusters: by name, such as `day`, (n,) the cluster that each row belongs to. Rows of one cluster may differ
            together; gates with an interval need one, in one way to three.
        label_counts: by day of the holdout, in ISO format, how many rows it has, and for how many of them the label is
            known: only those are among the (n,).
        groups: by `group_by` of a gate, (n,) the group that each row belongs to, None for no group.
        baselines: by `baseline` of a gate, (n,) its predictions for the same rows.
        columns: by name, as the `columns` of custom gates ask for them, (n,) the values of a column of the holdout: a
            list of texts, else an array, in which a missing number is NaN.
        recent_predictions: (m,) the candidate's predictions for the most recent day whose labels are not known.
        serving_costs: each `evergreen.spec.gates.ServingQuantity`, in the unit that its name ends with.
        input_signature: the model's inputs, and those that the feature service and the request provide.
        online_sample: a sample of the online store, compared with the offline one.
        holdout: (first, end): the periods that the rows are of, first ≤ period < end.
        queries: of a ranking, (n,) the name of the query that each row belongs to.
        weights: (n,) how much each row counts in metrics, a number from 0 on; None: all count alike.
        horizons: of a forecast, (n,) how many periods ahead it is, a whole number from 0 on.
        scales: of a forecast, (n,) the mean error of the seasonal naive forecast of the row's series before the
            holdout, in the label's unit; NaN where it is not known.
        prediction_type: what a prediction is; None for a single number whose meaning the gates' metrics say.
    """

    label: ArrayLike | StreamedColumn | MissingEvidence
    candidate: ArrayLike | StreamedColumn
    champion: ArrayLike | StreamedColumn | NoChampion | MissingEvidence
    days: tuple[date, date] | None = None
    clusters: Mapping[str, Sequence[str | None] | StreamedColumn | MissingEvidence] = field(default_factory=dict)
    label_counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str | None] | StreamedColumn | MissingEvidence] = field(default_factory=dict)
    baselines: Mapping[str, ArrayLike | StreamedColumn | MissingEvidence] = field(default_factory=dict)
    columns: Mapping[str, ArrayLike | StreamedColumn | MissingEvidence] = field(default_factory=dict)
    recent_predictions: ArrayLike | StreamedColumn | MissingEvidence = _NOT_MEASURED
    serving_costs: Mapping[str, float] | MissingEvidence = _NOT_MEASURED
    input_signature: InputSignature | MissingEvidence = _NOT_MEASURED
    online_sample: OnlineSample | MissingEvidence = _NOT_MEASURED
    holdout: tuple[str, str] | None = None
    queries: Sequence[str | None] | StreamedColumn | MissingEvidence = _NOT_MEASURED
    weights: ArrayLike | StreamedColumn | MissingEvidence | None = None
    horizons: ArrayLike | StreamedColumn | MissingEvidence = _NOT_MEASURED
    scales: ArrayLike | StreamedColumn | MissingEvidence = _NOT_MEASURED
    prediction_type: PredictionType | None = None


@dataclass(frozen=True, eq=False)
class MetricRows:
    """The rows that a metric of a model folder measures. Rows that do not count are left out.

    Attributes:
        label: (n,) the truth, as in `Evidence`.
        prediction: (n,), or (n, outputs) of a kind with several numbers per row: those of the model that is measured,
            which is the candidate, the champion or a baseline.
        weight: (n,) how often each row counts: 1, the row's weight, or how often a resample of days has it.
        columns: by name, as the `columns` of the gate ask for them, (n,) the values of a column of the holdout: text as
            objects, None where it is null; a missing number is NaN.
        groups: by `group_by` of any gate, (n,) the name of the row's group, None for no group; empty at a later look.
        candidate: as `prediction`, those of the candidate.
        champion: as `prediction`, those of the champion; None while there is none.
    """

    label: NDArray[Any]
    prediction: NDArray[Any]
    weight: NDArray[Any]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    candidate: NDArray[Any] | None = None
    champion: NDArray[Any] | None = None


def unlabelled_share(evidence: Evidence) -> float | None:
    """Return the share of the holdout's rows whose label is not known, or None if the counts are missing or invalid."""
    try:
        rows, labelled = (sum(counts) for counts in zip(*evidence.label_counts.values(), strict=True))
        return (rows - labelled) / rows if 0 <= labelled <= rows else None
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        return None
