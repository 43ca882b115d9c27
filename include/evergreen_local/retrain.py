"""`evergreen retrain`: from raw days to a verdict, through Airflow, a week further at each call.

What was done before is read from Airflow and the lake, never remembered here: a call that was interrupted,
or failed, is simply made again.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from zoneinfo import ZoneInfo

from evergreen.cli.progress import Progress, ProgressView, format_duration
from evergreen.client.airflow import AirflowClient, AirflowConflictError, AirflowError, Json
from evergreen.errors import EvergreenError
from evergreen.features.inputs import features_dataset, format_days
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.orchestration.handover import JudgedCandidate
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import days_between, midnight
from evergreen_local import plan, report, stack, watching

_POLL_INTERVAL_S = 2.0  # seconds between two looks; each costs the API server a few hundredths of a CPU second
_PARSE_TIMEOUT_S = 120.0
_MAX_ACTIVE_RUNS = 4  # days under way at the same time


class RunFailedError(EvergreenError):
    """A DAG run failed; the sentence names it, and says why."""


def advance_demo(name: str, progress: Progress) -> None:
    """Bring the model `name` a week further; the first time, two weeks, so that there is a champion to beat.

    Raises:
        EvergreenError: whatever stopped it, in words.
    """
    began = time.monotonic()
    model = loader.load_spec(name)
    raw = _raw_module(model)
    started = stack.start_stack(progress)
    addresses = stack.wait_for_stack(progress, started)
    airflow = AirflowClient(addresses.airflow, addresses.airflow_ui)
    features, retraining = f"{model.feature_model}.features", f"{model.name}.retrain"
    _wait_until_parsed(airflow, [features, retraining], progress)
    last_day = feature_spec(model).last_day
    dates = plan.as_of_dates(_finished_as_of_dates(airflow, retraining), last_day)
    if not dates:
        progress.print(f"the data of {name} ends with {last_day}: there is no further week to train on")
    for as_of in dates:
        days = _feature_days(model, as_of)
        _deliver_raw_days(raw, model, as_of, progress)
        _backfill_features(airflow, features, model, days, progress)
        _run_retraining(airflow, retraining, as_of, progress)
        _show_results(airflow, retraining, model, as_of, addresses, progress)
    report.show_summary(progress, addresses, time.monotonic() - began)


def _raw_module(model: ModelSpec) -> ModuleType:
    """The module that stands for the world that delivers raw data."""
    name = f"evergreen_models.{model.feature_model}.raw"
    if find_spec(name) is None:
        raise EvergreenError(
            f"{name} does not exist, so nothing can deliver raw days of {model.feature_model}: "
            f"put them into the lake, then run {model.feature_model}.features and "
            f"{model.name}.retrain in Airflow"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what packages of data think of setuptools is nothing to act on here
        return import_module(name)


def _feature_days(model: ModelSpec, as_of: date) -> Sequence[date]:
    """The days of features that a retrain as of `as_of` reads."""
    return days_between(max(feature_spec(model).first_day, as_of - timedelta(model.history_days)), as_of)


def _deliver_raw_days(raw: ModuleType, model: ModelSpec, as_of: date, progress: Progress) -> None:
    spec = feature_spec(model)
    trailing = max((source.trailing_days for source in spec.sources), default=0)
    days = days_between(max(spec.first_day, _feature_days(model, as_of)[0] - timedelta(trailing)), as_of)
    daily = [source.name for source in spec.sources if source.daily]
    missing = [day for day in days if not all(raw_files.raw_file(source, day).exists() for source in daily)]
    if missing:
        progress.update(ProgressView("delivering raw days", 0, len(missing), "days"))
        raw.deliver(days)
        progress.clear()
        progress.print(f"✓ delivered raw data: {format_days(missing)}")


def _wait_until_parsed(airflow: AirflowClient, dag_ids: Sequence[str], progress: Progress) -> None:
    asked = datetime.now(UTC)
    while unknown := [dag_id for dag_id in dag_ids if airflow.dag(dag_id) is None]:
        progress.update(ProgressView("Airflow parses the DAGs", len(dag_ids) - len(unknown), len(dag_ids), "DAGs"))
        waited = (datetime.now(UTC) - asked).total_seconds()
        errors = airflow.import_errors()
        # An error found before we asked may be of a file that has been mended since.
        current = [error for error in errors if datetime.fromisoformat(error["timestamp"]) >= asked]
        if current or waited > _PARSE_TIMEOUT_S:
            problems = [f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}" for error in errors]
            raise AirflowError("\n".join([f"Airflow does not know {', '.join(unknown)}", *problems]))
        time.sleep(_POLL_INTERVAL_S)
    progress.clear()
    for dag_id in dag_ids:
        airflow.set_dag_paused(dag_id, False)


def _finished_as_of_dates(airflow: AirflowClient, dag_id: str) -> set[date]:
    runs = airflow.dag_runs(dag_id, state=["success"])
    return {date.fromisoformat(run["conf"]["as_of"]) for run in runs if (run["conf"] or {}).get("as_of")}


def _backfill_features(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, days: Sequence[date], progress: Progress
) -> None:
    """Have the features of all `days` published."""
    began = time.monotonic()
    missing: list[date] = []
    asked = False
    while not asked:
        _wait_for_active_backfill(airflow, dag_id, model, progress)
        missing = _unpublished_days(model, days)
        if not missing:
            progress.print(f"✓ {dag_id}: all {len(days)} days up to {days[-1]} are published")
            return
        asked = _request_backfill(airflow, dag_id, model, missing, progress)
    while True:
        runs = _poll_backfill(airflow, dag_id, model, missing, progress)
        if failed := [day for day in missing if day in runs and runs[day]["state"] == "failed"]:
            raise _describe_failure(airflow, runs[failed[0]], f"{dag_id} of {failed[0]}")
        if watching.all_runs_finished(runs, missing):
            break
        time.sleep(_POLL_INTERVAL_S)
    progress.clear()
    if still := _unpublished_days(model, missing):
        raise RunFailedError(f"{dag_id} succeeded, but {still[0]} is not published: {airflow.url}/dags/{dag_id}")
    took = format_duration(time.monotonic() - began)
    progress.print(f"✓ {dag_id}: backfilled {format_days(missing)}, in {took}")


def _request_backfill(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, missing: Sequence[date], progress: Progress
) -> bool:
    """Ask for runs of the `missing` days; False if somebody else's backfill came first."""
    progress.update(ProgressView(f"{dag_id}: asking for a backfill", 0, len(missing), "days"))
    zone = feature_spec(model).timezone
    start, end = midnight(missing[0], zone), midnight(missing[-1], zone)
    runs = _runs_by_day(airflow, dag_id, model, missing)
    # Airflow passes over runs that succeeded, even if what they had published is gone.
    lost = any(day in runs and runs[day]["state"] == "success" for day in missing)
    try:
        airflow.create_backfill(dag_id, start, end, "completed" if lost else "failed", _MAX_ACTIVE_RUNS)
    except AirflowConflictError:
        return False
    return True


