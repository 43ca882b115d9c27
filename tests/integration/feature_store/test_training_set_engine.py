"""A training set is the same, to the byte and by its fingerprint, whatever engine joins it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evergreen.errors import InputsChangedError, SettingsError
from evergreen.feature_store import training_sets
from evergreen.features.inputs import features_dataset
from evergreen.settings import settings
from support.loans import ROWS, window, write_loans
from support.small_models import UseModels

pytestmark = pytest.mark.integration


GATES = 'dict(kind="threshold", metric="rmse", at_most=9.0)'


def test_spark_publishes_what_duckdb_publishes(
    tmp_path: Path,
    home: Path,
    use_home: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    use_models: UseModels,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "evergreen")
    model = write_loans(tmp_path, monkeypatch, use_models, GATES, label_delay=2)
    expected = training_sets.build_training_set(model, window(model, "2024-03-18"))
    assert expected.files["train"].rows
    assert "Spark joins" not in caplog.text
    lake = home / "lake"
    for manifest in (lake / "training_sets" / "loans" / "_manifests").glob("*.json"):
        manifest.unlink()
    monkeypatch.setenv("EVERGREEN_TRAINING_SET_ENGINE", "spark")
    use_home(home)
    assert training_sets.build_training_set(model, window(model, "2024-03-18")) == expected
    assert "Spark joins examples" in caplog.text
    assert [path for path in lake.rglob("*") if "part-" in path.name or "spark" in path.name] == []


def test_features_that_expire_meanwhile_are_a_clear_error(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels
) -> None:
    """Here right after the task has found all of them."""
    model = write_loans(tmp_path, monkeypatch, use_models, GATES, label_delay=2)
    find_inputs = training_sets._training_set_inputs

    def find_and_expire(*arguments: Any) -> dict[str, Any]:
        inputs = find_inputs(*arguments)
        features_dataset(model).manifest_path("day=2024-03-05").unlink()
        return inputs

    monkeypatch.setattr(training_sets, "_training_set_inputs", find_and_expire)
    with pytest.raises(InputsChangedError, match=r"features of 1 of \d+ periods have expired.* from its plan task on"):
        training_sets.build_training_set(model, window(model, "2024-03-18"))


def test_engine_is_chosen_by_setting_or_number_of_rows(
    tmp_path: Path, home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch, use_models: UseModels
) -> None:
    model = write_loans(tmp_path, monkeypatch, use_models, GATES, label_delay=2)
    two_days = features_dataset(model).manifests()[:2]
    rows = 2 * 2 * ROWS
    assert not training_sets._joins_with_spark(model, two_days)
    engines = {"duckdb": False, "spark": True, str(rows): True, str(rows + 1): False}
    for engine, expected in engines.items():
        monkeypatch.setenv("EVERGREEN_TRAINING_SET_ENGINE", engine)
        use_home(home)
        assert training_sets._joins_with_spark(model, two_days) == expected, engine
    for wrong in ("0", "-5", "polars", "1e6"):
        monkeypatch.setenv("EVERGREEN_TRAINING_SET_ENGINE", wrong)
        use_home(home)
        with pytest.raises(SettingsError, match="EVERGREEN_TRAINING_SET_ENGINE"):
            settings()
