"""The rules that change the champion: pure functions of the ledger's state that return the event to record.

A rule returns an entry instead when the ledger already records the decision, so a retry or a second caller gets the
same result. Use them as ``append_decision(model, actor, lambda state: decide_freeze(state, "stocktaking"))``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evergreen import ledger
from evergreen.errors import PromotionRefusedError
from evergreen.periods import Calendar, Duration
from evergreen.window import RunReason

BARRED = "its content is barred by a rollback; release it if the version was not at fault"
"""Why a model that a rollback replaced is not promoted."""


@dataclass(frozen=True)
class PromotionRequest:
    """A request to make a registered version champion on the strength of a verdict.

    Attributes:
        verdict_entry: number of the ledger entry that holds the verdict.
        run_reason: why the requesting run was started.
        promote_backfill: whether the run's conf lets a backfill promote.
        approved_by: the person who approved, if the model needs approval.
        as_of: until when the requesting run knows the data, if that is later than the verdict.
    """

    verdict_entry: int
    version: str
    run_reason: RunReason
    promote_backfill: bool = False
    approved_by: str | None = None
    as_of: str | None = None


def decide_promotion(
    state: ledger.LedgerState,
    request: PromotionRequest,
    cooldown: Duration,
    calendar: Calendar,
    *,
    needs_approval: bool = False,
) -> ledger.VersionPromoted | ledger.PromotionDeferred | ledger.LedgerEntry:
    """Promote the version, or defer it while the model is frozen or its last promotion is too recent.

    Raises:
        PromotionRefusedError: the gates did not pass, the version is barred or rejected, its data is not newer than
            the champion's, the run is a backfill without `promote_backfill`, the champion has changed since the
            verdict, or, where nothing defers the promotion, approval is missing.
    """
    if entry := _find_promotion(state, request):
        return entry
    verdict_event = state.find_verdict_event(request.verdict_entry)
    problem = refusal_reason(state, request)
    if verdict_event is None or problem:
        raise PromotionRefusedError(f"version {request.version} is not promoted: {problem}")
    version, as_of, number = request.version, verdict_event.as_of, request.verdict_entry
    known_until = max(verdict_event.judged_as_of, request.as_of or "")
    if reason := promotion_pause(state, known_until, cooldown, calendar):
        entry = _last_entry(state, ledger.PromotionDeferred, verdict_entry=number, reason=reason)
        event = ledger.PromotionDeferred(version=version, as_of=as_of, verdict_entry=number, reason=reason)
        return entry or event
    if needs_approval and not request.approved_by:
        raise PromotionRefusedError(
            f"version {version} is not promoted: the model's spec requires approval, and nobody has approved"
        )
    return ledger.VersionPromoted(
        version=version,
        previous_champion=state.champion,
        as_of=as_of,
        verdict_entry=number,
        approved_by=request.approved_by,
    )


def promotion_pause(state: ledger.LedgerState, as_of: str, cooldown: Duration, calendar: Calendar) -> str | None:
    """Return why no candidate with data until `as_of` is promoted for now: a freeze, or the cooldown; else None."""
    if state.is_frozen:
        freeze = _last_entry(state, ledger.PromotionsFrozen)
        assert freeze
        assert isinstance(freeze.event, ledger.PromotionsFrozen)
        return f"the model was frozen by {freeze.actor}: {freeze.event.reason}; unfreeze it, then clear this run"
    if cooldown and state.last_promoted_as_of:
        cooldown_end = calendar.after(state.last_promoted_as_of, cooldown)
        if as_of < cooldown_end:
            return (
                f"the last promotion was as of {state.last_promoted_as_of}, and cooldown is {cooldown}: "
                f"a run as of {cooldown_end} or later may promote"
            )
    return None


def decide_withdrawal(state: ledger.LedgerState, version: str, reason: str) -> ledger.LedgerEvent | ledger.LedgerEntry:
    """Withdraw the challenger `version`: its comparison ends without a promotion.

    Raises:
        PromotionRefusedError: it is not the challenger, and never was withdrawn.
    """
    if state.challenger_verdict and version == state.challenger:
        return ledger.ChallengerWithdrawn(
            version=version, verdict_entry=state.challenger_verdict, reason=_require_reason(reason)
        )
    if entry := _last_entry(state, ledger.ChallengerWithdrawn, version=version):
        return entry
    raise PromotionRefusedError(
        f"version {version} is not the challenger, {_version_label(state.challenger)} is: there is nothing to withdraw"
    )


def decide_rollback(
    state: ledger.LedgerState, target_version: str | None, reason: str, *, expected_champion: str | None = None
) -> ledger.ChampionRolledBack | ledger.LedgerEntry:
    """Restore `target_version`, by default the last champion before the current one that was never at fault.

    A version that was barred and released is restored only if it is named, or if a newer verdict has promoted it since.

    `expected_champion` is the champion that the caller wants to replace. With it, a retry or a second caller does not
    roll back twice.

    Raises:
        PromotionRefusedError: there is no version to restore; `target_version` is champion, barred, or was never
            champion; or `expected_champion` is not champion any more.
    """
    restored = {} if target_version is None else {"restored_version": target_version}
    if entry := _find_replacement(state, ledger.ChampionRolledBack, "barred_version", expected_champion, restored):
        return entry
    champion = state.champion
    if champion is None:
        raise PromotionRefusedError("there is no champion to roll back from: promote a version first")
    if target_version is None:
        target_version = next(restorable_versions(state), None)
        if target_version is None:
            raise PromotionRefusedError(
                f"there is no version to restore instead of version {champion}: no other version has been champion "
                f"that was not barred or lost since{_barred_versions_suffix(state)}; retrain, or release one of those "
                "and name it"
            )
    _check_restorable(state, target_version)
    return ledger.ChampionRolledBack(
        restored_version=target_version, barred_version=champion, reason=_require_reason(reason)
    )


def decide_loss(
    state: ledger.LedgerState, restored_version: str | None, reason: str, *, expected_champion: str
) -> ledger.ChampionLost | ledger.LedgerEntry:
    """Record that the champion's files are gone, and restore `restored_version`; with None there is no champion.

    Raises:
        PromotionRefusedError: `restored_version` is champion, barred, lost, or was never champion; or
            `expected_champion` is not champion any more.
    """
    restored = {"restored_version": restored_version}
    if entry := _find_replacement(state, ledger.ChampionLost, "lost_version", expected_champion, restored):
        return entry
    if restored_version is not None:
        _check_restorable(state, restored_version)
    return ledger.ChampionLost(
        lost_version=expected_champion, restored_version=restored_version, reason=_require_reason(reason)
    )


def restorable_versions(state: ledger.LedgerState) -> Iterator[str]:
    """Yield earlier champions, the last first, that were not barred or lost since a verdict has promoted them."""
    contents = dict.fromkeys(tenure.content for tenure in reversed(state.tenures))
    for content in contents:
        if content != state.champion_content and content not in state.suspect_contents:
            tenure = state.last_tenure(content)
            assert tenure
            yield state.name_of(content, tenure.version)


def decide_release(state: ledger.LedgerState, version: str, reason: str) -> ledger.VersionReleased | ledger.LedgerEntry:
    """Let a barred version be promoted again, by a newer verdict, or be restored by a person who names it.

    Raises:
        PromotionRefusedError: the version is not barred, and never was.
    """
    if state.content_of(version) in state.barred_contents:
        return ledger.VersionReleased(version=version, reason=_require_reason(reason))
    if entry := _last_entry(state, ledger.VersionReleased, version=version):
        return entry
    raise PromotionRefusedError(
        f"version {version} is not barred{_barred_versions_suffix(state)}: there is nothing to release"
    )


def decide_freeze(state: ledger.LedgerState, reason: str) -> ledger.PromotionsFrozen | ledger.LedgerEntry:
    """Stop promotions until the model is unfrozen."""
    entry = _last_entry(state, ledger.PromotionsFrozen) if state.is_frozen else None
    return entry or ledger.PromotionsFrozen(reason=_require_reason(reason))


def decide_unfreeze(state: ledger.LedgerState, reason: str) -> ledger.PromotionsUnfrozen | ledger.LedgerEntry:
    """Allow promotions again.

    Raises:
        PromotionRefusedError: the model has never been frozen.
    """
    if state.is_frozen:
        return ledger.PromotionsUnfrozen(reason=_require_reason(reason))
    if entry := _last_entry(state, ledger.PromotionsUnfrozen):
        return entry
    raise PromotionRefusedError("the model is not frozen: there is nothing to unfreeze")


def decide_change_acceptance(
    state: ledger.LedgerState, version: str, reason: str
) -> ledger.ChangeAccepted | ledger.LedgerEntry:
    """Accept that inputs of the champion, `version`, can no longer be made.

    Raises:
        PromotionRefusedError: it is not champion.
    """
    if version != state.champion:
        raise PromotionRefusedError(
            f"{_version_label(state.champion)} is champion, not version {version}: there is no comparison to do without"
        )
    entry = _last_entry(state, ledger.ChangeAccepted, champion=version) if state.accepted_change else None
    return entry or ledger.ChangeAccepted(champion=version, reason=_require_reason(reason))


def decide_rejection(
    state: ledger.LedgerState, version: str, verdict_entry: int, rejected_by: str, reason: str
) -> ledger.PromotionRejected | ledger.LedgerEntry:
    """Record that a promotion was not approved: its verdict can no longer promote.

    Raises:
        PromotionRefusedError: the version has been promoted, or withdrawn, already.
    """
    if entry := _last_entry(state, ledger.PromotionRejected, verdict_entry=verdict_entry):
        return entry
    if state.find_verdict_event(verdict_entry) is None:
        raise PromotionRefusedError(f"entry {verdict_entry} of the ledger holds no verdict: there is nothing to reject")
    if entry := _last_entry(state, ledger.VersionPromoted, verdict_entry=verdict_entry):
        raise PromotionRefusedError(f"version {version} was promoted by {entry.actor} already: roll back instead")
    if entry := _last_entry(state, ledger.ChallengerWithdrawn, verdict_entry=verdict_entry):
        raise PromotionRefusedError(f"version {version} was withdrawn by {entry.actor}: there is nothing to reject")
    return ledger.PromotionRejected(
        version=version, verdict_entry=verdict_entry, rejected_by=rejected_by, reason=_require_reason(reason)
    )


def _find_promotion(state: ledger.LedgerState, request: PromotionRequest) -> ledger.LedgerEntry | None:
    """Return the entry by which this verdict promoted its candidate, unless that was rolled back or lost since."""
    promotion = _last_entry(state, ledger.VersionPromoted, verdict_entry=request.verdict_entry)
    verdict_event = state.find_verdict_event(request.verdict_entry)
    if promotion is None or verdict_event is None:
        return None
    assert isinstance(promotion.event, ledger.VersionPromoted)
    content = verdict_event.candidate_content
    if request.version != promotion.event.version and state.content_of(request.version) != content:
        return None
    return promotion if state.suspect_contents.get(content, 0) < promotion.number else None


def _find_replacement(
    state: ledger.LedgerState,
    kind: type[ledger.ChampionRolledBack | ledger.ChampionLost],
    replaced: str,
    expected_champion: str | None,
    fields: Mapping[str, object],
) -> ledger.LedgerEntry | None:
    """Return the entry of `kind` that ended the last tenure of `expected_champion`; None if it is champion.

    Raises:
        PromotionRefusedError: something else ended it.
    """
    if expected_champion is None:
        return None
    content = state.content_of(expected_champion)
    if content is not None and content == state.champion_content:
        return None
    tenure = state.last_tenure(content)
    entry = _last_entry(state, kind, **{replaced: expected_champion, **fields})
    if tenure and entry and entry.number > tenure.entry_number:
        return entry
    raise PromotionRefusedError(
        f"version {expected_champion} is not champion any more, {_version_label(state.champion)} is: check it first, "
        "then repeat the command"
    )


def _check_restorable(state: ledger.LedgerState, version: str) -> None:
    content = state.content_of(version)
    if content is not None and content == state.champion_content:
        raise PromotionRefusedError(f"version {version} is champion already: name another version, or none")
    if state.last_tenure(content) is None:
        raise PromotionRefusedError(
            f"version {version} has never been champion: you can only roll back to a version that was promoted "
            "through its gates"
        )
    if content in state.barred_contents:
        raise PromotionRefusedError(
            f"version {version} is barred by an earlier rollback: release it first, or name another version"
        )
    if content in state.lost_contents:
        raise PromotionRefusedError(
            f"version {version} was recorded as lost: clear the register task of its run, which registers it again "
            "from the lake, or name another version"
        )


def refusal_reason(state: ledger.LedgerState, request: PromotionRequest) -> str | None:
    """Return why the verdict does not allow to promote the version, now or later; None if it does.

    What only defers a promotion, or an approval that is missing, is no such reason.
    """
    verdict_event = state.find_verdict_event(request.verdict_entry)
    if verdict_event is None:
        return f"entry {request.verdict_entry} of the ledger holds no verdict: judge the candidate first"
    if not verdict_event.verdict.promote:
        return verdict_event.verdict.reason
    if withdrawal := _last_entry(state, ledger.ChallengerWithdrawn, verdict_entry=request.verdict_entry):
        assert isinstance(withdrawal.event, ledger.ChallengerWithdrawn)
        return f"it was withdrawn by {withdrawal.actor}: {withdrawal.event.reason}; retrain for another verdict"
    content = verdict_event.candidate_content
    if state.content_of(request.version) not in (None, content):
        return f"it is not the candidate that the verdict in entry {request.verdict_entry} is about"
    if content in state.barred_contents:
        return BARRED
    if rejection := _last_entry(state, ledger.PromotionRejected, verdict_entry=request.verdict_entry):
        assert isinstance(rejection.event, ledger.PromotionRejected)
        return f"{rejection.event.rejected_by} did not approve: {rejection.event.reason}; retrain for another verdict"
    if request.run_reason == RunReason.BACKFILL and not request.promote_backfill:
        return "a backfill leaves evidence, it does not promote; set promote in the run's conf if it should"
    if content == state.champion_content:
        return "it is champion already, by an earlier verdict"
    if request.verdict_entry < (fault := state.suspect_contents.get(content, 0)):
        return f"it was barred or lost until entry {fault}, after its verdict; retrain as of a later one"
    if request.verdict_entry < (state.vacant_since or 0):
        return "it was judged before the champion was lost; clear the run from its plan task on to judge it again"
    if problem := champion_problem(
        state, verdict_event.as_of, verdict_event.champion_version, verdict_event.champion_content
    ):
        return problem
    if request.verdict_entry in state.closed_verdicts:
        return "its verdict has promoted it before; retrain as of a later one"
    return None


def champion_problem(
    state: ledger.LedgerState, as_of: str, compared_version: str | None, compared_content: str | None
) -> str | None:
    """Return why a candidate that is compared with this model cannot replace the champion; None if it can."""
    if state.champion_as_of and as_of <= state.champion_as_of:
        return (
            f"not newer: the champion, version {state.champion}, has data until {state.champion_as_of}, "
            f"this version until {as_of}; retrain as of a later one"
        )
    if compared_content != state.champion_content:
        return (
            f"it was judged against {_version_label(compared_version)}, but "
            f"{_version_label(state.champion)} is champion now; clear the run from its plan task on to judge it again"
        )
    return None


def _last_entry(
    state: ledger.LedgerState, kind: type[ledger.LedgerEvent], **fields: object
) -> ledger.LedgerEntry | None:
    """Return the newest entry with an event of `kind` that has these values of its fields."""
    return state.entries.find_last(kind, **fields)


def _require_reason(reason: str) -> str:
    if not reason.strip():
        raise PromotionRefusedError("the reason is empty: say why, the ledger records it")
    return reason.strip()


def _version_label(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _barred_versions_suffix(state: ledger.LedgerState) -> str:
    return f" (barred: {', '.join(sorted(state.barred_versions))})" if state.barred_versions else ""
