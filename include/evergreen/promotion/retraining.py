"""Retrains that open alarms ask for: when they may, and why not. Rules are pure; each decision is one ledger entry.

The request is recorded first, and the run follows from its entry, under an id that is always the same. So a task that
is killed between the two starts the run when it is repeated, and two at once start it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from evergreen import ledger
from evergreen.errors import WindowError
from evergreen.ledger import AlarmRaised, LedgerEntry, LedgerState, RetrainRefused, RetrainRequested
from evergreen.monitoring.record import MonitoringRecord, is_newest
from evergreen.periods import Duration
from evergreen.promotion import challengers
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

BUDGET_TIME = Duration(30, "d")
"""Of data, in which alarms may ask for `budget` retrains."""

_NAMED_ALARMS, _NAMED_CHANGES, _MAX_LENGTH = 3, 3, 120  # of a cause, and of each name in it
_HASH_DIGITS = 12

Obstacle = Literal["cooldown", "budget", "pause", "data"]


class _NoRequestError(Exception):
    """Ends a decision that records nothing."""


def request_retrain(
    model: ModelSpec, record: MonitoringRecord, end: str, unpublished: Sequence[str], *, actor: str
) -> LedgerEntry | None:
    """Record that the open alarms of `record` ask for a retrain as of `end`, or why they may not.

    `unpublished` are the periods that it would learn from whose features are not published, oldest first. Return the
    entry: a `RetrainRequested` or a `RetrainRefused`, also one that an earlier call has recorded. None if no alarm is
    open that the spec lets ask.
    """

    def decide(state: LedgerState) -> ledger.LedgerEvent | LedgerEntry:
        decision = decide_request(state, model, record, end, unpublished)
        if decision is None:
            raise _NoRequestError
        return decision

    try:
        return ledger.append_decision(model.name, actor, decide)
    except _NoRequestError:
        return None


def decide_request(
    state: LedgerState, model: ModelSpec, record: MonitoringRecord, end: str, unpublished: Sequence[str]
) -> RetrainRequested | RetrainRefused | LedgerEntry | None:
    """Return what open alarms ask for, as of `end`; None if none does, or if `end` is of the past.

    An alarm asks once, and again when the cooldown is over if it is still open.
    """
    alarms = _asking_alarms(state, model, record, end)
    if not alarms:
        return None
    numbers, newest = tuple(entry.number for entry in alarms), _newest_request(state)
    if newest and end < _cooldown_end(newest[1], model) and set(numbers) <= set(newest[1].alarm_entries):
        return newest[0]
    obstacle = _find_obstacle(state, model, end, unpublished)
    if obstacle is None:
        return RetrainRequested(alarm_entries=numbers, as_of=end, cause=_describe_cause(alarms))
    kind, reason = obstacle
    refusal = state.entries.find_last(RetrainRefused, alarm_entries=numbers, obstacle=kind, reason=reason)
    if refusal and (newest is None or refusal.number > newest[0].number):
        return refusal
    return RetrainRefused(alarm_entries=numbers, as_of=end, obstacle=kind, reason=reason)


def find_pending_request(state: LedgerState, model: ModelSpec, end: str) -> LedgerEntry | None:
    """Return the newest request, whose run has to exist: until its cooldown is over, while the champion is the same.

    Also if its alarms have closed, or late data has moved them to another day: it is spent.
    """
    newest = _newest_request(state)
    if newest is None or end >= _cooldown_end(newest[1], model):
        return None
    alarm = state.entries[newest[1].alarm_entries[0] - 1].event
    assert isinstance(alarm, AlarmRaised), "the ledger accepts no request without one"
    return newest[0] if alarm.champion_content == state.champion_content else None


def retrain_run_id(state: LedgerState, request: LedgerEntry) -> str:
    """Return the id of the run that a request starts: always the same, and no other of the model has it."""
    assert isinstance(request.event, RetrainRequested)
    entry_hash = state.entries.records[request.number - 1].hash
    return f"alarm__{request.event.as_of}__{entry_hash[:_HASH_DIGITS]}"


def read_cause(model_name: str, request_entry: int) -> str:
    """Return what the alarms say that asked for a retrain in an entry of the ledger.

    Raises:
        WindowError: the entry is no request.
    """
    entries = ledger.read_state(model_name).entries
    event = entries[request_entry - 1].event if 1 <= request_entry <= len(entries) else None
    if isinstance(event, RetrainRequested):
        return event.cause
    raise WindowError(
        f"conf request: entry {request_entry} of the ledger of {model_name} asks for no retrain: leave it out"
    )


def _find_obstacle(
    state: LedgerState, model: ModelSpec, end: str, unpublished: Sequence[str]
) -> tuple[Obstacle, str] | None:
    """Return why no alarm may ask as of `end`, with the same reason until it is another one; None if one may."""
    policy, calendar, newest = model.retrain_on, feature_spec(model).calendar, _newest_request(state)
    if newest and end < (cooldown_end := _cooldown_end(newest[1], model)):
        return "cooldown", (
            f"a retrain as of {newest[1].as_of} was asked for, and the cooldown of retrain_on is {policy.cooldown}: "
            f"alarms that are open as of {cooldown_end} may ask again"
        )
    spent = list(_requests_after(state, calendar.period_before(end, BUDGET_TIME)))
    if len(spent) >= policy.budget:
        budget_end = calendar.period_after(spent[policy.budget - 1], BUDGET_TIME)
        return "budget", (
            f"the budget of retrain_on is {policy.budget} in {BUDGET_TIME}, and is spent: alarms that are open as of "
            f"{budget_end} may ask again"
        )
    if pause := challengers.training_pause(state, model, end):
        return "pause", f"it would train nothing: {pause}"
    if unpublished:  # a training set has no gap
        return "data", f"it would fail: features of {unpublished[0]} are not published"
    return None


def _cooldown_end(request: RetrainRequested, model: ModelSpec) -> str:
    return feature_spec(model).calendar.period_after(request.as_of, model.retrain_on.cooldown)


def _asking_alarms(state: LedgerState, model: ModelSpec, record: MonitoringRecord, end: str) -> list[LedgerEntry]:
    """Return the entries of open alarms that may ask, oldest first; none for another champion, or a day of the past."""
    if record.champion_content != state.champion_content or not is_newest(record, end, feature_spec(model).calendar):
        return []
    raised = (
        state.entries.find_last(
            AlarmRaised,
            champion_content=record.champion_content,
            rule=alarm.rule,
            day=alarm.opened,
            changes=alarm.change_names,
        )
        for alarm in record.open_alarms
        if alarm.rule in model.retrain_on.alarms
    )
    return sorted(filter(None, raised), key=lambda entry: entry.number)


def _newest_request(state: LedgerState) -> tuple[LedgerEntry, RetrainRequested] | None:
    entry = state.entries.find_last(RetrainRequested)
    return (entry, entry.event) if entry and isinstance(entry.event, RetrainRequested) else None


def _requests_after(state: LedgerState, start: str) -> Iterator[str]:
    """Yield the `as_of` of each request that is as of a period after `start`, the newest first."""
    kind = RetrainRequested.model_fields["kind"].default
    for number, record in zip(range(state.head_number, 0, -1), reversed(state.entries.records), strict=True):
        if record.kind != kind:
            continue
        event = state.entries[number - 1].event
        assert isinstance(event, RetrainRequested)
        if event.as_of <= start:
            return
        yield event.as_of


def _describe_cause(alarms: Sequence[LedgerEntry]) -> str:
    """Return what alarms say in a line, which is also a tag in MLflow: names are cut short."""
    named = "; ".join(map(_describe_alarm, alarms[:_NAMED_ALARMS]))
    return f"{named} and {len(alarms) - _NAMED_ALARMS} more alarms" if len(alarms) > _NAMED_ALARMS else named


def _describe_alarm(entry: LedgerEntry) -> str:
    event = entry.event
    assert isinstance(event, AlarmRaised)
    changes = [
        change if len(change) <= _MAX_LENGTH else f"{change[: _MAX_LENGTH - 1]}…"
        for change in event.changes[:_NAMED_CHANGES]
    ]
    rest = f" and {len(event.changes) - _NAMED_CHANGES} more" if len(event.changes) > _NAMED_CHANGES else ""
    return f"{event.rule} since {event.day}: {', '.join(changes)}{rest} (alarm in entry {entry.number})"
