"""From what Airflow's API says to what a person sees. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from zoneinfo import ZoneInfo

from evergreen.cli.progress import ProgressStep, ProgressView
from evergreen.client.airflow import FINISHED_RUN_STATES, Json

ACTIVE_TASK_STATES = ("running", "queued", "scheduled", "up_for_retry", "deferred")
"""States of task instances that a person wants to see move."""

# Spark tells why a job failed in the midst of it, after "Caused by:".
_JVM_STACK = re.compile(r"\s+at |\s+\.\.\. \d+ more|JVM stacktrace:")


def run_day(run: Json, zone: ZoneInfo) -> date | None:
    """The day that a run of a daily DAG is about; None for one that is about no single day."""
    start = run["data_interval_start"]
    return datetime.fromisoformat(start).astimezone(zone).date() if start else None


def runs_by_day(runs: Sequence[Json], zone: ZoneInfo) -> dict[date, Json]:
    """The run of each day."""
    return {day: run for run in runs if (day := run_day(run, zone))}


def all_runs_finished(runs: Mapping[date, Json], days: Collection[date]) -> bool:
    """Whether every day has a run, and none of them goes on."""
    return all(day in runs and runs[day]["state"] in FINISHED_RUN_STATES for day in days)


def backfill_view(
    dag_id: str, days: Collection[date], runs: Mapping[date, Json], instances: Sequence[Json], now: datetime
) -> ProgressView:
    """How far a backfill is: days done, and which task of which day is being worked on."""
    finished = [day for day in days if day in runs and runs[day]["state"] == "success"]
    failed = [day for day in days if day in runs and runs[day]["state"] == "failed"]
    names = {run["dag_run_id"]: str(day) for day, run in runs.items()}
    steps = [
        _task_step(f"{names[instance['dag_run_id']]} {instance['task_id']}", instance, now)
        for instance in sorted(instances, key=lambda instance: names.get(instance["dag_run_id"], ""))
        if instance["dag_run_id"] in names and instance["state"] in ("running", "up_for_retry", "deferred")
    ]
    steps += [ProgressStep(str(day), "failed") for day in failed]
    return ProgressView(dag_id, len(finished), len(days), "days", tuple(steps), change_key=(len(finished), len(failed)))


def dag_run_view(title: str, tasks: Sequence[str], instances: Sequence[Json], now: datetime) -> ProgressView:
    """How far one run is, task by task."""
    known = {instance["task_id"]: instance for instance in instances}
    steps = tuple(
        _task_step(task, known[task], now) if task in known else ProgressStep(task, "waiting") for task in tasks
    )
    done = sum(step.state in ("success", "skipped") for step in steps)
    return ProgressView(
        title, done, len(steps), "tasks", steps, change_key=tuple((step.name, step.state) for step in steps)
    )


def format_steps(view: ProgressView) -> str:
    """The steps of a finished run in one line: what each has taken."""
    return "  ".join(map(str, view.steps))


def error_lines(entries: Sequence[Json], limit: int = 12) -> list[str]:
    """What a log says about why its task failed: the last exception and its causes, or else its last lines."""
    for entry in reversed(entries):
        if raised := entry.get("error_detail"):
            causes = [cause for cause in raised[1:] if cause.get("is_cause")]
            told = [
                _format_exception(raised[0]),
                *(f"Caused by: {_format_exception(cause)}" for cause in causes),
            ]
            lines = "\n".join(told).splitlines()
            return [line for line in lines if line.strip() and not _JVM_STACK.match(line)][:limit]
    told = [str(entry.get("event", "")).rstrip() for entry in entries]
    return [line for line in told if line and not line.startswith("::")][-limit:]


def _format_exception(error: Json) -> str:
    return "\n".join([f"{error['exc_type']}: {error['exc_value']}", *(error.get("exc_notes") or [])])


def _task_step(name: str, instance: Json, now: datetime) -> ProgressStep:
    state = instance["state"] or "waiting"
    if instance["duration"] is not None and state in ("success", "failed", "skipped"):
        seconds = instance["duration"]
    elif instance["start_date"] and state == "running":
        seconds = (now - datetime.fromisoformat(instance["start_date"])).total_seconds()
    else:
        seconds = None
    return ProgressStep(name, state, seconds)
