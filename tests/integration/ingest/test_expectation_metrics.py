"""What DuckDB computes is what Great Expectations' pandas engine computes, for any table and any rule."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.row_conditions import Column
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from evergreen.ingest import expectation_metrics, expectations
from evergreen.ingest.databases import open_database
from evergreen.ingest.frames import text_as_objects

pytestmark = pytest.mark.integration

NOON = datetime(2013, 1, 1, 12)
POOLS: Mapping[str, tuple[pa.DataType, list[Any]]] = {
    "whole": (pa.int64(), [0, 1, 2, 3, -7, 2**40]),
    "small": (pa.int16(), [0, 1, 2, 300, -300]),
    "unsigned": (pa.uint32(), [0, 1, 2, 2**32 - 1]),
    "real": (pa.float64(), [0.0, -0.0, 1.0, 2.5, 0.1, math.nan, math.inf, -math.inf]),
    "single": (pa.float32(), [0.0, 1.0, 2.5, math.nan]),
    "money": (pa.decimal128(9, 2), [Decimal("0.00"), Decimal("1.00"), Decimal("2.50"), Decimal("-7.25")]),
    "text": (pa.string(), ["", "a", "b", "Île", "o'clock", "a\n", "0"]),
    "flag": (pa.bool_(), [True, False]),
    "day": (pa.date32(), [date(2013, 1, 1) + timedelta(n) for n in range(3)]),
    "instant": (pa.timestamp("us", "UTC"), [NOON.replace(tzinfo=UTC) + timedelta(hours=n) for n in range(3)]),
    "clock": (pa.timestamp("us"), [NOON + timedelta(hours=n) for n in range(3)]),
    "Whole 2": (pa.int64(), [0, 1, 2, 3]),
    "real 2": (pa.float64(), [0.0, 1.0, 2.0, math.nan]),
    "nothing": (pa.null(), [None]),
}
NAMES = st.sampled_from(list(POOLS))


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 12))
    nulls = draw(st.sets(NAMES))
    columns = {}
    for name, (kind, pool) in POOLS.items():
        values = st.sampled_from([*pool, None] if name in nulls else pool)
        columns[name] = pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), kind)
    return pa.table(columns)


def bounds(name: str) -> st.SearchStrategy[Any]:
    pool = [value for value in POOLS[name][1] if not (isinstance(value, float | Decimal) and not math.isfinite(value))]
    own = [float(value) if isinstance(value, Decimal) else value for value in pool]
    return st.sampled_from([*own, 1, 1.5]) if name not in ("text", "flag", "day", "instant") else st.sampled_from(own)


CONDITIONS: list[Any] = [
    None,
    None,
    "whole.notnull()",
    "real.isna()",
    "text == 'a'",
    "text != 'a'",
    "whole > 1 and real <= 2.5",
    "not (whole in [1, 2] or real > 0)",
    "whole not in [1, 2]",
    "real != 1",
    "whole > whole.mean()",
    "`Whole 2` > 1",
    Column("whole") >= 1,
    Column("text").is_null(),
    Column("text").is_not_null() & (Column("real") < 1.5),
    (Column("whole") == 2) | (Column("whole") == 3),
    Column("whole").is_in([1, 2]),
]


@st.composite
def rules(draw: st.DrawFn) -> Expectation:
    name = draw(NAMES)
    low, high = sorted([draw(bounds(name)), draw(bounds(name))], key=lambda value: (str(type(value)), value))
    if low == high or draw(st.booleans()):
        low = None
    condition = draw(st.sampled_from(CONDITIONS))
    common: dict[str, Any] = {}
    if condition is not None:
        common = {"row_condition": condition}
        if isinstance(condition, str):
            common["condition_parser"] = "pandas"
    row = {**common, "mostly": draw(st.sampled_from([1, 1, 0.5, 0.9, 0.0]))}
    strict = {"strict_min": draw(st.booleans()), "strict_max": draw(st.booleans())}
    chosen = st.lists(st.sampled_from([*POOLS[name][1][:4], 1, "a"]), min_size=1, max_size=3)
    values = [float(value) if isinstance(value, Decimal) else value for value in draw(chosen)]
    pair = {"column_A": name, "column_B": draw(NAMES)}
    missing = st.sampled_from(["both_values_are_missing", "either_value_is_missing", "neither"])
    some_missing = st.sampled_from(["all_values_are_missing", "any_value_is_missing", "never"])
    regex = draw(st.sampled_from([r"^\w+$", "a", r"^[a-z]$", "(?=a)", "'", "("]))
    type_name = draw(st.sampled_from(["int64", "float64", "object", "Timestamp"]))
    columns = draw(st.lists(NAMES, min_size=2, max_size=3, unique=True))
    lengths = {"min_value": draw(st.sampled_from([None, 1])), "max_value": draw(st.integers(1, 3))}
    count = draw(st.integers(0, 6))
    makers: list[Any] = [
        lambda: gxe.ExpectColumnValuesToNotBeNull(column=name, **row),
        lambda: gxe.ExpectColumnValuesToBeNull(column=name, **row),
        lambda: gxe.ExpectColumnValuesToBeBetween(column=name, min_value=low, max_value=high, **strict, **row),
        lambda: gxe.ExpectColumnValuesToBeInSet(column=name, value_set=values, **row),
        lambda: gxe.ExpectColumnValuesToNotBeInSet(column=name, value_set=values, **row),
        lambda: gxe.ExpectColumnValuesToBeUnique(column=name, **row),
        lambda: gxe.ExpectColumnValuesToMatchRegex(column="text", regex=regex, **row),
        lambda: gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex=regex, **row),
        lambda: gxe.ExpectColumnValueLengthsToBeBetween(column="text", **lengths, **strict, **row),
        lambda: gxe.ExpectColumnValueLengthsToEqual(column="text", value=1, **row),
        lambda: gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            **pair, or_equal=draw(st.booleans()), ignore_row_if=draw(missing), **row
        ),
        lambda: gxe.ExpectColumnPairValuesToBeEqual(**pair, ignore_row_if=draw(missing), **row),
        lambda: gxe.ExpectCompoundColumnsToBeUnique(column_list=columns, ignore_row_if=draw(some_missing), **row),
        lambda: gxe.ExpectColumnDistinctValuesToBeInSet(column=name, value_set=values, **common),
        lambda: gxe.ExpectColumnDistinctValuesToContainSet(column=name, value_set=values, **common),
        lambda: gxe.ExpectColumnDistinctValuesToEqualSet(column=name, value_set=values, **common),
        lambda: gxe.ExpectColumnMinToBeBetween(column=name, min_value=low, max_value=high, **strict, **common),
        lambda: gxe.ExpectColumnMaxToBeBetween(column=name, min_value=low, max_value=high, **strict, **common),
        lambda: gxe.ExpectColumnMeanToBeBetween(column=name, min_value=0, max_value=2, **common),
        lambda: gxe.ExpectColumnValuesToBeOfType(column=name, type_=type_name),
        lambda: gxe.ExpectTableRowCountToBeBetween(min_value=count, max_value=count + 3, **common),
        lambda: gxe.ExpectTableRowCountToEqual(value=count, **common),
        lambda: gxe.ExpectTableColumnCountToEqual(value=len(POOLS)),
        lambda: gxe.ExpectTableColumnsToMatchSet(column_set=["whole", "real"], exact_match=draw(st.booleans())),
        lambda: gxe.ExpectTableColumnsToMatchOrderedList(column_list=list(POOLS)),
        lambda: gxe.ExpectColumnMedianToBeBetween(column=name, min_value=0, max_value=2, **common),
    ]  # fmt: skip
    make = draw(st.sampled_from(makers))
    try:
        return make()
    except ValueError:  # Great Expectations refuses these arguments
        reject()


def validate(file: Path, name: str, *stages: Sequence[Expectation]) -> expectations.ValidationReport:
    with open_database() as database:
        return expectations.validate_file(database, file, name, *stages)


def of_great_expectations(file: Path, rule: Expectation) -> dict[str, Any]:
    table = text_as_objects(pd.read_parquet(file))
    [result] = expectations._run_expectations(table, [rule])
    return expectations._summarize_result(result)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables(), drawn=st.lists(rules(), min_size=4, max_size=8))
def test_same_results_as_in_pandas(tmp_path: Path, table: pa.Table, drawn: list[Expectation]) -> None:
    file = tmp_path / "table.parquet"
    pq.write_table(table, file, row_group_size=5)
    for rule in drawn:
        [[result]] = validate(file, "table", [rule]).results.values()
        expected = of_great_expectations(file, rule)
        if result["success"] and "mostly" in result["kwargs"]:  # examples are looked for only if a rule fails
            expected["partial_unexpected_list"] = result["partial_unexpected_list"] = []
        assert plain(result) == plain(expected), rule


@pytest.mark.parametrize("keys", [[], [1], [1, 1], [1, 2, 1], [2, 1, 1], [2, 1, 2, 3], [3, 1, 2, 4, 3], [1, 2, 3]])
def test_repeated_keys_of_few_rows_are_found(keys: list[int], tmp_path: Path) -> None:
    """Their hashes are sorted in four parts, however few they are."""
    for offset in range(10):  # other hashes, in another order
        file = tmp_path / "table.parquet"
        pq.write_table(pa.table({"key": pa.array([key + offset for key in keys], pa.int64())}), file)
        report = validate(file, "table", [gxe.ExpectColumnValuesToBeUnique(column="key")])
        assert bool(report.faults) == (len(set(keys)) < len(keys))


def plain(value: Any) -> Any:
    """The value with NaN as text, which equals itself."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def test_the_guide_lists_what_is_compiled() -> None:
    guide = Path(__file__).parents[3].joinpath("docs/guides/expectations.md").read_text()
    table = guide.partition("## Rules that DuckDB computes")[2].partition("\n- ")[0]
    assert set(re.findall(r"`(Expect\w+)`", table)) == {kind.__name__ for kind in expectation_metrics._COMPILERS}
