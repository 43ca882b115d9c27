"""Looks for what is new to a route, and sends what it has not sent.

`deliver` may be killed at any instruction, and run twice at once: every notification is sent at least once.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from evergreen import ledger, storage
from evergreen.errors import EvergreenError, NotificationError, first_line
from evergreen.ledger import LedgerState
from evergreen.notifications import events
from evergreen.notifications.events import Notification
from evergreen.notifications.outbox import (
    ModelNews,
    ModelProgress,
    Outbox,
    outbox_file,
    read_orphans,
    read_outbox,
    update_outbox,
)
from evergreen.promotion.approvals import find_waiting_approval, find_waiting_rollback
from evergreen.promotion.freshness import champion_due, features_due, list_recent_periods
from evergreen.settings import NotificationEvent, NotificationRoute, settings
from evergreen.spec.loader import feature_spec, load_spec, model_names
from evergreen.spec.model import ModelSpec
from evergreen.training.recent_attempts import read_recent_attempts

MAX_FAILURES = 3
"""In a row, after which the receiver counts as unreachable until the next run."""
MAX_SENT = 50
"""Notifications that one run sends: after an outage, what has queued comes in portions."""
MAX_ENTRIES = 500
"""Of a model's ledger, that one run reads: after months in which nothing ran, it goes on in the next one."""
MAX_SENDING_S = 60.0
"""Seconds after which a run begins to send no other notification."""

LASTING_EVENTS: tuple[NotificationEvent, ...] = ("attempt_lost", "late", "waiting_for_approval")
"""Events that are no entries of a ledger, but facts that last: of each look they are compared with the one before."""

_RECENT_PERIODS = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeliveryReport:
    """What a run has sent of a route, what is left, and why."""

    sent: int = 0
    unsent: int = 0
    given_up: int = 0
    problems: tuple[str, ...] = ()

    def raise_problems(self) -> None:
        """Raise a NotificationError if there are problems."""
        if self.problems:
            raise NotificationError("\n".join(self.problems))


def deliver(
    route_name: str,
    route: NotificationRoute,
    send: Callable[[Notification], None],
    now: datetime,
    airflow_url: str | None = None,
) -> DeliveryReport:
    """Queue what is new to a route at the instant `now`, and send what is queued.

    The first time, nothing is new: a route tells what happens from then on.

    Args:
        route_name: name of the route in the settings.
        route: its settings.
        send: sends a notification, or raises anything.
        now: when this run begins.
        airflow_url: of Airflow's UI, for links.

    Raises:
        NotificationError: the file of the route is damaged.
    """
    last_look = read_outbox(route_name)
    stored = last_look.restart(now)
    news, problems, excluded = list[ModelNews](), list[str](), set[str]()
    if stored != last_look:
        problems.append(f"route {route_name} begins anew: nobody is told what happened since {last_look.checked_at}")
    for name in model_names():
        try:
            model = load_spec(name)
            if route.teams and model.owner not in route.teams:
                excluded.add(name)
                continue
            reader = NewsReader(model, stored.models.get(name), stored.checked_at, now, airflow_url)
            news.append(reader.read(route.events))
            problems += reader.problems
        except Exception as error:  # of code in a model folder, too: it must not hide the news of others
            problems.append(f"{name}: nothing is told about it: {first_line(error)}")
            if name not in stored.models:
                since = stored.checked_at or now
                unread = ModelProgress(unread_since=dict.fromkeys(("ledger", *LASTING_EVENTS), since))
                news.append(ModelNews(name, None, unread))
    max_age = timedelta(settings().notifications.give_up_days)
    update_outbox(route_name, lambda outbox: outbox.restart(now).add_news(news, now, excluded))
    outbox, expired = _give_up(route_name, lambda outbox: outbox.find_expired(now, max_age))
    sent, failures = _send_queued(route_name, outbox, send)
    outbox, excess = _give_up(route_name, Outbox.find_excess)
    given_up, unsent = len(expired) + len(excess), len(outbox.unsent)
    if given_up:
        problems.append(f"route {route_name}: {given_up} notifications that nobody received are given up")
    if failures:
        problems.append(f"route {route_name}: {unsent} notifications are unsent: {failures[-1]}")
    for name, orphan in read_orphans({*settings().notifications.routes, route_name}).items():
        log.warning(
            "%s notifications of route %s are unsent, and no such route is set: if it has another name now, rename %s, "
            "else remove it",
            len(orphan.unsent),
            name,
            outbox_file(name),
        )
    return DeliveryReport(sent, unsent, given_up, tuple(problems))


