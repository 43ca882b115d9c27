"""`evergreen retrain`: from raw data to a verdict, through Airflow, with progress in the terminal.

A model whose folder has a `raw.py` simulates the delivery of its data, as the examples do: each call delivers the raw
data up to its next scheduled retrain. For all other models the data that is delivered decides. The command stores
no state of its own but reads Airflow and the lake, so an interrupted or failed call is simply repeated.

A run that is over is shown, and not repeated, only while a retrain would use just what it has used: a verdict is never
shown for code that it is not about.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from evergreen import ledger
from evergreen.client.addresses import ServiceAddresses
from evergreen.client.airflow import FINISHED_RUN_STATES, AirflowClient, AirflowConflictError, Json
from evergreen.features import inputs
from evergreen.ingest import raw_files
from evergreen.ingest.watcher import WatchedSource, list_complete_periods
from evergreen.orchestration.handover import JudgedCandidate
from evergreen.periods import Calendar
from evergreen.promotion.challengers import training_pause
from evergreen.promotion.changed_inputs import find_changed_inputs
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ModelSpec
from evergreen_local import earlier_runs, results, run_progress, schedule, stack
from evergreen_local.backfilling import (
    POLL_INTERVAL_S,
    RunFailedError,
    describe_failure,
    periods_without_features,
    print_published,
    require_published,
    wait_until_parsed,
)
from evergreen_local.progress import Progress, ProgressView, format_duration

_RUNS_AT_ONCE = 2  # of features: one computes while the other waits for Airflow


def retrain_model(name: str, as_of: str | None, progress: Progress) -> list[Json]:
    """Build the features of the model `name` that are missing, retrain it, and show the verdict.

    Returns one record for each retrain: date, verdict, whether it was promoted, champion, where the report is, and what
    the run has used otherwise than it is here.

    Args:
        name: Name of the model folder.
        as_of: Retrain with what was known at the start of this period. Default: after the newest with all raw data, if
            anything is new; with simulated data the next scheduled one, and at first two, so that there is a champion
            to beat.
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
    monitoring = [f"{model.name}.monitor"] if model.monitor else []
    wait_until_parsed(airflow, [features, retraining, *monitoring], progress)
    dates = [as_of] if as_of else _next_as_of_periods(airflow, retraining, model, raw, progress)
    outcomes = []
    for period in dates:
        if raw:
            _deliver_raw_periods(raw, model, period, progress)
        periods = _feature_periods(model, period)
        _build_features(airflow, features, model, periods, progress)
        _wait_for_active_runs(airflow, features, model, periods, progress)
        if monitoring and ledger.read_state(model.name).challenger:
            _run_as_of(airflow, monitoring[0], period, progress)
        run_id = _retrain_as_of(airflow, retraining, model, period, progress)
        outcomes.append(_show_results(airflow, retraining, run_id, model, period, addresses, progress))
    results.show_summary(progress, addresses, time.monotonic() - start)
    return outcomes


def _next_as_of_periods(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, raw: ModuleType | None, progress: Progress
) -> list[str]:
    """Return the periods to retrain as of: those that are due, or the last one again.

    That is so if it would use other inputs, or if its newest run has not succeeded.
    """
    spec, finished = feature_spec(model), _finished_as_of_periods(airflow, dag_id)
    if raw:
        dates = schedule.simulated_as_of_periods(model, spec, finished)
        end, last = str(spec.last_day), max(finished, default="")
    else:
        delivered = _delivered_periods(model)
        dates = schedule.newest_as_of_period(model, spec.calendar, delivered, finished)
        end, last = max(delivered), spec.calendar.shift(max(delivered), 1)
    if dates:
        return dates
    run = earlier_runs.newest_run(airflow, dag_id, last)
    # Of one that has failed after another, or goes on, there is no verdict yet.
    if run and (run["state"] != "success" or _reasons_to_repeat(airflow, dag_id, model, last, run)):
        return [last]
    progress.print(
        f"the data of {model.name} ends on {end}, the retrain after that is done, and nothing that it used has changed "
        f"since; `evergreen retrain {model.name} --as-of {last}` shows it"
    )
    return []


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


def _finished_as_of_periods(airflow: AirflowClient, dag_id: str) -> set[str]:
    runs = airflow.dag_runs(dag_id, state=["success"])
    return {run["conf"]["as_of"] for run in runs if (run["conf"] or {}).get("as_of")}


