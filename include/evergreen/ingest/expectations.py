"""Validate Parquet files against expectations of Great Expectations; each broken rule is one fault."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read once, when the package is imported

import duckdb
import great_expectations as gx
import pandas as pd
import pyarrow.parquet as pq
from great_expectations.core.batch_definition import BatchDefinition
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.expectation_configuration import parse_result_format
from great_expectations.util import convert_to_json_serializable

from evergreen.errors import Fault
from evergreen.ingest import expectation_metrics
from evergreen.ingest.expectation_metrics import CompiledExpectation, Metrics, ParquetRows
from evergreen.ingest.frames import text_as_objects

MAX_EXAMPLES = 3

ExpectationStages = Sequence[Sequence[Expectation]]
"""A stage is validated only if all earlier stages pass."""

_RESULT_KEYS = ("observed_value", "element_count", "unexpected_count", "partial_unexpected_list")

_RESULT_FORMAT = parse_result_format("BASIC")

log = logging.getLogger(__name__)

_validation_lock = threading.Lock()  # threads share one batch definition, and would read one another's table


@dataclass(frozen=True)
class ValidationReport:
    """Faults of one table, and the results of Great Expectations as JSON."""

    faults: tuple[Fault, ...]
    results: Mapping[str, Any]


def validate_file(
    database: duckdb.DuckDBPyConnection,
    path: Path,
    table_name: str,
    *stages: Sequence[Expectation],
    columns: Sequence[str] | None = None,
) -> ValidationReport:
    """Validate a Parquet file stage by stage, up to the first stage that fails. Faults name it by `table_name`.

    With `columns`, no expectation sees others that the file has.

    An expectation that cannot be evaluated is a fault.

    `database`, from `open_database`, computes what it can, for all stages in one pass; for the other expectations,
    Great Expectations reads their columns into memory.

    Raises:
        pyarrow.ArrowException, OSError, duckdb.Error: the file cannot be read.
    """
    if not any(stages):
        raise ValueError(f"{table_name}: no expectations, so any table would pass; declare at least one")
    summaries: dict[str, Any] = {}
    rows = ParquetRows(database, path, columns)
    for number, results in enumerate(_validate_stages(rows, path, table_name, stages)):
        summaries[f"stage {number}"] = [_summarize_result(result) for result in results]
        if faults := tuple(_to_fault(result, table_name) for result in results if not result.success):
            return ValidationReport(faults, summaries)
    return ValidationReport((), summaries)


def _validate_stages(
    rows: ParquetRows, path: Path, table_name: str, stages: ExpectationStages
) -> Iterator[list[ExpectationValidationResult]]:
    compiled = [[(rule, expectation_metrics.compile_expectation(rule, rows)) for rule in stage] for stage in stages]
    metrics = iter(rows.aggregate([plan for stage in compiled for _, plan in stage if plan]))
    for stage in compiled:
        results = [_judge(rule, plan, next(metrics)) for rule, plan in stage if plan]
        not_compiled = [rule for rule, plan in stage if not plan]
        if not_compiled:
            results += _validate_in_memory(path, table_name, not_compiled, rows)
        yield results


def _judge(rule: Expectation, plan: CompiledExpectation, metrics: Metrics) -> ExpectationValidationResult:
    """Let the expectation itself judge metrics that are computed already, and look for examples if it fails."""

    def validate(values: Metrics) -> dict[str, Any]:
        configuration = {"result_format": _RESULT_FORMAT}
        engine = expectation_metrics.pandas_engine()
        return dict(rule._validate(values, configuration, engine))  # noqa: SLF001 - what custom expectations define

    verdict = validate(metrics)
    if not verdict["success"]:
        verdict = validate(metrics | plan.find_examples())
    return ExpectationValidationResult(
        success=verdict["success"], expectation_config=rule.configuration, result=verdict["result"]
    )


def _validate_in_memory(
    path: Path, table_name: str, rules: Sequence[Expectation], rows: ParquetRows
) -> list[ExpectationValidationResult]:
    """Return the results that Great Expectations computes itself, of the columns that `rules` may read."""
    start = time.perf_counter()
    needed = dict.fromkeys(column for rule in rules for column in _columns_read(rule, list(rows.dtypes)))
    with pq.ParquetFile(path) as file:  # `read_table` would add columns from the names of folders
        stored = file.read([*needed], use_pandas_metadata=not rows.is_selection)
    table = text_as_objects(stored.to_pandas(ignore_metadata=rows.is_selection))
    results = _run_expectations(table, rules)
    log.warning(
        "%s: %s not compiled to SQL: Great Expectations read %s rows of %s columns into memory, %.1f s",
        *(table_name, ", ".join(sorted({type(rule).__name__ for rule in rules}))),
        *(len(table), len(table.columns), time.perf_counter() - start),
    )
    return results


def _columns_read(rule: Expectation, columns: Sequence[str]) -> Sequence[str]:
    """Those of `columns` that a rule may read: all of them, unless Great Expectations defines what it reads."""
    arguments = rule.configuration.kwargs
    named = {arguments.get(key) for key in ("column", "column_A", "column_B")} | set(arguments.get("column_list", ()))
    if named == {None} or not type(rule).__module__.startswith("great_expectations."):
        return columns
    condition = arguments.get("row_condition") or {}
    text = str(condition.get("pass_through_filter", condition) if isinstance(condition, Mapping) else condition)
    names = {str(name).casefold() for name in named}  # Great Expectations ignores case
    return [column for column in columns if column.casefold() in names or column in text]


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
    configuration = result.expectation_config
    summary = {
        "expectation": configuration.type,
        "kwargs": {name: value for name, value in configuration.kwargs.items() if name != "batch_id"},
        "success": result.success,
        "error": _exception_message(result),
        **{name: result.result[name] for name in _RESULT_KEYS if name in result.result},
    }
    plain: dict[str, Any] = json.loads(json.dumps(convert_to_json_serializable(summary)))
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
