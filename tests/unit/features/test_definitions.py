"""What the feature repository declares is refused, with everything wrong in it, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.errors import SpecError
from evergreen.features import definitions, inputs
from evergreen.features.definitions import declared_types
from evergreen.settings import settings
from evergreen.spec import loader

pytestmark = pytest.mark.unit

SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="shops", feature_service="shops", owner="tests", label="sold", schedule="0 0 * * 1",
    features=dict(timezone="UTC", first_day="2024-01-01", spine="visits", views=["prices", "stocks"],
                  sources=[dict(name="tills", columns=dict(x="int64"))]),
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
DEFINITIONS = """
from datetime import timedelta
from feast import BatchFeatureView, Entity, FeatureService, FeatureView, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import *
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
def view(name, table, entity=shop, **columns):
    return FeatureView(name=name, entities=[entity], ttl=timedelta(days=1), source=feature_source("shops", table),
                       schema=[Field(name=column, dtype=dtype) for column, dtype in columns.items()])
prices = view("prices", "prices", price=Float64, is_sale=Bool, kinds=Int32)
other = prices.with_name("other").with_join_key_map({"shop_id": "rival_id"})
shops = FeatureService(name="shops", features=[prices, other])
"""
REFUSED = {
    "array": ('stocks = view("stocks", "stocks", last=Array(Float64))', "stocks.last: has type Array(Float64)"),
    "decimal": ('stocks = view("stocks", "stocks", sum=Decimal)', "declare Float64, or Int64 of the smallest unit"),
    "timestamp": ('stocks = view("stocks", "stocks", at=UnixTimestamp)', "drops fractions of a second"),
    "map": ('stocks = view("stocks", "stocks", by=Map)', "stocks.by: has type Map"),
    "bytes": ('stocks = view("stocks", "stocks", photo=Bytes)', "no model takes bytes"),
    "struct": ('stocks = view("stocks", "stocks", box=Struct({"a": Int64}))', "declare a feature for each field"),
    "key of a float": (
        'scale = Entity(name="scale", value_type=ValueType.DOUBLE)\nstocks = view("stocks", "stocks", scale, n=Int32)',
        "stocks.scale: is a key of type Float64 → declare one of Int32, Int64, String",
    ),
    "key without a type": (
        'shelf = Entity(name="shelf")\nstocks = view("stocks", "stocks", shelf, n=Int32)',
        "stocks.shelf: has type Invalid: it is no type → declare one: an Entity has it as value_type",
    ),
    "column of two types": (
        'stocks = view("stocks", "prices", price=Float32)',
        "prices.price: is declared double and float → declare one type",
    ),
    "on-demand view": (
        "@on_demand_feature_view(sources=[prices], schema=[Field(name='twice', dtype=Float64)], mode='python')\n"
        "def doubled(inputs):\n    return {'twice': [2 * price for price in inputs['price']]}",
        "view doubled: has the class OnDemandFeatureView, which Feast computes by other code in training",
    ),
    "batch view": (
        'stocks = BatchFeatureView(name="stocks", mode="python", schema=[Field(name="n", dtype=Int32)], udf=len,'
        ' entities=[shop], udf_string="", ttl=timedelta(days=1), source=feature_source("shops", "stocks"))',
        "view stocks: has the class BatchFeatureView",
    ),
}


@pytest.fixture
def define(
    monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], home: Path, tmp_path: Path
) -> Callable[[str], None]:
    """Return a function that appends to the definitions of the model."""
    (tmp_path / "models/shops").mkdir(parents=True)
    (tmp_path / "models/shops/model.py").write_text(SPEC)
    (tmp_path / "models/shops/features.py").touch()
    use_models(tmp_path / "models", only=True)
    loader.load_spec.cache_clear()
    (tmp_path / "repo").mkdir()
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(tmp_path / "repo"))
    settings.cache_clear()
    return lambda text: (tmp_path / "repo/shops.py").write_text(DEFINITIONS + text)


@pytest.mark.parametrize("case", REFUSED)
def test_definitions_are_refused_in_words(define: Callable[[str], None], case: str) -> None:
    text, message = REFUSED[case]
    define(text)
    with pytest.raises(SpecError) as refusal:
        inputs.compute_period_fingerprints(loader.load_spec("shops"), [])
    assert message in str(refusal.value)
    assert len(refusal.value.faults) == 1


def test_all_refusals_are_named_at_once(define: Callable[[str], None]) -> None:
    define("\n".join(REFUSED[case][0].replace("stocks =", f"{case} =") for case in ("array", "decimal", "bytes")))
    with pytest.raises(SpecError) as refusal:
        declared_types("shops")
    assert len(refusal.value.faults) == 3


def test_types_of_tables_and_of_the_keys_of_the_spine(define: Callable[[str], None]) -> None:
    define('stocks = view("stocks", "stocks", left=Int64, note=String, weight=Float32)')
    assert declared_types("shops") == {
        "visits": {"shop_id": "int64", "rival_id": "int64"},
        "prices": {"shop_id": "int64", "price": "double", "is_sale": "bool", "kinds": "int32"},
        "stocks": {"shop_id": "int64", "left": "int64", "note": "string", "weight": "float"},
    }


def test_definitions_run_once_until_they_change(define: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    define("")
    runs, load = [], definitions.load_definitions

    def count_runs(model: str) -> list[object]:
        runs.append(model)
        return load(model)

    monkeypatch.setattr(definitions, "load_definitions", count_runs)
    types = declared_types("shops")
    define("# a comment")
    assert declared_types("shops") == types
    assert len(runs) == 1
    define('stocks = view("stocks", "stocks", left=Int64)')
    assert "stocks" in declared_types("shops")
    assert len(runs) == 2


def test_a_declared_type_is_part_of_the_fingerprint(define: Callable[[str], None]) -> None:
    fingerprints = []
    for text in ("", 'stocks = view("stocks", "stocks", left=Int64)', "ttl = timedelta(days=3)"):
        define(text)
        raw = settings().lake / "raw/tills/day=2024-01-01/tills.parquet"
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.touch()
        day = inputs.feature_inputs(loader.load_spec("shops"), [loader.load_spec("shops").features.first_day])  # type: ignore[union-attr]
        fingerprints.append(day["2024-01-01"]["parameters"])
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_features_without_definitions_have_the_types_of_spark(define: Callable[[str], None]) -> None:
    assert declared_types("shops") == {}
