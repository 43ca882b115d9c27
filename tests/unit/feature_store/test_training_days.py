"""Which days a retrain trains on and is judged on, and which rows of them have a label in time."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pyarrow as pa
import pytest

from evergreen.errors import RawDataError
from evergreen.feature_store.training_sets import TrainingDays, _count_labels, _file_masks
from evergreen.spec import loader
from evergreen.window import RunReason, Window, days_between, midnight

pytestmark = pytest.mark.unit

ZONE = "America/New_York"
AS_OF = date(2013, 3, 15)  # daylight saving began on 10 March
MODEL = loader.load_spec("flight_delay")


def window(start: date = date(2013, 1, 1)) -> Window:
    return Window.from_range(start, AS_OF, RunReason.SCHEDULE, ZONE)


def days(holdout: int, delay: int, start: date = date(2013, 1, 1)) -> TrainingDays:
    model = MODEL.model_copy(update={"holdout_days": holdout, "label_delay": delay})
    return TrainingDays.from_window(model, window(start))


def test_without_a_delay_days_adjoin() -> None:
    assert days(7, 0) == TrainingDays(date(2013, 3, 8), date(2013, 3, 8), AS_OF)


def test_a_delay_follows_training_and_the_holdout() -> None:
    assert days(7, 3) == TrainingDays(date(2013, 3, 2), date(2013, 3, 5), date(2013, 3, 12))


def test_a_window_must_leave_a_day_to_train_on() -> None:
    assert days(7, 3, date(2013, 3, 1)).train_end == date(2013, 3, 2)
    with pytest.raises(RawDataError, match=r"only 13 days of data, 7 of them for the holdout, 6 for labels"):
        days(7, 3, date(2013, 3, 2))


def test_rows_have_a_label_in_time() -> None:
    split = days(2, 1)
    begins, ends = midnight(split.holdout_start, ZONE), midnight(AS_OF, ZONE)
    second = timedelta(seconds=1)
    rows: list[tuple[date, int | None, datetime | None, str]] = [
        (date(2013, 3, 10), 1, begins - second, "train"),
        (date(2013, 3, 10), 1, begins, ""),  # nobody could have learned it when the holdout began
        (date(2013, 3, 10), None, begins - second, ""),
        (date(2013, 3, 10), 1, None, ""),
        (date(2013, 3, 11), 1, begins - second, ""),  # its day is not complete then
        (date(2013, 3, 12), 0, ends - second, "holdout"),
        (date(2013, 3, 13), 0, ends, ""),
        (date(2013, 3, 13), None, None, ""),
        (date(2013, 3, 14), 1, ends - second, ""),  # labels of this day are not complete
    ]
    assert split == TrainingDays(date(2013, 3, 11), date(2013, 3, 12), date(2013, 3, 14))
    columns = list(zip(*rows, strict=True))
    table = pa.table(
        {
            "day": pa.array(columns[0], pa.date32()),
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
    model = MODEL.model_copy(update={"train_days": 20, "holdout_days": 7, "label_delay": 3})
    start = AS_OF - timedelta(model.history_days)
    split = TrainingDays.from_window(model, Window.from_range(start, AS_OF, RunReason.SCHEDULE, ZONE))
    assert len(days_between(start, split.train_end)) == 20
