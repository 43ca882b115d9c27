"""Real features: those of two versions of the code are not mixed, and bytes do not depend on how Spark divides work."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import FeatureError, RawDataError, StaleFeaturesError
from evergreen.feature_store import training_sets
from evergreen.features import FeatureTables, inputs, staleness
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.periods import Calendar
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window
from support import tills
from support.calendars import later

pytestmark = pytest.mark.integration

DAYS = tills.days(9)
WINDOW = Window.from_range(DAYS[2], later(DAYS[-1], 1), RunReason.MANUAL, Calendar("1d", "UTC"))


@pytest.fixture
def folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder and its definitions, with nine raw days."""
    folder = tills.write_model(tmp_path, monkeypatch, use_models, has_views=True)
    tills.deliver(len(DAYS))
    return folder


def change_unit(folder: Path) -> ModelSpec:
    """From dollars to cents."""
    (folder / "units.py").write_text("PER_DOLLAR = 100.0\n")
    return tills.reload_spec()


def unpublish(model: ModelSpec, days: list[str]) -> None:
    for day in days:
        (inputs.features_dataset(model).root / f"_manifests/{datasets.period_partition(day)}.json").unlink()


def contents(model: ModelSpec, days: list[str]) -> dict[str, str]:
    return {day: manifest.content_hash for day, manifest in inputs.published_manifests(model, days).items()}


def takings(model: ModelSpec, manifest: datasets.Manifest) -> list[float]:
    dataset = training_sets.training_set_dataset(model)
    tables = [pq.read_table(dataset.file_path(manifest, name)) for name in ("train", "holdout")]
    return sorted(value for table in tables for value in table["takings__takings"].to_pylist())


def test_a_window_of_two_versions_of_the_code_is_not_mixed(folder: Path) -> None:
    model = tills.reload_spec()
    run_feature_pipeline(model, DAYS[:4])
    model = change_unit(folder)
    run_feature_pipeline(model, DAYS[4:])
    with pytest.raises(StaleFeaturesError) as refused:
        training_sets.build_training_set(model, WINDOW)
    # Two days before the window count: values hold for a day, and may be stamped a day after their own.
    assert "4 days, 2024-01-01 – 2024-01-04: tills/units.py has changed" in str(refused.value)

    days = training_sets.periods_to_read(model, WINDOW)
    stale = staleness.find_stale_features(model, inputs.published_manifests(model, days))
    assert stale.periods == DAYS[:4]
    run_feature_pipeline(model, stale.periods)
    manifest = training_sets.build_training_set(model, WINDOW)
    assert manifest.inputs["earlier_features"].keys() == {"day=2024-01-01", "day=2024-01-02"}
    dollars = [till + number for number in range(2, len(DAYS)) for till in range(tills.TILLS)]
    assert takings(model, manifest) == sorted(100.0 * amount for amount in dollars)


def test_a_changed_register_is_not_mixed_either(folder: Path) -> None:
    model = tills.reload_spec()
    run_feature_pipeline(model, DAYS[:4])
    tills.deliver(len(DAYS), floors=3)
    run_feature_pipeline(model, DAYS[4:])
    with pytest.raises(StaleFeaturesError, match="4 days, 2024-01-01 – 2024-01-04: the raw file of tills has changed"):
        training_sets.build_training_set(model, WINDOW)
    model = tills.change_spec(folder, "is_register=True", "is_register=True, rebuild_on_change=False")
    assert training_sets.build_training_set(model, WINDOW).files["train"].rows


def floors(model: ModelSpec, days: list[str]) -> list[dict[int, int | None]]:
    """Return the floor of each till, by day."""
    dataset = inputs.features_dataset(model)
    manifests = inputs.published_manifests(model, days).values()
    tables = [pq.read_table(dataset.file_path(manifest, "takings"), partitioning=None) for manifest in manifests]
    return [dict(zip(table["till"].to_pylist(), table["floor"].to_pylist(), strict=True)) for table in tables]


