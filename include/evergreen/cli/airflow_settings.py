"""How Airflow runs on one machine for one person: all its settings, each unusual one with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evergreen.settings import REPOSITORY

_PRELOAD = (
    "pandas",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "duckdb",
    "great_expectations.expectations",
    "pyspark.sql.connect.session",
    "pyspark.sql.connect.functions",
    "feast",
    "feast.infra.registry.sql",
    "feast.infra.online_stores.sqlite",
    "feast.infra.offline_stores.file_source",
    "feast.infra.passthrough_provider",
    "mlflow.xgboost",
    "xgboost",
    "scipy.stats",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    # Parts of Airflow that a task would import by itself.
    "airflow.providers.standard.decorators.python",
    "airflow.sdk.definitions.decorators",
    "airflow.dag_processing.bundles.local",
    "jinja2.ext",
)


def environment(home: Path, url: str, port: int, log_port: int, trigger_log_port: int) -> Mapping[str, str]:
    """Environment variables of all of Airflow's processes; nothing of it is read from anywhere else."""
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        # One person, one machine: whoever reaches the loopback address is admin, without a password to keep.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # Two stacks on one machine must not fight for the default ports of these two.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_port),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_log_port),
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        # More slots than processors: a slot stays taken for a heartbeat after its task has ended, when
        # the supervisor happens to look a moment too early. Backfills bound what runs at once.
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        # A chain of short tasks waits for one round of the scheduler per task.
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        # What tasks import, imported once in the scheduler: each task is a fork of it (plugins/preload.py).
        "EVERGREEN_PRELOAD": ",".join(_PRELOAD),
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        # Keeps process titles out of the memory that holds the environment, by which `stop` knows our own.
        "SPT_NOENV": "1",
    }
