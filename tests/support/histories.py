"""Registers with history: tiny ones, their files, and what is valid when, as plainly as it can be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from evergreen.spec.model import RawSource

START = datetime(
    2024, 3, 24, tzinfo=UTC
)  # before clocks change in Europe, and on the last day of March in Beirut at 0:00
STEPS = 12


class Version(NamedTuple):
    """One row: the value of a key from a step of time on, and before another (None: open)."""

    key: int
    begins: int
    ends: int | None
    value: str | None


def tariff_source(form: str = "to", dates: bool = True, **fields: Any) -> RawSource:
    """Return a source whose rows say when they end ("to"), or only when they begin ("from")."""
    kind = "date32" if dates else "timestamp[us, tz=UTC]"
    columns: dict[str, Any] = {
        "station": dict(type="int64", nullable=False),
        "since": dict(type=kind, nullable=False),
        "price": "string",
    }
    history = dict(keys=["station"], valid_from="since")
    if form == "to":
        columns["until"], history["valid_to"] = kind, "until"
    return RawSource(name="tariffs", is_register=True, columns=columns, history=history, **fields)


def moment(source: RawSource, step: int) -> Any:
    """Return the day, or the instant, of a step of time: of an hour, and an odd microsecond."""
    if source.has_dates_of_validity:
        return START.date() + timedelta(step)
    return START + timedelta(hours=step, microseconds=step)


def write_versions(source: RawSource, versions: Iterable[Version], file: Path) -> Path:
    """Write the rows of a register."""
    rows = list(versions)
    kind = pa.date32() if source.has_dates_of_validity else pa.timestamp("us", "UTC")
    table = {
        "station": pa.array([row.key for row in rows], pa.int64()),
        "since": pa.array([moment(source, row.begins) for row in rows], kind),
        "price": pa.array([row.value for row in rows], pa.string()),
        "until": pa.array([None if row.ends is None else moment(source, row.ends) for row in rows], kind),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: table[name] for name in source.columns}), file)
    return file


def valid_version(versions: Sequence[Version], form: str, key: int, at: float) -> Version | None:
    """Return the row of a key that is valid at a time, in steps."""
    begun = [row for row in versions if row.key == key and row.begins <= at]
    if form == "from":
        return max(begun, key=lambda row: row.begins, default=None)
    valid = [row for row in begun if row.ends is None or at < row.ends]
    assert len(valid) < 2
    return valid[0] if valid else None


@st.composite
def valid_histories(draw: st.DrawFn, form: str, keys: int = 2) -> list[Version]:
    """Registers without faults: versions with gaps or without, some empty, the last one open or not."""
    versions = []
    values = st.sampled_from(["a", "b", None])
    for key in range(keys):
        begins = sorted(draw(st.sets(st.integers(0, STEPS), max_size=4)))
        for number, begin in enumerate(begins):
            latest = begins[number + 1] if number + 1 < len(begins) else STEPS
            end = draw(st.integers(begin, latest) | st.just(latest)) if form == "to" else None
            if form == "to" and number + 1 == len(begins) and draw(st.booleans()):
                end = None
            versions.append(Version(key, begin, end, draw(values)))
    return draw(st.permutations(versions))
