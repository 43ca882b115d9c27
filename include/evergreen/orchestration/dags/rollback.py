"""The DAG that takes a promotion back: by hand, with a form that asks for the reason.

The version before becomes champion again, or the one that is named. It is recorded like any promotion, and the
version that is left can not be promoted again until `evergreen release` says so.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param, get_current_context

from evergreen.orchestration.dag_run import RETRY_ARGS, dag_kwargs, requester, step
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec


def rollback_dag(model: ModelSpec) -> DAG:
    """`<model>.rollback`."""
    with DAG(
        **dag_kwargs(model, "rollback", "Back to the champion before", __doc__),
        schedule=None,
        default_args={
            "owner": model.owner,
            **RETRY_ARGS,
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

    champion = ledger.read_state(name).champion
    print(f"champion of {name}: {f'version {champion}' if champion else 'none'}")
    return champion


@step()
def rollback(name: str, expected_champion: str | None) -> dict[str, str]:
    """Make an earlier version champion again, in the ledger and in MLflow."""
    from evergreen.promotion import service

    context = get_current_context()
    asked = context["params"]
    act = service.roll_back_champion(
        loader.load_spec(name),
        asked["version"] or None,
        asked["reason"],
        actor=requester(context),
        expected_champion=expected_champion,
    )
    print(
        f"{name}: version {act.restored_version} is champion again, version {act.barred_version} is barred until it is released"
    )
    return {"champion": act.restored_version, "barred": act.barred_version}
