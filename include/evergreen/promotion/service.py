"""Judge candidates and change champions. Each change is one ledger entry, and MLflow's aliases follow the ledger.

Every function may be killed at any instruction and repeated, also concurrently: the change has happened once its entry
exists. A repeated call, or `aliases.repair_aliases`, then updates the aliases, and `verdict_report_path` renders a
report that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evergreen import evaluation, gates, ledger, storage
from evergreen.errors import InputsChangedError, PromotionRefusedError, RegistryError, ScoringError, SignatureError
from evergreen.explanations.verdict_importance import read_importance, record_importance
from evergreen.lake import datasets, fingerprints
from evergreen.promotion import challengers, rules
from evergreen.promotion.rules import PromotionRequest as PromotionRequest
from evergreen.promotion.slices import attach_slices, detach_slices
from evergreen.promotion.verdict_tables import follow_verdicts
from evergreen.registry import aliases, anchors, versions
from evergreen.scoring import predictions
from evergreen.spec.gates import BaselineGate, ThresholdGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath
from evergreen.window import RunReason


@dataclass(frozen=True)
class EvaluationContext:
    """The evaluation of a candidate by one run.

    Attributes:
        run: DAG id and run id.
        champion_version: the version that the candidate was compared with.
        cause: what the alarms say that asked for the run, if some did.
    """

    run: str
    run_reason: RunReason
    training_set: datasets.Manifest
    candidate: datasets.Manifest
    evaluation: datasets.Manifest
    champion_version: str | None
    cause: str | None = None


def judge_candidate(model: ModelSpec, context: EvaluationContext) -> int:
    """Record the verdict on an evaluation, render its report, and return the number of the ledger entry.

    The same evaluation is judged once. The significance level of a comparison depends on earlier comparisons, so
    concurrent verdicts are decided one after the other. While a comparison could promote nothing (the model is frozen
    or cooling down, a challenger gathers evidence, the candidate is not newer, another version is champion), none is
    made; the run that is cleared afterwards is judged anew.

    A candidate that is compared takes the place of a challenger that gathers evidence, if the spec says so: that is
    withdrawn first, so that what it has spent counts.
    """
    evidence = evaluation.load_evidence(model, context.evaluation)
    inputs = {
        "evaluation": context.evaluation.content_hash,
        "gates": challengers.gates_fingerprint(model),
        "training_set": context.training_set.content_hash,
        "candidate": context.candidate.fingerprint,
        "judging": fingerprints.compute_fingerprint(evaluation.verdict_code(model)),
    }
    as_of = context.training_set.inputs["as_of"]
    assert evidence.days  # load_evidence knows them
    assert evidence.holdout
    holdout, days = evidence.holdout, evidence.days
    verdicts = _verdict_dataset(model)

    candidate_files, candidate_inputs = predictions.model_identity(context.candidate)
    content = ledger.hash_model(candidate_files, candidate_inputs)
    scored_champion = context.evaluation.inputs["champion"]  # what was compared, not what the context calls it
    champion_content = scored_champion and scored_champion["content"]

    def decide(state: ledger.LedgerState) -> ledger.LedgerEvent | ledger.LedgerEntry:
        if entry := find_verdict(state, inputs):
            return entry
        basis, compared = inputs, context.champion_version
        if compared and (
            obstacle := challengers.comparison_obstacle(state, as_of, content, compared, champion_content, model)
        ):
            basis = inputs | {"obstacle": obstacle}
            if entry := find_verdict(state, basis):
                return entry
        elif state.challenger and (reason := challengers.neglect_reason(state, model, as_of)):
            return rules.decide_withdrawal(state, state.challenger, reason)
        # One challenger at a time: beside one that has passed its gates, the holdout decides.
        accumulates = model.gathers_evidence and (state.challenger is None or state.open_comparison is not None)
        judged = _judge(model, evidence, basis, state.entries.comparisons(), accumulates)
        if state.challenger and state.open_comparison and any(result.alpha for result in judged.results):
            return rules.decide_withdrawal(state, state.challenger, f"replaced by the candidate of {context.run}")
        # Slices are stored before the entry that names them.
        verdict, slice_files = detach_slices(judged, verdicts)
        return ledger.VerdictRecorded(
            run=context.run,
            run_reason=context.run_reason,
            as_of=as_of,
            holdout=holdout,
            days=days,
            candidate_fingerprint=context.candidate.fingerprint,
            candidate_files=candidate_files,
            candidate_inputs=candidate_inputs,
            champion_version=context.champion_version,
            champion_content=champion_content,
            verdict=verdict,
            cause=context.cause,
            evidence=verdict_files(model, context.evaluation, basis) | slice_files,
            fingerprints=basis,
        )

    entry = ledger.append_decision(model.name, context.run, decide)
    while isinstance(entry.event, ledger.ChallengerWithdrawn):
        aliases.sync_aliases(model.name)
        entry = ledger.append_decision(model.name, context.run, decide)
    from evergreen.feature_store import training_sets  # it loads Feast

    if isinstance(entry.event, ledger.VerdictRecorded):
        report = datasets.lake_path(entry.event.evidence["report"])
        examples = training_sets.training_set_dataset(model)
        record_importance(model, report, context.evaluation, examples, context.training_set, context.candidate)
    verdict_report_path(model, entry.number)
    follow_verdicts(model.name)
    return entry.number


def verdict_report_path(model: ModelSpec, verdict_entry: int) -> UPath:
    """Return the file of the gate report on the verdict in a ledger entry. If it is missing, render it again.

    Raises:
        LedgerError: the entry holds no verdict.
        InputsChangedError: the report is missing, and what it shows is gone or has changed.
    """
    event = ledger.read_verdict_event(model.name, verdict_entry)
    file = datasets.lake_path(event.evidence["report"])
    if storage.file_exists(file):
        return file
    manifest = evaluation.evaluation_dataset(model).manifest(Path(event.evidence["evaluation"]).name)
    if manifest is None or event.fingerprints["gates"] != challengers.gates_fingerprint(model):
        raise InputsChangedError(
            f"{file}: the report of entry {verdict_entry} is missing, and cannot be rendered again because the "
            "model's gates have changed or the evaluation is gone: clear the run from its evaluate task on"
        )
    evidence = evaluation.load_evidence(model, manifest)
    first_entry = event.later_look.first_entry if event.later_look else verdict_entry
    earlier = ledger.read_state(model.name).entries.comparisons(before_entry=first_entry)
    try:
        whole_event = attach_slices(event)
    except InputsChangedError:
        _restore_slices(model, first_entry, earlier)
        whole_event = attach_slices(event)
    from evergreen.reports import gate_report  # here: it loads matplotlib

    importance = read_importance(file)
    page = gate_report.render_gate_report(model, whole_event, evidence, earlier, importance).encode()
    storage.update_file(file, lambda _: page)
    return file


def record_backtest(
    model: ModelSpec, as_of: str, candidate: datasets.Manifest, report: UPath | Path, *, actor: str
) -> None:
    """Record the evidence of a backfill. Nothing acts on it."""
    location = datasets.path_in_lake(report)
    event = ledger.BacktestRecorded(as_of=as_of, candidate_fingerprint=candidate.fingerprint, report=location)
    ledger.append_decision(
        model.name, actor, lambda state: state.entries.find_last(ledger.BacktestRecorded, **dict(event)) or event
    )


def promotion_blocker(model: ModelSpec, request: PromotionRequest) -> str | None:
    """Return why `promote_version` would not promote the version even with approval; None if it would."""
    try:
        calendar = feature_spec(model).calendar
        event = rules.decide_promotion(ledger.read_state(model.name), request, model.cooldown, calendar)
    except PromotionRefusedError as refusal:
        return str(refusal)
    return event.reason if isinstance(event, ledger.PromotionDeferred) else None


def promote_version(model: ModelSpec, request: PromotionRequest, *, actor: str) -> str | None:
    """Make the version champion and return None; or make it the challenger and return what defers its promotion.

    Raises:
        PromotionRefusedError: the rules allow neither.
        RegistryError: the registered version is not the candidate that was judged.
        SignatureError: its files are not those that were registered and signed.
    """
    verdict_event = ledger.read_verdict_event(model.name, request.verdict_entry)
    versions.verify_version(model.name, request.version, verdict_event.candidate_content)

    def decide(state: ledger.LedgerState) -> ledger.LedgerEvent | ledger.LedgerEntry:
        needs_approval = model.approval is not None
        calendar = feature_spec(model).calendar
        return rules.decide_promotion(state, request, model.cooldown, calendar, needs_approval=needs_approval)

    event = append_and_sync(model, actor, decide)
    return event.reason if isinstance(event, ledger.PromotionDeferred) else None


def reject_promotion(
    model: ModelSpec, verdict_entry: int, version: str, *, actor: str, rejected_by: str, reason: str
) -> None:
    """Record that a person, or a timeout, rejected the promotion by the verdict in `verdict_entry`."""
    append_and_sync(
        model, actor, lambda state: rules.decide_rejection(state, version, verdict_entry, rejected_by, reason)
    )


@dataclass(frozen=True)
class RollbackRequest:
    """The entry of the ledger that asks for an automatic rollback, and who has approved it, if anybody had to."""

    entry: int
    approved_by: str | None = None


def roll_back_champion(
    model: ModelSpec,
    target_version: str | None,
    reason: str,
    *,
    actor: str,
    expected_champion: str | None = None,
    request: RollbackRequest | None = None,
    find_obstacle: Callable[[ledger.LedgerState], str | None] = lambda _: None,
) -> ledger.ChampionRolledBack:
    """Restore the previous champion, or `target_version`, and bar the current one until it is released.

    Args:
        model: its spec.
        target_version: None: the last champion that was never at fault.
        reason: for the ledger.
        actor: the run or the person.
        expected_champion: the version to bar; None: whichever is champion.
        request: of an automatic rollback.
        find_obstacle: returns why it may not be rolled back in a state of the ledger, if it has not been yet.

    Raises:
        PromotionRefusedError: there is no such version to restore, the champion has changed, or there is an obstacle.
        SignatureError: the files of the version to restore are not those that were registered and signed.
    """

    def decide(state: ledger.LedgerState) -> ledger.ChampionRolledBack | ledger.LedgerEntry:
        decision = rules.decide_rollback(state, target_version, reason, expected_champion=expected_champion)
        if isinstance(decision, ledger.LedgerEntry):
            return decision
        if obstacle := find_obstacle(state):
            raise PromotionRefusedError(f"version {decision.barred_version} is not rolled back: {obstacle}")
        if request is None:
            return decision
        return decision.model_copy(update={"request_entry": request.entry, "approved_by": request.approved_by})

    state = ledger.read_state(model.name)
    plan = decide(state)
    if isinstance(plan, ledger.ChampionRolledBack):
        target_version, expected_champion = plan.restored_version, plan.barred_version
        versions.verify_version(model.name, target_version, state.content_of(target_version))
    event = append_and_sync(model, actor, decide)
    assert isinstance(event, ledger.ChampionRolledBack)
    return event


def declare_champion_lost(
    model: ModelSpec, reason: str, *, actor: str, is_restoring: bool = True
) -> ledger.ChampionLost:
    """Record that the champion's files are gone for good, and restore the last champion before it that has its files.

    Where there is none, or `is_restoring` is false, the model has no champion: the next candidate is its first.

    Raises:
        PromotionRefusedError: there is no champion, it is not lost, or nobody can say whether an earlier one is.
    """
    state = ledger.read_state(model.name)
    champion = state.champion
    if champion is None:
        raise PromotionRefusedError("there is no champion that could be lost")
    if _has_files(model, state, champion):
        raise PromotionRefusedError(
            f"version {champion} is not lost: MLflow has all its files as they were judged; roll back instead"
        )
    restored = None
    for version in rules.restorable_versions(state) if is_restoring else ():
        has_files = _has_files(model, state, version)
        if has_files is None:
            raise PromotionRefusedError(
                f"version {version}, which would be champion again, cannot be loaded from MLflow: repeat this when it "
                "can, or use --first, which restores none"
            )
        if has_files:
            restored = version
            break
    event = append_and_sync(
        model, actor, lambda state: rules.decide_loss(state, restored, reason, expected_champion=champion)
    )
    assert isinstance(event, ledger.ChampionLost)
    return event


def sync_champion_aliases(model: ModelSpec) -> None:
    """Let MLflow's aliases follow the ledger: an earlier attempt may have died before it did."""
    if ledger.read_state(model.name).tenures:
        aliases.sync_aliases(model.name)


