"""Values of every type, and nulls, are the same in the lake, in training sets, online, and where they are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.errors import FaultsError, FeatureError, SpecError
from evergreen.evaluation import score_table
from evergreen.feature_store import online_store, repository, training_sets
from evergreen.feature_store.offline_store import RetrievalError
from evergreen.lake import datasets, fingerprints
from evergreen.periods import Calendar
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window
from support.small_models import write_small_model

pytestmark = pytest.mark.integration

SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="wallets", owner="tests", feature_service="wallets", label="paid", request_columns=["amount", "is_new"],
    features=dict(timezone="UTC", first_day="2024-01-01", spine="payments", views=["accounts", "shops"],
                  sources=[dict(name="bookings", columns=dict(x="int64"))]),
    schedule="0 0 * * 1", train="2d", holdout="1d",
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Bool, Float32, Float64, Int32, Int64, String
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

account = Entity(name="account", join_keys=["account"], value_type=ValueType.INT64)
shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
till = Entity(name="till", join_keys=["till"], value_type=ValueType.INT32)
TYPES = {"flag": Bool, "small": Int32, "large": Int64, "single": Float32, "double": Float64, "text": String}
accounts = FeatureView(name="accounts", entities=[account], ttl=timedelta(days=3),
                       schema=[Field(name=name, dtype=type_) for name, type_ in TYPES.items()],
                       source=feature_source("wallets", "accounts"))
shops = FeatureView(name="shops", entities=[shop, till], ttl=timedelta(days=3),
                    schema=[Field(name="turnover", dtype=Int64)], source=feature_source("wallets", "shops"))
wallets = FeatureService(name="wallets", features=[accounts, shops])
"""
INSTANT = pa.timestamp("us", "UTC")
DAYS = ["2024-01-01", "2024-01-02", "2024-01-03"]
WINDOW = Window.from_range(DAYS[0], "2024-01-04", RunReason.MANUAL, Calendar("1d", "UTC"))
IDS = [1234567890123456789, 1234567890123456790, 1234567890123456791, -(2**63), 2**63 - 1, 0]
TYPES = {
    "flag": pa.bool_(),
    "small": pa.int32(),
    "large": pa.int64(),
    "single": pa.float32(),
    "double": pa.float64(),
    "text": pa.string(),
}
VALUES = {
    "flag": st.booleans(),
    "small": st.integers(-(2**31), 2**31 - 1),
    "large": st.integers(-(2**63), 2**63 - 1),
    "single": st.floats(width=32),
    "double": st.floats(),
    "text": st.text(st.characters(codec="utf-8"), max_size=4),
}
NUMBERS = ("flag", "small", "large")  # for the trees; infinity is a value that XGBoost refuses to learn from
ROWS = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()}),
    min_size=len(IDS) * len(DAYS),
    max_size=len(IDS) * len(DAYS),
)
Columns = Mapping[str, pa.Array]


