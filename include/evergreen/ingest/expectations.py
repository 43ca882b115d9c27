"""Validate tables against expectations with Great Expectations; each broken rule is one fault."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read once, when the package is imported

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.core.batch_definition import BatchDefinition
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation

from evergreen.errors import Fault
from evergreen.ingest.frames import text_as_objects

MAX_EXAMPLES = 3

ExpectationStages = Sequence[Sequence[Expectation]]
"""A stage is validated only if all earlier stages pass."""

_BATCHABLE_EXPECTATIONS = frozenset(
    {
        # Rules about single rows, about pairs of rows, or about columns alone: they hold of every table if they hold
        # of all their rows together. Before adding one, look it up in Great Expectations' metrics. Subclasses do
        # not count.
        gxe.ExpectTableColumnsToMatchSet,
        gxe.ExpectColumnValuesToBeOfType,
        gxe.ExpectColumnValuesToNotBeNull,
        gxe.ExpectColumnValuesToBeBetween,
        gxe.ExpectColumnValuesToBeInSet,
        gxe.ExpectColumnValuesToMatchRegex,
        gxe.ExpectColumnValuesToBeUnique,
        gxe.ExpectCompoundColumnsToBeUnique,
        gxe.ExpectColumnPairValuesAToBeGreaterThanB,
    }
)
# Any other condition may depend on more than its row, such as a mean or the row's number.
_ROW_LOCAL_CONDITION = re.compile(r"[A-Za-z_]\w*\.(notnull|isnull|notna|isna)\(\)")
# Limits the copy in memory; and beyond a million rows pandas' `isin` compares in another way.
_MAX_BATCH_ROWS = 500_000

_RESULT_KEYS = ("observed_value", "element_count", "unexpected_count", "partial_unexpected_list")

_validation_lock = threading.Lock()  # threads share one batch definition, and would read one another's table


@dataclass(frozen=True)
class ValidationReport:
    """Faults of one table, and the results of Great Expectations as JSON."""

    faults: tuple[Fault, ...]
    results: Mapping[str, Any]


def schema_expectations(schema: Mapping[str, str]) -> tuple[list[Expectation], list[Expectation]]:
    """Two stages of expectations: a table has exactly these columns, and they have these pandas types.

    Text is `object`, with every version of pandas.
    """
    return (
        [gxe.ExpectTableColumnsToMatchSet(column_set=list(schema), exact_match=True)],
        [gxe.ExpectColumnValuesToBeOfType(column=name, type_=kind) for name, kind in schema.items()],
    )


def validate_table(table: pd.DataFrame, table_name: str, *stages: Sequence[Expectation]) -> ValidationReport:
    """Validate `table` stage by stage, up to the first stage that fails.

    So a renamed column is reported once, as a renamed column, and not again by each rule about its values.
    An expectation that cannot be evaluated is a fault. Faults name the table by `table_name`.
    """
    _require_expectations(table_name, stages)
    table = text_as_objects(table)
    summaries: dict[str, Any] = {}
    for number, stage in enumerate(stages):
        results = _run_expectations(table, stage)
        summaries[f"stage {number}"] = [_summarize_result(result) for result in results]
        if faults := tuple(_to_fault(result, table_name) for result in results if not result.success):
            return ValidationReport(faults, summaries)
    return ValidationReport((), summaries)


def validate_tables(
    tables: Mapping[str, pd.DataFrame], stages_for: Callable[[str], ExpectationStages]
) -> dict[str, ValidationReport]:
    """Validate many tables of one kind: the faults that `validate_table` finds in each, in a fraction of its time.

    Great Expectations takes milliseconds per expectation, however few the rows. So an expectation that holds of each
    table if it holds of all their rows is validated once for all tables of the same types, if all of them have it.
    Tables for which that fails are validated one by one. `stages_for` returns the stages of the table of a name.
    """
    stages_by_table = {name: stages_for(name) for name in tables}
    for name, stages in stages_by_table.items():
        _require_expectations(name, stages)
    tables = {name: text_as_objects(table) for name, table in tables.items()}
    batch_results: dict[str, Mapping[str, dict[str, Any]]] = {}
    for names in _group_batches(tables):
        results = _validate_batch(tables, {name: stages_by_table[name] for name in names})
        batch_results |= dict.fromkeys(names, results)
    return {
        name: _build_report(table, name, stages_by_table[name], batch_results.get(name, {}))
        for name, table in tables.items()
    }


def _group_batches(tables: Mapping[str, pd.DataFrame]) -> Iterable[list[str]]:
    """Names of tables that can be concatenated without changing any of them."""
    groups: dict[Any, list[str]] = {}
    for name, table in tables.items():
        plain = isinstance(table.index, pd.RangeIndex) and table.columns.is_unique
        if plain and all(isinstance(column, str) for column in table.columns):
            groups.setdefault(tuple(zip(table.columns, table.dtypes, strict=True)), []).append(name)
    for names in groups.values():
        batch: list[str] = []
        rows = 0
        for name in names:
            if batch and rows + len(tables[name]) > _MAX_BATCH_ROWS:
                yield batch
                batch, rows = [], 0
            batch.append(name)
            rows += len(tables[name])
        yield batch


def _validate_batch(
    tables: Mapping[str, pd.DataFrame], stages_by_table: Mapping[str, ExpectationStages]
) -> dict[str, dict[str, Any]]:
    """Return the results of expectations that all tables share and that pass for all their rows, by `_batch_key`."""
    rules_by_table = [
        {key: expectation for stage in stages for expectation in stage if (key := _batch_key(expectation))}
        for stages in stages_by_table.values()
    ]
    shared = {key: rule for key, rule in rules_by_table[0].items() if all(key in rules for rules in rules_by_table)}
    if len(rules_by_table) == 1 or not shared:
        return {}
    batch = pd.concat([tables[name] for name in stages_by_table], ignore_index=True)
    if not batch.dtypes.equals(tables[next(iter(stages_by_table))].dtypes):
        return {}
    results = zip(shared, _passing_results(batch, list(shared.values())), strict=True)
    return {key: {**result, "table_count": len(rules_by_table)} for key, result in results if result}


def _build_report(
    table: pd.DataFrame, name: str, stages: ExpectationStages, batch_results: Mapping[str, dict[str, Any]]
) -> ValidationReport:
    numbered = [
        (number, expectation, batch_results.get(_batch_key(expectation)))
        for number, stage in enumerate(stages)
        for expectation in stage
    ]
    own_results = iter(_passing_results(table, [expectation for _, expectation, shared in numbered if not shared]))
    summaries: dict[str, list[Any]] = {f"stage {number}": [] for number in range(len(stages))}
    for number, _, shared in numbered:
        summaries[f"stage {number}"].append(shared or next(own_results))
    if not all(map(all, summaries.values())):
        return validate_table(table, name, *stages)
    return ValidationReport((), summaries)


def _batch_key(expectation: Expectation) -> str:
    """Identify an expectation that may be validated for several tables at once; empty for any other."""
    kwargs = expectation.configuration.kwargs
    if (
        type(expectation) not in _BATCHABLE_EXPECTATIONS
        or kwargs.get("mostly", 1) != 1
        or not _is_row_local(kwargs.get("row_condition"))
    ):
        return ""
    try:
        return json.dumps([type(expectation).__name__, kwargs], sort_keys=True, default=_encode_exactly)
    except TypeError:
        return ""


def _is_row_local(condition: Any) -> bool:
    if isinstance(condition, Mapping):  # Great Expectations' form of a string
        condition = condition.get("pass_through_filter", condition)
    return not condition or (isinstance(condition, str) and bool(_ROW_LOCAL_CONDITION.fullmatch(condition)))


def _encode_exactly(value: Any) -> str:
    if isinstance(value, date):  # datetimes too
        return repr(value)
    raise TypeError(f"the JSON of {type(value)} may be shortened")


def _passing_results(table: pd.DataFrame, expectations: Sequence[Expectation]) -> list[dict[str, Any] | None]:
    """The result of each of `expectations`; None if it fails or cannot be evaluated."""
    if not expectations:
        return []
    # Great Expectations sorts results by column, and puts first those that it could not evaluate.
    numbered = [
        expectation.copy(update={"meta": {"number": number}}) for number, expectation in enumerate(expectations)
    ]
    try:
        results = _run_expectations(table, numbered)
        summaries = {
            result.expectation_config.meta["number"]: _summarize_result(result) for result in results if result.success
        }
    except Exception:  # `validate_table` raises it again, at the stage and the table that it belongs to
        return [None] * len(expectations)
    return [summaries.get(number) for number in range(len(expectations))]


def _require_expectations(table_name: str, stages: ExpectationStages) -> None:
    if not any(stages):
        raise ValueError(f"{table_name}: no expectations, so any table would pass; declare at least one")


@cache
def _batch_definition() -> BatchDefinition:
    """One per process: creating a context takes longer than validating a few expectations."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    return asset.add_batch_definition_whole_dataframe("whole")


