"""The state that a ledger's entries add up to: champion, challenger, barred versions. Pure functions.

An entry that cannot follow from the entries before it raises LedgerError, both when it is read and before it is
written. So no caller, however wrong, can make a barred version champion.

A model is identified by its content, the hash of the files that were judged. Versions are names of contents: MLflow
gives a number again after a deletion, and the same content may be registered under several.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import reduce
from itertools import islice
from typing import TypeVar, assert_never

from evergreen.errors import LedgerError
from evergreen.gates.alpha_spending import EarlierComparison
from evergreen.ledger import entries as events
from evergreen.ledger.entries import LedgerEntry, hash_entry
from evergreen.ledger.history import EntryHistory, Log

_Value = TypeVar("_Value")

_MIN_CONTENT_DIGITS = 12  # of a content's hash, where it stands for a version
_EARLIEST_TIME_ZONE = timedelta(hours=14)  # its day begins as long before that of UTC


@dataclass(frozen=True)
class ChampionTenure:
    """A model became champion by a promotion, a rollback or a loss, in entry `entry_number`.

    Attributes:
        version: its name at that time.
        as_of: the period until which, exclusively, it has data.
        labels_until: it has learned from no label of this period or later: its holdout began.
    """

    version: str
    as_of: str
    entry_number: int
    content: str
    labels_until: str


@dataclass(frozen=True)
class Registration:
    """A version of MLflow as it was registered, in entry `entry_number`: a content, and the manifest of its files."""

    version: str
    content: str
    manifest_sha256: str
    verdict_entry: int
    entry_number: int


@dataclass(frozen=True)
class LedgerState:
    """The state of a model after `entries`.

    Snapshots store every field: one that is added changes their format (`evergreen.ledger.snapshots`).

    Attributes:
        tenures: every champion in order. Neighbours differ.
        last_promoted_as_of: until when the last verdict that promoted knew the data, even if it was rolled back since.
        challenger_content: the model that may replace the champion next, if there is one. While `open_comparison` is
            set it gathers evidence; otherwise it has passed its gates, and waits for its promotion.
        challenger_as_of: the period until which, exclusively, it has data.
        challenger_verdict: the entry of its newest verdict.
        open_comparison: the entry of the first verdict of a comparison that still goes on: later looks follow.
        registrations: every version as it was registered, in order.
        barred_contents: models that a rollback replaced and that were not released since.
        suspect_contents: models that were barred or lost, and not promoted since, with the last entry that barred,
            released or lost it. Only a newer verdict promotes it.
        lost_contents: champions whose files are gone and were not registered again.
        closed_verdicts: entries of verdicts that have promoted or were rejected: they promote nothing any more.
        vacant_since: the entry that recorded the champion as lost, if no other took its place.
        accepted_change: who has accepted that inputs of the champion can no longer be made, and why; None if nobody.
    """

    entries: EntryHistory = field(default_factory=EntryHistory)
    tenures: Log[ChampionTenure] = field(default_factory=Log)
    last_promoted_as_of: str | None = None
    challenger_version: str | None = None
    challenger_content: str | None = None
    challenger_as_of: str | None = None
    challenger_verdict: int | None = None
    open_comparison: int | None = None
    registrations: Log[Registration] = field(default_factory=Log)
    barred_contents: Mapping[str, str] = field(default_factory=dict)
    suspect_contents: Mapping[str, int] = field(default_factory=dict)
    lost_contents: frozenset[str] = frozenset()
    closed_verdicts: frozenset[int] = frozenset()
    vacant_since: int | None = None
    is_frozen: bool = False
    accepted_change: str | None = None

    @property
    def head_number(self) -> int:
        return len(self.entries)

    @property
    def head_hash(self) -> str:
        """Return the hash of the last entry's bytes; empty without entries."""
        return self.entries.head_hash

    @property
    def champion_tenure(self) -> ChampionTenure | None:
        return self.tenures[-1] if self.tenures and self.vacant_since is None else None

    @property
    def champion(self) -> str | None:
        """Return the champion's version, a name for people: `champion_content` is what it is."""
        return self._name_tenure(self.champion_tenure)

    @property
    def champion_content(self) -> str | None:
        return self.champion_tenure.content if self.champion_tenure else None

    @property
    def champion_as_of(self) -> str | None:
        """Return the period until which, exclusively, the champion has data."""
        return self.champion_tenure.as_of if self.champion_tenure else None

    @property
    def previous_tenure(self) -> ChampionTenure | None:
        """Return the champion before the current one that is not lost; after a rollback, the one that was barred."""
        earlier = (tenure for tenure in reversed(self.tenures) if tenure.content not in self.lost_contents)
        return next((tenure for tenure in earlier if tenure.content != self.champion_content), None)

    @property
    def previous_champion(self) -> str | None:
        return self._name_tenure(self.previous_tenure)

    @property
    def replaced_tenure(self) -> ChampionTenure | None:
        """Return the champion that the current one was promoted over; None if a rollback or a loss restored it."""
        tenure = self.champion_tenure
        event = self.entries[tenure.entry_number - 1].event if tenure else None
        is_replacement = isinstance(event, events.VersionPromoted) and event.previous_champion is not None
        return self.tenures[-2] if is_replacement else None

    @property
    def challenger(self) -> str | None:
        if self.challenger_content is None or self.challenger_version is None:
            return None
        return self.name_of(self.challenger_content, self.challenger_version)

    @property
    def barred_versions(self) -> frozenset[str]:
        return frozenset(self.name_of(content, version) for content, version in self.barred_contents.items())

    def find_registration(self, content: str) -> Registration | None:
        """Return what is registered with this content; None also if its version now names another."""
        registration = next((item for item in reversed(self.registrations) if item.content == content), None)
        return registration if registration and self.find_version(registration.version) == registration else None

    def find_version(self, version: str) -> Registration | None:
        """Return what was last registered as this version."""
        return next((item for item in reversed(self.registrations) if item.version == version), None)

    def name_of(self, content: str, version: str) -> str:
        """Return the version that a content is registered as; else `version`, its earlier name.

        Where that names another content, the beginning of the content's hash stands for it.
        """
        if registration := self.find_registration(content):
            return registration.version
        return version if self.content_of(version) in (None, content) else content[:_MIN_CONTENT_DIGITS]

    def content_of(self, version: str) -> str | None:
        """Return what a version names, or a hash begins, of all that was registered or champion; else None."""
        if registration := self.find_version(version):
            return registration.content
        for tenure in reversed(self.tenures):
            if tenure.version == version:
                return tenure.content
        if len(version) < _MIN_CONTENT_DIGITS:
            return None
        contents = {item.content for item in self.registrations} | {tenure.content for tenure in self.tenures}
        matches = [content for content in contents if content.startswith(version)]
        return matches[0] if len(matches) == 1 else None

    def _name_tenure(self, tenure: ChampionTenure | None) -> str | None:
        return self.name_of(tenure.content, tenure.version) if tenure else None

    @property
    def comparisons(self) -> tuple[EarlierComparison, ...]:
        """Return every comparison that has ended, in order: the remaining budget follows from them."""
        return self.entries.comparisons(before_entry=self.open_comparison)

    @property
    def challenger_event(self) -> events.VerdictRecorded | None:
        """Return the challenger's newest verdict."""
        return self.find_verdict_event(self.challenger_verdict) if self.challenger_verdict else None

    def find_verdict_event(self, entry_number: int) -> events.VerdictRecorded | None:
        """Return the verdict in entry `entry_number`, or None if it holds none."""
        event = self.entries[entry_number - 1].event if 1 <= entry_number <= self.head_number else None
        return event if isinstance(event, events.VerdictRecorded) else None

    def last_tenure(self, content: str | None) -> ChampionTenure | None:
        """Return the last tenure of the model with this content, or None if it has never been champion."""
        return next((tenure for tenure in reversed(self.tenures) if tenure.content == content), None)


