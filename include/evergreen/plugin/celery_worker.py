"""Import libraries once in a Celery worker, before it forks the processes that fork the tasks.

Celery imports this module at the right moment if its `imports` name it:
`AIRFLOW__CELERY__EXTRA_CELERY_CONFIG={"imports": ["evergreen.plugin.celery_worker"]}`. What it imports is named by
`EVERGREEN_PRELOAD`, as for the scheduler of a LocalExecutor (`evergreen.plugin.preload`).
"""

from __future__ import annotations

import os

from evergreen.plugin.preload import PRELOAD_VARIABLE, parse_hashed_code, parse_module_names, preload_modules

if names := parse_module_names(os.environ.get(PRELOAD_VARIABLE)):
    preload_modules(names)
    parse_hashed_code()
