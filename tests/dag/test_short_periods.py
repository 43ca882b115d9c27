"""The DAGs of models with hours, quarters of an hour and weeks: when Airflow starts them, and what runs are about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError
from airflow.timetables.base import TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable

from evergreen.orchestration.dag_run import dag_run_info
from evergreen.orchestration.dags.features import features_dag
from evergreen.orchestration.dags.retrain import retrain_dag
from evergreen.orchestration.dags.score import score_dag
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec, ScorePolicy
from evergreen.window import Window, resolve_features_window, resolve_retrain_window

pytestmark = pytest.mark.dag

SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="doors", owner="tests", feature_service="doors", label="count",
    features=dict(period="PERIOD", timezone="America/New_York", first_day="2013-01-01", last_day="2013-06-30",
                  spine="counts", views=["visits"], sources=[dict(name="visits", columns=dict(door="int64"))]),
    schedule="CRON", train="28d", holdout="7d",
    gates=[dict(kind="threshold", metric="mae", at_most=100.0)],
)
"""


@pytest.fixture
def write_model(home: Path, tmp_path: Path, use_models: Callable[..., None]) -> Callable[[str, str], ModelSpec]:
    """Return a function that returns a model with a period and a schedule."""

    def write(period: str, cron: str) -> ModelSpec:
        folder = tmp_path / "evergreen_models/doors"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "model.py").write_text(SPEC.replace("PERIOD", period).replace("CRON", cron))
        use_models(tmp_path / "evergreen_models", only=True)
        loader.load_spec.cache_clear()
        return loader.load_spec("doors")

    return write


def scheduled_runs(dag: DAG, start: str, end: str) -> list[Any]:
    """Return the runs that Airflow schedules between two instants."""
    clock = getattr(dag.schedule, "timetable", dag.schedule)
    timetable = CronDataIntervalTimetable(clock.expression, timezone=clock.timezone)
    restriction = TimeRestriction(earliest=pendulum.parse(start), latest=pendulum.parse(end), catchup=True)
    runs, last = [], None
    while info := timetable.next_dagrun_info(last_automated_data_interval=last, restriction=restriction):
        last = info.data_interval
        runs.append(
            SimpleNamespace(
                run_type=SimpleNamespace(value="scheduled"),
                data_interval_start=last.start,
                data_interval_end=last.end,
                logical_date=info.logical_date,
                run_after=info.run_after,
                run_id="a run",
                start_date=None,
                consumed_asset_events=[],
            )
        )
    return runs


def windows(model: ModelSpec, dag: DAG, start: str, end: str) -> list[Window]:
    spec, resolved = feature_spec(model), []
    for run in scheduled_runs(dag, start, end):
        facts = dag_run_info({"dag_run": run, "params": {}})
        common = {"calendar": spec.calendar, "first_day": spec.first_day, "last_day": spec.last_day}
        if dag.dag_id.endswith(".score"):
            resolved.append(resolve_features_window(facts, **common, allows_short_interval=True))
        elif dag.dag_id.endswith(".features"):
            resolved.append(resolve_features_window(facts, **common))
        else:
            resolved.append(resolve_retrain_window(facts, **common, history=model.history))
    return resolved


@pytest.mark.parametrize(
    ("period", "cron", "first", "count"),
    [
        ("1h", "0 * * * *", "2013-03-10T00:00Z", 48),
        ("15min", "*/15 * * * *", "2013-03-10T00:00Z", 4 * 48),
        ("6h", "0 0 * * *", "2013-03-10T00:00Z", 8),
        ("1d", "0 0 * * *", "2013-03-10", 2),
    ],
)
def test_each_period_has_a_run_when_clocks_change(
    period: str, cron: str, first: str, count: int, write_model: Callable[[str, str], ModelSpec]
) -> None:
    model = write_model(period, cron)
    calendar = feature_spec(model).calendar
    start = calendar.start(first).isoformat()
    end = calendar.start(calendar.shift(first, count - 1)).isoformat()
    about = [window.periods for window in windows(model, features_dag(model), start, end)]
    assert about == [(period,) for period in calendar.periods_between(first, calendar.shift(first, count))]


