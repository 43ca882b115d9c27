"""The rules that change the champion: pure functions of the ledger's state that return the event to record.

A rule returns an entry instead when the ledger already records the decision, so a retry or a second caller gets the
same result. Use them as ``append_decision(model, actor, lambda state: decide_freeze(state, "stocktaking"))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from evergreen import ledger
from evergreen.errors import PromotionRefusedError
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason


@dataclass(frozen=True)
class PromotionRequest:
    """A request to make a registered version champion on the strength of a verdict.

    Attributes:
        verdict_entry: number of the ledger entry that holds the verdict.
        run_reason: why the requesting run was started.
        promote_backfill: whether the run's conf lets a backfill promote.
        approved_by: the person who approved, if the model needs approval.
    """

    verdict_entry: int
    version: str
    run_reason: RunReason
    promote_backfill: bool = False
    approved_by: str | None = None


def decide_promotion(
    state: ledger.LedgerState, request: PromotionRequest, *, cooldown_days: int, needs_approval: bool = False
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
    problem = _refusal_reason(state, request, verdict_event)
    if verdict_event is None or problem:
        raise PromotionRefusedError(f"version {request.version} is not promoted: {problem}")
    version, as_of, number = request.version, verdict_event.as_of, request.verdict_entry
    if reason := promotion_pause(state, as_of, cooldown_days):
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


def promotion_pause(state: ledger.LedgerState, as_of: date, cooldown_days: int) -> str | None:
    """Return why no candidate with data until `as_of` is promoted for now: a freeze, or the cooldown; else None."""
    if state.is_frozen:
        freeze = _last_entry(state, ledger.PromotionsFrozen)
        assert freeze
        assert isinstance(freeze.event, ledger.PromotionsFrozen)
        return f"the model was frozen by {freeze.actor}: {freeze.event.reason}; unfreeze it, then clear this run"
    if cooldown_days and state.last_promoted_as_of:
        cooldown_end = state.last_promoted_as_of + timedelta(cooldown_days)
        if as_of < cooldown_end:
            return (
                f"the last promotion was as of {state.last_promoted_as_of}, and cooldown_days is {cooldown_days}: "
                f"a run as of {cooldown_end} or later may promote"
            )
    return None


def comparison_obstacle(state: ledger.LedgerState, as_of: date, compared_version: str, model: ModelSpec) -> str | None:
    """Return why a comparison with `compared_version` would be spent in vain: it could promote nothing; else None."""
    if problem := _champion_problem(state, as_of, compared_version):
        return problem
    return None if model.keep_candidates_ready else promotion_pause(state, as_of, model.cooldown_days)


def decide_rollback(
    state: ledger.LedgerState, target_version: str | None, reason: str, *, expected_champion: str | None = None
) -> ledger.ChampionRolledBack | ledger.LedgerEntry:
    """Restore `target_version`, by default the last champion before the current one that is not barred.

    `expected_champion` is the champion that the caller wants to replace. With it, a retry or a second caller does not
    roll back twice.

    Raises:
        PromotionRefusedError: there is no version to restore; `target_version` is champion, barred, or was never
            champion; or `expected_champion` is not champion any more.
    """
    champion = state.champion
    if expected_champion is not None and champion != expected_champion:
        restored = {} if target_version is None else {"restored_version": target_version}
        tenure = state.last_tenure(expected_champion)
        entry = _last_entry(state, ledger.ChampionRolledBack, barred_version=expected_champion, **restored)
        if tenure and entry and entry.number > tenure.entry_number:  # it ended the last tenure
            return entry
        raise PromotionRefusedError(
            f"version {expected_champion} is not champion any more, {_version_label(champion)} is: check it first, "
            "then repeat the rollback"
        )
    if champion is None:
        raise PromotionRefusedError("there is no champion to roll back from: promote a version first")
    if target_version is None:
        earlier = (tenure.version for tenure in reversed(state.tenures) if tenure.version != champion)
        target_version = next((version for version in earlier if version not in state.barred_versions), None)
        if target_version is None:
            raise PromotionRefusedError(
                f"there is no version to restore instead of version {champion}: no other version has been champion "
                f"that is not barred{_barred_versions_suffix(state)}; release one of those, or retrain"
            )
    if target_version == champion:
        raise PromotionRefusedError(f"version {target_version} is champion already: name another version, or none")
    if state.last_tenure(target_version) is None:
        raise PromotionRefusedError(
            f"version {target_version} has never been champion: you can only roll back to a version that was promoted "
            "through its gates"
        )
    if target_version in state.barred_versions:
        raise PromotionRefusedError(
            f"version {target_version} is barred by an earlier rollback: release it first, or name another version"
        )
    return ledger.ChampionRolledBack(
        restored_version=target_version, barred_version=champion, reason=_require_reason(reason)
    )


def decide_release(state: ledger.LedgerState, version: str, reason: str) -> ledger.VersionReleased | ledger.LedgerEntry:
    """Let a barred version be promoted, or restored, again.

    Raises:
        PromotionRefusedError: the version is not barred, and never was.
    """
    if version in state.barred_versions:
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
        PromotionRefusedError: the version has been promoted already.
    """
    if entry := _last_entry(state, ledger.PromotionRejected, verdict_entry=verdict_entry):
        return entry
    if entry := _last_entry(state, ledger.VersionPromoted, verdict_entry=verdict_entry):
        raise PromotionRefusedError(f"version {version} was promoted by {entry.actor} already: roll back instead")
    return ledger.PromotionRejected(
        version=version, verdict_entry=verdict_entry, rejected_by=rejected_by, reason=_require_reason(reason)
    )


def _find_promotion(state: ledger.LedgerState, request: PromotionRequest) -> ledger.LedgerEntry | None:
    """Return the entry by which this verdict promoted the version, unless that was rolled back."""
    promotion = _last_entry(state, ledger.VersionPromoted, version=request.version, verdict_entry=request.verdict_entry)
    rollback = _last_entry(state, ledger.ChampionRolledBack, barred_version=request.version)
    return None if promotion and rollback and rollback.number > promotion.number else promotion


def _refusal_reason(
    state: ledger.LedgerState, request: PromotionRequest, verdict_event: ledger.VerdictRecorded | None
) -> str | None:
    if verdict_event is None:
        return f"entry {request.verdict_entry} of the ledger holds no verdict: judge the candidate first"
    if not verdict_event.verdict.promote:
        return verdict_event.verdict.reason
    if request.version in state.barred_versions:
        return "it is barred by a rollback; release it if the version was not at fault"
    if rejection := _last_entry(state, ledger.PromotionRejected, verdict_entry=request.verdict_entry):
        assert isinstance(rejection.event, ledger.PromotionRejected)
        return f"{rejection.event.rejected_by} did not approve: {rejection.event.reason}; retrain for another verdict"
    if request.run_reason == RunReason.BACKFILL and not request.promote_backfill:
        return "a backfill leaves evidence, it does not promote; set promote in the run's conf if it should"
    if request.version == state.champion:
        return "it is champion already, by an earlier verdict"
    return _champion_problem(state, verdict_event.as_of, verdict_event.champion_version)


def _champion_problem(state: ledger.LedgerState, as_of: date, compared_version: str | None) -> str | None:
    """Return why a candidate that is compared with `compared_version` cannot replace the champion; None if it can."""
    if state.champion_as_of and as_of <= state.champion_as_of:
        return (
            f"not newer: the champion, version {state.champion}, has data until {state.champion_as_of}, "
            f"this version until {as_of}; retrain as of a later day"
        )
    if compared_version != state.champion:
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
