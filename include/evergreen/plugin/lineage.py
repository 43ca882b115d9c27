"""Sends lineage beside the work of a task, by Airflow's provider of OpenLineage.

With `[openlineage] execute_in_thread = True` and `execution_timeout = 0`, the provider makes and sends each event in a
thread, and a task waits for none of them. A task's process ends a moment after its state was reported, and its threads
with it. So `LineageListener` waits for them at the end: the next tasks have started by then. Airflow reports that a
task was skipped only when its process has ended, so that one does not wait as long.

Without a transport in the settings there are no such threads, and nothing is imported here.
"""

from __future__ import annotations

import logging
import threading
import time

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

PATIENCE_S = 10.0
"""For all events of a task, after its state was reported: as long as the provider waits for one by default."""

SKIPPED_PATIENCE_S = 1.0
"""For those of a task that was skipped, for whose state its run waits: a server that responds takes a fifth of it."""

_THREADS = "openlineage-"  # how the provider names its threads
_PROVIDER_LOG = "airflow.providers.openlineage.plugins.listener"
_ABANDONED = "OpenLineage %s thread did not finish"

log = logging.getLogger(__name__)


def wait_for_events(patience_s: float) -> list[str]:
    """Wait until the events of this process are sent, for so long at most; return the names of those that are not."""
    deadline = time.monotonic() + patience_s
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(_THREADS)]
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return [thread.name.removeprefix(_THREADS) for thread in threads if thread.is_alive()]


def is_no_false_alarm(record: logging.LogRecord) -> bool:
    """Return False for the provider's warning that it has abandoned a thread: `wait_for_events` has not."""
    return not str(record.msg).startswith(_ABANDONED)


class LineageListener:
    """Waits for events at the end of a task's process, which has one task."""

    def __init__(self) -> None:
        self._was_skipped = False

    @hookimpl
    def on_starting(self, component: object) -> None:
        """Let the provider not warn of threads that are waited for."""
        if _is_task(component):
            logging.getLogger(_PROVIDER_LOG).addFilter(is_no_false_alarm)

    @hookimpl
    def on_task_instance_skipped(self) -> None:
        """Let the run not wait for events."""
        self._was_skipped = True

    @hookimpl
    def before_stopping(self, component: object) -> None:
        """Give the events some time; Airflow has the state of the task already, unless it was skipped or has failed."""
        patience_s = SKIPPED_PATIENCE_S if self._was_skipped else PATIENCE_S
        if _is_task(component) and (unsent := wait_for_events(patience_s)):
            log.warning(
                "OpenLineage events were not sent within %g s, and are lost: %s. The state of the task is not "
                "affected; see whether the server of [openlineage] transport responds",
                patience_s,
                ", ".join(unsent),
            )


def _is_task(component: object) -> bool:
    return type(component).__name__ == "TaskRunnerMarker"


class LineagePlugin(AirflowPlugin):
    """Registers the listener."""

    name = "evergreen_lineage"
    listeners = [LineageListener()]  # noqa: RUF012 - Airflow's base class declares it so
