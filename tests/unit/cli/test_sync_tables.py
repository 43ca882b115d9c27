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

from evergreen import ledger
from evergreen.cli import app
from evergreen.cli.doctor.features import check_tables
from evergreen.errors import TableError
from evergreen.features import inputs
from evergreen.lake.datasets import open_dataset
from evergreen.settings import settings
from support import tills
from support.ledger_events import verdict_event

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


def test_sync_completes_the_tables_of_training_sets_and_verdicts(takings: Path) -> None:
    dataset = open_dataset("training_sets/tills")
    for day, kind in ((1, pa.int64()), (2, pa.string())):
        partition = f"as_of=2024-01-0{day}"
        staged = dataset.stage(partition, "a" * 64) / "train.parquet"
        pq.write_table(pa.table({"label": pa.array([1], pa.int64()).cast(kind)}), staged)
        dataset.publish(partition, "a" * 64, {"train": staged}, {})
    predictions = open_dataset("predictions/tills")
    staged = predictions.stage("day=2024-01-01", "a" * 64) / "predictions.parquet"
    pq.write_table(pa.table({"prediction": [0.5]}), staged)
    predictions.publish("day=2024-01-01", "a" * 64, {"predictions": staged}, {})
    ledger.append_decision("tills", "a run", lambda _: verdict_event(10))
    result = CliRunner().invoke(app, ["tables", "sync", "tills"])
    assert result.exit_code == 0
    assert (
        "✓ training_sets/tills/train: 1 partitions\n"
        "  without 1, such as as_of=2024-01-01: label is long, and string in newer partitions\n"
        "  read them by their hash: `evergreen pin tills HASH`\n"
        "✓ verdict_tables/tills/gates: 1 partitions\n"
        "✓ verdict_tables/tills/verdicts: 1 partitions\n"
        "✓ predictions/tills/predictions: 1 partitions\n"
    ) in result.stdout
    log = settings().lake / "verdict_tables/tills/gates/_delta_log"
    (log / f"{0:020}.json").write_text("x")
    with pytest.raises(TableError, match="verdict_tables/tills/gates/_delta_log is damaged"):
        check_tables()


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
