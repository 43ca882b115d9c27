"""The rules by which the champion changes: pure functions of what the ledger says, which give the act to record.

Each may also give an entry: then the ledger says so already, and a retry or a twin ends with the same answer.
To be used as `ledger.commit(model, by, lambda state: promotion.decide(state, request, cooldown_days=7))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

from evergreen.errors import PromotionRefusedError
from evergreen.gates.verdict import Verdict
from evergreen.ledger.entries import (
    ChampionRolledBack,
    LedgerEntry,
    LedgerEvent,
    PromotionDeferred,
    PromotionRejected,
    PromotionsFrozen,
    PromotionsUnfrozen,
    VersionPromoted,
    VersionReleased,
)
from evergreen.ledger.state import LedgerState
from evergreen.window import RunReason


@dataclass(frozen=True)
class ResolvedPromotionRequest:
    """A registered version asks to become champion.

    Attributes:
        as_of: it knows no data of this day or later.
        judged: number of the ledger's entry that holds its verdict.
        judged_against: the version that was champion then; None if there was none.
        approved_by: who agreed, where somebody has to.
        promote_backfill: the run's conf asks that a backfill may promote.
    """

    version: str
    as_of: date
    run_reason: RunReason
    verdict: Verdict
    verdict_entry: int
    champion_version: str | None
    approved_by: str | None = None
    promote_backfill: bool = False


def decide_promotion(
    state: LedgerState, request: ResolvedPromotionRequest, *, cooldown_days: int, needs_approval: bool = False
) -> VersionPromoted | PromotionDeferred | LedgerEntry:
    """Promote, or hold back what passed its gates while the model is frozen or its champion too new.

    Raises:
        PromotionRefused: the gates did not pass, the version is barred or rejected, its data is not newer than
            the champion's, it comes from a backfill that did not ask to promote, nobody approved of it, or the
            champion that it was judged against has been replaced.
    """
    if done := _find_promotion(state, request):
        return done
    if problem := _refusal_reason(state, request, needs_approval):
        raise PromotionRefusedError(f"version {request.version} is not promoted: {problem}")
    if reason := _deferral_reason(state, request, cooldown_days):
        held = _last_entry(
            state,
            lambda act: (
                isinstance(act, PromotionDeferred)
                and act.verdict_entry == request.verdict_entry
                and act.reason == reason
            ),
        )
        return held or PromotionDeferred(
            version=request.version, as_of=request.as_of, verdict_entry=request.verdict_entry, reason=reason
        )
    return VersionPromoted(
        version=request.version,
        previous_champion=state.champion,
        as_of=request.as_of,
        verdict_entry=request.verdict_entry,
        approved_by=request.approved_by,
    )


def decide_rollback(
    state: LedgerState, target_version: str | None, reason: str, *, expected_champion: str | None = None
) -> ChampionRolledBack | LedgerEntry:
    """Go back to `to`, or else to the last champion before this one that is not barred.

    Args:
        leaving: the champion that is to be left, as the caller saw it. With it, a retry, or a second who had
            the same thought, does not go back twice.

    Raises:
        PromotionRefused: there is nothing to go back to; `to` is champion, barred, or never was champion; or
            the champion is not `leaving` any more.
    """
    champion = state.champion
    if expected_champion is not None and champion != expected_champion:
        left = _find_rollback(state, expected_champion)
        if (
            left
            and isinstance(left.event, ChampionRolledBack)
            and target_version in (None, left.event.restored_version)
        ):
            return left
        raise PromotionRefusedError(
            f"version {expected_champion} is not champion any more, {_version_label(champion)} is: look at it first, then ask again"
        )
    if champion is None:
        raise PromotionRefusedError("there is no champion to go back from: promote a version first")
    if target_version is None:
        target_version = next(
            (
                reign.version
                for reign in reversed(state.tenures)
                if reign.version != champion and reign.version not in state.barred_versions
            ),
            None,
        )
        if target_version is None:
            raise PromotionRefusedError(
                f"there is nothing to go back to from version {champion}: no other version has been champion that "
                f"is not barred{_barred_versions_suffix(state)}; release one of those, or retrain"
            )
    if target_version == champion:
        raise PromotionRefusedError(f"version {target_version} is champion already: name another one, or none")
    if state.last_tenure(target_version) is None:
        raise PromotionRefusedError(
            f"version {target_version} has never been champion: only a version that has been promoted through its gates can be "
            "gone back to"
        )
    if target_version in state.barred_versions:
        raise PromotionRefusedError(
            f"version {target_version} is barred, it was rolled back from: release it first, or name another"
        )
    return ChampionRolledBack(restored_version=target_version, barred_version=champion, reason=_require_reason(reason))


def decide_release(state: LedgerState, version: str, reason: str) -> VersionReleased | LedgerEntry:
    """Let a barred version be promoted, or gone back to, again.

    Raises:
        PromotionRefused: it is not barred, and never was.
    """
    if version in state.barred_versions:
        return VersionReleased(version=version, reason=_require_reason(reason))
    if done := _last_entry(state, lambda act: isinstance(act, VersionReleased) and act.version == version):
        return done
    raise PromotionRefusedError(
        f"version {version} is not barred{_barred_versions_suffix(state)}: there is nothing to release"
    )


def decide_freeze(state: LedgerState, reason: str) -> PromotionsFrozen | LedgerEntry:
    """Let nothing be promoted until it is unfrozen."""
    frozen = state.is_frozen and _last_entry(state, lambda act: isinstance(act, PromotionsFrozen))
    return frozen or PromotionsFrozen(reason=_require_reason(reason))


def decide_unfreeze(state: LedgerState, reason: str) -> PromotionsUnfrozen | LedgerEntry:
    """Let versions be promoted again.

    Raises:
        PromotionRefused: it has never been frozen.
    """
    if state.is_frozen:
        return PromotionsUnfrozen(reason=_require_reason(reason))
    if done := _last_entry(state, lambda act: isinstance(act, PromotionsUnfrozen)):
        return done
    raise PromotionRefusedError("the model is not frozen: there is nothing to unfreeze")


def decide_rejection(
    state: LedgerState, version: str, verdict_entry: int, rejected_by: str, reason: str
) -> PromotionRejected | LedgerEntry:
    """Record that a promotion was not approved: this verdict can no longer promote.

    Raises:
        PromotionRefused: it has been promoted already.
    """
    if done := _last_entry(
        state, lambda act: isinstance(act, PromotionRejected) and act.verdict_entry == verdict_entry
    ):
        return done
    if done := _last_entry(state, lambda act: isinstance(act, VersionPromoted) and act.verdict_entry == verdict_entry):
        raise PromotionRefusedError(f"version {version} was promoted by {done.actor} already: roll back instead")
    return PromotionRejected(
        version=version, verdict_entry=verdict_entry, rejected_by=rejected_by, reason=_require_reason(reason)
    )


def _find_promotion(state: LedgerState, request: ResolvedPromotionRequest) -> LedgerEntry | None:
    """The entry by which this very verdict has promoted the version, unless that was rolled back."""
    this = request.version, request.verdict_entry
    done = _last_entry(state, lambda act: isinstance(act, VersionPromoted) and (act.version, act.verdict_entry) == this)
    if done is None:
        return None
    undone = _last_entry(
        state, lambda act: isinstance(act, ChampionRolledBack) and act.barred_version == request.version
    )
    return None if undone and undone.number > done.number else done


def _find_rollback(state: LedgerState, version: str) -> LedgerEntry | None:
    """The entry that ended the last reign of `version`, if it was a rollback."""
    numbers = [reign.entry_number for reign in state.tenures]
    reign = state.last_tenure(version)
    if reign is None or reign.entry_number == numbers[-1]:
        return None
    ended = state.entries[numbers[numbers.index(reign.entry_number) + 1] - 1]
    return ended if isinstance(ended.event, ChampionRolledBack) else None


def _refusal_reason(state: LedgerState, request: ResolvedPromotionRequest, needs_approval: bool) -> str | None:
    judged = state.find_verdict_event(request.verdict_entry)
    if judged is None or (judged.as_of, judged.champion_version, judged.verdict) != (
        request.as_of,
        request.champion_version,
        request.verdict,
    ):
        return f"entry {request.verdict_entry} of the ledger does not hold its verdict: judge it, then ask again"
    if not request.verdict.promote:
        return request.verdict.reason
    if request.version in state.barred_versions:
        return "it is barred, it was rolled back from; release it if that was not its fault"
    if rejected := _last_entry(
        state, lambda act: isinstance(act, PromotionRejected) and act.verdict_entry == request.verdict_entry
    ):
        assert isinstance(rejected.event, PromotionRejected)
        return f"{rejected.event.rejected_by} did not approve: {rejected.event.reason}; retrain for another verdict"
    if request.run_reason == RunReason.BACKFILL and not request.promote_backfill:
        return "a backfill leaves evidence, it does not promote; set promote in the run's conf if it should"
    if request.version == state.champion:
        return "it is champion already, by an earlier verdict"
    if state.champion_as_of and request.as_of <= state.champion_as_of:
        return (
            f"not newer: the champion, version {state.champion}, knows data until {state.champion_as_of}, "
            f"this one until {request.as_of}; retrain as of a later day"
        )
    if request.champion_version != state.champion:
        return (
            f"it was judged against {_version_label(request.champion_version)}, but {_version_label(state.champion)} is champion now; "
            "clear the run from its plan on, so that it is judged again"
        )
    if needs_approval and not request.approved_by:
        return "the model's spec asks for approval, and nobody has approved"
    return None


def _deferral_reason(state: LedgerState, request: ResolvedPromotionRequest, cooldown_days: int) -> str | None:
    if state.is_frozen:
        frozen = _last_entry(state, lambda act: isinstance(act, PromotionsFrozen))
        assert frozen
        assert isinstance(frozen.event, PromotionsFrozen)
        return f"the model was frozen by {frozen.actor}: {frozen.event.reason}; unfreeze it, then clear this task"
    if cooldown_days and state.last_promoted_as_of:
        free = state.last_promoted_as_of + timedelta(cooldown_days)
        if request.as_of < free:
            return (
                f"the last promotion was as of {state.last_promoted_as_of}, and cooldown_days is {cooldown_days}: "
                f"a run as of {free} or later may promote"
            )
    return None


def _last_entry(state: LedgerState, predicate: Callable[[LedgerEvent], bool]) -> LedgerEntry | None:
    return next((entry for entry in reversed(state.entries) if predicate(entry.event)), None)


def _require_reason(reason: str) -> str:
    if not reason.strip():
        raise PromotionRefusedError("no reason is given, and the ledger wants one: say why")
    return reason.strip()


def _version_label(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _barred_versions_suffix(state: LedgerState) -> str:
    return f" (barred: {', '.join(sorted(state.barred_versions))})" if state.barred_versions else ""
