"""The DAG that tells people what happens to models: one for the deployment, with a task for each route of the settings.

`send_<route>`, for each of them

It exists if `EVERGREEN_NOTIFICATIONS__ROUTES__<NAME>` names a receiver, and is not paused at first.

**`send_<route>`** reads what is new in ledgers, lake and jobs, queues it in the file of its route, and sends what is
queued. It may be killed, cleared, and run twice at once: everything is sent at least once, with the same key.

**When a task fails,** its log says which notifications are unsent, and why. They are sent by the next run; after
`EVERGREEN_NOTIFICATIONS__GIVE_UP_DAYS` they are given up, which fails the task once more. Other routes are not
affected.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable, task

from evergreen.orchestration.handover import XCom
from evergreen.settings import settings

_TIME_LIMIT = timedelta(minutes=4)

log = logging.getLogger(__name__)


def notifications_dag(owner: str) -> DAG | None:
    """`evergreen.notifications`, at times of `EVERGREEN_NOTIFICATIONS__SCHEDULE`; None if there is no route."""
    configured = settings().notifications
    if not configured.routes:
        return None
    with DAG(
        dag_id="evergreen.notifications",
        description="Tell people what happens to models",
        doc_md=__doc__,
        tags=["evergreen", "notifications"],
        schedule=CronTriggerTimetable(configured.schedule, timezone="UTC"),
        start_date=datetime(2013, 1, 1, tzinfo=UTC),
        catchup=False,
        is_paused_upon_creation=False,  # whoever names a receiver wants it
        # No retries: the next run tries again. One at a time of each route, so a receiver that hangs holds up no other.
        default_args={"owner": owner, "retries": 0, "execution_timeout": _TIME_LIMIT, "max_active_tis_per_dag": 1},
    ) as dag:
        for name in configured.routes:
            send.override(task_id=f"send_{name}")(name)
    return dag


@task
def send(route_name: str) -> XCom:
    """Send what is new to a route; return how many notifications were sent, are unsent, and were given up."""
    from airflow.configuration import conf

    from evergreen.notifications import delivery
    from evergreen.orchestration.notifiers import send_by_route
    from evergreen.settings import redact_url

    configured = settings()
    route = configured.notifications.routes[route_name]
    airflow_url = configured.airflow_ui or (configured.airflow and redact_url(configured.airflow.get_secret_value()))
    airflow_url = airflow_url or conf.get("api", "base_url", fallback="") or None
    report = delivery.deliver(
        route_name,
        route,
        lambda notification: send_by_route(route_name, route, notification),
        datetime.now(UTC),
        airflow_url and airflow_url.rstrip("/"),
    )
    log.info("sent %s, unsent %s, given up %s", report.sent, report.unsent, report.given_up)
    report.raise_problems()
    return {"sent": report.sent, "unsent": report.unsent, "given_up": report.given_up}
