"""A task's process waits for its events at the end: not for ever, and for nothing else."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from airflow.sdk.listener import get_listener_manager

from evergreen.plugin.lineage import PATIENCE_S, SKIPPED_PATIENCE_S, LineageListener, is_no_false_alarm, wait_for_events

pytestmark = pytest.mark.unit

LIGHT = """
import sys
from evergreen.orchestration.dags import airflow_dags
from evergreen.plugin.lineage import wait_for_events
from evergreen.plugin.provider import get_provider_info
airflow_dags("flight_delay")
get_provider_info()
assert wait_for_events(5) == []
heavy = ("openlineage", "evergreen.lineage_events", "airflow.providers.openlineage.plugins.listener")
print(*sorted(name for name in sys.modules if name.startswith(heavy)))
"""


@contextmanager
def thread(name: str) -> Iterator[threading.Event]:
    end = threading.Event()
    worker = threading.Thread(target=end.wait, name=name, daemon=True)
    worker.start()
    yield end
    end.set()
    worker.join(5)


def test_all_events_share_the_time_that_there_is() -> None:
    with thread("openlineage-on_running"), thread("openlineage-on_success"), thread("ThreadPool-0"):
        start = time.monotonic()
        assert sorted(wait_for_events(0.2)) == ["on_running", "on_success"]
        assert 0.2 <= time.monotonic() - start < 1


def test_events_that_are_sent_end_the_wait() -> None:
    with thread("openlineage-on_success") as end:
        threading.Timer(0.1, end.set).start()
        start = time.monotonic()
        assert wait_for_events(30) == []
        assert time.monotonic() - start < 5


class TaskRunnerMarker:
    """What Airflow hands to listeners of a task's process."""


def test_a_skipped_task_does_not_wait_for_long() -> None:
    listener, hooks = LineageListener(), get_listener_manager().hook
    with thread("openlineage-on_running"):
        assert hasattr(hooks, listener.on_task_instance_skipped.__name__), "Airflow calls what has this name"
        listener.on_task_instance_skipped()
        start = time.monotonic()
        listener.before_stopping(TaskRunnerMarker())
        assert SKIPPED_PATIENCE_S <= time.monotonic() - start < PATIENCE_S / 2


def test_only_the_false_alarm_is_dropped() -> None:
    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("provider", logging.WARNING, "", 0, text, ("on_running",), None)

    assert not is_no_false_alarm(record("OpenLineage %s thread did not finish within execution_timeout=%ss"))
    assert is_no_false_alarm(record("OpenLineage %s thread failed."))


def test_nothing_is_imported_where_no_lineage_is_sent() -> None:
    result = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
