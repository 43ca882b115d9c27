"""Does serving give the model the columns that it takes?"""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher

from evergreen.gates.evidence import Evidence, Missing, Signature
from evergreen.gates.kinds.shared import not_computed
from evergreen.gates.verdict import Record
from evergreen.spec.gates import SameSignature

Columns = tuple[tuple[str, str], ...]


def compute(gate: SameSignature, evidence: Evidence) -> Record:
    """Passed when both list the same columns with the same types in the same order.

    The candidate's value is the number of columns that are missing, extra, of another type or in another place;
    the reason names each. Rows are the columns that the model takes.
    """
    signature = evidence.signature
    if isinstance(signature, Missing):
        return not_computed(
            gate, 0, [f"the inputs of the model and of serving are not known: {signature.problem}"]
        )
    if not isinstance(signature, Signature):
        return not_computed(gate, 0, ["the inputs of the model and of serving are not a signature"])
    model, serving = _columns(signature.model), _columns(signature.serving)
    faults = _faults("the model", model) + _faults("serving", serving)
    if faults or model is None or serving is None:
        return not_computed(gate, len(model or ()), faults)

    differing = _differing(model, serving)
    found = "; ".join(differing.values())
    return Record(
        gate=gate.name,
        outcome="failed" if differing else "passed",
        candidate=len(differing),
        threshold=gate.limit,
        rows=len(model),
        reason=found or f"serving gives what the model takes, in order and type: {len(model)} columns",
    )


def _differing(model: Columns, serving: Columns) -> dict[str, str]:
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


def _columns(listed: object) -> Columns | None:
    if not isinstance(listed, tuple | list):
        return None
    for column in listed:
        if not (
            isinstance(column, tuple | list) and len(column) == 2 and all(isinstance(x, str) for x in column)
        ):
            return None
    return tuple((name, kind) for name, kind in listed)


def _faults(whose: str, columns: Columns | None) -> list[str]:
    if columns is None:
        return [f"the inputs of {whose} are not names and types of columns"]
    if not columns:
        return [f"{whose} lists no columns"]
    counts = Counter(name for name, _ in columns)
    return [f"{whose} lists {name} {n} times" for name, n in counts.items() if n > 1]
