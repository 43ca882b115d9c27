"""What a candidate is judged on: labels and scores of the same held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class NoChampion:
    """No version has been promoted yet."""


@dataclass(frozen=True)
class NotComparable:
    """There is a champion, and `problem` says why it has no fair scores on these rows.

    For example "version 3 was trained on days up to 2013-02-25, the holdout starts 2013-02-22".
    """

    problem: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """Taken as it comes: what is wrong with it is for `judge` to find and to name, in its records.

    `champion` has no default: whether there is one must be said.

    Attributes:
        label: (n,) the truth, each 0 or 1.
        candidate: (n,) the candidate's probability of label 1, each in [0, 1].
        champion: (n,) the champion's for the same rows in the same order; or why there are none.
    """

    label: ArrayLike
    candidate: ArrayLike
    champion: ArrayLike | NoChampion | NotComparable
