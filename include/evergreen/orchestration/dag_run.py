"""What Airflow says about a run, as plain values; and what a refusal of ours says to Airflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, NoReturn

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped

from evergreen import window
from evergreen.errors import EvergreenError
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import AssetEvent, DagRunInfo, RunReason, Window

# Enough for a server that is started anew, or is away for a minute: 5, 10, 20 and 40 seconds. A refusal is never
# retried.
RETRY_ARGS: Mapping[str, Any] = {
    "retries": 4,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
}


def dag_run_info(context: Any, *, excluded_conf_keys: tuple[str, ...] = ()) -> DagRunInfo:
    """The facts of the run that a task's context belongs to; `not_dates` are conf keys about something else.

    The type of a run, not its name, tells a backfill: one that re-runs an existing run keeps its name. A
    run started by hand was asked for at its logical date, if it was given one; the data interval that
    Airflow infers for it is nothing that anybody asked for.
    """
    run = context["dag_run"]
    by_hand = run.run_type.value == "manual"
    interval = (run.data_interval_start, run.data_interval_end)
    return DagRunInfo(
        run_type=run.run_type.value,
        requested_at=(by_hand and run.logical_date) or run.run_after,
        data_interval=interval if all(interval) and not by_hand else None,
        conf={key: value for key, value in context["params"].items() if key not in excluded_conf_keys},
        asset_events=tuple(_asset_event(event) for event in run.consumed_asset_events),
    )


def _asset_event(event: Any) -> AssetEvent:
    """An event that a backfilled run of any DAG sent belongs to that backfill, if it does not say otherwise."""
    from_backfill = (event.source_run_id or "").startswith("backfill__")
    return AssetEvent.from_extra(({"origin": RunReason.BACKFILL.value} if from_backfill else {}) | event.extra)


def dag_kwargs(model: ModelSpec, kind: str, summary: str, doc: str) -> dict[str, Any]:
    """The arguments that the DAGs of a model's family share: names and texts."""
    return {
        "dag_id": f"{model.name}.{kind}",
        "description": f"{summary} of {model.name}",
        "doc_md": f"{model.description}\n\n{doc}",
        "catchup": False,
        "tags": ["evergreen", model.name, kind],
    }


def data_range_kwargs(model: ModelSpec) -> dict[str, Any]:
    """The days that DAGs about data run for. One that is not must not end with them: Airflow would never run it."""
    spec = feature_spec(model)
    return {
        "start_date": window.midnight(spec.first_day, spec.timezone),
        "end_date": window.midnight(spec.last_day, spec.timezone) if spec.last_day else None,
    }


def requester(context: Any) -> str:
    """Who or what asked for the run: a person where there is one, and the run itself."""
    run = context["dag_run"]
    who = run.triggering_user_name
    return f"{who}, {run.dag_id} {run.run_id}" if who else f"{run.dag_id} {run.run_id}"


def model_features_window(model: ModelSpec, run: DagRunInfo) -> Window:
    spec = feature_spec(model)
    return window.resolve_features_window(run, first_day=spec.first_day, last_day=spec.last_day, timezone=spec.timezone)


def model_retrain_window(model: ModelSpec, run: DagRunInfo) -> Window:
    spec = feature_spec(model)
    return window.resolve_retrain_window(
        run,
        first_day=spec.first_day,
        last_day=spec.last_day,
        timezone=spec.timezone,
        history_days=model.history_days,
    )


def skip_tasks(context: Any, result: Any, task_ids: Sequence[str]) -> NoReturn:
    """End the task well, with `result`, and leave out `tasks` of those that come after it."""
    context["ti"].xcom_push("return_value", result)
    raise DownstreamTasksSkipped(tasks=list(task_ids))  # type: ignore[no-untyped-call]


@contextmanager
def fail_without_retry() -> Iterator[None]:
    """A refusal (`EvergreenError`) fails the task at once; everything else is retried.

    The same input would be refused again, and retries would only hide the sentence that says what to do.
    """
    try:
        yield
    except EvergreenError as refusal:
        raise AirflowFailException(f"{type(refusal).__name__}: {refusal}") from None


def step(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """An Airflow task that calls one step of the library."""

    def decorate(function: Callable[..., Any]) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with fail_without_retry():
                return function(*args, **kwargs)

        return task(**options)(call)

    return decorate