def iter_states(entries: Iterable[LedgerEntry]) -> Iterator[LedgerState]:
    """Yield the state after each of `entries`, which begin with the first."""
    state, entry = LedgerState(), None
    for following in entries:
        if entry:
            # As stored in the next entry: a field added later would change the JSON of an old entry.
            yield (state := apply_entry(state, entry, following.previous_hash))
        entry = following
    if entry:
        yield apply_entry(state, entry, hash_entry(entry.to_bytes()))


def replay(entries: Iterable[LedgerEntry]) -> LedgerState:
    """Return the state after all `entries`."""
    return reduce(lambda _, state: state, iter_states(entries), LedgerState())


def state_at(entries: Sequence[LedgerEntry], instant: datetime) -> LedgerState:
    """Return the state at `instant`.

    Raises:
        LedgerError: the instant has no time zone.
    """
    if instant.tzinfo is None:
        raise LedgerError(f"{instant} has no time zone: add one, such as Z for UTC")
    return replay(islice(entries, bisect_right(entries, instant, key=lambda entry: entry.recorded_at)))


def apply_entry(state: LedgerState, entry: LedgerEntry, entry_hash: str) -> LedgerState:
    """Return the state after `entry`, whose stored bytes have the hash `entry_hash`."""
    if problem := _sequence_problem(state, entry) or _event_problem(state, entry):
        raise LedgerError(
            f"ledger of {entry.model}, entry {entry.number} ({entry.event.kind}, by {entry.actor}): {problem}. "
            "Entries are never changed: restore the ledger from a copy"
        )
    return replace(_apply_event(state, entry), entries=state.entries.append(entry, entry_hash))


