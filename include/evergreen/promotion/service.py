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
from evergreen.errors import PromotionRefused
from evergreen.gates import AgainstChampion, Evidence, Verdict
from evergreen.lake import datasets, fingerprints
from evergreen.ledger import Act, Backtested, Entry, Held, Judged, Promoted, RolledBack, State
from evergreen.promotion import rules
from evergreen.promotion.rules import Request
from evergreen.registry import versions
from evergreen.spec.model import Model
from evergreen.window import Origin


@dataclass(frozen=True)
class Case:
    """What is judged: the evaluation of a candidate, in a run."""

    run: str
    """DAG and run id"""
    origin: Origin
    training_set: datasets.Manifest
    candidate: datasets.Manifest
    evaluation: datasets.Manifest
    champion: str | None
    """the version that it was scored against"""

    @property
    def as_of(self) -> date:
        return date.fromisoformat(self.training_set.inputs["as_of"])

    @property
    def rows(self) -> int:
        """of the holdout"""
        return self.training_set.files["holdout"].rows or 0

    @property
    def holdout(self) -> tuple[date, date]:
        """first ≤ day < end"""
        return date.fromisoformat(self.training_set.inputs["holdout"]), self.as_of


def judge(model: Model, case: Case) -> int:
    """The number of the entry with the verdict on `case`: of the one that there is, or a new one.

    The confidence that a comparison may spend depends on what was spent before. So of several that judge at
    once one is written first, and the others judge again after it.
    """
    shown = evaluation.evidence(model, case.evaluation)
    about = {
        "evaluation": case.evaluation.content,
        "gates": fingerprints.fingerprint([gate.model_dump(mode="json") for gate in model.gates]),
        "training_set": case.training_set.content,
        "candidate": case.candidate.fingerprint,
        "judging": fingerprints.fingerprint(evaluation.judging_code(model.gates)),
    }

    def decide(state: State) -> Act | Entry:
        for entry in state.entries:
            if isinstance(entry.act, Judged) and entry.act.fingerprints == about:
                return entry
        verdict = gates.judge(model.gates, shown, state.comparisons)
        report = _report(model, case, verdict, shown, state)
        return Judged(
            run=case.run,
            origin=case.origin,
            as_of=case.as_of,
            holdout=case.holdout,
            candidate=case.candidate.fingerprint,
            champion=case.champion,
            verdict=verdict,
            evidence={
                "evaluation": f"{evaluation.dataset(model).root}/{case.evaluation.partition}",
                "report": str(report),
            },
            fingerprints=about,
        )

    return ledger.commit(model.name, case.run, decide).number


def backtested(model: Model, as_of: date, candidate: datasets.Manifest, report: Path, *, by: str) -> None:
    """Record that a backfill has left evidence, which nothing acts on."""
    act = Backtested(as_of=as_of, candidate=candidate.fingerprint, report=str(report))

    def decide(state: State) -> Act | Entry:
        return next((entry for entry in state.entries if entry.act == act), act)

    ledger.commit(model.name, by, decide)


@dataclass(frozen=True)
class Claim:
    """A registered version asks to be champion on the strength of a verdict."""

    judged: int
    """number of the ledger's entry"""
    version: str
    origin: Origin
    """of the run that asks"""
    promote_backfill: bool = False
    """the run's conf says that a backfill may promote"""
    approved_by: str | None = None


def may_promote(model: Model, claim: Claim) -> str | None:
    """Why `promote` would not make the version champion, or None if it would, given approval.

    To be asked before a person is.
    """
    request = _request(model, replace(claim, approved_by="whoever is asked"))
    try:
        act = rules.decide(ledger.state(model.name), request, cooldown_days=model.cooldown_days)
    except PromotionRefused as refusal:
        return str(refusal)
    return act.reason if isinstance(act, Held) else None


def promote(model: Model, claim: Claim, *, by: str) -> str | None:
    """Make the version champion.

    Gives None, or why it is the challenger instead: its gates passed, and a rule holds it back for now.

    Raises:
        PromotionRefused: it may be neither.
        RegistryError: the registered version is not the candidate that was judged.
        SignatureError: its files are not those that were registered and signed.
    """
    versions.verify(model.name, claim.version, ledger.judged(model.name, claim.judged).candidate)
    request = _request(model, claim)
    act = _change(
        model,
        by,
        lambda state: rules.decide(
            state, request, cooldown_days=model.cooldown_days, needs_approval=model.approval is not None
        ),
    )
    return act.reason if isinstance(act, Held) else None


