"""Groups and baselines of holdout rows: what an expression may do, and what is said when it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from evergreen.evaluation import row_files
from evergreen.evaluation.row_files import RowColumn
from evergreen.evaluation.rows import (
    compute_baselines,
    compute_clusters,
    compute_groups,
    labelled_periods,
    write_baselines,
    write_clusters,
    write_groups,
)
from evergreen.gates.alpha_spending import AlphaSpend, EarlierComparison, next_alpha
from evergreen.gates.evidence import MissingEvidence
from evergreen.lake import datasets
from evergreen.spec.prediction_type import PredictionType
from support.calendars import DAYS, later

pytestmark = pytest.mark.unit


def training_set(end: str) -> datasets.Manifest:
    return datasets.Manifest("as_of=2013-03-15", "f", {"holdout": "2013-03-01", "holdout_end": end}, {})


@pytest.mark.parametrize(
    ("counts", "end"),
    [
        ({"2013-03-01": (5, 5), "2013-03-06": (5, 1), "2013-03-07": (5, 0)}, "2013-03-07"),
        ({"2013-03-01": (5, 5)}, "2013-03-02"),
        ({"2013-03-06": (5, 0)}, "2013-03-08"),
        ({}, "2013-03-08"),
    ],
)
def test_labelled_days_end_with_the_last_label(counts: dict[str, tuple[int, int]], end: str) -> None:
    expected = ("2013-03-01", end)
    assert labelled_periods(training_set("2013-03-08"), counts, DAYS) == expected


def test_late_labels_leave_the_budget_as_it_is() -> None:
    """A year of weekly retrains whose labels come after 30 days: no labelled row is used twice, so no level halves."""
    levels: dict[str, list[float]] = {}
    for name, label_delay, holdout_days in (("declared", 30, 7), ("not declared", 0, 37), ("no delay", 0, 7)):
        earlier: list[EarlierComparison] = []
        late = 30 if name == "not declared" else 0
        for week in range(52):
            as_of = later("2013-01-01", 7 * week)
            end = later(as_of, -label_delay)
            inputs = {"holdout": later(end, -holdout_days), "holdout_end": end}
            counts = {later(end, -n): (9, 9 if n > late else 0) for n in range(1, holdout_days + 1)}
            days = DAYS.dates(*labelled_periods(datasets.Manifest("p", "f", inputs, {}), counts, DAYS))
            alpha = next_alpha(0.05, "auc", days, earlier)
            earlier.append(EarlierComparison(days, (AlphaSpend("auc", alpha, False),)))
            levels.setdefault(name, []).append(alpha)
    assert levels["declared"] == levels["not declared"] == levels["no delay"]
    assert levels["declared"][51] > 3e-5  # by the calendar, with five earlier holdouts on the same days: 1e-6


TABLE = pa.table(
    {
        "carrier": ["UA", "AA", None, "UA"],
        "distance": pa.array([300, 100, 200, None], pa.int32()),
        "left_at": pa.array([datetime(2013, 1, 1, hour, tzinfo=UTC) for hour in (23, 5, 5, 0)]),
        "last seen": [0.25, None, float("nan"), 0.75],
        "group": ["keyword", "as", "a", "name"],
    }
)


def contents(columns: Mapping[str, RowColumn | MissingEvidence]) -> dict[str, Any]:
    """Return what was written, as the functions that compute the same of a table in memory return it."""
    return {
        name: value if isinstance(value, MissingEvidence) else pq.read_table(value.file)[value.name].to_pylist()
        for name, value in columns.items()
    }


@pytest.fixture
def holdout(tmp_path: Path) -> Path:
    """The table in a file whose name has characters that mean something in patterns and in SQL."""
    file = tmp_path / "day=2013-01-01" / "it's [1] *.parquet"
    file.parent.mkdir()
    pq.write_table(TABLE, file)
    return file


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("carrier", ["UA", "AA", None, "UA"]),
        ("group", ["keyword", "as", "a", "name"]),
        ("last seen", ["0.25", None, "nan", "0.75"]),
        ("hour(left_at)", ["23", "5", "5", "0"]),
        ("distance >= 200", ["true", "false", "true", None]),
        # A window function sees the rows in an order of its own; they come back in theirs.
        ("row_number() OVER (ORDER BY distance NULLS LAST)", ["3", "1", "2", "4"]),
        ("max(distance) OVER ()", ["300"] * 4),
        # Statistics of a file leave NaN out.
        ('isnan("last seen")', ["false", None, "true", "false"]),
        ('"last seen" > 1', ["false", None, "true", "false"]),
        ("(SELECT count(*) FROM holdout h WHERE h.carrier = holdout.carrier)", ["2", "1", "0", "2"]),
    ],
)
def test_a_group_for_each_row_in_the_rows_order(
    expression: str, expected: list[str | None], holdout: Path, tmp_path: Path
) -> None:
    assert compute_groups(TABLE, [expression]) == {expression: expected}
    assert contents(write_groups(holdout, [expression], tmp_path)) == {expression: expected}


def test_a_cluster_for_each_row_is_a_day_or_a_value_of_a_column(tmp_path: Path) -> None:
    days = pa.array([date(2013, 1, 1), date(2013, 1, 1), date(2013, 1, 2), None], pa.date32())
    table = TABLE.append_column("day", days).append_column("tags", pa.array([[1], [2], [3], [4]]))
    found = compute_clusters(table, ["day", "carrier", "distance", "plane", "tags"])
    assert found["day"] == ["2013-01-01", "2013-01-01", "2013-01-02", None]
    assert found["carrier"] == ["UA", "AA", None, "UA"]
    assert found["distance"] == ["300", "100", "200", None]
    for name, problem in (("plane", "'plane' is no column of the holdout; its"), ("tags", "which names nothing")):
        missing = found[name]
        assert isinstance(missing, MissingEvidence)
        assert problem in missing.problem
    pq.write_table(table, tmp_path / "holdout.parquet")
    written = contents(write_clusters(tmp_path / "holdout.parquet", list(found), tmp_path))
    assert isinstance(written.pop("tags"), MissingEvidence)
    assert written == {name: found[name] for name in written}


def test_no_rows_have_no_groups() -> None:
    assert compute_groups(TABLE.slice(0, 0), ["carrier", "hour(left_at)"]) == {
        "carrier": [],
        "hour(left_at)": [],
    }


def test_no_rows_in_a_file_have_no_groups_either(tmp_path: Path) -> None:
    file = tmp_path / "holdout.parquet"
    pq.write_table(TABLE.slice(0, 0), file)
    names = ["carrier", "hour(left_at)", "row_number() OVER (ORDER BY distance)"]
    assert contents(write_groups(file, names, tmp_path)) == {name: [] for name in names}
    assert contents(write_clusters(file, ["carrier"], tmp_path)) == {"carrier": []}


def test_many_rows_keep_their_order() -> None:
    numbers = np.random.default_rng(1).permutation(300_000)
    found = compute_groups(pa.table({"n": numbers}), ["n % 1000"])["n % 1000"]
    assert found == [str(number) for number in numbers % 1000]


@pytest.mark.parametrize("expression", ["n % 1000", "ntile(1000) OVER (ORDER BY n)"])
def test_many_rows_of_a_file_keep_their_order(tmp_path: Path, expression: str) -> None:
    table = pa.table({"n": np.random.default_rng(1).permutation(300_000)})
    pq.write_table(table, tmp_path / "holdout.parquet", row_group_size=65_536)
    written = contents(write_groups(tmp_path / "holdout.parquet", [expression], tmp_path))
    assert written == compute_groups(table, [expression])


@pytest.mark.parametrize(
    "expression",
    [
        "carier",
        "hour(",
        "hour(carrier)",
        "max(distance)",
        "1); SELECT (2",
        "(SELECT content FROM read_text('/etc/hostname'))",
        "(SELECT count(*) FROM table)",
        "(SELECT 1 FROM read_parquet('/tmp/*.parquet'))",
    ],
)
def test_what_cannot_be_computed_is_named_with_the_columns_there_are(
    expression: str, holdout: Path, tmp_path: Path
) -> None:
    names = ["carrier", expression]
    for found in (compute_groups(TABLE, names), contents(write_groups(holdout, names, tmp_path))):
        assert found["carrier"] == ["UA", "AA", None, "UA"]
        problem = found[expression]
        assert isinstance(problem, MissingEvidence)
        assert repr(expression) in problem.problem
        assert "its columns are carrier, distance, left_at, last seen, group" in problem.problem
        assert "\n" not in problem.problem


def test_an_expression_that_changes_the_number_of_rows_is_refused(holdout: Path, tmp_path: Path) -> None:
    expression = "unnest([1, 2])"
    expected = MissingEvidence(f"{expression!r} returns 8 values for 4 rows: one for each is needed")
    assert compute_groups(TABLE, [expression]) == {expression: expected}
    assert contents(write_groups(holdout, [expression], tmp_path)) == {expression: expected}


def test_an_expression_reads_no_other_file_of_the_lake(holdout: Path, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "secret.parquet")
    expression = f"(SELECT max(carrier) FROM read_parquet('{tmp_path}/secret.parquet'))"
    problem = contents(write_groups(holdout, [expression], tmp_path))[expression]
    assert isinstance(problem, MissingEvidence)
    assert "file system operations are disabled" in problem.problem


def test_a_value_that_cannot_be_converted_is_found_in_any_batch(train: Path, tmp_path: Path) -> None:
    """The last row of many is no number, and no text."""
    texts = pa.array([b"1"] * 70_000 + [b"\xff"], pa.binary())
    numbers = pa.array(["1"] * 70_000 + ["one"])
    table = pa.table({"plane": texts, "rate": numbers})
    pq.write_table(table, tmp_path / "holdout.parquet")
    clusters = contents(write_clusters(tmp_path / "holdout.parquet", ["plane"], tmp_path))
    assert clusters == compute_clusters(table, ["plane"])
    assert isinstance(clusters["plane"], MissingEvidence)
    baselines = contents(write_baselines(tmp_path / "holdout.parquet", train, ["rate"], tmp_path))
    assert baselines == compute_baselines(table, train, ["rate"])
    assert isinstance(baselines["rate"], MissingEvidence)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"label": pa.array([1, 0, 0, 0], pa.int32())}), tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def test_the_prior_of_the_training_rows_fills_missing_baselines(train: Path, holdout: Path, tmp_path: Path) -> None:
    names = ["prior", "last seen", "distance"]
    for found in (compute_baselines(TABLE, train, names), contents(write_baselines(holdout, train, names, tmp_path))):
        assert list(found["prior"]) == [0.25] * 4
        assert list(found["last seen"]) == [0.25, 0.25, 0.25, 0.75]
        assert list(found["distance"]) == [300, 100, 200, 0.25]


def test_the_prior_is_the_mean_to_the_last_bit(tmp_path: Path) -> None:
    label = pa.array(np.random.default_rng(2).lognormal(size=400_000), mask=np.arange(400_000) % 11 == 0)
    pq.write_table(pa.table({"label": label}), tmp_path / "train.parquet", row_group_size=65_536)
    [prior] = compute_baselines(TABLE.slice(0, 1), tmp_path / "train.parquet", ["prior"])["prior"]
    assert prior == pc.mean(pq.read_table(tmp_path / "train.parquet")["label"]).as_py()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("last_seen", "'last_seen' is no column of the holdout; its columns are carrier"),
        ("carrier", "'carrier' is a column of string, which predicts nothing"),
        ("left_at", "which predicts nothing"),
    ],
)
def test_a_column_that_predicts_nothing_is_named(
    train: Path, holdout: Path, tmp_path: Path, name: str, problem: str
) -> None:
    found = compute_baselines(TABLE, train, [name])[name]
    assert isinstance(found, MissingEvidence)
    assert problem in found.problem
    assert contents(write_baselines(holdout, train, [name], tmp_path)) == {name: found}


def test_without_training_rows_there_is_no_prior(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": pa.array([], pa.int32())}), tmp_path / "train.parquet")
    found = compute_baselines(TABLE, tmp_path / "train.parquet", ["prior"])
    assert isinstance(found["prior"], MissingEvidence)
    pq.write_table(TABLE, tmp_path / "holdout.parquet")
    holdout, train = tmp_path / "holdout.parquet", tmp_path / "train.parquet"
    assert contents(write_baselines(holdout, train, ["prior"], tmp_path)) == found


@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass", "quantile"])
def test_a_weighted_prior_is_that_of_repeated_rows(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    classes, quantiles = ("a", "b", "c"), (0.1, 0.5, 0.9)
    values: Any = random.choice(classes, 301) if kind == "multiclass" else random.integers(0, 2, 301)
    values = random.gamma(2, size=301) if kind in ("regression", "quantile") else values
    label = [None if row % 50 == 7 else value for row, value in enumerate(values.tolist())]
    times = random.integers(0, 4, 301)
    weighted = pa.table({"label": label, "how often": pa.array(times, pa.int8())})
    repeated = weighted.take(np.repeat(np.arange(301), times))
    for name, table in {"weighted": weighted, "repeated": repeated}.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    options: Any = {"multiclass": {"classes": classes}, "quantile": {"quantiles": quantiles}}.get(kind, {})
    prediction = PredictionType(kind=kind, **options)  # type: ignore[arg-type]  # of the list above
    row, file = TABLE.slice(0, 1), tmp_path / "weighted.parquet"
    [prior] = compute_baselines(row, file, ["prior"], prediction, weight="how often")["prior"]
    if kind == "quantile":
        known = [value for value in repeated["label"].to_pylist() if value is not None]
        expected: Any = np.quantile(known, quantiles, method="inverted_cdf")
    else:
        [expected] = compute_baselines(row, tmp_path / "repeated.parquet", ["prior"], prediction)["prior"]
    assert prior == pytest.approx(expected, rel=1e-12)
    [plain] = compute_baselines(row, file, ["prior"], prediction)["prior"]
    assert np.abs(np.subtract(prior, plain)).max() > 1e-4
    pq.write_table(row, tmp_path / "row.parquet")
    written = write_baselines(tmp_path / "row.parquet", file, ["prior"], tmp_path, prediction, weight="how often")
    assert contents(written)["prior"][0] == pytest.approx(prior, rel=1e-12)


@pytest.mark.parametrize("batch", [3, 1000])
def test_the_prior_of_a_forecast_is_naive_where_that_exists(
    batch: int, tmp_path: Path, train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files.iter_tables, "__defaults__", (None, batch))
    forecast = PredictionType(kind="forecast")
    column = [None if row % 3 else float(row) for row in range(10)]
    table, naive = pa.table({"seen": column}), [None if row % 2 else 100.0 + row for row in range(10)]
    pq.write_table(table, tmp_path / "rows.parquet")
    seasonal = pa.table({"naive": pa.array(naive), "scale": pa.array([1.0] * 10)})
    pq.write_table(seasonal, tmp_path / "seasonal.parquet")
    loaded = compute_baselines(table, train, ["prior", "seen"], forecast, seasonal)
    expected = [0.25 if value is None else value for value in naive]
    assert list(loaded["prior"]) == expected
    assert list(loaded["seen"]) == [e if value is None else value for value, e in zip(column, expected, strict=True)]
    seasonal_path = tmp_path / "seasonal.parquet"
    written = write_baselines(tmp_path / "rows.parquet", train, ["prior", "seen"], tmp_path, forecast, seasonal_path)
    assert {name: list(values) for name, values in contents(written).items()} == {
        name: list(values) for name, values in loaded.items()
    }
