"""A DAG file per model: an error in one model folder is an import error of one file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dag

ROOT = Path(__file__).parents[2]
PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder=sys.argv[1], bundle_name="test")
loaded = sorted({name.split(".")[1] for name in sys.modules if name.startswith("evergreen_models.")})
print("RESULT" + json.dumps({"dags": sorted(bag.dags), "errors": bag.import_errors, "loaded": loaded}))
"""
DAG_FILE = (ROOT / "dags/flight_delay.py").read_text()
BROKEN = {
    "typo": ("    train=", "    trian="),
    "syntax": ("MODEL = ", "MODEL = = "),
    "cron": ('schedule="0 0 * * 5"', 'schedule="0 99 * * 5"'),
    "exits": ("MODEL = ", "raise SystemExit(0)\nMODEL = "),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two healthy models and some broken ones, and a DAG file for each and for one that is gone."""
    folder = tmp_path_factory.mktemp("project")
    spec = (ROOT / "include/evergreen_models/flight_delay/model.py").read_text()
    (folder / "dags").mkdir()
    for name in ("healthy", "other", *BROKEN):
        (folder / "models" / name).mkdir(parents=True)
        text = spec.replace('name="flight_delay"', f'name="{name}"').replace(*BROKEN.get(name, ("", "")))
        (folder / "models" / name / "model.py").write_text(text)
        shutil.copy(ROOT / "include/evergreen_models/flight_delay/sources.py", folder / "models" / name)
    for name in ("healthy", "other", "gone", *BROKEN):
        (folder / "dags" / f"{name}.py").write_text(DAG_FILE.replace("flight_delay", name))
    return folder


def parse(project: Path, file: str = "") -> dict:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERGREEN_")} | {
        "AIRFLOW_HOME": str(project / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "EVERGREEN_PROJECT": str(project),
    }
    command = [sys.executable, "-c", PARSE, str(project / "dags" / file)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return json.loads(out.split("RESULT")[-1])


@pytest.fixture(scope="module")
def parsed(project: Path) -> dict:
    return parse(project)


def test_broken_models_do_not_touch_the_others(parsed: dict) -> None:
    family = ("features", "monitor", "retrain", "rollback")  # its spec asks for no `score`
    assert parsed["dags"] == [f"{name}.{kind}" for name in ("healthy", "other") for kind in family]
    assert {Path(file).stem for file in parsed["errors"]} == {"gone", *BROKEN}


def test_an_import_error_begins_with_what_to_correct(parsed: dict) -> None:
    errors = {Path(file).stem: text for file, text in parsed["errors"].items()}
    for name in BROKEN:
        assert errors[name].startswith(f"evergreen.errors.SpecError: model {name}: 1 fault\n  - ")
    assert "trian: extra inputs are not permitted" in errors["typo"].splitlines()[1]
    assert "/models/syntax/model.py, line " in errors["syntax"].splitlines()[1]
    assert "no folder gone with a model.py" in errors["gone"].splitlines()[1]


def test_a_dag_file_loads_its_own_model_only(project: Path) -> None:
    parsed = parse(project, "healthy.py")
    assert parsed["loaded"] == ["healthy"]
    assert not parsed["errors"]
