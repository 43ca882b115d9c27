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

from evergreen import ledger
from evergreen.cli.progress import Progress, View, duration
from evergreen.client.airflow import Airflow, AirflowError, ConflictError, Json
from evergreen.errors import EvergreenError
from evergreen.features.inputs import dataset, span
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import Model
from evergreen.window import days_between, midnight
from evergreen_local import plan, report, stack, watching

_LOOK = 2.0  # seconds between two looks; each costs the API server a few hundredths of a CPU second
_PARSED_WITHIN = 120.0
_AT_ONCE = 4  # days under way at the same time


class RunFailedError(EvergreenError):
    """A DAG run failed; the sentence names it, and says why."""


def retrain(name: str, progress: Progress) -> None:
    """Bring the model `name` a week further; the first time, two weeks, so that there is a champion to beat.

    Raises:
        EvergreenError: whatever stopped it, in words.
    """
    began = time.monotonic()
    model = loader.load(name)
    raw = _raw(model)
    started = stack.start(progress)
    addresses = stack.wait(progress, started)
    airflow = Airflow(addresses.airflow, addresses.airflow_ui)
    features, retraining = f"{model.features_of}.features", f"{model.name}.retrain"
    _wait_until_parsed(airflow, [features, retraining], progress)
    last_day = feature_spec(model).last_day
    dates = plan.as_of_dates(_finished(airflow, retraining), last_day)
    if not dates:
        progress.say(f"the data of {name} ends with {last_day}: there is no further week to train on")
    for as_of in dates:
        days = _days(model, as_of)
        _deliver(raw, model, as_of, progress)
        _backfill(airflow, features, model, days, progress)
        _run(airflow, retraining, as_of, progress)
        _tell(airflow, retraining, model, as_of, addresses, progress)
    report.closing(progress, addresses, time.monotonic() - began)


def _raw(model: Model) -> ModuleType:
    """The module that stands for the world that delivers raw data."""
    name = f"evergreen_models.{model.features_of}.raw"
    if find_spec(name) is None:
        raise EvergreenError(
            f"{name} does not exist, so nothing can deliver raw days of {model.features_of}: "
            f"put them into the lake, then run {model.features_of}.features and "
            f"{model.name}.retrain in Airflow"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what packages of data think of setuptools is nothing to act on here
        return import_module(name)


def _days(model: Model, as_of: date) -> Sequence[date]:
    """The days of features that a retrain as of `as_of` reads."""
    return days_between(max(feature_spec(model).first_day, as_of - timedelta(model.history_days)), as_of)


def _deliver(raw: ModuleType, model: Model, as_of: date, progress: Progress) -> None:
    spec = feature_spec(model)
    trailing = max((source.trailing_days for source in spec.sources), default=0)
    days = days_between(max(spec.first_day, _days(model, as_of)[0] - timedelta(trailing)), as_of)
    daily = [source.name for source in spec.sources if source.daily]
    missing = [day for day in days if not all(raw_files.raw_file(source, day).exists() for source in daily)]
    if missing:
        progress.show(View("delivering raw days", 0, len(missing), "days"))
        raw.deliver(days)
        progress.rest()
        progress.say(f"✓ delivered raw data: {span(missing)}")


def _wait_until_parsed(airflow: Airflow, dag_ids: Sequence[str], progress: Progress) -> None:
    asked = datetime.now(UTC)
    while unknown := [dag_id for dag_id in dag_ids if airflow.dag(dag_id) is None]:
        progress.show(View("Airflow parses the DAGs", len(dag_ids) - len(unknown), len(dag_ids), "DAGs"))
        waited = (datetime.now(UTC) - asked).total_seconds()
        errors = airflow.import_errors()
        # An error found before we asked may be of a file that has been mended since.
        current = [error for error in errors if datetime.fromisoformat(error["timestamp"]) >= asked]
        if current or waited > _PARSED_WITHIN:
            problems = [
                f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}" for error in errors
            ]
            raise AirflowError("\n".join([f"Airflow does not know {', '.join(unknown)}", *problems]))
        time.sleep(_LOOK)
    progress.rest()
    for dag_id in dag_ids:
        airflow.pause(dag_id, False)


def _finished(airflow: Airflow, dag_id: str) -> set[date]:
    runs = airflow.runs(dag_id, state=["success"])
    return {date.fromisoformat(run["conf"]["as_of"]) for run in runs if (run["conf"] or {}).get("as_of")}


def _backfill(airflow: Airflow, dag_id: str, model: Model, days: Sequence[date], progress: Progress) -> None:
    """Have the features of all `days` published."""
    began = time.monotonic()
    missing: list[date] = []
    asked = False
    while not asked:
        _wait_for_active_backfill(airflow, dag_id, model, progress)
        missing = _unpublished(model, days)
        if not missing:
            progress.say(f"✓ {dag_id}: all {len(days)} days up to {days[-1]} are published")
            return
        asked = _ask_for_backfill(airflow, dag_id, model, missing, progress)
    while True:
        runs = _look(airflow, dag_id, model, missing, progress)
        if failed := [day for day in missing if day in runs and runs[day]["state"] == "failed"]:
            raise _failure(airflow, runs[failed[0]], f"{dag_id} of {failed[0]}")
        if watching.settled(runs, missing):
            break
        time.sleep(_LOOK)
    progress.rest()
    if still := _unpublished(model, missing):
        raise RunFailedError(
            f"{dag_id} succeeded, but {still[0]} is not published: {airflow.url}/dags/{dag_id}"
        )
    took = duration(time.monotonic() - began)
    progress.say(f"✓ {dag_id}: backfilled {span(missing)}, in {took}")


