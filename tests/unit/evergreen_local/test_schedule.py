"""As-of dates of `evergreen retrain`."""

from datetime import date

import pytest

from evergreen.errors import EvergreenError
from evergreen.ingest import raw_files
from evergreen.periods import Duration
from evergreen.spec.loader import feature_spec, load_spec
from evergreen_local import retraining
from evergreen_local.schedule import newest_as_of_period, next_as_of, parse_as_of, simulated_as_of_periods
from support.calendars import later

pytestmark = pytest.mark.unit

MODEL = load_spec("flight_delay")
FEATURES = feature_spec(MODEL)
FIRST, SECOND = "2013-03-01", "2013-03-08"
LAST = "2013-12-31"


def features(first_day, last_day=None):
    return FEATURES.model_copy(
        update={"first_day": date.fromisoformat(first_day), "last_day": last_day and date.fromisoformat(last_day)}
    )


@pytest.mark.parametrize("name", ["flight_delay", "flight_delay_net"])
def test_as_of_dates_of_the_examples_begin_in_march_2013(name):
    model = load_spec(name)
    assert simulated_as_of_periods(model, feature_spec(model), []) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("finished_dates", "dates"),
    [
        ([FIRST], [SECOND]),  # the first call was interrupted between its two retrains
        ([FIRST, SECOND], ["2013-03-15"]),
        ([SECOND, "2013-04-01", FIRST], ["2013-04-08"]),  # one was run by hand in between
        (["2013-12-25"], ["2014-01-01"]),  # uses all data: 31 December is over at that midnight
        (["2013-12-26"], []),
        (["2014-01-01"], []),
    ],
)
def test_as_of_dates_follow_the_last_finished_date(finished_dates, dates):
    assert simulated_as_of_periods(MODEL, FEATURES, finished_dates) == dates


def test_as_of_dates_of_data_that_begins_in_2025():
    model = MODEL.model_copy(update={"features": features("2025-01-01")})
    assert simulated_as_of_periods(model, model.features, []) == ["2025-03-01", "2025-03-08"]
    days = retraining._feature_periods(model, "2025-03-01")
    assert (days[0], days[-1]) == ("2025-01-01", "2025-02-28")


def test_as_of_dates_of_a_model_with_a_short_history():
    model = MODEL.model_copy(update={"train": Duration(14, "d"), "holdout": Duration(7, "d")})
    assert simulated_as_of_periods(model, features("2025-01-01"), []) == ["2025-01-22", "2025-01-29"]


def test_as_of_dates_of_a_model_whose_labels_come_late():
    model = MODEL.model_copy(update={"label_delay": Duration(30, "d")})
    assert simulated_as_of_periods(model, features("2025-01-01"), [])[0] == later("2025-01-01", 59 + 60)
    days = {later("2025-01-01", number) for number in range(14 + 60)}
    with pytest.raises(
        EvergreenError, match="74 days .* its holdout, with its label delay of 30d, alone takes 14d: deliver"
    ):
        newest_as_of_period(model, FEATURES.calendar, days, [])
    assert newest_as_of_period(model, FEATURES.calendar, days | {"2025-03-16"}, [])


def test_as_of_dates_leave_out_dates_after_the_data():
    for last_day in ("2013-03-03", "2013-02-28"):
        assert simulated_as_of_periods(MODEL, features("2013-01-01", last_day), []) == [FIRST]


@pytest.mark.parametrize("last_day", ["2013-01-01", "2013-02-27"])
def test_as_of_dates_refuse_data_that_is_too_short(last_day):
    with pytest.raises(EvergreenError, match=rf"too short: .* {last_day}, .* 2013-03-01 needs .* to 2013-02-28"):
        simulated_as_of_periods(MODEL, features("2013-01-01", last_day), [])


def test_as_of_dates_of_data_without_an_end_always_continue():
    assert simulated_as_of_periods(MODEL, features("2013-01-01"), [LAST]) == ["2014-01-07"]


@pytest.mark.parametrize(
    ("schedule", "days"),
    [("0 0 * * 5", 7), ("30 4 1 * *", 31), ("0 * * * *", 1), ("0 0 * * *", 1), ("0 6 */2 * *", 2), ("0 0 1 1 *", 365)],
)
def test_simulated_retrains_follow_the_schedule_of_the_model(schedule, days):
    model = MODEL.model_copy(update={"schedule": schedule})
    assert next_as_of(model, FEATURES.calendar, FIRST) == later(FIRST, days)
    assert simulated_as_of_periods(model, features("2013-01-01"), [])[1] == later(FIRST, days)


def test_newest_as_of_date_is_after_the_last_delivered_day():
    delivered = [later("2026-01-01", number) for number in range(20)]
    assert newest_as_of_period(MODEL, FEATURES.calendar, delivered, []) == ["2026-01-21"]
    assert newest_as_of_period(MODEL, FEATURES.calendar, delivered, ["2026-01-14"]) == ["2026-01-21"]
    assert newest_as_of_period(MODEL, FEATURES.calendar, delivered, ["2026-01-21"]) == []


@pytest.mark.parametrize("count", [0, 7])
def test_newest_as_of_date_refuses_data_for_the_holdout_alone(count):
    delivered = [later("2026-01-01", number) for number in range(count)]
    with pytest.raises(
        EvergreenError, match=f"{count} days of raw data are delivered for flight_delay, and its holdout"
    ):
        newest_as_of_period(MODEL, FEATURES.calendar, delivered, [])


def test_delivered_periods_have_files_of_all_daily_sources(home):
    for day in (1, 2, 3):
        for source in ("flights", "weather")[: 1 if day == 2 else 2]:
            file = raw_files.raw_file(source, f"2013-01-{day:02d}")
            file.parent.mkdir(parents=True)
            file.touch()
    for source in ("flights", "weather"):
        for stray in ("2012-12-31", "2013-13-01", "_tmp", "20130104"):
            folder = raw_files.raw_folder() / source / f"day={stray}"
            folder.mkdir(parents=True)
            (folder / f"{source}.parquet").touch()
    assert retraining._delivered_periods(MODEL) == {"2013-01-01", "2013-01-03"}


@pytest.mark.parametrize("as_of", ["2012-12-31", "2013-01-01", "2014-01-02"])
def test_check_as_of_refuses_days_without_data(as_of):
    with pytest.raises(EvergreenError, match=f"as of {as_of}: choose a day after 2013-01-01, up to 2014-01-01"):
        parse_as_of(FEATURES, as_of)


def test_check_as_of_accepts_every_day_with_data_before_it():
    for as_of in ("2013-01-02", "2014-01-01"):
        parse_as_of(FEATURES, as_of)
    parse_as_of(features("2013-01-01"), "2040-01-01")
