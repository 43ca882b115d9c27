"""Models as `evergreen new` writes them, unchanged: from a sample to a candidate that its gates judge."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from evergreen import evaluation, ledger
from evergreen.feature_store import online_store, training_sets
from evergreen.feature_store.online_features import read_online_features
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.gates import Verdict
from evergreen.promotion import service
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ModelSpec
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from support.scaffolds import START, Project, make_project, order_lines

pytestmark = pytest.mark.integration


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]) -> Project:
    return make_project(tmp_path / "my models", monkeypatch, use_models)


def train_and_judge(model: ModelSpec) -> tuple[list[dict[str, Any]], Verdict]:
    """Build all features and train on them; return all training rows, and the verdict about the candidate."""
    spec = feature_spec(model)
    assert spec.end_period
    run_feature_pipeline(model, list(spec.calendar.periods_between(spec.first_period, spec.end_period)))
    window = Window.from_range(spec.first_period, spec.end_period, RunReason.SCHEDULE, spec.calendar)
    examples = training_sets.build_training_set(model, window)
    source = training_sets.training_set_dataset(model)
    rows = [pq.read_table(source.file_path(examples, name)).to_pylist() for name in ("train", "holdout")]
    assert_served_as_learned(model, rows[1])
    online_store.materialize_features(model, window)
    candidate = process.train_in_process(model, examples, source, training_sets.model_input_columns(model))
    scores = evaluation.collect_evidence(model, examples, candidate, None)
    context = service.EvaluationContext("a test", RunReason.SCHEDULE, examples, candidate, scores, None)
    verdict = ledger.read_verdict_event(model.name, service.judge_candidate(model, context)).verdict
    return [row for part in rows for row in part], verdict


def assert_served_as_learned(model: ModelSpec, rows: list[dict[str, Any]]) -> None:
    """Check that requests of a period get what its training rows have, once the period before it is published."""
    spec = feature_spec(model)
    newest = max(spec.calendar.period_at(row["event_timestamp"]) for row in rows)
    window = Window.from_range(spec.first_period, newest, RunReason.SCHEDULE, spec.calendar)
    assert online_store.materialize_features(model, window)
    asked = [row for row in rows if spec.calendar.period_at(row["event_timestamp"]) == newest]
    keys = [{name: row[name] for name in ("store", "article_no") if name in row} for row in asked]
    served = read_online_features(model, keys, max(row["event_timestamp"] for row in asked))
    assert served
    for name, values in served.items():
        assert values == [row[name] for row in asked], name
    assert any(value is not None for values in served.values() for value in values)


def write_visits(file: Path) -> list[dict[str, Any]]:
    """Write events of stores, from before the first order line on and not on all days, as CSV; return them."""
    draw = random.Random(79)
    visits = [
        {
            "store": draw.choice(["Köln Süd", 'O"Fallon', "東京"]),  # and none of the fourth store
            "at": START + timedelta(days=day, hours=draw.uniform(-5, 17)),
            "wait min": draw.choice([None, -0.0, 0.0, draw.uniform(-1e-9, 1e12)]),
        }
        for day in range(-9, 26)
        if day not in (-2, 11, 12)
        for _ in range(12)
    ]
    draw.shuffle(visits)
    columns = {name: [visit[name] for visit in visits] for name in visits[0]}
    pyarrow.csv.write_csv(pa.table(columns | {"at": pa.array(columns["at"], pa.timestamp("us", "UTC"))}), file)
    return visits


def assert_events_of_oracle(row: dict[str, Any], begin: datetime, visits: list[dict[str, Any]]) -> bool:
    """Check what a training row has of events against plain Python; return whether there were any."""
    values = {name.removeprefix("visits_history__"): value for name, value in row.items() if "visits_history" in name}
    seen: list[dict[str, Any]] = []
    for window, days in (("1d", 1), ("7d", 7)):
        seen = [v for v in visits if v["store"] == row["store"] and begin - timedelta(days) <= v["at"] < begin]
        waits = [visit["wait min"] for visit in seen if visit["wait min"] is not None]
        # A store that was asked about lately has 0 events; one that is new has no row.
        first_day = begin <= START
        assert values[f"rows_{window}"] == len(seen) or (first_day and not seen and values[f"rows_{window}"] is None)
        mean, largest = (values[f"wait_min_{name}_{window}"] for name in ("mean", "max"))
        assert (mean, largest) == ((pytest.approx(sum(waits) / len(waits)), max(waits)) if waits else (None, None))
    last = max((visit["at"] for visit in seen), default=None)
    since = None if last is None else pytest.approx((begin - last) / timedelta(hours=1), abs=1e-6)
    assert values["hours_since_last"] == since
    return bool(seen)


def test_order_lines_become_a_candidate_that_sees_no_future(project: Project, tmp_path: Path) -> None:
    """Hostile names, nulls, a key of text and one of numbers, and events beside the lines.

    Histories equal those of an oracle in plain Python.
    """
    sample = order_lines(days=26)
    pq.write_table(sample, tmp_path / "order lines.parquet")
    visits = write_visits(tmp_path / "visits.csv")
    arguments = ("--label", "loss", "--deliver", "--label-delay", "2d", "--events", str(tmp_path / "visits.csv"))
    project.new("margin", tmp_path / "order lines.parquet", *arguments)
    rows, verdict = train_and_judge(load_spec("margin"))
    assert verdict.promote, verdict
    lines = sample.to_pylist()
    assert len(rows) > 1000
    compared = with_events = 0
    for row in random.Random(19).sample(rows, 100):
        # Days are those of the zone that the file names.
        local = row["event_timestamp"].astimezone(ZoneInfo("Europe/Berlin"))
        begin = local.replace(hour=0, minute=0, second=0, microsecond=0).astimezone(UTC)
        with_events += assert_events_of_oracle(row, begin, visits)
        for key, column in (("store", "Store"), ("article_no", "article_no")):
            known = [
                line["loss"] == "yes"
                for line in lines
                if line[column] == row[key]
                and begin - timedelta(days=28) <= line["sold at"] + timedelta(days=2) < begin
            ]
            count, rate = (row[f"{key}_history__{name}"] for name in ("rows_28d", "loss_rate_28d"))
            assert (count or 0) == len(known), row
            if known:
                assert rate == pytest.approx(sum(known) / len(known), abs=1e-12)
                compared += 1
    assert compared > 150
    assert 50 < with_events < 100


@pytest.mark.slow
def test_hours_without_keys_become_a_candidate(project: Project, tmp_path: Path) -> None:
    """A regression on clock times of a zone, with hours without rows, and a history of all rows together."""
    draw, count = np.random.default_rng(7), 1200
    minutes = np.sort(draw.choice(10 * 24 * 60, count, replace=False))
    start = datetime(2026, 4, 1, tzinfo=UTC).replace(tzinfo=None)
    heat = draw.uniform(-5, 30, count)
    table = pa.table(
        {
            "at": pa.array([start + timedelta(minutes=int(m)) for m in minutes if not 180 <= m % 1440 < 300]),
        }
    )
    kept = [index for index, m in enumerate(minutes) if not 180 <= m % 1440 < 300]
    table = table.append_column("heat", pa.array(heat[kept]))
    table = table.append_column("load", pa.array(100 + 3 * heat[kept] + draw.normal(0, 5, len(kept))))
    pq.write_table(table, tmp_path / "load.parquet")
    arguments = ("--period", "1h", "--timezone", "Europe/Berlin", "--deliver")
    output = project.new("load", tmp_path / "load.parquet", "--label", "load", *arguments).output
    assert "the history is that of all rows together" in output
    rows, verdict = train_and_judge(load_spec("load"))
    assert verdict.promote, verdict
    later = [row for row in rows if row["event_timestamp"] > datetime(2026, 4, 2, tzinfo=UTC)]
    assert all(row["recent_history__rows_7d"] > 10 for row in later)
