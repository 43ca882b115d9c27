"""Progress of DAG runs from responses of Airflow's REST API."""

from datetime import UTC, date, datetime, timedelta

import pytest

from evergreen.periods import Calendar
from evergreen_local import run_progress
from evergreen_local.progress import ProgressStep

pytestmark = pytest.mark.unit

NEW_YORK = Calendar("1d", "America/New_York")
NOW = datetime(2026, 11, 21, 12, 0, 10, tzinfo=UTC)


def run(day, state, hour=5):
    """A run of one day of New York, where midnight is 05:00 UTC in winter and 04:00 in summer."""
    return {
        "dag_run_id": f"backfill__{day}",
        "dag_id": "flight_delay.features",
        "state": state,
        "data_interval_start": f"{day}T{hour:02d}:00:00Z",
        "data_interval_end": f"{date.fromisoformat(day) + timedelta(1)}T{hour:02d}:00:00Z",
    }


def task(task_id, state, day="2013-01-01", start=None, duration=None):
    return {
        "task_id": task_id,
        "dag_run_id": f"backfill__{day}",
        "state": state,
        "start_date": start,
        "duration": duration,
    }


def test_run_periods_are_local_days_in_winter_and_summer():
    assert run_progress.run_periods(run("2013-01-01", "queued"), NEW_YORK) == ["2013-01-01"]
    assert run_progress.run_periods(run("2013-07-01", "queued", hour=4), NEW_YORK) == ["2013-07-01"]
    assert run_progress.run_periods({"data_interval_start": None}, NEW_YORK) == []


def test_a_run_may_be_about_many_hours():
    hours = Calendar("1h", "America/New_York")
    first, second = (run(day, "success") for day in ("2013-01-01", "2013-01-02"))
    runs = run_progress.runs_by_period([first, {**second, "state": "failed"}], hours)
    assert len(runs) == 48
    assert runs["2013-01-02T04:00Z"] is first
    view = run_progress.backfill_view("departures.features", list(runs), runs, [], NOW, "hour")
    assert str(view) == "departures.features  24/48 hours  ✗ 2013-01-02T05:00Z failed"


def test_all_runs_finished_needs_a_finished_run_of_every_day():
    days = ["2013-01-01", "2013-01-02"]
    runs = run_progress.runs_by_period([run("2013-01-01", "success"), run("2013-01-02", "running")], NEW_YORK)
    assert not run_progress.all_runs_finished(runs, days)
    assert run_progress.all_runs_finished({**runs, days[1]: run("2013-01-02", "failed")}, days)
    assert not run_progress.all_runs_finished({days[0]: runs[days[0]]}, days)


def test_backfill_view_counts_days_and_names_active_tasks():
    days = [f"2013-01-{day:02d}" for day in range(1, 5)]
    runs = [run("2013-01-01", "success"), run("2013-01-02", "running"), run("2013-01-03", "failed")]
    instances = [
        task("build", "running", "2013-01-02", start="2026-11-21T12:00:00Z"),
        task("check_raw", "queued", "2013-01-02"),
        task("build", "running", "2013-06-01"),  # of a run outside this backfill
    ]
    view = run_progress.backfill_view(
        "flight_delay.features", days, run_progress.runs_by_period(runs, NEW_YORK), instances, NOW, "day"
    )
    assert str(view) == ("flight_delay.features  1/4 days  ▸ 2013-01-02 build 10 s  ✗ 2013-01-03 failed")
    assert view.change_key == (1, 1)


def test_dag_run_view_keeps_the_order_of_the_tasks():
    instances = [
        task("judge", None),
        task("train", "running", start="2026-11-21T12:00:03Z"),
        task("plan", "success", start="2026-11-21T11:59:00Z", duration=1.4),
        task("materialize", "skipped", duration=0.2),
    ]
    tasks = ["plan", "materialize", "train", "judge", "promote"]
    view = run_progress.dag_run_view("flight_delay.retrain", tasks, instances, NOW)
    assert view.steps == (
        ProgressStep("plan", "success", 1.4),
        ProgressStep("materialize", "skipped", 0.2),
        ProgressStep("train", "running", 7.0),
        ProgressStep("judge", "waiting"),
        ProgressStep("promote", "waiting"),
    )
    assert (view.completed, view.total) == (2, 5)
    assert str(view) == "flight_delay.retrain  2/5 tasks  ▸ train 7 s"
    text = run_progress.format_steps(view)
    assert text.startswith("✓ plan 1 s  ▸ train 7 s")
    assert text.endswith("– nothing to do in materialize")


def test_dag_run_view_changes_with_states_not_with_seconds():
    first, second = (
        run_progress.dag_run_view("r", ["plan"], [task("plan", "running", start="2026-11-21T12:00:03Z")], now)
        for now in (NOW, NOW.replace(second=40))
    )
    assert first != second
    assert first.change_key == second.change_key


def test_error_lines_are_the_last_exception():
    detail = [{"exc_type": "RawDataError", "exc_value": "raw data: 1 fault\n  - flights.parquet: missing"}]
    log = [
        {"event": "::group::Log message source details"},
        {"event": "checking", "level": "info"},
        {"event": "Task failed with exception", "level": "error", "error_detail": detail},
        {"event": "Marking task as failed", "level": "info"},
    ]
    assert run_progress.error_lines(log) == ["RawDataError: raw data: 1 fault", "  - flights.parquet: missing"]


def test_error_lines_include_notes_and_causes():
    detail = [
        {"exc_type": "PermissionError", "exc_value": "Access Denied.", "exc_notes": ["s3://jobs/a/job.json"]},
        {"exc_type": "AccessDenied", "exc_value": "calling PutObject", "exc_notes": [], "is_cause": True},
        {"exc_type": "KeyError", "exc_value": "'seen on the way'", "exc_notes": [], "is_cause": False},
    ]
    log = [{"event": "Task failed with exception", "error_detail": detail}]
    assert run_progress.error_lines(log) == [
        "PermissionError: Access Denied.",
        "s3://jobs/a/job.json",
        "Caused by: AccessDenied: calling PutObject",
    ]


def test_error_lines_leave_out_the_stack_of_the_jvm():
    stack = "\n".join(f"\tat org.apache.spark.Part{n}.work(Part{n}.scala:{n})" for n in range(40))
    value = f"[TASK_WRITE_FAILED] lake/day\n\nJVM stacktrace:\norg.apache.spark.SparkException\n{stack}\n"
    value += f"Caused by: java.io.IOException: No space left on device\n{stack}\n\t... 9 more"
    log = [{"error_detail": [{"exc_type": "SparkException", "exc_value": value}]}]
    assert run_progress.error_lines(log) == [
        "SparkException: [TASK_WRITE_FAILED] lake/day",
        "org.apache.spark.SparkException",
        "Caused by: java.io.IOException: No space left on device",
    ]


def test_error_lines_without_an_exception_are_the_last_lines():
    log = [{"event": "::group::x"}, *({"event": f"line {n}"} for n in range(30)), {"event": " "}]
    assert run_progress.error_lines(log, limit=3) == ["line 27", "line 28", "line 29"]
    assert run_progress.error_lines([]) == []
