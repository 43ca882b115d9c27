"""Evidence whose rows come in batches, from arrays of a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evergreen.gates import Evidence, MissingEvidence, NoChampion
from evergreen.gates.evidence import EvidenceRows, StreamedColumn, TextBatch

_OTHERS = ("horizons", "scales", "weights")


@dataclass(frozen=True, eq=False)
class ArrayBatches(EvidenceRows):
    """Columns (n,) of arrays and lists, so many rows at a time."""

    columns: Mapping[str, Any]
    batch_rows: int

    @property
    def count(self) -> int:
        return len(next(iter(self.columns.values())))

    def batches(self, numbers: Sequence[str], texts: Sequence[str] = ()) -> Iterator[tuple[list[Any], list[TextBatch]]]:
        for start in range(0, self.count, self.batch_rows):
            rows = slice(start, start + self.batch_rows)
            yield [self.columns[name][rows] for name in numbers], [_encode(self.columns[name][rows]) for name in texts]


def _encode(texts: Sequence[str | None]) -> TextBatch:
    # In an order of their own, as in the dictionary of a file.
    names = sorted({text for text in texts if text is not None}, key=lambda text: text[::-1])
    codes = {name: code for code, name in enumerate(names)} | {None: -1}
    return TextBatch(np.array([codes[text] for text in texts], dtype=np.int32), names)


def stream(evidence: Evidence, batch_rows: int = 1_000) -> Evidence:
    """Return the same evidence, with every column of rows streamed."""
    columns: dict[str, Any] = {}

    def add(name: str, values: Any) -> Any:
        if values is None or isinstance(values, MissingEvidence | NoChampion):
            return values
        columns[name] = values
        return name

    fields = {name: add(name, getattr(evidence, name)) for name in ("label", "candidate", "champion", *_OTHERS)}
    kinds = {
        kind: {name: add(f"{kind}:{name}", values) for name, values in dict(getattr(evidence, kind) or {}).items()}
        for kind in ("clusters", "groups", "baselines")
    }
    rows = ArrayBatches(columns, batch_rows)
    recent = evidence.recent_predictions
    if not isinstance(recent, MissingEvidence):
        recent = StreamedColumn(ArrayBatches({"recent": recent}, batch_rows), "recent")

    def column(name: Any) -> Any:
        return StreamedColumn(rows, name) if isinstance(name, str) else name

    return replace(
        evidence,
        **{name: column(value) for name, value in fields.items()},
        **{kind: {name: column(value) for name, value in parts.items()} for kind, parts in kinds.items()},
        recent_predictions=recent,
    )
