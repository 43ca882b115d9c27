"""Real features: those of two versions of the code are not mixed, and bytes do not depend on how Spark divides work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import StaleFeaturesError
from evergreen.feature_store import repository, training_sets
from evergreen.features import FeatureTables, inputs, staleness
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.settings import REPOSITORY
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window
from support import tills

pytestmark = pytest.mark.integration

DAYS = tills.days(9)
WINDOW = Window.from_range(DAYS[2], DAYS[-1] + timedelta(1), RunReason.MANUAL, "UTC")


@pytest.fixture
def folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder and its definitions, with nine raw days."""
    folder = tills.write_model(tmp_path / "evergreen_models")
    use_models(tmp_path / "evergreen_models", only=True)
    (tmp_path / "feature_repo").mkdir()
    shutil.copy(REPOSITORY / "feature_repo/feature_store.yaml", tmp_path / "feature_repo")
    tills.write_definitions(tmp_path / "feature_repo")
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(tmp_path / "feature_repo"))
    repository.settings.cache_clear()
    repository.open_feature_store.cache_clear()
    tills.reload_spec(folder)
    tills.deliver(len(DAYS))
    return folder


def change_unit(folder: Path) -> ModelSpec:
    """From dollars to cents."""
    (folder / "units.py").write_text("PER_DOLLAR = 100.0\n")
    return tills.reload_spec(folder)


def unpublish(model: ModelSpec, days: list[date]) -> None:
    for day in days:
        (inputs.features_dataset(model).root / f"_manifests/{datasets.period_partition(day)}.json").unlink()


def contents(model: ModelSpec, days: list[date]) -> dict[date, str]:
    return {day: manifest.content_hash for day, manifest in inputs.published_manifests(model, days).items()}


def takings(model: ModelSpec, manifest: datasets.Manifest) -> list[float]:
    dataset = training_sets.training_set_dataset(model)
    tables = [pq.read_table(dataset.file_path(manifest, name)) for name in ("train", "holdout")]
    return sorted(value for table in tables for value in table["takings__takings"].to_pylist())


def test_a_window_of_two_versions_of_the_code_is_not_mixed(folder: Path) -> None:
    model = tills.reload_spec(folder)
    run_feature_pipeline(model, DAYS[:4])
    model = change_unit(folder)
    run_feature_pipeline(model, DAYS[4:])
    with pytest.raises(StaleFeaturesError) as refused:
        training_sets.build_training_set(model, WINDOW)
    # The day before the window counts: its values hold for a day, so until the second morning.
    assert "3 days, 2024-01-02 – 2024-01-04: tills/units.py has changed" in str(refused.value)

    days = training_sets.periods_to_read(model, WINDOW)
    stale = staleness.find_stale_features(model, inputs.published_manifests(model, days))
    assert stale.days == DAYS[1:4]
    run_feature_pipeline(model, stale.days)
    manifest = training_sets.build_training_set(model, WINDOW)
    assert manifest.inputs["earlier_features"].keys() == {"day=2024-01-02"}
    dollars = [till + number for number in range(2, len(DAYS)) for till in range(tills.TILLS)]
    assert takings(model, manifest) == sorted(100.0 * amount for amount in dollars)


def test_a_changed_register_is_not_mixed_either(folder: Path) -> None:
    model = tills.reload_spec(folder)
    run_feature_pipeline(model, DAYS[:4])
    tills.deliver(len(DAYS), floors=3)
    run_feature_pipeline(model, DAYS[4:])
    with pytest.raises(StaleFeaturesError, match="3 days, 2024-01-02 – 2024-01-04: the raw file of tills has changed"):
        training_sets.build_training_set(model, WINDOW)
    model = tills.change_spec(folder, "daily=False", "daily=False, rebuild_on_change=False")
    assert training_sets.build_training_set(model, WINDOW).files["train"].rows


def test_a_training_set_depends_on_earlier_days_that_it_reads(folder: Path) -> None:
    model = tills.reload_spec(folder)
    run_feature_pipeline(model, DAYS)
    before = training_sets.build_training_set(model, WINDOW)
    tills.deliver(2, raise_by=1.0)
    run_feature_pipeline(model, DAYS[:2])
    after = training_sets.build_training_set(model, WINDOW)
    assert before.fingerprint != after.fingerprint
    assert before.inputs["features"] == after.inputs["features"]


def deliver_hard_values(days: list[date]) -> None:
    """Several sales of the same till, of amounts that are equal, unordered or missing."""
    amounts = [0.0, -0.0, float("nan"), None, 1.5, 1.5, -1.5, float("inf")]
    for day in days:
        tills_, dollars = zip(*[(2**53 + till, amount) for amount in amounts for till in (1, 0, 3, 2)], strict=True)
        table = pa.table({"day": pa.array([day] * len(tills_)), "till": tills_, "dollars": dollars})
        pq.write_table(table, raw_files.raw_file("sales", day))
    pq.write_table(
        pa.table({"till": [2**53 + till for till in range(4)], "floor": [3, 0, 1, 2]}), raw_files.raw_file("tills")
    )


def test_a_day_has_the_same_bytes_however_it_was_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, days = tills.reload_spec(folder), DAYS[:3]
    deliver_hard_values(days)
    run_feature_pipeline(model, days)
    batch = contents(model, days)

    unpublish(model, days)
    for day in days:
        run_feature_pipeline(model, [day])
    assert contents(model, days) == batch, "each day alone"

    module = import_module("evergreen_models.tills.features")
    build = module.build
    for parts in (1, 7):

        def in_parts(*arguments: Any, parts: int = parts) -> list[FeatureTables]:
            return [FeatureTables(tables.columns, tables.frame.repartition(parts)) for tables in build(*arguments)]

        monkeypatch.setattr(module, "build", in_parts)
        unpublish(model, days)
        run_feature_pipeline(model, days)
        assert contents(model, days) == batch, f"in {parts} parts"
