"""The human step: a person sees the table of gates and says yes or no. Silence is no."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from evergreen.orchestration.dag_run import fail_without_retry, requester
from evergreen.spec import loader
from evergreen.spec.model import ApprovalPolicy as AsksFor

if TYPE_CHECKING:
    from evergreen.gates import Verdict


class PromotionApprovalOperator(ApprovalOperator):
    """Asks whether a candidate that passed its gates may become champion; a no is recorded in the ledger.

    `judged` is what the task `judge` gave, `version` what `register` gave.
    """

    template_fields: Sequence[str] = ("subject", "body", "judge_output", "version")

    def __init__(self, *, model: str, judge_output: Any, version: Any, approval: AsksFor, **options: Any):
        super().__init__(
            subject=f"May this version of {model} become champion?",
            defaults=ApprovalOperator.REJECT,
            response_timeout=timedelta(hours=approval.timeout_hours),
            assigned_users=[{"id": name, "name": name} for name in approval.approvers] or None,
            **options,
        )
        self.model, self.judge_output, self.version = model, judge_output, version

    def execute(self, context: Any) -> Any:
        from evergreen import ledger

        with fail_without_retry():
            asked = ledger.read_verdict_event(self.model, self.judge_output["entry"])
        self.subject = f"May version {self.version} of {self.model} become champion?"
        self.body = gate_markdown_table(asked.verdict, asked.champion_version, self.judge_output["report"])
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        from evergreen.promotion import service

        # First: the operator ends with skipping what comes after it.
        if event.get("chosen_options") == [self.REJECT]:
            who = responder(event)
            with fail_without_retry():
                service.reject_promotion(
                    loader.load_spec(self.model),
                    self.judge_output["entry"],
                    self.version,
                    actor=requester(context),
                    rejected_by=who or "nobody",
                    reason="rejected" if who else "nobody answered in time",
                )
        return super().execute_complete(context, event)


def responder(approval_output: dict[str, Any]) -> str | None:
    """Who answered; None if nobody did in time."""
    user = approval_output.get("responded_by_user")
    return (user.get("name") or user.get("id")) if user else None


def gate_markdown_table(verdict: Verdict, champion: str | None, report: str) -> str:
    """The gates as a Markdown table, for Airflow's form."""
    lines = [
        f"Judged against version {champion}." if champion else "There is no champion yet.",
        "",
        "| gate | candidate | champion | interval | threshold | outcome |",
        "|---|---|---|---|---|---|",
    ]
    for record in verdict.results:
        interval = "{:+.4f} … {:+.4f}".format(*record.interval) if record.interval else "–"
        numbers = ["–" if x is None else f"{x:.4f}" for x in (record.candidate, record.champion)]
        lines.append(
            f"| {record.gate} | {numbers[0]} | {numbers[1]} | {interval} | {record.threshold:g} | {record.outcome} |"
        )
    return "\n".join([*lines, "", f"Full report: {report}"])
