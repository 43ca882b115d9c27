"""Which periods a run of the features DAG publishes, and which run builds which of them.

What the scheduler knows is passed in: the facts of the run, and `count_active_runs`, which counts the queued and
running runs of the DAG among given `run_ids` or `logical_dates`. Each call is a request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from evergreen import storage
from evergreen.errors import Fault
from evergreen.features import inputs
from evergreen.ingest import announcements
from evergreen.ingest.raw_files import RawFile
from evergreen.lake import datasets
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.spec.origins import RawFiles
from evergreen.window import DagRunInfo, Window

log = logging.getLogger(__name__)


def periods_to_publish(model: ModelSpec, run: DagRunInfo, window: Window) -> list[str]:
    """Return the periods that a run publishes, in order: its window, late arrivals, and later periods that are stale.

    The run acknowledges the arrivals that started it, so that the watcher does not announce them again, and with
    them arrivals whose events Airflow has dropped.
    """
    spec = feature_spec(model)
    store = announcements.announcement_store(model.name)
    arrived = {
        period
        for event in run.asset_events
        if event.deliveries is not None
        for period in store.acknowledge_with_pending(event.deliveries, run.run_id)
    }
    first, end = spec.first_period, spec.end_period
    arrived = {period for period in arrived if first <= period and not (end and period >= end)}
    if late := sorted(arrived.difference(window.periods)):
        log.info("arrived as well, and no other run has acknowledged: %s", ", ".join(map(str, late)))
    periods = sorted(arrived.union(window.periods))
    for problems in refresh_raw_data(spec, periods).values():  # told by `validate_raw_files`, with all others
        log.warning("%s", "; ".join(map(str, problems)))
    if stale := inputs.stale_periods(model, periods):
        log.info("built from raw periods that have changed since: %s", ", ".join(map(str, stale)))
    return sorted([*periods, *stale])


def refresh_raw_data(spec: FeatureSpec, periods: Iterable[str]) -> dict[RawFile, list[Fault]]:
    """Read into the lake what `periods` depend on and what comes from a query or a table; return the faults.

    What has been read is not read again. Raises OSError if a server does not respond.
    """
    files = [file for file in inputs.raw_files_for_periods(spec, periods) if not isinstance(file.origin, RawFiles)]
    if not files:
        return {}
    from evergreen.ingest.extracts import refresh_extracts  # imports what talks to databases

    return refresh_extracts(spec, files)


def claim_periods_to_build(
    model: ModelSpec, run: DagRunInfo, periods: Sequence[str], count_active_runs: Callable[..., int]
) -> tuple[list[str], list[str]]:
    """Claim those of `periods` that are not published; return the periods to build and the runs to wait for.

    At most one of the lists has elements; both are empty if every period is published. The periods to build may include
    those of other runs that are waiting. Periods whose raw files are missing are among them: `validate_raw_files` names
    these with all other faults.
    """
    fingerprints = inputs.compute_period_fingerprints(model, periods)
    unpublished = inputs.unpublished_periods(model, fingerprints)
    for period in fingerprints.keys() - unpublished.keys():
        log.info("%s: published already with fingerprint %s", period, fingerprints[period][:12])
    if not unpublished:
        return [], []
    awaited = periods_awaited_by_other_runs(feature_spec(model), run, set(unpublished), count_active_runs)
    optional = inputs.unpublished_periods(model, inputs.compute_period_fingerprints(model, awaited))
    claimed, blocking_runs = claim_periods(
        model, run.run_id, unpublished, optional, lambda run_id: bool(count_active_runs(run_ids=[run_id]))
    )
    if extra := set(claimed) - unpublished.keys():
        log.info("%s periods of other waiting runs are built in the same job", len(extra))
    return claimed, blocking_runs


def claim_periods(
    model: ModelSpec,
    run_id: str,
    fingerprints: inputs.FingerprintsByPeriod,
    optional_periods: Iterable[str],
    is_active: Callable[[str], bool],
) -> tuple[list[str], list[str]]:
    """Claim the periods of `fingerprints` for a run; return its periods and the runs that it has to wait for.

    A run holds its claims while it is active; a run that was killed, failed or deleted holds none. Claims only save
    work. Without them periods would be built twice, with the same bytes.

    One of the two lists is empty: a run that has to wait claims nothing, so no two runs wait for each other.
    `optional_periods` are built in the same job; those that another run has claimed are skipped. A period that has been
    published since is not returned.
    """
    optional = set(optional_periods)
    periods: list[str] = []
    blocking_runs: list[str] = []

    def claim(stored: bytes | None) -> bytes | None:
        nonlocal periods, blocking_runs
        claims: dict[str, str] = json.loads(stored) if stored else {}
        active_runs = {holder for holder in set(claims.values()) - {run_id} if is_active(holder)}
        claims = {period: holder for period, holder in claims.items() if holder in active_runs}
        unpublished = inputs.unpublished_periods(model, fingerprints).keys()
        periods, blocking_runs = [], sorted({claims[period] for period in unpublished & claims.keys()})
        if blocking_runs:
            return None
        periods = sorted(unpublished | (optional - claims.keys() if unpublished else set()))
        return json.dumps(claims | dict.fromkeys(periods, run_id), indent=1, sort_keys=True).encode()

    storage.update_file(datasets.lake_root() / "claims" / f"{model.feature_model}.json", claim)
    return periods, blocking_runs


def periods_awaited_by_other_runs(
    spec: FeatureSpec, run: DagRunInfo, own_periods: Collection[str], count_active_runs: Callable[..., int]
) -> list[str]:
    """Periods near the run's own that active runs of the DAG are about, and whose raw files are all there."""
    limit, calendar = inputs.max_periods_per_run(spec), spec.calendar  # other runs build what is beyond, in parallel
    capacity = limit - len(own_periods)
    if not (run.logical_date and run.data_interval and run.started_at) or capacity <= 0:
        return []
    logical_date, zone = run.logical_date, ZoneInfo(calendar.timezone)
    run_period = calendar.period_at(run.data_interval[0])
    # A period that was not over when this run began may still be arriving.
    end = calendar.period_at(run.started_at)
    if spec.end_period:
        end = min(end, spec.end_period)

    def logical_date_of(period: str) -> datetime:
        """Return the logical date of the scheduled run of a period: of days, at the time of day of this run's."""
        if calendar.partition_key != "day":
            return spec.interval_start(period)
        local_time = logical_date.astimezone(zone).replace(tzinfo=None)
        return (local_time + (calendar.date_of(period) - calendar.date_of(run_period))).replace(tzinfo=zone)

    # Runs that start together look at the same stretch of periods, so that the first claims all of it.
    first_period = spec.first_period
    first = calendar.shift(first_period, calendar.count(first_period, run_period) // limit * limit)
    by_date: dict[datetime, list[str]] = {}
    for period in calendar.periods_between(first, min(calendar.shift(first, limit), end)):
        by_date.setdefault(logical_date_of(period), []).append(period)
    awaited = dates_with_runs(list(by_date), lambda dates: count_active_runs(logical_dates=list(dates)))
    return [
        period
        for date in awaited
        for period in by_date[date]
        if period not in own_periods
        and not inputs.find_missing_raw_files(spec, inputs.raw_files_for_period(spec, period))
    ][:capacity]


def dates_with_runs(dates: Sequence[datetime], count_runs: Callable[[Sequence[datetime]], int]) -> list[datetime]:
    """Those of the logical `dates` that have a run, found by bisection: `count_runs` counts the runs of some dates."""
    count = count_runs(dates) if dates else 0
    if count in (0, len(dates)):
        return list(dates) if count else []
    half = len(dates) // 2
    return dates_with_runs(dates[:half], count_runs) + dates_with_runs(dates[half:], count_runs)
