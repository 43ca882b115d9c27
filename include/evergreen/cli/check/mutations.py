"""Whether the gates of a model hold back a damaged one, which predicts something else than it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evergreen.cli.check.steps import SkippedStepError
from evergreen.errors import Fault
from evergreen.gates import Evidence, Gate
from evergreen.gates.verdict import evaluate_gate
from evergreen.spec.gates import LabelledGate, OnlineEqualsOfflineGate, ServingGate, SignatureGate

# What these judge is not what the model predicts.
_OTHER_GATES = (LabelledGate, OnlineEqualsOfflineGate, ServingGate, SignatureGate)
_HELD_BACK = ("failed", "inconclusive")
_FIX = "add a gate on predictions, such as a baseline or a threshold, or make its limit stricter"

Predictions = np.ndarray[Any, Any]


def find_mutation_faults(kind: str | None, gates: Sequence[Gate], evidence: Evidence) -> tuple[list[Fault], str]:
    """Judge damaged predictions in place of the candidate's, which then are the champion's; return faults, and a text.

    A damaged model is held back if a gate that passes for the undamaged one fails, or is inconclusive. Gates that
    cannot be computed on so few rows show nothing, nor do those that the undamaged model does not pass.

    Args:
        kind: of the model, as in its spec; None: one number, a probability if labels are 0 and 1.
        gates: of the model.
        evidence: of the undamaged candidate, without a champion.

    Raises:
        SkippedStepError: on these rows no gate shows anything.
    """
    candidate = evidence.candidate
    if not isinstance(candidate, np.ndarray) or not isinstance(evidence.label, np.ndarray):
        raise SkippedStepError("the rows to judge on are too many to be in memory, or have no labels")
    judging = [gate for gate in gates if not isinstance(gate, _OTHER_GATES)]
    results = {gate.name: evaluate_gate(gate, evidence) for gate in judging}
    passed = [gate for gate in judging if results[gate.name].outcome == "passed"]
    if not passed:
        reasons = "; ".join(f"{name}: {result.reason}" for name, result in results.items())
        raise SkippedStepError(f"no gate on predictions passes on so few rows: {reasons or 'there is none'}")
    faults, texts = list[Fault](), list[str]()
    for name, damaged in damage_predictions(kind, candidate, evidence.label).items():
        if np.array_equal(damaged, candidate, equal_nan=True):
            raise SkippedStepError("all predictions are equal: no gate can tell them from others")
        damaged_evidence = replace(evidence, candidate=damaged, champion=candidate)
        outcomes_by_gate = {gate.name: evaluate_gate(gate, damaged_evidence, (), True).outcome for gate in passed}
        blocking = [gate for gate, outcome in outcomes_by_gate.items() if outcome in _HELD_BACK]
        if blocking:
            texts.append(f"{name} by {', '.join(blocking)}")
            continue
        if set(outcomes_by_gate.values()) == {"not_computed"}:
            raise SkippedStepError(f"{name}: no gate on predictions can be computed on so few rows")
        passing = ", ".join(gate for gate, outcome in outcomes_by_gate.items() if outcome == "passed")
        faults.append(Fault("gates", f"a model whose predictions are {name} would pass {passing}", _FIX))
    return faults, f"held back: {'; '.join(texts)}"


def damage_predictions(kind: str | None, predictions: Predictions, label: Predictions) -> dict[str, Predictions]:
    """Return predictions (n,) or (n, outputs) that no useful model of this kind has, by what was done to them."""
    permuted = predictions[np.random.default_rng(0).permutation(len(predictions))]
    if kind is None and np.isin(label, (0, 1)).all():
        kind = "binary"
    changed: dict[str, Predictions]
    match kind:
        case "binary":
            changed = {"turned round": 1 - predictions}
        case "multiclass":
            changed = {"of another class": np.roll(predictions, 1, axis=1)}
        case "ranking":
            changed = {"turned round": -predictions}
        case _:
            finite = label[np.isfinite(label)]
            width = float(finite.max() - finite.min()) if finite.size else 0.0
            changed = {"shifted by the range of the label": predictions + (width or 1.0)}
    return {"of other rows": permuted, **changed}
