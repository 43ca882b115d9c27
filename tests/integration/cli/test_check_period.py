"""`evergreen check --period` and `evergreen preview`, as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evergreen import notebook
from evergreen.settings import REPOSITORY
from evergreen.testing import _try_model, model_tests
from support import visits
from support.small_models import UseModels
from support.visits import COUNT, DAY

pytestmark = pytest.mark.integration

DAY_BEFORE = "2024-03-04"


@pytest.fixture
def project(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels):
    """Return a function that writes the model with these features, and delivers its raw data of two days."""

    def write(**changes: str) -> None:
        visits.write_model(tmp_path / "models", monkeypatch, use_models, **changes)
        for day in (DAY_BEFORE, DAY):
            visits.deliver(day=day)

    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    return write


def evergreen(*arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "EVERGREEN_PROJECT": str(REPOSITORY)}
    command = [str(Path(sys.executable).with_name("evergreen")), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_sound_model_is_tried_up_to_its_gates(project, home: Path, tmp_path: Path) -> None:
    project()
    before = files_below(home)
    done = evergreen("check", "visits", "--period", DAY, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["model"], result["period"], result["faults"]) == ("visits", DAY, [])
    steps = {step["step"]: step["state"] for step in result["steps"]}
    names = ["raw data", "features", "order of rows", "no future", "training set", "training", "gates"]
    assert steps == dict.fromkeys(names, "passed")
    [gate] = result["verdict"]["results"]
    assert gate["outcome"] != "not_computed", gate
    assert files_below(home) == before, "nothing is left behind"
    assert files_below(tmp_path / "scratch") == set()


@pytest.mark.slow
def test_a_notebook_shows_the_same(project, home: Path, tmp_path: Path) -> None:
    project()
    before = files_below(home)
    preview = notebook.preview("visits", DAY)
    assert [sample.profile.row_count for sample in preview.tables] == [COUNT, COUNT]
    page = preview._repr_html_()
    assert f"spending of visits, {DAY}: {COUNT} rows" in page
    assert page.count("<svg") == 3  # columns of both tables, and the label
    result = notebook.check("visits", DAY)
    assert result.passed, result
    assert "Gates, on one period" in result._repr_html_()
    assert files_below(home) == before
    assert files_below(tmp_path / "scratch") == set()


def test_a_value_that_spark_cannot_compute_is_found_by_line(project, tmp_path: Path) -> None:
    project(spent='F.col("shop").cast("double")')
    done = evergreen("preview", "visits", "--period", DAY)
    assert done.returncode == 1
    file = tmp_path / "models/evergreen_models/visits/features.py"
    [line] = [n for n, text in enumerate(file.read_text().splitlines(), 1) if 'F.col("shop").cast' in text]
    assert f"{file}, line {line}: " in done.stderr
    assert "cannot be cast" in done.stderr
    assert files_below(tmp_path / "scratch") == set()


@pytest.mark.slow
def test_a_model_folder_gets_the_steps_as_tests(project) -> None:
    project(spent="F.rand()")
    tests = model_tests("visits", DAY)()
    for name in ("test_files", "test_raw_data", "test_features"):
        getattr(tests, name)()
    with pytest.raises(AssertionError, match="in another order: .* in spent"):
        tests.test_order_of_rows()
    with pytest.raises(pytest.skip.Exception, match="an earlier step has faults"):
        tests.test_gates()
    assert [name for name in dir(model_tests("visits")) if name.startswith("test")] == ["test_files"]


@pytest.mark.slow
def test_a_model_folder_gets_tests_of_its_trained_model(project) -> None:
    project()
    _try_model.cache_clear()  # another test has tried another model of that name
    tests = model_tests("visits", DAY)()
    tests.test_training()
    tests.test_resumed_training()
    # The only gate of this model lets anything pass.
    with pytest.raises(AssertionError, match="whose predictions are of other rows would pass auc_threshold"):
        tests.test_mutated_champion()
