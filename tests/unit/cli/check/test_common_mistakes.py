"""The mistakes that people make most often with a new model, and that no data is needed to see: one message for each.

Those that need a period of raw data are in `tests/integration/cli/test_common_mistakes.py`; rarer ones in `test_check`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.cli.check import find_model_faults
from evergreen.settings import settings
from support.mistakes import (
    FEAST,
    FEATURES,
    MODEL,
    RULES,
    SPEC,
    TRAIN,
    Mistake,
    assert_is_named,
    make_mistake,
    write_model,
)
from support.scaffolds import Project
from support.small_models import UseModels, forget_model

pytestmark = pytest.mark.unit

MISTAKES = {
    "kind of the model": Mistake(
        SPEC, 'kind="binary"', 'kind="binery"', "got 'binery'", "did you mean 'binary'?", "kind="
    ),
    "kind that is like none": Mistake(
        SPEC, 'kind="binary"', 'kind="yes or no"', "'binary', 'multiclass', 'regression'", "write one of them", "kind="
    ),
    "name of the raw data as an input": Mistake(
        SPEC, '        "price",', '        "Price €",', "got 'Price €'", "write a–z, 0–9 and _", "Price €"
    ),
    "kind of a gate": Mistake(
        SPEC, 'kind="signature"', 'kind="signatur"', "is no kind of gate", "did you mean 'signature'?", "signatur"
    ),
    "metric": Mistake(SPEC, 'metric="auc"', 'metric="acu"', "'acu' is none of", "did you mean 'auc'?", "acu"),
    "metric of another kind": Mistake(
        SPEC, 'metric="auc"', 'metric="rmse"', "rmse is a metric of", "take one of auc", "rmse"
    ),
    "input": Mistake(
        SPEC,
        '        "price",',
        '        "prise",',
        "the spine 'examples' has no column 'prise'; it has event_timestamp",
        "did you mean 'price'?",
        "prise",
    ),
    "service": Mistake(
        SPEC,
        'feature_service="margin"',
        'feature_service="margins"',
        "defines no service 'margins'; it has margin",
        "did you mean 'margin'?",
        "margins",
    ),
    "view": Mistake(
        SPEC,
        '"store_history"',
        '"stores_history"',
        "there is no view 'stores_history'",
        "did you mean 'store_history'?",
        "stores_history",
    ),
    "entity": Mistake(
        FEAST,
        "entities=[entity]",
        "entities=[stores]",
        "name 'stores' is not defined; there are entity, timedelta,",
        "import or define it",
        "stores",
    ),
    "missing features.py": Mistake(
        FEATURES, "", "", "no such file; in this folder are", "it builds the features", None
    ),
    "missing file of the feature repository": Mistake(FEAST, "", "", "no such file", "write it", None),
    "label that is not in the spine": Mistake(
        SPEC,
        'label="loss"',
        'label="lost"',
        "the spine 'examples' has no column 'lost'",
        "did you mean 'loss'?",
        "lost",
    ),
    "label as an input": Mistake(
        SPEC, '        "price",', '        "loss",', "nobody knows it when a prediction is made", "remove it", '"loss",'
    ),
    "period": Mistake(
        SPEC, 'timezone="Europe/Berlin"', 'timezone="UTC", period="3d"', "3d is no period", "write 1d or 1w", "period"
    ),
    "type of a raw column": Mistake(
        SPEC, '"gift": dict(type="bool"', '"gift": dict(type="boolean"', "'boolean' is no type", "'bool'", "boolean"
    ),
    "no time zone of the calendar": Mistake(
        SPEC, 'timezone="Europe/Berlin",', "", "field required", "add it", "features=dict("
    ),
    "time zone that does not exist": Mistake(
        SPEC,
        'timezone="Europe/Berlin"',
        'timezone="Berlin"',
        "is no IANA time zone",
        "write one like 'America/New_York'",
        "Berlin",
    ),
    "time without a zone": Mistake(
        SPEC,
        'type="timestamp[us, tz=UTC]"',
        'type="timestamp[us]"',
        "sold at is timestamp[us]",
        "declare timestamp[us, tz=UTC]",
        "known_at=",
    ),
    "join key": Mistake(
        FEAST,
        'join_keys=["store"]',
        'join_keys=["shop"]',
        "declares 'shop', and features.py builds event_timestamp, store",
        "build the column, or remove it",
        "shop",
    ),
    "feature that is not built": Mistake(
        FEAST, '"rows_28d"', '"rows_7d"', "declares 'rows_7d', and features.py builds", "did you mean 'rows_28d'?", "7d"
    ),
    "syntax": Mistake(
        FEATURES, "    ]\n\n\ndef _rows", "\n\ndef _rows", "SyntaxError: '[' was never closed", "correct", "["
    ),
    "unknown setting": Mistake(
        SPEC, 'holdout="7d"', 'hold_out="7d"', "there is no such field", "did you mean 'holdout'?", "hold_out"
    ),
    "no fit": Mistake(
        TRAIN, "def fit(", "def train(", "there is no such function; there are train", "define fit(job,", None
    ),
    "exporter": Mistake(
        TRAIN,
        "import xgboost as xgb",
        "import xgboost as xgb\nfrom evergreen.training.sklearn_onnx import save_pipeline",
        "save_pipeline needs scikit-learn and skl2onnx",
        "-m pip install scikit-learn skl2onnx",
        "save_pipeline",
    ),
    "column of an expectation": Mistake(
        RULES,
        'column="rabatt"',
        'column="rabat"',
        "the source 'sample' has no column 'rabat'",
        "did you mean 'rabatt'?",
        "rabat",
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the model, written once."""
    folder = tmp_path_factory.mktemp("written") / "sample"
    with pytest.MonkeyPatch.context() as monkeypatch:
        write_model(folder, monkeypatch, lambda place, only: monkeypatch.setenv("EVERGREEN_MODELS", str(place)))
    settings.cache_clear()
    return folder


@pytest.fixture
def project(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels) -> Iterator[Project]:
    folder = shutil.copytree(written, tmp_path / "my models")
    monkeypatch.setenv("EVERGREEN_PROJECT", str(folder))
    monkeypatch.delenv("EVERGREEN_FEATURE_REPO", raising=False)
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    # A trainer without packages of its own.
    trainer = tmp_path / "python"
    trainer.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    trainer.chmod(0o755)
    monkeypatch.setenv("EVERGREEN_TRAINER", str(trainer))
    use_models(folder / "models", only=True)
    settings.cache_clear()
    forget_model(MODEL)
    yield Project(folder)
    forget_model(MODEL)


def test_a_new_model_has_no_faults(project: Project) -> None:
    assert find_model_faults(MODEL) == []


@pytest.mark.parametrize("case", MISTAKES)
def test_a_common_mistake_is_one_message(project: Project, case: str) -> None:
    make_mistake(project, MISTAKES[case])
    assert_is_named(project, MISTAKES[case], find_model_faults(MODEL))


@pytest.mark.parametrize("period", ["2026-02-28", "2031-01-01"])
def test_a_period_without_data_is_refused(project: Project, period: str) -> None:
    result = CliRunner().invoke(app, ["check", MODEL, "--period", period])
    assert result.exit_code == 1
    assert f"{period}: {MODEL} has data from 2026-03-02 on, before 2026-03-11" in result.stderr


def test_a_model_that_does_not_exist_names_those_that_do(project: Project) -> None:
    [fault] = find_model_faults("margins")
    assert (fault.problem, fault.fix) == ("no folder margins with a model.py", "known models: margin")
