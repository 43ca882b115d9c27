"""The guide to a repository of one's own, followed in an environment that had only Airflow: raw days to a champion."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.documents import DOCS, ROOT, documented_files

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGE = DOCS / "guides/own-repository.md"
USE_PAGE = DOCS / "guides/use-a-champion.md"
MODEL = "late_delivery"
PASSED_VARIABLES = ("PATH", "HOME", "LANG", "JAVA_HOME")
BROKEN = "MODEL = ModelSpec(\n"
PREDICT = """
import json
import sys

row = read_request("late_delivery", {"depot": "north", "distance_km": 12, "hour": 9})
_, scorer = load_champion("late_delivery")
predictions = {"predict": predict("late_delivery", row), "scorer": scorer.score(row)}
for address in sys.argv[1:]:
    predictions["mlflow"] = predict_with_mlflow("late_delivery", row.to_pandas(), address)
print(json.dumps({name: float(values[0]) for name, values in predictions.items()}))
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the guide, and a second model in it, which is broken."""
    folder = tmp_path_factory.mktemp("own") / "acme-models"
    for name, text in documented_files(PAGE).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "models" / MODEL / "__init__.py").touch()
    shutil.copy(ROOT / "feature_repo/feature_store.yaml", folder / "feature_repo")
    return folder


@pytest.fixture(scope="module")
def run(installed: Path, project: Path) -> Iterator[Run]:
    """Runs a command of the environment in the repository, without settings; stops at the end what it has started."""

    def call(command: str, *arguments: str, code: int = 0, folder: Path = project) -> str:
        variables = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
        done = subprocess.run(
            [installed.with_name(command), *arguments],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    yield call
    call("evergreen", "down")


def test_the_guide_shows_every_file_of_its_tree(project: Path) -> None:
    tree = re.findall(r"[\w.]+\.(?:py|yaml)", PAGE.read_text().partition("```text")[2].partition("```")[0])
    assert sorted(file.name for file in project.rglob("*") if file.is_file()) == sorted(tree)


def test_the_guide_leads_to_a_champion(run: Run, project: Path) -> None:
    """Real Airflow, Spark, Feast and MLflow, beside a model that is broken."""
    (project / "models/torn").mkdir()
    (project / "models/torn/model.py").write_text(BROKEN)
    (project / "dags/torn.py").write_text((project / f"dags/{MODEL}.py").read_text().replace(MODEL, "torn"))
    run("python", "deliver.py")
    [outcome] = json.loads(run("evergreen", "retrain", MODEL, "--json"))
    assert (outcome["as_of"], outcome["promoted"], outcome["champion"]) == ("2026-03-23", True, "1")
    assert "gates for a candidate" in Path(outcome["report"]).read_text()

    history = json.loads(run("evergreen", "history", MODEL, "--json"))
    assert [champion["version"] for champion in history["champions"]] == ["1"]
    assert "depot_history" in run("evergreen", "feast", MODEL, "feature-views", "list")

    failed = [row for row in json.loads(run("evergreen", "doctor", "--json", code=1)) if not row["passed"]]
    assert [row["check"] for row in failed] == ["models", "Airflow"], "nothing but the broken model is wrong"
    for row in failed:
        assert "model torn: 1 fault" in row["message"]


def test_the_same_data_again_needs_no_retrain(run: Run) -> None:
    assert "the data of late_delivery ends on 2026-03-22" in run("evergreen", "retrain", MODEL)


def test_the_champion_predicts_in_python_with_services_and_without(run: Run, project: Path) -> None:
    """The code of the guide, run below the project's folder; the request has an integer for a floating-point column."""
    blocks = re.findall(r"^```python\n(.*?)^```", USE_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (project / "use").mkdir()
    (project / "use/predict.py").write_text("\n".join([*blocks, PREDICT]))
    [mlflow] = [row["url"] for row in json.loads(run("evergreen", "status", "--json")) if row["service"] == "mlflow"]
    up = json.loads(run("python", "predict.py", mlflow, folder=project / "use"))
    assert 0 < up["predict"] < 1
    assert up == {"predict": up["predict"], "scorer": up["predict"], "mlflow": pytest.approx(up["predict"])}
    run("evergreen", "down")
    down = json.loads(run("python", "predict.py", folder=project / "use"))
    assert down == {"predict": up["predict"], "scorer": up["predict"]}
