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
COMPARISON = {"kind": "against_champion", "metric": "auc", "must_be": "better"}


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


def features(**changes: Any) -> dict[str, Any]:
    return {"features": {**spec()["features"], "sources": [{"name": "flights", "columns": COLUMNS}], **changes}}


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
    assert list(map(str, model.history)) == ["0d", "14d", "0d", "52w"]
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
            {"holdout": "4d", "gates": [COMPARISON]},
            "MODEL",
            "holdout is 4d, and gates that compare need 5 days at the very least",
        ),
        ({"holdout": "0d"}, "holdout", "0d is no time: write a longer one"),
        ({"train": 90}, "train", "90 is no length of time: write a count and min, h, d or w"),
        ({"train": "36h"}, "MODEL", "train is 36h, no whole number of periods of 1d: write days or weeks"),
        (
            {"label_delay": "90min", "cooldown": "30min", **features(period="1h")},
            "MODEL",
            "write a multiple of 1h; cooldown is 30min, no whole number of periods of 1h",
        ),
        ({"score": {"columns": ["label"]}}, "MODEL", "score.columns names label, the label"),
        ({"score": {"columns": ["Late Flight"]}}, "score.columns.0", "match pattern"),
        ({"monitor": {"look_after": "10d"}, **features(period="1w")}, "MODEL", "monitor.look_after is 10d, no whole"),
        (
            {"holdout": "4w", "gates": [COMPARISON], "monitor": None, **features(period="1w")},
            "MODEL",
            "gates that compare need 5 weeks at the very least",
        ),
        (features(period="2d"), "features", "2d is no period: write 1d or 1w"),
        (features(period="90min"), "features", "90min is no period, because neither is an hour"),
        (source(trailing="12h"), "features", "trailing of x is 12h, no whole number of periods of 1d"),
        (source(trailing="367d"), "features.sources.0", "at most 366d"),
        ({"clusters": ["day", "day"]}, "MODEL", "clusters names day twice: drop one"),
        ({"features": {**spec()["features"], "timezone": "Mars/Olympus"}}, "features", "IANA"),
        ({"features": {**spec()["features"], "views": ["a", "a"]}}, "features", "twice"),
        ({"features": {**spec()["features"], "views": ["departures"]}}, "features", "spine"),
        (
            {
                "features": {
                    **spec()["features"],
                    "sources": [{"name": "x", "columns": COLUMNS, "is_register": True, "trailing": "1d"}],
                }
            },
            "features.sources.0",
            "a file per period",
        ),
        (
            source(is_register=True, empty_periods="absent"),
            "features.sources.0",
            "empty_periods='absent' needs a file per period",
        ),
        (source(absent_after_hours=3), "features.sources.0", "absent_after_hours needs empty_periods='absent'"),
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


@pytest.mark.parametrize(
    ("period", "changes"),
    [
        ("15min", {"train": "36h", "holdout": "45min", "label_delay": "15min"}),
        ("1h", {"train": "90d", "holdout": "7d", "cooldown": "6h", "retrain_after": "24h"}),
        ("6h", {"train": "4w", "holdout": "12h"}),
        ("1w", {"train": "364d", "holdout": "26w", "monitor": {"look_after": "14d"}}),
    ],
)
def test_durations_of_other_periods(period: str, changes: dict[str, Any]) -> None:
    model = ModelSpec(**spec(**{"monitor": {"look_after": "7d"}, **changes, **features(period=period)}))
    for name in changes.keys() - {"monitor"}:
        assert str(getattr(model, name)) == changes[name]
    assert ModelSpec(**model.model_dump(mode="json", exclude_unset=True)) == model


def test_the_features_of_another_model_have_its_period() -> None:
    model = ModelSpec(**spec(features="flight_delay", train="36h"))
    with pytest.raises(
        SpecError, match="train is 36h, no whole number of periods of 1d.* the features of flight_delay"
    ):
        feature_spec(model)


