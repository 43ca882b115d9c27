"""As-of dates of `evergreen retrain`."""

from datetime import date

import pytest

from evergreen.errors import EvergreenError
from evergreen.spec.loader import feature_spec, load_spec
from evergreen_local import retraining
from evergreen_local.schedule import simulated_as_of_dates

pytestmark = pytest.mark.unit

MODEL = load_spec("flight_delay")
FEATURES = feature_spec(MODEL)
FIRST, SECOND = date(2013, 3, 1), date(2013, 3, 8)
LAST = date(2013, 12, 31)


def features(first_day, last_day=None):
    return FEATURES.model_copy(update={"first_day": first_day, "last_day": last_day})


@pytest.mark.parametrize("name", ["flight_delay", "flight_delay_net"])
def test_as_of_dates_of_the_examples_begin_in_march_2013(name):
    model = load_spec(name)
    assert simulated_as_of_dates(model, feature_spec(model), []) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("finished_dates", "dates"),
    [
        ([FIRST], [SECOND]),  # the first call was interrupted between its two retrains
        ([FIRST, SECOND], [date(2013, 3, 15)]),
        ([SECOND, date(2013, 4, 1), FIRST], [date(2013, 4, 8)]),  # one was run by hand in between
        ([date(2013, 12, 25)], [date(2014, 1, 1)]),  # uses all data: 31 December is over at that midnight
        ([date(2013, 12, 26)], []),
        ([date(2014, 1, 1)], []),
    ],
)
def test_as_of_dates_follow_the_last_finished_date(finished_dates, dates):
    assert simulated_as_of_dates(MODEL, FEATURES, finished_dates) == dates


def test_as_of_dates_of_data_that_begins_in_2025():
    model = MODEL.model_copy(update={"features": features(date(2025, 1, 1))})
    assert simulated_as_of_dates(model, model.features, []) == [date(2025, 3, 1), date(2025, 3, 8)]
    days = retraining._feature_days(model, date(2025, 3, 1))
    assert (days[0], days[-1]) == (date(2025, 1, 1), date(2025, 2, 28))


def test_as_of_dates_of_a_model_with_a_short_history():
    model = MODEL.model_copy(update={"train_days": 14, "holdout_days": 7})
    assert simulated_as_of_dates(model, features(date(2025, 1, 1)), []) == [date(2025, 1, 22), date(2025, 1, 29)]


def test_as_of_dates_leave_out_dates_after_the_data():
    for last_day in (date(2013, 3, 3), date(2013, 2, 28)):
        assert simulated_as_of_dates(MODEL, features(date(2013, 1, 1), last_day), []) == [FIRST]


@pytest.mark.parametrize("last_day", [date(2013, 1, 1), date(2013, 2, 27)])
def test_as_of_dates_refuse_data_that_is_too_short(last_day):
    with pytest.raises(EvergreenError, match=rf"too short: .* {last_day}, .* 2013-03-01 needs .* to 2013-02-28"):
        simulated_as_of_dates(MODEL, features(date(2013, 1, 1), last_day), [])


def test_as_of_dates_of_data_without_an_end_always_continue():
    assert simulated_as_of_dates(MODEL, features(date(2013, 1, 1)), [LAST]) == [date(2014, 1, 7)]