def _run_expectations(table: pd.DataFrame, expectations: Sequence[Expectation]) -> list[ExpectationValidationResult]:
    # Great Expectations converts text to `str`: in pandas 3 that is Arrow's, where `\w` of an expression is ASCII only.
    with _validation_lock, pd.option_context("mode.string_storage", "python"):
        batch = _batch_definition().get_batch({"dataframe": table})
        try:
            return batch.validate(gx.ExpectationSuite("suite", expectations=list(expectations))).results
        finally:  # or the table stays in memory until the next one
            batch_manager = batch.datasource.get_execution_engine().batch_manager
            batch_manager.batch_data_cache.clear()
            batch_manager.reset_batch_cache()


def _summarize_result(result: ExpectationValidationResult) -> dict[str, Any]:
    """The part of a result that is stored, without tracebacks and run times."""
    full = result.to_json_dict()
    summary = {
        "expectation": full["expectation_config"]["type"],
        "kwargs": {name: value for name, value in full["expectation_config"]["kwargs"].items() if name != "batch_id"},
        "success": full["success"],
        "error": _exception_message(result),
        **{name: full["result"][name] for name in _RESULT_KEYS if name in full["result"]},
    }
    plain: dict[str, Any] = json.loads(json.dumps(summary))
    return plain


def _to_fault(result: ExpectationValidationResult, table_name: str) -> Fault:
    rule = result.expectation_config.type.removeprefix("expect_").replace("_", " ")
    kwargs = {k: v for k, v in result.expectation_config.kwargs.items() if k != "batch_id" and v is not None}
    subject = kwargs.pop("column", None) or ", ".join(kwargs.pop("column_list", [])) or "table"
    details = result.result
    mismatches = details.get("details", {}).get("mismatched")
    if error := _exception_message(result):
        problem = f"cannot be evaluated: {error}"
    elif mismatches:
        kwargs.clear()
        problem = "; ".join(f"{len(names)} {kind}: {', '.join(names)}" for kind, names in sorted(mismatches.items()))
    elif "unexpected_count" in details:
        examples = ", ".join(map(str, details.get("partial_unexpected_list", [])[:MAX_EXAMPLES]))
        problem = f"{details['unexpected_count']} of {details.get('element_count', 0)} rows break it"
        problem += f", such as {examples}" if examples else ""
    else:
        problem = f"found {details.get('observed_value')}"
    bounds = ", ".join(f"{name}={value}" for name, value in kwargs.items())
    return Fault(f"{table_name}: {subject}", f"{rule}{f' ({bounds})' if bounds else ''}: {problem}")


def _exception_message(result: ExpectationValidationResult) -> str | None:
    """The message of the exception that an expectation raised, if it did."""
    info = result.exception_info or {}
    for entry in (info, *(value for value in info.values() if isinstance(value, dict))):
        if entry.get("raised_exception") and entry.get("exception_message"):
            return str(entry["exception_message"])
    return None
