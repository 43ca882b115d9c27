"""What the DAGs share: their arguments, and the facts of a run as plain values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.sdk import ExceptionRetryPolicy, Param, RetryAction, RetryRule
from airflow.sdk.exceptions import DownstreamTasksSkipped

from evergreen.errors import EvergreenError
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import AssetEvent, DagRunInfo, RunReason, run_reason_of

_MANUAL_RUN_TYPES = ("manual", "operator_triggered", "asset_materialization")

# Pauses of 5, 10, 20 and 40 seconds: enough for a server that restarts or is unreachable for a minute. An
# EvergreenError is not retried: the same input would be refused again, and retries would hide its message.
RETRY_ARGS: Mapping[str, Any] = {
    "retries": 4,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
    "retry_policy": ExceptionRetryPolicy([RetryRule(EvergreenError, RetryAction.FAIL)]),
}

log = logging.getLogger(__name__)


def dag_run_info(context: Any, *, excluded_conf_keys: tuple[str, ...] = (), cause: str | None = None) -> DagRunInfo:
    """The facts of the run of a task's context; `excluded_conf_keys` are conf keys that are not periods.

    `cause` is what the alarms say that asked for the run, if some did.
    The run type, not the run id, identifies a backfill: one that re-runs an existing run keeps its id. A run that was
    asked for is requested at its logical date, if it has one; the data interval that Airflow infers is ignored.
    """
    run = context["dag_run"]
    manual = run_reason_of(run.run_type.value) is RunReason.MANUAL
    if manual and run.run_type.value not in _MANUAL_RUN_TYPES:
        log.warning("Airflow's run type %s is not known: the run is like one by hand", run.run_type.value)
    interval = (run.data_interval_start, run.data_interval_end)
    return DagRunInfo(
        run_type=run.run_type.value,
        requested_at=(manual and run.logical_date) or run.run_after,
        data_interval=interval if all(interval) and not manual else None,
        conf={key: value for key, value in context["params"].items() if key not in excluded_conf_keys},
        asset_events=tuple(_asset_event(event) for event in run.consumed_asset_events),
        run_id=run.run_id,
        logical_date=run.logical_date,
        started_at=run.start_date,
        cause=cause,
    )


def _asset_event(event: Any) -> AssetEvent:
    """An event that a backfilled run of any DAG sent belongs to that backfill, unless its extra says otherwise."""
    from_backfill = (event.source_run_id or "").startswith("backfill__")
    return AssetEvent.from_extra(({"run_reason": RunReason.BACKFILL.value} if from_backfill else {}) | event.extra)


def dag_kwargs(model: ModelSpec, kind: str, summary: str, doc: str) -> dict[str, Any]:
    """Arguments that all DAGs of a model share: names and texts."""
    return {
        "dag_id": f"{model.name}.{kind}",
        "description": f"{summary} of {model.name}",
        "doc_md": f"{model.description}\n\n{doc}",
        "catchup": False,
        "tags": ["evergreen", model.name, kind],
    }


def data_range_kwargs(model: ModelSpec) -> dict[str, Any]:
    """First and last start of a DAG about data. Other DAGs have no end: Airflow would not run them after it."""
    spec = feature_spec(model)
    calendar, end = spec.calendar, spec.end_period
    return {
        "start_date": calendar.start(spec.first_period),
        "end_date": calendar.start(calendar.shift(end, -1)) if end else None,
    }


def period_param(model: ModelSpec, description: str) -> Param:
    """Return the parameter of a run that is the name of a period, or empty."""
    calendar = feature_spec(model).calendar
    if calendar.partition_key == "day":
        return Param(None, type=["null", "string"], format="date", description=description)
    example = calendar.period_at(datetime(2013, 3, 1, 6, tzinfo=UTC))
    return Param(None, type=["null", "string"], description=f"{description}: a date, or a period like {example}")


def dag_run_name(context: Any) -> str:
    """DAG id and run id."""
    return f"{context['dag_run'].dag_id} {context['dag_run'].run_id}"


def requester(context: Any) -> str:
    """The run, and the user who triggered it if there is one."""
    user = context["dag_run"].triggering_user_name
    return f"{user}, {dag_run_name(context)}" if user else dag_run_name(context)


def trigger_dag_run(dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
    """Create a run of another DAG, and return whether there was none with this id yet."""
    # As Airflow's own TriggerDagRunOperator does, which fails or skips its task where the run exists.
    from airflow.sdk.exceptions import ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    response = SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag_id, run_id=run_id, conf=dict(conf)))
    return not (isinstance(response, ErrorResponse) and response.error == ErrorType.DAGRUN_ALREADY_EXISTS)


def skip_tasks(context: Any, result: Any, task_ids: Sequence[str]) -> NoReturn:
    """End the task successfully with `result`, and skip the downstream tasks `task_ids`."""
    context["ti"].xcom_push("return_value", result)
    raise DownstreamTasksSkipped(tasks=list(task_ids))  # type: ignore[no-untyped-call]
