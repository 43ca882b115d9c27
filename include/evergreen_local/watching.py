"""From what Airflow's API says to what a person sees. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from zoneinfo import ZoneInfo

from evergreen.cli.progress import Step, View
from evergreen.client.airflow import FINISHED, Json

ACTIVE = ("running", "queued", "scheduled", "up_for_retry", "deferred")
"""States of task instances that a person wants to see move."""

# Spark tells why a job failed in the midst of it, after "Caused by:".
_JVM_STACK = re.compile(r"\s+at |\s+\.\.\. \d+ more|JVM stacktrace:")


def day_of(run: Json, zone: ZoneInfo) -> date | None:
    """The day that a run of a daily DAG is about; None for one that is about no single day."""
    start = run["data_interval_start"]
    return datetime.fromisoformat(start).astimezone(zone).date() if start else None


def by_day(runs: Sequence[Json], zone: ZoneInfo) -> dict[date, Json]:
    """The run of each day."""
    return {day: run for run in runs if (day := day_of(run, zone))}


def settled(runs: Mapping[date, Json], days: Collection[date]) -> bool:
    """Whether every day has a run, and none of them goes on."""
    return all(day in runs and runs[day]["state"] in FINISHED for day in days)


def backfill_view(
    dag_id: str, days: Collection[date], runs: Mapping[date, Json], instances: Sequence[Json], now: datetime
) -> View:
    """How far a backfill is: days done, and which task of which day is being worked on."""
    finished = [day for day in days if day in runs and runs[day]["state"] == "success"]
    failed = [day for day in days if day in runs and runs[day]["state"] == "failed"]
    names = {run["dag_run_id"]: str(day) for day, run in runs.items()}
    steps = [
        _step(f"{names[instance['dag_run_id']]} {instance['task_id']}", instance, now)
        for instance in sorted(instances, key=lambda instance: names.get(instance["dag_run_id"], ""))
        if instance["dag_run_id"] in names and instance["state"] in ("running", "up_for_retry", "deferred")
    ]
    steps += [Step(str(day), "failed") for day in failed]
    return View(dag_id, len(finished), len(days), "days", tuple(steps), news=(len(finished), len(failed)))


def run_view(title: str, tasks: Sequence[str], instances: Sequence[Json], now: datetime) -> View:
    """How far one run is, task by task."""
    known = {instance["task_id"]: instance for instance in instances}
    steps = tuple(_step(task, known[task], now) if task in known else Step(task, "waiting") for task in tasks)
    done = sum(step.state in ("success", "skipped") for step in steps)
    return View(
        title, done, len(steps), "tasks", steps, news=tuple((step.name, step.state) for step in steps)
    )


def chain(view: View) -> str:
    """The steps of a finished run in one line: what each has taken."""
    return "  ".join(map(str, view.steps))


def error_lines(entries: Sequence[Json], most: int = 12) -> list[str]:
    """What a log says about why its task failed: the last exception and its causes, or else its last lines."""
    for entry in reversed(entries):
        if raised := entry.get("error_detail"):
            causes = [cause for cause in raised[1:] if cause.get("is_cause")]
            told = [_told(raised[0]), *(f"Caused by: {_told(cause)}" for cause in causes)]
            lines = "\n".join(told).splitlines()
            return [line for line in lines if line.strip() and not _JVM_STACK.match(line)][:most]
    told = [str(entry.get("event", "")).rstrip() for entry in entries]
    return [line for line in told if line and not line.startswith("::")][-most:]


def _told(error: Json) -> str:
    return "\n".join([f"{error['exc_type']}: {error['exc_value']}", *(error.get("exc_notes") or [])])


def _step(name: str, instance: Json, now: datetime) -> Step:
    state = instance["state"] or "waiting"
    if instance["duration"] is not None and state in ("success", "failed", "skipped"):
        seconds = instance["duration"]
    elif instance["start_date"] and state == "running":
        seconds = (now - datetime.fromisoformat(instance["start_date"])).total_seconds()
    else:
        seconds = None
    return Step(name, state, seconds)
