"""Runs Airflow's scheduler, which imports what tasks share before the database of Airflow is ready.

    python -m evergreen_local.scheduler <arguments of `airflow scheduler`>

The imports take more time than all else that Airflow needs to start. They begin at once; the scheduler itself starts
when there is a line on the standard input, and does not if that ends.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress


def start_scheduler(arguments: list[str]) -> None:
    """Import the modules that `EVERGREEN_PRELOAD` names, wait for the line, and be `airflow scheduler`."""
    for name in map(str.strip, os.environ.get("EVERGREEN_PRELOAD", "").split(",")):
        # Airflow is configured when it is imported: not before its configuration is written.
        if name and not name.startswith("airflow"):
            with suppress(Exception):  # the listener of `evergreen.plugin.preload` tries again, and logs it
                importlib.import_module(name)
    if not sys.stdin.readline():
        raise SystemExit("the database of Airflow is not ready: see above")
    from airflow.__main__ import main

    sys.argv = ["airflow", "scheduler", *arguments]
    main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    start_scheduler(sys.argv[1:])
