"""The latest attempts are found without a listing of all jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergreen import storage
from evergreen.settings import settings
from evergreen.storage import UPath
from evergreen.training import recent_attempts
from evergreen.training.attempt import Attempt, ResourceAllocation
from evergreen.training.recent_attempts import read_recent_attempts, register_job

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)  # a short month, and the first half hour of one


@pytest.fixture
def folder(home: Path) -> UPath:
    return storage.storage_path(settings().jobs) / "late"


def attempt(folder: UPath, job: str, name: str, start: datetime, ended: datetime | None = None) -> None:
    """Record an attempt at a job, whose name is `job`, or this digit 64 times."""
    Attempt(
        id=name,
        dag_run="",
        model="late",
        team="",
        allocation=ResourceAllocation(),
        started_at=start,
        last_heartbeat=ended or start,
        ended_at=ended,
    ).write(folder / (job * 64 if len(job) == 1 else job) / "attempts" / f"{name}.json")


def names(folder: UPath) -> list[str]:
    return [attempt.id for attempt in read_recent_attempts(folder, NOW)]


def test_attempts_of_two_months_in_their_order(folder: UPath) -> None:
    for job, days in {"a": 0, "b": 29, "c": 31, "d": 200}.items():
        start = NOW - timedelta(days=days)
        register_job(folder / (job * 64), start)
        attempt(folder, job, f"{days}d", start, start + timedelta(minutes=1))
    assert names(folder) == ["29d", "0d"]


def test_an_attempt_that_began_long_ago_counts_while_it_runs(folder: UPath) -> None:
    start = NOW - timedelta(days=60)
    register_job(folder / ("a" * 64), start)
    attempt(folder, "a", "long", start, NOW)
    assert names(folder) == ["long"]


def test_a_job_that_is_attempted_again_counts_from_then_on(folder: UPath) -> None:
    first = NOW - timedelta(days=200)
    register_job(folder / ("a" * 64), first)
    attempt(folder, "a", "first", first)
    assert names(folder) == []
    for _ in range(2):
        register_job(folder / ("a" * 64), NOW)
    attempt(folder, "a", "second", NOW)
    assert names(folder) == ["second"]


def test_what_is_no_job_is_not_read(folder: UPath) -> None:
    month = folder / "months" / "2026-03"
    month.mkdir(parents=True)
    for name in ("a" * 63, "A" * 64, "a" * 64 + ".json"):
        (month / name).touch()
        attempt(folder, name, "other", NOW)
    attempt(folder, "a", "unregistered", NOW)
    assert names(folder) == []
    assert names(folder.parent / "nothing") == []


def test_no_more_jobs_are_read_than_the_bound(folder: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_attempts, "MAX_RECENT_JOBS", 2)
    for job, days in {"a": 20, "b": 0, "c": 0}.items():
        start = NOW - timedelta(days=days)
        register_job(folder / (job * 64), start)
        attempt(folder, job, job, start)
    assert set(names(folder)) == {"b", "c"}


def test_a_link_among_the_jobs_is_refused(folder: UPath, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "months").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        register_job(folder / ("a" * 64), NOW)
    assert not list((tmp_path / "elsewhere").iterdir())
