"""What it costs Airflow to parse the DAG files of many models, one of which is broken.

A real `airflow dag-processor` parses each file once, with Airflow's default number of parsers. The reference is the
same number of files, DAGs and tasks without Evergreen: `@task` functions in plain DAGs.

python benchmarks/parse.py [--models 500]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TASKS = {"features": 6, "retrain": 9, "monitor": 5, "rollback": 2}

PLAIN = """
from airflow.sdk import DAG, CronDataIntervalTimetable, task
import pendulum

@task
def step(number):
    "One step."

def chain(name, tasks):
    with DAG(f"{{name}}", schedule=CronDataIntervalTimetable("0 0 * * 5", timezone="UTC"), catchup=False,
             start_date=pendulum.datetime(2013, 1, 1)) as dag:
        before = None
        for number in range(tasks):
            after = step.override(task_id=f"step_{{number}}")(number)
            if before is not None:
                before >> after
            before = after
    return dag

globals().update({{kind: chain(f"{name}.{{kind}}", tasks) for kind, tasks in {tasks}.items()}})
"""


FORK = """
import gc, os, runpy, statistics, sys, time
from pathlib import Path
import airflow.dag_processing.processor, airflow.dag_processing.dagbag
import evergreen.orchestration.dags
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

gc.freeze()
costs = []
for file in sorted(Path(sys.argv[1]).glob("*.py"))[:40]:
    read, write = os.pipe()
    if not os.fork():
        began = time.process_time()
        dags = [value for value in runpy.run_path(str(file)).values() if isinstance(value, DAG)]
        for dag in dags:
            DagSerialization.to_dict(dag)
        os.write(write, str(1000 * (time.process_time() - began) / len(dags)).encode())
        os._exit(0)
    os.wait()
    costs.append(float(os.read(read, 100)))
print(f"RESULT{statistics.median(costs)}")
"""


def write_models(project: Path, count: int) -> None:
    """Write `count` model folders, the last of them broken, and a DAG file for each."""
    spec = (ROOT / "include/evergreen_models/flight_delay/model.py").read_text()
    dag_file = (ROOT / "dags/flight_delay.py").read_text()
    (project / "dags").mkdir(parents=True)
    for number in range(count):
        name = f"demand_{number}"
        (project / "models" / name).mkdir(parents=True)
        text = spec.replace('name="flight_delay"', f'name="{name}"')
        if number == count - 1:
            text = text.replace("train=", "trian=")
        (project / "models" / name / "model.py").write_text(text)
        shutil.copy(ROOT / "include/evergreen_models/flight_delay/sources.py", project / "models" / name)
        (project / "dags" / f"{name}.py").write_text(dag_file.replace("flight_delay", name))


def write_plain(project: Path, count: int) -> None:
    """Write as many DAG files without Evergreen, the last of them broken."""
    (project / "dags").mkdir(parents=True)
    for number in range(count):
        name = f"demand_{number}"
        text = PLAIN.format(name=name, tasks=TASKS) if number < count - 1 else "from airflow.sdk import dag\n1 / 0\n"
        (project / "dags" / f"{name}.py").write_text(text)


def parse(project: Path) -> tuple[float, float, int, int]:
    """Parse every file once. Wall seconds, CPU seconds, DAGs and import errors."""
    home = project / "airflow"
    passed = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "AIRFLOW_"))}
    passed.pop("PYTHONDONTWRITEBYTECODE", None)
    environment = passed | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "EVERGREEN_PROJECT": str(project),
    }
    airflow = str(BIN / "airflow")
    with (project / "log").open("w") as log:
        subprocess.run([airflow, "db", "migrate"], env=environment, stdout=log, stderr=log, check=True)
        # Once for compiled files, as in an image; then the run that is measured.
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(project)], check=False)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [airflow, "dag-processor", "--num-runs", "1"]
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with closing(sqlite3.connect(home / "airflow.db")) as con:
        [dags] = con.execute("SELECT count(*) FROM dag WHERE NOT is_stale").fetchone()
        [errors] = con.execute("SELECT count(*) FROM import_error").fetchone()
    return wall, cpu, dags, errors


def fork_cost(project: Path) -> float:
    """CPU milliseconds per DAG of a fork of the processor: executes a DAG file and serializes its DAGs. Median."""
    environment = os.environ | {"AIRFLOW_HOME": str(project / "airflow"), "EVERGREEN_PROJECT": str(project)}
    command = [sys.executable, "-c", FORK, str(project / "dags")]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(out.split("RESULT")[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=500)
    count = parser.parse_args().models
    results = {}
    for name, write in (("plain Airflow", write_plain), ("Evergreen", write_models)):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), count)
            results[name] = wall, cpu, dags, errors = parse(Path(folder))
            fork = fork_cost(Path(folder))
            print(
                f"{name}: {count} files, {dags} DAGs, {errors} import error: {wall:.0f} s, {cpu:.0f} s CPU, "
                f"{1000 * cpu / dags:.0f} ms CPU per DAG, of which the DAG file takes {fork:.1f} ms",
                flush=True,
            )
    reference, measured = results["plain Airflow"], results["Evergreen"]
    print(f"Evergreen / plain Airflow: wall {measured[0] / reference[0]:.2f}, CPU {measured[1] / reference[1]:.2f}")


if __name__ == "__main__":
    main()
