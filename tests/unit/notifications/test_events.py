"""What notifications say of ledgers and attempts, whatever people and data have written there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen import ledger
from evergreen.gates.verdict import Look
from evergreen.ledger.entries import LedgerEntry, hash_entry
from evergreen.notifications import events
from evergreen.notifications.events import (
    MAX_TEXT_LENGTH,
    MAX_TITLE_LENGTH,
    Notification,
    attempt_notification,
    entry_notification,
    plain_line,
)
from evergreen.spec.model import ModelSpec
from evergreen.training.attempt import Attempt, ResourceAllocation
from evergreen.training.outcome import Outcome
from support import tills
from support.ledger_events import (
    build_entries,
    content,
    day,
    deferral,
    look_event,
    loss,
    promotion,
    registration,
    rollback,
    verdict_event,
    withdrawal,
)

pytestmark = pytest.mark.unit

NOW = datetime(2024, 1, 7, 15, tzinfo=UTC)
AIRFLOW = "https://airflow.example.com"


@pytest.fixture
def model(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    tills.write_model(tmp_path, monkeypatch, use_models)
    return tills.reload_spec()


def notify(model: ModelSpec, entry: LedgerEntry, airflow_url: str | None = AIRFLOW) -> Notification | None:
    return entry_notification(model, entry, hash_entry(entry.to_bytes()), airflow_url)


def alarm(*changes: str) -> ledger.AlarmRaised:
    return ledger.AlarmRaised(
        champion="1", champion_content=content(10), rule="drift", day=datetime(2013, 1, 12).date(), changes=changes
    )


STORY: tuple[tuple[ledger.LedgerEvent, tuple[str, str, str] | None], ...] = (
    (verdict_event(10), None),
    (registration("1", 1), None),
    (promotion("1", 10, 1), ("promoted", "info", "tills: version 1 is champion")),
    (
        verdict_event(20, "1", passed=False),
        ("held_back", "warning", f"tills: the candidate as of {day(20)} was held back"),
    ),
    (
        look_event(verdict_event(30, "1"), "inconclusive"),
        ("held_back", "info", f"tills: the candidate as of {day(30)} gathers more evidence"),
    ),
    (look_event(verdict_event(30, "1"), "inconclusive", 2, 5), None),
    (withdrawal("2", 6), ("held_back", "info", "tills: version 2 was withdrawn")),
    (verdict_event(40, "1"), None),
    (deferral("3", 40, 8), ("held_back", "info", "tills: version 3 waits")),
    (
        ledger.PromotionRejected(version="3", verdict_entry=8, rejected_by="bob", reason="no"),
        ("held_back", "warning", "tills: version 3 was not approved"),
    ),
    (alarm("flights.delay psi"), ("alarm", "warning", "tills: the data of champion 1 has changed (drift, 2013-01-12)")),
    (promotion("4", 40, 8, "1"), ("promoted", "info", "tills: version 4 is champion")),
    (
        rollback("1", "4"),
        ("rolled_back", "warning", "tills: version 1 is champion again, version 4 is barred"),
    ),
    (loss("1", None), ("lost", "critical", "tills: the champion, version 1, is lost; it has none now")),
    (ledger.PromotionsFrozen(reason="stocktaking"), None),
    (ledger.BacktestRecorded(as_of=day(5), candidate_fingerprint="x", report="a.html"), None),
    (
        alarm("auc performance").model_copy(update={"rule": "performance"}),
        ("alarm", "warning", "tills: champion 1 does worse than when it was judged (2013-01-12)"),
    ),
)


def test_every_kind_of_entry(model: ModelSpec) -> None:
    entries = build_entries([event for event, _ in STORY], "tills")
    for entry, (_, expected) in zip(entries, STORY, strict=True):
        notification = notify(model, entry)
        assert (notification and (notification.event, notification.severity, notification.title)) == expected
        if notification:
            assert entry.event.kind in events.NOTIFIED_KINDS
            assert notification.occurred_at == entry.recorded_at
            assert notification.team == "tests"
            assert Notification.model_validate_json(notification.model_dump_json()) == notification


def test_reasons_are_told(model: ModelSpec) -> None:
    entries = build_entries([event for event, _ in STORY], "tills")
    texts = {entry.number: item.text for entry in entries if (item := notify(model, entry))}
    assert texts[3] == f"It knows data until {day(10)}."
    assert texts[4] == "auc: auc 0.7"
    assert texts[9] == "frozen"
    assert texts[10] == "bob: no"
    assert texts[11] == "flights.delay psi"
    assert texts[12] == f"It knows data until {day(40)}. It replaces version 1."
    assert texts[13] == "ada: late flights"


def test_an_automatic_rollback_tells_its_evidence_and_who_approved(model: ModelSpec) -> None:
    event = ledger.ChampionRolledBack(
        restored_version="1", barred_version="4", reason="version 1 does better", request_entry=7
    )
    by_itself, approved = build_entries([event, event.model_copy(update={"approved_by": "grace"})], "tills")
    for entry, text in (
        (by_itself, "Automatic, by ada: version 1 does better"),
        (approved, "Automatic, by ada: version 1 does better. grace approved."),
    ):
        notification = notify(model, entry)
        assert notification
        assert (notification.event, notification.text) == ("rolled_back", text)


def test_a_rollback_that_waits_for_a_person_and_one_that_was_rejected(model: ModelSpec) -> None:
    look = Look(end=datetime(2013, 2, 1).date(), days=10, level=0.001, gain=0.1, low=0.01)
    request = ledger.RollbackRequested(
        champion="4",
        champion_entry=1,
        previous="1",
        previous_content=content(10),
        as_of=day(40),
        days=(datetime(2013, 1, 20).date(), look.end),
        look=look,
        alpha=0.01,
        metric="a digest",
        rows=100,
        reason="version 1 does better",
    )
    rejection = ledger.RollbackRejected(request_entry=1, rejected_by="grace", reason="it was the weather")
    waiting, rejected = build_entries([request, rejection], "tills")
    assert notify(model, waiting) is None, "without an approval it is followed by the rollback"
    asked = events.approval_notification(model, waiting, "a hash", AIRFLOW)
    assert (asked.event, asked.title) == (
        "waiting_for_approval",
        "tills: a rollback of champion 4 waits for an approval",
    )
    assert asked.text == "Answer under Required actions in Airflow. version 1 does better"
    assert asked.link == f"{AIRFLOW}/evergreen/tills.monitor/monitoring"
    told = notify(model, rejected)
    assert told
    assert (told.event, told.text) == ("held_back", "grace: it was the weather")
    assert rejected.event.kind in events.NOTIFIED_KINDS


def test_links_lead_to_reports_if_airflow_is_known(model: ModelSpec) -> None:
    entries = build_entries([event for event, _ in STORY], "tills")
    links = {entry.number: item.link for entry in entries if (item := notify(model, entry))}
    assert links[3] == f"{AIRFLOW}/evergreen/tills.retrain/verdicts/1"
    assert links[4] == f"{AIRFLOW}/evergreen/tills.retrain/verdicts/4"
    assert links[11] == f"{AIRFLOW}/evergreen/tills.monitor/monitoring"
    assert links[13] is None
    unknown = [item.link for entry in entries if (item := notify(model, entry, None))]
    assert unknown == [None] * len(links)


def test_the_key_is_that_of_the_entry(model: ModelSpec) -> None:
    entries = build_entries([event for event, _ in STORY], "tills")
    keys = [item.key for entry in entries if (item := notify(model, entry))]
    again = [item.key for entry in entries if (item := notify(model, entry, None))]
    assert keys == again
    assert len({*keys}) == len(keys)
    other = build_entries([*[event for event, _ in STORY[:-3]], rollback("1", "4")], "tills")[12]
    changed = other.model_copy(update={"actor": "eve"})
    assert notify(model, other).key != notify(model, changed).key  # type: ignore[union-attr]


class Tags(HTMLParser):
    """Collects the tags and the attributes of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


