"""Runs of `<model>.retrain` as of a period: the newest one, what it has made, and the id of another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evergreen.client.airflow import AirflowClient, Json
from evergreen.orchestration.handover import EvaluatedCandidate, JudgedCandidate, RetrainPlan, TrainedCandidate
from evergreen.promotion.changed_inputs import RetrainReferences


def run_ids(as_of: str, count: int) -> list[str]:
    """Return the ids of the first runs as of a period: `as_of_2013-03-01`, then `as_of_2013-03-01_again_2`."""
    first = f"as_of_{as_of}"
    return [first, *(f"{first}_again_{number}" for number in range(2, count + 1))]


def newest_run(airflow: AirflowClient, dag_id: str, as_of: str) -> Json | None:
    """Return the run as of a period that was asked for last, here or elsewhere; None if there is none."""
    return max(_runs_as_of(airflow, dag_id, as_of), key=lambda run: (run["run_after"], run["dag_run_id"]), default=None)


def unused_run_id(airflow: AirflowClient, dag_id: str, as_of: str) -> str:
    """Return the first id that no run as of a period has."""
    used = {run["dag_run_id"] for run in _runs_as_of(airflow, dag_id, as_of)}
    return next(run_id for run_id in run_ids(as_of, len(used) + 1) if run_id not in used)


def read_pause(airflow: AirflowClient, dag_id: str, run_id: str) -> str | None:
    """Return why a run has trained nothing; None if it has, or has not come so far."""
    plan = load_xcom(airflow, dag_id, run_id, "plan")
    return RetrainPlan.load(plan).pause if plan else None


def read_references(airflow: AirflowClient, dag_id: str, run_id: str) -> RetrainReferences | None:
    """Return what a run has made; None if that is nothing yet."""
    if judged := load_xcom(airflow, dag_id, run_id, "judge"):
        candidate = JudgedCandidate.load(judged)
        return RetrainReferences(
            candidate.training_set_reference,
            candidate.candidate_reference,
            candidate.evaluation_reference,
            candidate.entry,
        )
    if evaluated := load_xcom(airflow, dag_id, run_id, "evaluate"):
        scored = EvaluatedCandidate.load(evaluated)
        return RetrainReferences(scored.training_set_reference, scored.candidate_reference, scored.evaluation_reference)
    if trained := load_xcom(airflow, dag_id, run_id, "train"):
        fitted = TrainedCandidate.load(trained)
        return RetrainReferences(fitted.training_set_reference, fitted.candidate_reference)
    reference = load_xcom(airflow, dag_id, run_id, "training_set")
    return RetrainReferences(reference) if reference else None


def load_xcom(airflow: AirflowClient, dag_id: str, run_id: str, task_id: str) -> Any:
    """Return what a task has handed over; None if nothing."""
    xcom = airflow.xcom(dag_id, run_id, task_id)
    return json.loads(xcom) if isinstance(xcom, str) else xcom


def _runs_as_of(airflow: AirflowClient, dag_id: str, as_of: str) -> Sequence[Json]:
    return [run for run in airflow.dag_runs(dag_id) if (run["conf"] or {}).get("as_of") == as_of]
