"""The approval steps: a person sees the evidence and approves or rejects. No response in time is a rejection."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from evergreen.orchestration.dag_run import requester
from evergreen.orchestration.handover import JudgedVerdict
from evergreen.spec import loader
from evergreen.spec.model import ApprovalPolicy


class PromotionApprovalOperator(ApprovalOperator):
    """Asks whether a candidate that passed its gates may become champion; a rejection is recorded in the ledger.

    `judge_output` is the result of a task `judge`, and `version` the registered version.
    """

    template_fields: Sequence[str] = ("subject", "body", "judge_output", "version")

    def __init__(self, *, model: str, judge_output: Any, version: Any, approval: ApprovalPolicy, **options: Any):
        super().__init__(
            subject=f"May this version of {model} become champion?",
            defaults=ApprovalOperator.REJECT,
            response_timeout=timedelta(hours=approval.timeout_hours),
            assigned_users=[{"id": name, "name": name} for name in approval.approvers] or None,
            **options,
        )
        self.model, self.judge_output, self.version = model, judge_output, version

    def execute(self, context: Any) -> Any:
        from evergreen.reports.gate_table import gate_markdown_table

        judged = JudgedVerdict.from_judge(self.judge_output)
        event = judged.verdict_event(self.model)
        champion = event.champion_version
        self.subject = f"May version {self.version} of {self.model} become champion?"
        self.body = "\n\n".join(
            [
                f"Compared with champion version {champion}." if champion else "There is no champion yet.",
                gate_markdown_table(event.verdict, loader.load_spec(self.model).gates),
                f"Full report: {judged.report}",
            ]
        )
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        from evergreen.promotion import service

        # Recorded first: the operator ends by skipping its downstream tasks.
        if event.get("chosen_options") == [self.REJECT]:
            user = responder(event)
            service.reject_promotion(
                loader.load_spec(self.model),
                JudgedVerdict.from_judge(self.judge_output).entry,
                self.version,
                actor=requester(context),
                rejected_by=user or "nobody",
                reason="rejected" if user else "nobody responded in time",
            )
        return super().execute_complete(context, event)


class RollbackApprovalOperator(ApprovalOperator):
    """Asks whether the champion may be rolled back, as matured labels say; a rejection is recorded in the ledger.

    `request_entry` is the number of the entry of the ledger that asks for it.
    """

    template_fields: Sequence[str] = ("subject", "body", "request_entry")

    def __init__(self, *, model: str, request_entry: Any, approval: ApprovalPolicy, **options: Any):
        super().__init__(
            subject=f"May the champion of {model} be rolled back?",
            defaults=ApprovalOperator.REJECT,
            response_timeout=timedelta(hours=approval.timeout_hours),
            assigned_users=[{"id": name, "name": name} for name in approval.approvers] or None,
            **options,
        )
        self.model, self.request_entry = model, request_entry

    def execute(self, context: Any) -> Any:
        from evergreen import ledger
        from evergreen.promotion import rollback_rules

        request = rollback_rules.read_request(ledger.read_state(self.model), int(self.request_entry))
        self.subject = f"May champion {request.champion} of {self.model} be rolled back to version {request.previous}?"
        self.body = f"{request.reason}\n\nVersion {request.champion} would be barred until it is released."
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        from evergreen.promotion import auto_rollback

        # Recorded first: the operator ends by skipping its downstream tasks.
        if event.get("chosen_options") == [self.REJECT]:
            user = responder(event)
            auto_rollback.reject_rollback(
                loader.load_spec(self.model),
                int(self.request_entry),
                actor=requester(context),
                rejected_by=user or "nobody",
                reason="rejected" if user else "nobody responded in time",
            )
        return super().execute_complete(context, event)


def responder(approval_output: dict[str, Any]) -> str | None:
    """The user who responded; None if nobody did in time."""
    user = approval_output.get("responded_by_user")
    return (user.get("name") or user.get("id")) if user else None