def test_a_day_sees_its_part_of_a_history(folder: Path) -> None:
    model, days = tills.declare_history(folder), DAYS[:4]
    versions = [(0, "2020-01-01", "2024-01-02", 1), (0, "2024-01-02", None, 2), (1, "2023-05-01", "2024-01-04", 3)]
    tills.deliver_history(versions)
    run_feature_pipeline(model, days)
    before, none = contents(model, days), {2: None, 3: None}
    assert floors(model, days) == [{0: 1, 1: 3, **none}, *[{0: 2, 1: 3, **none}] * 2, {0: 2, 1: None, **none}]

    tills.deliver_history([(0, "2024-01-02", "2024-01-05", 2), *versions[::2], (2, "2024-01-05", None, 4)])
    assert not staleness.find_stale_features(model, inputs.published_manifests(model, days)).periods
    unpublish(model, days)
    for day in days:
        run_feature_pipeline(model, [day])
    assert contents(model, days) == before, "each day alone, of a register that knows the future"

    tills.deliver_history([*versions[::2], (0, "2024-01-02", "2024-01-03", 5), (0, "2024-01-03", None, 2)])
    stale = staleness.find_stale_features(model, inputs.published_manifests(model, days)).periods
    assert stale == [DAYS[1]]
    run_feature_pipeline(model, stale)
    assert floors(model, stale) == [{0: 5, 1: 3, **none}]
    assert {day for day, content in contents(model, days).items() if content != before[day]} == set(stale)
    window = Window.from_range(DAYS[1], DAYS[4], RunReason.MANUAL, Calendar("1d", "UTC"))
    assert training_sets.build_training_set(model, window).files["train"].rows


def test_a_faulty_history_is_refused_and_so_is_asking_too_far(folder: Path) -> None:
    model = tills.declare_history(folder)
    tills.deliver_history([(0, "2020-01-01", "2024-01-02", 1), (0, "2024-01-01", None, 2)])
    with pytest.raises(
        RawDataError, match="1 rows begin before an earlier row of their keys has ended, such as till 0"
    ):
        run_feature_pipeline(model, DAYS[:1])
    tills.deliver_history([(0, "2020-01-01", None, 1)])
    features = folder / "features.py"
    text = features.read_text().replace('), "day")', ').withColumn("eve", F.date_sub("day", 1)), "eve")')
    features.write_text(text)
    model = tills.reload_spec()
    with pytest.raises(FeatureError, match="raise trailing of tills"):
        run_feature_pipeline(model, DAYS[:2])


def test_a_training_set_depends_on_earlier_days_that_it_reads(folder: Path) -> None:
    model = tills.reload_spec()
    run_feature_pipeline(model, DAYS)
    before = training_sets.build_training_set(model, WINDOW)
    tills.deliver(2, raise_by=1.0)
    run_feature_pipeline(model, DAYS[:2])
    after = training_sets.build_training_set(model, WINDOW)
    assert before.fingerprint != after.fingerprint
    assert before.inputs["features"] == after.inputs["features"]


def deliver_hard_values(days: list[str]) -> None:
    """Several sales of the same till, of amounts that are equal, unordered or missing."""
    amounts = [0.0, -0.0, float("nan"), None, 1.5, 1.5, -1.5, float("inf")]
    for day in days:
        tills_, dollars = zip(*[(2**53 + till, amount) for amount in amounts for till in (1, 0, 3, 2)], strict=True)
        table = pa.table({"day": pa.array([date.fromisoformat(day)] * len(tills_)), "till": tills_, "dollars": dollars})
        pq.write_table(table, raw_files.raw_file("sales", day))
    pq.write_table(
        pa.table({"till": [2**53 + till for till in range(4)], "floor": [3, 0, 1, 2]}), raw_files.raw_file("tills")
    )


def test_a_day_has_the_same_bytes_however_it_was_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, days = tills.reload_spec(), DAYS[:3]
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
