"""`evergreen backfill`: the features of past periods, built by a backfill of Airflow, with progress in the terminal.

It builds what is missing, and again what is stale: periods that other code, parameters or registers have made.

The command stores no state of its own but reads Airflow and the lake, so an interrupted or failed call is simply
repeated. It waits where Airflow is too busy to answer: one with SQLite is, while its scheduler starts runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from evergreen.client.addresses import service_addresses
from evergreen.client.airflow import AirflowBusyError, AirflowClient, AirflowConflictError, AirflowError, Json
from evergreen.errors import EvergreenError
from evergreen.features.inputs import published_manifests
from evergreen.features.staleness import find_stale_features
from evergreen.periods import Calendar
from evergreen.settings import variable_name
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import DagRunInfo, resolve_features_window
from evergreen_local import run_progress
from evergreen_local.progress import Progress, ProgressView, format_duration

POLL_INTERVAL_S = 1.0
"""Seconds between two looks: each costs the API server a few hundredths of a CPU second."""

_PARSE_TIMEOUT_S = 180.0  # more than Airflow has for one file (airflow.env)
_MAX_ACTIVE_RUNS = 4  # of a backfill
_MAX_CREATIONS = 10  # of backfills for the same periods: Airflow may delete one that it could not create as a whole


class RunFailedError(EvergreenError):
    """A DAG run has failed."""


def connect_to_airflow(timeout_s: float | None = None) -> AirflowClient:
    """Return a client of the Airflow that the settings name, or of the local stack.

    It repeats a request for at most `timeout_s`, where that is given.

    Raises:
        EvergreenError: neither is there.
    """
    addresses = service_addresses()
    if addresses is None:
        raise EvergreenError(
            f"no Airflow is running here: name one in {variable_name('airflow')}, or start it by `evergreen up`"
        )
    return AirflowClient(addresses.airflow, addresses.airflow_ui, **({"timeout_s": timeout_s} if timeout_s else {}))


def backfill_model(name: str, start: str, end: str, progress: Progress) -> list[str]:
    """Publish the features of all periods from `start` to `end`, both included, that are missing or stale; return all.

    Both are names of periods, or dates of all periods that begin on them. The features DAG is unpaused.

    Raises:
        EvergreenError: Airflow, a run or the data has failed.
        WindowError: these are no periods of the model, or not over yet.
    """
    model = load_spec(name)
    spec = feature_spec(model)
    window = resolve_features_window(
        DagRunInfo("manual", datetime.now(UTC), conf={"start": start, "end": end}),
        calendar=spec.calendar,
        first_day=spec.first_day,
        last_day=spec.last_day,
    )
    airflow, dag_id = connect_to_airflow(), f"{model.feature_model}.features"
    wait_until_parsed(airflow, [dag_id], progress)
    backfill_features(airflow, dag_id, model, window.periods, progress)
    return list(window.periods)


def wait_until_parsed(airflow: AirflowClient, dag_ids: Sequence[str], progress: Progress) -> None:
    start = datetime.now(UTC)
    while unknown := [dag_id for dag_id in dag_ids if airflow.dag(dag_id) is None]:
        progress.update(ProgressView("Airflow parses the DAGs", len(dag_ids) - len(unknown), len(dag_ids), "DAGs"))
        errors = airflow.import_errors()
        # An earlier error may be of a file that has been fixed since.
        has_new_errors = any(datetime.fromisoformat(error["timestamp"]) >= start for error in errors)
        if has_new_errors or (datetime.now(UTC) - start).total_seconds() > _PARSE_TIMEOUT_S:
            problems = [airflow.describe_import_error(error) for error in errors]
            raise AirflowError("\n".join([f"Airflow has not parsed {', '.join(unknown)}", *problems]))
        time.sleep(POLL_INTERVAL_S)
    progress.clear()
    for dag_id in dag_ids:
        airflow.set_dag_paused(dag_id, False)


def backfill_features(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str], progress: Progress
) -> None:
    """Publish the features of all `periods` that are missing or stale, by a backfill.

    Raises:
        AirflowError: Airflow cannot create the backfill.
        RunFailedError: a run has failed.
    """
    start, calendar = time.monotonic(), feature_spec(model).calendar
    built: list[str] = []
    creations, is_finished = 0, False
    while not is_finished:
        _wait_for_active_backfill(airflow, dag_id, model, progress)
        due = _periods_to_build(model, periods)
        if not due:
            break
        if creations == _MAX_CREATIONS:
            raise AirflowError(
                f"{dag_id}: Airflow has not created a run for {due[0]}, in {creations} tries: look at "
                f"{airflow.url}/dags/{dag_id}, and run the same command again"
            )
        creations += 1
        built = built or due
        if _create_backfill(airflow, dag_id, model, due, progress):
            is_finished = _wait_for_runs(airflow, dag_id, model, due, progress)
        else:
            time.sleep(POLL_INTERVAL_S)
    progress.clear()
    if not built:
        print_published(dag_id, calendar, periods, progress)
        return
    require_published(airflow, dag_id, model, built)
    if (stale := find_stale_features(model, published_manifests(model, built))).periods:
        raise RunFailedError(
            f"{dag_id} succeeded, but {stale.summary} still: the workers of Airflow may have another version of the "
            f"code, parameters or registers than there is here; bring it to them, then run the same command again: "
            f"{airflow.url}/dags/{dag_id}"
        )
    duration = format_duration(time.monotonic() - start)
    progress.print(f"✓ {dag_id}: backfilled {calendar.describe(built)}, in {duration}")


def print_published(dag_id: str, calendar: Calendar, periods: Sequence[str], progress: Progress) -> None:
    """Say that there is nothing to build."""
    progress.print(f"✓ {dag_id}: all {len(periods)} {calendar.unit}s up to {periods[-1]} are published")


def require_published(airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str]) -> None:
    """Check that runs that have succeeded have published `periods`.

    Raises:
        RunFailedError: they have not.
    """
    if unpublished := periods_without_features(model, periods):
        raise RunFailedError(f"{dag_id} succeeded, but {unpublished[0]} is not published: {airflow.url}/dags/{dag_id}")


def _wait_for_runs(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str], progress: Progress
) -> bool:
    """Wait until the run of each period is over; return False if the backfill has ended without a run for some."""
    while True:
        is_active = airflow.active_backfill(dag_id) is not None  # before the runs: one that ends meanwhile has them all
        runs = _poll_backfill(airflow, dag_id, model, periods, progress)
        if failed := [period for period in periods if period in runs and runs[period]["state"] == "failed"]:
            raise describe_failure(airflow, runs[failed[0]], f"{dag_id} of {failed[0]}")
        if run_progress.all_runs_finished(runs, periods):
            return True
        if not is_active and not runs.keys() >= set(periods):
            return False
        time.sleep(POLL_INTERVAL_S)


def _create_backfill(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, due: Sequence[str], progress: Progress
) -> bool:
    """Create runs for the `due` periods; return False if another backfill is active, or Airflow was too busy."""
    spec = feature_spec(model)
    progress.update(ProgressView(f"{dag_id}: creating a backfill", 0, len(due), f"{spec.calendar.unit}s"))
    first, last = spec.interval_start(due[0]), spec.interval_start(due[-1])
    runs = _runs_by_period(airflow, dag_id, model, due)
    # By default Airflow skips successful runs, even if their datasets were removed, or are stale.
    is_removed = any(period in runs and runs[period]["state"] == "success" for period in due)
    try:
        airflow.create_backfill(dag_id, first, last, "completed" if is_removed else "failed", _MAX_ACTIVE_RUNS)
    except (AirflowConflictError, AirflowBusyError):
        return False  # of one that Airflow could not create as a whole, a part may be there for a moment
    return True


def _wait_for_active_backfill(airflow: AirflowClient, dag_id: str, model: ModelSpec, progress: Progress) -> None:
    """Wait for a backfill that an earlier call or a user has created: a DAG has one at a time."""
    calendar = feature_spec(model).calendar
    reported = None
    while active := airflow.active_backfill(dag_id):
        if active["id"] != reported:
            reported = active["id"]
            progress.print(f"{dag_id}: waiting for an active backfill")
            airflow.unpause_backfill(active)
        first, last = (calendar.period_at(datetime.fromisoformat(active[end])) for end in ("from_date", "to_date"))
        _poll_backfill(airflow, dag_id, model, list(calendar.periods_between(first, calendar.shift(last, 1))), progress)
        time.sleep(POLL_INTERVAL_S)
    progress.clear()


def _poll_backfill(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str], progress: Progress
) -> dict[str, Json]:
    """Fetch the runs of `periods` and show their progress."""
    runs, unit = _runs_by_period(airflow, dag_id, model, periods), feature_spec(model).calendar.unit
    instances = airflow.task_instances(dag_id, states=run_progress.ACTIVE_TASK_STATES)
    progress.update(run_progress.backfill_view(dag_id, periods, runs, instances, datetime.now(UTC), unit))
    airflow.check_scheduler()
    return runs


def periods_without_features(model: ModelSpec, periods: Sequence[str]) -> list[str]:
    """Return those of `periods` without published features, whatever they were made from."""
    published = published_manifests(model, periods)
    return [period for period in periods if period not in published]


def _periods_to_build(model: ModelSpec, periods: Sequence[str]) -> list[str]:
    """Return those of `periods` that are missing or stale, in order."""
    published = published_manifests(model, periods)
    stale = find_stale_features(model, published)
    return sorted({*(period for period in periods if period not in published), *stale.periods})


def _runs_by_period(airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str]) -> dict[str, Json]:
    spec = feature_spec(model)
    runs = airflow.dag_runs(
        dag_id,
        logical_date_gte=spec.interval_start(periods[0]).isoformat(),
        logical_date_lte=spec.interval_start(periods[-1]).isoformat(),
    )
    return run_progress.runs_by_period(runs, spec.calendar)


def describe_failure(airflow: AirflowClient, run: Json, title: str) -> RunFailedError:
    """Return an error with the failed task of the run, the end of its log, and the URL of its page."""
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    failed = airflow.task_instances(dag_id, run_id, states=["failed"])
    if not failed:
        return RunFailedError(f"{title} failed, run {run_id}\n{airflow.run_page_url(dag_id, run_id)}")
    first = min(failed, key=lambda instance: instance["end_date"] or "")
    return RunFailedError(
        "\n".join(
            [
                f"{title} failed in task {first['task_id']}, run {run_id}",
                *(f"  {line}" for line in run_progress.error_lines(airflow.log(first))),
                airflow.run_page_url(dag_id, run_id, first["task_id"]),
                "Fix the cause, then run the same command again: it continues from there.",
            ]
        )
    )
