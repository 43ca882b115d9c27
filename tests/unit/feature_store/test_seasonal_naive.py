"""The seasonal naive forecast and the scale of a series, against a search through all values that were known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import InputsChangedError, RawDataError, SpecError, StaleFeaturesError
from evergreen.feature_store import seasonal_naive
from evergreen.feature_store.republished_features import read_again_if_republished
from evergreen.gates import ThresholdGate
from evergreen.lake import datasets
from evergreen.periods import Calendar
from evergreen.spec.model import ModelSpec

pytestmark = pytest.mark.unit

HOSTILE = ('it\'s "north"', "", "ü\n*", "place")
INSTANT = pa.timestamp("us", "UTC")
FIRST = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday


def write_spec(period: str, season: int, **options: Any) -> ModelSpec:
    features: Any = {
        "timezone": "America/New_York",
        "first_day": "2024-01-01",
        "period": period,
        "spine": "orders",
        "views": ["items"],
        "sources": [{"name": "bookings", "columns": {"x": "int64"}}],
    }
    forecast: Any = {"series": ["place", "number"], "horizon": "period", "season": season}
    durations: Any = {"1d": ("30d", "7d"), "1w": ("30w", "7w"), "1h": ("36h", "12h")}[period]
    return ModelSpec(
        name="demand",
        owner="tests",
        features=features,
        feature_service="demand",
        label="sold",
        kind="forecast",
        forecast=forecast,
        schedule="0 0 * * 1",
        train=durations[0],
        holdout=durations[1],
        gates=(ThresholdGate(metric="mase", at_most=1.0),),
        **options,
    )


def publish(
    name: str, period: str, columns: dict[str, Any], version: str = "", inputs: dict[str, Any] | None = None
) -> None:
    dataset, partition = datasets.open_dataset(f"features/{name}"), datasets.period_partition(period)
    fingerprint = f"of-{datasets.file_name_of_period(period)}{version}"
    staged = dataset.stage(partition, fingerprint)
    pq.write_table(pa.table(columns), staged / "orders.parquet")
    dataset.publish(partition, fingerprint, {"orders": staged / "orders.parquet"}, inputs or {})


def make_rows(
    calendar: Calendar, periods: list[str], seed: int, late_hours: tuple[int, int] = (0, 90)
) -> list[dict[str, Any]]:
    """Return rows of series that come and go, with gaps, late and missing labels, and origins within a period."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for place, period in enumerate(periods):
        if place == 9:
            continue  # a period without rows
        begins = calendar.start(period)
        for series, name in enumerate(HOSTILE):
            if (series == 1 and place < 38) or random.random() < 0.2:
                continue  # a series that is new, or has a gap
            for horizon in (0, 1, 4):
                target = calendar.shift(period, horizon)
                late = timedelta(hours=int(random.integers(*late_hours)))
                rows.append(
                    {
                        "event_timestamp": begins + timedelta(minutes=int(random.integers(0, 50))),
                        "place": name,
                        "number": series // 2,
                        "period": horizon,
                        "sold": None if random.random() < 0.05 else float(10 * series + random.integers(0, 9)),
                        "label_known_at": calendar.end(target) + late if random.random() < 0.95 else None,
                        "origin": place,
                        "name": period,
                    }
                )
    return rows


def expected(rows: list[dict[str, Any]], of: list[dict[str, Any]], season: int, start: datetime) -> list[list[float]]:
    values: dict[tuple[Any, ...], dict[int, tuple[datetime, float]]] = {}
    for row in rows:
        if row["sold"] is not None and row["label_known_at"] is not None:
            known = values.setdefault((row["place"], row["number"]), {})
            target, version = row["origin"] + row["period"], (row["label_known_at"], row["sold"])
            known[target] = min(known.get(target, version), version)
    result = []
    for row in of:
        known = values.get((row["place"], row["number"]), {})
        place = row["origin"] + row["period"]
        seasons = [known.get(place - season * k, (None, nan)) for k in range(1, 60)]
        naive = next((v for at, v in seasons if at is not None and at <= row["event_timestamp"]), nan)
        before = {target: v for target, (at, v) in known.items() if at < start}
        steps = [abs(v - before[target - season]) for target, v in sorted(before.items()) if target - season in before]
        result.append([naive, float(np.mean(steps)) if steps else nan])
    return result


def table_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    types: dict[str, Any] = {"event_timestamp": INSTANT, "label_known_at": INSTANT, "sold": pa.float64()}
    names = ("event_timestamp", "place", "number", "period", "sold", "label_known_at")
    return {name: pa.array([row[name] for row in rows], types.get(name)) for name in names}


def write_holdout(file: Path, calendar: Calendar, rows: list[dict[str, Any]]) -> None:
    columns = table_of(rows)
    columns["label"] = columns.pop("sold")
    columns["day"] = pa.array([calendar.date_of(row["name"]) for row in rows], pa.date32())
    if calendar.partition_key != "day":
        columns[datasets.PERIOD_COLUMN] = pa.array([row["name"] for row in rows], pa.string())
    pq.write_table(pa.table(columns), file)


