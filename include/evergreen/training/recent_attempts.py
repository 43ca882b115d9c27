"""Finds the latest training attempts of a model without reading all jobs that it has ever had.

Jobs are named by their content, so a listing does not tell which are recent. Before a job runs, a file with its
name is created in a folder of the month::

    <jobs>/flight_delay/months/2026-11/3f9a…

Attempts of the last `RECENT` are then in the jobs of two or three months. Jobs of before there were such files count
from their next attempt on.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from evergreen import storage
from evergreen.storage import UPath
from evergreen.training.attempt import Attempt, read_attempts

RECENT = timedelta(30)
MAX_RECENT_JOBS = 200
"""Of a model, that are read: a job is a training set, code and parameters, so few models have as many in a month."""
MAX_ATTEMPTS_PER_JOB = 300

_MONTHS_FOLDER = "months"
_JOB_NAME = re.compile(r"[0-9a-f]{64}")


def register_job(job_folder: UPath, now: datetime) -> None:
    """Record that attempts at a job begin in the month of `now`. Doing so again changes nothing."""
    file = job_folder.parent / _MONTHS_FOLDER / f"{now.astimezone(UTC):%Y-%m}" / job_folder.name
    storage.check_no_link(file, job_folder.parent.parent)
    storage.create_if_absent(file, b"\n")


def read_recent_attempts(model_folder: UPath, now: datetime) -> list[Attempt]:
    """Return the attempts of a model that started, or ended, within `RECENT` before `now`, in the order of their start.

    `model_folder` is the folder of the model's jobs. At most `MAX_RECENT_JOBS` jobs are read, of the last months first.
    """
    start, instant = now - RECENT, now.astimezone(UTC)
    jobs: dict[str, None] = {}
    # A job that began a month before may have gone on, or have been attempted again, since.
    first = (start - RECENT).astimezone(UTC)
    while (instant.year, instant.month) >= (first.year, first.month):
        names = storage.list_names(model_folder / _MONTHS_FOLDER / f"{instant:%Y-%m}")
        jobs |= dict.fromkeys(name for name in names if _JOB_NAME.fullmatch(name))
        instant = instant.replace(day=1) - timedelta(1)
    attempts = [
        attempt
        for job in list(jobs)[:MAX_RECENT_JOBS]
        for attempt in read_attempts(model_folder / job, MAX_ATTEMPTS_PER_JOB)
    ]
    recent = [attempt for attempt in attempts if (attempt.ended_at or attempt.last_heartbeat) >= start]
    return sorted(recent, key=lambda attempt: attempt.started_at)