def _apply_event(state: LedgerState, entry: LedgerEntry) -> LedgerState:
    match entry.event:
        case events.VersionRegistered() as event:
            return _register(state, event, entry.number)
        case events.VersionPromoted() as event:
            verdict_event = state.find_verdict_event(event.verdict_entry)
            assert verdict_event  # _event_problem has checked it
            content, labels_until = verdict_event.candidate_content, verdict_event.holdout[0]
            tenure = ChampionTenure(event.version, event.as_of, entry.number, content, labels_until)
            return replace(
                _start_tenure(state, tenure),
                last_promoted_as_of=verdict_event.judged_as_of,
                suspect_contents=_remove_key(state.suspect_contents, content),
                closed_verdicts=state.closed_verdicts | {event.verdict_entry},
            )
        case events.ChampionRolledBack() as event:
            assert state.champion_content
            barred = state.champion_content
            state = replace(
                state,
                barred_contents={**state.barred_contents, barred: event.barred_version},
                suspect_contents={**state.suspect_contents, barred: entry.number},
            )
            return _restore(state, event.restored_version, entry.number)
        case events.ChampionLost() as event:
            assert state.champion_content
            lost = state.champion_content
            state = replace(
                state,
                lost_contents=state.lost_contents | {lost},
                suspect_contents={**state.suspect_contents, lost: entry.number},
            )
            if event.restored_version is None:
                return replace(state, vacant_since=entry.number)
            return _restore(state, event.restored_version, entry.number)
        case events.VersionReleased() as event:
            released = _content_of_barred(state, event.version)
            assert released
            return replace(
                state,
                barred_contents=_remove_key(state.barred_contents, released),
                suspect_contents={**state.suspect_contents, released: entry.number},
            )
        case events.PromotionDeferred() as event:
            if state.challenger_as_of and (event.as_of < state.challenger_as_of or state.open_comparison):
                return state
            verdict_event = state.find_verdict_event(event.verdict_entry)
            assert verdict_event
            return replace(
                state,
                challenger_version=event.version,
                challenger_content=verdict_event.candidate_content,
                challenger_as_of=event.as_of,
                challenger_verdict=event.verdict_entry,
            )
        case events.ChallengerWithdrawn() as event:
            closed = state.closed_verdicts | {event.verdict_entry}
            return replace(_clear_challenger(state), closed_verdicts=closed)
        case events.PromotionRejected() as event:
            state = replace(state, closed_verdicts=state.closed_verdicts | {event.verdict_entry})
            verdict_event = state.find_verdict_event(event.verdict_entry)
            assert verdict_event
            is_challenger = verdict_event.candidate_content == state.challenger_content
            return _clear_challenger(state) if is_challenger else state
        case events.ChangeAccepted() as event:
            text = f"{entry.actor} accepted the change in entry {entry.number}: {event.reason}"
            return replace(state, accepted_change=text)
        case events.PromotionsFrozen():
            return replace(state, is_frozen=True)
        case events.PromotionsUnfrozen():
            return replace(state, is_frozen=False)
        case events.VerdictRecorded() as event:
            return _judge(state, event, entry.number)
        case events.BacktestRecorded() | events.AlarmRaised() | events.RetrainRequested() | events.RetrainRefused():
            return state
        case events.RollbackRequested() | events.RollbackRejected():
            return state
        case _ as never:
            assert_never(never)


