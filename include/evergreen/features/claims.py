"""Which run builds which day when several need it: a backfill, the clock and arrivals at once.

A run holds its claims while it is active; a run that was killed, failed or deleted holds none. Claims only
save work. Without them days would be built twice, with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

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
    """Claim the days of `fingerprints` for a run; return its days and the runs that it has to wait for.

    One of the two lists is empty: a run that has to wait claims nothing, so no two runs wait for each other.
    `optional_days` are built in the same job; those that another run has claimed are skipped. A day that has been
    published since is not returned.
    """
    file = settings().lake / "claims" / f"{model.feature_model}.json"
    with storage.file_lock(file.with_suffix(".lock")):
        claims: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        active_runs = {holder for holder in set(claims.values()) - {run_id} if is_active(holder)}
        claims = {day: holder for day, holder in claims.items() if holder in active_runs}
        unpublished = inputs.unpublished_days(model, fingerprints).keys()
        if blocking_runs := sorted({claims[day] for day in unpublished & claims.keys()}):
            return [], blocking_runs
        days = sorted(unpublished | (set(optional_days) - claims.keys() if unpublished else set()))
        with storage.atomic_write(file) as scratch:
            scratch.write_text(json.dumps(claims | dict.fromkeys(days, run_id), indent=1, sort_keys=True))
        return days, []
