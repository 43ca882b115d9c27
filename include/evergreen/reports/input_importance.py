"""The importance of inputs of candidate and champion, side by side: ranks, and what changed between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evergreen.explanations.importance_record import InputImportance, ModelImportance, VerdictImportance

MAX_INPUTS = 25
_MOVED_RANKS = 3
_NAMED_INPUTS = 8

ImportanceMeasure = Literal["permutation", "contribution", "gain"]
_MEASURES: tuple[ImportanceMeasure, ...] = ("permutation", "contribution", "gain")


@dataclass(frozen=True)
class ComparedInput:
    """An input of candidate, champion, or both; None where a model does not have it, or it has no rank."""

    name: str
    candidate: InputImportance | None
    champion: InputImportance | None
    rank: int | None
    champion_rank: int | None

    def value(self, role: str, measure: ImportanceMeasure) -> float | None:
        """Return a measure of the model of this role."""
        measured = self.candidate if role == "candidate" else self.champion
        return getattr(measured, measure) if measured else None


@dataclass(frozen=True)
class ComparedImportance:
    """What the gate report shows.

    Attributes:
        measures: those that were measured of a model; ranks are by the first one.
        inputs: those that matter most to the candidate, or to the champion if only that has them.
        hidden: how many more there are.
        changes: sentences about what is different.
    """

    measures: tuple[ImportanceMeasure, ...]
    inputs: tuple[ComparedInput, ...]
    hidden: int
    changes: tuple[str, ...]


def compare_importance(importance: VerdictImportance) -> ComparedImportance | None:
    """Return the comparison; None if nothing was measured."""
    models = importance.models
    measures = tuple(name for name in _MEASURES if any(_has_measure(model, name) for model in models.values()))
    if not measures:
        return None
    candidate, champion = (_by_name(models.get(role)) for role in ("candidate", "champion"))
    ranks, champion_ranks = (_rank_inputs(inputs, measures[0]) for inputs in (candidate, champion))
    compared = [
        ComparedInput(name, candidate.get(name), champion.get(name), ranks.get(name), champion_ranks.get(name))
        for name in dict.fromkeys([*candidate, *champion])
    ]

    def order(item: ComparedInput) -> tuple[bool, float]:
        role = "candidate" if item.candidate else "champion"
        value = item.value(role, measures[0])
        return value is None, -(value or 0.0)

    compared.sort(key=order)
    changes = _describe_changes(compared) if candidate and champion else ()
    return ComparedImportance(measures, tuple(compared[:MAX_INPUTS]), len(compared[MAX_INPUTS:]), changes)


def _has_measure(model: ModelImportance, measure: ImportanceMeasure) -> bool:
    return any(getattr(item, measure) is not None for item in model.inputs)


def _by_name(model: ModelImportance | None) -> dict[str, InputImportance]:
    return {item.name: item for item in model.inputs} if model else {}


def _rank_inputs(inputs: Mapping[str, InputImportance], measure: ImportanceMeasure) -> dict[str, int]:
    """Return the rank of each input from 1 on, but of those that chance alone could give their value."""
    values = {
        name: value
        for name, item in inputs.items()
        if (value := getattr(item, measure)) is not None
        and value > (2 * (item.deviation or 0.0) if measure == "permutation" else 0.0)
    }
    ordered = sorted(values, key=lambda name: (-values[name], name))
    return {name: rank for rank, name in enumerate(ordered, 1)}


def _describe_changes(inputs: list[ComparedInput]) -> tuple[str, ...]:
    new = [item.name for item in inputs if item.champion is None]
    dropped = [item.name for item in inputs if item.candidate is None]
    moved = [
        f"{item.name} from {item.champion_rank} to {item.rank}"
        for item in inputs
        if item.rank and item.champion_rank and abs(item.rank - item.champion_rank) >= _MOVED_RANKS
    ]
    matters = [item.name for item in inputs if item.rank and item.champion and item.champion_rank is None]
    stopped = [item.name for item in inputs if item.champion_rank and item.candidate and item.rank is None]
    changes = (
        ("Only the candidate has", new),
        ("Only the champion has", dropped),
        (f"Ranks that moved by {_MOVED_RANKS} or more:", moved),
        ("Measurable for the candidate, and not for the champion:", matters),
        ("Measurable for the champion, and not for the candidate:", stopped),
    )
    return tuple(f"{text} {_list_names(names)}." for text, names in changes if names) or (
        "Both have the same inputs, and no rank moved by more than two.",
    )


def _list_names(names: list[str]) -> str:
    suffix = f" and {len(names) - _NAMED_INPUTS} more" if len(names) > _NAMED_INPUTS else ""
    return ", ".join(names[:_NAMED_INPUTS]) + suffix