def _judge(state: LedgerState, event: events.VerdictRecorded, number: int) -> LedgerState:
    if event.verdict.is_inconclusive:
        content, version = event.candidate_content, state.challenger_version if event.later_look else None
        return replace(
            state,
            challenger_version=version or content[:_MIN_CONTENT_DIGITS],  # until it is registered
            challenger_content=content,
            challenger_as_of=event.as_of,
            challenger_verdict=number,
            open_comparison=event.later_look.first_entry if event.later_look else number,
        )
    if event.later_look is None:
        return state
    if event.verdict.promote:
        return replace(state, challenger_verdict=number, open_comparison=None)
    return _clear_challenger(state)


def _register(state: LedgerState, event: events.VersionRegistered, number: int) -> LedgerState:
    verdict_event = state.find_verdict_event(event.verdict_entry)
    assert verdict_event
    content = verdict_event.candidate_content
    registration = Registration(event.version, content, event.manifest_sha256, event.verdict_entry, number)
    return replace(
        state,
        registrations=state.registrations.append(registration),
        lost_contents=state.lost_contents - {content},
    )


def _restore(state: LedgerState, version: str, number: int) -> LedgerState:
    restored = state.last_tenure(state.content_of(version))
    assert restored
    return _start_tenure(state, replace(restored, version=version, entry_number=number))


def _start_tenure(state: LedgerState, tenure: ChampionTenure) -> LedgerState:
    state = replace(state, tenures=state.tenures.append(tenure), vacant_since=None, accepted_change=None)
    if state.challenger_as_of and (
        state.challenger_content == tenure.content or state.challenger_as_of <= tenure.as_of
    ):
        return _clear_challenger(state)
    return state


def _remove_key(values: Mapping[str, _Value], key: str) -> dict[str, _Value]:
    return {k: value for k, value in values.items() if k != key}


def _content_of_barred(state: LedgerState, version: str) -> str | None:
    content = state.content_of(version)
    return content if content in state.barred_contents else None


def _clear_challenger(state: LedgerState) -> LedgerState:
    return replace(
        state,
        challenger_version=None,
        challenger_content=None,
        challenger_as_of=None,
        challenger_verdict=None,
        open_comparison=None,
    )


def _sequence_problem(state: LedgerState, entry: LedgerEntry) -> str | None:
    last = state.entries[-1] if state.entries else None
    if entry.number != state.head_number + 1:
        return f"it is in the place of entry {state.head_number + 1}"
    if entry.previous_hash != state.head_hash:
        return f"entry {state.head_number} is not the entry it was written after: one of the two was changed"
    if last and entry.model != last.model:
        return f"the entries before it are about {last.model}"
    if last and entry.recorded_at < last.recorded_at:
        return f"it is older than entry {last.number}"
    return None


