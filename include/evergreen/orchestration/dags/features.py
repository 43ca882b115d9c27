"""The DAG that turns arriving raw days into published features.

`plan → check_raw → build → check_features → publish → announce`

Started by the clock for each day, by raw days that arrive, by a backfill, or by hand for any stretch of days.
However many runs want the same day, it is made once: the first run to come makes the days of the others that
are waiting along with its own, and they find them done.

**When a run ends after `plan`,** its days were published already; the log says with which fingerprint.

**When a run fails at `plan` or `check_raw`,** raw data is missing or breaks a rule; the log names file, column,
rule and count. Deliver the file again and clear the run. Nothing that was published before has changed.

**When it fails at `check_features`,** the code in the model's `features.py` made something impossible.

**Running it again** is always safe: a day that is published with the same inputs, code and parameters is
found and not made again. A day that was corrected is made again, with those days after it that look back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    AssetWatcher,
    BaseOperator,
    CronDataIntervalTimetable,
    Param,
    get_current_context,
)
from airflow.sdk.exceptions import AirflowSkipException

from evergreen.features import claims, inputs
from evergreen.ingest import raw_files, watcher
from evergreen.orchestration.dag_run import (
    RETRY_ARGS,
    dag_kwargs,
    dag_run_info,
    data_range_kwargs,
    fail_without_retry,
    model_features_window,
    skip_tasks,
    step,
)
from evergreen.orchestration.triggers.dag_runs import ACTIVE_STATES, DagRunsFinishedTrigger
from evergreen.orchestration.triggers.raw_days import RawDataTrigger
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.window import RunReason, days_between

if TYPE_CHECKING:
    from evergreen.features.checks import FaultsByDay

_ANNOUNCE = "announce"


def features_dag(model: ModelSpec) -> DAG:
    """`<model>.features`."""
    spec = feature_spec(model)
    with DAG(
        **dag_kwargs(model, "features", "Raw days to published features", __doc__),
        **data_range_kwargs(model),
        schedule=AssetOrTimeSchedule(
            timetable=CronDataIntervalTimetable(spec.schedule, timezone=spec.timezone),
            assets=[_raw_asset(model.name, spec)],
        ),
        # Also how many runs, those of backfills included, keep Airflow from making one of an arrival.
        max_active_runs=16,
        default_args={
            "owner": model.owner,
            **RETRY_ARGS,
            # A Spark driver that ran out of memory hangs rather than ends.
            "execution_timeout": timedelta(minutes=30),
        },
        params={
            "start": Param(None, type=["null", "string"], format="date", description="First day, if run by hand"),
            "end": Param(None, type=["null", "string"], format="date", description="Last day, included"),
            _ANNOUNCE: Param(
                None,
                type=["null", "boolean"],
                description="Start DAGs that wait for these features; empty: yes, but not from a backfill",
            ),
        },
    ) as dag:
        planned = PlanFeaturesOperator(task_id="plan", model=model.name).output
        checked = check_raw(model.name, planned)
        passed = check_features(model.name, planned, build(model.name, checked))
        published = publish(model.name, planned, checked, passed)
        published >> announce.override(outlets=[features_asset(model.name)])(model.name, planned)
    return dag


def features_asset(name: str) -> Asset:
    """The published features of the model `name`, as other DAGs can wait for them."""
    return Asset(name=f"{name}.features", uri=f"evergreen://features/{name}")


def _raw_asset(name: str, spec: FeatureSpec) -> Asset:
    """The raw days of `name`: whoever delivers them elsewhere may post this asset's event."""
    return Asset(
        name=f"{name}.raw",
        uri=f"evergreen://raw/{name}",
        watchers=[
            AssetWatcher(
                name=f"{name}.raw",
                trigger=RawDataTrigger(
                    prefix=str(raw_files.raw_folder()),
                    sources=[source.name for source in spec.sources if source.daily],
                    records_folder=str(_arrival_records_folder(name)),
                    timezone=spec.timezone,
                    first_day=spec.first_day.isoformat(),
                    last_day=spec.last_day.isoformat() if spec.last_day else None,
                ),
            )
        ],
    )


def _arrival_records_folder(name: str) -> Path:
    return settings().lake / "arrivals" / name