LATE = (0, 90)
IN_ANY_ORDER = (-800, 800)  # some before their period, some after the holdout


@pytest.mark.parametrize(
    ("period", "season", "late_hours"),
    [
        ("1d", 7, LATE),
        ("1d", 1, LATE),
        ("1d", 2, LATE),
        ("1w", 4, LATE),
        ("1h", 6, LATE),
        ("1d", 1, IN_ANY_ORDER),
        ("1d", 2, IN_ANY_ORDER),
        ("1d", 7, IN_ANY_ORDER),
        ("1h", 1, (-30, 90)),
    ],
)
def test_naive_forecasts_use_what_was_known_at_the_origin(
    home: Path, tmp_path: Path, period: str, season: int, late_hours: tuple[int, int]
) -> None:
    model = write_spec(period, season)
    calendar = Calendar(period, "America/New_York")
    first = calendar.period_at(FIRST + timedelta(days=3))
    periods = [calendar.shift(first, number) for number in range(60)]
    rows = make_rows(calendar, periods, season, late_hours)
    for name in periods:
        publish("demand", name, table_of([row for row in rows if row["name"] == name]))
    start, end = periods[36], periods[43]
    of = [row for row in rows if start <= row["name"] < end]
    write_holdout(tmp_path / "holdout.parquet", calendar, of)
    inputs = {"holdout": start, **seasonal_naive.seasonal_inputs(model, start, end)}
    window = sorted(map(datasets.partition_period, inputs["history"]))
    assert window[-1] == periods[42]
    assert len(window) >= 37
    target = seasonal_naive.write_seasonal_naive(
        model, tmp_path / "holdout.parquet", inputs, tmp_path / "seasonal.parquet"
    )
    result = pq.read_table(target)
    wanted = expected([row for row in rows if row["name"] in window], of, season, calendar.start(start))
    actual = list(zip(result["naive"].to_pylist(), result["scale"].to_pylist(), strict=True))
    assert len(actual) == len(of) > 20
    for got, want in zip(actual, wanted, strict=True):
        assert [nan if value is None else value for value in got] == pytest.approx(want, rel=1e-12, nan_ok=True)
    naive = [want[0] for want in wanted]
    assert any(isnan(value) for value in naive) or season == 1
    assert sum(not isnan(value) for value in naive) > len(naive) / 3
    again = seasonal_naive.write_seasonal_naive(model, tmp_path / "holdout.parquet", inputs, tmp_path / "again.parquet")
    assert again.read_bytes() == target.read_bytes()


def test_rows_may_be_of_the_period_of_their_label(home: Path, tmp_path: Path) -> None:
    of_origins = write_spec("1d", 7)
    assert of_origins.forecast
    assert "row_period" not in of_origins.forecast.model_dump(mode="json"), "fingerprints are what they were"
    model = of_origins.model_copy(update={"forecast": of_origins.forecast.model_copy(update={"row_period": "target"})})
    calendar = Calendar("1d", "America/New_York")
    periods = [calendar.shift("2024-01-04", number) for number in range(60)]
    rows = [row | {"name": calendar.shift(row["name"], row["period"])} for row in make_rows(calendar, periods, 5, LATE)]
    for name in periods:
        publish("demand", name, table_of([row for row in rows if row["name"] == name]))
    start, end = periods[36], periods[43]
    of = [row for row in rows if start <= row["name"] < end]
    write_holdout(tmp_path / "holdout.parquet", calendar, of)
    inputs = {"holdout": start, **seasonal_naive.seasonal_inputs(model, start, end)}
    assert inputs["forecast"]["row_period"] == "target"
    target = seasonal_naive.write_seasonal_naive(
        model, tmp_path / "holdout.parquet", inputs, tmp_path / "seasonal.parquet"
    )
    window = sorted(map(datasets.partition_period, inputs["history"]))
    wanted = expected([row for row in rows if row["name"] in window], of, 7, calendar.start(start))
    result = pq.read_table(target)
    actual = list(zip(result["naive"].to_pylist(), result["scale"].to_pylist(), strict=True))
    assert len(actual) == len(of) > 20
    for got, want in zip(actual, wanted, strict=True):
        assert [nan if value is None else value for value in got] == pytest.approx(want, rel=1e-12, nan_ok=True)
    assert sum(not isnan(want[0]) for want in wanted) > len(of) / 3


def write_days(home: Path, tmp_path: Path, **changes: Any) -> tuple[ModelSpec, Path, dict[str, Any]]:
    """Publish ten days, and return the model, the file of its holdout, and the inputs."""
    model, calendar = write_spec("1d", 2), Calendar("1d", "America/New_York")
    periods = [calendar.shift("2024-01-04", number) for number in range(10)]
    rows = make_rows(calendar, periods, 0)
    for name in periods:
        publish("demand", name, table_of([row for row in rows if row["name"] == name]))
    file = tmp_path / "holdout.parquet"
    write_holdout(file, calendar, [row for row in rows if row["name"] >= periods[6]])
    table = pq.read_table(file)
    for name, column in changes.items():
        table = table.set_column(table.column_names.index(name), name, column(table[name]))
    pq.write_table(table, file)
    return model, file, {"holdout": periods[6], **seasonal_naive.seasonal_inputs(model, periods[6], "2024-01-14")}


