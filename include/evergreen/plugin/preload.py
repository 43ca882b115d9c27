"""Import libraries once, in components that fork, so that every fork inherits them for free.

**The DAG processor** parses every file in a process of its own. It imports what Evergreen's DAG files import, except
the model folders, which are read anew at each parse. A new version of Evergreen needs a restart, as one of Airflow
does.

**The scheduler:** LocalExecutor forks its workers from it, and every task is a fork of a worker. All tasks share a
module that the scheduler imported before the first fork, copy-on-write; every task imports any other module again
(great_expectations, feast and mlflow: seconds of CPU each time). It also parses the code that steps hash.

Airflow calls ``on_starting`` when a component creates its Job, which is before it forks. ``EVERGREEN_PRELOAD`` names
the scheduler's modules, separated by commas; if unset or empty, nothing is imported. Acts only in ``airflow
dag-processor``, and in ``airflow scheduler`` with a local executor that forks: the other components must stay light.
Celery workers import the same modules by `evergreen.plugin.celery_worker`.

Name third-party libraries only, not Evergreen or models: a preloaded module does not change until the scheduler
restarts. Tasks inherit state, too: every task starts with the same global ``numpy.random`` state, so draw from a
seeded ``default_rng``. A module must start no thread on import: a thread does not survive a fork, but the locks that
it holds do. The log line names the Python threads that are alive afterwards.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

from evergreen.lake.syntax import parse_code

log = logging.getLogger(__name__)

PRELOAD_VARIABLE = "EVERGREEN_PRELOAD"
_DAG_FILE_MODULES = ("evergreen.orchestration.dags",)
_HASHED_PACKAGES = ("evaluation", "feature_store", "features", "gates", "ingest", "monitoring", "scoring")


def parse_module_names(value: str | None) -> list[str]:
    """Return the module names of a comma-separated list, in order, without blanks and repetitions."""
    return list(dict.fromkeys(name for part in (value or "").split(",") if (name := part.strip())))


def is_forking_scheduler(component: object) -> bool:
    """Whether this process is a scheduler that will fork its tasks.

    The Job does not know its type yet when Airflow calls the hook, so the command line tells the scheduler from the
    triggerer and the dag processor.
    """
    if type(component).__name__ != "Job" or sys.argv[1:2] != ["scheduler"]:
        return False
    if multiprocessing.get_start_method() != "fork":
        return False
    from airflow.executors.executor_loader import ExecutorLoader

    names = ExecutorLoader.get_executor_names()
    return any(ExecutorLoader.import_executor_cls(name)[0].is_local for name in names)


def preload_modules(names: list[str]) -> list[str]:
    """Import the modules and return those that succeeded; a failure is logged, and tasks import the module."""
    loaded = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            log.warning("Preloading %s failed; tasks will import it themselves", name, exc_info=True)
        else:
            loaded.append(name)
    return loaded


def parse_hashed_code() -> None:
    """Parse the code that steps hash for their fingerprints: each task would, which takes up to a second.

    A parse is found by the content of a file, so that a file that changes afterwards is parsed again.
    """
    root = Path(__file__).parent.parent
    for package in _HASHED_PACKAGES:
        for file in (root / package).rglob("*.py"):
            with suppress(OSError, SyntaxError):  # the task that needs it says so
                parse_code(file.read_bytes())


def _is_dag_processor(component: object) -> bool:
    return type(component).__name__ == "Job" and sys.argv[1:2] == ["dag-processor"]


def _module_names(component: object) -> list[str]:
    if _is_dag_processor(component):
        return [*_DAG_FILE_MODULES]
    names = parse_module_names(os.environ.get(PRELOAD_VARIABLE))
    return names if names and is_forking_scheduler(component) else []


class PreloadListener:
    """Calls `preload_modules` once, when a component starts that forks."""

    @hookimpl
    def on_starting(self, component: object) -> None:
        """Import the modules that the forks of this component need."""
        names = _module_names(component)
        if not names:
            return
        start = time.monotonic()
        loaded = preload_modules(names)
        if not _is_dag_processor(component):
            parse_hashed_code()
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        log.info("Preloaded %s in %.1f s; threads: %s", loaded, time.monotonic() - start, threads or "none")


class PreloadPlugin(AirflowPlugin):
    """Registers the listener."""

    name = "evergreen_preload"
    listeners = [PreloadListener()]  # noqa: RUF012 - Airflow's base class declares it so