def _event_problem(state: LedgerState, entry: LedgerEntry) -> str | None:
    event = entry.event
    match event:
        case events.VerdictRecorded():
            return _verdict_problem(state, event) or _future_problem(entry, event.judged_as_of)
        case events.BacktestRecorded():
            return _future_problem(entry, event.as_of)
        case events.AlarmRaised(champion_content=content, champion=version):
            if state.last_tenure(content) is None:
                return f"it is about version {version}, whose content was never champion"
            return _future_problem(entry, str(event.day))
        case events.RetrainRequested() | events.RetrainRefused():
            return _alarm_problem(state, event.alarm_entries) or _future_problem(entry, event.as_of)
        case events.VersionRegistered():
            return _reference_problem(state, event.verdict_entry)
        case events.VersionPromoted() | events.PromotionDeferred():
            return _reference_problem(state, event.verdict_entry) or _promotion_problem(state, event)
        case events.PromotionRejected():
            return _reference_problem(state, event.verdict_entry) or _rejection_problem(state, event)
        case events.ChallengerWithdrawn(version=version, verdict_entry=number):
            if number == state.challenger_verdict and version == state.challenger:
                return None
            return f"version {version} is not the challenger by the verdict in entry {number}"
        case events.ChampionRolledBack(barred_version=replaced, restored_version=version):
            return _replacement_problem(state, "bars", replaced, version) or _automatic_problem(state, event)
        case events.RollbackRequested():
            return _rollback_problem(state, event) or _future_problem(entry, event.as_of)
        case events.RollbackRejected(request_entry=number):
            is_request = isinstance(_event_at(state, number), events.RollbackRequested)
            return None if is_request else f"entry {number} asks for no rollback"
        case events.ChampionLost(lost_version=replaced, restored_version=version):
            return _replacement_problem(state, "loses", replaced, version)
        case events.VersionReleased(version=version):
            return None if _content_of_barred(state, version) else f"version {version} was not barred"
        case events.ChangeAccepted(champion=version):
            is_about_champion = version == state.champion
            return None if is_about_champion else f"it is about version {version}, not the champion, {state.champion}"
        case events.PromotionsFrozen():
            return "the model was frozen already" if state.is_frozen else None
        case events.PromotionsUnfrozen():
            return None if state.is_frozen else "the model was not frozen"
        case _ as never:
            assert_never(never)


def _reference_problem(state: LedgerState, verdict_entry: int) -> str | None:
    if state.find_verdict_event(verdict_entry) is None:
        return f"it refers to the verdict in entry {verdict_entry}, which holds none"
    return None


def _alarm_problem(state: LedgerState, alarm_entries: Sequence[int]) -> str | None:
    for number in alarm_entries:
        if number > state.head_number or not isinstance(state.entries[number - 1].event, events.AlarmRaised):
            return f"it refers to the alarm in entry {number}, which holds none"
    return None


def _future_problem(entry: LedgerEntry, as_of: str) -> str | None:
    """Return a problem if the data would end after the entry; if it ends with a day, after that day, wherever it is."""
    is_instant = len(as_of) > len("2013-03-01")
    latest = (
        f"{entry.recorded_at:%Y-%m-%dT%H:%MZ}" if is_instant else f"{entry.recorded_at + _EARLIEST_TIME_ZONE:%Y-%m-%d}"
    )
    return f"it claims data until {as_of}, and was recorded on {entry.recorded_at:%Y-%m-%d}" if as_of > latest else None


def _verdict_problem(state: LedgerState, event: events.VerdictRecorded) -> str | None:
    start, end = event.holdout
    if not start < end <= event.judged_as_of:
        return f"its holdout, from {start} until {end}, does not end by {event.judged_as_of}, the end of its data"
    if event.champion_content and state.last_tenure(event.champion_content) is None:
        return f"it compares with version {event.champion_version}, whose content was never champion"
    if event.later_look:
        return _look_problem(state, event, event.later_look)
    if state.open_comparison and event.spends_alpha:
        return f"the comparison that began in entry {state.open_comparison} goes on: it has to end first"
    if event.verdict.is_inconclusive and state.challenger_content:
        return f"it waits for evidence, but the challenger was {state.challenger}"
    if event.verdict.is_inconclusive and event.champion_content != state.champion_content:
        return f"it waits for evidence against {event.champion_version}, but the champion was {state.champion}"
    return None


def _look_problem(state: LedgerState, event: events.VerdictRecorded, look: events.LaterLook) -> str | None:
    """Return why this is no later look of the comparison that goes on."""
    previous = state.challenger_event
    if previous is None or state.open_comparison != look.first_entry:
        return f"it continues the comparison of entry {look.first_entry}, which does not go on"
    if event.candidate_content != previous.candidate_content or event.as_of != previous.as_of:
        return "it is about another candidate than the look before"
    if event.champion_content != previous.champion_content or event.champion_content != state.champion_content:
        return "it compares with another champion than the look before, or one that was replaced"
    start, end = previous.holdout
    if event.holdout[0] != start or event.holdout[1] < end or look.as_of < previous.judged_as_of:
        return "it does not have all days of the look before"
    earlier_results = {result.gate: result for result in previous.verdict.results}
    for result in event.verdict.results:
        earlier = earlier_results.get(result.gate)
        if earlier is None or result.alpha != earlier.alpha or result.looks[: len(earlier.looks)] != earlier.looks:
            return f"gate {result.gate} does not continue its looks at the same alpha"
        if earlier.outcome != "inconclusive" and result.outcome != earlier.outcome:
            return f"gate {result.gate} had {earlier.outcome} already"
    return None if len(event.verdict.results) == len(earlier_results) else "it leaves out a gate"


