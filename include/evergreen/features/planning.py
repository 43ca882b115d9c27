"""Which days a run of the features DAG publishes, and which run builds which of them.

What the scheduler knows is passed in: the facts of the run, and `count_active_runs`, which counts the queued and
running runs of the DAG among given `run_ids` or `logical_dates`. Each call is a request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from evergreen import storage
from evergreen.errors import Fault
from evergreen.features import inputs
from evergreen.ingest import announcements
from evergreen.ingest.raw_files import RawFile
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.spec.origins import RawFiles
from evergreen.window import DagRunInfo, Window, days_between

log = logging.getLogger(__name__)


def days_to_publish(model: ModelSpec, run: DagRunInfo, window: Window) -> list[date]:
    """Return the days that a run publishes, in order: its window, late arrivals, and later days that are stale.

    The run acknowledges the arrivals that started it, so that the watcher does not announce them again, and with
    them arrivals whose events Airflow has dropped.
    """
    spec = feature_spec(model)
    store = announcements.announcement_store(model.name)
    arrived = {
        date.fromisoformat(day)
        for event in run.asset_events
        if event.deliveries is not None
        for day in store.acknowledge_with_pending(event.deliveries, run.run_id)
    }
    arrived = {day for day in arrived if spec.first_day <= day <= (spec.last_day or day)}
    if late := sorted(arrived.difference(window.days)):
        log.info("arrived as well, and no other run has acknowledged: %s", ", ".join(map(str, late)))
    days = sorted(arrived.union(window.days))
    for problems in refresh_raw_data(spec, days).values():  # told by `validate_raw_files`, with all others
        log.warning("%s", "; ".join(map(str, problems)))
    if stale := inputs.stale_days(model, days):
        log.info("built from raw days that have changed since: %s", ", ".join(map(str, stale)))
    return sorted([*days, *stale])


def refresh_raw_data(spec: FeatureSpec, days: Iterable[date]) -> dict[RawFile, list[Fault]]:
    """Read into the lake what `days` depend on and what comes from a query or a table; return the faults.

    What has been read is not read again. Raises OSError if a server does not respond.
    """
    files = [file for file in inputs.raw_files_for_days(spec, days) if not isinstance(file.origin, RawFiles)]
    if not files:
        return {}
    from evergreen.ingest.extracts import refresh_extracts  # imports what talks to databases

    return refresh_extracts(spec, files)


def claim_days_to_build(
    model: ModelSpec, run: DagRunInfo, days: Sequence[date], count_active_runs: Callable[..., int]
) -> tuple[list[date], list[str]]:
    """Claim those of `days` that are not published; return the days to build and the runs to wait for.

    At most one of the lists has elements; both are empty if every day is published. The days to build may include
    days of other runs that are waiting. Days whose raw files are missing are among them: `validate_raw_files` names
    these with all other faults.
    """
    fingerprints = inputs.compute_day_fingerprints(model, days)
    unpublished = inputs.unpublished_days(model, fingerprints)
    for day in fingerprints.keys() - unpublished.keys():
        log.info("%s: published already with fingerprint %s", day, fingerprints[day][:12])
    if not unpublished:
        return [], []
    awaited = days_awaited_by_other_runs(
        feature_spec(model), run, set(map(date.fromisoformat, unpublished)), count_active_runs
    )
    optional = inputs.unpublished_days(model, inputs.compute_day_fingerprints(model, awaited))
    claimed, blocking_runs = claim_days(
        model, run.run_id, unpublished, optional, lambda run_id: bool(count_active_runs(run_ids=[run_id]))
    )
    if extra := set(claimed) - unpublished.keys():
        log.info("%s days of other waiting runs are built in the same job", len(extra))
    return list(map(date.fromisoformat, claimed)), blocking_runs


def claim_days(
    model: ModelSpec,
    run_id: str,
    fingerprints: inputs.FingerprintsByDay,
    optional_days: Iterable[str],
    is_active: Callable[[str], bool],
) -> tuple[list[str], list[str]]:
    """Claim the days of `fingerprints` for a run; return its days and the runs that it has to wait for.

    A run holds its claims while it is active; a run that was killed, failed or deleted holds none. Claims only save
    work. Without them days would be built twice, with the same bytes.

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


def days_awaited_by_other_runs(
    spec: FeatureSpec, run: DagRunInfo, own_days: Collection[date], count_active_runs: Callable[..., int]
) -> list[date]:
    """Days near the run's own that active runs of the DAG are about, and whose raw files are all there."""
    limit = settings().max_days_per_run  # other runs build what is beyond it, in parallel
    capacity = limit - len(own_days)
    if not (run.logical_date and run.data_interval and run.started_at) or capacity <= 0:
        return []
    zone = ZoneInfo(spec.timezone)
    local_time = run.logical_date.astimezone(zone)
    run_day = run.data_interval[0].astimezone(zone).date()
    # A day that was not over when this run began may still be arriving.
    end = run.started_at.astimezone(zone).date()
    if spec.last_day:
        end = min(end, spec.last_day + timedelta(1))

    def logical_date(day: date) -> datetime:
        return (local_time.replace(tzinfo=None) + (day - run_day)).replace(tzinfo=zone)

    # Runs that start together look at the same stretch of days, so that the first claims all of it.
    first = spec.first_day + timedelta((run_day - spec.first_day).days // limit * limit)
    awaited = days_with_runs(
        days_between(first, min(first + timedelta(limit), end)),
        lambda days: count_active_runs(logical_dates=[logical_date(day) for day in days]),
    )
    return [
        day
        for day in awaited
        if day not in own_days and not inputs.find_missing_raw_files(spec, inputs.raw_files_for_day(spec, day))
    ][:capacity]


def days_with_runs(days: Sequence[date], count_runs: Callable[[Sequence[date]], int]) -> list[date]:
    """Those of `days` that have a run, found by bisection: `count_runs` counts the runs of some days."""
    count = count_runs(days) if days else 0
    if count in (0, len(days)):
        return list(days) if count else []
    half = len(days) // 2
    return days_with_runs(days[:half], count_runs) + days_with_runs(days[half:], count_runs)