HOSTILE = st.text(max_size=200) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "<!channel> <@U123> <https://evil.example|click>",
        "a\r\nBcc: eve@example.com\r\n\r\nbody",
        "\u202egnp.exe\u2028\u0085\x00\x1b[31m",
        "&lt;b&gt; {{ config }} {% raw %}",
        "x" * 5000,
    ]
)


@given(reason=HOSTILE, column=HOSTILE)
def test_hostile_texts_are_plain_text_everywhere(reason: str, column: str) -> None:
    model = tills_like()
    for event in (alarm(column or "x"), ledger.PromotionsFrozen(reason=reason or "x"), rollback("1", "2")):
        entry = build_entries([event], "tills")[0].model_copy(update={"actor": reason or "x"})
        notification = notify(model, entry)
        if notification is None:
            continue
        for line, length in ((notification.title, MAX_TITLE_LENGTH), (notification.text, MAX_TEXT_LENGTH)):
            assert len(line) <= length
            assert line.isprintable()
        tags = Tags(notification.html)
        assert tags.tags == ["p", "strong", "p", *(["p", "a"] if notification.link else [])]
        assert tags.attributes == (["href"] if notification.link else [])
        links = [f"<{notification.link}|Report>"] if notification.link else []
        assert [part for part in notification.slack.replace("&lt;", "").splitlines() if "<" in part] == links


def tills_like() -> ModelSpec:
    """Return a spec with the name and the owner of `tills`; nothing else of it is read."""
    return ModelSpec.model_construct(name="tills", owner="tests")


def test_a_line_is_cut_where_it_is_too_long() -> None:
    assert plain_line("abc", 3) == "abc"
    assert plain_line("abcd", 3) == "ab…"
    assert plain_line(" a\n\tb ", 10) == "a b"
    assert plain_line("naïve 日本語", 10) == "naïve 日本語"


@pytest.mark.parametrize(
    ("outcome", "silent_for", "expected"),
    [
        (Outcome.SUCCEEDED, timedelta(0), None),
        (Outcome.PREEMPTED, timedelta(0), None),
        (Outcome.OUT_OF_MEMORY, timedelta(0), "ended as out of memory"),
        (Outcome.UNKNOWN, timedelta(0), "ended as unknown"),
        (None, timedelta(minutes=9), None),
        (None, timedelta(minutes=10), "was killed without a trace"),
    ],
)
def test_attempts(model: ModelSpec, outcome: Outcome | None, silent_for: timedelta, expected: str | None) -> None:
    beat = NOW - silent_for
    attempt = Attempt(
        id="a1",
        dag_run="tills.retrain manual__1",
        model="tills",
        team="tests",
        allocation=ResourceAllocation(),
        started_at=beat - timedelta(seconds=90),
        last_heartbeat=beat,
        step=3,
        ended_at=beat if outcome else None,
        outcome=outcome,
        message="postgresql://ada:secret@host/db refused",
    )
    notification = attempt_notification(model, attempt, NOW)
    assert (notification and notification.title) == (expected and f"tills: an attempt at its training {expected}")
    if notification:
        assert "secret" not in notification.model_dump_json()
        assert notification.text.startswith("After 90 s, at step 3, of tills.retrain manual__1.")
        again = attempt_notification(model, attempt.model_copy(update={"step": 4}), NOW + timedelta(hours=1))
        assert again
        assert again.key == notification.key
