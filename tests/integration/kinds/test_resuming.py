"""Trainers of several kinds that are interrupted: those that go on, that begin anew, and that forget something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergreen.cli.check.resuming import find_resuming_faults
from evergreen.cli.check.steps import SkippedStepError
from evergreen.spec.model import ModelSpec
from support import parcels
from support.calendars import later
from support.small_models import reload_spec

pytestmark = pytest.mark.integration

# Grows a tree per step from the margin of those before, so that a step depends on the model alone.
TRAIN = """
import numpy as np
import pyarrow.parquet as pq
import xgboost as xgb

OBJECTIVES = {{"multiclass": "multi:softprob", "regression": "reg:squarederror"}}


def fit(job, output, checkpoints):
    table = pq.read_table(job.training_data)
    values = table[job.label].to_pylist()
    label = [job.classes.index(value) for value in values] if job.classes else values
    data = xgb.QuantileDMatrix(table.select(list(job.features)), label=label, nthread=1)
    options = {{"objective": OBJECTIVES["{kind}"], "max_depth": 2, "nthread": 1, "seed": job.seed}}
    if job.classes:
        options["num_class"] = len(job.classes)
    checkpoint = {load}
    model = bytearray(checkpoint.files["model.ubj"]) if checkpoint else None
    booster = xgb.Booster(options, cache=[data], model_file=model)
    for number in range({first}, 7):
        {before}
        booster.update(data, number)
        {after}
    booster.save_model(output / "model.ubj")
    return {{}}
"""
SOUND = {
    "load": "checkpoints.load_latest()",
    "first": "checkpoint.step if checkpoint else 0",
    "before": "pass",
    "after": 'checkpoints.record_step(number + 1, lambda: {"model.ubj": bytes(booster.save_raw("ubj"))})',
}
GATES = {
    "regression": [{"kind": "threshold", "metric": "mae", "at_most": 9.0}],
    "multiclass": [{"kind": "threshold", "metric": "accuracy", "at_least": 0.1}],
}
CLASSES = ('it\'s "on time"', "late")


def outcomes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    return {"outcome": 5 * size + distance}


def classes(random: np.random.Generator, size: np.ndarray, distance: np.ndarray) -> Mapping[str, Any]:
    return {"outcome": np.array(CLASSES)[(size > 0.5).astype(int)].tolist()}


@pytest.fixture
def interrupted(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> Any:
    """Return a function that writes a model with a trainer, trains it, and interrupts it."""
    written: list[ModelSpec] = []

    def find(kind: str = "regression", **changes: str) -> tuple[list[Any], str]:
        train = TRAIN.format(kind=kind, **{**SOUND, **changes})
        if not written:
            spine = {"regression": outcomes, "multiclass": classes}[kind]
            options = {"kind": kind, "gates": GATES[kind], **({"classes": CLASSES} if kind == "multiclass" else {})}
            written.append(parcels.write_parcels(tmp_path, monkeypatch, use_models, train, spine, **options))
        (tmp_path / "evergreen_models/parcels/train.py").write_text(train)
        model = reload_spec("parcels")
        as_of = later(parcels.FIRST, 30)
        return find_resuming_faults(model, *parcels.train(model, as_of, *parcels.ALL_INPUTS))

    return find


@pytest.mark.parametrize("kind", GATES)
def test_training_that_goes_on_gives_the_same_model(interrupted: Any, kind: str) -> None:
    faults, text = interrupted(kind)
    assert faults == []
    assert text == "the same files after it was interrupted twice within 7 steps"


def test_training_that_does_not_go_on_is_named(interrupted: Any, tmp_path: Path) -> None:
    [fault] = interrupted(load="None")[0]
    assert fault.file == tmp_path / "evergreen_models/parcels/train.py"
    assert "begins anew after an interruption" in fault.problem
    # The order of a generator, which no checkpoint has, decides about the next tree.
    forgetful = {"before": "booster.set_param({'eta': float(random.random())})"}
    forgetful["load"] = "checkpoints.load_latest(); random = np.random.default_rng(job.seed)"
    [fault] = interrupted(**forgetful)[0]
    assert "gives other predictions after an interruption: for " in fault.problem
    assert "of 420 rows" in fault.problem
    [fault] = interrupted(before="booster.set_param({'eta': float(np.random.default_rng().random())})")[0]
    assert "when the same job is trained twice, without an interruption" in fault.problem


def test_other_bytes_with_the_same_predictions_are_the_same_model(interrupted: Any) -> None:
    faults, text = interrupted(after=f"{SOUND['after']}; booster.set_attr(made=str(checkpoints.resumed_step))")
    assert faults == []
    assert text == "other files, and the same predictions after it was interrupted twice within 7 steps"


def test_a_trainer_without_steps_is_skipped(interrupted: Any) -> None:
    with pytest.raises(SkippedStepError, match=r"train\.py records no steps: an interrupted training begins anew"):
        interrupted(after="pass")


def test_an_attempt_that_fails_is_no_answer(interrupted: Any) -> None:
    fails_later = "assert not checkpoint, 'cannot go on'"
    with pytest.raises(Exception, match="cannot go on"):
        interrupted(before=fails_later)