class PlanFeaturesOperator(BaseOperator):
    """Resolve which days the run is about, and which of them, and of other runs that wait, it will make.

    Ends the run here if they are published already. Waits, without a worker, for runs that are making them.
    """

    ui_color = "#e8f7e4"

    def __init__(self, *, model: str, **kwargs: Any):
        super().__init__(doc_md=PlanFeaturesOperator.__doc__, **kwargs)
        self.model = model

    def execute(self, context: Any, event: Any = None) -> dict[str, Any]:
        with fail_without_retry():
            return self._plan(context)

    def _plan(self, context: Any) -> dict[str, Any]:
        model, run = loader.load_spec(self.model), context["dag_run"]
        spec = feature_spec(model)
        window = model_features_window(model, dag_run_info(context, excluded_conf_keys=(_ANNOUNCE,)))
        print(f"{window.run_reason}: {', '.join(map(str, window.days))}")
        arrived = {day for day in _acknowledge_arrivals(model.name, run) if _is_in_data_range(spec, day)}
        days = sorted(arrived.union(window.days))
        if len(days) > len(window.days):
            more = ", ".join(map(str, sorted(arrived.difference(window.days))))
            print(f"has arrived as well, and no other run has it in hand: {more}")
        outdated = inputs.stale_days(model, days)
        if outdated:
            print(f"made from raw days that have changed since: {', '.join(map(str, outdated))}")
        required = inputs.compute_day_fingerprints(model, [*days, *outdated])
        todo = {day: mark for day, mark in required.items() if not inputs.find_published_day(model, day, mark)}
        for day in required.keys() - todo.keys():
            print(f"{day}: published already with fingerprint {required[day][:12]}")
        plan: dict[str, Any] = {"origin": window.run_reason.value, "days": sorted(required), "make": []}
        if todo:
            others = self._days_awaited_by_other_runs(context, spec, list(map(date.fromisoformat, todo)))
            along = {
                day: mark
                for day, mark in inputs.compute_day_fingerprints(model, others).items()
                if not inputs.find_published_day(model, day, mark)
            }
            mine, busy = claims.claim_days(model, run.run_id, todo, along, self._active_run_check(context))
            if busy:
                print(f"being made by {', '.join(busy)}: waiting for that")
                self.defer(trigger=DagRunsFinishedTrigger(self.dag_id, busy), method_name="execute")
            plan["make"] = mine
            if len(mine) > len(todo):
                print(f"{len(mine) - len(todo)} days that other runs are waiting for are made along")
        if plan["make"]:
            return plan
        # The run ends here; those who wait for the features still hear of them, if they are to.
        tasks = [task.task_id for task in self.get_flat_relatives(upstream=False)]
        to_be_told = _should_announce(context, window.run_reason)
        return skip_tasks(context, plan, [t for t in tasks if t != _ANNOUNCE or not to_be_told])

    def _days_awaited_by_other_runs(self, context: Any, spec: FeatureSpec, pending_days: Sequence[date]) -> list[date]:
        """Days around the run's own that unfinished runs of this DAG are about, and that can be made."""
        run = context["dag_run"]
        at_once = settings().max_days_per_run  # more are left to the runs that want them, to work side by side
        room = at_once - len(pending_days)
        if not (run.logical_date and run.data_interval_start) or run.run_type.value == "manual" or room <= 0:
            return []
        clock = run.logical_date.astimezone(ZoneInfo(spec.timezone))
        about = run.data_interval_start.astimezone(ZoneInfo(spec.timezone)).date()
        # A day that was not over when this run began may still be arriving.
        over = run.start_date.astimezone(ZoneInfo(spec.timezone)).date()
        end = min(over, spec.last_day + timedelta(1)) if spec.last_day else over

        def logical_date(day: date) -> datetime:
            moved = clock.replace(tzinfo=None) + (day - about)
            return moved.replace(tzinfo=clock.tzinfo)

        def count(days: Sequence[date]) -> int:
            found: int = context["ti"].get_dr_count(
                dag_id=self.dag_id, logical_dates=[logical_date(day) for day in days], states=ACTIVE_STATES
            )
            return found

        # Runs that start at once look at the same stretch of days, so that the first gets all of it.
        stretch = (about - spec.first_day).days // at_once * at_once
        first = spec.first_day + timedelta(stretch)
        days = days_between(first, min(first + timedelta(at_once), end))
        waiting = [day for day in days_with_runs(days, count) if day not in pending_days]
        return [day for day in waiting if not inputs.find_missing_raw_files(spec, [day])][:room]

    def _active_run_check(self, context: Any) -> Callable[[str], bool]:
        return lambda run_id: bool(
            context["ti"].get_dr_count(dag_id=self.dag_id, run_ids=[run_id], states=ACTIVE_STATES)
        )


def days_with_runs(days: Sequence[date], count_runs: Callable[[Sequence[date]], int]) -> list[date]:
    """Those of `days` that count: `count` tells how many of some days do, each asking is a request."""
    if not days:
        return []
    found = count_runs(days)
    if found in (0, len(days)):
        return list(days) if found else []
    half = len(days) // 2
    return days_with_runs(days[:half], count_runs) + days_with_runs(days[half:], count_runs)