def _give_up(route_name: str, find: Callable[[Outbox], list[Notification]]) -> tuple[Outbox, list[Notification]]:
    """Give up what `find` returns; return what is left, and that."""
    given_up: list[Notification] = []

    def change(outbox: Outbox) -> Outbox:
        nonlocal given_up
        given_up = find(outbox)
        return outbox.give_up(given_up)

    outbox = update_outbox(route_name, change)
    for notification in given_up:
        log.error("route %s gives up %s of %s", route_name, notification.title, notification.occurred_at)
    return outbox, given_up


def _send_queued(route_name: str, outbox: Outbox, send: Callable[[Notification], None]) -> tuple[int, list[str]]:
    sent, failures, in_a_row = 0, list[str](), 0
    end = time.monotonic() + MAX_SENDING_S
    for notification in outbox.iter_unsent():
        if sent == MAX_SENT or in_a_row == MAX_FAILURES or time.monotonic() >= end:
            break
        key = notification.key
        # Before: what hangs until this process is killed is tried after the others the next time.
        current = update_outbox(route_name, lambda outbox: outbox.count_try(key))  # noqa: B023 - called at once
        if all(item.notification.key != key for item in current.unsent):
            continue  # another run has sent it
        try:
            send(notification)
        except Exception as error:  # whatever a notifier raises: it is sent again
            in_a_row += 1
            # The message of another library may have the address in it, and that a token.
            is_own = isinstance(error, EvergreenError)
            problem = " ".join(str(error).split()) if is_own else type(error).__name__
            failures.append(f"{notification.title}: {problem}")
            log.warning("route %s: not sent: %s", route_name, failures[-1])
            continue
        in_a_row = 0
        update_outbox(route_name, lambda outbox: outbox.remove(key))  # noqa: B023 - called at once
        sent += 1
    return sent, failures