@pytest.mark.parametrize("schedule", ["0 0 * * *", "0 6 * * *", "30 4 * * *", "0 */6 * * *", "0 0 * * 1"])
@pytest.mark.parametrize("period", ["15min", "1h", "1d"])
def test_each_period_is_found_in_the_run_about_it(
    period: str, schedule: str, write_model: Callable[[str, str], ModelSpec]
) -> None:
    """Also when clocks change: on 10 March and on 3 November."""
    model = write_model(f'{period}", schedule="{schedule}', "0 0 * * *")
    spec, dag = feature_spec(model), features_dag(model)
    checked = 0
    for start, end in (("2013-03-05T05:00Z", "2013-03-20T04:00Z"), ("2012-10-30T04:00Z", "2012-11-12T05:00Z")):
        for run in scheduled_runs(dag, start, end):
            bounds = (spec.calendar.period_at(moment) for moment in (run.data_interval_start, run.data_interval_end))
            for name in spec.calendar.periods_between(*bounds):
                assert spec.interval_start(name) == run.data_interval_start, name
                checked += 1
    assert checked >= 14


@pytest.mark.parametrize(("period", "count"), [("15min", 4 * 24), ("1h", 24), ("1d", 1)])
def test_scoring_by_the_clock_leaves_out_no_period(
    period: str, count: int, write_model: Callable[[str, str], ModelSpec]
) -> None:
    """Also of the day with 23 hours."""
    model = write_model(period, "30 6 * * *")
    spec, dag = feature_spec(model), score_dag(model, ScorePolicy())
    assert [asset.name for asset in dag.schedule.asset_condition.objects] == ["doors.features"]
    about = [
        name for window in windows(model, dag, "2013-03-08T05:00Z", "2013-03-14T05:00Z") for name in window.periods
    ]
    assert about == list(spec.calendar.periods_between(about[0], spec.calendar.shift(about[-1], 1)))
    assert len(about) > 4 * count


def test_weeks_are_scored_each_day_by_the_last_one(write_model: Callable[[str, str], ModelSpec]) -> None:
    model = write_model("1w", "0 0 * * 1")
    dag = score_dag(model, ScorePolicy(schedule="0 6 * * *"))
    found = windows(model, dag, "2013-02-27T05:00Z", "2013-03-12T11:00Z")
    assert {window.periods for window in found} == {("2013-02-18",), ("2013-02-25",), ("2013-03-04",)}


def test_hourly_retrains_have_an_as_of_each(write_model: Callable[[str, str], ModelSpec]) -> None:
    model = write_model("1h", "0 * * * *")
    found = windows(model, retrain_dag(model), "2013-03-10T00:00Z", "2013-03-10T23:00Z")
    assert [window.end for window in found] == [f"2013-03-10T{hour:02d}:00Z" for hour in range(1, 24)] + [
        "2013-03-11T00:00Z"
    ]
    days = 35 * 24
    assert {len(window.periods) for window in found} == {days - 1, days}, "an hour less once clocks have changed"


def test_weeks_have_a_run_each(write_model: Callable[[str, str], ModelSpec]) -> None:
    model = write_model("1w", "0 0 * * 1")
    found = windows(model, features_dag(model), "2013-02-25T05:00Z", "2013-03-18T04:00Z")
    assert [window.periods for window in found] == [("2013-02-25",), ("2013-03-04",), ("2013-03-11",), ("2013-03-18",)]


def test_the_data_of_hours_ends_with_the_last_day(write_model: Callable[[str, str], ModelSpec]) -> None:
    dag = features_dag(write_model("1h", "0 * * * *"))
    assert dag.start_date == pendulum.parse("2013-01-01T05:00Z")
    assert dag.end_date == pendulum.parse("2013-07-01T03:00Z"), "the last hour of New York's day"


def test_params_of_hours_take_dates_and_instants(write_model: Callable[[str, str], ModelSpec]) -> None:
    dag = features_dag(write_model("1h", "0 * * * *"))
    for value in ("2013-03-10", "2013-03-10T06:00Z"):
        assert dag.params.get_param("start").resolve(value) == value
    with pytest.raises(ParamValidationError):
        dag.params.get_param("start").resolve(6)
