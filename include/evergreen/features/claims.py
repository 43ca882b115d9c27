"""Which run makes which day, when several want the same: a backfill, the clock and arrivals at once.

A claim is held by a run, for as long as that run is under way: whoever asks says which runs still are, so a
run that was killed, failed or deleted holds nothing. Claims only spare work. Without them days would be
made twice, with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from evergreen import storage
from evergreen.features import inputs
from evergreen.features.inputs import FingerprintsByDay
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec


def claim_days(
    model: ModelSpec,
    run_id: str,
    fingerprints: FingerprintsByDay,
    optional_days: Iterable[str],
    is_active: Callable[[str], bool],
) -> tuple[list[str], list[str]]:
    """Claim the days `wanted` for `run`; gives the days it has now, and the runs that it has to wait for.

    One of both is empty: a run that others keep waiting claims nothing, so no two wait for each other.
    `extra` are days that it would make along with them; those that others have are left to them. A day
    that has been published meanwhile is not given.
    """
    file = settings().lake / "claims" / f"{model.feature_model}.json"
    with storage.file_lock(file.with_suffix(".lock")):
        holders = _read_claims(file)
        alive = {holder: is_active(holder) for holder in set(holders.values()) - {run_id}}
        held = {day: holder for day, holder in holders.items() if alive.get(holder)}
        todo = {day for day, mark in fingerprints.items() if not inputs.find_published_day(model, day, mark)}
        if waiting := sorted({held[day] for day in todo & held.keys()}):
            return [], waiting
        mine = sorted(todo | (set(optional_days) - held.keys() if todo else set()))
        with storage.atomic_write(file) as scratch:
            scratch.write_text(json.dumps(held | dict.fromkeys(mine, run_id), indent=1, sort_keys=True))
        return mine, []


def _read_claims(file: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return found
