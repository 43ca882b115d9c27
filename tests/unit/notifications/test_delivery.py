"""What a route is told, once and at least once: from ledger, lake and jobs, whatever happens to its runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from evergreen import ledger, storage
from evergreen.errors import NotificationError
from evergreen.notifications import delivery, outbox
from evergreen.notifications.delivery import MAX_FAILURES, MAX_SENT, DeliveryReport, deliver
from evergreen.notifications.events import Notification
from evergreen.notifications.outbox import MAX_ABSENCE, MAX_UNSENT, outbox_file, read_outbox
from evergreen.settings import NotificationRoute, settings
from evergreen.storage import file_lock
from evergreen.training.attempt import Attempt, ResourceAllocation
from evergreen.training.outcome import Outcome
from evergreen.training.recent_attempts import register_job
from support import tills
from support.interleaving import before_change, killed_before_change
from support.ledger_events import promotion, registration, verdict_event
from support.object_stores import STORES, open_store
from support.small_models import write_small_model

pytestmark = pytest.mark.unit

NOW = datetime(2024, 1, 7, 15, tzinfo=UTC)
KIOSKS = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="kiosks", owner="others", feature_service="kiosks",
    features=dict(timezone="UTC", first_day="2024-01-01", spine="receipts", views=["takings"],
                  sources=[dict(name="sales", columns=dict(day="date32"))]),
    schedule="0 0 * * 1", train="5d", holdout="2d",
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""


class Clock:
    """The time of ledgers in these tests."""

    now = NOW


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("evergreen.ledger.journal.utc_now", lambda: clock.now)
    return clock


@pytest.fixture
def model_folder(
    clock: Clock, home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Path:
    return tills.write_model(tmp_path, monkeypatch, use_models)


def reject(day: int, model: str = "tills") -> None:
    ledger.append_decision(model, "ada", lambda _: verdict_event(day, passed=False))


def run(
    now: datetime = NOW, send: Callable[[Notification], None] | None = None, **route: Any
) -> tuple[DeliveryReport, list[Notification]]:
    """Run the route `ops`, by default with a receiver that works; return the report, and what was received."""
    received: list[Notification] = []
    report = deliver("ops", NotificationRoute(**route), send or received.append, now)
    return report, received


def titles(now: datetime = NOW, **route: Any) -> list[str]:
    report, received = run(now, **route)
    report.raise_problems()
    return [notification.title for notification in received]


def refuse(_: Notification) -> None:
    raise ConnectionError("https://hooks.example.com/secret-token refused")


def rejection(day: int, model: str = "tills") -> str:
    return f"{model}: the candidate as of 2013-01-{day + 1:02} was held back"


def test_a_route_is_told_what_happens_from_its_first_run_on(model_folder: Path) -> None:
    reject(1)
    reject(2)
    assert titles() == []
    reject(3)
    reject(4)
    assert titles() == [rejection(3), rejection(4)]
    assert titles() == []


def test_teams_and_events(
    model_folder: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_model("kiosks", tmp_path, monkeypatch, use_models, model=KIOSKS)
    assert titles(teams=["others"], events=["held_back"]) == []
    for model in ("tills", "kiosks"):
        reject(1, model)
    assert titles(teams=["others"], events=["promoted"]) == []
    reject(2, "kiosks")
    later = NOW + timedelta(minutes=1)
    # The first was read when it was not wanted.
    assert titles(later, teams=["others"], events=["held_back"]) == [rejection(2, "kiosks")]
    # What a team's models have been through before the route was about them is history.
    assert titles(later) == []
    reject(3)
    assert titles(later) == [rejection(3)]


def test_a_team_that_comes_back_gets_no_history(model_folder: Path, clock: Clock) -> None:
    assert titles(teams=["tests"]) == []
    assert titles(NOW + timedelta(minutes=5), teams=["others"]) == []
    clock.now = NOW + timedelta(minutes=7)
    reject(1)
    assert titles(NOW + timedelta(minutes=10), teams=["others"]) == []
    clock.now = NOW + timedelta(minutes=12)
    reject(2)
    assert titles(NOW + timedelta(minutes=15), teams=["tests"]) == [rejection(2)]


def test_a_route_that_comes_back_after_long_gets_no_history(model_folder: Path, clock: Clock) -> None:
    assert titles() == []
    clock.now = NOW + timedelta(days=1)
    reject(1)
    now = NOW + MAX_ABSENCE
    assert titles(now) == [rejection(1)]
    reject(2)
    run(now, send=refuse)
    clock.now = now + timedelta(days=1)
    reject(3)
    now += MAX_ABSENCE + timedelta(seconds=1)
    report, received = run(now)
    with pytest.raises(NotificationError, match="route ops begins anew: nobody is told what happened since 2024-01-14"):
        report.raise_problems()
    assert rejection(3) not in [notification.title for notification in received]
    clock.now = now
    reject(4)
    assert titles(now + timedelta(minutes=5)) == [rejection(4)]


def test_a_model_that_is_new_is_told_from_its_first_entry(
    model_folder: Path, tmp_path: Path, clock: Clock, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert titles() == []
    write_small_model("kiosks", tmp_path, monkeypatch, use_models, model=KIOSKS)
    clock.now = NOW + timedelta(minutes=1)
    reject(1, "kiosks")
    assert titles(NOW + timedelta(minutes=5)) == [rejection(1, "kiosks")]


def test_a_ledger_that_was_restored_from_a_copy(model_folder: Path, clock: Clock) -> None:
    assert titles() == []
    reject(1)
    folder = Path(settings().ledger)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    clock.now = NOW + timedelta(minutes=1)
    reject(2)
    assert titles() == [rejection(1), rejection(2)]
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    ledger._open_journal.cache_clear()
    clock.now = NOW + timedelta(minutes=2)
    reject(3)
    reject(4)
    assert titles() == [rejection(3), rejection(4)]


def test_what_cannot_be_read_hides_no_other(
    model_folder: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_model("kiosks", tmp_path, monkeypatch, use_models, model=KIOSKS)
    assert titles() == []
    reject(1)
    reject(2)
    reject(1, "kiosks")
    [entry] = Path(settings().ledger).glob("tills/*/000002.json")
    content = entry.read_bytes()
    entry.write_text("{}")
    ledger._open_journal.cache_clear()
    report, received = run()
    assert [notification.title for notification in received] == [rejection(1, "kiosks")]
    with pytest.raises(NotificationError, match="tills: nothing is told about its ledger: .*000002.json"):
        report.raise_problems()
    entry.write_bytes(content)
    ledger._open_journal.cache_clear()
    assert titles() == [rejection(1), rejection(2)]
    (tmp_path / "evergreen_models/kiosks/model.py").write_text("MODEL = 1 / 0")
    tills.small_models.forget_model("kiosks")
    reject(3)
    report, received = run()
    assert [notification.title for notification in received] == [rejection(3)]
    assert [problem.partition(":")[0] for problem in report.problems] == ["kiosks"]


def test_a_ledger_that_cannot_be_read_at_the_first_looks(model_folder: Path, clock: Clock) -> None:
    reject(1)
    reject(2)
    [entry] = Path(settings().ledger).glob("tills/*/000002.json")
    content = entry.read_bytes()
    entry.write_text("{}")
    for minutes in (1, 6, 11):
        ledger._open_journal.cache_clear()
        report, received = run(NOW + timedelta(minutes=minutes))
        assert (received, len(report.problems)) == ([], 1)
    entry.write_bytes(content)
    ledger._open_journal.cache_clear()
    clock.now = NOW + timedelta(minutes=2)
    reject(3)
    assert titles(NOW + timedelta(minutes=16)) == [rejection(3)], "what happened after the first look, and no history"
    assert titles(NOW + timedelta(minutes=21)) == []


def test_a_model_that_is_broken_at_the_first_looks(model_folder: Path, clock: Clock) -> None:
    reject(1)
    file = model_folder / "model.py"
    content = file.read_text()
    file.write_text("MODEL = 1 / 0")
    tills.small_models.forget_model("tills")
    for minutes in (1, 6):
        report, received = run(NOW + timedelta(minutes=minutes))
        assert (received, len(report.problems)) == ([], 1)
    clock.now = NOW + timedelta(minutes=2)
    reject(2)
    record_attempt("a", Outcome.BAD_CODE, NOW - timedelta(hours=1))
    record_attempt("b", Outcome.OUT_OF_MEMORY, NOW + timedelta(minutes=3))
    file.write_text(content)
    tills.small_models.forget_model("tills")
    expected = [rejection(2), "tills: an attempt at its training ended as out of memory"]
    assert titles(NOW + timedelta(minutes=11)) == expected
    assert titles(NOW + timedelta(minutes=16)) == []


def test_an_approval_that_is_missing_is_told_once(model_folder: Path, clock: Clock) -> None:
    tills.change_spec(model_folder, 'holdout="2d",', 'holdout="2d", approval=dict(approvers=["bob"]),')
    assert titles() == []
    ledger.append_decision("tills", "ada", lambda _: verdict_event(10))
    assert titles() == []
    ledger.append_decision("tills", "ada", lambda _: registration("1", 1))
    expected = "tills: the candidate as of 2013-01-11 waits for an approval"
    assert titles() == [expected]
    assert titles() == []
    ledger.append_decision("tills", "ada", lambda _: promotion("1", 10, 1))
    assert titles() == ["tills: version 1 is champion"]


def test_late_features_and_champions_are_told_once(model_folder: Path) -> None:
    tills.deliver(6)
    spec = tills.change_spec(model_folder, 'spine="receipts",', 'spine="receipts", fresh_within="12h",')
    tills.publish(spec, tills.days(2))
    due = datetime(2024, 1, 4, 12, tzinfo=UTC)
    assert titles(due - timedelta(hours=1)) == []
    assert titles(due) == []
    assert titles(due + timedelta(minutes=5)) == ["tills: its features are late"]
    assert titles(due + timedelta(hours=5)) == []
    tills.publish(spec, tills.days(4)[2:])
    assert titles(due + timedelta(days=1)) == []
    assert titles(due + timedelta(days=2, minutes=5)) == ["tills: its features are late"]
    tills.change_spec(model_folder, 'train="5d",', 'train="5d", fresh_within="1w",')
    champion_due = datetime(2024, 1, 8, tzinfo=UTC)
    assert titles(champion_due) == []
    assert titles(champion_due + timedelta(minutes=5)) == ["tills: its champion is late"]
    assert titles(champion_due + timedelta(minutes=10)) == []


def test_while_it_catches_up_it_is_late_once(model_folder: Path) -> None:
    tills.deliver(6)
    spec = tills.change_spec(model_folder, 'spine="receipts",', 'spine="receipts", fresh_within="12h",')
    tills.publish(spec, tills.days(1))
    assert titles(datetime(2024, 1, 3, tzinfo=UTC)) == []
    late = datetime(2024, 1, 6, tzinfo=UTC)
    assert titles(late) == ["tills: its features are late"]
    for day in (1, 2):  # the day after each of them was due before, too
        tills.publish(spec, tills.days(6)[day : day + 1])
        assert titles(late + timedelta(minutes=5 * day)) == []
    tills.publish(spec, tills.days(6)[3:4])
    assert titles(late + timedelta(minutes=20)) == [], "on time"
    assert titles(late + timedelta(days=1)) == ["tills: its features are late"]


def test_nothing_is_told_of_what_was_late_before_the_first_run(model_folder: Path) -> None:
    tills.change_spec(model_folder, 'train="5d",', 'train="5d", fresh_within="1w",')
    assert titles() == titles() == []
    assert titles(events=["held_back"]) == titles(events=["late"]) == []


def record_attempt(name: str, outcome: Outcome | None, end: datetime) -> None:
    folder = storage.storage_path(settings().jobs) / "tills" / ("0" * 64)
    register_job(folder, end)
    Attempt(
        id=name,
        dag_run="tills.retrain manual__1",
        model="tills",
        team="tests",
        allocation=ResourceAllocation(),
        started_at=end - timedelta(minutes=1),
        last_heartbeat=end,
        ended_at=end if outcome else None,
        outcome=outcome,
    ).write(folder / "attempts" / f"{name}.json")


def test_attempts_that_are_lost(model_folder: Path) -> None:
    record_attempt("a", Outcome.BAD_CODE, NOW - timedelta(days=3))
    record_attempt("b", None, NOW)
    assert titles() == []
    assert titles(NOW + timedelta(minutes=5)) == []
    assert titles(NOW + timedelta(minutes=15)) == ["tills: an attempt at its training was killed without a trace"]
    record_attempt("c", Outcome.OUT_OF_MEMORY, NOW + timedelta(minutes=16))
    record_attempt("d", Outcome.SUCCEEDED, NOW + timedelta(minutes=16))
    assert titles(NOW + timedelta(minutes=20)) == ["tills: an attempt at its training ended as out of memory"]
    assert titles(NOW + timedelta(minutes=25)) == []


def test_what_is_not_received_is_sent_again_with_its_key(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert titles() == []
    reject(1)
    keys = []

    def fail(notification: Notification) -> None:
        keys.append(notification.key)
        refuse(notification)

    report, _ = run(send=fail)
    assert (report.sent, report.unsent) == (0, 1)
    with pytest.raises(NotificationError, match="route ops: 1 notifications are unsent: .*ConnectionError"):
        report.raise_problems()
    assert "secret-token" not in caplog.text + str(report)
    report, received = run()
    assert (report.sent, report.unsent, report.problems) == (1, 0, ())
    assert [notification.key for notification in received] == keys


def test_a_receiver_that_is_down_is_left_alone_until_the_next_run(model_folder: Path) -> None:
    assert titles() == []
    for day in range(1, 8):
        reject(day)
    tried: list[str] = []

    def fail(notification: Notification) -> None:
        tried.append(notification.title)
        refuse(notification)

    report, _ = run(send=fail)
    assert tried == [rejection(day) for day in range(1, MAX_FAILURES + 1)]
    assert report.unsent == 7
    # What was not tried yet comes first: one that is never received holds back no other.
    assert titles() == [rejection(day) for day in (4, 5, 6, 7, 1, 2, 3)]


def test_one_that_is_never_received_holds_back_no_other(model_folder: Path) -> None:
    assert titles() == []
    reject(1)
    reject(2)
    received: list[str] = []

    def send(notification: Notification) -> None:
        if notification.title == rejection(1):
            refuse(notification)
        received.append(notification.title)

    assert run(send=send)[0].unsent == 1
    reject(3)
    assert run(send=send)[0].unsent == 1
    assert received == [rejection(2), rejection(3)]


def test_one_that_hangs_until_the_task_is_killed_holds_back_no_other(model_folder: Path) -> None:
    assert titles() == []
    reject(1)
    reject(2)

    class Timeout(BaseException):
        """What ends a task that runs too long."""

    def hang(_: Notification) -> None:
        raise Timeout

    with pytest.raises(Timeout):
        run(send=hang)
    assert titles() == [rejection(2), rejection(1)]


@pytest.mark.parametrize("limit", ["MAX_SENT", "MAX_ENTRIES"])
def test_after_an_outage_a_run_reads_and_sends_a_portion(
    limit: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, limit, 2)
    assert titles() == []
    for day in range(1, 6):
        reject(day)
    assert [titles() for _ in range(4)] == [
        [rejection(1), rejection(2)],
        [rejection(3), rejection(4)],
        [rejection(5)],
        [],
    ]
    assert MAX_SENT < MAX_UNSENT


def test_old_ones_are_given_up_and_counted(
    model_folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__GIVE_UP_DAYS", "2")
    settings.cache_clear()
    assert titles() == []
    reject(1)
    run(send=refuse)
    clock.now = NOW + timedelta(days=1)
    reject(2)
    report, received = run(NOW + timedelta(days=2, minutes=1))
    assert [notification.title for notification in received] == [rejection(2)]
    assert report.given_up == read_outbox("ops").given_up == 1
    with pytest.raises(NotificationError, match="1 notifications that nobody received are given up"):
        report.raise_problems()
    assert f"route ops gives up {rejection(1)}" in caplog.text
    assert titles(NOW + timedelta(days=2, minutes=2)) == []
    assert read_outbox("ops").given_up == 1


def test_of_too_many_the_oldest_are_given_up(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_UNSENT", 2)
    assert titles() == []
    for day in range(1, 5):
        reject(day)
    report, received = run()
    assert (len(received), report.given_up) == (4, 0), "a receiver that works gets all"
    for day in range(5, 9):
        reject(day)
    report, _ = run(send=refuse)
    assert (report.unsent, report.given_up) == (2, 2)
    assert titles() == [rejection(8), rejection(7)]  # the first was not tried


def test_what_happened_long_ago_is_not_given_up_without_a_try(model_folder: Path) -> None:
    tills.change_spec(model_folder, 'train="5d",', 'train="5d", fresh_within="1w",')
    due = datetime(2024, 1, 8, tzinfo=UTC)
    assert titles(due) == []
    report, received = run(due + timedelta(days=6))  # the DAG was paused
    assert [notification.title for notification in received] == ["tills: its champion is late"]
    assert report.given_up == 0


def test_what_a_renamed_route_has_not_sent_is_logged(
    model_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_ORPHANS", 3)
    for name in ("a", "b", "c", "d"):
        deliver(name, NotificationRoute(), refuse, NOW)
    reject(1)
    for name in ("b", "c", "d"):
        deliver(name, NotificationRoute(), refuse, NOW)
    storage.put(outbox_file("c"), b"{")
    caplog.clear()
    assert titles() == []
    assert "1 notifications of route b are unsent, and no such route is set: " in caplog.text
    assert "route c, which is not set, cannot be read" in caplog.text
    assert "route a " not in caplog.text, "it has sent everything"
    assert "route d " not in caplog.text, "their number is bounded"
    outbox_file("ops").unlink()
    outbox_file("b").rename(outbox_file("ops"))
    assert titles() == [rejection(1)]


def test_a_damaged_file_says_what_to_do(model_folder: Path) -> None:
    assert titles() == []
    for content in (b"{", b"{}", b'{"unsent": 3, "secret": 1}'):
        storage.put(outbox_file("ops"), content)
        if content != b"{}":
            with pytest.raises(NotificationError, match=r"notifications/ops.json is damaged: .*remove it"):
                run()


@pytest.mark.parametrize("kind", STORES)
def test_in_an_object_store(kind: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(kind, monkeypatch) as (uri, _):
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        settings.cache_clear()
        assert titles() == []
        reject(1)
        assert run(send=refuse)[0].unsent == 1
        assert titles() == [rejection(1)]
        assert titles() == []
        assert not outbox_file("ops").as_posix().startswith("/")


def test_killed_before_each_change_nothing_is_lost(model_folder: Path, tmp_path: Path) -> None:
    changes, is_killed = 0, True
    while is_killed:
        route, file = f"route_{changes}", tmp_path / f"received_{changes}"

        def send(notification: Notification, file: Path = file) -> None:
            with file.open("a") as stream:  # a file: the run that is killed is another process
                stream.write(f"{notification.key}\n")

        def run_route(route: str = route, send: Callable[[Notification], None] = send) -> None:
            deliver(route, NotificationRoute(), send, NOW)

        run_route()
        reject(1)
        reject(2)
        is_killed = killed_before_change(changes, run_route)
        run_route()
        received = file.read_text().split()
        assert len({*received}) == 2
        assert len(received) <= 3, "at most the one that was being sent is sent again"
        assert not read_outbox(route).unsent
        changes += 1
    assert changes > 15  # five writes of the file, of some changes each


class Route(RuleBasedStateMachine):
    """A route whose runs are killed before any change of a file, meet one another, and whose receiver fails at times.

    What it receives is in a file, so that it counts also what a killed run has sent.
    """

    def __init__(self, folder: Path, use_home: Callable[[Path], Path]):
        super().__init__()
        shutil.rmtree(folder, ignore_errors=True)
        use_home(folder)
        ledger._open_journal.cache_clear()
        self.received, self.day, self.attempts = folder / "received", 1, 0
        self.expected: list[str] = []

    @initialize(before=st.integers(0, 2))
    def begin(self, before: int) -> None:
        for _ in range(before):
            self.judge()
        self.expected.clear()  # that was history
        self._run()

    @rule()
    def judge(self) -> None:
        reject(self.day)
        [*_, entry] = ledger.read_state("tills").entries
        self.expected.append(entry.recorded_at.isoformat())
        self.day += 1

    @precondition(lambda self: self.attempts < 5)
    @rule()
    def lose_an_attempt(self) -> None:
        end = datetime.now(UTC)
        record_attempt(f"{self.attempts}", Outcome.BAD_CODE, end)
        self.expected.append(end.isoformat())
        self.attempts += 1

    def _run(self, works: bool = True) -> None:
        def send(notification: Notification) -> None:
            if not works:
                refuse(notification)
            with self.received.open("a") as file:
                file.write(json.dumps([notification.key, notification.occurred_at.isoformat()]) + "\n")

        deliver("ops", NotificationRoute(), send, datetime.now(UTC))

    @rule(works=st.booleans())
    def run(self, works: bool) -> None:
        self._run(works)

    @rule(number=st.integers(0, 30), works=st.booleans())
    def run_that_is_killed(self, number: int, works: bool) -> None:
        killed_before_change(number, lambda: self._run(works))

    @rule(number=st.integers(0, 30), works=st.booleans(), other_works=st.booleans())
    def run_that_meets_another(self, number: int, works: bool, other_works: bool) -> None:
        def meet() -> None:
            # While this run holds the lock of the file, another one would wait for it.
            with suppress(BlockingIOError), file_lock(lock, wait=False):
                pass_by.append(True)
            if pass_by:
                self._run(other_works)

        lock, pass_by = Path(outbox_file("ops")).with_name(".lock"), list[bool]()
        with before_change(number, meet):
            self._run(works)

    def teardown(self) -> None:
        self._run()
        lines = [json.loads(line) for line in self.received.read_text().splitlines()] if self.expected else []
        instants: dict[str, str] = {}
        for key, instant in lines:
            assert instants.setdefault(key, instant) == instant
        assert sorted(instants.values()) == sorted(self.expected), "each event has one key, and nothing else is told"
        assert not read_outbox("ops").unsent


def test_every_event_is_received_whatever_happens_to_the_runs(
    tmp_path: Path, use_home: Callable[[Path], Path], use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tills.write_model(tmp_path, monkeypatch, use_models)
    run_state_machine_as_test(
        lambda: Route(tmp_path / "home", use_home),
        settings=hypothesis_settings(max_examples=15, stateful_step_count=12, deadline=None),
    )
