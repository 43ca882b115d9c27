"""CPU time to parse the DAG files of one model, once Airflow is loaded.

python benchmarks/parse.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = 7

PARSE = """
import json, time, runpy
from airflow.sdk import (
    DAG, Asset, AssetOrTimeSchedule, AssetWatcher, BaseOperator, CronDataIntervalTimetable, Param,
    get_current_context, task,
)
# What Airflow's processor has loaded itself.
import airflow.triggers.base, airflow.timetables.base, airflow.serialization.definitions.assets, fsspec.core
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped
times = []
for _ in range(2):  # the first imports Evergreen too, the second is what every later parse costs
    began = time.process_time()
    found = [value for value in runpy.run_path("dags/models.py").values() if isinstance(value, DAG)]
    times.append(time.process_time() - began)
print("RESULT" + json.dumps([*times, len(found)]))
"""


def main() -> None:
    results = []
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(RUNS + 1):
            out = subprocess.run(
                [sys.executable, "-c", PARSE],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            results.append(json.loads(out.split("RESULT")[-1]))
    del results[0]  # compiles
    dags = results[0][2]
    for what, index in (("in a new process", 0), ("again in the same", 1)):
        times = [1000 * result[index] for result in results]
        print(
            f"parsing {dags} DAGs {what}: median {statistics.median(times):.0f} ms CPU "
            f"({min(times):.0f} – {max(times):.0f}, {RUNS} runs)"
        )


if __name__ == "__main__":
    main()
