"""Serving provides the columns that the model takes."""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher

from evergreen.gates.computation import gate_result
from evergreen.gates.evidence import ColumnTypes, Evidence, InputSignature, MissingEvidence
from evergreen.gates.verdict import GateResult, NotComputedError
from evergreen.spec.gates import SignatureGate


def compute(gate: SignatureGate, evidence: Evidence) -> GateResult:
    """Pass when both list the same columns with the same types in the same order.

    The candidate's value is the number of columns that are missing, extra, of another type or in another place;
    the reason names each. Rows are the columns that the model takes.
    """
    signature = evidence.input_signature
    if isinstance(signature, MissingEvidence):
        raise NotComputedError(f"the inputs of the model and of serving are not known: {signature.problem}")
    if not isinstance(signature, InputSignature):
        raise NotComputedError("the inputs of the model and of serving are not a signature")
    model, serving = _parse_columns(signature.model_columns), _parse_columns(signature.serving_columns)
    faults = _column_faults("the model", model) + _column_faults("serving", serving)
    if faults or model is None or serving is None:
        raise NotComputedError(*faults, rows=len(model or ()))
    differences = _column_differences(model, serving)
    reason = "; ".join(differences.values()) or (
        f"serving gives what the model takes, in order and type: {len(model)} columns"
    )
    return gate_result(gate, passed=not differences, candidate=len(differences), rows=len(model), reason=reason)


def _column_differences(model: ColumnTypes, serving: ColumnTypes) -> dict[str, str]:
    """Return a sentence for each column that differs; empty only when both are equal."""
    model_types, serving_types = dict(model), dict(serving)
    faults = {name: f"{name} ({type_}) is missing from serving" for name, type_ in model if name not in serving_types}
    faults |= {name: f"{name} ({type_}) is extra in serving" for name, type_ in serving if name not in model_types}
    for name, type_ in model:
        if name in serving_types and serving_types[name] != type_:
            faults[name] = f"{name} is {type_} for the model and {serving_types[name]} in serving"
    # A missing or extra column shifts those behind it: places count among the columns that both have.
    model_order = [name for name, _ in model if name in serving_types]
    serving_order = [name for name, _ in serving if name in model_types]
    blocks = SequenceMatcher(None, model_order, serving_order, autojunk=False).get_matching_blocks()
    in_order = {name for block in blocks for name in model_order[block.a : block.a + block.size]}
    places = {name: place for place, (name, _) in enumerate(serving, 1)}
    for place, (name, _) in enumerate(model, 1):
        if name in serving_types and name not in in_order:
            text = f"column {place} for the model and {places[name]} in serving"
            faults[name] = f"{faults[name]}, and {text}" if name in faults else f"{name} is {text}"
    return faults


def _parse_columns(columns: object) -> ColumnTypes | None:
    if not isinstance(columns, tuple | list):
        return None
    for column in columns:
        if not (isinstance(column, tuple | list) and len(column) == 2 and all(isinstance(x, str) for x in column)):
            return None
    return tuple((name, type_) for name, type_ in columns)


def _column_faults(source: str, columns: ColumnTypes | None) -> list[str]:
    if columns is None:
        return [f"the inputs of {source} are not names and types of columns"]
    if not columns:
        return [f"{source} lists no columns"]
    counts = Counter(name for name, _ in columns)
    return [f"{source} lists {name} {n} times" for name, n in counts.items() if n > 1]
