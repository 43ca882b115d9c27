"""The metrics that Great Expectations judges by, of a Parquet file, computed in one DuckDB query.

An expectation is compiled if DuckDB computes for it what Great Expectations' pandas engine would. That depends on its
type, its arguments and the types of its columns; for any other `compile_expectation` returns None. The verdict remains
that of the expectation itself.
"""
# ruff: noqa: S608 - names are quoted, and values are literals of known types

from __future__ import annotations

import ast
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import duckdb
import great_expectations.expectations as gxe
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dateutil.parser import parse as parse_datetime
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.row_conditions import Condition, PassThroughCondition
from pandas.api.types import is_bool_dtype, is_object_dtype

from evergreen.ingest.databases import parquet_rows, quote_name, quote_text
from evergreen.ingest.frames import text_as_objects

Metrics = dict[str, Any]
"""Values of metrics by Great Expectations' names."""

_EXAMPLE_LIMIT = 20  # values that a result holds, as in Great Expectations
_BATCH_ROWS = 20_000
_ROW = '"row of the file"'
_NULLITY = re.compile(r'("(?:[^"]|"")+") IS (NOT )?NULL')
_SORT_THREADS = 4
_HASHES_IN_MEMORY = 2**21  # of 8 bytes; those of more rows are compared in parts, which are stored in temporary files
_MAX_OPEN_FILES = 256

_NUMBERS = ("number", "decimal")
_COMPARABLE = ("number", "decimal", "text", "date", "datetime", "instant")
_TIMES = ("datetime", "instant", "datetime in ns", "instant in ns")
_HASHABLE = (*_NUMBERS, *_TIMES, "text", "date", "boolean")


@dataclass(frozen=True)
class CompiledExpectation:
    """How the metrics of one expectation are computed: SQL aggregates, and what follows from their values."""

    aggregates: Mapping[str, str]
    finish: Callable[[Metrics], Metrics]
    find_examples: Callable[[], Metrics] = dict
    """Return the metrics that name values that break the rule: the first ones in the file."""