def release_version(model: ModelSpec, version: str, reason: str, *, actor: str) -> None:
    """Let a version that was barred by a rollback be promoted again."""
    append_and_sync(model, actor, lambda state: rules.decide_release(state, version, reason))


def accept_change(model: ModelSpec, version: str, reason: str, *, actor: str) -> None:
    """Let candidates be judged without the champion, `version`, where its inputs can no longer be made.

    Raises:
        PromotionRefusedError: it is not champion, or no gate of the model judges a candidate without a champion.
    """
    if not any(isinstance(gate, ThresholdGate | BaselineGate) for gate in model.gates):
        raise PromotionRefusedError(
            f"without its champion nothing would judge a candidate of {model.name}: add a threshold or a baseline gate"
        )
    append_and_sync(model, actor, lambda state: rules.decide_change_acceptance(state, version, reason))


def freeze_promotions(model: ModelSpec, reason: str, *, actor: str) -> None:
    """Keep the champion, whatever the gates decide."""
    append_and_sync(model, actor, lambda state: rules.decide_freeze(state, reason))


def unfreeze_promotions(model: ModelSpec, reason: str, *, actor: str) -> None:
    """End a freeze."""
    append_and_sync(model, actor, lambda state: rules.decide_unfreeze(state, reason))


def append_and_sync(
    model: ModelSpec, actor: str, decide: Callable[[ledger.LedgerState], ledger.LedgerEvent | ledger.LedgerEntry]
) -> ledger.LedgerEvent:
    anchors.update_anchor(model.name)  # nothing is added to a ledger that has lost entries
    entry = ledger.append_decision(model.name, actor, decide)
    aliases.sync_aliases(model.name)  # also for an entry that existed: an earlier attempt may have died before this
    return entry.event


