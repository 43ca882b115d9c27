"""Specs: what is refused, and that everything wrong is told at once, with its path."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evergreen.errors import SpecError
from evergreen.spec import loader
from evergreen.spec.columns import COLUMN_TYPES, RawColumn
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

pytestmark = pytest.mark.unit


COLUMNS = {"carrier": "string"}


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "late",
        "owner": "ops",
        "features": {
            "timezone": "UTC",
            "first_day": "2013-01-01",
            "sources": [{"name": "flights", "columns": COLUMNS, "trailing": "2d"}],
            "spine": "departures",
            "views": ["carriers"],
        },
        "feature_service": "late",
        "schedule": "0 0 * * 5",
        "gates": [{"kind": "threshold", "metric": "auc", "at_least": 0.6}],
        **changes,
    }


def source(**changes: Any) -> dict[str, Any]:
    return {"features": {**spec()["features"], "sources": [{"name": "x", "columns": COLUMNS, **changes}]}}


@pytest.mark.parametrize(
    ("declared", "advice"),
    [
        ("uint32", "write Spark has only signed integers: int64"),
        ("float", "write float64"),
        ("object", "write string"),
        ("timestamp[ns]", "Spark has only microseconds, without a zone or in UTC"),
        ("timestamp[us, tz=Europe/Berlin]", "write timestamp[us, tz=UTC] for instants, timestamp[us] for"),
        ("datetime64[ns]", "write timestamp[us, tz=UTC] for instants"),
        ("decimal128(39, 2)", "a decimal has 1 to 38 digits"),
        ("decimal128(4, 5)", "at most all of them after the point"),
        ("list<list<int64>>", "'list<list<int64>>' is no type"),
        ("list<uint8>", "Spark has only signed integers: int16"),
        ("struct<a: int64>", "write one of bool, int8"),
        ("", "write one of bool"),
    ],
)
def test_types_that_no_step_holds_are_refused(declared: str, advice: str) -> None:
    with pytest.raises(SpecError) as refused:
        ModelSpec(**spec(**source(columns={"a": declared})))
    (fault,) = refused.value.faults
    assert fault.location == "features.sources.0.columns.a.type"
    assert advice in fault.problem


def test_a_type_is_short_for_a_column() -> None:
    types = [*COLUMN_TYPES, "decimal128(38, 38)", "list<string>", "list<decimal128(4, 2)>"]
    (built,) = feature_spec(ModelSpec(**spec(**source(columns={name: name for name in types})))).sources
    assert [column.type for column in built.columns.values()] == types
    assert built.columns["int8"] == RawColumn(type="int8", nullable=True)


def test_a_right_spec() -> None:
    model = ModelSpec(**spec())
    assert list(map(str, model.history)) == ["0d", "14d", "0d", "365d"]
    assert model.clusters == ("day",)
    assert ModelSpec(**spec(clusters=["plane", "day"])).clusters == ("plane", "day")
    assert feature_spec(model).tables == ("departures", "carriers")
    with pytest.raises(ValidationError, match="frozen"):
        model.name = "other"  # type: ignore[misc]


def test_all_faults_at_once_each_with_its_path() -> None:
    wrong = spec(
        ownr="ops",
        holdout="0d",
        schedule="weekly",
        gates=[{"kind": "threshold", "metric": "auc", "at_least": 3}, {"kind": "magic"}],
    )
    wrong["features"] = {
        **wrong["features"],
        "timezone": "Mars/Olympus",
        "sources": [{"name": "Flights", "columns": COLUMNS}],
    }
    del wrong["owner"]
    with pytest.raises(SpecError) as refused:
        ModelSpec(**wrong)
    where = [fault.location for fault in refused.value.faults]
    assert where == [
        "owner",
        "features.sources.0.name",
        "schedule",
        "holdout",
        "gates.0",
        "gates.1",
        "ownr",
    ]
    text = str(refused.value)
    assert text.startswith("model late: 7 faults")
    assert "owner: field required → add it" in text
    assert "ownr" in text
    assert "correct its spelling" in text


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        ({"clusters": []}, "clusters", "at least 1 item"),
        ({"clusters": ["day", "plane", "hour"]}, "clusters", "at most 2 items"),
        ({"clusters": ["hour(left_at)"]}, "clusters.0", "match pattern"),
        (
            {"holdout": "4d", "gates": [{"kind": "against_champion", "metric": "auc", "must_be": "better"}]},
            "MODEL",
            "holdout is 4d, and gates that compare need 5 days at the very least",
        ),
        ({"clusters": ["day", "day"]}, "MODEL", "clusters names day twice: drop one"),
        ({"features": {**spec()["features"], "timezone": "Mars/Olympus"}}, "features", "IANA"),
        ({"features": {**spec()["features"], "views": ["a", "a"]}}, "features", "twice"),
        ({"features": {**spec()["features"], "views": ["departures"]}}, "features", "spine"),
        (
            {
                "features": {
                    **spec()["features"],
                    "sources": [{"name": "x", "columns": COLUMNS, "daily": False, "trailing": "1d"}],
                }
            },
            "features.sources.0",
            "daily",
        ),
        (source(daily=False, empty_days="absent"), "features.sources.0", "empty_days='absent' needs daily files"),
        (source(absent_after_hours=3), "features.sources.0", "absent_after_hours needs empty_days='absent'"),
        (source(columns={}), "features.sources.0.columns", "at least 1 item"),
        (source(columns={"a": "int64", "A": "int64"}), "features.sources.0", "columns A, a differ only in case"),
        (source(columns={"a": {"type": "int64", "null": 1}}), "features.sources.0.columns.a.null", "not permitted"),
        ({"gates": []}, "gates", "at least 1"),
        ({"gates": spec()["gates"] * 2}, "MODEL", "another name"),
        ({"resources": {"cpu": 0}}, "resources.cpu", "greater than or equal to 1"),
        ({"resources": {"gpu": 1, "processes": 2}}, "resources", "give each process one"),
        ({"resources": {"gpu_type": "big"}}, "resources", "set gpu"),
        ({"resources": {"memory_gib": 1, "shm_gib": 2}}, "resources", "shm_gib 2 is part of memory_gib 1"),
    ],
)
def test_impossible_combinations_are_refused(change: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(SpecError) as refused:
        ModelSpec(**spec(**change))
    (fault,) = refused.value.faults
    assert fault.location == where
    assert what in str(fault)


def test_the_models_that_ship_load() -> None:
    assert "flight_delay" in loader.model_names()
    for name in loader.model_names():
        assert feature_spec(loader.load_spec(name)).tables


def test_an_unknown_model_names_similar_ones() -> None:
    with pytest.raises(SpecError, match="known models: flight_delay"):
        loader.load_spec("flight_dealy")