def test_rows_without_a_series_or_a_horizon_are_refused(home: Path, tmp_path: Path) -> None:
    def replace_first(value: Any) -> Any:
        return lambda column: pa.chunked_array([pa.array([value, *column.to_pylist()[1:]], column.type)])

    model, file, inputs = write_days(home, tmp_path, place=replace_first(None), period=replace_first(-1))
    with pytest.raises(RawDataError, match=r"1 rows of the holdout have a null in place, number") as error:
        seasonal_naive.write_seasonal_naive(model, file, inputs, tmp_path / "seasonal.parquet")
    assert "1 rows of the holdout have no period from 0 on" in str(error.value)


def test_a_holdout_without_a_row_has_no_forecast(home: Path, tmp_path: Path) -> None:
    model, file, inputs = write_days(home, tmp_path)
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    seasonal = seasonal_naive.write_seasonal_naive(model, file, inputs, tmp_path / "seasonal.parquet")
    assert pq.read_table(seasonal).equals(
        pa.table({"naive": [], "scale": []}, pa.schema(dict.fromkeys(("naive", "scale"), pa.float64())))
    )


def test_columns_of_another_type_are_refused(home: Path, tmp_path: Path) -> None:
    def as_text(column: Any) -> Any:
        return column.cast(pa.string())

    model, file, inputs = write_days(home, tmp_path, period=as_text, label=as_text)
    with pytest.raises(SpecError, match="period is string") as error:
        seasonal_naive.write_seasonal_naive(model, file, inputs, tmp_path / "seasonal.parquet")
    assert "sold is string" in str(error.value)
    table = pq.read_table(file).drop_columns(["number"])
    pq.write_table(table, file)
    with pytest.raises(SpecError, match="number is no column of the spine"):
        seasonal_naive.write_seasonal_naive(model, file, inputs, tmp_path / "seasonal.parquet")


def republish_day(number: float, inputs: dict[str, Any] | None = None) -> None:
    """Publish the first of ten days again, with other labels."""
    rows = make_rows(Calendar("1d", "America/New_York"), ["2024-01-04"], 0)
    publish("demand", "2024-01-04", table_of([row | {"sold": number} for row in rows]), f"-{number:g}", inputs)


def test_features_that_are_republished_meanwhile_are_read_again(home: Path, tmp_path: Path) -> None:
    model, file, first = write_days(home, tmp_path)
    read: list[dict[str, Any]] = []
    dataset = datasets.open_dataset("training_sets/demand")

    def build(republished: int) -> datasets.Manifest:
        inputs = first | seasonal_naive.seasonal_inputs(model, first["holdout"], "2024-01-14")
        read.append(inputs)
        if len(read) <= republished:
            republish_day(float(len(read)))
        staged = dataset.stage("as_of=2024-01-14", "f" * 64) / "seasonal.parquet"
        seasonal_naive.write_seasonal_naive(model, file, inputs, staged)
        return dataset.publish("as_of=2024-01-14", "f" * 64, {"seasonal": staged}, inputs)

    examples = read_again_if_republished(lambda: build(2))
    assert len(read) == 3
    published = datasets.open_dataset("features/demand").manifest("day=2024-01-04")
    assert published
    assert examples.inputs["history"]["day=2024-01-04"] == published.content_hash
    assert examples.inputs["history"] != first["history"]
    read.clear()
    with pytest.raises(InputsChangedError, match="republished 3 times while they were read; clear this task"):
        read_again_if_republished(lambda: build(99))


def test_labels_of_other_code_give_no_forecast(home: Path, tmp_path: Path) -> None:
    model, _, _ = write_days(home, tmp_path)
    # Before the holdout, where no row of a look lies: what is published for it says nothing about this day.
    republish_day(1.0, {"code": {"models.demand.features": "0" * 64}})
    with pytest.raises(StaleFeaturesError, match="differ from the newest period's") as error:
        seasonal_naive.seasonal_inputs(model, "2024-01-10", "2024-01-14")
    assert "2024-01-04: models.demand.features is no longer used" in str(error.value)
    assert "run `evergreen backfill demand --from 2024-01-04 --to 2024-01-04`, then clear" in str(error.value)
    republish_day(2.0)
    assert seasonal_naive.seasonal_inputs(model, "2024-01-10", "2024-01-14")


def test_models_of_other_kinds_have_no_history(home: Path, tmp_path: Path) -> None:
    model, _, _ = write_days(home, tmp_path)
    assert seasonal_naive.seasonal_inputs(model.model_copy(update={"forecast": None}), "2024-01-10", "2024-01-14") == {}
