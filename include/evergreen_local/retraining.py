"""`evergreen retrain`: from raw data to a verdict, through Airflow, with progress in the terminal.

A model whose folder has a `raw.py` simulates the delivery of its data, as the examples do: each call delivers the raw
data up to its next scheduled retrain. For all other models the data that is delivered decides. The command stores
no state of its own but reads Airflow and the lake, so an interrupted or failed call is simply repeated.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from evergreen import ledger
from evergreen.client.addresses import ServiceAddresses
from evergreen.client.airflow import AirflowClient, AirflowConflictError, AirflowError, Json
from evergreen.errors import EvergreenError
from evergreen.features.inputs import features_dataset
from evergreen.ingest import raw_files
from evergreen.ingest.watcher import WatchedSource, list_complete_periods
from evergreen.lake import datasets
from evergreen.orchestration.handover import JudgedCandidate, RetrainPlan
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ModelSpec
from evergreen_local import results, run_progress, schedule, stack
from evergreen_local.progress import Progress, ProgressView, format_duration

_POLL_INTERVAL_S = 2.0  # each poll costs the API server a few hundredths of a CPU second
_PARSE_TIMEOUT_S = 120.0
_MAX_ACTIVE_RUNS = 4  # of a backfill


class RunFailedError(EvergreenError):
    """A DAG run has failed."""


def retrain_model(name: str, as_of: str | None, progress: Progress) -> list[Json]:
    """Build the features of the model `name` that are missing, retrain it, and show the verdict.

    Returns one record for each retrain: date, verdict, whether it was promoted, champion, and where the report is.

    Args:
        name: Name of the model folder.
        as_of: Retrain with what was known at the start of this period. Default: after the newest with all raw data;
            with simulated data the next scheduled one, and at first two, so that there is a champion to beat.
        progress: Where progress and results are printed.

    Raises:
        EvergreenError: A service, a run or the data has failed.
    """
    start = time.monotonic()
    model = load_spec(name)
    if as_of:
        schedule.parse_as_of(feature_spec(model), as_of)
    raw = _import_raw_module(model)
    addresses = stack.bring_up_stack(progress)
    airflow = AirflowClient(addresses.airflow, addresses.airflow_ui)
    features, retraining = f"{model.feature_model}.features", f"{model.name}.retrain"
    monitoring = [f"{model.name}.monitor"] if model.monitors else []
    _wait_until_parsed(airflow, [features, retraining, *monitoring], progress)
    dates = (
        [as_of] if as_of else _next_as_of_periods(model, raw, _finished_as_of_periods(airflow, retraining), progress)
    )
    outcomes = []
    for period in dates:
        if raw:
            _deliver_raw_periods(raw, model, period, progress)
        _backfill_features(airflow, features, model, _feature_periods(model, period), progress)
        if monitoring and ledger.read_state(model.name).challenger:
            _run_dag(airflow, monitoring[0], period, progress)
        _run_dag(airflow, retraining, period, progress)
        outcomes.append(_show_results(airflow, retraining, model, period, addresses, progress))
    results.show_summary(progress, addresses, time.monotonic() - start)
    return outcomes


def _next_as_of_periods(
    model: ModelSpec, raw: ModuleType | None, finished: Collection[str], progress: Progress
) -> list[str]:
    spec = feature_spec(model)
    if raw:
        dates = schedule.simulated_as_of_periods(model, spec, finished)
        end = str(spec.last_day)
    else:
        delivered = _delivered_periods(model)
        dates = schedule.newest_as_of_period(model, spec.calendar, delivered, finished)
        end = max(delivered)
    if not dates:
        progress.print(f"the data of {model.name} ends on {end}, and the retrain after that is done")
    return dates


def _import_raw_module(model: ModelSpec) -> ModuleType | None:
    """Import the module that simulates the delivery of raw data, if the model folder has one."""
    name = f"evergreen_models.{model.feature_model}.raw"
    if find_spec(name) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # data packages warn about setuptools
        return import_module(name)


def _delivered_periods(model: ModelSpec) -> set[str]:
    """Return the periods of the model for which every source has its raw file, or does not need it any more."""
    spec, now = feature_spec(model), datetime.now(UTC)
    calendar, current = spec.calendar, spec.calendar.period_at(now)
    periods = set(calendar.periods_between(spec.first_period, min(current, spec.end_period or current)))
    watched = {source.name: WatchedSource.from_source(source) for source in spec.sources if not source.is_register}
    return periods & list_complete_periods(raw_files.raw_folder(), watched, now, calendar, periods).keys()


def _feature_periods(model: ModelSpec, as_of: str) -> Sequence[str]:
    """Return the periods of features that a retrain as of `as_of` reads."""
    spec, start = feature_spec(model), as_of
    for duration in model.history:
        start = spec.calendar.period_before(start, duration)
    return list(spec.calendar.periods_between(max(spec.first_period, start), as_of))


def _deliver_raw_periods(raw: ModuleType, model: ModelSpec, as_of: str, progress: Progress) -> None:
    spec, first = feature_spec(model), _feature_periods(model, as_of)[0]
    calendar = spec.calendar
    start = min(calendar.period_before(first, source.trailing) for source in spec.sources)
    periods = list(calendar.periods_between(max(spec.first_period, start), as_of))
    awaited = [source for source in spec.sources if not source.is_register and source.absence_hours is None]
    # Whether a file that may be absent is still to come, only the one who delivers knows.
    missing = [
        period
        for period in periods
        if not awaited
        or not all(raw_files.is_delivered(raw_files.RawFile.from_source(source, period)) for source in awaited)
    ]
    if missing:
        progress.update(ProgressView("delivering raw data", 0, len(missing), f"{calendar.unit}s"))
        raw.deliver(periods)
        progress.clear()
        progress.print(f"✓ delivered raw data: {calendar.describe(missing)}")


def _wait_until_parsed(airflow: AirflowClient, dag_ids: Sequence[str], progress: Progress) -> None:
    start = datetime.now(UTC)
    while unknown := [dag_id for dag_id in dag_ids if airflow.dag(dag_id) is None]:
        progress.update(ProgressView("Airflow parses the DAGs", len(dag_ids) - len(unknown), len(dag_ids), "DAGs"))
        errors = airflow.import_errors()
        # An earlier error may be of a file that has been fixed since.
        has_new_errors = any(datetime.fromisoformat(error["timestamp"]) >= start for error in errors)
        if has_new_errors or (datetime.now(UTC) - start).total_seconds() > _PARSE_TIMEOUT_S:
            problems = [airflow.describe_import_error(error) for error in errors]
            raise AirflowError("\n".join([f"Airflow has not parsed {', '.join(unknown)}", *problems]))
        time.sleep(_POLL_INTERVAL_S)
    progress.clear()
    for dag_id in dag_ids:
        airflow.set_dag_paused(dag_id, False)


def _finished_as_of_periods(airflow: AirflowClient, dag_id: str) -> set[str]:
    runs = airflow.dag_runs(dag_id, state=["success"])
    return {run["conf"]["as_of"] for run in runs if (run["conf"] or {}).get("as_of")}


def _backfill_features(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str], progress: Progress
) -> None:
    """Publish the features of all `periods` that are missing, by a backfill."""
    start, unit = time.monotonic(), feature_spec(model).calendar.unit
    missing: list[str] = []
    created = False
    while not created:
        _wait_for_active_backfill(airflow, dag_id, model, progress)
        missing = _unpublished_periods(model, periods)
        if not missing:
            progress.print(f"✓ {dag_id}: all {len(periods)} {unit}s up to {periods[-1]} are published")
            return
        created = _create_backfill(airflow, dag_id, model, missing, progress)
    while True:
        runs = _poll_backfill(airflow, dag_id, model, missing, progress)
        if failed := [period for period in missing if period in runs and runs[period]["state"] == "failed"]:
            raise _describe_failure(airflow, runs[failed[0]], f"{dag_id} of {failed[0]}")
        if run_progress.all_runs_finished(runs, missing):
            break
        time.sleep(_POLL_INTERVAL_S)
    progress.clear()
    if unpublished := _unpublished_periods(model, missing):
        raise RunFailedError(f"{dag_id} succeeded, but {unpublished[0]} is not published: {airflow.url}/dags/{dag_id}")
    duration = format_duration(time.monotonic() - start)
    progress.print(f"✓ {dag_id}: backfilled {feature_spec(model).calendar.describe(missing)}, in {duration}")


def _create_backfill(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, missing: Sequence[str], progress: Progress
) -> bool:
    """Create runs for the `missing` periods; return False if another backfill is active."""
    spec = feature_spec(model)
    progress.update(ProgressView(f"{dag_id}: creating a backfill", 0, len(missing), f"{spec.calendar.unit}s"))
    first, last = spec.interval_start(missing[0]), spec.interval_start(missing[-1])
    runs = _runs_by_period(airflow, dag_id, model, missing)
    # By default Airflow skips successful runs, even if their datasets were removed.
    is_removed = any(period in runs and runs[period]["state"] == "success" for period in missing)
    try:
        airflow.create_backfill(dag_id, first, last, "completed" if is_removed else "failed", _MAX_ACTIVE_RUNS)
    except AirflowConflictError:
        return False
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
        time.sleep(_POLL_INTERVAL_S)
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


def _unpublished_periods(model: ModelSpec, periods: Sequence[str]) -> list[str]:
    dataset = features_dataset(model)
    return [period for period in periods if dataset.manifest(datasets.period_partition(period)) is None]


def _runs_by_period(airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str]) -> dict[str, Json]:
    spec = feature_spec(model)
    runs = airflow.dag_runs(
        dag_id,
        logical_date_gte=spec.interval_start(periods[0]).isoformat(),
        logical_date_lte=spec.interval_start(periods[-1]).isoformat(),
    )
    return run_progress.runs_by_period(runs, spec.calendar)


def _run_dag(airflow: AirflowClient, dag_id: str, as_of: str, progress: Progress) -> None:
    """Start the run for `as_of`, or continue an earlier attempt, and wait for it."""
    run_id = _run_id(as_of)
    title = f"{dag_id} as of {as_of}"
    run = airflow.dag_run(dag_id, run_id)
    if run and run["state"] == "failed":
        progress.print(f"{title} failed before: running its failed tasks again")
        airflow.clear_failed_tasks(dag_id, run_id)
    elif not run:
        with suppress(AirflowConflictError):  # another process has just started it
            airflow.trigger_dag_run(dag_id, run_id, {"as_of": as_of})
    start = time.monotonic()
    tasks = airflow.task_ids(dag_id)
    while True:
        run = airflow.dag_run(dag_id, run_id)
        if run is None:
            raise RunFailedError(f"{title}: the run {run_id} was deleted")
        view = run_progress.dag_run_view(title, tasks, airflow.task_instances(dag_id, run_id), datetime.now(UTC))
        progress.update(view)
        if run["state"] == "failed":
            raise _describe_failure(airflow, run, title)
        if run["state"] == "success":
            break
        airflow.check_scheduler()
        time.sleep(_POLL_INTERVAL_S)
    progress.clear()
    progress.print(f"✓ {title} in {format_duration(time.monotonic() - start)}:  {run_progress.format_steps(view)}")


def _run_id(as_of: str) -> str:
    return f"as_of_{as_of}"


def _describe_failure(airflow: AirflowClient, run: Json, title: str) -> RunFailedError:
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


def _show_results(
    airflow: AirflowClient,
    dag_id: str,
    model: ModelSpec,
    as_of: str,
    addresses: ServiceAddresses,
    progress: Progress,
) -> Json:
    champion = results.fetch_champion_version(addresses.mlflow, model.name)
    outcome = {"model": model.name, "as_of": as_of, "champion": champion}
    if pause := RetrainPlan.load(_load_xcom(airflow, dag_id, as_of, "plan")).pause:
        results.show_pause(progress, pause, champion)
        return {**outcome, "verdict": None, "promoted": False, "report": None, "pause": pause}
    candidate = JudgedCandidate.load(_load_xcom(airflow, dag_id, as_of, "judge"))
    verdict = candidate.verdict_event(model.name).verdict
    instances = airflow.task_instances(dag_id, _run_id(as_of))
    promoted = any(i["task_id"] == "promote" and i["state"] == "success" for i in instances)
    results.show_gate_table(progress, f"{model.name} as of {as_of}", verdict, model.gates)
    # The file in the lake may not be reachable for users of an external Airflow, which serves it, too.
    page = f"{addresses.airflow_ui}/evergreen/{dag_id}/verdicts/{candidate.entry}"
    report = page if settings().airflow else candidate.report
    progress.print(f"gate report: {report}")
    results.show_promotion_outcome(progress, verdict, promoted, champion)
    return {
        **outcome,
        "verdict": verdict.model_dump(mode="json"),
        "promoted": promoted,
        "report": report,
        "pause": None,
    }


def _load_xcom(airflow: AirflowClient, dag_id: str, as_of: str, task_id: str) -> Json:
    xcom = airflow.xcom(dag_id, _run_id(as_of), task_id)
    return json.loads(xcom) if isinstance(xcom, str) else xcom