@dataclass
class NewsReader:
    """Reads what is new of a model since a route has looked before.

    Attributes:
        model: its spec.
        previous: the route's progress; None: it looks for the first time.
        checked_at: when the route last looked at any model; None: it never did.
        now: the present.
        airflow_url: of Airflow's UI, for links.
    """

    model: ModelSpec
    previous: ModelProgress | None
    checked_at: datetime | None
    now: datetime
    airflow_url: str | None

    def __post_init__(self) -> None:
        self.problems: list[str] = []

    def read(self, event_filter: tuple[NotificationEvent, ...] = ()) -> ModelNews:
        """Return what is new, of the events in the filter; by default of all. What cannot be read is a problem.

        Facts that last are notified when they are seen first. At the first look at a model, or at an event that the
        filter did not have before, only what happened since the route last looked is new.
        """
        progress = self.previous or ModelProgress()
        notifications: list[Notification] = []
        state: LedgerState | None = None
        unread_since = {part: since for part, since in progress.unread_since.items() if part not in LASTING_EVENTS}
        try:
            state = ledger.read_state(self.model.name)
            start = self._first_position(state)
            end = min(start + MAX_ENTRIES, state.head_number)
            notifications += list(self._read_entries(state, start, end))  # all or none of them
            if end:
                last = state.entries[end - 1]
                position = {"entry": end, "entry_hash": state.entries.records[end - 1].hash}
                progress = progress.model_copy(update={**position, "recorded_at": last.recorded_at})
            unread_since.pop("ledger", None)
        except Exception as error:
            self._add_problem("ledger", error)
            if self.previous is None:
                unread_since["ledger"] = self.checked_at or self.now
        facts: dict[NotificationEvent, tuple[str, ...]] = {}
        for event in LASTING_EVENTS:
            if event_filter and event not in event_filter:
                continue
            current_facts = self._read_facts(event, state)
            earlier_facts, since = progress.facts.get(event), progress.unread_since.get(event, self.checked_at)
            if current_facts is None:  # what was a fact before still counts as one
                if earlier_facts is None:
                    unread_since[event] = since or self.now
                else:
                    facts[event] = earlier_facts
                continue
            for identity, fact in current_facts.items():
                is_new = (
                    bool(since and fact.occurred_at >= since)
                    if earlier_facts is None
                    else identity not in earlier_facts
                )
                if is_new:
                    notifications.append(fact)
            facts[event] = tuple(sorted(current_facts))
        progress = progress.model_copy(update={"facts": facts, "unread_since": unread_since})
        new = tuple(item for item in notifications if not event_filter or item.event in event_filter)
        return ModelNews(self.model.name, self.previous, progress, new)

    def _read_facts(self, event: NotificationEvent, state: LedgerState | None) -> dict[str, Notification] | None:
        """Return the facts that last, by what makes each the same one at the next look; None if they are unreadable."""
        if state is None and event != "attempt_lost":
            return None  # the ledger is a problem already
        readers: Mapping[NotificationEvent, Callable[[LedgerState], Iterator[tuple[str, Notification]]]] = {
            "attempt_lost": lambda _: self._lost_attempts(),
            "late": self._late,
            "waiting_for_approval": self._approvals,
        }
        try:
            return dict(readers[event](state or LedgerState()))
        except Exception as error:
            self._add_problem(event, error)
            return None

    def _add_problem(self, part: str, error: Exception) -> None:
        self.problems.append(f"{self.model.name}: nothing is told about its {part}: {first_line(error)}")

    def _read_entries(self, state: LedgerState, start: int, end: int) -> Iterator[Notification]:
        for position in range(start, end):
            record = state.entries.records[position]
            if record.kind in events.NOTIFIED_KINDS:
                notification = events.entry_notification(
                    self.model, state.entries[position], record.hash, self.airflow_url
                )
                if notification:
                    yield notification

    def _first_position(self, state: LedgerState) -> int:
        """Return the position of the first entry that the route has not read."""
        entries, previous = state.entries, self.previous
        if previous is None:
            if self.checked_at is None:
                return len(entries)
            return bisect_left(entries, self.checked_at, key=lambda entry: entry.recorded_at)
        if since := previous.unread_since.get("ledger"):
            return bisect_left(entries, since, key=lambda entry: entry.recorded_at)
        if previous.entry == 0:
            return 0
        if previous.entry <= len(entries) and entries.records[previous.entry - 1].hash == previous.entry_hash:
            return previous.entry
        # The ledger was restored from a copy that lacks this entry.
        assert previous.recorded_at
        return bisect_right(entries, previous.recorded_at, key=lambda entry: entry.recorded_at)

    def _approvals(self, state: LedgerState) -> Iterator[tuple[str, Notification]]:
        entries = (find(self.model, state) for find in (find_waiting_approval, find_waiting_rollback))
        for waiting in filter(None, entries):
            entry_hash = state.entries.records[waiting.number - 1].hash
            yield entry_hash, events.approval_notification(self.model, waiting, entry_hash, self.airflow_url)

    def _late(self, state: LedgerState) -> Iterator[tuple[str, Notification]]:
        # The same until it is on time: while it catches up, another period is due after each.
        due = champion_due(self.model, state)
        if due and due < self.now:
            yield "champion", events.late_champion_notification(self.model, state.champion_as_of, due)
        spec = feature_spec(self.model)
        if not self.model.builds_features or spec.fresh_within is None:
            return
        published = list_recent_periods(self.model, self.now, _RECENT_PERIODS)
        newest = published[-1] if published else None
        due = features_due(spec, newest)
        if due and due < self.now:
            yield "features", events.late_features_notification(self.model, newest, due)

    def _lost_attempts(self) -> Iterator[tuple[str, Notification]]:
        folder = storage.storage_path(settings().jobs) / self.model.name
        for attempt in read_recent_attempts(folder, self.now):
            if notification := events.attempt_notification(self.model, attempt, self.now):
                yield attempt.id, notification
