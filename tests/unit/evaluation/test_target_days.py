"""The day that a forecast is about: of any period and time zone, in memory and in files alike."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.evaluation import row_files
from evergreen.evaluation.rows import historical_evidence
from evergreen.evaluation.target_days import compute_targets, write_targets
from evergreen.gates.evidence import MissingEvidence, NoChampion
from evergreen.lake.datasets import PERIOD_COLUMN
from evergreen.spec.gates import ORIGIN_CLUSTER, TARGET_CLUSTER
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.spec.prediction_type import ForecastSeries
from support.ledgers import ledger_model

pytestmark = pytest.mark.unit


def model(period: str = "1d", timezone: str = "UTC", **changes: Any) -> ModelSpec:
    base = ledger_model("sales")
    assert isinstance(base.features, FeatureSpec)
    first = "2024-01-01T00:00Z" if period == "1h" else "2024-01-01"
    features = base.features.model_copy(update={"period": period, "timezone": timezone, "first_day": first})
    forecast = ForecastSeries(series=("shop",), horizon="ahead", season=7)
    return base.model_copy(update={"features": features, "kind": "forecast", "forecast": forecast} | changes)


def targets(model: ModelSpec, table: pa.Table, folder: Path) -> Any:
    """Return what is computed in memory, which is what is written."""
    file = folder / "holdout.parquet"
    pq.write_table(table, file, row_group_size=2)
    computed = compute_targets(model, table)
    for name, column in write_targets(model, file, folder).items():
        value = computed[name]
        if isinstance(column, MissingEvidence):
            assert isinstance(value, MissingEvidence)
        else:
            assert pq.read_table(column.file)[column.name].to_pylist() == value
    return computed.get(TARGET_CLUSTER)


@pytest.mark.parametrize("batch_rows", [2, 100])
def test_it_is_so_many_periods_after_the_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    monkeypatch.setattr(row_files.iter_tables, "__defaults__", (None, batch_rows))
    days = pa.array([date(2024, 2, 28), date(2024, 2, 27), date(2024, 12, 31), date(2024, 2, 28)])
    daily = pa.table({"day": days, "ahead": pa.array([2, 1, 0, 1], pa.int8()), "x": [1, 2, 3, 4]})
    expected = ["2024-03-01", "2024-02-28", "2024-12-31", "2024-02-29"]
    assert targets(model(), daily, tmp_path) == expected
    assert targets(model(), daily.slice(0, 0), tmp_path) == []
    # Of hours, a row's day is that of its period in the time zone: 23:00 UTC is the next day in Paris.
    hours = ["2024-02-28T21:00Z", "2024-02-28T22:00Z", "2024-02-28T23:00Z"]
    hourly = pa.table({"day": days.slice(0, 3), PERIOD_COLUMN: hours, "ahead": [1, 1, 24]})
    assert targets(model("1h", "Europe/Paris"), hourly, tmp_path) == ["2024-02-28", "2024-02-29", "2024-03-01"]
    weekly = pa.table({"day": days.slice(0, 2), PERIOD_COLUMN: ["2024-02-26", "2024-02-26"], "ahead": [0.0, 2.0]})
    assert targets(model("1w"), weekly, tmp_path) == ["2024-02-26", "2024-03-11"]


@pytest.mark.parametrize(
    ("ahead", "says"),
    [
        (pa.array([1, None], pa.int64()), "1 of 2 rows have no day or ahead"),
        (pa.array([1.0, 0.5]), "'ahead' is a column of double, not of whole numbers"),
        (pa.array(["a", "1"]), "'ahead' is a column of string, not of whole numbers"),
        (pa.array([1, 10**9]), "'ahead' has numbers of periods that no calendar has"),
        (None, "'ahead' is no column of the holdout"),
    ],
)
def test_what_is_no_horizon_is_named(ahead: Any, says: str, tmp_path: Path) -> None:
    table = pa.table({"day": [date(2024, 1, 1)] * 2} | ({} if ahead is None else {"ahead": ahead}))
    found = targets(model(), table, tmp_path)
    assert isinstance(found, MissingEvidence)
    assert says in found.problem


def test_only_forecasts_whose_days_are_clusters_have_it() -> None:
    table = pa.table({"day": [date(2024, 1, 1)], "ahead": [1]})
    assert list(compute_targets(model(clusters=("shop", "day")), table)) == [TARGET_CLUSTER]
    assert compute_targets(model(clusters=("shop",)), table) == {}
    assert compute_targets(ledger_model("other"), table) == {}


def test_where_rows_are_of_their_target_it_is_the_day_of_the_origin(tmp_path: Path) -> None:
    forecast = ForecastSeries(series=("shop",), horizon="ahead", season=7, row_period="target")
    days = pa.array([date(2024, 3, 1), date(2024, 3, 1), date(2025, 1, 1)])
    daily = pa.table({"day": days, "ahead": pa.array([2, 0, 1], pa.int16())})
    spec = model(forecast=forecast)
    expected = ["2024-02-28", "2024-03-01", "2024-12-31"]
    assert compute_targets(spec, daily) == {ORIGIN_CLUSTER: expected}
    pq.write_table(daily, tmp_path / "holdout.parquet")
    [(name, column)] = write_targets(spec, tmp_path / "holdout.parquet", tmp_path).items()
    assert not isinstance(column, MissingEvidence)
    assert (name, pq.read_table(column.file)[column.name].to_pylist()) == (ORIGIN_CLUSTER, expected)
    hourly = pa.table({"day": days, PERIOD_COLUMN: ["2024-02-28T23:00Z"] * 3, "ahead": [0, 1, 24]})
    found = compute_targets(model("1h", "Europe/Paris", forecast=forecast), hourly)
    assert found == {ORIGIN_CLUSTER: ["2024-02-29", "2024-02-28", "2024-02-28"]}


def test_the_evidence_of_a_forecast_has_it(tmp_path: Path) -> None:
    table = pa.table({"day": [date(2024, 1, 1), date(2024, 1, 2)], "ahead": [1, 3], "label": [1.0, 2.0]})
    periods = ("2024-01-01", "2024-01-03")
    evidence = historical_evidence(model(), table, tmp_path, [1.0, 2.0], NoChampion(), periods, {})
    assert evidence.clusters == {"day": ["2024-01-01", "2024-01-02"], TARGET_CLUSTER: ["2024-01-02", "2024-01-05"]}
