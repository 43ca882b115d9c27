"""Checks of a table against expectations, by Great Expectations: every broken rule, as one sentence each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read once, when the package is imported

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation

from evergreen.errors import Fault

EXAMPLES = 3


@dataclass(frozen=True)
class Report:
    """The outcome of one check: its faults, and Great Expectations' own result as JSON, the evidence."""

    faults: tuple[Fault, ...]
    evidence: Mapping[str, Any]


def columns(schema: Mapping[str, str]) -> tuple[list[Expectation], list[Expectation]]:
    """Two stages of expectations: a table has exactly these columns, and they have these pandas types."""
    return (
        [gxe.ExpectTableColumnsToMatchSet(column_set=list(schema), exact_match=True)],
        [gxe.ExpectColumnValuesToBeOfType(column=name, type_=kind) for name, kind in schema.items()],
    )


def check(table: pd.DataFrame, where: str, *stages: Sequence[Expectation]) -> Report:
    """Check `table`, stage by stage: a stage is only asked when the ones before it hold.

    So a renamed column is reported once, as a renamed column, and not again by each rule about its values.
    An expectation that cannot be evaluated is a fault. `where` names the table in the faults.
    """
    if not any(stages):
        raise ValueError(
            f"{where}: nothing is expected of it, and a check that asks nothing passes everything"
        )
    evidence: dict[str, Any] = {}
    for number, stage in enumerate(stages):
        results = _validate(table, stage)
        evidence[f"stage {number}"] = [json.loads(json.dumps(_summary(result))) for result in results]
        failed = [result for result in results if not result.success]
        if failed:
            return Report(tuple(_fault(result, where) for result in failed), evidence)
    return Report((), evidence)


def _validate(table: pd.DataFrame, expectations: Sequence[Expectation]) -> list[ExpectationValidationResult]:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": table})
    return batch.validate(gx.ExpectationSuite("suite", expectations=list(expectations))).results


def _summary(result: ExpectationValidationResult) -> dict[str, Any]:
    """What is worth keeping of a result; Great Expectations' own JSON adds tracebacks and run times."""
    summary = result.to_json_dict()
    details: dict[str, Any] = summary["result"]
    return {
        "expectation": summary["expectation_config"]["type"],
        "of": {k: v for k, v in summary["expectation_config"]["kwargs"].items() if k != "batch_id"},
        "success": summary["success"],
        "error": _error(result),
        **{
            key: details[key]
            for key in ("observed_value", "element_count", "unexpected_count", "partial_unexpected_list")
            if key in details
        },
    }


def _fault(result: ExpectationValidationResult, where: str) -> Fault:
    kind = result.expectation_config.type.removeprefix("expect_").replace("_", " ")
    of = {k: v for k, v in result.expectation_config.kwargs.items() if k != "batch_id" and v is not None}
    subject = of.pop("column", None) or ", ".join(of.pop("column_list", [])) or "table"
    mismatch = result.result.get("details", {}).get("mismatched")
    if error := _error(result):
        found = f"cannot be evaluated: {error}"
    elif mismatch:
        of.clear()
        found = "; ".join(
            f"{len(names)} {what}: {', '.join(names)}" for what, names in sorted(mismatch.items())
        )
    elif "unexpected_count" in result.result:
        examples = ", ".join(map(str, result.result.get("partial_unexpected_list", [])[:EXAMPLES]))
        found = (
            f"{result.result['unexpected_count']} of {result.result.get('element_count', 0)} rows break it"
        )
        found += f", such as {examples}" if examples else ""
    else:
        found = f"found {result.result.get('observed_value')}"
    bounds = ", ".join(f"{name}={value}" for name, value in of.items())
    return Fault(f"{where}: {subject}", f"{kind}{f' ({bounds})' if bounds else ''}: {found}")


def _error(result: ExpectationValidationResult) -> str | None:
    """The message of the exception that an expectation raised instead of answering, if it did."""
    info = result.exception_info or {}
    for entry in (info, *(value for value in info.values() if isinstance(value, dict))):
        if entry.get("raised_exception") and entry.get("exception_message"):
            return str(entry["exception_message"])
    return None
