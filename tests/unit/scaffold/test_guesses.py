"""Guesses of what a model could be, from what the columns of a sample look like."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from evergreen.periods import Calendar
from evergreen.scaffold.files import ScaffoldError
from evergreen.scaffold.guesses import (
    Choices,
    ColumnProfile,
    LabelRelation,
    ModelDraft,
    SampleProfile,
    check_choices,
    draft_model,
    feature_names,
    guess_keys,
    guess_kind,
    guess_period,
    guess_positive,
    guess_time,
    is_identifier,
    resolve_positive,
)

pytestmark = pytest.mark.unit

DAYS = [f"2026-03-{day:02}" for day in range(1, 31)]
TIME = ColumnProfile("at", "timestamp[us, tz=UTC]", distinct_count=900)
LABEL = ColumnProfile("late", "bool", distinct_count=2, minimum=False, maximum=True, values=(False, True))
SHOP = ColumnProfile("shop", "string", distinct_count=4, values=("a", "b", "c", "d"))


def sample(*columns: ColumnProfile, rows: int = 1000) -> SampleProfile:
    return SampleProfile(rows, (TIME, LABEL, *columns))


def draft(
    profile: SampleProfile, relations: dict[str, LabelRelation] | None = None, periods: Any = DAYS, **choices: Any
) -> ModelDraft:
    chosen = Choices(**{"label": "late", "time": "at", **choices})
    check_choices(profile, chosen)
    return draft_model(profile, chosen, relations or {}, Calendar("1d", "UTC"), periods, 12.3)


def roles(model: ModelDraft) -> dict[str, str]:
    return {column.raw_name: column.role for column in model.columns}


def faults(profile: SampleProfile, **choices: Any) -> str:
    with pytest.raises(ScaffoldError) as raised:
        check_choices(profile, Choices(**{"label": "late", **choices}))
    return str(raised.value)


def test_the_time_is_the_column_with_the_fewest_nulls() -> None:
    returned = ColumnProfile("returned", "timestamp[us, tz=UTC]", null_count=800, distinct_count=200)
    constant = ColumnProfile("loaded", "date32", distinct_count=1)
    assert guess_time(SampleProfile(1000, (constant, returned, TIME))) == "at"
    assert guess_time(SampleProfile(1000, (constant, returned, TIME)), ignored=["at"]) == "returned"
    assert guess_time(SampleProfile(1000, (constant, SHOP))) is None


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        (LABEL, "binary"),
        (ColumnProfile("x", "int64", distinct_count=2), "binary"),
        (ColumnProfile("x", "string", distinct_count=2), "binary"),
        (ColumnProfile("x", "float64", distinct_count=700), "regression"),
        (ColumnProfile("x", "decimal128(10, 2)", distinct_count=700), "regression"),
        (ColumnProfile("x", "string", distinct_count=3), "multiclass"),
        (ColumnProfile("x", "string", distinct_count=21), None),
        (ColumnProfile("x", "int64", distinct_count=3), "regression"),
    ],
)
def test_two_values_are_classes_and_more_numbers_a_regression(label: ColumnProfile, kind: str | None) -> None:
    assert guess_kind(label) == kind


@pytest.mark.parametrize(
    ("values", "positive"),
    [((False, True), True), (("no", "Yes"), "Yes"), ((0, 1), 1), (("kept", "gone"), "gone"), ((1, 2), 1)],
)
def test_the_positive_class_says_yes_or_is_the_rarer_one(values: tuple[Any, ...], positive: Any) -> None:
    assert guess_positive(ColumnProfile("x", "string", distinct_count=2, values=values)) == positive


def test_a_positive_value_is_found_as_people_write_it() -> None:
    assert resolve_positive(LABEL, Choices("late", positive="true")) is True
    number = ColumnProfile("n", "int64", distinct_count=500, minimum=0, maximum=900)
    assert resolve_positive(number, Choices("n", positive="17")) == 17
    assert resolve_positive(number, Choices("n")) is None
    assert "--positive 'x'" in faults(SampleProfile(1000, (TIME, number)), label="n", positive="x")


def test_rows_of_one_weekday_come_weekly() -> None:
    assert [guess_period(weekdays, 1000) for weekdays in (1, 5, 7)] == ["1w", "1d", "1d"]
    assert guess_period(1, 1) == "1d"


def test_keys_come_again_and_those_called_so_come_first() -> None:
    city = ColumnProfile("city", "string", distinct_count=90)
    customer = ColumnProfile("customerId", "int64", distinct_count=50)
    amount = ColumnProfile("amount", "int64", distinct_count=50)
    rare = ColumnProfile("basket_id", "string", distinct_count=400)
    assert guess_keys(sample(SHOP, city, customer, amount, rare), ["at", "late"]) == ("customerId", "city")
    assert guess_keys(sample(amount), ["at", "late"]) == ()


def test_identifiers_are_nearly_unique_texts_and_codes() -> None:
    for column, expected in (
        (ColumnProfile("line", "string", distinct_count=990), True),
        (ColumnProfile("line_id", "int64", null_count=100, distinct_count=900), True),
        (ColumnProfile("income", "int64", distinct_count=1000), False),
        (ColumnProfile("price", "float64", distinct_count=1000), False),
        (ColumnProfile("word", "string", distinct_count=900), False),
    ):
        assert is_identifier(column, 1000) is expected, column
    assert not is_identifier(ColumnProfile("line", "string", distinct_count=5), 5), "by chance"


def test_hostile_names_become_names_of_features() -> None:
    names = ["Order Date", "Größe (m²)", "東京", "2nd", "day", "x" * 90, "a-b", "a b", "userName", "''", "label"]
    result = feature_names(names)
    assert list(result.values()) == [
        *("order_date", "grosse_m2", "column_3", "column_2nd", "day_value", "x" * 40, "a_b", "a_b_2", "user_name"),
        *("column_10", "label_value"),
    ]


def test_roles_follow_from_the_columns() -> None:
    model = draft(
        sample(
            SHOP,
            ColumnProfile("line_id", "string", distinct_count=1000),
            ColumnProfile("color", "string", null_count=3, distinct_count=3, values=("red", "blue", "green")),
            ColumnProfile("price", "float64", distinct_count=800, minimum=0.5, maximum=9.0),
            ColumnProfile("refund", "float64", distinct_count=800),
            ColumnProfile("currency", "string", distinct_count=1, values=("EUR",)),
            ColumnProfile("plz_code", "int64", distinct_count=300),
            ColumnProfile("meta", None),
        ),
        {"refund": LabelRelation(auc=0.001), "price": LabelRelation(auc=0.7)},
        keys=("shop",),
    )
    assert roles(model) == {
        "at": "time",
        "late": "label",
        "shop": "key",
        "line_id": "identifier",
        "color": "category",
        "price": "number",
        "refund": "leak",
        "currency": "none",
        "plz_code": "none",
    }
    notes = "\n".join(model.notes)
    for words in ("leaks, left out because they tell the label: 'refund'", "'line_id'", "for them: 'meta'"):
        assert words in notes
    by_name = {column.name: column for column in model.columns}
    assert by_name["color"].categories == ("blue", "green", "red")
    assert by_name["color"].is_nullable
    assert not by_name["price"].is_nullable
    assert by_name["price"].is_never_negative


def test_an_ignored_column_is_not_declared() -> None:
    assert "shop" not in roles(draft(sample(SHOP), ignored=("shop",)))


def test_short_samples_are_told_and_judged_on_less() -> None:
    short, long = draft(sample(SHOP), periods=DAYS[:8]), draft(sample(SHOP), periods=[*DAYS, "2026-05-30"])
    assert (str(short.holdout), str(long.holdout)) == ("7d", "14d")
    assert any("covers 8 days" in note and "needs 10" in note for note in short.notes)
    assert (short.has_gaps, long.has_gaps) == (False, True)
    assert (str(short.first_day), str(short.last_day)) == ("2026-03-01", "2026-03-08")


def test_all_wrong_columns_are_named_at_once_with_those_there_are() -> None:
    text = faults(sample(SHOP), label="lat", keys=("shopp",), ignored=("x",))
    for words in ("3 faults", "did you mean 'late'?", "did you mean 'shop'?", "'at', 'late', 'shop'"):
        assert words in text


CLICKS = ColumnProfile("clicks", "int64", distinct_count=300, minimum=0, maximum=400)


@pytest.mark.parametrize(
    ("columns", "rows", "choices", "words"),
    [
        ((SHOP,), 0, {}, "there are none"),
        ((ColumnProfile("y", "bool", distinct_count=1, minimum=True),), 9, {"label": "y"}, "has True in all rows"),
        ((ColumnProfile("y", "bool"),), 9, {"label": "y"}, "has no value in all rows"),
        ((ColumnProfile("s", "string", distinct_count=21),), 99, {"label": "s"}, "say --positive VALUE"),
        ((CLICKS,), 9, {"label": "clicks", "kind": "ranking"}, "--query-column: is missing"),
        ((CLICKS, SHOP), 9, {"label": "clicks", "query": "shop"}, "is of the kind ranking"),
        ((CLICKS, SHOP), 9, {"label": "clicks", "kind": "ranking", "query": "shpo"}, "did you mean 'shop'?"),
        ((CLICKS,), 9, {"label": "clicks", "kind": "ranking", "query": "at"}, "is the label or the time"),
        ((replace(CLICKS, minimum=-1), SHOP), 9, {"label": "clicks", "kind": "ranking", "query": "shop"}, "from 0 on"),
        ((CLICKS,), 9, {"label": "clicks", "kind": "quantile", "quantiles": (0.5, 1.5)}, "between 0 and 1"),
        ((CLICKS,), 9, {"label": "clicks", "quantiles": (0.1, 0.9)}, "say --kind quantile"),
        ((CLICKS,), 9, {"label": "clicks", "kind": "multiclass"}, "has 300 values of int64: classes are 2 to 20"),
        ((SHOP,), 9, {"label": "shop", "kind": "quantile"}, "a model of kind quantile predicts numbers"),
        ((SHOP,), 9, {"label": "shop", "kind": "regression"}, "predicts numbers"),
        ((SHOP,), 9, {"label": "shop", "kind": "binary"}, "predicts one of two"),
        (
            (SHOP,),
            9,
            {"kind": "clustering"},
            "write one of binary, multiclass, regression, quantile, forecast",
        ),
        ((SHOP,), 9, {"time": "shop"}, "is string, and no date"),
        ((SHOP,), 9, {"positive": "maybe"}, "it has False, True"),
        ((SHOP,), 9, {"label": "at"}, "cannot be predicted"),
        ((ColumnProfile("t", "timestamp[us]", distinct_count=5),), 9, {"time": "t"}, "say --timezone Europe/Berlin"),
        ((ColumnProfile("w", "float64", distinct_count=5),), 9, {"keys": ("w",)}, "no good keys"),
        ((SHOP,), 9, {"keys": ("late",)}, "is the label or the time"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(
    columns: tuple[ColumnProfile, ...], rows: int, choices: dict[str, Any], words: str
) -> None:
    assert words in faults(sample(*columns, rows=rows), **choices)


def test_a_delay_is_a_whole_number_of_periods() -> None:
    with pytest.raises(ScaffoldError, match="36h is no whole number"):
        draft(sample(SHOP), label_delay="36h")
    with pytest.raises(ScaffoldError, match="longer than the year"):
        draft(sample(SHOP), label_delay="340d")
    assert str(draft(sample(SHOP), label_delay="330d").label_delay) == "330d"


def forecast(periods: list[str], calendar: Calendar, **choices: Any) -> ModelDraft:
    sold = ColumnProfile("sold", "float64", distinct_count=300, minimum=0.0, maximum=9.5)
    price = ColumnProfile("price", "float64", distinct_count=300, minimum=0.0, maximum=9.5)
    profile = SampleProfile(1000, (TIME, sold, SHOP, price))
    chosen = Choices(**{"label": "sold", "time": "at", "kind": "forecast", "keys": ("shop",), **choices})
    check_choices(profile, chosen)
    return draft_model(profile, chosen, {"price": LabelRelation(correlation=1.0)}, calendar, periods, 12.3)


def periods_of(calendar: Calendar, count: int) -> list[str]:
    first = calendar.first_of(date(2024, 1, 1))
    return [calendar.shift(first, number) for number in range(count)]


@pytest.mark.parametrize(
    ("period", "count", "horizon", "season", "window"),
    [
        ("1d", 60, 7, 7, "28d"),
        ("1d", 15, 7, 1, "28d"),
        ("1w", 200, 4, 52, "52w"),
        ("1w", 104, 4, 1, "12w"),
        ("1h", 24 * 30, 24, 24, "168h"),
        ("6h", 4 * 30, 4, 4, "168h"),
        ("15min", 96 * 30, 96, 96, "10080min"),
    ],
)
def test_a_forecast_has_the_season_of_its_periods(
    period: str, count: int, horizon: int, season: int, window: str
) -> None:
    calendar = Calendar(period, "Asia/Tokyo" if period == "1d" else "UTC")
    model = forecast(periods_of(calendar, count), calendar)
    assert (model.horizon, model.season, str(model.window)) == (horizon, season, window)
    assert str(model.label_delay) == "0d"
    # What is known no earlier than the value is no input, and so no leak.
    assert roles(model) == {"at": "time", "sold": "label", "shop": "key", "price": "none"}


def test_a_season_fits_a_year_and_the_sample() -> None:
    calendar = Calendar("1d", "UTC")
    days = periods_of(calendar, 800)
    assert str(forecast(days, calendar, season=365).window) == "365d"
    assert str(forecast(days, calendar, season=10, horizon=100).window) == "20d"
    for changes, words in (
        ({"season": 367}, ["--season: is 367 days", "1 to 366"]),
        ({"season": 360, "label_delay": "10d"}, ["1 to 356"]),
        ({"season": 0, "horizon": 0}, ["--season: is 0 days", "--horizon: is 0"]),
        ({"horizon": 101}, ["--horizon: is 101", "1 to 100"]),
    ):
        with pytest.raises(ScaffoldError) as raised:
            forecast(days, calendar, **changes)
        assert all(word in str(raised.value) for word in words), str(raised.value)
    with pytest.raises(ScaffoldError, match="the sample covers 700: less than two seasons"):
        forecast(days[:700], calendar, season=360)


@pytest.mark.parametrize(
    ("period", "count", "changes", "horizon", "season", "note"),
    [
        ("1w", 300, {"label_delay": "1w"}, 4, 1, "no season: 52 weeks are more than the 51 "),
        ("10min", 144 * 30, {}, 100, 144, "a day has 144 periods, "),
        ("5min", 288 * 30, {"season": 1}, 100, 1, "a day has 288 periods, "),
        ("1d", 60, {"horizon": 15}, 15, 7, "forecasts more than 14 days ahead are never judged: "),
    ],
)
def test_a_guess_is_what_is_possible_and_says_so(
    period: str, count: int, changes: dict[str, Any], horizon: int, season: int, note: str
) -> None:
    calendar = Calendar(period, "UTC")
    model = forecast(periods_of(calendar, count), calendar, **changes)
    assert (model.horizon, model.season) == (horizon, season)
    assert len([text for text in model.notes if text.startswith(note)]) == 1, model.notes
    plain = forecast(periods_of(Calendar("1d", "UTC"), 60), Calendar("1d", "UTC"))
    assert not [text for text in plain.notes if text.startswith(note.split(":")[0])]


def test_options_of_forecasts_are_of_no_other_kind() -> None:
    for option in ("horizon", "season"):
        assert f"--{option}: is of the kind forecast" in faults(sample(), **{option: 3})
    assert "predicts numbers" in faults(sample(), kind="forecast")


def test_names_that_a_forecast_makes_are_no_names_of_columns() -> None:
    calendar = Calendar("1d", "UTC")
    columns = (ColumnProfile(name, "string", distinct_count=3) for name in ("series", "Days Ahead"))
    sold = ColumnProfile("sold", "int64", distinct_count=90, minimum=0, maximum=99)
    profile = SampleProfile(1000, (TIME, sold, *columns))
    chosen = Choices(label="sold", time="at", kind="forecast", keys=("series", "Days Ahead"))
    model = draft_model(profile, chosen, {}, calendar, periods_of(calendar, 60), 1.0)
    assert model.key_names == ["series_value", "days_ahead_value"]


def test_names_of_histories_are_no_names_of_columns() -> None:
    calendar = Calendar("1d", "UTC")
    names = ("sold_last", "Sold mean 28d", "rows_28d", "place")
    columns = (ColumnProfile(name, "string", distinct_count=3) for name in names)
    sold = ColumnProfile("sold", "int64", distinct_count=90, minimum=0, maximum=99)
    profile = SampleProfile(1000, (TIME, *columns, sold))
    chosen = Choices(label="sold", time="at", kind="forecast", keys=names)
    model = draft_model(profile, chosen, {}, calendar, periods_of(calendar, 60), 1.0)
    assert str(model.window) == "28d"
    assert model.key_names == ["sold_last_value", "sold_mean_28d_value", "rows_28d_value", "place"]
    label = replace(sold, name="label")
    profile = SampleProfile(1000, (TIME, ColumnProfile("label_last", "string", distinct_count=3), label))
    chosen = Choices(label="label", time="at", kind="forecast", keys=("label_last",))
    model = draft_model(profile, chosen, {}, calendar, periods_of(calendar, 60), 1.0)
    assert [column.name for column in model.columns_of("key", "label")] == ["label_last_value", "label"]


def test_days_of_hours_are_whole() -> None:
    calendar = Calendar("1h", "Europe/Berlin")
    first = calendar.first_of(date(2026, 3, 28))
    for begin, end, expected in (
        (0, 47, (28, 29)),  # clocks change on the 29th, which has 23 hours
        (1, 47, (29, 29)),
        (0, 46, (28, 28)),
        (30, 40, (29, 29)),  # no day is whole
    ):
        periods = [calendar.shift(first, number) for number in range(begin, end)]
        model = forecast(periods, calendar)
        assert (model.first_day.day, model.last_day.day) == expected
