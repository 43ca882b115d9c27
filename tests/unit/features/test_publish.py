"""Publishing features without an engine: their tables follow, and a table that fails is no fault of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from evergreen.features import inputs
from evergreen.features.pipeline import publish_features
from evergreen.lake.datasets import period_partition
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec
from support import tills

pytestmark = pytest.mark.unit

DAYS = tills.days(2)


def publish_days() -> dict[str, str]:
    """Publish two days, as the task `publish` does."""
    model = tills.reload_spec()
    dataset = inputs.features_dataset(model)
    parts = inputs.feature_inputs(model, DAYS)
    fingerprints = {day: compute_fingerprint(parts[day]) for day in DAYS}
    folders = {day: dataset.stage(period_partition(day), fingerprints[day]) for day in DAYS}
    for folder in folders.values():
        for name in feature_spec(model).tables:
            pq.write_table(pa.table({"till": [1, 2]}), folder / f"{name}.parquet")
    return publish_features(model, fingerprints, {day: str(folder) for day, folder in folders.items()}, DAYS)


@pytest.fixture
def features(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of published features of a model with two raw days, none published yet."""
    tills.write_model(tmp_path, monkeypatch, use_models)
    tills.deliver(2)
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    settings.cache_clear()
    return home / "lake/features/tills"


def test_tables_follow_what_is_published(features: Path) -> None:
    publish_days()
    for name in ("receipts", "takings"):
        table = DeltaTable(str(features / name)).to_pyarrow_table()
        assert sorted(map(str, table["day"].unique().to_pylist())) == DAYS
        assert table.num_rows == 4


def test_table_that_fails_does_not_fail_the_publication(features: Path, caplog: pytest.LogCaptureFixture) -> None:
    (features / "takings").mkdir(parents=True)
    (features / "takings/_delta_log").write_text("")
    assert list(publish_days()) == DAYS
    assert len(inputs.published_periods(tills.reload_spec())) == 2
    assert "what they hold is published" in caplog.text
    assert DeltaTable(str(features / "receipts")).count() == 4


def test_no_table_is_made_unless_configured(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERGREEN_TABLES")
    settings.cache_clear()
    assert list(publish_days()) == DAYS
    assert not list(features.glob("*/_delta_log"))