def history(change: dict[str, Any], **fields: Any) -> dict[str, Any]:
    columns = {
        "plane": {"type": "string", "nullable": False},
        "since": {"type": "timestamp[us, tz=UTC]", "nullable": False},
        "until": "timestamp[us, tz=UTC]",
        "weight": "float64",
        **change,
    }
    roles = {"keys": ["plane"], "valid_from": "since", "valid_to": "until", **fields.pop("history", {})}
    return source(**{"is_register": True, "columns": columns, "history": roles, **fields})


@pytest.mark.parametrize(
    "change", [{}, {"trailing": "3d"}, {"history": {"valid_to": None}}, {"rebuild_on_change": False}]
)
def test_a_right_history(change: dict[str, Any]) -> None:
    (built,) = feature_spec(ModelSpec(**spec(**history({}, **change)))).sources
    assert built.history
    assert not built.has_dates_of_validity


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (history({}, is_register=False), "history needs is_register=True"),
        (history({}, history={"keys": ["tail"]}), "history: tail is not among the columns"),
        (history({}, history={"valid_to": "end"}), "history: end is not among the columns"),
        (history({}, history={"keys": ["plane", "plane"]}), "history: plane has two roles"),
        (history({}, history={"valid_to": "since"}), "history: since has two roles"),
        (history({"plane": "string"}), "history: plane may be null: declare nullable=False"),
        (history({"since": "timestamp[us, tz=UTC]"}), "history: since may be null"),
        (history({"plane": {"type": "float64", "nullable": False}}), "history: plane is float64"),
        (history({"plane": {"type": "list<string>", "nullable": False}}), "history: plane is list<string>"),
        (history({"since": {"type": "timestamp[us]", "nullable": False}}), "history: since has no time zone"),
        (history({"until": "timestamp[us]"}), "history: until has no time zone"),
        (history({"until": "string"}), "history: until is string: declare timestamp[us, tz=UTC], or date32"),
        (history({"until": "date32"}), "history: since and until have two types"),
    ],
)
def test_a_history_that_cannot_be_is_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError) as refused:
        ModelSpec(**spec(**change))
    (fault,) = refused.value.faults
    assert fault.location == "features.sources.0"
    assert what in fault.problem


def test_the_models_that_ship_load() -> None:
    assert "flight_delay" in loader.model_names()
    for name in loader.model_names():
        assert feature_spec(loader.load_spec(name)).tables


def test_an_unknown_model_names_similar_ones() -> None:
    with pytest.raises(SpecError, match="known models: flight_delay"):
        loader.load_spec("flight_dealy")


MACRO_F1 = {"kind": "threshold", "metric": "macro_f1", "at_least": 0.5}


