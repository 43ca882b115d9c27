"""What a candidate is judged on: labels and scores of the same held-out rows, and what else was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class NoChampion:
    """No version has been promoted yet."""


@dataclass(frozen=True)
class MissingEvidence:
    """There should be evidence, there is none, and `problem` says why. The gates that need it block.

    For example "version 3 has seen labels until 2013-02-25, the holdout starts 2013-02-22".
    """

    problem: str


@dataclass(frozen=True)
class OnlineSample:
    """Sampled entities whose online features were compared with the offline ones as of the same moment.

    Attributes:
        compared: feature values compared.
        different: how many of them differ.
        example: the first that differs, in words; empty when none does.
    """

    value_count: int
    mismatch_count: int
    first_mismatch: str = ""


@dataclass(frozen=True)
class InputSignature:
    """Input columns, in order, with their types: what the model takes, and what serving will give it."""

    model_columns: tuple[tuple[str, str], ...]
    serving_columns: tuple[tuple[str, str], ...]


_NOT_MEASURED = MissingEvidence("it was not measured")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Taken as it comes: what is wrong with it is for `judge` to find and to name, in its records.

    `champion` has no default: whether there is one must be said. The rest is only needed by gates that ask
    for it.

    Attributes:
        label: (n,) the truth: 0 or 1 for metrics of classes, any number for those of amounts.
        candidate: (n,) the candidate's prediction: the probability of label 1, or an amount.
        champion: (n,) the champion's for the same rows in the same order; or why there are none.
        days: (first, end): the holdout's rows are of the days first ≤ day < end. A comparison with the
            champion needs them, to know whether earlier comparisons used the same days.
        groups: per `by` of a gate, (n,) the group that each row belongs to, None for no group.
        baselines: per `against` of a baseline gate, (n,) its predictions for the same rows.
        recent: (m,) the candidate's predictions for the most recent day whose labels are not known.
        serving: what `evergreen.spec.gates.Quantity` names, in the unit that the name tells.
        signature: the model's inputs, and what the feature service and the request give.
        online: a sample of the online store against the offline one.
    """

    label: ArrayLike
    candidate: ArrayLike
    champion: ArrayLike | NoChampion | MissingEvidence
    days: tuple[date, date] | None = None
    groups: Mapping[str, Sequence[str | None] | MissingEvidence] = field(default_factory=dict)
    baselines: Mapping[str, ArrayLike | MissingEvidence] = field(default_factory=dict)
    recent_predictions: ArrayLike | MissingEvidence = _NOT_MEASURED
    serving_costs: Mapping[str, float] | MissingEvidence = _NOT_MEASURED
    input_signature: InputSignature | MissingEvidence = _NOT_MEASURED
    online_sample: OnlineSample | MissingEvidence = _NOT_MEASURED
