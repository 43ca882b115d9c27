"""A faulty period is left out of a run, and the other periods go on; the run fails when these are published."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evergreen.errors import Fault, FaultyPeriodsError
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec


def leave_out_faulty_periods(
    step: Callable[[], dict[str, str]], earlier_faults: Sequence[Fault] = ()
) -> tuple[dict[str, str], tuple[Fault, ...]]:
    """Run a step over periods; return its results without the faulty periods, and all faults so far.

    Raises:
        FaultyPeriodsError: no period is left; with `earlier_faults`, those of the steps before, too.
    """
    try:
        return step(), tuple(earlier_faults)
    except FaultyPeriodsError as error:
        faults = (*earlier_faults, *error.faults)
        if not error.remaining:
            raise type(error)(error.subject, faults) from error
        return error.remaining, faults


def raise_faults(model: ModelSpec, faults: Sequence[Fault], published: int) -> None:
    """Raise FaultyPeriodsError if periods of a run were left out."""
    if faults:
        raise FaultyPeriodsError(
            f"{feature_spec(model).calendar.unit}s of {model.feature_model} were left out; the other {published} of the run "
            "are published; clear the whole run when they are fixed",
            faults,
        )
