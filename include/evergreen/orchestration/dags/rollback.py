"""The DAG that takes a promotion back: by hand, with a form that asks for the reason.

The version before becomes champion again, or the one that is named. It is recorded like any promotion, and the
version that is left can not be promoted again until `evergreen release` says so.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, get_current_context

from evergreen.orchestration.dag_run import TRIES, asked_by, of_family, step
from evergreen.spec import loader
from evergreen.spec.model import Model


def rollback_dag(model: Model) -> DAG:
    """`<model>.rollback`."""
    with DAG(
        **of_family(model, "rollback", "Back to the champion before", __doc__),
        schedule=None,
        default_args={
            "owner": model.owner,
            **TRIES,
            "execution_timeout": timedelta(minutes=10),
        },
        params={
            "reason": Param(
                None,
                type="string",
                minLength=3,
                description="Why: it is kept in the ledger for whoever asks later",
            ),
            "version": Param(
                None,
                type=["null", "string"],
                description="The version to go back to; empty: the champion before the present one",
            ),
        },
    ) as dag:
        rollback(model.name, plan(model.name))
    return dag


@step()
def plan(name: str) -> str | None:
    """Which version is to be left. A task of its own: a retry of the next one must not go back twice."""
    from evergreen import ledger

    champion = ledger.state(name).champion
    print(f"champion of {name}: {f'version {champion}' if champion else 'none'}")
    return champion


@step()
def rollback(name: str, leaving: str | None) -> dict[str, str]:
    """Make an earlier version champion again, in the ledger and in MLflow."""
    from evergreen.promotion import service

    context = get_current_context()
    asked = context["params"]
    act = service.rollback(
        loader.load(name), asked["version"] or None, asked["reason"], by=asked_by(context), leaving=leaving
    )
    print(f"{name}: version {act.to} is champion again, version {act.barred} is barred until it is released")
    return {"champion": act.to, "barred": act.barred}
