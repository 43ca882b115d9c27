"""`evergreen tables sync`: what it completes, what it says about days that are left out, and without a format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.features import inputs
from evergreen.settings import settings
from support import tills

pytestmark = pytest.mark.unit


@pytest.fixture
def takings(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a table with two published days, and a model whose spec is broken."""
    tills.write_model(tmp_path, monkeypatch, use_models)
    (tmp_path / "a_torn_one").mkdir()
    (tmp_path / "a_torn_one/model.py").write_text("MODEL = (\n")
    use_models(tmp_path)
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    settings.cache_clear()
    tills.deliver(2)
    tills.publish(tills.reload_spec(), tills.days(2))
    return home / "lake/features/tills/takings"


def test_sync_completes_the_tables_of_all_models(takings: Path) -> None:
    result = CliRunner().invoke(app, ["tables", "sync"])
    assert result.exit_code == 1
    assert "✓ tills/takings: 2 partitions\n" in result.stdout
    assert "model a_torn_one: 1 fault" in result.stderr
    assert len(DeltaTable(str(takings)).file_uris()) == 2


def test_sync_names_days_that_are_left_out(takings: Path) -> None:
    dataset = inputs.features_dataset(tills.reload_spec())
    staged = dataset.stage("day=2024-01-03", "a" * 64) / "takings.parquet"
    pq.write_table(pa.table({"event_timestamp": ["2024-01-03"]}), staged)
    dataset.publish("day=2024-01-03", "a" * 64, {"takings": staged}, {})
    result = CliRunner().invoke(app, ["tables", "sync", "tills"])
    assert result.exit_code == 0
    assert (
        "✓ tills/takings: 1 partitions\n"
        "  without 2, such as day=2024-01-02: event_timestamp is timestamp, and string in newer partitions\n"
        "  run tills.features for them: it builds them again, all with the same types\n"
    ) in result.stdout


def test_sync_without_features_makes_nothing(takings: Path) -> None:
    shutil.rmtree(takings.parent)
    assert CliRunner().invoke(app, ["tables", "sync", "tills"]).stdout == "tills: no features are published yet\n"
    assert not takings.exists()


def test_sync_without_a_format_says_which_setting(takings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERGREEN_TABLES")
    settings.cache_clear()
    result = CliRunner().invoke(app, ["tables", "sync"])
    assert result.exit_code == 1
    assert "EVERGREEN_TABLES names no format, so there are no tables: set it to delta" in result.stderr
    assert not (takings / "_delta_log").exists()
