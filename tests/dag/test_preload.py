"""What a component imports before it forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dag

START = """
import sys
sys.argv = ["airflow", {command!r}]
import airflow.plugins_manager, airflow.listeners
from evergreen.plugin.preload import PreloadListener
Job = type("Job", (), {{}})
PreloadListener().on_starting(Job())
prefixes = ("evergreen.orchestration.dags", "evergreen_models")
print("RESULT", *(name for name in sys.modules if name.startswith(prefixes)))
"""


def imported(command: str, home: Path) -> set[str]:
    environment = os.environ | {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    code = START.format(command=command)
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return set(out.split("RESULT")[-1].split())


def test_the_dag_processor_imports_what_dag_files_do(tmp_path: Path) -> None:
    names = imported("dag-processor", tmp_path)
    assert "evergreen.orchestration.dags.retrain" in names
    assert not [name for name in names if name.startswith("evergreen_models")], "models are read anew at each parse"


@pytest.mark.slow
def test_other_components_import_no_dags(tmp_path: Path) -> None:
    for command in ("triggerer", "api-server", "scheduler"):
        assert not imported(command, tmp_path) & {"evergreen.orchestration.dags"}, command


CELERY = """
import sys
import evergreen.plugin.celery_worker
from evergreen.lake.syntax import parse_code
parsed = parse_code.cache_info().misses
from evergreen.lake.fingerprints import code_of
code_of(["evergreen.monitoring.histograms"])
print("RESULT", "tabnanny" in sys.modules, parsed, parse_code.cache_info().misses - parsed)
"""


@pytest.mark.parametrize("names", ["tabnanny, no.such.module", ""])
def test_a_celery_worker_imports_and_parses_what_is_named(tmp_path: Path, names: str) -> None:
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "EVERGREEN_PRELOAD": names}
    run = subprocess.run([sys.executable, "-c", CELERY], env=environment, capture_output=True, text=True, check=True)
    is_imported, parsed, parsed_later = run.stdout.split("RESULT")[1].split()
    assert is_imported == str(bool(names))
    assert (int(parsed) > 100, parsed_later == "0") == ((True, True) if names else (False, False))
