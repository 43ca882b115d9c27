"""Later looks at a challenger: judge it on more days, or withdraw it. Each is one ledger entry, and repeatable.

As in `evergreen.promotion.service`, every function may be killed at any instruction and called again.
"""

from __future__ import annotations

from dataclasses import dataclass

from evergreen import evaluation, gates, ledger
from evergreen.errors import PromotionRefusedError
from evergreen.explanations.verdict_importance import record_importance
from evergreen.lake import datasets, fingerprints
from evergreen.promotion import challengers, rules, service
from evergreen.promotion.verdict_tables import follow_verdicts
from evergreen.registry import aliases, anchors
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason


@dataclass(frozen=True)
class LookContext:
    """A later look at the challenger, by one run.

    Attributes:
        run: DAG id and run id.
        first_entry: the entry of the first verdict of the comparison.
        examples: the labelled rows of all days so far (`training_sets.build_look_set`).
        evaluation: the scores of both models for them (`evaluation.collect_look_evidence`).
    """

    run: str
    run_reason: RunReason
    first_entry: int
    examples: datasets.Manifest
    evaluation: datasets.Manifest


def judge_look(model: ModelSpec, context: LookContext) -> int:
    """Record the verdict of a later look at the challenger, render its report, and return the number of the entry.

    The same evaluation is judged once. A verdict that is neither inconclusive nor promotes ends the comparison.

    Raises:
        PromotionRefusedError: the comparison has ended, or no day is new since the look before.
    """
    evidence = evaluation.load_evidence(model, context.evaluation)
    first = ledger.read_verdict_event(model.name, context.first_entry)
    basis = _look_basis(model, context, first)
    as_of = context.examples.inputs["as_of"]

    def decide(state: ledger.LedgerState) -> ledger.LedgerEvent | ledger.LedgerEntry:
        if entry := service.find_verdict(state, basis):
            return entry
        previous, problem = state.challenger_event, challengers.withdrawal_reason(state, model)
        if previous is None or state.open_comparison != context.first_entry or problem:
            raise PromotionRefusedError(f"nothing is looked at: {problem or 'the comparison has ended meanwhile'}")
        if as_of < previous.judged_as_of:
            raise PromotionRefusedError(f"nothing is looked at: a look as of {previous.judged_as_of} was first")
        slices = {name: file for name, file in previous.evidence.items() if name == "slices"}
        return previous.model_copy(
            update={
                "run": context.run,
                "run_reason": context.run_reason,
                "holdout": evidence.holdout,
                "days": evidence.days,
                "verdict": _judge_look(model, evidence, state, previous),
                "later_look": ledger.LaterLook(first_entry=context.first_entry, as_of=as_of),
                "evidence": service.verdict_files(model, context.evaluation, basis) | slices,
                "fingerprints": basis,
            }
        )

    anchors.update_anchor(model.name)
    entry = ledger.append_decision(model.name, context.run, decide)
    aliases.sync_aliases(model.name)
    from evergreen.feature_store.training_sets import look_dataset  # it loads Feast

    if isinstance(entry.event, ledger.VerdictRecorded):
        report = datasets.lake_path(entry.event.evidence["report"])
        record_importance(model, report, context.evaluation, look_dataset(model), context.examples, None)
    service.verdict_report_path(model, entry.number)
    follow_verdicts(model.name)
    return entry.number


def preview_look(model: ModelSpec, context: LookContext) -> gates.Verdict:
    """Return the verdict that a look would have had then, after those before it. Nothing is recorded.

    Raises:
        PromotionRefusedError: no day is new since the look before, or the comparison began later.
    """
    as_of = context.examples.inputs["as_of"]
    state = ledger.read_state(model.name)
    looks = [
        event
        for number, record in enumerate(state.entries.records, 1)
        if context.first_entry in (number, record.first_look)
        and (event := state.find_verdict_event(number))
        and event.judged_as_of < as_of
    ]
    if not looks:
        raise PromotionRefusedError(f"the comparison of entry {context.first_entry} began later than {as_of}")
    return _judge_look(model, evaluation.load_evidence(model, context.evaluation), state, looks[-1])


def withdraw_challenger(model: ModelSpec, reason: str, *, actor: str) -> str:
    """Withdraw the challenger, and return its version: its comparison ends without a promotion.

    Raises:
        PromotionRefusedError: there is none.
    """
    version = ledger.read_state(model.name).challenger
    if version is None:
        raise PromotionRefusedError(f"{model.name} has no challenger: there is nothing to withdraw")
    service.append_and_sync(model, actor, lambda state: rules.decide_withdrawal(state, version, reason))
    return version


def withdraw_obsolete_challenger(model: ModelSpec, as_of: str, *, actor: str) -> ledger.ChallengerWithdrawn | None:
    """Withdraw the challenger if it can become champion no more, as of a period; return None if it can."""

    def decide(state: ledger.LedgerState) -> ledger.LedgerEvent | ledger.LedgerEntry:
        reason = challengers.withdrawal_reason(state, model, as_of)
        if state.challenger is None or reason is None:
            raise PromotionRefusedError("the challenger may still become champion")
        return rules.decide_withdrawal(state, state.challenger, reason)

    try:
        event = service.append_and_sync(model, actor, decide)
    except PromotionRefusedError:
        service.sync_champion_aliases(model)  # an earlier run may have died before they followed
        return None
    assert isinstance(event, ledger.ChallengerWithdrawn)
    return event


def _judge_look(
    model: ModelSpec, evidence: gates.Evidence, state: ledger.LedgerState, previous: ledger.VerdictRecorded
) -> gates.Verdict:
    assert evidence.holdout
    if evidence.holdout[1] <= previous.holdout[1]:
        raise PromotionRefusedError(f"no day has labels that had none at the look before, until {previous.holdout[1]}")
    first_entry = previous.later_look.first_entry if previous.later_look else state.open_comparison
    earlier = state.entries.comparisons(before_entry=first_entry)
    verdict = gates.judge_next_look(model.gates, evidence, earlier, previous.verdict)
    if all(new.looks == old.looks for new, old in zip(verdict.results, previous.verdict.results, strict=True)):
        raise PromotionRefusedError(verdict.reason)  # nothing could be computed
    return verdict.model_copy(update={"unlabelled_share": gates.unlabelled_share(evidence)})


def _look_basis(model: ModelSpec, context: LookContext, first: ledger.VerdictRecorded) -> dict[str, str]:
    return {
        "evaluation": context.evaluation.content_hash,
        "gates": challengers.gates_fingerprint(model),
        "training_set": first.fingerprints["training_set"],
        "examples": context.examples.content_hash,
        "candidate": first.candidate_fingerprint,
        "judging": fingerprints.compute_fingerprint(evaluation.verdict_code(model)),
    }
