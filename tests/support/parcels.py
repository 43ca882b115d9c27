"""A small model of parcels whose kind a test chooses, with published features: all steps in one process, no Spark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evergreen import evaluation, ledger
from evergreen.feature_store import training_sets
from evergreen.gates import MetricRows
from evergreen.lake import datasets
from evergreen.ledger import VerdictRecorded
from evergreen.promotion import looks, service
from evergreen.registry import versions
from evergreen.scoring.predictions import Champion
from evergreen.spec.model import ModelSpec
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from support.calendars import DAYS, later
from support.daily_features import publish_tables, retrain_window
from support.small_models import UseModels, write_small_model

FIRST, LAST = "2024-01-01", "2024-03-31"
ROWS = 60
ALL_INPUTS = ("items__size", "items__distance")
_SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="parcels", owner="tests", feature_service="parcels", label="outcome",
    features=dict(timezone="Asia/Tokyo", first_day="{first}", spine="orders", views=["items"],
                  sources=[dict(name="bookings", columns=dict(x="int64"))]),
    schedule="0 0 * * 1", train="21d", holdout="7d", **{options!r}
)
"""
_DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

item = Entity(name="item", join_keys=["item"], value_type=ValueType.INT64)
items = FeatureView(name="items", entities=[item], ttl=timedelta(days=1), source=feature_source("parcels", "items"),
                    schema=[Field(name="size", dtype=Float64), Field(name="distance", dtype=Float64)])
parcels = FeatureService(name="parcels", features=[items])
"""

Outcomes = Callable[[np.random.Generator, np.ndarray, np.ndarray], Mapping[str, Any]]
"""Returns `outcome` and other columns of the spine, (n,) each, of sizes and distances (n,)."""


def write_parcels(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_models: UseModels,
    train: str,
    outcomes: Outcomes,
    **options: Any,
) -> ModelSpec:
    """Write the model with these fields of the spec, and publish features of all days from FIRST to LAST."""
    model = write_model(root, monkeypatch, use_models, train, **options)
    for day in DAYS.periods_between(FIRST, LAST):
        _publish(day, outcomes)
    return model


def write_model(
    root: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels, train: str, **options: Any
) -> ModelSpec:
    """Write the model with these fields of the spec, without features."""
    spec = _SPEC.format(first=FIRST, options=options)
    return write_small_model("parcels", root, monkeypatch, use_models, _DEFINITIONS, model=spec, train=train)


def _publish(day: str, outcomes: Outcomes) -> None:
    number = date.fromisoformat(day).toordinal()
    random = np.random.default_rng(number)
    begins, instant = DAYS.start(day), pa.timestamp("us", "UTC")
    size, distance = random.random((2, ROWS))
    items = pa.array(1000 * number + np.arange(ROWS), pa.int64())
    orders = {
        "event_timestamp": pa.array([begins + timedelta(minutes=20 * row) for row in range(ROWS)], instant),
        "item": items,
        **outcomes(random, size, distance),
        "label_known_at": pa.array([begins + timedelta(hours=23)] * ROWS, instant),
    }
    views = {"event_timestamp": pa.array([begins] * ROWS, instant), "item": items, "size": size, "distance": distance}
    publish_tables("parcels", day, {"orders": orders, "items": views})


def error_of_worthy(rows: MetricRows) -> float:
    """Return the mean error of rows that are worth more than 1, whatever their weight, for a gate with that column."""
    error = np.abs(rows.prediction - rows.label)[rows.columns["worth"] > 1]
    return float(error.mean())


def window(model: ModelSpec, as_of: str) -> Window:
    """Return the window of a retrain as of a day."""
    return retrain_window(model, as_of, FIRST)


def train(model: ModelSpec, as_of: str, *inputs: str) -> tuple[datasets.Manifest, datasets.Manifest]:
    """Return the training set, and the candidate that learned from these inputs."""
    examples = training_sets.build_training_set(model, window(model, as_of))
    source = training_sets.training_set_dataset(model)
    return examples, process.train_in_process(model, examples, source, inputs)


def retrain(model: ModelSpec, as_of: str, *inputs: str) -> VerdictRecorded:
    """Train on these inputs, judge, register, and promote what passes; return the verdict's event."""
    examples, candidate = train(model, as_of, *inputs)
    champion = versions.find_champion(model)
    scores = evaluation.collect_evidence(model, examples, candidate, champion)
    compared = champion.version if champion else None
    context = service.EvaluationContext(f"of {as_of}", RunReason.SCHEDULE, examples, candidate, scores, compared)
    number = service.judge_candidate(model, context)
    version = versions.register_candidate(
        model, examples, candidate, number, service.verdict_report_path(model, number)
    )
    service.sync_champion_aliases(model)
    request = service.PromotionRequest(number, version, RunReason.SCHEDULE)
    if service.promotion_blocker(model, request) is None:
        service.promote_version(model, request, actor="a test")
    return ledger.read_verdict_event(model.name, number)


def look(model: ModelSpec, as_of: str) -> VerdictRecorded:
    """Judge the challenger on all days so far, promote it if it passes; return the verdict's event."""
    state = ledger.read_state(model.name)
    event = state.challenger_event
    assert event
    assert state.champion
    assert state.challenger
    start = event.holdout[0]
    end = training_sets.look_end(model, window(model, as_of), start)
    rows = training_sets.build_look_set(model, window(model, as_of), start, end)
    challenger = Champion(state.challenger, start, event.candidate_content)
    champion = Champion(state.champion, start, event.champion_content or "")
    scores = evaluation.collect_look_evidence(model, rows, challenger, champion)
    assert state.open_comparison
    number = looks.judge_look(
        model, looks.LookContext(f"look {as_of}", RunReason.SCHEDULE, state.open_comparison, rows, scores)
    )
    judged = ledger.read_verdict_event(model.name, number)
    if judged.verdict.promote:
        request = service.PromotionRequest(number, state.challenger, RunReason.SCHEDULE)
        service.promote_version(model, request, actor="a test")
    return judged


def retrain_until_champion(model: ModelSpec, first_inputs: str = "items__size") -> list[VerdictRecorded]:
    """Make a champion of one input, and a challenger of all that has to prove itself; return the verdicts' events."""
    start = later(FIRST, 30)
    events = [retrain(model, start, first_inputs), retrain(model, later(start, 7), *ALL_INPUTS)]
    for week in range(2, 7):
        if ledger.read_state(model.name).challenger is None:
            break
        events.append(look(model, later(start, 7 * week)))
    return events