def reject(model: Model, judged: int, version: str, *, by: str, by_whom: str, reason: str) -> None:
    """Record that a person, or a time-out, said no to the verdict in entry `judged`."""
    _change(model, by, lambda state: rules.reject(state, version, judged, by_whom, reason))


def rollback(model: Model, to: str | None, reason: str, *, by: str, leaving: str | None = None) -> RolledBack:
    """Back to the champion before, or to the one that is named; the version that is left is barred until released.

    Raises:
        PromotionRefused: there is nothing to go back to, or not to that; or the champion is not `leaving`.
        SignatureError: the files of the version to go back to are not those that were registered and signed.
    """

    def decide(state: State) -> Act | Entry:
        act = rules.rollback(state, to, reason, leaving=leaving)
        if isinstance(act, RolledBack):
            versions.verify(model.name, act.to, _candidate(state, act.to))
        return act

    act = _change(model, by, decide)
    assert isinstance(act, RolledBack)
    return act


def release(model: Model, version: str, reason: str, *, by: str) -> None:
    """Let a version that was rolled back from be promoted again."""
    _change(model, by, lambda state: rules.release(state, version, reason))


def freeze(model: Model, reason: str, *, by: str) -> None:
    """Keep the champion, whatever the gates say."""
    _change(model, by, lambda state: rules.freeze(state, reason))


def unfreeze(model: Model, reason: str, *, by: str) -> None:
    """End a freeze."""
    _change(model, by, lambda state: rules.unfreeze(state, reason))


def report(model: Model, judged: int) -> Path:
    """The page about the verdict in entry `judged`."""
    return Path(ledger.judged(model.name, judged).evidence["report"])


def _change(model: Model, by: str, decide: Callable[[State], Act | Entry]) -> Act:
    entry = ledger.commit(model.name, by, decide)
    versions.follow(model.name)  # also when there is nothing new: an earlier attempt may have died before it
    return entry.act


def _request(model: Model, claim: Claim) -> Request:
    act = ledger.judged(model.name, claim.judged)
    return Request(
        version=claim.version,
        as_of=act.as_of,
        origin=claim.origin,
        verdict=act.verdict,
        judged=claim.judged,
        judged_against=act.champion,
        approved_by=claim.approved_by,
        promote_backfill=claim.promote_backfill,
    )


def _candidate(state: State, version: str) -> str:
    """The fingerprint that `version` was judged by when it was promoted."""
    promoted = next(
        entry.act
        for entry in reversed(state.entries)
        if isinstance(entry.act, Promoted) and entry.act.version == version
    )
    judged = state.judged(promoted.judged)
    assert judged
    return judged.candidate


def _report(model: Model, case: Case, verdict: Verdict, shown: Evidence, state: State) -> Path:
    """Publish the page about `verdict`; gives its file."""
    about = reports.About(
        model=model.name,
        description=model.description,
        owner=model.owner,
        candidate=case.candidate.fingerprint,
        version=None,
        champion=case.champion,
        as_of=case.as_of,
        holdout=case.holdout,
        rows=case.rows,
        run=case.run,
        origin=case.origin.value,
        made_from={"training set": case.training_set.content, "evaluation": case.evaluation.content},
        budgets=_budgets(model, verdict, state),
    )
    page = reports.render(about, model.gates, verdict, shown)
    inputs = {"page": fingerprints.fingerprint(page)}
    mark = fingerprints.fingerprint(inputs)
    target = datasets.dataset(f"verdicts/{model.name}")
    staged = target.stage(case.evaluation.partition, mark) / "report.html"
    staged.write_text(page)
    manifest = target.publish(case.evaluation.partition, mark, {"report": staged}, inputs)
    return target.path(manifest, "report")


def _budgets(model: Model, verdict: Verdict, state: State) -> list[reports.Spent]:
    """What each comparison has used up for good: what passed is carried over, what failed is gone."""
    levels = {record.gate: record.level for record in verdict.records if record.level is not None}
    gone: dict[str, float] = defaultdict(float)
    for comparison in state.comparisons:
        for gate, level, passed in comparison.gates:
            gone[gate] += 0.0 if passed else level
    return [
        reports.Spent(gate.name, gone[gate.name] + levels[gate.name], 1 - gate.confidence)
        for gate in model.gates
        if isinstance(gate, AgainstChampion) and gate.name in levels
    ]
