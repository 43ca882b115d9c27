"""Import heavy libraries once, in the scheduler, so that LocalExecutor tasks inherit them for free.

Why: LocalExecutor forks its workers from the scheduler and every task is a fork of a worker. A module that
the scheduler has imported before that first fork is shared copy-on-write by all tasks; one that it has not is
imported again by every task (great_expectations, feast and mlflow: seconds of CPU each time).

Airflow calls ``on_starting`` when a component creates its Job, which in the scheduler is before the executor
starts. ``EVERGREEN_PRELOAD`` names the modules, comma separated; unset or empty switches this off. It acts
only in ``airflow scheduler`` with a local executor that forks: Celery and Kubernetes workers fork elsewhere,
and the other components must stay light.

Name third-party libraries only. A preloaded module stays as it was until the scheduler restarts, so the code
of models and of Evergreen itself must not be named here. State is inherited too: every task starts with the
same global ``numpy.random`` state, so draw from a seeded ``default_rng``. A module must start no thread when
it is imported: a thread does not survive a fork, but the locks it holds do. The log line names the Python
threads alive afterwards.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import sys
import threading
import time

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)

PRELOAD_VARIABLE = "EVERGREEN_PRELOAD"


def parse_module_names(value: str | None) -> list[str]:
    """The module names in a comma separated list, in order, without blanks and repetitions."""
    return list(dict.fromkeys(name for part in (value or "").split(",") if (name := part.strip())))


def is_forking_scheduler(component: object) -> bool:
    """Whether this process is a scheduler that will fork its tasks.

    The Job does not know its type yet when the hook is called (its runner sets it a moment later), so the
    command line has to tell the scheduler from the triggerer and the dag processor.
    """
    if type(component).__name__ != "Job" or sys.argv[1:2] != ["scheduler"]:
        return False
    if multiprocessing.get_start_method() != "fork":
        return False
    from airflow.executors.executor_loader import ExecutorLoader

    names = ExecutorLoader.get_executor_names()
    return any(ExecutorLoader.import_executor_cls(name)[0].is_local for name in names)


def preload_modules(names: list[str]) -> list[str]:
    """Import the modules and return those that came; one that fails is logged and left to the tasks."""
    loaded = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            log.warning("Preloading %s failed; tasks will import it themselves", name, exc_info=True)
        else:
            loaded.append(name)
    return loaded


class PreloadListener:
    """Runs :func:`preload` once, when the scheduler starts."""

    @hookimpl
    def on_starting(self, component: object) -> None:
        names = parse_module_names(os.environ.get(PRELOAD_VARIABLE))
        if not names or not is_forking_scheduler(component):
            return
        began = time.monotonic()
        loaded = preload_modules(names)
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        log.info("Preloaded %s in %.1f s; threads: %s", loaded, time.monotonic() - began, threads or "none")


class PreloadPlugin(AirflowPlugin):
    """Registers the listener."""

    name = "evergreen_preload"
    listeners = [PreloadListener()]  # noqa: RUF012 - Airflow's base class declares it so
