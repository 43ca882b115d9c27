"""What materialization writes is what Feast's own stores write, byte by byte: their readers are Feast's."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.provider import get_provider
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis import ResponseError

from evergreen.feature_store import online_store, repository
from evergreen.feature_store.online_backends import connect_redis, send_to_redis
from evergreen.feature_store.online_encoding import OnlineColumn, encode_keys
from evergreen.feature_store.online_writes import OnlineRows, redis_commands
from evergreen.lake import datasets
from evergreen.spec.model import ModelSpec
from support.online_stores import OnlineFixture
from support.ponds import window, write_definitions

pytestmark = pytest.mark.integration

DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Bool, Float32, Float64, Int32, Int64, String
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

keys = [Entity(name=name, join_keys=[name], value_type=kind)
        for name, kind in (("shore", ValueType.STRING), ("id", ValueType.INT64), ("a b", ValueType.INT32))]
types = dict(double=Float64, float=Float32, long=Int64, int=Int32, bool=Bool, string=String)
schema = [Field(name=name, dtype=dtype) for name, dtype in types.items()]
key_fields = [Field(name="shore", dtype=String), Field(name="id", dtype=Int64), Field(name="a b", dtype=Int32)]
levels = FeatureView(name="levels", entities=keys, ttl=timedelta(days=3), source=feature_source("ponds", "levels"),
                     schema=[*key_fields, *schema])
depths = FeatureView(name="depths", ttl=timedelta(days=3), source=feature_source("ponds", "depths"), schema=schema)
ponds = FeatureService(name="ponds", features=[levels, depths])
"""
FEATURES = {
    "double": ("double_val", pa.float64(), [1.5, -0.0, 0.0, math.nan, None, 1e308]),
    "float": ("float_val", pa.float32(), [0.1, -0.0, 0.0, math.nan, None, math.inf]),
    "long": ("int64_val", pa.int64(), [2**63 - 1, -(2**63), 0, None, 7, 7]),
    "int": ("int32_val", pa.int32(), [2**31 - 1, -1, 0, None, 7, 7]),
    "bool": ("bool_val", pa.bool_(), [True, False, None, True, True, False]),
    "string": ("string_val", pa.string(), ["", "'; DROP TABLE ponds_levels; --", "ü\n\0", None, "x" * 1000, "%s"]),
}
KEYS = {
    "shore": ("string_val", pa.string(), ["", "", "ö|1", "z", "z", "%"]),
    "id": ("int64_val", pa.int64(), [-(2**63), 3, 3, 2**40, 0, 1]),
    "a b": ("int32_val", pa.int32(), [0, 0, 0, -5, 2**31 - 1, 1]),
}
INSTANTS = [datetime(2013, 1, 9, 5, 0, second, 999_999 * (second % 2), UTC) for second in range(6)]


def publish_rows() -> None:
    dataset, partition = datasets.open_dataset("features/ponds"), datasets.period_partition("2013-01-09")
    folder = dataset.stage(partition, "all-types")
    instants = {"event_timestamp": pa.array(INSTANTS, pa.timestamp("us", "UTC"))}
    columns = {name: pa.array(values, kind) for name, (_, kind, values) in (KEYS | FEATURES).items()}
    for name in ("visits", "levels", "depths"):
        pq.write_table(pa.table(instants | columns), folder / f"{name}.parquet")
    dataset.publish(partition, "all-types", {path.stem: path for path in folder.iterdir()}, {})


def messages(columns: dict[str, tuple[str, pa.DataType, list[Any]]]) -> list[dict[str, Value]]:
    """Return the values of each row as Feast's messages; what is missing has no content."""
    return [
        {
            name: Value() if values[row] is None or values[row] != values[row] else Value(**{field: values[row]})
            for name, (field, _, values) in columns.items()
        }
        for row in range(len(INSTANTS))
    ]


def test_rows_are_those_of_feast(ponds: ModelSpec, online: OnlineFixture, tmp_path: Path) -> None:
    write_definitions(DEFINITIONS, tmp_path / "feature_repo")
    publish_rows()
    assert online_store.materialize_features(ponds, window(10))
    written = online.contents()

    online.empty()
    repository.open_feature_store.cache_clear()
    store = repository.open_feature_store("ponds")
    keys = [EntityKey(join_keys=list(key), entity_values=list(key.values())) for key in messages(KEYS)]
    nobody = EntityKey(join_keys=[DUMMY_ENTITY_ID], entity_values=[Value(string_val=DUMMY_ENTITY_VAL)])
    rows = list(zip(keys, messages(FEATURES), INSTANTS, [None] * len(keys), strict=True))
    provider = get_provider(store.config)
    provider.online_write_batch(store.config, store.get_feature_view("levels"), rows, progress=None)
    provider.online_write_batch(store.config, store.get_feature_view("depths"), [(nobody, *rows[-1][1:])], None)
    assert online.contents() == written


def test_a_refusal_of_redis_fails_the_write(redis_server: str) -> None:
    keys = OnlineColumn(pa.chunked_array([["first", "second", "third"]]), "string_val")
    depths = OnlineColumn(pa.chunked_array([[1, 2, 3]]), "int64_val")
    instants = pa.chunked_array([pa.array(INSTANTS[:3], pa.timestamp("us", "UTC"))])
    rows = OnlineRows({"shore": keys}, instants, {"depth": depths})
    stored = [key + b"ponds" for key in encode_keys(rows.keys, 3).to_pylist()]
    with connect_redis(redis_server) as server:
        server.flushall()
        server.set(stored[1], "no hash")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            send_to_redis(redis_server, redis_commands("ponds", "levels", rows))
        assert [server.type(key) for key in stored] == [b"hash", b"string", b"hash"]
