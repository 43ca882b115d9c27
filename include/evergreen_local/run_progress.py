"""Progress of DAG runs, from the responses of Airflow's REST API. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from evergreen.client.airflow import FINISHED_RUN_STATES, Json
from evergreen.periods import Calendar
from evergreen_local.progress import ProgressStep, ProgressView

ACTIVE_TASK_STATES = ("running", "queued", "scheduled", "up_for_retry", "deferred")
"""States of task instances that a progress display shows."""

# The cause of a failed Spark job is in the middle of its stack trace, after "Caused by:".
_JVM_STACK = re.compile(r"\s+at |\s+\.\.\. \d+ more|JVM stacktrace:")


def run_periods(run: Json, calendar: Calendar) -> list[str]:
    """Return the periods that a run is about by the clock; none for a run without data interval."""
    if not run["data_interval_start"]:
        return []
    bounds = (run[f"data_interval_{bound}"] for bound in ("start", "end"))
    return list(calendar.periods_between(*(calendar.period_at(datetime.fromisoformat(bound)) for bound in bounds)))


def runs_by_period(runs: Sequence[Json], calendar: Calendar) -> dict[str, Json]:
    """Return the run of each period."""
    return {period: run for run in runs for period in run_periods(run, calendar)}


def all_runs_finished(runs: Mapping[str, Json], periods: Collection[str]) -> bool:
    """Return whether every period has a finished run."""
    return all(period in runs and runs[period]["state"] in FINISHED_RUN_STATES for period in periods)


def backfill_view(
    dag_id: str, periods: Collection[str], runs: Mapping[str, Json], instances: Sequence[Json], now: datetime, unit: str
) -> ProgressView:
    """Return the progress of a backfill: periods finished, and the active tasks by period."""
    finished = [period for period in periods if period in runs and runs[period]["state"] == "success"]
    failed = [period for period in periods if period in runs and runs[period]["state"] == "failed"]
    names = {run["dag_run_id"]: period for period, run in sorted(runs.items(), reverse=True)}  # its first period
    steps = [
        _task_step(f"{names[instance['dag_run_id']]} {instance['task_id']}", instance, now)
        for instance in sorted(instances, key=lambda instance: names.get(instance["dag_run_id"], ""))
        if instance["dag_run_id"] in names and instance["state"] in ("running", "up_for_retry", "deferred")
    ]
    steps += [ProgressStep(period, "failed") for period in failed if names[runs[period]["dag_run_id"]] == period]
    return ProgressView(
        dag_id, len(finished), len(periods), f"{unit}s", tuple(steps), change_key=(len(finished), len(failed))
    )


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
    """Return the steps of a finished run with their durations, in one line; those that were skipped only by name."""
    skipped = [step.name for step in view.steps if step.state == "skipped"]
    note = [f"– nothing to do in {', '.join(skipped)}"] if skipped else []
    return "  ".join([*(str(step) for step in view.steps if step.state != "skipped"), *note])


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
