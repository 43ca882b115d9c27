"""What the function of an own gate returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What one function of the model folder found out about a candidate.

    Taken as it comes: a value or threshold that is not a number, or an empty reason, does not raise here. The gate
    is then not computed, says which, and blocks.

    Attributes:
        passed: whether the candidate may be promoted, as far as this gate is concerned.
        value: what was measured, in the function's own unit.
        threshold: what it was held against.
        reason: one sentence, with the numbers, for people.
    """

    passed: bool
    value: float
    threshold: float
    reason: str
