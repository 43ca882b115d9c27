"""Which as-of dates a call works on, from those that are finished."""

from datetime import date

import pytest

from evergreen_local.plan import as_of_dates

pytestmark = pytest.mark.unit

LAST = date(2013, 12, 31)
FIRST, SECOND = date(2013, 3, 1), date(2013, 3, 8)


@pytest.mark.parametrize(
    ("finished", "wanted"),
    [
        ([], [FIRST, SECOND]),
        ([FIRST], [SECOND]),  # the first call was interrupted between its two retrains
        ([FIRST, SECOND], [date(2013, 3, 15)]),
        ([SECOND, date(2013, 4, 1), FIRST], [date(2013, 4, 8)]),  # one was run by hand in between
        ([date(2013, 12, 25)], [date(2014, 1, 1)]),  # knows all data: 31 December is over at that midnight
        ([date(2013, 12, 26)], []),
        ([date(2014, 1, 1)], []),
    ],
)
def test_as_of_dates(finished, wanted):
    assert as_of_dates(finished, LAST) == wanted


def test_data_that_ends_early_leaves_out_what_it_does_not_reach():
    assert as_of_dates([], date(2013, 3, 3)) == [FIRST]
    assert as_of_dates([], date(2013, 2, 28)) == [FIRST]
    assert as_of_dates([], date(2013, 2, 27)) == []


def test_data_without_an_end_always_has_a_next_week():
    assert as_of_dates([LAST], None) == [date(2014, 1, 7)]