def _replacement_problem(state: LedgerState, verb: str, replaced: str, version: str | None) -> str | None:
    if state.champion_content is None or replaced != state.champion:
        return f"it {verb} version {replaced}, but the champion was {state.champion or 'none'}"
    if version is None:
        return None
    content = state.content_of(version)
    if content == state.champion_content or content in state.barred_contents or state.last_tenure(content) is None:
        return f"version {version} is champion, barred, or has never been champion"
    if content in state.lost_contents:
        return f"version {version} was lost"
    return None


def _automatic_problem(state: LedgerState, event: events.ChampionRolledBack) -> str | None:
    """Return why an automatic rollback does not follow from its request."""
    if event.request_entry is None:
        return None
    number, request = event.request_entry, _event_at(state, event.request_entry)
    if not isinstance(request, events.RollbackRequested):
        return f"entry {number} asks for no rollback"
    if problem := _rollback_problem(state, request):
        return f"of entry {number}, {problem}"
    if state.content_of(event.restored_version) != request.previous_content:
        return f"entry {number} asks for version {request.previous}"
    is_rejected = state.entries.find_last(events.RollbackRejected, request_entry=number)
    return f"it was rejected in entry {is_rejected.number}" if is_rejected else None


def _rollback_problem(state: LedgerState, event: events.RollbackRequested) -> str | None:
    """Return why the champion is not the one that was compared, or has not replaced the other one."""
    tenure, replaced = state.champion_tenure, state.replaced_tenure
    if tenure is None or tenure.entry_number != event.champion_entry:
        return f"the champion is not that of entry {event.champion_entry}"
    if replaced is None or replaced.content != event.previous_content:
        return f"the champion was not promoted over version {event.previous}"
    return None


def _event_at(state: LedgerState, number: int) -> events.LedgerEvent | None:
    return state.entries[number - 1].event if 1 <= number <= state.head_number else None


def _rejection_problem(state: LedgerState, event: events.PromotionRejected) -> str | None:
    if event.verdict_entry in state.closed_verdicts:
        return f"the verdict in entry {event.verdict_entry} has promoted, or was rejected, before"
    return None


def _promotion_problem(state: LedgerState, event: events.VersionPromoted | events.PromotionDeferred) -> str | None:
    """Return why the event does not follow from its verdict and the entries since."""
    basis, version, number = state.find_verdict_event(event.verdict_entry), event.version, event.verdict_entry
    assert basis  # or _reference_problem has refused it
    content = basis.candidate_content
    if event.as_of != basis.as_of:
        return f"it is as of {event.as_of}, and the verdict in entry {number} as of {basis.as_of}"
    if state.content_of(version) not in (None, content):
        return f"version {version} is not the candidate that the verdict in entry {number} is about"
    if not basis.verdict.promote or basis.champion_content != state.champion_content:
        return f"the verdict in entry {number} does not let it replace {state.champion or 'no champion'}"
    if content in state.barred_contents:
        return f"version {version} was barred"
    if number < state.suspect_contents.get(content, 0):
        return f"version {version} was barred or lost in entry {state.suspect_contents[content]}, after its verdict"
    if number in state.closed_verdicts:
        return f"the verdict in entry {number} has promoted, or was rejected, before"
    if number < (state.vacant_since or 0):
        return f"the verdict in entry {number} is older than the loss of the champion in entry {state.vacant_since}"
    if content == state.champion_content or (state.champion_as_of and event.as_of <= state.champion_as_of):
        return f"version {version} as of {event.as_of} is not newer than the champion"
    if isinstance(event, events.PromotionDeferred):
        return None
    if event.previous_champion != state.champion:
        return f"it replaces version {event.previous_champion}, but the champion was {state.champion or 'none'}"
    return "the model was frozen" if state.is_frozen else None
