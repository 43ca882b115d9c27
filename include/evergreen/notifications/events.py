"""What notifications say: pure functions of a spec and of what ledger, lake and jobs hold.

Reasons in a ledger, and names in data, come from people and from data: they may hold anything. A notification has plain
lines of them, without control characters, and escaped forms for HTML and Slack.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from html import escape
from typing import Literal

from pydantic import Field

from evergreen import ledger
from evergreen.ledger.entries import LedgerEntry, UtcDatetime
from evergreen.settings import NotificationEvent
from evergreen.spec import Frozen, Name, NonEmptyStr
from evergreen.spec.model import ModelSpec
from evergreen.training.attempt import Attempt
from evergreen.training.outcome import Outcome

ATTEMPT_SILENCE = timedelta(minutes=10)
"""After its last sign of life, an attempt that did not end counts as killed. It gives one every few seconds."""

MAX_TITLE_LENGTH = 150
MAX_TEXT_LENGTH = 1000

Severity = Literal["info", "warning", "critical"]
_Summary = tuple[NotificationEvent, Severity, str]
"""Event, severity, and title without the name of the model."""


class Notification(Frozen):
    """One message about a model. Lines are plain text without control characters."""

    key: NonEmptyStr = Field(description="the same whenever it is sent again, so that receivers can drop a repeat")
    event: NotificationEvent
    severity: Severity
    model: Name
    team: str = Field(description="owner of the model")
    occurred_at: UtcDatetime
    title: NonEmptyStr = Field(max_length=MAX_TITLE_LENGTH)
    text: str = Field(max_length=MAX_TEXT_LENGTH)
    link: str | None = Field(None, description="URL of a report, if the address of Airflow is known")

    @property
    def html(self) -> str:
        """Return an HTML fragment, in which nothing of title and text is markup."""
        link = f'<p><a href="{escape(self.link)}">Report</a></p>' if self.link else ""
        return f"<p><strong>{escape(self.title)}</strong></p><p>{escape(self.text)}</p>{link}"

    @property
    def slack(self) -> str:
        """Return a message in Slack's mrkdwn, in which nothing of title and text mentions anybody or is a link."""
        link = f"\n<{_escape_slack(self.link)}|Report>" if self.link else ""
        return f"{_escape_slack(self.title)}\n{_escape_slack(self.text)}{link}"


