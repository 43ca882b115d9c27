"""Slices of a verdict, stored in the lake: a ledger entry keeps few, or it would grow with every value of a column."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from pydantic import TypeAdapter

from evergreen import storage
from evergreen.errors import InputsChangedError
from evergreen.gates import SliceResult, Verdict
from evergreen.lake import datasets
from evergreen.ledger import VerdictRecorded

MAX_ENTRY_SLICES = 20
"""Of one gate in a ledger entry. The slices of a gate that has more are in the lake, all of them."""

_SLICES = TypeAdapter(tuple[tuple[SliceResult, ...], ...])  # by result of the verdict


def detach_slices(verdict: Verdict, dataset: datasets.Dataset) -> tuple[Verdict, dict[str, str]]:
    """Store the slices of gates that have many; return the verdict without them, and the file as the entry's evidence.

    The file is named by the hash of its content, so the entry says what must be in it.
    """
    stored = [r.slices if len(r.slices) > MAX_ENTRY_SLICES else () for r in verdict.results]
    if not any(stored):
        return verdict, {}
    data = _SLICES.dump_json(tuple(stored))
    file = dataset.root / f"slices-{sha256(data).hexdigest()}.json"
    storage.replace_version(file, data, None)
    results = [
        result.model_copy(update={"slices": (), "stored_slices": len(slices)}) if slices else result
        for result, slices in zip(verdict.results, stored, strict=True)
    ]
    return verdict.model_copy(update={"results": tuple(results)}), {"slices": datasets.path_in_lake(file)}


def attach_slices(event: VerdictRecorded) -> VerdictRecorded:
    """Return the event with all slices of its verdict.

    Raises:
        InputsChangedError: their file is missing or was changed.
    """
    if "slices" not in event.evidence:
        return event
    file = datasets.lake_path(event.evidence["slices"])
    stored_file = storage.read_version(file)
    if stored_file is None:
        raise InputsChangedError(f"{file}: the slices of a verdict are missing: restore the file")
    data = stored_file.data
    if file.name != f"slices-{sha256(data).hexdigest()}.json":
        raise InputsChangedError(f"{file}: was changed after the verdict was recorded: restore the file")
    stored: Sequence[tuple[SliceResult, ...]] = _SLICES.validate_json(data)
    results = [
        result.model_copy(update={"slices": slices, "stored_slices": 0}) if slices else result
        for result, slices in zip(event.verdict.results, stored, strict=True)
    ]
    return event.model_copy(update={"verdict": event.verdict.model_copy(update={"results": tuple(results)})})
