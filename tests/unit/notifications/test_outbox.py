"""The file of a route, as a value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from evergreen.notifications.events import Notification
from evergreen.notifications.outbox import ModelNews, ModelProgress, Outbox

pytestmark = pytest.mark.unit

NOW = datetime(2024, 1, 7, 15, tzinfo=UTC)


def notification(number: int) -> Notification:
    return Notification(
        key=f"key {number}",
        event="alarm",
        severity="warning",
        model="tills",
        team="tests",
        occurred_at=NOW + timedelta(minutes=number),
        title=f"alarm {number}",
        text="",
    )


def news(previous: ModelProgress | None, *numbers: int) -> ModelNews:
    progress = ModelProgress(entry=max(numbers), entry_hash=f"hash {max(numbers)}", recorded_at=NOW)
    return ModelNews("tills", previous, progress, tuple(map(notification, numbers)))


def keys(outbox: Outbox) -> list[str]:
    return [item.key for item in outbox.iter_unsent()]


def test_of_two_runs_that_read_the_same_the_first_one_queues() -> None:
    first = Outbox().add_news([news(None, 1)], NOW)
    progress = first.models["tills"]
    ahead = first.remove("key 1").add_news([news(progress, 2, 3)], NOW)
    late = ahead.add_news([news(None, 1), news(progress, 2)], NOW - timedelta(minutes=1))
    assert late == ahead
    assert keys(late) == ["key 2", "key 3"]


def test_what_is_queued_already_is_not_queued_again() -> None:
    outbox = Outbox().add_news([news(None, 1)], NOW).count_try("key 1")
    again = outbox.add_news([news(outbox.models["tills"], 1, 2)], NOW)
    assert [(item.notification.key, item.tries) for item in again.unsent] == [("key 1", 1), ("key 2", 0)]


def test_what_was_tried_least_comes_first() -> None:
    outbox = Outbox().add_news([news(None, 3, 1, 2)], NOW)
    assert keys(outbox) == ["key 1", "key 2", "key 3"]
    assert outbox.oldest_unsent == NOW, "since then it waits, whenever it happened"
    assert keys(outbox.count_try("key 1").count_try("key 2").count_try("key 1")) == ["key 3", "key 2", "key 1"]
    assert Outbox().oldest_unsent is None


def test_what_is_given_up_was_tried_and_waits_for_long() -> None:
    outbox = Outbox().add_news([news(None, -9999, 1, 2)], NOW)
    outbox = outbox.add_news([news(outbox.models["tills"], 3)], NOW + timedelta(minutes=30))
    for key in ("key -9999", "key 1", "key 3"):
        outbox = outbox.count_try(key)
    assert outbox.find_expired(NOW + timedelta(hours=1), timedelta(hours=1)) == []
    expired = outbox.find_expired(NOW + timedelta(minutes=62), timedelta(hours=1))
    assert [item.key for item in expired] == ["key -9999", "key 1"]


def test_what_is_gone_is_neither_given_up_nor_counted_again() -> None:
    outbox = Outbox().add_news([news(None, 1, 2, 3)], NOW).count_try("key 1")
    expired = outbox.find_expired(NOW + timedelta(minutes=62), timedelta(hours=1))
    assert [item.key for item in expired] == ["key 1"]
    assert (keys(outbox.give_up(expired)), outbox.give_up(expired).given_up) == (["key 2", "key 3"], 1)
    assert outbox.give_up(expired).give_up(expired).given_up == 1
    assert outbox.remove("key 1").give_up(expired).given_up == 0
