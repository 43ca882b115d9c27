"""Which days a retrain trains on and is judged on, and which rows of them have a label in time."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import RawDataError
from evergreen.feature_store.duckdb_examples import DuckDBExamples
from evergreen.feature_store.training_sets import TrainingPeriods, _first_prediction, _select_files, _sum_label_counts
from evergreen.periods import Duration
from evergreen.spec import loader
from evergreen.spec.prediction_type import ForecastSeries
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


def test_rows_have_a_label_in_time(tmp_path: Path) -> None:
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
        ("2013-03-13", 0, ends, "recent"),
        ("2013-03-13", None, None, "recent"),
        ("2013-03-14", 1, ends - second, ""),  # labels of this day are not complete
    ]
    assert split == TrainingPeriods("2013-03-11", "2013-03-12", "2013-03-14")
    files = {day: tmp_path / f"{day}.parquet" for day in sorted({day for day, *_ in rows})}
    for day, file in files.items():
        _, labels, known_at, _ = zip(*(row for row in rows if row[0] == day), strict=True)
        instant = pa.timestamp("us", "UTC")
        columns = {
            "event_timestamp": pa.array([DAYS.start(day)] * len(labels), instant),
            "row": [rows.index(row) for row in rows if row[0] == day],
            "late": pa.array(labels, pa.int32()),
            "label_known_at": pa.array(known_at, instant),
        }
        pq.write_table(pa.table(columns), file)
    with duckdb.connect() as con:
        examples = DuckDBExamples.from_files(con, "flight_delay", "departures", "late", files, DAYS)
        counts = examples.count_labels(window().as_of)
        examples.select(_select_files(split, window(), counts))
        written = examples.write_files(tmp_path)
        for name, file in written.items():
            assert pq.read_table(file)["row"].to_pylist() == [i for i, row in enumerate(rows) if name in row[3]], name
    assert "label" not in pq.read_schema(written["recent"]).names
    assert _sum_label_counts(counts, split).to_pylist() == [
        {"day": date(2013, 3, 12), "rows": 1, "labelled": 1},
        {"day": date(2013, 3, 13), "rows": 2, "labelled": 0},
    ]


def test_forecasts_of_a_holdout_are_made_in_it(tmp_path: Path) -> None:
    forecast = ForecastSeries(series=("shop",), horizon="ahead", season=1, row_period="target")
    model = MODEL.model_copy(update={"forecast": forecast})
    split = TrainingPeriods("2013-03-12", "2013-03-12", AS_OF)
    begins = DAYS.start(split.holdout_start)
    targets = {day: range(1, 4) for day in ("2013-03-11", "2013-03-12", "2013-03-13", "2013-03-14")}
    files = {day: tmp_path / f"{day}.parquet" for day in targets}
    instant = pa.timestamp("us", "UTC")
    for day, file in files.items():
        made_at = [DAYS.start(later(day, 1 - ahead)) for ahead in targets[day]]
        if day == "2013-03-14":
            made_at[2] = begins - timedelta(microseconds=1)
        columns = {
            "event_timestamp": pa.array(made_at, instant),
            "ahead": pa.array(targets[day]),
            "late": pa.array([1, 1, None] if day == "2013-03-13" else [1, 1, 1], pa.int32()),
            "label_known_at": pa.array([DAYS.start(later(day, 1)) - timedelta(microseconds=1)] * 3, instant),
        }
        pq.write_table(pa.table(columns), file)
    made_from = _first_prediction(model, DAYS, split.holdout_start)
    with duckdb.connect() as con:
        examples = DuckDBExamples.from_files(con, "flight_delay", "departures", "late", files, DAYS)
        everything = examples.count_labels(window().as_of)
        counts = examples.count_labels(window().as_of, made_from)
        examples.select(_select_files(split, window(), everything, made_from))
        written = examples.write_files(tmp_path)
    holdout = pq.read_table(written["holdout"])
    assert sorted(zip(map(str, holdout["day"].to_pylist()), holdout["ahead"].to_pylist(), strict=True)) == [
        *(("2013-03-12", 1), ("2013-03-13", 1), ("2013-03-13", 2), ("2013-03-14", 1), ("2013-03-14", 2)),
    ]
    assert pq.read_table(written["train"])["ahead"].to_pylist() == [3, 2, 1], "all that were known are learned from"
    assert [tuple(row.values()) for row in _sum_label_counts(counts, split).to_pylist()] == [
        (date(2013, 3, 12), 1, 1),
        (date(2013, 3, 13), 2, 2),
        (date(2013, 3, 14), 2, 2),
    ]
    assert pq.read_table(written["recent"])["day"].to_pylist() == [date(2013, 3, 13)] * 3
    assert _first_prediction(MODEL, DAYS, split.holdout_start) is None
    origins = model.model_copy(update={"forecast": forecast.model_copy(update={"row_period": "origin"})})
    assert _first_prediction(origins, DAYS, split.holdout_start) is None


def test_days_of_the_spec_fill_its_history() -> None:
    model = MODEL.model_copy(
        update={"train": Duration(20, "d"), "holdout": Duration(7, "d"), "label_delay": Duration(3, "d")}
    )
    start = later(AS_OF, -(20 + 7 + 2 * 3))
    split = TrainingPeriods.from_window(model, Window.from_range(start, AS_OF, RunReason.SCHEDULE, DAYS))
    assert DAYS.count(start, split.train_end) == 20