def _wait_for_active_backfill(airflow: AirflowClient, dag_id: str, model: ModelSpec, progress: Progress) -> None:
    """A DAG has one backfill at a time: wait for the one that an earlier call, or a person, asked for."""
    zone = ZoneInfo(feature_spec(model).timezone)
    known = None
    while active := airflow.active_backfill(dag_id):
        if active["id"] != known:
            known = active["id"]
            progress.print(f"{dag_id}: a backfill is under way already, waiting for it")
            airflow.unpause_backfill(active)
        first, last = (datetime.fromisoformat(active[end]).astimezone(zone).date() for end in ("from_date", "to_date"))
        _poll_backfill(airflow, dag_id, model, days_between(first, last + timedelta(1)), progress)
        time.sleep(_POLL_INTERVAL_S)
    progress.clear()


def _poll_backfill(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, days: Sequence[date], progress: Progress
) -> dict[date, Json]:
    """Look at the runs of `days` once, and show how far they are."""
    runs = _runs_by_day(airflow, dag_id, model, days)
    instances = airflow.task_instances(dag_id, states=watching.ACTIVE_TASK_STATES)
    progress.update(watching.backfill_view(dag_id, days, runs, instances, datetime.now(UTC)))
    airflow.check_scheduler()
    return runs


def _unpublished_days(model: ModelSpec, days: Sequence[date]) -> list[date]:
    published = features_dataset(model)
    return [day for day in days if published.manifest(datasets.day_partition(day)) is None]


