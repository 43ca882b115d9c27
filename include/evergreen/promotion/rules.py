"""The rules by which the champion changes: pure functions of what the ledger says, which give the act to record.

Each may also give an entry: then the ledger says so already, and a retry or a twin ends with the same answer.
To be used as `ledger.commit(model, by, lambda state: promotion.decide(state, request, cooldown_days=7))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

from evergreen.errors import PromotionRefused
from evergreen.gates.verdict import Verdict
from evergreen.ledger.entries import (
    Act,
    Entry,
    Frozen,
    Held,
    Promoted,
    Rejected,
    Released,
    RolledBack,
    Unfrozen,
)
from evergreen.ledger.state import State
from evergreen.window import Origin


@dataclass(frozen=True)
class Request:
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
    origin: Origin
    verdict: Verdict
    judged: int
    judged_against: str | None
    approved_by: str | None = None
    promote_backfill: bool = False


def decide(
    state: State, request: Request, *, cooldown_days: int, needs_approval: bool = False
) -> Promoted | Held | Entry:
    """Promote, or hold back what passed its gates while the model is frozen or its champion too new.

    Raises:
        PromotionRefused: the gates did not pass, the version is barred or rejected, its data is not newer than
            the champion's, it comes from a backfill that did not ask to promote, nobody approved of it, or the
            champion that it was judged against has been replaced.
    """
    if done := _promoted(state, request):
        return done
    if problem := _refusal(state, request, needs_approval):
        raise PromotionRefused(f"version {request.version} is not promoted: {problem}")
    if reason := _hold(state, request, cooldown_days):
        held = _last(
            state, lambda act: isinstance(act, Held) and act.judged == request.judged and act.reason == reason
        )
        return held or Held(
            version=request.version, as_of=request.as_of, judged=request.judged, reason=reason
        )
    return Promoted(
        version=request.version,
        replaced=state.champion,
        as_of=request.as_of,
        judged=request.judged,
        approved_by=request.approved_by,
    )


def rollback(state: State, to: str | None, reason: str, *, leaving: str | None = None) -> RolledBack | Entry:
    """Go back to `to`, or else to the last champion before this one that is not barred.

    Args:
        leaving: the champion that is to be left, as the caller saw it. With it, a retry, or a second who had
            the same thought, does not go back twice.

    Raises:
        PromotionRefused: there is nothing to go back to; `to` is champion, barred, or never was champion; or
            the champion is not `leaving` any more.
    """
    champion = state.champion
    if leaving is not None and champion != leaving:
        left = _rolled_back_from(state, leaving)
        if left and isinstance(left.act, RolledBack) and to in (None, left.act.to):
            return left
        raise PromotionRefused(
            f"version {leaving} is not champion any more, {_named(champion)} is: look at it first, then ask again"
        )
    if champion is None:
        raise PromotionRefused("there is no champion to go back from: promote a version first")
    if to is None:
        to = next(
            (
                reign.version
                for reign in reversed(state.reigns)
                if reign.version != champion and reign.version not in state.barred
            ),
            None,
        )
        if to is None:
            raise PromotionRefused(
                f"there is nothing to go back to from version {champion}: no other version has been champion that "
                f"is not barred{_list(state)}; release one of those, or retrain"
            )
    if to == champion:
        raise PromotionRefused(f"version {to} is champion already: name another one, or none")
    if state.reign_of(to) is None:
        raise PromotionRefused(
            f"version {to} has never been champion: only a version that has been promoted through its gates can be "
            "gone back to"
        )
    if to in state.barred:
        raise PromotionRefused(
            f"version {to} is barred, it was rolled back from: release it first, or name another"
        )
    return RolledBack(to=to, barred=champion, reason=_given(reason))


def release(state: State, version: str, reason: str) -> Released | Entry:
    """Let a barred version be promoted, or gone back to, again.

    Raises:
        PromotionRefused: it is not barred, and never was.
    """
    if version in state.barred:
        return Released(version=version, reason=_given(reason))
    if done := _last(state, lambda act: isinstance(act, Released) and act.version == version):
        return done
    raise PromotionRefused(f"version {version} is not barred{_list(state)}: there is nothing to release")


def freeze(state: State, reason: str) -> Frozen | Entry:
    """Let nothing be promoted until it is unfrozen."""
    frozen = state.frozen and _last(state, lambda act: isinstance(act, Frozen))
    return frozen or Frozen(reason=_given(reason))


def unfreeze(state: State, reason: str) -> Unfrozen | Entry:
    """Let versions be promoted again.

    Raises:
        PromotionRefused: it has never been frozen.
    """
    if state.frozen:
        return Unfrozen(reason=_given(reason))
    if done := _last(state, lambda act: isinstance(act, Unfrozen)):
        return done
    raise PromotionRefused("the model is not frozen: there is nothing to unfreeze")


def reject(state: State, version: str, judged: int, by_whom: str, reason: str) -> Rejected | Entry:
    """Record that a promotion was not approved: this verdict can no longer promote.

    Raises:
        PromotionRefused: it has been promoted already.
    """
    if done := _last(state, lambda act: isinstance(act, Rejected) and act.judged == judged):
        return done
    if done := _last(state, lambda act: isinstance(act, Promoted) and act.judged == judged):
        raise PromotionRefused(f"version {version} was promoted by {done.by} already: roll back instead")
    return Rejected(version=version, judged=judged, by_whom=by_whom, reason=_given(reason))


def _promoted(state: State, request: Request) -> Entry | None:
    """The entry by which this very verdict has promoted the version, unless that was rolled back."""
    this = request.version, request.judged
    done = _last(state, lambda act: isinstance(act, Promoted) and (act.version, act.judged) == this)
    if done is None:
        return None
    undone = _last(state, lambda act: isinstance(act, RolledBack) and act.barred == request.version)
    return None if undone and undone.number > done.number else done


def _rolled_back_from(state: State, version: str) -> Entry | None:
    """The entry that ended the last reign of `version`, if it was a rollback."""
    numbers = [reign.number for reign in state.reigns]
    reign = state.reign_of(version)
    if reign is None or reign.number == numbers[-1]:
        return None
    ended = state.entries[numbers[numbers.index(reign.number) + 1] - 1]
    return ended if isinstance(ended.act, RolledBack) else None


def _refusal(state: State, request: Request, needs_approval: bool) -> str | None:
    judged = state.judged(request.judged)
    if judged is None or (judged.as_of, judged.champion, judged.verdict) != (
        request.as_of,
        request.judged_against,
        request.verdict,
    ):
        return f"entry {request.judged} of the ledger does not hold its verdict: judge it, then ask again"
    if not request.verdict.promote:
        return request.verdict.reason
    if request.version in state.barred:
        return "it is barred, it was rolled back from; release it if that was not its fault"
    if rejected := _last(state, lambda act: isinstance(act, Rejected) and act.judged == request.judged):
        assert isinstance(rejected.act, Rejected)
        return f"{rejected.act.by_whom} did not approve: {rejected.act.reason}; retrain for another verdict"
    if request.origin == Origin.BACKFILL and not request.promote_backfill:
        return "a backfill leaves evidence, it does not promote; set promote in the run's conf if it should"
    if request.version == state.champion:
        return "it is champion already, by an earlier verdict"
    if state.champion_as_of and request.as_of <= state.champion_as_of:
        return (
            f"not newer: the champion, version {state.champion}, knows data until {state.champion_as_of}, "
            f"this one until {request.as_of}; retrain as of a later day"
        )
    if request.judged_against != state.champion:
        return (
            f"it was judged against {_named(request.judged_against)}, but {_named(state.champion)} is champion now; "
            "clear the run from its plan on, so that it is judged again"
        )
    if needs_approval and not request.approved_by:
        return "the model's spec asks for approval, and nobody has approved"
    return None


def _hold(state: State, request: Request, cooldown_days: int) -> str | None:
    if state.frozen:
        frozen = _last(state, lambda act: isinstance(act, Frozen))
        assert frozen
        assert isinstance(frozen.act, Frozen)
        return f"the model was frozen by {frozen.by}: {frozen.act.reason}; unfreeze it, then clear this task"
    if cooldown_days and state.last_promoted_as_of:
        free = state.last_promoted_as_of + timedelta(cooldown_days)
        if request.as_of < free:
            return (
                f"the last promotion was as of {state.last_promoted_as_of}, and cooldown_days is {cooldown_days}: "
                f"a run as of {free} or later may promote"
            )
    return None


def _last(state: State, wanted: Callable[[Act], bool]) -> Entry | None:
    return next((entry for entry in reversed(state.entries) if wanted(entry.act)), None)


def _given(reason: str) -> str:
    if not reason.strip():
        raise PromotionRefused("no reason is given, and the ledger wants one: say why")
    return reason.strip()


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _list(state: State) -> str:
    return f" (barred: {', '.join(sorted(state.barred))})" if state.barred else ""
