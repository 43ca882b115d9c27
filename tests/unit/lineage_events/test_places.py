"""A dataset has the name that other producers of OpenLineage give to it; no name has a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from evergreen.lineage_events.places import (
    Place,
    asset_place,
    champion_place,
    lake_place,
    online_store_place,
    place_at,
    raw_place,
    registered_model_place,
)
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import RawSource
from support.ledger_events import MODEL

pytestmark = pytest.mark.unit

SPEC = feature_spec(load_spec(MODEL))


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("/lake/raw", ("file", "/lake/raw")),
        ("file:///lake/raw", ("file", "/lake/raw")),
        ("s3://bucket/a/b/", ("s3://bucket", "a/b")),
        ("s3a://bucket/a", ("s3://bucket", "a")),
        ("gcs://bucket/a", ("gs://bucket", "a")),
        ("redis://ada:secret@cache:6379/2", ("redis://cache:6379", "2")),
    ],
)
def test_files_are_named_by_their_store(location: str, place: tuple[str, str]) -> None:
    assert place_at(location) == place


def test_assets_are_what_is_published(home: Path) -> None:
    assert asset_place(f"evergreen://features/{MODEL}") == lake_place(f"features/{MODEL}")
    assert asset_place(f"evergreen://features/{MODEL}") == ("file", f"{home}/lake/features/{MODEL}")
    assert asset_place(f"evergreen://raw/{MODEL}") == ("file", f"{home}/lake/raw")
    assert asset_place("s3://bucket/features") is None
    assert asset_place("evergreen://features") is None


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ({}, ("s3://delivered", "x/sales")),
        ({"is_register": True}, ("s3://delivered", "x/sales/sales.parquet")),
        ({"files": {"path": "rides/%Y-%m-%d/part-*.csv", "format": "csv"}}, ("s3://delivered", "x/rides")),
        ({"query": {"connection": "shop", "sql": ":start :end"}}, ("postgres://db:5432", "orders.sales")),
        ({"table": {"format": "delta", "location": "t/sales", "time_column": "at"}}, ("s3://delivered", "x/t/sales")),
        ({"table": {"format": "delta", "location": "s3://o/s", "time_column": "at"}}, ("s3://o", "s")),
    ],
)
def test_raw_data_is_where_it_is_delivered(
    source: dict[str, object], place: tuple[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_RAW", "s3://delivered/x")
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__SHOP", "postgresql+psycopg://ada:secret@db:5432/orders")
    settings.cache_clear()
    columns = {"carrier": "string", "at": "timestamp[us, tz=UTC]"}
    assert raw_place(SPEC, RawSource.model_validate({"name": "sales", "columns": columns, **source})) == place


def test_models_are_named_by_their_registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_MLFLOW", "https://ada:secret@mlflow.example:5000/base")
    monkeypatch.setenv("EVERGREEN_ONLINE_STORE", "redis://ada:secret@cache:6379/2")
    settings.cache_clear()
    assert registered_model_place("churn") == ("mlflow://mlflow.example:5000", "churn")
    assert champion_place("churn") == ("mlflow://mlflow.example:5000", "churn@champion")
    assert online_store_place("churn") == Place("redis://cache:6379", "2/churn")
    monkeypatch.setenv("EVERGREEN_MLFLOW", "sqlite:////data/mlflow.db")
    settings.cache_clear()
    assert registered_model_place("churn") == ("mlflow+sqlite:////data/mlflow.db", "churn")