class ParquetRows:
    """The rows of a Parquet file, as Great Expectations sees them: NaN is null. Only `selected` columns, if given.

    Raises:
        pyarrow.ArrowException, OSError, duckdb.Error: the file cannot be read.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection, path: Path, selected: Sequence[str] | None = None) -> None:
        schema = pq.read_schema(path)
        self.is_selection = selected is not None
        if selected is not None:  # also the index of a frame, if it is among them
            schema = pa.schema([schema.field(name) for name in selected])
        frame = text_as_objects(schema.empty_table().to_pandas())
        self.dtypes: Mapping[str, Any] = dict(frame.dtypes)  # a frame's index is no column
        names = list(map(str.casefold, schema.names))
        unambiguous = len(set(names)) == len(names)  # DuckDB ignores case
        self.kinds = {field.name: _kind(field.type) for field in schema} if unambiguous else {}
        floats = {field.name for field in schema if pa.types.is_floating(field.type)}
        columns = [
            # Not `isnan`: the statistics of Parquet leave NaN out, and DuckDB takes it for always false.
            "CASE WHEN isfinite({0}) THEN {0} WHEN isinf({0}) THEN {0} END AS {0}".format(quote_name(name))
            if name in floats
            else quote_name(name)
            for name in self.kinds
        ]
        self._source = f"(SELECT {', '.join([*columns, f'file_row_number AS {_ROW}'])} FROM {parquet_rows(path)})"
        self._database = database

    def aggregate(self, compiled: Sequence[CompiledExpectation]) -> list[Metrics]:
        """Return the metrics of each of `compiled`, from one pass over the file."""
        distinct = list(dict.fromkeys(sql for plan in compiled for sql in plan.aggregates.values()))
        values: dict[str, Any] = {}
        if distinct:
            [row] = self.fetch(f"SELECT {', '.join(distinct)} FROM rows")
            values = dict(zip(distinct, row, strict=True))
        return [plan.finish({name: values[sql] for name, sql in plan.aggregates.items()}) for plan in compiled]

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        return self._database.execute(self._with_rows(query)).fetchall()

    def fetch_batches(self, query: str) -> Iterator[list[tuple[Any, ...]]]:
        cursor = self._database.execute(self._with_rows(query))
        while batch := cursor.fetchmany(_BATCH_ROWS):
            yield batch

    def may_repeat(self, keys: str, condition: str, count: int) -> bool:
        """Whether two of the `count` rows that meet `condition` have the same hash of their keys."""
        hashes = self._fetch_hashes(f"SELECT hash({keys}) AS hash FROM rows WHERE {condition}")
        parts = min(-(-count // _HASHES_IN_MEMORY), _MAX_OPEN_FILES)
        if parts <= 1:
            in_memory, length = np.empty(count, np.uint64), 0
            for batch in hashes:
                in_memory[length : length + len(batch)] = batch
                length += len(batch)
            return _has_repeated(in_memory[:length])
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(parts)]
            for batch in hashes:
                part = batch % np.uint64(parts)
                for number, file in enumerate(files):
                    file.write(batch[part == number].tobytes())
            for file in files:
                file.seek(0)
                if _has_repeated(np.fromfile(file, np.uint64)):
                    return True
        return False

    def _fetch_hashes(self, query: str) -> Iterator[Any]:
        for batch in self._database.sql(self._with_rows(query)).to_arrow_reader(_BATCH_ROWS):
            yield batch.column(0).to_numpy()

    def fetch_values(self, columns: Sequence[str], condition: str) -> pa.Table:
        """Return the first rows that meet `condition`, in the order of the file."""
        names = ", ".join(map(quote_name, columns))
        query = f"SELECT {names} FROM rows WHERE {condition} ORDER BY {_ROW} LIMIT {_EXAMPLE_LIMIT}"
        return self._database.sql(self._with_rows(query)).to_arrow_table()

    def _with_rows(self, query: str) -> str:
        return f"WITH rows AS NOT MATERIALIZED {self._source} {query}"


def _has_repeated(values: Any) -> bool:
    _sort_in_threads(values)
    return bool((values[1:] == values[:-1]).any())


def _sort_in_threads(values: Any) -> None:
    """Sort in place: DuckDB needs longer, and a multiple of the memory, to count different values."""
    limits = [len(values) * number // _SORT_THREADS for number in range(1, _SORT_THREADS)]
    if len(values):
        values.partition(limits)
    with ThreadPoolExecutor(_SORT_THREADS) as threads:
        list(threads.map(np.ndarray.sort, np.split(values, limits)))


def compile_expectation(expectation: Expectation, rows: ParquetRows) -> CompiledExpectation | None:
    """Return how the metrics of `expectation` are computed; None: Great Expectations has to compute them itself."""
    compiler = _COMPILERS.get(type(expectation))  # a subclass may mean something else
    arguments: Any = expectation
    if not compiler or getattr(arguments, "result_format", "BASIC") not in ("BASIC", "SUMMARY"):
        return None
    if not isinstance(getattr(arguments, "mostly", 1.0), int | float):
        return None
    try:
        return compiler(arguments, rows)
    except _NotCompilableError:
        return None


class _NotCompilableError(Exception):
    pass


# Names and values in SQL.


def _text(value: str) -> str:
    if "\0" in value:
        raise _NotCompilableError
    return quote_text(value)


def _kind(arrow_type: pa.DataType) -> str:
    """The kind of a column: within one, DuckDB compares as pandas does. Empty: not known."""
    types = pa.types
    if types.is_dictionary(arrow_type):
        return _kind(arrow_type.value_type)
    if types.is_integer(arrow_type) or types.is_float32(arrow_type) or types.is_float64(arrow_type):
        return "number"
    if types.is_timestamp(arrow_type):
        kind = "instant" if arrow_type.tz else "datetime"
        return f"{kind} in ns" if arrow_type.unit == "ns" else kind  # not comparable with the others in DuckDB
    kinds = {
        types.is_string: "text",
        types.is_large_string: "text",
        types.is_boolean: "boolean",
        types.is_date32: "date",
        types.is_decimal128: "decimal",
    }
    return next((kind for is_kind, kind in kinds.items() if is_kind(arrow_type)), "")


def _literal(value: Any, kind: str) -> str:
    """Return `value` as SQL, if it has the type of the values of a column."""
    if type(value) is float and kind == "decimal" and value.is_integer():
        value = int(value)
    if type(value) is int and kind in _NUMBERS and abs(value) < 2**63:
        return str(value)
    if type(value) is float and kind == "number" and not math.isnan(value):
        return f"'{value!r}'::DOUBLE"
    if type(value) is str and kind == "text":
        return _text(value)
    if type(value) is bool and kind == "boolean":
        return str(value)
    if type(value) is date and kind == "date":
        return f"DATE '{value}'"
    if type(value) is datetime and kind == "datetime" and value.tzinfo is None:
        return f"TIMESTAMP '{value}'"
    if type(value) is datetime and kind == "instant" and value.tzinfo is not None:
        return f"TIMESTAMPTZ '{value.astimezone(UTC)}'"
    raise _NotCompilableError


def _column(rows: ParquetRows, name: Any, kinds: Sequence[str] = ()) -> str:
    """Return the name of an existing column of one of `kinds` (default: any) as SQL."""
    if name not in rows.dtypes or name not in rows.kinds or (kinds and rows.kinds[name] not in kinds):
        raise _NotCompilableError
    return quote_name(name)


def _row_condition(expectation: Any, rows: ParquetRows) -> str:
    """Return the rows that `row_condition` selects, as SQL; empty: all rows."""
    condition = getattr(expectation, "row_condition", None)
    if isinstance(condition, PassThroughCondition):
        if getattr(expectation, "condition_parser", None) != "pandas":
            raise _NotCompilableError
        condition = condition.pass_through_filter
    elif isinstance(condition, Condition):
        condition = pandas_engine().condition_to_filter_clause(condition)
    if not condition:
        return ""
    try:
        return _boolean(ast.parse(condition.strip(), mode="eval").body, rows)
    except SyntaxError:
        raise _NotCompilableError from None


def _boolean(node: ast.expr, rows: ParquetRows) -> str:
    """Compile a condition of `DataFrame.query`; the SQL is never null, as the condition is not."""
    match node:
        case ast.BoolOp(op=operator, values=values):
            joiner = " AND " if isinstance(operator, ast.And) else " OR "
            return f"({joiner.join(_boolean(value, rows) for value in values)})"
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            return f"(NOT {_boolean(operand, rows)})"
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="notnull" | "notna"), args=[], keywords=[]):
            return f"({_column(rows, name)} IS NOT NULL)"
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="isnull" | "isna"), args=[], keywords=[]):
            return f"({_column(rows, name)} IS NULL)"
        case ast.Compare(left=ast.Name(id=name), ops=[operator], comparators=[right]):
            return _comparison(name, operator, right, rows)
    raise _NotCompilableError


_OPERATORS: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "=",
    ast.NotEq: "<>",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "IN",
    ast.NotIn: "NOT IN",
}


def _comparison(name: str, operator: ast.cmpop, right: ast.expr, rows: ParquetRows) -> str:
    operand = _OPERATORS.get(type(operator))
    ordering = isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE)  # pandas orders no text beside null
    column = _column(rows, name, ("number",) if ordering else ("number", "text"))
    try:
        value = ast.literal_eval(right)
    except ValueError:
        raise _NotCompilableError from None
    if isinstance(operator, ast.In | ast.NotIn):
        if not isinstance(value, list) or not value:
            raise _NotCompilableError
        literal = f"({', '.join(_literal(item, rows.kinds[name]) for item in value)})"
    else:
        literal = _literal(value, rows.kinds[name])
    of_null = isinstance(operator, ast.NotEq | ast.NotIn)
    if not operand:
        raise _NotCompilableError
    return f"coalesce({column} {operand} {literal}, {of_null})"


@cache
def pandas_engine() -> PandasExecutionEngine:
    """The engine whose results are reproduced."""
    return PandasExecutionEngine()


# What is asked of each row.


def _join(*conditions: str) -> str:
    return " AND ".join(filter(None, conditions)) or "true"


def _count(condition: str = "") -> str:
    if condition in ("", "true"):
        return "count(*)"
    if nullity := _NULLITY.fullmatch(condition):  # cheaper than the condition
        return f"count({nullity[1]})" if nullity[2] else f"count(*) - count({nullity[1]})"
    return f"coalesce(count_if({condition}), 0)"  # null of no rows


def _compile_each_row(
    expectation: Any,
    rows: ParquetRows,
    columns: Sequence[str],
    considered: str,
    breach: str,
    values: Callable[[pa.Table], list[Any]],
) -> CompiledExpectation:
    """Compile a rule that each row follows or breaks. `considered`: the rows that it does not ignore."""
    selected = _row_condition(expectation, rows)
    breaking = _join(selected, considered, breach)

    def name_metrics(counts: Metrics) -> Metrics:
        return _row_metrics(expectation, counts)

    return CompiledExpectation(
        {
            "selected": _count(selected),
            "considered": _count(_join(selected, considered)),
            "unexpected": _count(breaking),
        },
        name_metrics,
        lambda: {_unexpected_values(expectation): values(rows.fetch_values(columns, breaking))},
    )


def _row_metrics(expectation: Any, counts: Metrics) -> Metrics:
    return {
        "table.row_count": counts["selected"],
        "column_values.nonnull.unexpected_count": counts["selected"] - counts["considered"],
        f"{expectation.map_metric}.filtered_row_count": counts["considered"],
        f"{expectation.map_metric}.unexpected_count": counts["unexpected"],
        _unexpected_values(expectation): [],
    }


def _unexpected_values(expectation: Any) -> str:
    return f"{expectation.map_metric}.unexpected_values"


def _single_values(table: pa.Table) -> list[Any]:
    return list(table.column(0).to_pandas())


def _pairs(table: pa.Table) -> list[Any]:
    frame = table.to_pandas()
    return list(zip(frame.iloc[:, 0].to_numpy(), frame.iloc[:, 1].to_numpy(), strict=True))


def _records(table: pa.Table) -> list[Any]:
    return table.to_pandas().to_dict("records")


def _compile_values_rule(expectation: Any, rows: ParquetRows, breach: str) -> CompiledExpectation:
    column = quote_name(expectation.column)
    return _compile_each_row(expectation, rows, [expectation.column], f"{column} IS NOT NULL", breach, _single_values)


def _compile_not_null(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    column = _column(rows, expectation.column)
    return _compile_each_row(expectation, rows, [expectation.column], "", f"{column} IS NULL", _single_values)


def _compile_null(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    column = _column(rows, expectation.column)
    return _compile_each_row(expectation, rows, [expectation.column], "", f"{column} IS NOT NULL", _single_values)


def _compile_between(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    column, kind = _column(rows, expectation.column, _COMPARABLE), rows.kinds[expectation.column]
    low, high = expectation.min_value, expectation.max_value
    if kind in ("datetime", "instant"):
        low, high = (parse_datetime(bound) if isinstance(bound, str) else bound for bound in (low, high))
    return _compile_values_rule(expectation, rows, _outside(column, kind, low, high, expectation))


def _outside(value: str, kind: str, low: Any, high: Any, expectation: Any) -> str:
    if low is None and high is None:
        raise _NotCompilableError
    inside = []
    if low is not None:
        inside.append(f"{value} {'>' if expectation.strict_min else '>='} {_literal(low, kind)}")
    if high is not None:
        inside.append(f"{value} {'<' if expectation.strict_max else '<='} {_literal(high, kind)}")
    if low is not None and high is not None and low > high:
        raise _NotCompilableError
    return f"NOT ({' AND '.join(inside)})"


def _compile_length_between(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    length = f"length({_column(rows, expectation.column, ('text',))})"
    outside = _outside(length, "number", expectation.min_value, expectation.max_value, expectation)
    return _compile_values_rule(expectation, rows, outside)


def _compile_length_equals(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    column = _column(rows, expectation.column, ("text",))
    return _compile_values_rule(expectation, rows, f"length({column}) <> {_literal(expectation.value, 'number')}")


def _members(expectation: Any, rows: ParquetRows) -> str:
    """Return the SQL of whether a value is in the set of the expectation."""
    kinds = ("number", "text", "boolean", "date")
    column, kind = _column(rows, expectation.column, kinds), rows.kinds[expectation.column]
    if not isinstance(expectation.value_set, list) or not expectation.value_set:
        raise _NotCompilableError
    return f"{column} IN ({', '.join(_literal(value, kind) for value in expectation.value_set)})"


def _compile_in_set(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    return _compile_values_rule(expectation, rows, f"NOT ({_members(expectation, rows)})")


def _compile_not_in_set(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    return _compile_values_rule(expectation, rows, _members(expectation, rows))


def _compile_pair(expectation: Any, rows: ParquetRows, operator: str) -> CompiledExpectation:
    pair = [expectation.column_A, expectation.column_B]
    a, b = (_column(rows, name, (*_NUMBERS, *_TIMES)) for name in pair)
    kinds = [rows.kinds[name] for name in pair]
    if kinds[0] != kinds[1]:
        raise _NotCompilableError
    considered = {
        "both_values_are_missing": f"NOT ({a} IS NULL AND {b} IS NULL)",
        "either_value_is_missing": f"({a} IS NOT NULL AND {b} IS NOT NULL)",
        "neither": "",
    }[expectation.ignore_row_if]
    breach = f"NOT coalesce({a} {operator} {b}, false)"
    return _compile_each_row(expectation, rows, pair, considered, breach, _pairs)


def _compile_greater(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    return _compile_pair(expectation, rows, ">=" if expectation.or_equal else ">")


# Uniqueness and regular expressions need a pass of their own over their columns, and one more if a rule is broken.


def _compile_unique(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    column = _column(rows, expectation.column, _HASHABLE)
    return _compile_unique_keys(expectation, rows, [expectation.column], f"{column} IS NOT NULL", _single_values)


def _compile_compound_unique(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    keys = [_column(rows, name, _HASHABLE) for name in expectation.column_list]
    considered = {
        "all_values_are_missing": f"NOT ({' AND '.join(f'{key} IS NULL' for key in keys)})",
        "any_value_is_missing": f"({' AND '.join(f'{key} IS NOT NULL' for key in keys)})",
        "never": "",
    }[expectation.ignore_row_if]
    return _compile_unique_keys(expectation, rows, expectation.column_list, considered, _records)


def _compile_unique_keys(
    expectation: Any,
    rows: ParquetRows,
    columns: Sequence[str],
    considered: str,
    values: Callable[[pa.Table], list[Any]],
) -> CompiledExpectation:
    """Compile a rule that no two rows have the same keys.

    If no two hashes are the same, no two keys are. Otherwise the keys themselves are compared.
    """
    selected = _row_condition(expectation, rows)
    domain, keys = _join(selected, considered), ", ".join(map(quote_name, columns))
    repeated = (
        f"SELECT {keys}, count(*) AS {quote_name('rows of the key')}, min({_ROW}) AS {quote_name('first row')} "
        f"FROM rows WHERE {domain} GROUP BY {keys} HAVING count(*) > 1"
    )

    def count_repeated(counts: Metrics) -> Metrics:
        unexpected = 0
        if rows.may_repeat(keys, domain, counts["considered"]):
            [(unexpected,)] = rows.fetch(f"SELECT coalesce(sum({quote_name('rows of the key')}), 0) FROM ({repeated})")
        return _row_metrics(expectation, {**counts, "unexpected": int(unexpected)})

    def find_examples() -> Metrics:
        first = f"(SELECT {keys} FROM ({repeated}) ORDER BY {quote_name('first row')} LIMIT {_EXAMPLE_LIMIT})"
        same_keys = " AND ".join(
            f"rows.{quote_name(name)} IS NOT DISTINCT FROM repeated.{quote_name(name)}" for name in columns
        )
        examples = rows.fetch_values(columns, f"{domain} AND EXISTS (FROM {first} AS repeated WHERE {same_keys})")
        return {_unexpected_values(expectation): values(examples)}

    return CompiledExpectation(
        {"selected": _count(selected), "considered": _count(domain)}, count_repeated, find_examples
    )


def _compile_regex(expectation: Any, rows: ParquetRows, matches: bool) -> CompiledExpectation:
    r"""Compile a regular expression: Python evaluates it, once for each different text.

    DuckDB's own engine means something else by `\w`, `$` and others.
    """
    column = _column(rows, expectation.column, ("text",))
    try:
        search = re.compile(expectation.regex).search
    except (re.error, TypeError):
        raise _NotCompilableError from None
    selected = _row_condition(expectation, rows)
    domain = _join(selected, f"{column} IS NOT NULL")
    first_texts: list[tuple[int, str]] = []

    def count_texts(counts: Metrics) -> Metrics:
        unexpected = 0
        query = f"SELECT {column}, count(*), min({_ROW}) FROM rows WHERE {domain} GROUP BY {column}"
        for batch in rows.fetch_batches(query):
            breaking = [(first, text, count) for text, count, first in batch if bool(search(text)) != matches]
            unexpected += sum(count for *_, count in breaking)
            first_texts[:] = sorted([*first_texts, *((first, text) for first, text, _ in breaking)])[:_EXAMPLE_LIMIT]
        return _row_metrics(expectation, {**counts, "unexpected": unexpected})

    def find_examples() -> Metrics:
        texts = ", ".join(_text(text) for _, text in first_texts)
        examples = rows.fetch_values([expectation.column], f"{domain} AND {column} IN ({texts})")
        return {_unexpected_values(expectation): _single_values(examples)}

    return CompiledExpectation({"selected": _count(selected), "considered": _count(domain)}, count_texts, find_examples)


# What is asked of a column or a table as a whole.


def _compile_column_value(expectation: Any, rows: ParquetRows, function: str) -> CompiledExpectation:
    column = _column(rows, expectation.column, ("number",))
    if function == "avg" and rows.dtypes[expectation.column] == np.float32:
        raise _NotCompilableError  # pandas' mean of them is less exact
    selected = _row_condition(expectation, rows)
    value = f"{function}({column})" + (f" FILTER (WHERE {selected})" if selected else "")
    [metric] = expectation.metric_dependencies
    return CompiledExpectation({metric: value}, dict)


def _compile_distinct_values(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    """Compile a rule about the set of the values of a column; no other values than those of the rule are collected."""
    members, column = _members(expectation, rows), quote_name(expectation.column)
    selected = _row_condition(expectation, rows)
    expected = set(expectation.value_set)
    present, unexpected = _join(selected, members), _join(selected, f"NOT ({members})")

    def count_values(counts: Metrics) -> Metrics:
        among_others = present if counts["unexpected"] else _join(selected)
        present_values = {value for (value,) in rows.fetch(f"SELECT DISTINCT {column} FROM rows WHERE {among_others}")}
        missing = [value for value in expected if value not in present_values]
        distinct = 0
        if counts["unexpected"]:
            [(distinct,)] = rows.fetch(f"SELECT count(DISTINCT {column}) FROM rows WHERE {unexpected}")
        return {
            "column.distinct_values.not_in_set.count": distinct,
            "column.distinct_values.not_in_set": [],
            "column.distinct_values.missing_from_column.count": len(missing),
            "column.distinct_values.missing_from_column": missing,
        }

    def find_examples() -> Metrics:
        query = f"SELECT DISTINCT {column} FROM rows WHERE {unexpected} ORDER BY {column} LIMIT {_EXAMPLE_LIMIT}"
        return {"column.distinct_values.not_in_set": [value for (value,) in rows.fetch(query)]}

    return CompiledExpectation({"unexpected": _count(unexpected)}, count_values, find_examples)


def _compile_row_count(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    return CompiledExpectation({"table.row_count": _count(_row_condition(expectation, rows))}, dict)


def _compile_columns(_: Any, rows: ParquetRows) -> CompiledExpectation:
    metrics = {"table.columns": list(rows.dtypes), "table.column_count": len(rows.dtypes)}
    return CompiledExpectation({}, lambda _: metrics)


def _compile_column_type(expectation: Any, rows: ParquetRows) -> CompiledExpectation:
    """Compile a rule about the type that a column has in pandas, where integers beside nulls are floats."""
    column, dtype = _column(rows, expectation.column), rows.dtypes[expectation.column]
    is_integer = isinstance(dtype, np.dtype) and dtype.kind in "iu"
    if is_bool_dtype(dtype) or (is_object_dtype(dtype) and expectation.type_ != "object"):
        raise _NotCompilableError  # the type of each value counts

    def name_metrics(values: Metrics) -> Metrics:
        actual = np.dtype("float64") if values.get("nulls") else dtype
        return {"table.column_types": [{"name": expectation.column, "type": actual}]}

    return CompiledExpectation({"nulls": _count(f"{column} IS NULL")} if is_integer else {}, name_metrics)


_COMPILERS: Mapping[type[Expectation], Callable[[Any, ParquetRows], CompiledExpectation]] = {
    gxe.ExpectColumnDistinctValuesToBeInSet: _compile_distinct_values,
    gxe.ExpectColumnDistinctValuesToContainSet: _compile_distinct_values,
    gxe.ExpectColumnDistinctValuesToEqualSet: _compile_distinct_values,
    gxe.ExpectColumnMaxToBeBetween: partial(_compile_column_value, function="max"),
    gxe.ExpectColumnMeanToBeBetween: partial(_compile_column_value, function="avg"),
    gxe.ExpectColumnMinToBeBetween: partial(_compile_column_value, function="min"),
    gxe.ExpectColumnPairValuesAToBeGreaterThanB: _compile_greater,
    gxe.ExpectColumnPairValuesToBeEqual: partial(_compile_pair, operator="="),
    gxe.ExpectColumnValueLengthsToBeBetween: _compile_length_between,
    gxe.ExpectColumnValueLengthsToEqual: _compile_length_equals,
    gxe.ExpectColumnValuesToBeBetween: _compile_between,
    gxe.ExpectColumnValuesToBeInSet: _compile_in_set,
    gxe.ExpectColumnValuesToBeNull: _compile_null,
    gxe.ExpectColumnValuesToBeOfType: _compile_column_type,
    gxe.ExpectColumnValuesToBeUnique: _compile_unique,
    gxe.ExpectColumnValuesToMatchRegex: partial(_compile_regex, matches=True),
    gxe.ExpectColumnValuesToNotBeInSet: _compile_not_in_set,
    gxe.ExpectColumnValuesToNotBeNull: _compile_not_null,
    gxe.ExpectColumnValuesToNotMatchRegex: partial(_compile_regex, matches=False),
    gxe.ExpectCompoundColumnsToBeUnique: _compile_compound_unique,
    gxe.ExpectTableColumnCountToBeBetween: _compile_columns,
    gxe.ExpectTableColumnCountToEqual: _compile_columns,
    gxe.ExpectTableColumnsToMatchOrderedList: _compile_columns,
    gxe.ExpectTableColumnsToMatchSet: _compile_columns,
    gxe.ExpectTableRowCountToBeBetween: _compile_row_count,
    gxe.ExpectTableRowCountToEqual: _compile_row_count,
}
