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
from support.scaffolds import Project, make_project, order_lines

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


def test_order_lines_become_a_candidate_that_sees_no_future(project: Project, tmp_path: Path) -> None:
    """Hostile names, nulls, a key of text and one of numbers; histories equal those of an oracle in plain Python."""
    sample = order_lines(days=26)
    pq.write_table(sample, tmp_path / "order lines.parquet")
    project.new("margin", tmp_path / "order lines.parquet", "--label", "loss", "--deliver", "--label-delay", "2d")
    rows, verdict = train_and_judge(load_spec("margin"))
    assert verdict.promote, verdict
    lines = sample.to_pylist()
    assert len(rows) > 1000
    compared = 0
    for row in random.Random(19).sample(rows, 100):
        # Days are those of the zone that the file names.
        local = row["event_timestamp"].astimezone(ZoneInfo("Europe/Berlin"))
        begin = local.replace(hour=0, minute=0, second=0, microsecond=0).astimezone(UTC)
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
