"""A faulty day is left out, and named in the end; the others go on."""

from __future__ import annotations

import pytest

from evergreen.errors import Fault, FaultyPeriodsError, FeatureError, RawDataError
from evergreen.features.steps import leave_out_faulty_periods, raise_faults
from evergreen.spec import loader

pytestmark = pytest.mark.unit

MISSING, LATE, NEGATIVE = Fault("a.parquet", "missing"), Fault("b.parquet", "late"), Fault("c", "negative")


def failing(error: FaultyPeriodsError) -> dict[str, str]:
    raise error


def test_a_step_without_faults_keeps_those_before() -> None:
    assert leave_out_faulty_periods(lambda: {"2013-03-01": "x"}) == ({"2013-03-01": "x"}, ())
    assert leave_out_faulty_periods(lambda: {}, [MISSING]) == ({}, (MISSING,))


def test_the_days_that_remain_go_on() -> None:
    error = RawDataError("raw data", [LATE, NEGATIVE], {"2013-03-01": "x"})
    assert leave_out_faulty_periods(lambda: failing(error), [MISSING]) == (
        {"2013-03-01": "x"},
        (MISSING, LATE, NEGATIVE),
    )


def test_if_no_day_is_left_all_faults_are_raised() -> None:
    with pytest.raises(FeatureError, match="features of March: 2 faults") as raised:
        leave_out_faulty_periods(lambda: failing(FeatureError("features of March", [LATE])), [MISSING])
    assert raised.value.faults == (MISSING, LATE)


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError):
        leave_out_faulty_periods(lambda: {}["a"])


def test_faults_are_raised_when_the_others_are_published() -> None:
    model = loader.load_spec("flight_delay")
    raise_faults(model, (), 3)
    with pytest.raises(FaultyPeriodsError, match="the other 3 of the run are published; clear the whole run"):
        raise_faults(model, (MISSING,), 3)
