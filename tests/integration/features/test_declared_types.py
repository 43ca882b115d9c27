"""A model of int64 keys, nullable integers, booleans, decimals, instants and arrays, from Spark to a score."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost

from evergreen.errors import FeatureError, SpecError
from evergreen.evaluation import score_table
from evergreen.feature_store import online_store, repository, training_sets
from evergreen.features import build, checks, inputs, pipeline
from evergreen.features.inputs import FingerprintsByPeriod
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.settings import REPOSITORY
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window

pytestmark = pytest.mark.integration

DAYS = [date(2024, 5, day) for day in (1, 2, 3)]
SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="meters", owner="tests", feature_service="meters", label="late", request_columns=["rooms"],
    features=dict(timezone="UTC", first_day="2024-05-01", spine="bills", views=["readings"],
                  sources=[dict(name="logs", columns=dict(line="int64"))]),
    schedule="0 0 * * 1", train="2d", holdout="1d",
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
# Two ids that are one double; null in every column; the last digit of a sum of decimals; an array; an instant.
FEATURES = """
from evergreen.features import FeatureTables

BASE = 1234567890123456789


def build(spark, raw, days, timezone):
    rows = ", ".join(
        f"(DATE'{day}', TIMESTAMP'{day} 0{3 - n}:00:00', {BASE} + {n % 2}L, {n}L, {n} = 1, {n}.10BD,"
        f" array({n}D, null), TIMESTAMP'{day} 00:00:00.25')"
        for day in days for n in (0, 1)
    )
    table = spark.sql(f"SELECT * FROM VALUES {rows} AS rows(day, at, meter, n, flag, price, samples, since)")
    readings = table.selectExpr(
        "day", "TIMESTAMP(day) AS event_timestamp", "meter", "nullif(n, 1) AS visits", "nullif(flag, false) AS is_new",
        "n + BIGINT(power(2, 62)) AS units", "price + 0.20BD AS price", "samples[0] AS sample",
        "FLOAT(unix_micros(since) % 1000000 / 1e6) AS fraction", "IF(flag, 'ä', null) AS note",
    )
    bills = table.selectExpr(
        "day", "at AS event_timestamp", "IF(n = 0, null, meter) AS meter", "INT(n) AS rooms", "INT(n) AS late",
        "at AS label_known_at",
    ).unionAll(table.selectExpr("day", "at", "meter", "null", "INT(flag)", "at"))
    return [
        FeatureTables({"bills": [name for name in bills.columns if name != "day"]}, bills),
        FeatureTables({"readings": [name for name in readings.columns if name != "day"]}, readings),
    ]
"""
EXPECTATIONS = """
import great_expectations.expectations as gxe


def feature_expectations(table):
    return [gxe.ExpectTableRowCountToBeBetween(min_value=2)]
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Array, Bool, Decimal, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

meter = Entity(name="meter", join_keys=["meter"], value_type=ValueType.INT64)
TYPES = {"visits": Int32, "is_new": Bool, "units": Int64, "price": Float64, "sample": Float64, "fraction": Float32,
         "note": String}
readings = FeatureView(name="readings", entities=[meter], ttl=timedelta(days=1),
                       schema=[Field(name=name, dtype=type_) for name, type_ in TYPES.items()],
                       source=feature_source("meters", "readings"))
