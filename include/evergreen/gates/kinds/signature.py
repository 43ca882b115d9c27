"""Does serving give the model the columns that it takes?"""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher

from evergreen.gates.evidence import Evidence, InputSignature, MissingEvidence
from evergreen.gates.kinds.shared import not_computed_result
from evergreen.gates.verdict import GateResult
from evergreen.spec.gates import SignatureGate

Columns = tuple[tuple[str, str], ...]


def compute(gate: SignatureGate, evidence: Evidence) -> GateResult:
    """Passed when both list the same columns with the same types in the same order.

    The candidate's value is the number of columns that are missing, extra, of another type or in another place;
    the reason names each. Rows are the columns that the model takes.
    """
    signature = evidence.input_signature
    if isinstance(signature, MissingEvidence):
        return not_computed_result(
            gate, 0, [f"the inputs of the model and of serving are not known: {signature.problem}"]
        )
    if not isinstance(signature, InputSignature):
        return not_computed_result(gate, 0, ["the inputs of the model and of serving are not a signature"])
    model, serving = _parse_columns(signature.model_columns), _parse_columns(signature.serving_columns)
    faults = _column_faults("the model", model) + _column_faults("serving", serving)
    if faults or model is None or serving is None:
        return not_computed_result(gate, len(model or ()), faults)

    differing = _column_differences(model, serving)
    found = "; ".join(differing.values())
    return GateResult(
        gate=gate.name,
        outcome="failed" if differing else "passed",
        candidate=len(differing),
        threshold=gate.limit,
        rows=len(model),
        reason=found or f"serving gives what the model takes, in order and type: {len(model)} columns",
    )


def _column_differences(model: Columns, serving: Columns) -> dict[str, str]:
    """What is wrong, by column. Empty only when both are equal."""
    takes, gives = dict(model), dict(serving)
    faults = {name: f"{name} ({kind}) is missing from serving" for name, kind in model if name not in gives}
    faults |= {name: f"{name} ({kind}) is extra in serving" for name, kind in serving if name not in takes}
    for name, kind in model:
        if name in gives and gives[name] != kind:
            faults[name] = f"{name} is {kind} for the model and {gives[name]} in serving"
    # A column that is missing or extra shifts those behind it: places count among the columns that both have.
    here = [name for name, _ in model if name in gives]
    there = [name for name, _ in serving if name in takes]
    matcher = SequenceMatcher(None, here, there, autojunk=False)
    still = {name for block in matcher.get_matching_blocks() for name in here[block.a : block.a + block.size]}
    places = {name: place for place, (name, _) in enumerate(serving, 1)}
    for place, (name, _) in enumerate(model, 1):
        if name in gives and name not in still:
            text = f"column {place} for the model and {places[name]} in serving"
            faults[name] = f"{faults[name]}, and {text}" if name in faults else f"{name} is {text}"
    return faults


def _parse_columns(columns: object) -> Columns | None:
    if not isinstance(columns, tuple | list):
        return None
    for column in columns:
        if not (isinstance(column, tuple | list) and len(column) == 2 and all(isinstance(x, str) for x in column)):
            return None
    return tuple((name, kind) for name, kind in columns)


def _column_faults(source: str, columns: Columns | None) -> list[str]:
    if columns is None:
        return [f"the inputs of {source} are not names and types of columns"]
    if not columns:
        return [f"{source} lists no columns"]
    counts = Counter(name for name, _ in columns)
    return [f"{source} lists {name} {n} times" for name, n in counts.items() if n > 1]