def _build_features(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str], progress: Progress
) -> None:
    """Publish the features of those of `periods` that are missing, by runs of as many periods as one job may build.

    A backfill would be a run per period, of which most only find that their period is published.
    """
    start, spec = time.monotonic(), feature_spec(model)
    missing = periods_without_features(model, periods)
    if not missing:
        print_published(dag_id, spec.calendar, periods, progress)
        return
    active: deque[_Run] = deque()
    for chunk in _split_into_stretches(spec.calendar, missing, inputs.max_periods_per_run(spec)):
        if len(active) == _RUNS_AT_ONCE:
            _wait_for_run(airflow, active.popleft(), progress, active)
        conf = {"start": chunk[0], "end": chunk[-1], "announce": False}  # nobody is to retrain by itself meanwhile
        run = _Run(dag_id, f"from_{chunk[0]}_to_{chunk[-1]}", conf, f"{dag_id} of {spec.calendar.describe(chunk)}")
        # A run that failed may have published some of its periods, and one that succeeded may be older than the lake.
        _start_run(airflow, run, progress, whole=True)
        active.append(run)
    while active:
        _wait_for_run(airflow, active.popleft(), progress, active)
    require_published(airflow, dag_id, model, missing)
    duration = format_duration(time.monotonic() - start)
    progress.print(f"✓ {dag_id}: built {spec.calendar.describe(missing)}, in {duration}")


def _wait_for_active_runs(
    airflow: AirflowClient, dag_id: str, model: ModelSpec, periods: Sequence[str], progress: Progress
) -> None:
    """Wait for the runs that are active now, such as those of arrivals, if they may publish one of `periods` again.

    On this machine they do not if what is published is made from what is here now.
    """
    awaited = _active_runs(airflow, dag_id)
    if awaited and not settings().airflow:
        fingerprints = inputs.compute_period_fingerprints(model, periods)
        awaited = awaited if inputs.unpublished_periods(model, fingerprints) else set()
    count = len(awaited)
    while awaited:
        progress.update(ProgressView(f"{dag_id}: waiting for other runs", count - len(awaited), count, "runs"))
        time.sleep(POLL_INTERVAL_S)
        airflow.check_scheduler()
        awaited &= _active_runs(airflow, dag_id)
    progress.clear()


def _active_runs(airflow: AirflowClient, dag_id: str) -> set[str]:
    return {run["dag_run_id"] for run in airflow.dag_runs(dag_id, state=["queued", "running"])}


def _split_into_stretches(calendar: Calendar, periods: Sequence[str], size: int) -> list[list[str]]:
    """Return the periods in lists of at most `size` that follow one another: a run is about all between two of them."""
    stretches: list[list[str]] = []
    for period in periods:
        if stretches and len(stretches[-1]) < size and calendar.shift(stretches[-1][-1], 1) == period:
            stretches[-1].append(period)
        else:
            stretches.append([period])
    return stretches


def _run_as_of(airflow: AirflowClient, dag_id: str, as_of: str, progress: Progress) -> None:
    """Start the run for `as_of`, or continue an earlier attempt, and wait for it."""
    run = _Run(dag_id, earlier_runs.run_ids(as_of, 1)[0], {"as_of": as_of}, f"{dag_id} as of {as_of}")
    _start_run(airflow, run, progress)
    _wait_for_run(airflow, run, progress)


def _retrain_as_of(airflow: AirflowClient, dag_id: str, model: ModelSpec, as_of: str, progress: Progress) -> str:
    """Wait for a run as of `as_of` that uses what is here now, and return its id.

    It is the newest one, which may have to go on; or another, if what that has made is outdated.
    """
    title, run = f"{dag_id} as of {as_of}", earlier_runs.newest_run(airflow, dag_id, as_of)
    run_id = run["dag_run_id"] if run else earlier_runs.run_ids(as_of, 1)[0]
    if run and (reasons := _reasons_to_repeat(airflow, dag_id, model, as_of, run)):
        progress.print(f"{title} has run before, and is run again: {'; '.join(reasons)}")
        _print_newer_data_is_needed(model, as_of, progress)
        run_id = earlier_runs.unused_run_id(airflow, dag_id, as_of)
    elif run and run["state"] == "success":
        progress.print(f"{title} has run before, and nothing that it uses has changed since")
    due = _Run(dag_id, run_id, {"as_of": as_of}, title)
    _start_run(airflow, due, progress)
    _wait_for_run(airflow, due, progress)
    return run_id