def _acknowledge_arrivals(name: str, run: Any) -> set[date]:
    """Record that the arrivals that started this run are in hand: the watcher need not tell of them again.

    Gives their days, and those of arrivals whose events Airflow has dropped.
    """
    taken: set[str] = set()
    for event in run.consumed_asset_events:
        days = (event.extra.get("payload") or {}).get("days") if event.extra.get("from_trigger") else None
        if isinstance(days, dict):
            taken |= watcher.acknowledge_announcements(_arrival_records_folder(name), days, run.run_id).keys()
    return set(map(date.fromisoformat, taken))


def _is_in_data_range(spec: FeatureSpec, day: date) -> bool:
    return spec.first_day <= day <= (spec.last_day or day)


def _should_announce(context: Any, origin: RunReason) -> bool:
    asked = context["params"].get(_ANNOUNCE)
    return origin is not RunReason.BACKFILL if asked is None else bool(asked)


def _select_own_faults(plan: dict[str, Any], faults: FaultsByDay, label: str) -> FaultsByDay:
    """The faults of this run's own days; those of days that it makes along are told, and left to their runs."""
    own = {date.fromisoformat(day) for day in plan["days"]}
    for day in faults.keys() - own:
        print(f"{day} is left to its own run, its {label} faults: {'; '.join(map(str, faults[day]))}")
    return {day: wrong for day, wrong in faults.items() if day in own}


@step()
def check_raw(name: str, plan: dict[str, Any]) -> dict[str, str]:
    """Check the raw files that the days are made from (Great Expectations).

    Fails with every broken rule of this run's own days: file, column, rule, count. Faulty days of other runs
    are left to these. Gives the fingerprint of each day that can be made.
    """
    from evergreen.features import checks

    model, days = loader.load_spec(name), [date.fromisoformat(day) for day in plan["make"]]
    # Not those of `plan`: a file may have been replaced since, and only this task been cleared. Before the
    # checks: `publish` finds out if a file was replaced after this.
    there = [day for day in days if not inputs.find_missing_raw_files(feature_spec(model), [day])]
    marks = inputs.compute_day_fingerprints(model, there)
    faults = checks.check_raw_files(model, days)
    checks.raise_raw_faults(model, _select_own_faults(plan, faults, "raw data has"))
    return {day: mark for day, mark in marks.items() if date.fromisoformat(day) not in faults}


@step()
def build(name: str, fingerprints: dict[str, str]) -> dict[str, str]:
    """Compute the features of the days (Spark), all in one go, into folders that nobody reads yet."""
    from evergreen.features import build as builder

    return builder.build_features(loader.load_spec(name), fingerprints)


@step()
def check_features(name: str, plan: dict[str, Any], folders: dict[str, str]) -> dict[str, str]:
    """Check the computed features (Great Expectations); nothing is visible to anybody before this passes."""
    from evergreen.features import checks

    model = loader.load_spec(name)
    faults = checks.check_built_features(model, folders)
    checks.raise_feature_faults(model, _select_own_faults(plan, faults, "features have"))
    return {day: folder for day, folder in folders.items() if date.fromisoformat(day) not in faults}


@step()
def publish(name: str, plan: dict[str, Any], fingerprints: dict[str, str], folders: dict[str, str]) -> dict[str, str]:
    """Make each day visible in one step, with its manifest: rows, schema, content hash, fingerprint."""
    from evergreen.errors import InputsChangedError
    from evergreen.features import publish as publishing

    model = loader.load_spec(name)
    contents = publishing.publish_features(model, fingerprints, folders)
    if lost := sorted(set(plan["days"]) & fingerprints.keys() - contents.keys()):
        raise InputsChangedError(
            f"raw data of {', '.join(lost)} or of a day before, or the code of the features, changed while they "
            "were made: nothing of these days was published; clear the run to start anew"
        )
    return contents


@step(trigger_rule="none_failed")
def announce(name: str, plan: dict[str, Any]) -> None:
    """Tell the DAGs that wait for these features which days are new or changed; a backfill tells nobody."""
    context = get_current_context()
    if not _should_announce(context, RunReason(plan["origin"])):
        raise AirflowSkipException("a backfill wakes no other DAG unless its conf says announce: true")
    newest = inputs.newest_published_day(loader.load_spec(name))
    extra = {
        "days": plan["days"],
        "until": (newest + timedelta(1)).isoformat(),
        "origin": plan["origin"],
    }
    context["outlet_events"][features_asset(name)].extra = extra
    print(extra)
