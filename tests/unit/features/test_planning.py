"""Planning: which days a run publishes and builds, from the facts of the run and the scheduler's counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.features import planning
from evergreen.features.inputs import find_missing_raw_files, raw_files_for_periods
from evergreen.features.planning import dates_with_runs
from evergreen.ingest.announcements import announcement_store
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import AssetEvent, DagRunInfo, resolve_features_window
from support import calendars

pytestmark = pytest.mark.unit

CALENDAR = calendars.DAYS
DAYS = tuple(CALENDAR.periods_between("2013-01-01", "2013-02-01"))
ZONE = "America/New_York"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The example model, with raw files of the first ten days."""
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    settings.cache_clear()
    spec = loader.load_spec("flight_delay")
    for file in raw_files_for_periods(feature_spec(spec), DAYS[:10]):
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.name)
    yield spec
    settings.cache_clear()


def backfilled(day: str, run_id: str = "backfill", **facts: Any) -> DagRunInfo:
    start, end = CALENDAR.start(day), CALENDAR.end(day)
    return DagRunInfo(
        "backfill", end, (start, end), run_id=run_id, logical_date=start, started_at=datetime(2014, 1, 1, tzinfo=UTC)
    )


def counter(days: Sequence[str], active: Sequence[str] = ()) -> Callable[..., int]:
    """The counts of a scheduler with an active run for each of `days`, and the active runs `active`."""

    def count(logical_dates: Sequence[datetime] = (), run_ids: Sequence[str] = ()) -> int:
        dates = {CALENDAR.period_at(instant) for instant in logical_dates}
        return len(dates & set(days)) + len(set(run_ids) & set(active))

    return count


@given(st.sets(st.sampled_from(DAYS)))
def test_days_with_runs_finds_exactly_these(active: set[str]) -> None:
    assert dates_with_runs(DAYS, lambda days: len(active & set(days))) == sorted(active)


def test_days_with_runs_asks_once_about_all_or_none() -> None:
    for active in (set(DAYS), set[str]()):
        requests: list[Sequence[str]] = []

        def count(days: Sequence[str], active: set[str] = active, requests: list[Sequence[str]] = requests) -> int:
            requests.append(days)
            return len(active & set(days))

        assert dates_with_runs(DAYS, count) == sorted(active)
        assert len(requests) == 1


def test_a_run_builds_days_of_waiting_runs_with_its_own(model: ModelSpec) -> None:
    run = backfilled(DAYS[2])
    # Raw files of the last two are missing.
    count = counter([*DAYS[1:4], *DAYS[9:12]])
    assert planning.claim_periods_to_build(model, run, [DAYS[2]], count) == ([*DAYS[1:4], DAYS[9]], [])
    other = planning.claim_periods_to_build(model, backfilled(DAYS[3], "other"), [DAYS[3]], counter([], ["backfill"]))
    assert other == ([], ["backfill"])
    dead = planning.claim_periods_to_build(model, backfilled(DAYS[3], "other"), [DAYS[3]], counter([]))
    assert dead == ([DAYS[3]], [])


def test_days_with_holes_are_left_to_the_check(model: ModelSpec) -> None:
    """It names them together with all other faults."""
    days = [DAYS[8], DAYS[10]]  # the raw files of the second are missing
    assert planning.claim_periods_to_build(model, backfilled(DAYS[8]), days, counter([])) == (days, [])


def test_an_absent_file_is_no_hole_where_it_may_be(model: ModelSpec) -> None:
    spec = feature_spec(model)
    files = raw_files_for_periods(spec, DAYS[9:11])
    missing = {file.name for file in find_missing_raw_files(spec, files)}
    assert missing == {"flights-2013-01-11", "weather-2013-01-11"}
    weather = spec.source("weather").model_copy(update={"empty_periods": "absent"})
    sources = tuple(weather if source.name == "weather" else source for source in spec.sources)
    relaxed = spec.model_copy(update={"sources": sources})
    assert {file.name for file in find_missing_raw_files(relaxed, files)} == {"flights-2013-01-11"}


def test_days_that_were_not_over_are_left_to_their_runs(model: ModelSpec) -> None:
    run = backfilled(DAYS[2])
    early = DagRunInfo(**{**vars(run), "started_at": CALENDAR.start(DAYS[4])})
    assert planning.periods_awaited_by_other_runs(feature_spec(model), early, {DAYS[2]}, counter(DAYS)) == [
        *DAYS[:2],
        DAYS[3],
    ]


def test_a_run_of_a_day_of_hours_builds_those_of_other_days(model: ModelSpec) -> None:
    spec = feature_spec(loader.load_spec("departure_counts"))
    spec = spec.model_copy(update={"sources": (spec.source("takeoffs"),)})  # which may be absent
    by_day = {day: [f"{day}T{hour:02d}:00Z" for hour in range(5, 24)] for day in DAYS[:5]}
    for day, following in pairwise(DAYS[:6]):
        by_day[day] += [f"{following}T{hour:02d}:00Z" for hour in range(5)]
    active = {CALENDAR.start(day) for day in (DAYS[0], DAYS[2], DAYS[4])}
    awaited = planning.periods_awaited_by_other_runs(
        spec, backfilled(DAYS[2]), set(by_day[DAYS[2]]), lambda logical_dates: len(active & set(logical_dates))
    )
    assert awaited == [*by_day[DAYS[0]], *by_day[DAYS[4]]]


@pytest.mark.parametrize("facts", [{"data_interval": None}, {"logical_date": None}])
def test_runs_without_dates_build_no_days_of_others(model: ModelSpec, facts: dict[str, Any]) -> None:
    run = DagRunInfo(**{**vars(backfilled(DAYS[2])), **facts})
    assert planning.periods_awaited_by_other_runs(feature_spec(model), run, {DAYS[2]}, counter(DAYS)) == []


def test_an_arrival_includes_days_whose_event_was_dropped(model: ModelSpec) -> None:
    store = announcement_store("flight_delay")
    first, dropped = {str(DAYS[1]): "a" * 32}, {str(DAYS[4]): "b" * 32, "2012-12-31": "c" * 32}
    store.record_announcement(first | dropped, datetime.now(UTC))
    event = AssetEvent.from_extra({"from_trigger": True, "payload": {"periods": first}})
    run = DagRunInfo("asset_triggered", datetime(2013, 3, 1, tzinfo=UTC), asset_events=(event,), run_id="arrival")
    window = resolve_features_window(run, calendar=CALENDAR, first_day=date.fromisoformat(DAYS[0]), last_day=None)
    assert window.periods == (DAYS[1],)
    assert planning.periods_to_publish(model, run, window) == [DAYS[1], DAYS[4]]
    assert all(store.is_acknowledged(day, delivery_id) for day, delivery_id in (first | dropped).items())
