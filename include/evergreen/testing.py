"""Tests that every model folder gets with one line, for pytest.

::

    from evergreen.testing import model_tests

    TestEarlyBird = model_tests("early_bird", period="2013-01-10")

Each is a step of `evergreen check early_bird --period 2013-01-10`, so raw data of the period has to be there: a small
fixture of it is enough. Two more tests take longer: training that is interrupted, and goes on from its checkpoint,
gives the same model; and the model's gates hold back the trained model if its predictions are damaged. A test that
shows nothing on so few rows is skipped, and says why. Without a period, there is what `evergreen check early_bird`
finds, which needs no data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from evergreen.cli.check import find_model_faults
from evergreen.cli.check.locations import ModelFault
from evergreen.cli.check.period import TrialResult, resolve_period, run_trial
from evergreen.errors import EvergreenError

_STEPS = (
    "raw data",
    "features",
    "order of rows",
    "no future",
    "training set",
    "training",
    "gates",
    "resumed training",
    "mutated champion",
)


def model_tests(name: str, period: str | None = None) -> type:
    """Return a class of tests of the model `name`; with a period, of all that its raw data can show.

    The first test that needs raw data tries the model, in a process of its own; the others read the result.
    """

    def test_files() -> None:
        _raise_faults(find_model_faults(name))

    tests = {"test_files": staticmethod(test_files)}
    if period is not None:
        steps = {f"test_{step.replace(' ', '_')}": _step_test(name, period, step) for step in _STEPS}
        tests |= {test: staticmethod(step) for test, step in steps.items()}
    return type("ModelTests", (), tests)


def _step_test(name: str, period: str, step: str) -> Callable[[], None]:
    def test() -> None:
        import pytest  # where these are used, it is installed

        result = _try_model(name, period)
        if isinstance(result, EvergreenError):
            raise result
        states = {record["step"]: record for record in result.steps}
        if step not in states:
            reasons = [record["detail"] for record in result.steps if record["state"] == "skipped" and record["detail"]]
            pytest.skip(reasons[-1] if reasons and not result.faults else "an earlier step has faults")
        record = states[step]
        if record["state"] == "skipped":
            pytest.skip(record["detail"])
        if record["state"] == "failed":
            _raise_faults(result.faults)

    return test


@cache
def _try_model(name: str, period: str) -> TrialResult | EvergreenError:
    """Return the result of the trial, or why there is none: it is not repeated for each test."""
    with tempfile.TemporaryDirectory(prefix="evergreen-check-") as home:
        try:
            return run_trial(name, resolve_period(name, period), Path(home), features_only=False, with_properties=True)
        except EvergreenError as error:
            return error


def _raise_faults(faults: list[ModelFault]) -> None:
    if faults:
        raise AssertionError("\n".join(str(fault.to_fault()) for fault in faults))
