"""Which open alarms ask for a retrain, once each, and what holds them back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen import ledger
from evergreen.errors import LedgerError, WindowError
from evergreen.ledger import (
    AlarmRaised,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionsFrozen,
    PromotionsUnfrozen,
    RetrainRefused,
    RetrainRequested,
)
from evergreen.monitoring.record import AlarmRecord, ChangeRecord, MonitoringRecord
from evergreen.promotion import retraining
from evergreen.spec.model import ModelSpec, RetrainPolicy
from support.ledger_events import MODEL, append_event, build_state, content, day, promotion, verdict_event
from support.ledgers import COMPARISON, ledger_model

pytestmark = pytest.mark.unit

FIRST: tuple[LedgerEvent, ...] = (verdict_event(10), promotion("1", 10, 1))
Rule = Literal["break", "drift", "performance"]


def spec(**policy: Any) -> ModelSpec:
    policy = {"alarms": ("drift",), "cooldown": "7d", "budget": 2, **policy}
    return ledger_model(MODEL, gates=(COMPARISON,)).model_copy(update={"retrain_on": RetrainPolicy(**policy)})


def alarm(
    opened: int, rule: Rule = "drift", closed: int | None = None, columns: Sequence[str] = ("x.a",)
) -> AlarmRecord:
    changes = tuple(ChangeRecord(column=name, measure="level", deviation=2.0, effect=0.3) for name in columns)
    days = [None if number is None else date.fromisoformat(day(number)) for number in (opened, closed)]
    assert days[0]
    return AlarmRecord(rule=rule, opened=days[0], closed=days[1], changes=changes)


def record(*alarms: AlarmRecord, until: int = 20, model: int = 10) -> MonitoringRecord:
    return MonitoringRecord(
        champion_version="1",
        champion_content=content(model),
        as_of=day(model),
        reference_days=30,
        judged_until=date.fromisoformat(day(until)),
        periods=until - model,
        alarms=alarms,
        problems=(),
    )


def raised(item: AlarmRecord, model: int = 10) -> AlarmRaised:
    return AlarmRaised(
        champion="1", champion_content=content(model), rule=item.rule, day=item.opened, changes=item.change_names
    )


@dataclass
class Watch:
    """A ledger, and what a monitor that runs day after day asks of it."""

    model: ModelSpec = field(default_factory=spec)
    state: LedgerState = field(default_factory=lambda: build_state(*FIRST))
    alarms: list[AlarmRecord] = field(default_factory=list)
    published: int = 100
    """The day until which, exclusively, features are published."""

    def open(self, item: AlarmRecord) -> None:
        self.state = append_event(self.state, raised(item))
        self.alarms.append(item)

    def add(self, event: LedgerEvent) -> None:
        self.state = append_event(self.state, event)

    def record(self, end: int) -> MonitoringRecord:
        return record(*self.alarms, until=min(end, self.published) - 1)

    def ask(self, end: int) -> RetrainRequested | RetrainRefused | None:
        """Record what a run as of a day decides; return it if it is new."""
        unpublished = [day(number) for number in range(self.published, end)]
        decision = retraining.decide_request(self.state, self.model, self.record(end), day(end), unpublished)
        if decision is None or isinstance(decision, LedgerEntry):
            return None
        self.add(decision)
        return decision

    def pending(self, end: int) -> str | None:
        """Return the run that a run as of a day makes sure of."""
        entry = retraining.find_pending_request(self.state, self.model, day(end))
        return retraining.retrain_run_id(self.state, entry) if entry else None


def test_an_open_alarm_asks_once_and_again_after_the_cooldown() -> None:
    watch = Watch()
    assert watch.ask(18) is None
    watch.open(alarm(18))
    assert watch.ask(19) == RetrainRequested(
        alarm_entries=(3,), as_of=day(19), cause=f"drift since {day(18)}: x.a level (alarm in entry 3)"
    )
    run = watch.pending(19)
    assert run
    assert run.startswith(f"alarm__{day(19)}__")
    for end in range(19, 26):
        assert watch.ask(end) is None
        assert watch.pending(end) == run, "a run that was killed before it started it is followed by one that does"
    second = watch.ask(26)
    assert isinstance(second, RetrainRequested)
    assert (second.alarm_entries, second.as_of) == ((3,), day(26))
    assert watch.pending(26) not in (run, None)


def test_an_alarm_that_has_closed_asks_nothing() -> None:
    watch = Watch()
    watch.open(alarm(18))
    assert watch.ask(19)
    watch.alarms = [alarm(18, closed=24)]
    assert watch.pending(25), "what was recorded is kept"
    assert watch.ask(40) is None
    assert watch.pending(40) is None


def test_a_run_that_was_asked_for_starts_although_its_alarm_moved() -> None:
    watch = Watch()
    watch.open(alarm(18))
    assert watch.ask(19)
    run = watch.pending(19)
    watch.alarms = []
    watch.open(alarm(17, columns=["x.a", "x.b"]))
    refusal = watch.ask(20)
    assert isinstance(refusal, RetrainRefused)
    assert (refusal.obstacle, refusal.alarm_entries) == ("cooldown", (5,))
    assert watch.pending(20) == run
    assert run


@pytest.mark.parametrize(
    "seen",
    [
        record(alarm(18, "break"), until=18),
        record(alarm(18, closed=18), until=18),
        record(alarm(17), until=18),  # not in the ledger
        record(alarm(18, columns=["x.b"]), until=18),
        record(alarm(18), until=18, model=20),  # of another champion
        record(alarm(18), until=19),  # the run is about a day of the past
        record(alarm(18), alarm(19)).model_copy(update={"judged_until": None}),
    ],
)
def test_what_asks_nothing(seen: MonitoringRecord) -> None:
    state = build_state(*FIRST, raised(alarm(18)), raised(alarm(18, "break")))
    assert retraining.decide_request(state, spec(), record(alarm(18), until=18), day(19), ())
    assert retraining.decide_request(state, spec(), seen, day(19), ()) is None


def test_a_loss_of_performance_asks_if_the_spec_names_it() -> None:
    loss = alarm(15, "performance")  # its labels have matured later
    state, seen = build_state(*FIRST, raised(loss)), record(loss, until=18)
    assert retraining.decide_request(state, spec(), seen, day(19), ()) is None
    request = retraining.decide_request(state, spec(alarms=("performance",)), seen, day(19), ())
    assert isinstance(request, RetrainRequested)
    assert request.cause == f"performance since {day(15)}: x.a level (alarm in entry 3)"


def test_without_retrain_on_no_alarm_asks() -> None:
    state, model = build_state(*FIRST, raised(alarm(18))), ledger_model(MODEL, gates=(COMPARISON,))
    assert retraining.decide_request(state, model, record(alarm(18), until=18), day(19), ()) is None


def test_another_alarm_waits_for_the_cooldown_and_says_so_once() -> None:
    watch = Watch()
    watch.open(alarm(18))
    assert watch.ask(19)
    run = watch.pending(19)
    watch.open(alarm(21, columns=["x.b"]))
    refusal = watch.ask(22)
    assert isinstance(refusal, RetrainRefused)
    assert (refusal.alarm_entries, refusal.obstacle) == ((3, 5), "cooldown")
    assert f"alarms that are open as of {day(26)} may ask again" in refusal.reason
    for end in range(22, 26):
        assert watch.ask(end) is None
        assert watch.pending(end) == run, "the first request stands"
    both = watch.ask(26)
    assert isinstance(both, RetrainRequested)
    assert both.alarm_entries == (3, 5)
    assert both.cause.endswith(f"; drift since {day(21)}: x.b level (alarm in entry 5)")


def test_the_budget_is_of_thirty_days() -> None:
    watch = Watch()
    watch.open(alarm(18))
    decisions, pending = {}, {}
    for end in range(19, 59):
        if decision := watch.ask(end):
            decisions[end] = decision
        pending[end] = watch.pending(end)
    assert {end: type(decision) for end, decision in decisions.items()} == {
        19: RetrainRequested,
        26: RetrainRequested,
        33: RetrainRefused,
        49: RetrainRequested,
        56: RetrainRequested,
    }
    refusal = decisions[33]
    assert isinstance(refusal, RetrainRefused)
    assert refusal.obstacle == "budget"
    without_run = [end for end, run_id in pending.items() if run_id is None]
    assert without_run == [*range(33, 49)], "long after a request, its run is not created again"
    assert f"2 in 30d, and is spent: alarms that are open as of {day(49)} may ask again" in refusal.reason


def test_a_request_that_would_train_nothing_is_not_spent() -> None:
    watch = Watch()
    watch.add(PromotionsFrozen(reason="stocktaking"))
    watch.open(alarm(18))
    refusal = watch.ask(19)
    assert isinstance(refusal, RetrainRefused)
    assert refusal.obstacle == "pause"
    assert "it would train nothing: the model was frozen by ada: stocktaking" in refusal.reason
    assert watch.ask(20) is None
    assert watch.pending(20) is None
    watch.add(PromotionsUnfrozen(reason="it is over"))
    assert isinstance(watch.ask(21), RetrainRequested)


def test_a_retrain_that_would_lack_features_is_refused_once() -> None:
    watch = Watch()
    watch.open(alarm(18))
    assert watch.ask(19)
    watch.published = 24  # the source is dead
    refusals = {end: decision for end in range(20, 57) if (decision := watch.ask(end))}
    assert [*refusals] == [26]
    refusal = refusals[26]
    assert isinstance(refusal, RetrainRefused)
    assert refusal.obstacle == "data"
    assert refusal.reason == f"it would fail: features of {day(24)} are not published"
    watch.published = 57
    assert isinstance(watch.ask(57), RetrainRequested)


def test_a_run_before_the_last_features_leaves_the_request_to_theirs() -> None:
    watch = Watch(published=18)
    watch.open(alarm(17))
    refusal = watch.ask(19)
    assert isinstance(refusal, RetrainRefused)
    assert refusal.reason == f"it would fail: features of {day(18)} are not published"
    watch.published = 19
    assert isinstance(watch.ask(19), RetrainRequested)


def test_a_refusal_is_said_again_after_a_request() -> None:
    watch = Watch()
    watch.open(alarm(18))
    kinds = []
    for end in (19, 20, 21, 28, 29):
        is_frozen = end in (19, 28)
        if is_frozen:
            watch.add(PromotionsFrozen(reason="stocktaking"))
        kinds.append((decision := watch.ask(end)) and decision.kind)
        if is_frozen:
            watch.add(PromotionsUnfrozen(reason="it is over"))
    requested, refused = "retrain_requested", "retrain_refused"
    assert kinds == [refused, requested, None, refused, requested], "for the same reason"


def test_alarms_about_a_champion_that_was_replaced_ask_nothing() -> None:
    state = build_state(*FIRST, raised(alarm(18)), verdict_event(19, "1"), promotion("2", 19, 4, "1"))
    assert retraining.decide_request(state, spec(), record(alarm(18)), day(21), ()) is None
    asked = build_state(*FIRST, raised(alarm(18)))
    request = retraining.decide_request(asked, spec(), record(alarm(18)), day(21), ())
    assert isinstance(request, RetrainRequested)
    state = append_event(append_event(append_event(asked, request), verdict_event(21, "1")), promotion("2", 21, 5, "1"))
    assert retraining.find_pending_request(state, spec(), day(21)) is None


def test_runs_of_two_ledgers_differ() -> None:
    """Airflow may remember the runs of a ledger that was lost."""
    request = RetrainRequested(alarm_entries=(3,), as_of=day(19), cause="drift")
    states = [build_state(*FIRST, raised(alarm(18, columns=[name])), request) for name in ("x.a", "x.b")]
    first, second = (retraining.retrain_run_id(state, state.entries[3]) for state in states)
    assert first != second
    assert first == retraining.retrain_run_id(append_event(states[0], raised(alarm(20))), states[0].entries[3])


@given(
    ends=st.lists(st.integers(11, 58), max_size=20),
    opened=st.lists(st.integers(11, 58), max_size=6, unique=True),
    cooldown=st.integers(1, 20),
    budget=st.integers(1, 4),
)
def test_cooldown_and_budget_hold_in_whatever_order_runs_come(
    ends: list[int], opened: list[int], cooldown: int, budget: int
) -> None:
    watch = Watch(spec(cooldown=f"{cooldown}d", budget=budget))
    asked: list[int] = []
    for end in ends:
        for number in opened:
            if number < end and alarm(number) not in watch.alarms:
                watch.open(alarm(number))
        if isinstance(watch.ask(end), RetrainRequested):
            asked.append(end)
        assert watch.ask(end) is None, "the same run asks nothing twice"
    assert all(later - earlier >= cooldown for earlier, later in pairwise(asked))
    assert all(sum(end - 30 < other <= end for other in asked) <= budget for end in asked)
    assert len({entry.hash for entry in watch.state.entries.records}) == watch.state.head_number


def test_a_cause_has_a_length_whatever_columns_are_called() -> None:
    watch = Watch()
    for number in range(11, 18):
        watch.open(alarm(number, columns=[f"t.{'ä' * 5000}{n}\n<script>" for n in range(50)]))
    request = watch.ask(19)
    assert isinstance(request, RetrainRequested)
    assert len(request.cause) < 2000
    assert "and 47 more (alarm in entry 3)" in request.cause
    assert request.cause.endswith(" and 4 more alarms")


@pytest.mark.parametrize(
    ("period", "alarm_day", "ends", "cooldown"),
    [
        ("1w", date(2013, 1, 28), ("2013-02-04", "2013-02-11", "2013-02-18"), "2w"),
        ("1h", date(2013, 1, 29), ("2013-01-30T00:00Z", "2013-01-30T11:00Z", "2013-01-30T12:00Z"), "12h"),
    ],
)
def test_periods_of_other_lengths(period: str, alarm_day: date, ends: tuple[str, str, str], cooldown: str) -> None:
    features = spec().features.model_copy(update={"period": period})  # type: ignore[union-attr]
    model = spec(cooldown=cooldown).model_copy(update={"features": features})
    item = alarm(18).model_copy(update={"opened": alarm_day})
    state = build_state(*FIRST, raised(item))
    seen = record(item).model_copy(update={"judged_until": alarm_day})
    asked = []
    for end in ends:
        decision = retraining.decide_request(state, model, seen, end, ())
        if isinstance(decision, RetrainRequested):
            asked.append(decision.as_of)
            state = append_event(state, decision)
    assert asked == [ends[0], ends[2]]
    later = seen.model_copy(update={"judged_until": alarm_day + timedelta(days=40)})
    assert retraining.decide_request(state, model, later, ends[2], ()) is None


@pytest.mark.parametrize("numbers", [(1,), (3, 9), (4,)])
def test_the_ledger_knows_the_alarms_of_a_request(numbers: tuple[int, ...]) -> None:
    state = build_state(*FIRST, raised(alarm(18)))
    for event in (
        RetrainRequested(alarm_entries=numbers, as_of=day(19), cause="drift"),
        RetrainRefused(alarm_entries=numbers, as_of=day(19), obstacle="budget", reason="spent"),
    ):
        with pytest.raises(LedgerError, match=f"it refers to the alarm in entry {numbers[-1]}, which holds none"):
            append_event(state, event)
    with pytest.raises(LedgerError, match="it claims data until"):
        append_event(state, RetrainRequested(alarm_entries=(3,), as_of="2013-03-03", cause="drift"))


def test_two_at_once_ask_once(home: Path) -> None:
    for event in (*FIRST, raised(alarm(18))):
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)
    both = Barrier(2)

    def ask(actor: str) -> int:
        both.wait()
        entry = retraining.request_retrain(spec(), record(alarm(18), until=18), day(19), (), actor=actor)
        assert entry
        return entry.number

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, ("one", "another"))) == [4, 4]
    state = ledger.read_state(MODEL)
    assert [entry.event.kind for entry in state.entries[3:]] == ["retrain_requested"]
    assert retraining.read_cause(MODEL, 4) == f"drift since {day(18)}: x.a level (alarm in entry 3)"
    for number in (0, 3, 5):
        with pytest.raises(WindowError, match=f"entry {number} of the ledger of {MODEL} asks for no retrain"):
            retraining.read_cause(MODEL, number)
    assert retraining.request_retrain(spec(), record(until=18), day(19), (), actor="one") is None
    assert ledger.read_state(MODEL).head_number == 4