def plain_line(text: str, max_length: int) -> str:
    """Return `text` as one line of at most `max_length` characters, without control and formatting characters."""
    # Categories C: a line break ends a header of a mail, and a sign that turns the direction hides what follows.
    visible = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    line = " ".join(visible.split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def entry_notification(
    model: ModelSpec, entry: LedgerEntry, entry_hash: str, airflow_url: str | None
) -> Notification | None:
    """Return what an entry of the model's ledger is notified as; None if it is nothing to tell anybody.

    Args:
        model: spec of the model.
        entry: the entry.
        entry_hash: hash of its bytes, which makes the key.
        airflow_url: of Airflow's UI, for a link to the report.
    """
    link: str | None = None
    match entry.event:
        case ledger.VersionPromoted() as event:
            summary: _Summary = "promoted", "info", f"version {event.version} is champion"
            text = f"It knows data until {event.as_of}."
            text += f" It replaces version {event.previous_champion}." if event.previous_champion else ""
            text += f" {event.approved_by} approved." if event.approved_by else ""
            link = _verdict_link(model, event.verdict_entry, airflow_url)
        case ledger.VerdictRecorded(verdict=verdict) as event:
            is_later_look = event.later_look is not None
            if verdict.promote or (verdict.is_inconclusive and is_later_look):
                return None
            if verdict.is_inconclusive:
                summary = "held_back", "info", f"the candidate as of {event.as_of} gathers more evidence"
            else:
                summary = "held_back", "warning", f"the candidate as of {event.as_of} was held back"
            text = verdict.reason
            link = _verdict_link(model, entry.number, airflow_url)
        case ledger.PromotionDeferred() as event:
            summary, text = ("held_back", "info", f"version {event.version} waits"), event.reason
            link = _verdict_link(model, event.verdict_entry, airflow_url)
        case ledger.ChallengerWithdrawn() as event:
            summary, text = ("held_back", "info", f"version {event.version} was withdrawn"), event.reason
            link = _verdict_link(model, event.verdict_entry, airflow_url)
        case ledger.PromotionRejected() as event:
            summary = "held_back", "warning", f"version {event.version} was not approved"
            text = f"{event.rejected_by}: {event.reason}"
            link = _verdict_link(model, event.verdict_entry, airflow_url)
        case ledger.ChampionRolledBack() as event:
            restored, barred = event.restored_version, event.barred_version
            summary = "rolled_back", "warning", f"version {restored} is champion again, version {barred} is barred"
            text = f"{entry.actor}: {event.reason}"
            if event.request_entry:
                text = f"Automatic, by {text}" + (f". {event.approved_by} approved." if event.approved_by else "")
        case ledger.RollbackRejected() as event:
            summary = "held_back", "warning", "an automatic rollback of its champion was not approved"
            text = f"{event.rejected_by}: {event.reason}"
        case ledger.ChampionLost() as event:
            now = f"version {event.restored_version} is champion" if event.restored_version else "it has none now"
            summary = "lost", "critical", f"the champion, version {event.lost_version}, is lost; {now}"
            text = f"{entry.actor}: {event.reason}"
        case ledger.AlarmRaised() as event:
            title = {
                "performance": f"champion {event.champion} does worse than when it was judged ({event.day})",
                "skew": f"servers of champion {event.champion} use other features than it learned from ({event.day})",
            }.get(event.rule, f"the data of champion {event.champion} has changed ({event.rule}, {event.day})")
            summary, text = ("alarm", "warning", title), ", ".join(event.changes)
            link = f"{airflow_url}/evergreen/{model.name}.monitor/monitoring" if airflow_url else None
        case _:
            return None
    return _create(model, summary, text, entry.recorded_at, [entry_hash], link)


NOTIFIED_KINDS = frozenset(
    event.model_fields["kind"].default
    for event in (
        ledger.VersionPromoted,
        ledger.VerdictRecorded,
        ledger.PromotionDeferred,
        ledger.ChallengerWithdrawn,
        ledger.PromotionRejected,
        ledger.ChampionRolledBack,
        ledger.RollbackRejected,
        ledger.ChampionLost,
        ledger.AlarmRaised,
    )
)
"""Kinds of entries that `entry_notification` may return something for: others need not be read."""


def approval_notification(
    model: ModelSpec, waiting: LedgerEntry, entry_hash: str, airflow_url: str | None
) -> Notification:
    """Return what a verdict, or a rollback, that waits for a person is notified as; arguments as for an entry."""
    if isinstance(waiting.event, ledger.RollbackRequested):
        title = f"a rollback of champion {waiting.event.champion} waits for an approval"
        text = f"Answer under Required actions in Airflow. {waiting.event.reason}"
        link = f"{airflow_url}/evergreen/{model.name}.monitor/monitoring" if airflow_url else None
        summary: _Summary = "waiting_for_approval", "warning", title
        return _create(model, summary, text, waiting.recorded_at, [entry_hash], link)
    assert isinstance(waiting.event, ledger.VerdictRecorded)
    title = f"the candidate as of {waiting.event.as_of} waits for an approval"
    text = f"Answer under Required actions in Airflow. {waiting.event.verdict.reason}"
    link = _verdict_link(model, waiting.number, airflow_url)
    return _create(model, ("waiting_for_approval", "warning", title), text, waiting.recorded_at, [entry_hash], link)


def late_features_notification(model: ModelSpec, newest: str | None, due: datetime) -> Notification:
    """Return that the period of features after `newest`, the newest one that is published, was due at an instant."""
    since = f"after {newest}" if newest else "yet"
    text = f"No features are published {since}; they were due {_instant(due)}. evergreen status {model.name} says more."
    return _create(model, ("late", "warning", "its features are late"), text, due, ["features", _instant(due)])


def late_champion_notification(model: ModelSpec, data_until: str | None, due: datetime) -> Notification:
    """Return that another champion was due at an instant; `data_until` is where the data of the champion ends."""
    text = f"The champion knows data until {data_until}" if data_until else "It has no champion"
    text += f"; a newer one was due {_instant(due)}. evergreen status {model.name} says more."
    return _create(model, ("late", "warning", "its champion is late"), text, due, ["champion", _instant(due)])


def attempt_notification(model: ModelSpec, attempt: Attempt, now: datetime) -> Notification | None:
    """Return that a training attempt has left no model; None if it has, is running, or was preempted and goes on.

    What the attempt says about itself is left out: it may hold data, or an address with a password.
    """
    if attempt.ended_at is None:
        if now - attempt.last_heartbeat < ATTEMPT_SILENCE:
            return None
        end = "was killed without a trace"
    elif attempt.outcome in (Outcome.SUCCEEDED, Outcome.PREEMPTED):
        return None
    else:
        end = f"ended as {attempt.outcome.label if attempt.outcome else 'unknown'}"
    summary: _Summary = "attempt_lost", "warning", f"an attempt at its training {end}"
    text = f"After {attempt.duration_seconds:.0f} s, at step {attempt.step}, of {attempt.dag_run}."
    text += " The log of the task train says why."
    return _create(model, summary, text, attempt.ended_at or attempt.last_heartbeat, [attempt.id])


def _create(
    model: ModelSpec,
    summary: _Summary,
    text: str,
    occurred_at: datetime,
    identity: list[str],
    link: str | None = None,
) -> Notification:
    event, severity, title = summary
    digest = sha256(json.dumps([model.name, event, *identity]).encode()).hexdigest()
    return Notification(
        key=f"evergreen-{model.name}-{event}-{digest[:32]}",
        event=event,
        severity=severity,
        model=model.name,
        team=plain_line(model.owner, MAX_TITLE_LENGTH),
        occurred_at=occurred_at,
        title=plain_line(f"{model.name}: {title}", MAX_TITLE_LENGTH),
        text=plain_line(text, MAX_TEXT_LENGTH),
        link=link,
    )


def _instant(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _verdict_link(model: ModelSpec, number: int, airflow_url: str | None) -> str | None:
    return f"{airflow_url}/evergreen/{model.name}.retrain/verdicts/{number}" if airflow_url else None


_SLACK_ESCAPES: Mapping[int, str] = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def _escape_slack(text: str) -> str:
    return text.translate(_SLACK_ESCAPES)
