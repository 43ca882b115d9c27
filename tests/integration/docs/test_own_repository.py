"""The guide to a repository of one's own: its files, copied as they are, lead from raw days to a champion."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evergreen.settings import ENV_PREFIX
from support.documents import DOCS, ROOT, documented_files

pytestmark = pytest.mark.integration

PAGE = DOCS / "guides/own-repository.md"
MODEL = "late_delivery"

# What the tasks of the DAGs call, without Airflow.
CHAIN = """
from datetime import date

from evergreen import evaluation, ledger
from evergreen.feature_store import online_store, training_sets
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.promotion import service
from evergreen.registry import versions
from evergreen.spec import loader
from evergreen.training.backends import process
from evergreen.window import RunReason, Window, days_between

model = loader.load_spec("late_delivery")
start, end = date(2026, 2, 1), date(2026, 3, 16)
run_feature_pipeline(model, days_between(start, end))
window = Window.from_range(start, end, RunReason.MANUAL, "Europe/Berlin")
online_store.materialize_features(model, window)
examples = training_sets.build_training_set(model, window)
columns = training_sets.model_input_columns(model)
candidate = process.train_in_process(model, examples, training_sets.training_set_dataset(model), columns)
evidence = evaluation.collect_evidence(model, examples, candidate, None)
context = service.EvaluationContext("the guide", window.run_reason, examples, candidate, evidence, None)
entry = service.judge_candidate(model, context)
verdict = ledger.read_verdict_event(model.name, entry).verdict
report = service.verdict_report_path(model, entry)
version = versions.register_candidate(model, examples, candidate, verdict, report)
request = service.PromotionRequest(entry, version, window.run_reason)
blocker = service.promote_version(model, request, actor="the guide")
print("VERDICT", verdict.reason)
print("CHAMPION", blocker or ledger.read_state(model.name).champion)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The repository of the guide."""
    folder = tmp_path / "acme-models"
    for name, text in documented_files(PAGE).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "models" / MODEL / "__init__.py").touch()
    shutil.copy(ROOT / "feature_repo/feature_store.yaml", folder / "feature_repo")
    return folder


def run_python(project: Path, *arguments: str) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=variables | {"EVERGREEN_PROJECT": str(project)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


def test_the_guide_shows_every_file_of_its_tree(project: Path) -> None:
    tree = re.findall(r"[\w.]+\.(?:py|yaml)", PAGE.read_text().partition("```text")[2].partition("```")[0])
    assert sorted(file.name for file in project.rglob("*") if file.is_file()) == sorted(tree)


def test_the_guide_leads_to_a_champion(project: Path) -> None:
    run_python(project, "deliver.py")
    output = run_python(project, "-c", CHAIN)
    assert re.search(r"VERDICT all \d gates passed", output), output
    assert "CHAMPION 1" in output


def test_the_guide_makes_dags(project: Path) -> None:
    code = "import runpy; print(*sorted(k for k in runpy.run_path('dags/late_delivery.py') if 'late_delivery_' in k))"
    names = run_python(project, "-c", code).splitlines()[-1].split()
    assert names == [f"{MODEL}_{kind}" for kind in ("features", "retrain", "rollback")]