meters = FeatureService(name="meters", features=[readings])
"""
LAKE_TYPES = {
    "event_timestamp": "timestamp[us, tz=UTC]",
    "meter": "int64",
    "visits": "int32",
    "is_new": "bool",
    "units": "int64",
    "price": "double",
    "sample": "double",
    "fraction": "float",
    "note": "string",
}


@pytest.fixture
def write_model(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> Iterator[Callable[..., ModelSpec]]:
    """Return a function that writes the model with other code or definitions."""
    folder = tmp_path / "evergreen_models/meters"
    folder.mkdir(parents=True)
    (tmp_path / "feature_repo").mkdir()
    shutil.copy(REPOSITORY / "feature_repo/feature_store.yaml", tmp_path / "feature_repo")

    def write(features: str = FEATURES, definitions: str = DEFINITIONS) -> ModelSpec:
        files = {"__init__": "", "model": SPEC, "features": features, "expectations": EXPECTATIONS}
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        (tmp_path / "feature_repo/meters.py").write_text(definitions)
        use_models(tmp_path / "evergreen_models", only=True)
        loader.load_spec.cache_clear()
        repository.open_feature_store.cache_clear()
        return loader.load_spec("meters")

    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(tmp_path / "feature_repo"))
    repository.settings.cache_clear()
    for day in DAYS:
        file = raw_files.raw_file("logs", day)
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table({"line": [1]}), file)
    yield write
    loader.load_spec.cache_clear()


def build_periods(model: ModelSpec) -> tuple[FingerprintsByPeriod, dict[str, str]]:
    day_fingerprints = inputs.compute_period_fingerprints(model, DAYS)
    return day_fingerprints, build.build_features(model, day_fingerprints)


def published_table(model: ModelSpec, day: date, name: str) -> pa.Table:
    dataset = inputs.features_dataset(model)
    manifest = dataset.manifest(datasets.period_partition(day))
    assert manifest is not None
    return pq.read_table(dataset.file_path(manifest, name), partitioning=None)


def test_spark_s_values_reach_the_score_as_they_are(write_model: Callable[..., ModelSpec], tmp_path: Path) -> None:
    model = write_model()
    day_fingerprints, folders = build_periods(model)
    assert checks.validate_features(model, folders) == folders
    pipeline.publish_features(model, day_fingerprints, folders, DAYS)
    readings = published_table(model, DAYS[0], "readings")
    assert {field.name: str(field.type) for field in readings.schema} == LAKE_TYPES
    assert published_table(model, DAYS[0], "bills").schema.field("meter").type == pa.int64()
    values = {
        "visits": [0, None],
        "is_new": [None, True],
        "units": [2**62, 2**62 + 1],
        "price": [0.3, 1.3],  # as written; a sum of doubles is 0.30000000000000004
        "sample": [0.0, 1.0],
        "fraction": [0.25, 0.25],
        "note": [None, "ä"],
    }
    assert {name: readings.sort_by("meter")[name].to_pylist() for name in values} == values

    window = Window.from_range(DAYS[0], "2024-05-04", RunReason.MANUAL, "UTC")
    training_set = training_sets.build_training_set(model, window)
    table = pq.read_table(training_sets.training_set_dataset(model).file_path(training_set, "train"))
    base = 1234567890123456789
    for name, (first, second) in values.items():
        expected = {None: None, base: first, base + 1: second}
        column = table[f"readings__{name}"]
        assert column.to_pylist() == [expected[key] for key in table["meter"].to_pylist()]
        assert str(column.type) == LAKE_TYPES[name]

    features = tuple(name for name in training_sets.model_input_columns(model) if name != "readings__note")
    learned = xgboost.QuantileDMatrix(table.select(features), label=table["label"].to_numpy())
    booster = xgboost.train({"min_child_weight": 0, "nthread": 1}, learned, 3)
    booster.save_model(tmp_path / "model.ubj")
    assert np.array_equal(score_table(tmp_path, table, features), booster.predict(learned))

    online_store.materialize_features(model, window)
    service = repository.open_feature_store("meters").get_feature_service("meters")
    keys = [{"meter": base}, {"meter": base + 1}]
    served = (
        repository.open_feature_store("meters").get_online_features(service, keys, full_feature_names=True).to_dict()
    )
    assert {name: served[f"readings__{name}"] for name in values} == values


def test_only_the_day_that_does_not_fit_is_refused(write_model: Callable[..., ModelSpec]) -> None:
    text = '"nullif(n, 1) AS visits"'
    changed = "\"IF(day = DATE'2024-05-02', n + 0.7D, n) AS visits\""
    model = write_model(features=FEATURES.replace(text, changed))
    day_fingerprints, folders = build_periods(model)
    accepted = checks.validate_features(model, folders, own_periods=[DAYS[0], DAYS[2]])
    assert list(accepted) == ["2024-05-01", "2024-05-03"]
    pipeline.publish_features(model, {day: day_fingerprints[day] for day in accepted}, accepted)
    assert published_table(model, DAYS[2], "readings").schema.field("visits").type == pa.int32()
    with pytest.raises(FeatureError) as refusal:
        checks.validate_features(model, folders)
    [fault] = refusal.value.faults
    assert fault.location == "2024-05-02 readings visits"
    assert "is double, declared int32, and 2 of 2 values would change, such as " in fault.problem


def test_a_declared_column_that_is_not_built_is_named(write_model: Callable[..., ModelSpec]) -> None:
    model = write_model(definitions=DEFINITIONS.replace('"visits": Int32', '"visits": Int32, "left": Int32'))
    _, folders = build_periods(model)
    with pytest.raises(FeatureError, match="2024-05-01 readings left: is declared, and missing"):
        checks.validate_features(model, folders)


@pytest.mark.parametrize(
    ("feature_type", "problem"),
    [
        ("Decimal", "Feast stores it as text"),
        ("UnixTimestamp", "drops fractions of a second"),
        ("Array(Float64)", "an input of a model is one value"),
    ],
)
def test_other_types_are_refused_before_spark_starts(
    write_model: Callable[..., ModelSpec], feature_type: str, problem: str
) -> None:
    model = write_model(definitions=DEFINITIONS.replace('"price": Float64', f'"price": {feature_type}'))
    with pytest.raises(SpecError, match=problem):
        build_periods(model)
