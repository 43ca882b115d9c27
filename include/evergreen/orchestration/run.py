"""What Airflow says about a run, as plain values; and what a refusal of ours says to Airflow."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException

from evergreen import window
from evergreen.errors import EvergreenError
from evergreen.model import Model, feature_spec
from evergreen.window import Run, Window


def facts(context: Any) -> Run:
    """The facts of the run that a task's context belongs to.

    The type of a run, not its name, tells a backfill: one that re-runs an existing run keeps its name. A
    run started by hand was asked for at its logical date, if it was given one; the data interval that
    Airflow infers for it is nothing that anybody asked for.
    """
    run = context["dag_run"]
    by_hand = run.run_type.value == "manual"
    interval = (run.data_interval_start, run.data_interval_end)
    return Run(
        run_type=run.run_type.value,
        asked_at=(by_hand and run.logical_date) or run.run_after,
        interval=interval if all(interval) and not by_hand else None,
        conf=dict(context["params"]),
    )


def features_window(model: Model, context: Any) -> Window:
    spec = feature_spec(model)
    return window.features_window(
        facts(context), first_day=spec.first_day, last_day=spec.last_day, timezone=spec.timezone
    )


def retrain_window(model: Model, context: Any) -> Window:
    spec = feature_spec(model)
    return window.retrain_window(
        facts(context),
        first_day=spec.first_day,
        last_day=spec.last_day,
        timezone=spec.timezone,
        history_days=model.history_days,
    )


def step(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """An Airflow task that calls one step of the library.

    A refusal (`EvergreenError`) fails the task at once: the same input would be refused again, and retries
    would only hide the sentence that says what to do. Everything else is retried.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except EvergreenError as refusal:
                raise AirflowFailException(f"{type(refusal).__name__}: {refusal}") from None

        return task(**options)(call)

    return decorate
