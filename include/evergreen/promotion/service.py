"""Who is champion, and how that changes: each change is one entry of the ledger, and MLflow's aliases follow.

Every function here may be killed at any instruction and called again, or twice at once. What counts is the
entry: once it is there the change has happened, and whoever comes next, or `registry.repair`, brings the
aliases after it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from evergreen import evaluation, gates, ledger, reports
from evergreen.errors import PromotionRefusedError
from evergreen.gates import AgainstChampionGate, Evidence, Verdict
from evergreen.lake import datasets, fingerprints
from evergreen.ledger import (
    BacktestRecorded,
    ChampionRolledBack,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionDeferred,
    VerdictRecorded,
    VersionPromoted,
)
from evergreen.promotion import rules
from evergreen.promotion.rules import ResolvedPromotionRequest
from evergreen.registry import versions
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason


@dataclass(frozen=True)
class EvaluationContext:
    """What is judged: the evaluation of a candidate, in a run."""

    run: str
    """DAG and run id"""
    run_reason: RunReason
    training_set: datasets.Manifest
    candidate: datasets.Manifest
    evaluation: datasets.Manifest
    champion_version: str | None
    """the version that it was scored against"""

    @property
    def as_of(self) -> date:
        return date.fromisoformat(self.training_set.inputs["as_of"])

    @property
    def holdout_rows(self) -> int:
        """Of the holdout"""
        return self.training_set.files["holdout"].rows or 0

    @property
    def holdout(self) -> tuple[date, date]:
        """First ≤ day < end"""
        return date.fromisoformat(self.training_set.inputs["holdout"]), self.as_of


def judge_candidate(model: ModelSpec, context: EvaluationContext) -> int:
    """The number of the entry with the verdict on `case`: of the one that there is, or a new one.

    The confidence that a comparison may spend depends on what was spent before. So of several that judge at
    once one is written first, and the others judge again after it.
    """
    shown = evaluation.load_evidence(model, context.evaluation)
    about = {
        "evaluation": context.evaluation.content_hash,
        "gates": fingerprints.compute_fingerprint([gate.model_dump(mode="json") for gate in model.gates]),
        "training_set": context.training_set.content_hash,
        "candidate": context.candidate.fingerprint,
        "judging": fingerprints.compute_fingerprint(evaluation.judging_code(model.gates)),
    }

    def decide(state: LedgerState) -> LedgerEvent | LedgerEntry:
        for entry in state.entries:
            if isinstance(entry.event, VerdictRecorded) and entry.event.fingerprints == about:
                return entry
        verdict = gates.judge_evidence(model.gates, shown, state.comparisons)
        report = _publish_report(model, context, verdict, shown, state)
        return VerdictRecorded(
            run=context.run,
            run_reason=context.run_reason,
            as_of=context.as_of,
            holdout=context.holdout,
            candidate_fingerprint=context.candidate.fingerprint,
            champion_version=context.champion_version,
            verdict=verdict,
            evidence={
                "evaluation": f"{evaluation.evaluation_dataset(model).root}/{context.evaluation.partition}",
                "report": str(report),
            },
            fingerprints=about,
        )

    return ledger.append_decision(model.name, context.run, decide).number


def record_backtest(model: ModelSpec, as_of: date, candidate: datasets.Manifest, report: Path, *, actor: str) -> None:
    """Record that a backfill has left evidence, which nothing acts on."""
    act = BacktestRecorded(as_of=as_of, candidate_fingerprint=candidate.fingerprint, report_uri=str(report))

    def decide(state: LedgerState) -> LedgerEvent | LedgerEntry:
        return next((entry for entry in state.entries if entry.event == act), act)

    ledger.append_decision(model.name, actor, decide)


@dataclass(frozen=True)
class PromotionRequest:
    """A registered version asks to be champion on the strength of a verdict."""

    verdict_entry: int
    """number of the ledger's entry"""
    version: str
    run_reason: RunReason
    """of the run that asks"""
    promote_backfill: bool = False
    """the run's conf says that a backfill may promote"""
    approved_by: str | None = None


def promotion_blocker(model: ModelSpec, request: PromotionRequest) -> str | None:
    """Why `promote` would not make the version champion, or None if it would, given approval.

    To be asked before a person is.
    """
    resolved = _resolve_request(model, replace(request, approved_by="whoever is asked"))
    try:
        act = rules.decide_promotion(ledger.read_state(model.name), resolved, cooldown_days=model.cooldown_days)
    except PromotionRefusedError as refusal:
        return str(refusal)
    return act.reason if isinstance(act, PromotionDeferred) else None


def promote_version(model: ModelSpec, request: PromotionRequest, *, actor: str) -> str | None:
    """Make the version champion.

    Gives None, or why it is the challenger instead: its gates passed, and a rule holds it back for now.

    Raises:
        PromotionRefused: it may be neither.
        RegistryError: the registered version is not the candidate that was judged.
        SignatureError: its files are not those that were registered and signed.
    """
    versions.verify_version(
        model.name,
        request.version,
        ledger.read_verdict_event(model.name, request.verdict_entry).candidate_fingerprint,
    )
    resolved = _resolve_request(model, request)
    act = _append_and_sync(
        model,
        actor,
        lambda state: rules.decide_promotion(
            state, resolved, cooldown_days=model.cooldown_days, needs_approval=model.approval is not None
        ),
    )
    return act.reason if isinstance(act, PromotionDeferred) else None


