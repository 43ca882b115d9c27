"""Checks of a table against expectations, by Great Expectations: every broken rule, as one sentence each."""

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

MAX_EXAMPLES = 3

ExpectationStages = Sequence[Sequence[Expectation]]
"""A stage is only asked when the ones before it hold."""

_BATCHABLE_EXPECTATIONS = frozenset(
    {
        # What is said of each row by itself, or of any two rows, or of the columns alone. Subclasses and other
        # kinds are not in: a new kind is looked up in Great Expectations' metrics before it is added here.
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
# Any other condition may look beyond its row: at a mean, or at the row's number.
_ROW_LOCAL_CONDITION = re.compile(r"[A-Za-z_]\w*\.(notnull|isnull|notna|isna)\(\)")
# Bounds the copy that is made; and beyond a million rows pandas' `isin` compares in another way.
_MAX_BATCH_ROWS = 500_000

_validation_lock = threading.Lock()  # all threads share one batch, and would read each other's table


@dataclass(frozen=True)
class ValidationReport:
    """The outcome of one check: its faults, and Great Expectations' own result as JSON, the evidence."""

    faults: tuple[Fault, ...]
    results: Mapping[str, Any]


def schema_expectations(schema: Mapping[str, str]) -> tuple[list[Expectation], list[Expectation]]:
    """Two stages of expectations: a table has exactly these columns, and they have these pandas types."""
    return (
        [gxe.ExpectTableColumnsToMatchSet(column_set=list(schema), exact_match=True)],
        [gxe.ExpectColumnValuesToBeOfType(column=name, type_=kind) for name, kind in schema.items()],
    )


def validate_table(table: pd.DataFrame, table_name: str, *stages: Sequence[Expectation]) -> ValidationReport:
    """Check `table`, stage by stage: a stage is only asked when the ones before it hold.

    So a renamed column is reported once, as a renamed column, and not again by each rule about its values.
    An expectation that cannot be evaluated is a fault. `where` names the table in the faults.
    """
    _require_expectations(table_name, stages)
    evidence: dict[str, Any] = {}
    for number, stage in enumerate(stages):
        results = _run_expectations(table, stage)
        evidence[f"stage {number}"] = [_summarize_result(result) for result in results]
        failed = [result for result in results if not result.success]
        if failed:
            return ValidationReport(tuple(_to_fault(result, table_name) for result in failed), evidence)
    return ValidationReport((), evidence)


def validate_tables(
    tables: Mapping[str, pd.DataFrame], stages: Callable[[str], ExpectationStages]
) -> dict[str, ValidationReport]:
    """Check many tables of one kind: the faults that `check` finds in each, in a fraction of its time.

    Great Expectations takes milliseconds for each expectation, however few the rows. So what holds of each
    table if it holds of all their rows together is asked once of these, where table types and expectation
    agree; only what does not hold there, and all else, is asked of each table. A table that breaks anything
    goes through `check`. `stages` gives what is expected of the table of that name, by which faults name it.
    """
    expected = {name: stages(name) for name in tables}
    for name, its_stages in expected.items():
        _require_expectations(name, its_stages)
    found: dict[_ExpectationKey, dict[str, Any]] = {}
    for names in _group_batches(tables):
        found |= _validate_batch(tables, {name: expected[name] for name in names})
    return {name: _build_report(table, name, expected[name], found) for name, table in tables.items()}


_ExpectationKey = tuple[str, int, int]  # of an expectation: the table, the stage, and the position in the stage


def _group_batches(tables: Mapping[str, pd.DataFrame]) -> Iterable[list[str]]:
    """Names of tables whose concatenation has nothing that they have not, and hides nothing that they have."""
    groups: dict[Any, list[str]] = {}
    for name, table in tables.items():
        plain = isinstance(table.index, pd.RangeIndex) and table.columns.is_unique
        if plain and all(isinstance(column, str) for column in table.columns):
            groups.setdefault(tuple(zip(table.columns, table.dtypes, strict=True)), []).append(name)
    for names in groups.values():
        group: list[str] = []
        rows = 0
        for name in names:
            if group and rows + len(tables[name]) > _MAX_BATCH_ROWS:
                yield group
                group, rows = [], 0
            group.append(name)
            rows += len(tables[name])
        yield group


def _validate_batch(
    tables: Mapping[str, pd.DataFrame], stages_by_table: Mapping[str, ExpectationStages]
) -> dict[_ExpectationKey, dict[str, Any]]:
    """What was found to hold of several tables at once, at each place where it is expected."""
    wanted = _index_expectations(stages_by_table)
    places: dict[str, list[_ExpectationKey]] = {}
    for place, expectation in wanted.items():
        if identity := _batch_key(expectation):
            places.setdefault(identity, []).append(place)
    questions: dict[tuple[str, ...], list[list[_ExpectationKey]]] = {}
    for same in places.values():
        names = tuple(dict.fromkeys(name for name, _, _ in same))
        if len(names) > 1:
            questions.setdefault(names, []).append(same)
    found: dict[_ExpectationKey, dict[str, Any]] = {}
    for names, asked in questions.items():
        together = pd.concat([tables[name] for name in names], ignore_index=True)
        if not together.dtypes.equals(tables[names[0]].dtypes):
            continue
        for same, answer in zip(asked, _passing_results(together, [wanted[same[0]] for same in asked]), strict=True):
            if answer:
                answer["asked_of_tables"] = len(names)
                found |= dict.fromkeys(same, answer)
    return found


def _build_report(
    table: pd.DataFrame,
    name: str,
    stages: ExpectationStages,
    batch_results: Mapping[_ExpectationKey, Mapping[str, Any]],
) -> ValidationReport:
    wanted = _index_expectations({name: stages})
    left = {place: expectation for place, expectation in wanted.items() if place not in batch_results}
    answers = dict(zip(left, _passing_results(table, list(left.values())), strict=True))
    if not all(answers.values()):
        return validate_table(table, name, *stages)
    evidence: dict[str, list[Any]] = {f"stage {number}": [] for number in range(len(stages))}
    for place in wanted:
        evidence[f"stage {place[1]}"].append(batch_results.get(place) or answers[place])
    return ValidationReport((), evidence)


def _index_expectations(
    stages_by_table: Mapping[str, ExpectationStages],
) -> dict[_ExpectationKey, Expectation]:
    return {
        (name, number, position): expectation
        for name, stages in stages_by_table.items()
        for number, stage in enumerate(stages)
        for position, expectation in enumerate(stage)
    }


def _batch_key(expectation: Expectation) -> str | None:
    """What is asked, exactly, if it holds of every table whenever it holds of all their rows together."""
    if type(expectation) not in _BATCHABLE_EXPECTATIONS:
        return None
    kwargs = expectation.configuration.kwargs
    if kwargs.get("mostly", 1) != 1 or not _is_row_local(kwargs.get("row_condition")):
        return None
    try:
        return json.dumps([type(expectation).__name__, kwargs], sort_keys=True, default=_encode_exactly)
    except TypeError:
        return None


def _is_row_local(condition: Any) -> bool:
    if isinstance(condition, Mapping):  # what Great Expectations makes of a string
        condition = condition.get("pass_through_filter", condition)
    return not condition or (isinstance(condition, str) and bool(_ROW_LOCAL_CONDITION.fullmatch(condition)))


def _encode_exactly(value: Any) -> str:
    if isinstance(value, date):  # datetimes too
        return repr(value)
    raise TypeError(f"{type(value)} may be shortened when written")


def _passing_results(table: pd.DataFrame, expectations: Sequence[Expectation]) -> list[dict[str, Any] | None]:
    """For each of `expectations`, what was found if it holds; None if it does not or cannot be evaluated."""
    if not expectations:
        return []
    # Great Expectations sorts by column, and puts first what it could not evaluate.
    numbered = [
        expectation.copy(update={"meta": {"number": number}}) for number, expectation in enumerate(expectations)
    ]
    try:
        results = _run_expectations(table, numbered)
        found = {
            result.expectation_config.meta["number"]: _summarize_result(result) for result in results if result.success
        }
    except Exception:  # `check` meets it again, at the stage and the table that it belongs to
        return [None] * len(expectations)
    return [found.get(number) for number in range(len(expectations))]


def _require_expectations(table_name: str, stages: ExpectationStages) -> None:
    if not any(stages):
        raise ValueError(f"{table_name}: nothing is expected of it, and a check that asks nothing passes everything")


@cache
def _batch_definition() -> BatchDefinition:
    """One for the process: making a context and its store of settings takes longer than a few expectations."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    return asset.add_batch_definition_whole_dataframe("whole")


def _run_expectations(table: pd.DataFrame, expectations: Sequence[Expectation]) -> list[ExpectationValidationResult]:
    with _validation_lock:
        batch = _batch_definition().get_batch({"dataframe": table})
        try:
            return batch.validate(gx.ExpectationSuite("suite", expectations=list(expectations))).results
        finally:  # or the table stays in memory until the next one
            kept = batch.datasource.get_execution_engine().batch_manager
            kept.batch_data_cache.clear()
            kept.reset_batch_cache()


def _summarize_result(result: ExpectationValidationResult) -> dict[str, Any]:
    """What is worth keeping of a result; Great Expectations' own JSON adds tracebacks and run times."""
    summary = result.to_json_dict()
    details: dict[str, Any] = summary["result"]
    told: dict[str, Any] = {
        "expectation": summary["expectation_config"]["type"],
        "of": {k: v for k, v in summary["expectation_config"]["kwargs"].items() if k != "batch_id"},
        "success": summary["success"],
        "error": _exception_message(result),
        **{
            key: details[key]
            for key in ("observed_value", "element_count", "unexpected_count", "partial_unexpected_list")
            if key in details
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(told))
    return plain


def _to_fault(result: ExpectationValidationResult, table_name: str) -> Fault:
    kind = result.expectation_config.type.removeprefix("expect_").replace("_", " ")
    of = {k: v for k, v in result.expectation_config.kwargs.items() if k != "batch_id" and v is not None}
    subject = of.pop("column", None) or ", ".join(of.pop("column_list", [])) or "table"
    mismatch = result.result.get("details", {}).get("mismatched")
    if error := _exception_message(result):
        found = f"cannot be evaluated: {error}"
    elif mismatch:
        of.clear()
        found = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in sorted(mismatch.items()))
    elif "unexpected_count" in result.result:
        examples = ", ".join(map(str, result.result.get("partial_unexpected_list", [])[:MAX_EXAMPLES]))
        found = f"{result.result['unexpected_count']} of {result.result.get('element_count', 0)} rows break it"
        found += f", such as {examples}" if examples else ""
    else:
        found = f"found {result.result.get('observed_value')}"
    bounds = ", ".join(f"{name}={value}" for name, value in of.items())
    return Fault(f"{table_name}: {subject}", f"{kind}{f' ({bounds})' if bounds else ''}: {found}")


def _exception_message(result: ExpectationValidationResult) -> str | None:
    """The message of the exception that an expectation raised instead of answering, if it did."""
    info = result.exception_info or {}
    for entry in (info, *(value for value in info.values() if isinstance(value, dict))):
        if entry.get("raised_exception") and entry.get("exception_message"):
            return str(entry["exception_message"])
    return None
