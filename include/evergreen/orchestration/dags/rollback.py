"""The DAG that rolls back to an earlier champion. It is triggered by hand, with a form that asks for the reason.

A new rollback DAG is not paused. If somebody has paused it, a run that is triggered waits until it is unpaused.

The previous champion, or the version in the form, becomes champion. The rollback is recorded like any promotion,
and the version that was champion cannot be promoted again before `evergreen release`.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.sdk import DAG, Param, get_current_context, task

from evergreen.orchestration.dag_run import RETRY_ARGS, dag_kwargs, requester
from evergreen.orchestration.handover import XCom
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec

log = logging.getLogger(__name__)


def rollback_dag(model: ModelSpec) -> DAG:
    """`<model>.rollback`."""
    with DAG(
        **dag_kwargs(model, "rollback", "Back to an earlier champion", __doc__),
        schedule=None,
        is_paused_upon_creation=False,  # it runs on request only, and then at once
        default_args={
            "owner": model.owner,
            **RETRY_ARGS,
            "execution_timeout": timedelta(minutes=10),
        },
        params={
            "reason": Param(None, type="string", minLength=3, description="Reason, for the ledger"),
            "version": Param(
                None,
                type=["null", "string"],
                description="The version to roll back to; empty: the previous champion",
            ),
        },
    ) as dag:
        planned = plan(model.name)
        rolled_back = rollback(model.name, planned)

        planned >> rolled_back
    return dag


@task
def plan(name: str) -> str | None:
    """Return the present champion. A task of its own, so that a retry of the next one does not roll back twice."""
    from evergreen import ledger

    champion = ledger.read_state(name).champion
    log.info("champion of %s: %s", name, f"version {champion}" if champion else "none")
    return champion


@task
def rollback(name: str, expected_champion: XCom) -> XCom:
    """Make an earlier version champion again, in the ledger and in MLflow."""
    from evergreen.promotion import service

    context = get_current_context()
    event = service.roll_back_champion(
        loader.load_spec(name),
        context["params"]["version"] or None,
        context["params"]["reason"],
        actor=requester(context),
        expected_champion=expected_champion,
    )
    restored, barred = event.restored_version, event.barred_version
    log.info("%s: version %s is champion again, version %s is barred until it is released", name, restored, barred)
    return {"champion": restored, "barred": barred}