def _reasons_to_repeat(airflow: AirflowClient, dag_id: str, model: ModelSpec, as_of: str, run: Json) -> list[str]:
    """Return why a run that is over is not the retrain as of `as_of` any more; nothing if it is, or if it goes on."""
    if run["state"] not in FINISHED_RUN_STATES:
        return []
    references = earlier_runs.read_references(airflow, dag_id, run["dag_run_id"])
    if references:
        return find_changed_inputs(model, references)
    if run["state"] == "failed":
        return []  # before it has made anything: its failed tasks run again
    if not earlier_runs.read_pause(airflow, dag_id, run["dag_run_id"]):
        return ["Airflow does not know any more what it has made"]
    paused = training_pause(ledger.read_state(model.name), model, as_of)
    return [] if paused else ["what held it back is over"]


def _print_newer_data_is_needed(model: ModelSpec, as_of: str, progress: Progress) -> None:
    """Say that the new candidate is judged, but cannot replace the champion, if that is so."""
    state = ledger.read_state(model.name)
    if state.champion_as_of and as_of <= state.champion_as_of:
        progress.print(
            f"the champion, version {state.champion}, has data until {state.champion_as_of}: a version as of {as_of} "
            "is judged, and only one as of a later period can replace it",
            style="yellow",
        )


@dataclass(frozen=True)
class _Run:
    dag_id: str
    run_id: str
    conf: Json
    title: str


def _start_run(airflow: AirflowClient, due: _Run, progress: Progress, *, whole: bool = False) -> None:
    """Start a run, or go on with an earlier one.

    Of one that failed its failed tasks run again; `whole`: of one that has ended all tasks.
    """
    run = airflow.dag_run(due.dag_id, due.run_id)
    if run and run["state"] in (("failed", "success") if whole else ("failed",)):
        if run["state"] == "failed":
            progress.print(f"{due.title} failed before: running {'it' if whole else 'its failed tasks'} again")
        airflow.clear_tasks(due.dag_id, due.run_id, only_failed=not whole)
    elif not run:
        with suppress(AirflowConflictError):  # another process has just started it
            airflow.trigger_dag_run(due.dag_id, due.run_id, due.conf)


def _wait_for_run(
    airflow: AirflowClient, awaited: _Run, progress: Progress, parallel_runs: Iterable[_Run] = ()
) -> None:
    """Wait until a run has succeeded, or one of `parallel_runs` has failed."""
    start = time.monotonic()
    tasks = airflow.task_ids(awaited.dag_id)
    while True:
        run = airflow.dag_run(awaited.dag_id, awaited.run_id)
        if run is None:
            raise RunFailedError(f"{awaited.title}: the run {awaited.run_id} was deleted")
        instances = airflow.task_instances(awaited.dag_id, awaited.run_id)
        view = run_progress.dag_run_view(awaited.title, tasks, instances, datetime.now(UTC))
        progress.update(view)
        if run["state"] == "failed":
            raise describe_failure(airflow, run, awaited.title)
        if run["state"] == "success":
            break
        for parallel in parallel_runs:
            if (run := airflow.dag_run(parallel.dag_id, parallel.run_id)) and run["state"] == "failed":
                raise describe_failure(airflow, run, parallel.title)
        airflow.check_scheduler()
        time.sleep(POLL_INTERVAL_S)
    progress.clear()
    duration = format_duration(time.monotonic() - start)
    progress.print(f"✓ {awaited.title} in {duration}:  {run_progress.format_steps(view)}")


def _show_results(
    airflow: AirflowClient,
    dag_id: str,
    run_id: str,
    model: ModelSpec,
    as_of: str,
    addresses: ServiceAddresses,
    progress: Progress,
) -> Json:
    champion = results.fetch_champion_version(addresses.mlflow, model.name)
    outcome = {"model": model.name, "as_of": as_of, "champion": champion}
    if pause := earlier_runs.read_pause(airflow, dag_id, run_id):
        results.show_pause(progress, pause, champion)
        return {**outcome, "verdict": None, "promoted": False, "report": None, "pause": pause, "outdated_by": []}
    candidate = JudgedCandidate.load(earlier_runs.load_xcom(airflow, dag_id, run_id, "judge"))
    # The workers of this machine have what is here; to compare takes five seconds, most of them the import of Feast.
    references = earlier_runs.read_references(airflow, dag_id, run_id) if settings().airflow else None
    changes = find_changed_inputs(model, references) if references else []
    if changes:
        results.show_outdated(progress, f"{dag_id} as of {as_of}", changes)
    verdict = candidate.verdict_event(model.name).verdict
    instances = airflow.task_instances(dag_id, run_id)
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
        "outdated_by": changes,
    }
