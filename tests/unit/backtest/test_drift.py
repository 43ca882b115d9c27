"""Retrains on drift of a walk are those that the monitor DAG would have asked for; no later day counts."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from evergreen import ledger
from evergreen.backtest import drift
from evergreen.backtest.cache import BacktestCache, BacktestCandidate
from evergreen.backtest.drift import RetrainsOnDrift, record_before
from evergreen.backtest.walk_forward import BacktestPoint, Deployment, simulate_policy
from evergreen.features.inputs import published_manifests
from evergreen.lake.datasets import Manifest, period_partition
from evergreen.monitoring.record import AlarmRecord, ChangeRecord, MonitoringRecord
from evergreen.monitoring.service import monitor_periods, preview_record
from evergreen.periods import Duration
from evergreen.promotion import retraining
from evergreen.spec.loader import load_spec
from evergreen.spec.model import ModelSpec, RetrainPolicy
from support.daily_features import publish_tables
from support.ledger_events import MODEL, day, promotion, verdict_event

pytestmark = pytest.mark.unit

FIRST, AS_OF, BROKEN, END = 0, 40, 50, 68
INPUTS = ("distance", "carrier_delays__late__share")
WEEKLY = tuple(range(AS_OF, END + 1, 7))


@pytest.fixture(autouse=True)
def lake(home: Path) -> None:
    """A lake with features of all days; from `BROKEN` on, distances are in another unit."""
    for number in range(FIRST, END):
        rng = np.random.default_rng(number)
        factor = 1.609 if number >= BROKEN else 1.0
        publish_tables(
            MODEL,
            day(number),
            {
                "departures": {"distance": factor * (500 + 100 * rng.standard_normal(300) + rng.normal())},
                "carrier_delays": {"late__share": rng.random(30) + rng.normal(0, 0.01)},
            },
        )


def spec(**policy: object) -> ModelSpec:
    return load_spec(MODEL).model_copy(update={"retrain_on": RetrainPolicy.model_validate(policy)})


def candidates(dates: tuple[int, ...], train: int = AS_OF - FIRST) -> dict[str, BacktestCandidate]:
    """Return candidates of these dates, each of all features of `train` days before."""
    published = published_manifests(spec(), [day(number) for number in range(FIRST, END)])
    made = {}
    for number in dates:
        learned = {period_partition(day(n)): published[day(n)].content_hash for n in range(number - train, number)}
        dates_of = {"as_of": day(number), "holdout": day(number - 7), "holdout_end": day(number)}
        made[day(number)] = BacktestCandidate(
            Manifest(f"as_of={day(number)}", f"set-{number}", {**dates_of, "features": learned}, {}),
            Manifest(f"as_of={day(number)}", f"model-{number}", {"features": list(INPUTS)}, {}),
        )
    return made


def walk(folder: Path, model: ModelSpec, dates: tuple[int, ...] = WEEKLY) -> tuple[RetrainsOnDrift, list[Deployment]]:
    made = candidates(dates)
    policy = RetrainsOnDrift(model, made, BacktestCache(model, made, folder))
    return policy, list(simulate_policy([item.point for item in made.values()], policy.deploy))


def promote_first(model: ModelSpec) -> ModelSpec:
    """Make the model of `AS_OF` champion of the real ledger; return a spec that learns from the days until then."""
    event = verdict_event(AS_OF).model_copy(update={"candidate_inputs": INPUTS})
    ledger.append_decision(MODEL, "ada", lambda _: event)
    ledger.append_decision(MODEL, "ada", lambda _: promotion("1", AS_OF, 1))
    return model.model_copy(update={"train": Duration(AS_OF - model.holdout.count, "d")})


def test_an_alarm_has_the_next_candidate_deployed(tmp_path: Path) -> None:
    policy, deployed = walk(tmp_path, spec(alarms=["break"]))
    assert [item.point.as_of for item in deployed] == [day(AS_OF), day(54)]
    # The day of the break is over when the next one begins: the monitor asks then, and the date comes three days later.
    assert deployed[1].reason.startswith(f"as of {day(BROKEN + 1)}: break since {day(BROKEN)}: departures.distance")
    assert "entry" not in deployed[1].reason
    assert policy.notes == ()
    assert [item.point.as_of for item in walk(tmp_path, spec(alarms=["drift"]))[1]] == [day(AS_OF)]


def test_requests_are_those_of_the_monitor(tmp_path: Path) -> None:
    """The oracle: what the monitor publishes, and asks for, when the day before the break is over, and the next two."""
    model = spec(alarms=["break"])
    model = promote_first(model)
    asked = set()
    for number in range(BROKEN, BROKEN + 3):
        record = monitor_periods(model, day(number), "ada")
        assert record
        entry = retraining.request_retrain(model, record, day(number), (), actor="ada")
        if entry and isinstance(entry.event, ledger.RetrainRequested):
            asked.add((entry.event.as_of, entry.event.cause.split(" (alarm")[0]))
    _, deployed = walk(tmp_path, model)
    as_of, cause = deployed[1].reason.removeprefix("as of ").split(": ", 1)
    assert asked == {(as_of, cause)}


def test_what_was_known_of_a_day_depends_on_no_later_one() -> None:
    model = promote_first(spec())
    whole = preview_record(model, day(END))
    assert whole
    assert whole.alarms
    for number in range(AS_OF + 1, END, 3):
        then = preview_record(model, day(number))
        assert then
        cut = record_before(whole, date.fromisoformat(day(number)))
        assert cut.alarms == then.alarms


def test_an_alarm_is_open_until_the_day_on_which_it_closes_is_over() -> None:
    days = [date.fromisoformat(day(number)) for number in range(30)]
    change = ChangeRecord(column="departures.distance", measure="level", deviation=9.0, effect=0.4)
    alarm = AlarmRecord(rule="drift", opened=days[5], closed=days[20], changes=(change,))
    record = MonitoringRecord(
        champion_version="1",
        champion_content="0" * 64,
        as_of=day(0),
        reference_days=60,
        judged_until=days[29],
        periods=30,
        alarms=(alarm,),
        problems=(),
    )
    open_days = [end for end in range(1, 30) if record_before(record, days[end]).open_alarms]
    assert open_days == list(range(6, 21))
    assert record_before(record, days[5]).alarms == ()


def test_dates_to_come_change_nothing(tmp_path: Path) -> None:
    _, deployed = walk(tmp_path / "all", spec(alarms=["break", "drift"]))
    for count in range(1, len(WEEKLY)):
        _, earlier = walk(tmp_path / str(count), spec(alarms=["break", "drift"]), WEEKLY[:count])
        assert [item.point for item in earlier] == [
            item.point for item in deployed if item.point.as_of <= day(WEEKLY[count - 1])
        ]


def test_a_walk_that_is_repeated_counts_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, before = walk(tmp_path, spec(alarms=["break"]))
    monkeypatch.setattr(drift, "open_database", None)
    assert walk(tmp_path, spec(alarms=["break"]))[1] == before
    with pytest.raises(TypeError):
        walk(tmp_path / "other", spec(alarms=["break"]))


def test_notes_say_what_is_not_as_the_spec_says(tmp_path: Path) -> None:
    policy, deployed = walk(tmp_path, spec(alarms=["performance"]))
    assert "names no alarms of data" in policy.notes[0]
    assert len(deployed) > 1  # breaks may ask by default
    policy, _ = walk(tmp_path, spec(alarms=["performance", "drift"]))
    assert policy.notes == ("alarms of performance are not simulated",)


def test_features_that_were_published_again_are_not_watched(tmp_path: Path) -> None:
    made, model = candidates(WEEKLY), spec(alarms=["break"])
    changed = period_partition(day(BROKEN))
    for candidate in made.values():
        if changed in candidate.training_set.inputs["features"]:
            candidate.training_set.inputs["features"][changed] = "0" * 64
    policy = RetrainsOnDrift(model, made, BacktestCache(model, made, tmp_path))
    deployed = simulate_policy([item.point for item in made.values()], policy.deploy)
    assert f"features of {day(BROKEN)} are not those that the candidates were made from" in policy.notes[0]
    assert deployed[1].reason.startswith(f"as of {day(BROKEN + 2)}: break since {day(BROKEN + 1)}")


def test_too_short_a_reference_is_said(tmp_path: Path) -> None:
    made, model = candidates(WEEKLY, train=10), spec(alarms=["break"])
    policy = RetrainsOnDrift(model, made, BacktestCache(model, made, tmp_path))
    assert len(simulate_policy([item.point for item in made.values()], policy.deploy)) == 1
    (note,) = policy.notes
    assert note == f"model of {day(AS_OF)}: inputs: no alarms yet: 10 days are known to compare with, and 28 are needed"


def test_the_cooldown_of_promotions_holds(tmp_path: Path) -> None:
    model = spec(alarms=["break"])
    _, deployed = walk(tmp_path, model.model_copy(update={"cooldown": Duration(20, "d")}))
    assert [item.point.as_of for item in deployed] == [day(AS_OF), day(61)]
    assert isinstance(deployed[1].point, BacktestPoint)
    assert deployed[1].reason.startswith(f"as of {day(60)}: ")