@pytest.fixture
def wallets(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    return write_small_model("wallets", tmp_path, monkeypatch, use_models, DEFINITIONS, model=SPEC)


def instants(day: str, count: int, hour: int) -> pa.Array:
    moment = datetime.fromisoformat(f"{day}T{hour:02d}:00Z")
    return pa.array([moment + timedelta(microseconds=number) for number in range(count)], INSTANT)


def publish(
    day: str, accounts: Columns, payments: Columns | None = None, ids: Sequence[int | None] = (*IDS, None)
) -> None:
    """Publish a day: features of every id at 1:00, and a payment of every id of `ids` at 2:00."""
    count = len(ids)
    spine = {
        "event_timestamp": instants(day, count, 2),
        "account": pa.array(ids, pa.int64()),
        "shop": pa.array(["a|b"] * count),
        "till": pa.array([None, *range(count - 1)], pa.int32()),
        "amount": pa.array([0.5] * count),
        "is_new": pa.array([True, None] * count)[:count],
        "paid": pa.array([number % 2 for number in range(count)]),
        "label_known_at": instants(day, count, 3),
    }
    keyed = {"event_timestamp": instants(day, len(IDS), 1), "account": pa.array(IDS, pa.int64())}
    tills = {
        "event_timestamp": instants(day, 4, 1),
        "shop": pa.array(["a|b", "a|b", None, "a"]),
        "till": pa.array([0, 1, 1, 1], pa.int32()),
        "turnover": pa.array([2**62 + 1, None, 3, 4], pa.int64()),
    }
    tables = {"payments": spine | dict(payments or {}), "accounts": keyed | dict(accounts), "shops": tills}
    dataset, partition = datasets.open_dataset("features/wallets"), datasets.period_partition(day)
    fingerprint = fingerprints.compute_fingerprint({name: str(table) for name, table in tables.items()})
    staged = dataset.stage(partition, fingerprint)
    files = {name: staged / f"{name}.parquet" for name in tables}
    for name, table in tables.items():
        pq.write_table(pa.table(table), files[name])
    dataset.publish(partition, fingerprint, files, {})


def training_rows(model: ModelSpec) -> pa.Table:
    """Return all examples of the training set, with their features."""
    training_set = training_sets.build_training_set(model, WINDOW)
    source = training_sets.training_set_dataset(model)
    tables = [pq.read_table(source.file_path(training_set, name)) for name in ("train", "holdout")]
    return pa.concat_tables(tables)


def read_online(model: ModelSpec, ids: Sequence[int]) -> dict[str, list[Any]]:
    store = repository.open_feature_store("wallets")
    service = store.get_feature_service("wallets")
    keys = [{"account": number, "shop": "a|b", "till": position % 2} for position, number in enumerate(ids)]
    values: dict[str, list[Any]] = store.get_online_features(service, keys, full_feature_names=True).to_dict()
    return values


def comparable(values: Sequence[Any]) -> list[Any]:
    """Return the values with NaN as text, since NaN equals nothing."""
    return ["NaN" if value != value else value for value in values]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    return {name: pa.array([row[name] for row in rows], type_) for name, type_ in TYPES.items()}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_values_are_the_same_everywhere(wallets: ModelSpec, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    by_day = {day: columns_of(rows[start :: len(DAYS)]) for start, day in enumerate(DAYS)}
    for day, columns in by_day.items():
        publish(day, columns)

    examples = training_rows(wallets)
    assert examples["account"].type == pa.int64()
    assert examples["is_new"].type == pa.bool_()
    for name, arrow_type in TYPES.items():
        column = examples[f"accounts__{name}"]
        assert column.type == arrow_type
        expected = {(day, key): by_day[day][name][position].as_py() for day in DAYS for position, key in enumerate(IDS)}
        keys = zip(map(str, examples["day"].to_pylist()), examples["account"].to_pylist(), strict=True)
        assert comparable(column.to_pylist()) == comparable([expected.get(key) for key in keys])
    assert examples["shops__turnover"].type == pa.int64()

    online_store.materialize_features(wallets, WINDOW)
    online = read_online(wallets, IDS)
    for name, column in by_day[DAYS[-1]].items():
        values = [None if value != value else value for value in column.to_pylist()]
        assert online[f"accounts__{name}"] == values
        assert [type(value) for value in online[f"accounts__{name}"]] == [type(value) for value in values]
    assert online["shops__turnover"] == [2**62 + 1, None] * 3

    features = tuple(f"accounts__{name}" for name in NUMBERS)
    learned = xgboost.QuantileDMatrix(examples.select(features), label=examples["label"].to_numpy())
    booster = xgboost.train({"min_child_weight": 0, "nthread": 1}, learned, 3)
    booster.save_model(tmp_path / "model.ubj")
    scores = score_table(tmp_path, examples, features)
    assert np.array_equal(scores, booster.predict(learned))
    served = pa.table({name: pa.array(online[name], examples.schema.field(name).type) for name in features})
    newest = examples.slice(len(examples) - len(IDS) - 1, len(IDS))
    assert newest["account"].to_pylist() == IDS
    assert np.array_equal(score_table(tmp_path, served, features), score_table(tmp_path, newest, features))


PLAIN = columns_of([{"flag": True, "small": 1, "large": 2, "single": 0.5, "double": 0.25, "text": "a"}] * len(IDS))


def test_ids_that_differ_in_the_last_digit_have_their_own_features(wallets: ModelSpec) -> None:
    for day in DAYS:
        publish(day, {**PLAIN, "large": pa.array(range(6), pa.int64())}, ids=[IDS[0], IDS[1], None])
    examples = training_rows(wallets).slice(0, 3)
    assert examples["account"].to_pylist() == [IDS[0], IDS[1], None]
    assert examples["accounts__large"].to_pylist() == [0, 1, None]
    assert examples["accounts__flag"].to_pylist() == [True, True, None]


@pytest.mark.parametrize(
    ("feature", "old", "new"),
    [
        ("double", pa.array([1, None, 3, 4, 5, 6], pa.int32()), pa.array([0.7, None, 2.5, 3, 4, 5], pa.float64())),
        ("double", pa.nulls(6), pa.array([0.7, None, 2.5, 3, 4, 5], pa.float64())),
        ("double", pa.array([0.5] * 6, pa.float32()), pa.array([0.1] * 6, pa.float64())),
        ("large", pa.array([1, None] * 3, pa.int32()), pa.array([2**62 + 1, None] * 3, pa.int64())),
        ("text", pa.nulls(6), pa.array(["a", None] * 3)),
        ("text", pa.array(["b"] * 6, pa.large_string()), pa.array(["a", None] * 3)),
        ("small", pa.array([1.0, None] * 3, pa.float64()), pa.array([2, None] * 3, pa.int32())),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_days_of_other_types_keep_their_values(
    wallets: ModelSpec, feature: str, old: pa.Array, new: pa.Array, is_reversed: bool
) -> None:
    first, last = (new, old) if is_reversed else (old, new)
    for day, column in zip(DAYS, (first, first, last), strict=True):
        publish(day, {**PLAIN, feature: column}, ids=IDS)
    examples = training_rows(wallets)[f"accounts__{feature}"]
    assert examples.type == TYPES[feature]
    assert examples.to_pylist() == [value for column in (first, first, last) for value in column.to_pylist()]
    online_store.materialize_features(wallets, WINDOW)
    assert read_online(wallets, IDS)[f"accounts__{feature}"] == last.to_pylist()


@pytest.mark.parametrize(
    ("feature", "first", "last", "message"),
    [
        ("small", pa.array([0.7] * 6), pa.array([0.7] * 6), "accounts.small: is double, declared int32, and"),
        ("small", pa.array([0.7] * 6), pa.array([1] * 6, pa.int32()), "such as 0.7"),
        ("double", pa.array([2**53 + 1] * 6, pa.int64()), pa.array([0.7] * 6), "has the types double, int64 in its"),
        ("flag", pa.array([0, 1] * 3, pa.int32()), pa.array([1, 0] * 3, pa.int32()), "is int32, declared bool"),
        ("text", pa.array([1] * 6, pa.int32()), pa.array(["a"] * 6), "has the types int32, string in its files"),
        ("single", pa.array([0.1] * 6), pa.array([0.1] * 6), "is double, declared float"),
    ],
)
def test_values_that_would_change_are_refused(
    wallets: ModelSpec, feature: str, first: pa.Array, last: pa.Array, message: str
) -> None:
    for day, column in zip(DAYS, (first, first, last), strict=True):
        publish(day, {**PLAIN, feature: column})
    with pytest.raises(RetrievalError) as refusal:
        training_sets.build_training_set(wallets, WINDOW)
    assert message.replace("accounts.", "accounts:") in str(refusal.value)
    if first.type == last.type:
        with pytest.raises(FeatureError) as unwritten:
            online_store.materialize_features(wallets, WINDOW)
        assert message in str(unwritten.value)
        assert online_store.materialization_state(wallets)["periods"] == {}


@pytest.mark.parametrize(
    ("payments", "message"),
    [
        ({"amount": pa.array([Decimal("0.10")] * 7)}, r"amount is decimal128\(2, 2\), which trainers and scorers"),
        ({"amount": pa.array([[1.0]] * 7)}, "amount is list<element: double>, which trainers"),
        ({"is_new": instants(DAYS[2], 7, 2)}, "is_new is timestamp"),
        ({"account": pa.array([1.0] * 7)}, "payments.account: has the types double, int64 in its files: double on"),
        ({"note": pa.array(["a"] * 7)}, "payments.note: is missing in 2 periods, such as 2024-01-01"),
    ],
)
def test_examples_that_no_model_takes_are_refused(wallets: ModelSpec, payments: Columns, message: str) -> None:
    for day in DAYS:
        is_last_only = "account" in payments or "note" in payments
        publish(day, PLAIN, payments if day == DAYS[-1] or not is_last_only else None)
    with pytest.raises(SpecError, match=message):
        training_sets.build_training_set(wallets, WINDOW)


def test_examples_of_several_types_keep_their_values(wallets: ModelSpec) -> None:
    for day, amount in zip(DAYS, (pa.array([1] * 7, pa.int32()), pa.nulls(7), pa.array([0.7] * 7)), strict=True):
        publish(day, PLAIN, {"amount": amount})
    amounts = training_rows(wallets)["amount"]
    assert amounts.to_pylist() == [1.0] * 7 + [None] * 7 + [0.7] * 7


@pytest.mark.parametrize("ids", [[float(IDS[0]), 1.0], [2.0**53, None]])
def test_float_keys_that_may_be_rounded_are_refused(wallets: ModelSpec, ids: list[float | None]) -> None:
    for day in DAYS:
        publish(day, PLAIN)
    store = repository.open_feature_store("wallets")
    entities = pa.table({"event_timestamp": instants(DAYS[0], 2, 2), "account": pa.array(ids, pa.float64())})
    with pytest.raises(FaultsError, match="is double, and 1 of its values may have been rounded"):
        store.get_historical_features(entities.to_pandas(), ["accounts:large"]).to_arrow()