def multiclass(*gates: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return spec(**{"kind": "multiclass", "classes": ["a", "b", "c"], "gates": gates or [MACRO_F1], **changes})


def forecast(kind: str | None = "forecast", gates: Any = None, **changes: Any) -> dict[str, Any]:
    columns = {"series": ["shop"], "horizon": "ahead", "season": 7, **changes}
    return spec(kind=kind, forecast=columns, **({"gates": gates} if gates else {}))


def test_a_forecast_names_series_horizon_and_season() -> None:
    gates = [{"kind": "threshold", "metric": "mase", "horizon": 7, "at_most": 1.0}]
    model = ModelSpec(**forecast(series=["shop", "item"], gates=gates))
    assert model.forecast
    assert model.forecast.columns == ("shop", "item", "ahead")
    assert model.prediction_type
    assert model.prediction_type.describe_outputs() == "one number"


def test_a_kind_says_what_a_prediction_is() -> None:
    prediction = ModelSpec(**multiclass()).prediction_type
    assert prediction
    assert prediction.outputs == ("a", "b", "c")
    assert prediction.describe_outputs() == "3 numbers, one for each of the classes a, b, c"
    assert ModelSpec(**multiclass(classes=[3, 1, -1])).classes == (3, 1, -1)
    assert ModelSpec(**spec()).prediction_type is None
    declared = ModelSpec(**spec(kind="binary")).prediction_type
    assert declared
    assert declared.outputs == ()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (multiclass(classes=[]), "classes: is missing, and kind is 'multiclass' → list at least two, in the order"),
        (multiclass(classes=["a"]), "classes: is missing, and kind is 'multiclass'"),
        (multiclass(classes=["a", "a"]), "classes: a occurs twice: drop one"),
        (multiclass(classes=["a", 1]), "some are texts and some are numbers"),
        (multiclass(classes=[True, False]), "classes"),
        (multiclass(classes=[0.5, 1.5]), "classes"),
        (multiclass(classes=[""] * 2), "classes"),
        (multiclass(classes=list(range(101))), "at most 100"),
        (spec(classes=["a", "b"]), "classes: is for a multiclass model, and kind is None → add kind='multiclass'"),
        (spec(kind="binary", classes=["a", "b"]), "classes: is for a multiclass model, and kind is 'binary'"),
        (spec(kind="vibes"), "kind: input should be 'binary', 'multiclass'"),
        (spec(gates=[MACRO_F1]), "gates.0: macro_f1 is a metric of multiclass models → declare kind="),
        (
            multiclass({"kind": "threshold", "metric": "auc", "at_least": 0.6}),
            "auc is a metric of binary models, and kind is 'multiclass' → take one of log_loss, accuracy, expected",
        ),
        (multiclass({"kind": "fairness", "group_by": "x", "cut": 0.5, "at_most": 0.1}), "positive_rate is a metric of"),
        (
            multiclass({"kind": "threshold", "metric": "accuracy", "at_least": 0.6, "cut": 0.5}),
            "accuracy of several classes has no cut → leave it out",
        ),
        (spec(gates=[{"kind": "threshold", "metric": "accuracy", "at_least": 0.6}]), "accuracy needs a cut"),
        (
            spec(gates=[{"kind": "threshold", "metric": "quantile_loss", "at_most": 2.0}]),
            "needs the predicted quantile",
        ),
        (
            multiclass({"kind": "threshold", "metric": "expected_cost", "at_most": 0.5, "costs": [[0, 1], [1, 0]]}),
            "costs have 2 rows, and there are 3 classes → write a row for each",
        ),
        (multiclass({"kind": "churn", "at_most": 0.1, "cut": 0.5}), "several classes have no cut → leave it out"),
        (multiclass({"kind": "churn", "at_most": 1.0}), "leaves nothing to decide"),
        (
            spec(kind="quantile", quantiles=[0.1, 0.9], gates=[{"kind": "churn", "at_most": 0.1, "cut": 0.5}]),
            "several numbers for a row have no cut → leave it out",
        ),
        (multiclass({"kind": "baseline", "metric": "auc_ovr"}), "auc_ovr does not exist for a constant"),
        (spec(kind="ranking", gates=[{"kind": "threshold", "metric": "mrr", "at_least": 0.5}]), "query: is missing"),
        (
            spec(kind="forecast", gates=[{"kind": "threshold", "metric": "mase", "at_most": 1.0}]),
            "forecast: is missing",
        ),
        (forecast(), "gates.0: auc is a metric of binary models, and kind is 'forecast'"),
        (
            forecast(gates=[{"kind": "threshold", "metric": "mase", "at_most": 1.0}], kind=None),
            "is for a forecast model",
        ),
        (forecast(season=0), "forecast.season"),
        (forecast(series=[]), "forecast.series"),
        (forecast(series=["shop", "ahead"]), "forecast: ahead has two roles"),
        (
            spec(kind="regression", gates=[{"kind": "threshold", "metric": "mae", "horizon": 1, "at_most": 1.0}]),
            "gates.0: horizon is for a forecast model, and kind is 'regression' → leave it out",
        ),
        (
            spec(
                kind="ranking",
                query="session",
                weight="worth",
                gates=[{"kind": "threshold", "metric": "mrr", "at_least": 0.5}],
            ),
            "weight: is for models whose metrics are of rows, and a ranking's are of queries → remove it",
        ),
        (spec(query="session"), "query: is for a ranking model, and kind is None"),
        (spec(kind="quantile", quantiles=[0.5]), "quantiles: is missing"),
        (spec(kind="quantile", quantiles=[0.9, 0.1]), "quantiles: they are not in order"),
        (spec(kind="quantile", quantiles=[0.1, 1.0]), "less than 1"),
        (
            spec(
                kind="quantile",
                quantiles=[0.1, 0.9],
                gates=[{"kind": "threshold", "metric": "quantile_loss", "quantile": 0.5, "at_most": 2.0}],
            ),
            "gates.0: 0.5 is none of the quantiles 0.1, 0.9 → take one of them",
        ),
        (spec(kind="binary", target_transform="log"), "target_transform: changes what labels measure"),
        (spec(kind="regression"), "auc is a metric of binary models, and kind is 'regression'"),
    ],
)
def test_what_does_not_fit_a_kind_is_refused_with_the_fix(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as error:
        ModelSpec(**fields)
    assert says in str(error.value)


def test_a_model_without_a_kind_is_stored_as_before() -> None:
    """Fields of gates that only some kinds have are left out of what fingerprints are made of."""
    gate = ModelSpec(**spec()).gates[0].model_dump(mode="json")
    assert set(gate) == {
        "kind",
        "name",
        "metric",
        "higher_is_better",
        "cut",
        "quantile",
        "min_rows",
        "at_least",
        "at_most",
    }


@pytest.mark.parametrize(
    ("policy", "changes", "location", "problem"),
    [
        (
            {"alarms": ["drift"]},
            {"monitor": None},
            "MODEL",
            "retrain_on.alarms needs the DAG that watches the champion",
        ),
        ({"alarms": ["drift", "break", "drift"]}, {"gates": [COMPARISON]}, "retrain_on", "names drift twice"),
        ({"alarms": ["noise"]}, {"gates": [COMPARISON]}, "retrain_on.alarms.0", "'break', 'drift' or 'performance'"),
        ({"cooldown": "7d"}, {"gates": [COMPARISON]}, "retrain_on", "cooldown limit what alarms ask for: name alarms"),
        ({"schedule": False}, {}, "MODEL", "retrain_on leaves nothing that starts a retrain"),
        (
            {"alarms": ["drift"], "cooldown": "12h"},
            {"gates": [COMPARISON]},
            "MODEL",
            "retrain_on.cooldown is 12h, no whole number of periods of 1d",
        ),
        ({"alarms": ["drift"], "cooldown": "0d"}, {"gates": [COMPARISON]}, "retrain_on.cooldown", "0d is no time"),
        ({"alarms": ["drift"], "budget": 0}, {"gates": [COMPARISON]}, "retrain_on.budget", "greater than or equal to"),
    ],
)
def test_what_retrains_may_not_be_asked_for_by(
    policy: dict[str, Any], changes: dict[str, Any], location: str, problem: str
) -> None:
    with pytest.raises(SpecError) as refused:
        ModelSpec(**spec(retrain_on=policy, **changes))
    (fault,) = refused.value.faults
    assert fault.location == location
    assert problem in fault.problem


def test_what_starts_a_retrain() -> None:
    usual = ModelSpec(**spec()).retrain_on
    assert (usual.schedule, usual.alarms) == (True, ())
    ModelSpec(**spec(retrain_after="7d", retrain_on={"schedule": False}))
    ModelSpec(**spec(gates=[COMPARISON], retrain_on={"alarms": ["performance"]}))
    rare = ModelSpec(**spec(gates=[COMPARISON], retrain_on={"schedule": False, "alarms": ["drift"], "cooldown": "1w"}))
    assert (str(rare.retrain_on.cooldown), rare.retrain_on.budget) == ("1w", 2)
