"""Progress of DAG runs, from the responses of Airflow's REST API. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from zoneinfo import ZoneInfo

from evergreen.client.airflow import FINISHED_RUN_STATES, Json
from evergreen_local.progress import ProgressStep, ProgressView

ACTIVE_TASK_STATES = ("running", "queued", "scheduled", "up_for_retry", "deferred")
"""States of task instances that a progress display shows."""

# The cause of a failed Spark job is in the middle of its stack trace, after "Caused by:".
_JVM_STACK = re.compile(r"\s+at |\s+\.\.\. \d+ more|JVM stacktrace:")


def run_day(run: Json, zone: ZoneInfo) -> date | None:
    """Return the day of a run of a daily DAG; None for a run without data interval."""
    start = run["data_interval_start"]
    return datetime.fromisoformat(start).astimezone(zone).date() if start else None


def runs_by_day(runs: Sequence[Json], zone: ZoneInfo) -> dict[date, Json]:
    """Return the run of each day."""
    return {day: run for run in runs if (day := run_day(run, zone))}


def all_runs_finished(runs: Mapping[date, Json], days: Collection[date]) -> bool:
    """Return whether every day has a finished run."""
    return all(day in runs and runs[day]["state"] in FINISHED_RUN_STATES for day in days)


def backfill_view(
    dag_id: str, days: Collection[date], runs: Mapping[date, Json], instances: Sequence[Json], now: datetime
) -> ProgressView:
    """Return the progress of a backfill: days finished, and the active tasks by day."""
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
    """Return the progress of a run, by task."""
    by_task = {instance["task_id"]: instance for instance in instances}
    steps = tuple(
        _task_step(task, by_task[task], now) if task in by_task else ProgressStep(task, "waiting") for task in tasks
    )
    completed = sum(step.state in ("success", "skipped") for step in steps)
    change_key = tuple((step.name, step.state) for step in steps)
    return ProgressView(title, completed, len(steps), "tasks", steps, change_key)


def format_steps(view: ProgressView) -> str:
    """Return the steps of a finished run with their durations, in one line."""
    return "  ".join(map(str, view.steps))


def error_lines(entries: Sequence[Json], limit: int = 12) -> list[str]:
    """Return why a task failed, from its log: the last exception and its causes, or else the last lines."""
    for entry in reversed(entries):
        if exceptions := entry.get("error_detail"):
            causes = [cause for cause in exceptions[1:] if cause.get("is_cause")]
            messages = [_format_exception(exceptions[0]), *(f"Caused by: {_format_exception(e)}" for e in causes)]
            lines = "\n".join(messages).splitlines()
            return [line for line in lines if line.strip() and not _JVM_STACK.match(line)][:limit]
    lines = [str(entry.get("event", "")).rstrip() for entry in entries]
    return [line for line in lines if line and not line.startswith("::")][-limit:]


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