def _runs_by_day(airflow: AirflowClient, dag_id: str, model: ModelSpec, days: Sequence[date]) -> dict[date, Json]:
    zone = feature_spec(model).timezone
    runs = airflow.dag_runs(
        dag_id,
        logical_date_gte=midnight(days[0], zone).isoformat(),
        logical_date_lte=midnight(days[-1], zone).isoformat(),
    )
    return watching.runs_by_day(runs, ZoneInfo(zone))


def _run_retraining(airflow: AirflowClient, dag_id: str, as_of: date, progress: Progress) -> None:
    """Have one run for `as_of`, whatever became of an earlier attempt at it, and wait for it."""
    run_id = _run_id(as_of)
    title = f"{dag_id} as of {as_of}"
    known = airflow.dag_run(dag_id, run_id)
    if known and known["state"] == "failed":
        progress.print(f"{title} failed before: running again what failed")
        airflow.clear_failed_tasks(dag_id, run_id)
    elif not known:
        with suppress(AirflowConflictError):  # somebody else has just started it
            airflow.trigger_dag_run(dag_id, run_id, {"as_of": as_of.isoformat()})
    began = time.monotonic()
    tasks = airflow.task_ids(dag_id)
    while True:
        run = airflow.dag_run(dag_id, run_id)
        if run is None:
            raise RunFailedError(f"{title}: somebody has deleted the run {run_id}")
        view = watching.dag_run_view(title, tasks, airflow.task_instances(dag_id, run_id), datetime.now(UTC))
        progress.update(view)
        if run["state"] == "failed":
            raise _describe_failure(airflow, run, title)
        if run["state"] == "success":
            break
        airflow.check_scheduler()
        time.sleep(_POLL_INTERVAL_S)
    progress.clear()
    progress.print(f"✓ {title} in {format_duration(time.monotonic() - began)}:  {watching.format_steps(view)}")


def _run_id(as_of: date) -> str:
    return f"as_of_{as_of}"


def _describe_failure(airflow: AirflowClient, run: Json, title: str) -> RunFailedError:
    """Which task of the run failed, the end of its log, and where to see it."""
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    failed = airflow.task_instances(dag_id, run_id, states=["failed"])
    if not failed:
        return RunFailedError(f"{title} failed, run {run_id}\n{airflow.run_page_url(dag_id, run_id)}")
    first = min(failed, key=lambda instance: instance["end_date"] or "")
    return RunFailedError(
        "\n".join(
            [
                f"{title} failed in task {first['task_id']}, run {run_id}",
                *(f"  {line}" for line in watching.error_lines(airflow.log(first))),
                airflow.run_page_url(dag_id, run_id, first["task_id"]),
                "Once that is mended, the same command goes on from there.",
            ]
        )
    )


def _show_results(
    airflow: AirflowClient,
    dag_id: str,
    model: ModelSpec,
    as_of: date,
    addresses: stack.ServiceAddresses,
    progress: Progress,
) -> None:
    xcom = airflow.xcom(dag_id, _run_id(as_of), "judge")
    judged = JudgedCandidate.load(json.loads(xcom) if isinstance(xcom, str) else xcom)
    verdict = judged.verdict_event(model.name).verdict
    instances = airflow.task_instances(dag_id, _run_id(as_of))
    promoted = any(i["task_id"] == "promote" and i["state"] == "success" for i in instances)
    report.show_gate_table(progress, f"{model.name} as of {as_of}", verdict, model.gates)
    # The file is in the lake, which may be out of reach of whoever reads this; Airflow shows it, too.
    elsewhere = f"{addresses.airflow_ui}/evergreen/{dag_id}/verdicts/{judged.entry}"
    progress.print(f"gate report: {elsewhere if settings().airflow else judged.report}")
    report.show_promotion_outcome(
        progress, verdict, promoted, report.fetch_champion_version(addresses.mlflow, model.name)
    )
