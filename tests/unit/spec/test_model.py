"""Specs: what is refused, and that everything wrong is told at once, with its path."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evergreen.errors import SpecError
from evergreen.spec import loader
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
            "sources": [{"name": "flights", "columns": COLUMNS, "trailing_days": 2}],
            "spine": "departures",
            "views": ["carriers"],
        },
        "feature_service": "late",
        "schedule": "0 0 * * 5",
        "gates": [{"kind": "threshold", "metric": "auc", "at_least": 0.6}],
        **changes,
    }


def test_a_right_spec() -> None:
    model = ModelSpec(**spec())
    assert model.history_days == 379
    assert model.clusters == ("day",)
    assert ModelSpec(**spec(clusters=["plane", "day"])).clusters == ("plane", "day")
    assert feature_spec(model).tables == ("departures", "carriers")
    with pytest.raises(ValidationError, match="frozen"):
        model.name = "other"  # type: ignore[misc]


def test_all_faults_at_once_each_with_its_path() -> None:
    wrong = spec(
        ownr="ops",
        holdout_days=0,
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
        "holdout_days",
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
            {"holdout_days": 4, "gates": [{"kind": "against_champion", "metric": "auc", "must_be": "better"}]},
            "MODEL",
            "holdout_days is 4, and gates that compare need 5 days at the very least",
        ),
        ({"clusters": ["day", "day"]}, "MODEL", "clusters names day twice: drop one"),
        ({"features": {**spec()["features"], "timezone": "Mars/Olympus"}}, "features", "IANA"),
        ({"features": {**spec()["features"], "views": ["a", "a"]}}, "features", "twice"),
        ({"features": {**spec()["features"], "views": ["departures"]}}, "features", "spine"),
        (
            {
                "features": {
                    **spec()["features"],
                    "sources": [{"name": "x", "columns": COLUMNS, "daily": False, "trailing_days": 1}],
                }
            },
            "features.sources.0",
            "daily",
        ),
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
