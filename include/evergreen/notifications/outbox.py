"""What a route has read and not sent yet: one file per route, `<lake>/notifications/<route>.json`.

It changes by compare-and-swap of the whole file. What is new is queued in the same step in which the route's place in
the ledgers moves on: a run that is killed before has read nothing, and after it nothing is lost. A notification leaves
the file when it was sent. A run that is killed between sends it again, under the same key.

Two runs at once read the same news. The first one queues it; the other finds that the route has moved on, and queues
nothing of that model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field, ValidationError

from evergreen import storage
from evergreen.errors import NotificationError, first_line, validation_problem
from evergreen.lake import datasets
from evergreen.ledger.entries import UtcDatetime
from evergreen.notifications.events import Notification
from evergreen.settings import NotificationEvent
from evergreen.spec import Frozen, Name
from evergreen.storage import UPath

MAX_UNSENT = 500
"""Of a route, after a run has sent what it could: beyond that those that wait longest are given up."""

MAX_ABSENCE = timedelta(days=7)
"""Without a look, after which a route begins anew: it was removed, or stood still so long that its news are history."""

MAX_ORPHANS = 20
"""Files of routes which the settings do not have, that are looked at."""

log = logging.getLogger(__name__)


class ModelProgress(Frozen):
    """How far a route has read of one model.

    Facts that are no entries (a period is late, an approval is missing, an attempt is lost) are notified once while
    they last.
    """

    entry: int = Field(0, ge=0, description="last entry of its ledger that was read; 0: none")
    entry_hash: str = Field("", description="of that entry: the ledger may have been restored from a copy since")
    recorded_at: UtcDatetime | None = Field(None, description="when that entry was recorded")
    facts: Mapping[NotificationEvent, tuple[str, ...]] = Field(
        default_factory=dict, description="what lasted when it was last looked at, of each event that was"
    )
    unread_since: Mapping[Literal["ledger"] | NotificationEvent, UtcDatetime] = Field(
        default_factory=dict,
        description="of what could not be read at its first look, nor since: what happened from this instant on is new",
    )


class UnsentNotification(Frozen):
    """A notification, since when it waits, and how often it was tried to send it."""

    notification: Notification
    queued_at: UtcDatetime
    tries: int = Field(0, ge=0)


@dataclass(frozen=True)
class ModelNews:
    """What a run has read about a model.

    Attributes:
        model: its name.
        previous: the progress of the route when the run began; None: it had not looked at the model.
        progress: its progress when this is queued.
        notifications: what is new.
    """

    model: str
    previous: ModelProgress | None
    progress: ModelProgress
    notifications: tuple[Notification, ...] = ()


class Outbox(Frozen):
    """The state of a route. Each method returns another one."""

    checked_at: UtcDatetime | None = Field(None, description="start of the last run that looked for news")
    models: Mapping[Name, ModelProgress] = Field(default_factory=dict)
    unsent: tuple[UnsentNotification, ...] = ()
    given_up: int = Field(0, ge=0, description="notifications that nobody received, since the route exists")

    def restart(self, now: datetime) -> Outbox:
        """Forget what was read if the last look is longer ago than `MAX_ABSENCE`; what is unsent stays."""
        if self.checked_at is None or now - self.checked_at <= MAX_ABSENCE:
            return self
        return self.model_copy(update={"checked_at": None, "models": {}})

    def add_news(self, news: Sequence[ModelNews], now: datetime, excluded: Collection[str] = ()) -> Outbox:
        """Queue the news of each model in which no other run was first; `now` is when this run began to look.

        Progress of `excluded` models, which the route is not about, is dropped: should it be later, that is history.
        """
        models = {name: progress for name, progress in self.models.items() if name not in excluded}
        unsent = {item.notification.key: item for item in self.unsent}
        for item in news:
            if models.get(item.model) == item.previous:
                models[item.model] = item.progress
                for notification in item.notifications:
                    unsent.setdefault(notification.key, UnsentNotification(notification=notification, queued_at=now))
        checked_at = max(now, self.checked_at or now)
        return self.model_copy(update={"models": models, "unsent": tuple(unsent.values()), "checked_at": checked_at})

    def find_expired(self, now: datetime, max_age: timedelta) -> list[Notification]:
        """Return what is to be given up: what was tried, and waits for longer than `max_age`.

        What happened long ago may be seen only now, such as a champion that is late, so only waiting counts.
        """
        return [item.notification for item in self.unsent if item.tries and now - item.queued_at > max_age]

    def find_excess(self) -> list[Notification]:
        """Return those beyond `MAX_UNSENT` that wait longest."""
        longest = sorted(self.unsent, key=lambda item: (item.queued_at, item.notification.occurred_at))
        return [item.notification for item in longest[: max(len(longest) - MAX_UNSENT, 0)]]

    def give_up(self, notifications: Sequence[Notification]) -> Outbox:
        """Drop and count notifications."""
        outbox = self
        for notification in notifications:
            outbox = outbox.remove(notification.key)
        return outbox.model_copy(update={"given_up": self.given_up + len(self.unsent) - len(outbox.unsent)})

    def remove(self, key: str) -> Outbox:
        """Drop the notification with this key, because it was sent."""
        return self.model_copy(update={"unsent": tuple(item for item in self.unsent if item.notification.key != key)})

    def count_try(self, key: str) -> Outbox:
        """Count a try to send the notification with this key."""
        unsent = tuple(
            item.model_copy(update={"tries": item.tries + 1}) if item.notification.key == key else item
            for item in self.unsent
        )
        return self.model_copy(update={"unsent": unsent})

    @property
    def oldest_unsent(self) -> datetime | None:
        """Return since when that waits which waits longest."""
        return min((item.queued_at for item in self.unsent), default=None)

    def iter_unsent(self) -> Iterator[Notification]:
        """Yield what is unsent: first what was tried least, so that one that is never received holds back no other."""
        order = sorted(self.unsent, key=lambda item: (item.tries, item.notification.occurred_at))
        yield from (item.notification for item in order)


def outbox_file(route_name: str) -> UPath:
    """Return the file of a route."""
    return datasets.lake_root() / "notifications" / f"{route_name}.json"


def read_outbox(route_name: str) -> Outbox:
    """Return the state of a route; an empty one if it has never run.

    Raises:
        NotificationError: its file is damaged.
    """
    stored = storage.read_version(outbox_file(route_name))
    return _parse(route_name, stored and stored.data)


def update_outbox(route_name: str, change: Callable[[Outbox], Outbox]) -> Outbox:
    """Replace the state of a route by what `change` makes of it, and return that.

    `change` is called again if another run came first, so it must be pure.

    Raises:
        NotificationError: its file is damaged.
    """
    outbox = Outbox()

    def replace(data: bytes | None) -> bytes | None:
        nonlocal outbox
        current = _parse(route_name, data)
        outbox = change(current)
        return None if outbox == current and data is not None else (outbox.model_dump_json(indent=1) + "\n").encode()

    storage.update_file(outbox_file(route_name), replace)
    return outbox


def read_orphans(route_names: Collection[str]) -> dict[str, Outbox]:
    """Return what nobody sends any more: the unsent of routes other than `route_names`, which had a file once.

    A route was renamed, or removed before its receiver had everything. What cannot be read is logged and left out.
    """
    try:
        files = storage.list_names(outbox_file("any").parent)
    except OSError as error:
        log.warning("files of routes that are not set cannot be listed: %s", first_line(error))
        return {}
    names = [match[1] for file in files if (match := re.fullmatch(r"([a-z][a-z0-9_]*)\.json", file))]
    orphans: dict[str, Outbox] = {}
    for name in [name for name in names if name not in route_names][:MAX_ORPHANS]:
        try:
            outbox = read_outbox(name)
        except Exception as error:
            log.warning("the file of route %s, which is not set, cannot be read: %s", name, first_line(error))
            continue
        if outbox.unsent:
            orphans[name] = outbox
    return orphans


def _parse(route_name: str, data: bytes | None) -> Outbox:
    if data is None:
        return Outbox()
    try:
        return Outbox.model_validate_json(data)
    except ValidationError as error:
        raise NotificationError(
            f"{outbox_file(route_name)} is damaged: {validation_problem(error)}: restore it from a copy; or remove it, "
            f"and route {route_name} tells what happens from then on"
        ) from None