def _has_files(model: ModelSpec, state: ledger.LedgerState, version: str) -> bool | None:
    """Return whether MLflow has the files that were judged; None if they cannot be loaded, perhaps just now."""
    content = state.content_of(version)
    assert content
    try:
        with versions.open_model(model.name, content):
            return True
    except (RegistryError, SignatureError):
        return False
    except ScoringError:
        return None


def find_verdict(state: ledger.LedgerState, basis: Mapping[str, str]) -> ledger.LedgerEntry | None:
    """Return the entry with the verdict that has exactly these fingerprints."""
    return state.entries.find_last(
        ledger.VerdictRecorded, candidate_fingerprint=basis["candidate"], fingerprints=dict(basis)
    )


def _judge(
    model: ModelSpec,
    evidence: gates.Evidence,
    basis: Mapping[str, str],
    earlier_comparisons: Sequence[gates.EarlierComparison],
    accumulates: bool,
) -> gates.Verdict:
    """Return the verdict on the evidence. An obstacle in `basis` to the promotion leaves the champion uncompared."""
    if obstacle := basis.get("obstacle"):
        evidence = replace(evidence, champion=gates.MissingEvidence(obstacle))
    return gates.judge_evidence(model.gates, evidence, earlier_comparisons, accumulates=accumulates)


def verdict_files(model: ModelSpec, measured: datasets.Manifest, basis: Mapping[str, str]) -> dict[str, str]:
    """Return evaluation and report of a verdict on this basis, relative to the lake."""
    page = f"{measured.partition}-{fingerprints.compute_fingerprint(dict(basis))[:16]}.html"
    files = {
        "evaluation": evaluation.evaluation_dataset(model).root / measured.partition,
        "report": _verdict_dataset(model).root / page,
    }
    return {name: datasets.path_in_lake(file) for name, file in files.items()}


def _restore_slices(model: ModelSpec, first_entry: int, earlier_comparisons: Sequence[gates.EarlierComparison]) -> None:
    """Store the slices of a comparison's first verdict again, which its later looks keep.

    Equal evidence gives equal slices, and they are stored under their hash.
    """
    event = ledger.read_verdict_event(model.name, first_entry)
    if manifest := evaluation.evaluation_dataset(model).manifest(Path(event.evidence["evaluation"]).name):
        evidence = evaluation.load_evidence(model, manifest)
        judged = _judge(model, evidence, event.fingerprints, earlier_comparisons, accumulates=False)
        detach_slices(judged, _verdict_dataset(model))


def _verdict_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"verdicts/{model.name}")
