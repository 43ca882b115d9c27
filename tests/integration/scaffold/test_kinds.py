"""Every kind of model that `evergreen new` writes, unchanged: it has no faults, and is tried up to its gates."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.cli.check import find_model_faults
from evergreen.cli.check.trial import Trial, run_steps
from evergreen.features.build import compute_features
from evergreen.periods import Calendar
from evergreen.spec.loader import load_spec
from support.scaffolds import make_project, order_lines

pytestmark = pytest.mark.integration

GRADES = ("bad", 'it\'s "fair"', "très bon", "東京", "24/7 <b>")
PERIOD = "2026-03-06"


def sample() -> pa.Table:
    """Return order lines with a grade of hostile names, clicks, and the session in which a line was seen."""
    lines = order_lines(days=6)
    profit = lines["profit"].to_numpy()
    grades = np.digitize(profit, np.quantile(profit, [0.2, 0.4, 0.6, 0.8]))
    columns = {
        "Grade!": [GRADES[grade] if row % 50 else None for row, grade in enumerate(grades)],
        "stars": grades.astype("int16") + 1,
        "clicks": np.maximum(0, grades - 2).astype("int8"),
        "Session ID": [f"s{row // 8}" for row in range(lines.num_rows)],
    }
    for name, values in columns.items():
        lines = lines.append_column(name, pa.array(values))
    return lines


@pytest.mark.parametrize(
    ("arguments", "declared"),
    [
        (("--label", "Grade!"), {"kind": "multiclass", "classes": tuple(sorted(GRADES))}),
        pytest.param(
            ("--label", "stars", "--kind", "multiclass"),
            {"kind": "multiclass", "classes": (1, 2, 3, 4, 5)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--label", "profit", "--kind", "quantile"),
            {"kind": "quantile", "quantiles": (0.1, 0.5, 0.9)},
            marks=pytest.mark.slow,
        ),
        (
            ("--label", "clicks", "--kind", "ranking", "--query-column", "Session ID"),
            {"kind": "ranking", "query": "session_id"},
        ),
        (("--label", "profit", "--kind", "forecast", "--key", "Store", "--season", "2"), {"kind": "forecast"}),
    ],
    ids=["multiclass of text", "multiclass of numbers", "quantile", "ranking", "forecast"],
)
def test_a_new_model_of_each_kind_is_tried_up_to_its_gates(
    arguments: tuple[str, ...],
    declared: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_models: Callable[..., None],
) -> None:
    project = make_project(tmp_path / "project", monkeypatch, use_models)
    pq.write_table(lines := sample(), tmp_path / "lines.parquet")
    if declared["kind"] == "ranking":  # events are tried with one of them
        events = lines.select(["article_no", "sold at", "Price €", "gift"]).rename_columns(
            ["Article No", "seen", "rows", "day"]
        )
        pq.write_table(events, tmp_path / "lookups.parquet")
        arguments += ("--events", str(tmp_path / "lookups.parquet"))
    project.new("lines", tmp_path / "lines.parquet", *arguments, "--deliver")
    spec = load_spec("lines")
    assert {name: getattr(spec, name) for name in declared} == declared
    assert find_model_faults("lines") == []
    trial = Trial(spec, PERIOD, output := io.StringIO())
    run_steps(trial, features_only=False)
    assert trial.faults == []
    records = [json.loads(line) for line in output.getvalue().splitlines()]
    states = {record["step"]: record["state"] for record in records if "step" in record}
    assert states["training"] == states["gates"] == "passed", records
    [verdict] = [record["verdict"] for record in records if "verdict" in record]
    outcomes = {result["gate"]: (result["outcome"], result["reason"]) for result in verdict["results"]}
    assert outcomes["signature"][0] == "passed", outcomes


@pytest.mark.parametrize(
    ("period", "options", "season", "window", "horizon", "delay"),
    [
        ("1d", ("--label-delay", "1d", "--horizon", "9"), 7, 28, 9, 1),
        ("1h", ("--season", "5", "--horizon", "3", "--no-input"), 5, 165, 3, 0),
        ("1w", ("--season", "1"), 1, 12, 4, 0),
    ],
)
def test_a_new_forecast_sees_what_was_known_when_it_was_made(
    period: str,
    options: tuple[str, ...],
    season: int,
    window: int,
    horizon: int,
    delay: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_models: Callable[..., None],
) -> None:
    calendar = Calendar(period, "Europe/Berlin")
    # Over the night in which clocks change; two rows of a series in one period, gaps, and a series that begins late.
    first = calendar.first_of(date(2026, 3, 28))
    periods = [calendar.shift(first, number) for number in range(40)]
    random = np.random.default_rng(54)
    scale = {"1d": 2.0**-60, "1h": 0.125, "1w": 2.0**60}[period]  # values may be small or large
    rows = [
        (calendar.start(name) + timedelta(minutes=7), shop, float(random.integers(0, 1000)) * scale)
        for number, name in enumerate(periods)
        for shop in ('it\'s "odd"', "東京", "new")
        for _ in range(int(random.integers(number == 0, 3)))
        if shop != "new" or number > 30
    ]
    at, shops, values = zip(*rows, strict=True)
    # Spark would not know which column is meant, if features.py made one of the same name.
    key, label = ("Start", "place") if period == "1h" else ("Shop", "sold")
    sample = pa.table({"at": pa.array(at, pa.timestamp("us", "UTC")), key: shops, label: values})
    pq.write_table(sample, tmp_path / "sales.parquet")
    project = make_project(tmp_path / "project", monkeypatch, use_models)
    arguments = ("--label", label, "--kind", "forecast", "--key", key, "--period", period, *options)
    project.new("sales", tmp_path / "sales.parquet", *arguments, "--timezone", "Europe/Berlin", "--deliver")
    spec = load_spec("sales")
    assert spec.forecast
    assert spec.forecast.season == season
    known: dict[str, dict[int, float]] = {}
    for moment, shop, value in rows:
        place = calendar.count(first, calendar.period_at(moment))
        known.setdefault(shop, {})[place] = known.get(shop, {}).get(place, 0.0) + value

    built = [periods[35], periods[8], periods[36]]  # not next to one another, and in one job
    folders = {name: tmp_path / str(number) for number, name in enumerate(built)}
    for folder in folders.values():
        folder.mkdir()
    compute_features(spec, folders)
    for name, folder in folders.items():
        place = calendar.count(first, name)
        spine = pq.read_table(folder / "examples.parquet").to_pylist()
        ahead = f"{calendar.unit}s_ahead"
        assert sorted((row[key.lower()], row[ahead], row[label], row["event_timestamp"]) for row in spine) == sorted(
            (shop, h, of[place], calendar.start(calendar.shift(name, 1 - h)))
            for shop, of in known.items()
            if place in of
            for h in range(1, horizon + 1)
        )
        known_at = calendar.end(calendar.shift(name, delay)) - timedelta(microseconds=1)
        assert {row["label_known_at"] for row in spine} <= {known_at}
        views: dict[str, Any] = {"series_history": [(1, 0)]}
        if season > 1:
            views["season_history"] = [(season, h) for h in range(1, horizon + 1)]
        for view, parts in views.items():
            expected = {}
            for shop, of in known.items():
                for step, h in parts:
                    # What was known when the period was over, of as long ago as the window is.
                    seen = [
                        of[number]
                        for number in range(place + 1 - delay - window, place + 1 - delay)
                        if number in of and (place + h - number) % step == 0
                    ]
                    if seen:
                        expected[shop, h] = (len(seen), float(np.mean(seen)), seen[-1])
            table = pq.read_table(folder / f"{view}.parquet").to_pylist()
            ends = calendar.end(name) - timedelta(microseconds=1)
            assert all(row["event_timestamp"] == ends for row in table)
            length = str(spec.features.sources[0].trailing) if delay == 0 else "28d"  # type: ignore[union-attr]
            columns = (f"rows_{length}", f"{label}_mean_{length}", f"{label}_last")
            found = {(row[key.lower()], row.get(ahead, 0)): tuple(row[column] for column in columns) for row in table}
            assert len(found) == len(table)
            assert found == {key: pytest.approx(value, rel=1e-12, abs=0) for key, value in expected.items()}
