"""The human step: a person sees the table of gates and says yes or no. Silence is no."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from evergreen.orchestration.dag_run import asked_by, refusals
from evergreen.spec import loader
from evergreen.spec.model import Approval as AsksFor

if TYPE_CHECKING:
    from evergreen.gates import Verdict


class Approval(ApprovalOperator):
    """Asks whether a candidate that passed its gates may become champion; a no is recorded in the ledger.

    `judged` is what the task `judge` gave, `version` what `register` gave.
    """

    template_fields: Sequence[str] = ("subject", "body", "judged", "version")

    def __init__(self, *, model: str, judged: Any, version: Any, asks: AsksFor, **options: Any):
        super().__init__(
            subject=f"May this version of {model} become champion?",
            defaults=ApprovalOperator.REJECT,
            response_timeout=timedelta(hours=asks.hours),
            assigned_users=[{"id": name, "name": name} for name in asks.approvers] or None,
            **options,
        )
        self.model, self.judged, self.version = model, judged, version

    def execute(self, context: Any) -> Any:
        from evergreen import ledger

        with refusals():
            asked = ledger.judged(self.model, self.judged["entry"])
        self.subject = f"May version {self.version} of {self.model} become champion?"
        self.body = table(asked.verdict, asked.champion, self.judged["report"])
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        from evergreen.promotion import service

        # First: the operator ends with skipping what comes after it.
        if event.get("chosen_options") == [self.REJECT]:
            who = person(event)
            with refusals():
                service.reject(
                    loader.load(self.model),
                    self.judged["entry"],
                    self.version,
                    by=asked_by(context),
                    by_whom=who or "nobody",
                    reason="rejected" if who else "nobody answered in time",
                )
        return super().execute_complete(context, event)


def person(answer: dict[str, Any]) -> str | None:
    """Who answered; None if nobody did in time."""
    user = answer.get("responded_by_user")
    return (user.get("name") or user.get("id")) if user else None


def table(verdict: Verdict, champion: str | None, report: str) -> str:
    """The gates as a Markdown table, for Airflow's form."""
    lines = [
        f"Judged against version {champion}." if champion else "There is no champion yet.",
        "",
        "| gate | candidate | champion | interval | threshold | outcome |",
        "|---|---|---|---|---|---|",
    ]
    for record in verdict.records:
        interval = "{:+.4f} … {:+.4f}".format(*record.interval) if record.interval else "–"
        numbers = ["–" if x is None else f"{x:.4f}" for x in (record.candidate, record.champion)]
        lines.append(
            f"| {record.gate} | {numbers[0]} | {numbers[1]} | {interval} | {record.threshold:g} | {record.outcome} |"
        )
    return "\n".join([*lines, "", f"Full report: {report}"])