def _ask_for_backfill(
    airflow: Airflow, dag_id: str, model: Model, missing: Sequence[date], progress: Progress
) -> bool:
    """Ask for runs of the `missing` days; False if somebody else's backfill came first."""
    progress.show(View(f"{dag_id}: asking for a backfill", 0, len(missing), "days"))
    zone = feature_spec(model).timezone
    start, end = midnight(missing[0], zone), midnight(missing[-1], zone)
    runs = _runs(airflow, dag_id, model, missing)
    # Airflow passes over runs that succeeded, even if what they had published is gone.
    lost = any(day in runs and runs[day]["state"] == "success" for day in missing)
    try:
        airflow.backfill(dag_id, start, end, "completed" if lost else "failed", _AT_ONCE)
    except ConflictError:
        return False
    return True


def _wait_for_active_backfill(airflow: Airflow, dag_id: str, model: Model, progress: Progress) -> None:
    """A DAG has one backfill at a time: wait for the one that an earlier call, or a person, asked for."""
    zone = ZoneInfo(feature_spec(model).timezone)
    known = None
    while active := airflow.active_backfill(dag_id):
        if active["id"] != known:
            known = active["id"]
            progress.say(f"{dag_id}: a backfill is under way already, waiting for it")
            airflow.go_on(active)
        first, last = (
            datetime.fromisoformat(active[end]).astimezone(zone).date() for end in ("from_date", "to_date")
        )
        _look(airflow, dag_id, model, days_between(first, last + timedelta(1)), progress)
        time.sleep(_LOOK)
    progress.rest()


def _look(
    airflow: Airflow, dag_id: str, model: Model, days: Sequence[date], progress: Progress
) -> dict[date, Json]:
    """Look at the runs of `days` once, and show how far they are."""
    runs = _runs(airflow, dag_id, model, days)
    instances = airflow.task_instances(dag_id, states=watching.ACTIVE)
    progress.show(watching.backfill_view(dag_id, days, runs, instances, datetime.now(UTC)))
    airflow.check_scheduler()
    return runs


def _unpublished(model: Model, days: Sequence[date]) -> list[date]:
    published = dataset(model)
    return [day for day in days if published.manifest(datasets.day_partition(day)) is None]


def _runs(airflow: Airflow, dag_id: str, model: Model, days: Sequence[date]) -> dict[date, Json]:
    zone = feature_spec(model).timezone
    runs = airflow.runs(
        dag_id,
        logical_date_gte=midnight(days[0], zone).isoformat(),
        logical_date_lte=midnight(days[-1], zone).isoformat(),
    )
    return watching.by_day(runs, ZoneInfo(zone))


def _run(airflow: Airflow, dag_id: str, as_of: date, progress: Progress) -> None:
    """Have one run for `as_of`, whatever became of an earlier attempt at it, and wait for it."""
    run_id = _run_id(as_of)
    title = f"{dag_id} as of {as_of}"
    known = airflow.run(dag_id, run_id)
    if known and known["state"] == "failed":
        progress.say(f"{title} failed before: running again what failed")
        airflow.clear_failed(dag_id, run_id)
    elif not known:
        with suppress(ConflictError):  # somebody else has just started it
            airflow.trigger(dag_id, run_id, {"as_of": as_of.isoformat()})
    began = time.monotonic()
    tasks = airflow.tasks(dag_id)
    while True:
        run = airflow.run(dag_id, run_id)
        if run is None:
            raise RunFailedError(f"{title}: somebody has deleted the run {run_id}")
        view = watching.run_view(title, tasks, airflow.task_instances(dag_id, run_id), datetime.now(UTC))
        progress.show(view)
        if run["state"] == "failed":
            raise _failure(airflow, run, title)
        if run["state"] == "success":
            break
        airflow.check_scheduler()
        time.sleep(_LOOK)
    progress.rest()
    progress.say(f"✓ {title} in {duration(time.monotonic() - began)}:  {watching.chain(view)}")


def _run_id(as_of: date) -> str:
    return f"as_of_{as_of}"


def _failure(airflow: Airflow, run: Json, title: str) -> RunFailedError:
    """Which task of the run failed, the end of its log, and where to see it."""
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    failed = airflow.task_instances(dag_id, run_id, states=["failed"])
    if not failed:
        return RunFailedError(f"{title} failed, run {run_id}\n{airflow.page(dag_id, run_id)}")
    first = min(failed, key=lambda instance: instance["end_date"] or "")
    return RunFailedError(
        "\n".join(
            [
                f"{title} failed in task {first['task_id']}, run {run_id}",
                *(f"  {line}" for line in watching.error_lines(airflow.log(first))),
                airflow.page(dag_id, run_id, first["task_id"]),
                "Once that is mended, the same command goes on from there.",
            ]
        )
    )


def _tell(
    airflow: Airflow, dag_id: str, model: Model, as_of: date, addresses: stack.Addresses, progress: Progress
) -> None:
    judged = airflow.xcom(dag_id, _run_id(as_of), "judge")
    judged = json.loads(judged) if isinstance(judged, str) else judged
    verdict = ledger.judged(model.name, judged["entry"]).verdict
    instances = airflow.task_instances(dag_id, _run_id(as_of))
    promoted = any(i["task_id"] == "promote" and i["state"] == "success" for i in instances)
    report.gates(progress, f"{model.name} as of {as_of}", verdict)
    # The file is in the lake, which may be out of reach of whoever reads this; Airflow shows it, too.
    elsewhere = f"{addresses.airflow_ui}/evergreen/{dag_id}/verdicts/{judged['entry']}"
    progress.say(f"gate report: {elsewhere if settings().airflow else judged['report']}")
    report.outcome(progress, verdict, promoted, report.champion(addresses.mlflow, model.name))
