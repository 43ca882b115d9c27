"""The check of raw data: every database and table that a source names is asked, and each problem has its fix."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from evergreen.cli.doctor.sources import check_sources
from evergreen.settings import settings
from support import tills
from support.checks import failure

pytestmark = pytest.mark.unit

SALES = 'dict(name="sales",'
QUERY = 'dict(name="sales", query=dict(connection="shop", sql="SELECT 1 WHERE :start < :end"{}),'
TABLE = 'dict(name="sales", table=dict(format="delta", location="sales", time_column="day"),'


@pytest.fixture
def folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model, and no others; its sources are files, which nobody has delivered."""
    monkeypatch.delenv("EVERGREEN_CONNECTIONS__SHOP", raising=False)  # an example of the docs sets it
    folder = tills.write_model(tmp_path, monkeypatch, use_models)
    use_models(tmp_path / "evergreen_models", only=True)
    return folder


@pytest.fixture
def use_shop(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def use(url: str) -> None:
        monkeypatch.setenv("EVERGREEN_CONNECTIONS__SHOP", url)
        settings.cache_clear()

    return use


def test_files_alone_pass(folder: Path) -> None:
    assert check_sources().message == "the folder of raw files can be listed; no source is a query or a table"


def test_a_query_whose_database_responds_passes(folder: Path, tmp_path: Path, use_shop: Callable[[str], None]) -> None:
    duckdb.connect(str(tmp_path / "shop.db")).close()
    use_shop(f"duckdb:///{tmp_path}/shop.db")
    tills.change_spec(folder, SALES, QUERY.format(""))
    assert check_sources().message.endswith("1 query or table can be reached")


def test_what_cannot_be_reached_is_named_with_its_fix(
    folder: Path, tmp_path: Path, use_shop: Callable[[str], None]
) -> None:
    tills.change_spec(folder, SALES, QUERY.format(""))
    assert failure(check_sources) == (
        "tills.sales: EVERGREEN_CONNECTIONS__SHOP is not set",
        "set it to the URL of the database",
    )
    use_shop(f"duckdb:///{tmp_path}/absent.db")
    problem, fix = failure(check_sources)
    assert problem.startswith("tills.sales: ")
    assert "absent.db" in problem
    assert fix == "start it, or correct its URL"
    use_shop("postgresql+psycopg://me:secret@127.0.0.1:1/shop")
    problem, _ = failure(check_sources)
    assert "does not respond" in problem
    assert "secret" not in problem


def test_a_watermark_is_asked_for(folder: Path, tmp_path: Path, use_shop: Callable[[str], None]) -> None:
    duckdb.connect(str(tmp_path / "shop.db")).close()
    use_shop(f"duckdb:///{tmp_path}/shop.db")
    tills.change_spec(folder, SALES, QUERY.format(', watermark="SELECT max(loaded_at) FROM loads"'))
    problem, fix = failure(check_sources)
    assert "loads does not exist" in problem
    assert fix == "correct the query of the source"


def test_a_table_is_opened(folder: Path) -> None:
    tills.change_spec(folder, SALES, TABLE)
    problem, fix = failure(check_sources)
    assert problem.startswith("tills.sales: there is no table of Delta in ")
    assert fix == "correct table.location"
    rows = pa.table({"day": pa.array([date(2024, 1, 1)]), "till": pa.array([1], pa.int64()), "dollars": [1.0]})
    write_deltalake(f"{settings().raw}/sales", rows, partition_by=["day"])
    assert check_sources().message.endswith("1 query or table can be reached")


def test_a_folder_that_cannot_be_listed_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_RAW", "nosuch://bucket/raw")
    settings.cache_clear()
    problem, fix = failure(check_sources)
    assert problem.startswith("cannot be listed: ")
    assert fix == "correct EVERGREEN_RAW"
