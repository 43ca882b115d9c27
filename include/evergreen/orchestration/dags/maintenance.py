"""The DAG that removes what nobody needs any more: one for the deployment, not for a model.

`plan → remove`

**A new DAG is paused.** Unpause it when the settings say what goes: by default nothing does. `evergreen maintenance
--dry-run` lists the same as its task `plan`.

**`plan`** lists in its log, by place, what would go: how many things, how many bytes, since when nobody has used them.

**`remove`** looks again, and removes what still may go. What a running task, a manifest in force or the ledger needs
stays. It may be killed and cleared at any time.

**When a task fails,** its log names the places that were not cleaned up, and why; all others were.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param, get_current_context, task
from airflow.sdk.definitions.param import ParamsDict

from evergreen.orchestration.dag_run import RETRY_ARGS, skip_tasks
from evergreen.orchestration.handover import XCom

_DRY_RUN_PARAM = "dry_run"  # key of the conf

log = logging.getLogger(__name__)


def maintenance_dag(owner: str, schedule: str = "0 4 * * *") -> DAG:
    """`evergreen.maintenance`, at times of `schedule` (cron, UTC)."""
    with DAG(
        dag_id="evergreen.maintenance",
        description="Remove what the retention settings let go",
        doc_md=__doc__,
        tags=["evergreen", "maintenance"],
        schedule=CronTriggerTimetable(schedule, timezone="UTC"),
        start_date=datetime(2013, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args={"owner": owner, **RETRY_ARGS, "execution_timeout": timedelta(hours=6)},
        params={_DRY_RUN_PARAM: Param(False, type="boolean", description="List only; remove nothing")},
    ) as dag:
        planned = plan()
        removed = remove()

        planned >> removed
    for each_task in dag.tasks:
        each_task.params = ParamsDict()  # as in `airflow_dags`
    return dag


@task
def plan() -> XCom:
    """List what would go; return how many bytes that are, by place."""
    context, sizes = get_current_context(), _clean_up(is_dry_run=True)
    return skip_tasks(context, sizes, ["remove"]) if context["params"][_DRY_RUN_PARAM] else sizes


@task
def remove() -> XCom:
    """Remove what still may go; return how many bytes that were, by place."""
    return _clean_up(is_dry_run=False)


def _clean_up(*, is_dry_run: bool) -> XCom:
    from evergreen import maintenance

    report = maintenance.clean_up(datetime.now(UTC), is_dry_run=is_dry_run)
    sizes: dict[str, int] = {}
    for item in report.items:
        sizes[item.place] = sizes.get(item.place, 0) + item.size
        log.info("%s: %s %s, %.1f MB, oldest of %s", item.place, item.count, item.kind, item.size / 1e6, item.oldest)
    log.info("%s %.1f MB", "would go:" if is_dry_run else "removed:", sum(sizes.values()) / 1e6)
    report.raise_problems()
    return sizes