def reject_promotion(
    model: ModelSpec, verdict_entry: int, version: str, *, actor: str, rejected_by: str, reason: str
) -> None:
    """Record that a person, or a time-out, said no to the verdict in entry `judged`."""
    _append_and_sync(
        model, actor, lambda state: rules.decide_rejection(state, version, verdict_entry, rejected_by, reason)
    )


def roll_back_champion(
    model: ModelSpec,
    target_version: str | None,
    reason: str,
    *,
    actor: str,
    expected_champion: str | None = None,
) -> ChampionRolledBack:
    """Back to the champion before, or to the one that is named; the version that is left is barred until released.

    Raises:
        PromotionRefused: there is nothing to go back to, or not to that; or the champion is not `leaving`.
        SignatureError: the files of the version to go back to are not those that were registered and signed.
    """

    def decide(state: LedgerState) -> LedgerEvent | LedgerEntry:
        act = rules.decide_rollback(state, target_version, reason, expected_champion=expected_champion)
        if isinstance(act, ChampionRolledBack):
            versions.verify_version(
                model.name, act.restored_version, _candidate_fingerprint(state, act.restored_version)
            )
        return act

    act = _append_and_sync(model, actor, decide)
    assert isinstance(act, ChampionRolledBack)
    return act


def release_version(model: ModelSpec, version: str, reason: str, *, actor: str) -> None:
    """Let a version that was rolled back from be promoted again."""
    _append_and_sync(model, actor, lambda state: rules.decide_release(state, version, reason))


def freeze_promotions(model: ModelSpec, reason: str, *, actor: str) -> None:
    """Keep the champion, whatever the gates say."""
    _append_and_sync(model, actor, lambda state: rules.decide_freeze(state, reason))


def unfreeze_promotions(model: ModelSpec, reason: str, *, actor: str) -> None:
    """End a freeze."""
    _append_and_sync(model, actor, lambda state: rules.decide_unfreeze(state, reason))


def verdict_report_path(model: ModelSpec, verdict_entry: int) -> Path:
    """The page about the verdict in entry `judged`."""
    return Path(ledger.read_verdict_event(model.name, verdict_entry).evidence["report"])


def _append_and_sync(
    model: ModelSpec, actor: str, decide: Callable[[LedgerState], LedgerEvent | LedgerEntry]
) -> LedgerEvent:
    entry = ledger.append_decision(model.name, actor, decide)
    versions.sync_aliases(model.name)  # also when there is nothing new: an earlier attempt may have died before it
    return entry.event


def _resolve_request(model: ModelSpec, request: PromotionRequest) -> ResolvedPromotionRequest:
    act = ledger.read_verdict_event(model.name, request.verdict_entry)
    return ResolvedPromotionRequest(
        version=request.version,
        as_of=act.as_of,
        run_reason=request.run_reason,
        verdict=act.verdict,
        verdict_entry=request.verdict_entry,
        champion_version=act.champion_version,
        approved_by=request.approved_by,
        promote_backfill=request.promote_backfill,
    )


def _candidate_fingerprint(state: LedgerState, version: str) -> str:
    """The fingerprint that `version` was judged by when it was promoted."""
    promoted = next(
        entry.event
        for entry in reversed(state.entries)
        if isinstance(entry.event, VersionPromoted) and entry.event.version == version
    )
    judged = state.find_verdict_event(promoted.verdict_entry)
    assert judged
    return judged.candidate_fingerprint


def _publish_report(
    model: ModelSpec, context: EvaluationContext, verdict: Verdict, evidence: Evidence, state: LedgerState
) -> Path:
    """Publish the page about `verdict`; gives its file."""
    about = reports.GateReportContext(
        model=model.name,
        description=model.description,
        owner=model.owner,
        candidate_fingerprint=context.candidate.fingerprint,
        candidate_version=None,
        champion_version=context.champion_version,
        as_of=context.as_of,
        holdout=context.holdout,
        holdout_rows=context.holdout_rows,
        run_id=context.run,
        run_reason=context.run_reason.value,
        input_fingerprints={
            "training set": context.training_set.content_hash,
            "evaluation": context.evaluation.content_hash,
        },
        alpha_budgets=_alpha_budgets(model, verdict, state),
    )
    page = reports.render_gate_report(about, model.gates, verdict, evidence)
    inputs = {"page": fingerprints.compute_fingerprint(page)}
    mark = fingerprints.compute_fingerprint(inputs)
    target = datasets.open_dataset(f"verdicts/{model.name}")
    staged = target.stage(context.evaluation.partition, mark) / "report.html"
    staged.write_text(page)
    manifest = target.publish(context.evaluation.partition, mark, {"report": staged}, inputs)
    return target.file_path(manifest, "report")


def _alpha_budgets(model: ModelSpec, verdict: Verdict, state: LedgerState) -> list[reports.AlphaBudget]:
    """What each comparison has used up for good: what passed is carried over, what failed is gone."""
    levels = {record.gate: record.alpha for record in verdict.results if record.alpha is not None}
    gone: dict[str, float] = defaultdict(float)
    for comparison in state.comparisons:
        for gate, level, passed in comparison.spending:
            gone[gate] += 0.0 if passed else level
    return [
        reports.AlphaBudget(gate.name, gone[gate.name] + levels[gate.name], 1 - gate.confidence)
        for gate in model.gates
        if isinstance(gate, AgainstChampionGate) and gate.name in levels
    ]
