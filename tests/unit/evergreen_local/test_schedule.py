"""As-of dates of `evergreen retrain`."""

from datetime import date, timedelta

import pytest

from evergreen.errors import EvergreenError
from evergreen.ingest import raw_files
from evergreen.spec.loader import feature_spec, load_spec
from evergreen_local import retraining
from evergreen_local.schedule import check_as_of, newest_as_of_date, retrain_interval, simulated_as_of_dates

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


def test_as_of_dates_of_a_model_whose_labels_come_late():
    model = MODEL.model_copy(update={"label_delay": 30})
    assert simulated_as_of_dates(model, features(date(2025, 1, 1)), [])[0] == date(2025, 1, 1) + timedelta(59 + 60)
    days = {date(2025, 1, 1) + timedelta(number) for number in range(14 + 60)}
    with pytest.raises(EvergreenError, match="74 days .* its holdout alone takes, with its label delay, 74: deliver"):
        newest_as_of_date(model, days, [])
    assert newest_as_of_date(model, days | {date(2025, 3, 16)}, [])


def test_as_of_dates_leave_out_dates_after_the_data():
    for last_day in (date(2013, 3, 3), date(2013, 2, 28)):
        assert simulated_as_of_dates(MODEL, features(date(2013, 1, 1), last_day), []) == [FIRST]


@pytest.mark.parametrize("last_day", [date(2013, 1, 1), date(2013, 2, 27)])
def test_as_of_dates_refuse_data_that_is_too_short(last_day):
    with pytest.raises(EvergreenError, match=rf"too short: .* {last_day}, .* 2013-03-01 needs .* to 2013-02-28"):
        simulated_as_of_dates(MODEL, features(date(2013, 1, 1), last_day), [])


def test_as_of_dates_of_data_without_an_end_always_continue():
    assert simulated_as_of_dates(MODEL, features(date(2013, 1, 1)), [LAST]) == [date(2014, 1, 7)]


@pytest.mark.parametrize(
    ("schedule", "days"),
    [("0 0 * * 5", 7), ("30 4 1 * *", 31), ("0 * * * *", 1), ("0 0 * * *", 1), ("0 6 */2 * *", 2), ("0 0 1 1 *", 365)],
)
def test_simulated_retrains_follow_the_schedule_of_the_model(schedule, days):
    model = MODEL.model_copy(update={"schedule": schedule})
    assert retrain_interval(model) == timedelta(days)
    assert simulated_as_of_dates(model, features(date(2013, 1, 1)), [])[1] == FIRST + timedelta(days)


def test_newest_as_of_date_is_after_the_last_delivered_day():
    delivered = [date(2026, 1, 1) + timedelta(number) for number in range(20)]
    assert newest_as_of_date(MODEL, delivered, []) == [date(2026, 1, 21)]
    assert newest_as_of_date(MODEL, delivered, [date(2026, 1, 14)]) == [date(2026, 1, 21)]
    assert newest_as_of_date(MODEL, delivered, [date(2026, 1, 21)]) == []


@pytest.mark.parametrize("count", [0, 7])
def test_newest_as_of_date_refuses_data_for_the_holdout_alone(count):
    delivered = [date(2026, 1, 1) + timedelta(number) for number in range(count)]
    with pytest.raises(
        EvergreenError, match=f"{count} days of raw data are delivered for flight_delay, and its holdout"
    ):
        newest_as_of_date(MODEL, delivered, [])


def test_delivered_days_have_files_of_all_daily_sources(home):
    for day in (1, 2, 3):
        for source in ("flights", "weather")[: 1 if day == 2 else 2]:
            file = raw_files.raw_file(source, date(2013, 1, day))
            file.parent.mkdir(parents=True)
            file.touch()
    for source in ("flights", "weather"):
        for stray in ("2012-12-31", "2013-13-01", "_tmp", "20130104"):
            folder = raw_files.raw_folder() / source / f"day={stray}"
            folder.mkdir(parents=True)
            (folder / f"{source}.parquet").touch()
    assert retraining._delivered_days(MODEL) == {date(2013, 1, 1), date(2013, 1, 3)}


@pytest.mark.parametrize("as_of", [date(2012, 12, 31), date(2013, 1, 1), date(2014, 1, 2)])
def test_check_as_of_refuses_days_without_data(as_of):
    with pytest.raises(EvergreenError, match=f"as of {as_of}: choose a day after 2013-01-01, up to 2014-01-01"):
        check_as_of(FEATURES, as_of)


def test_check_as_of_accepts_every_day_with_data_before_it():
    for as_of in (date(2013, 1, 2), date(2014, 1, 1)):
        check_as_of(FEATURES, as_of)
    check_as_of(features(date(2013, 1, 1)), date(2040, 1, 1))
