"""Which days a retrain trains on and is judged on, and which rows of them have a label in time."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pyarrow as pa
import pytest

from evergreen.errors import RawDataError
from evergreen.feature_store.training_sets import TrainingPeriods, _count_labels, _file_masks
from evergreen.lake.datasets import PERIOD_COLUMN
from evergreen.periods import Duration
from evergreen.spec import loader
from evergreen.window import RunReason, Window
from support.calendars import DAYS, later

pytestmark = pytest.mark.unit

ZONE = "America/New_York"
AS_OF = "2013-03-15"  # daylight saving began on 10 March
MODEL = loader.load_spec("flight_delay")


def window(start: str = "2013-01-01") -> Window:
    return Window.from_range(start, AS_OF, RunReason.SCHEDULE, DAYS)


def days(holdout: int, delay: int, start: str = "2013-01-01") -> TrainingPeriods:
    model = MODEL.model_copy(update={"holdout": Duration(holdout, "d"), "label_delay": Duration(delay, "d")})
    return TrainingPeriods.from_window(model, window(start))


def test_without_a_delay_days_adjoin() -> None:
    assert days(7, 0) == TrainingPeriods("2013-03-08", "2013-03-08", AS_OF)


def test_a_delay_follows_training_and_the_holdout() -> None:
    assert days(7, 3) == TrainingPeriods("2013-03-02", "2013-03-05", "2013-03-12")


def test_a_window_must_leave_a_day_to_train_on() -> None:
    assert days(7, 3, "2013-03-01").train_end == "2013-03-02"
    with pytest.raises(RawDataError, match=r"only 13 days of data, 7d of them for the holdout, 3d each for labels"):
        days(7, 3, "2013-03-02")


def test_rows_have_a_label_in_time() -> None:
    split = days(2, 1)
    begins, ends = DAYS.start(split.holdout_start), DAYS.start(AS_OF)
    second = timedelta(seconds=1)
    rows: list[tuple[str, int | None, datetime | None, str]] = [
        ("2013-03-10", 1, begins - second, "train"),
        ("2013-03-10", 1, begins, ""),  # nobody could have learned it when the holdout began
        ("2013-03-10", None, begins - second, ""),
        ("2013-03-10", 1, None, ""),
        ("2013-03-11", 1, begins - second, ""),  # its day is not complete then
        ("2013-03-12", 0, ends - second, "holdout"),
        ("2013-03-13", 0, ends, ""),
        ("2013-03-13", None, None, ""),
        ("2013-03-14", 1, ends - second, ""),  # labels of this day are not complete
    ]
    assert split == TrainingPeriods("2013-03-11", "2013-03-12", "2013-03-14")
    columns = list(zip(*rows, strict=True))
    table = pa.table(
        {
            "day": pa.array(map(date.fromisoformat, columns[0]), pa.date32()),
            PERIOD_COLUMN: pa.array(columns[0], pa.string()),
            "label": pa.array(columns[1], pa.int32()),
            "label_known_at": pa.array(columns[2], pa.timestamp("us", "UTC")),
        }
    )
    masks = _file_masks(table, split, window())
    for name, mask in masks.items():
        assert mask.to_pylist() == [expected == name for expected in columns[3]], name
    counts = _count_labels(table, split, window()).to_pylist()
    assert counts == [
        {"day": date(2013, 3, 12), "rows": 1, "labelled": 1},
        {"day": date(2013, 3, 13), "rows": 2, "labelled": 0},
    ]


def test_days_of_the_spec_fill_its_history() -> None:
    model = MODEL.model_copy(
        update={"train": Duration(20, "d"), "holdout": Duration(7, "d"), "label_delay": Duration(3, "d")}
    )
    start = later(AS_OF, -(20 + 7 + 2 * 3))
    split = TrainingPeriods.from_window(model, Window.from_range(start, AS_OF, RunReason.SCHEDULE, DAYS))
    assert DAYS.count(start, split.train_end) == 20
