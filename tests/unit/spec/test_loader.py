"""Model folders: found wherever the settings say, and loaded one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.errors import SpecError
from evergreen.spec import loader

pytestmark = pytest.mark.unit

SPEC = """
from evergreen.spec.model import ModelSpec
{before}
SOURCE = dict(name="orders", columns=dict(item="string"))
MODEL = ModelSpec(
    name="{name}", owner="shop", feature_service="{name}", label="sold", schedule="0 4 * * 1",
    features=dict(timezone="UTC", first_day="2020-01-01", sources=[SOURCE], spine="baskets", views=["x"]),
    gates=[dict(kind="threshold", metric="auc", at_least=0.6)],
)
"""


def write(place: Path, name: str, text: str | None = None) -> None:
    (place / name).mkdir(parents=True, exist_ok=True)
    (place / name / "model.py").write_text(SPEC.format(name=name, before="") if text is None else text)


@pytest.fixture
def places(tmp_path: Path, use_models: Callable[..., None]) -> tuple[Path, Path]:
    """Folders of two teams, with a model each; their names are no names of packages."""
    folders = tmp_path / "models", tmp_path / "team-two's folder"
    for place, name in zip(folders, ("basket", "churn"), strict=True):
        write(place, name)
    use_models(*folders, only=True)
    loader.load_spec.cache_clear()
    return folders


def problem_of(name: str) -> str:
    with pytest.raises(SpecError) as refused:
        loader.load_spec(name)
    return str(refused.value)


def test_models_of_several_folders_load(places: tuple[Path, Path]) -> None:
    assert loader.model_names() == ["basket", "churn"]
    assert [loader.load_spec(name).name for name in loader.model_names()] == ["basket", "churn"]


def test_a_folder_imports_itself_and_its_neighbours(places: tuple[Path, Path]) -> None:
    (places[0] / "common").mkdir()
    (places[0] / "common/teams.py").write_text("OWNER = 'grocers'\n")
    (places[0] / "basket/sources.py").write_text("ORDERS = dict(name='orders')\n")
    before = "from evergreen_models.common.teams import OWNER\nfrom .sources import ORDERS"
    write(places[0], "basket", SPEC.format(name="basket", before=before).replace('"shop"', "OWNER"))
    assert loader.load_spec("basket").owner == "grocers"
    assert "common" not in loader.model_names(), "a folder without model.py is no model"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "from evergreen.spec.model import ModelSpec\n\nMODEL = ModelSpce()\n",
            "model.py, line 3: NameError: name 'Mod",
        ),
        ("MODEL = (\n", "model.py, line 1: SyntaxError: '(' was never closed"),
        ("import sys\nsys.exit(3)\n", "model.py, line 2: SystemExit: 3"),
        ("import no_such_package\n", "model.py, line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("from . import helpers\n", "model.py, line 1: ImportError: cannot import name 'helpers'"),
        ("MODEL = 3\n", "defines no MODEL → add MODEL = ModelSpec(...)"),
        (SPEC.format(name="basket", before=""), "name: is 'basket' → name it like its folder: 'churn'"),
        (SPEC.format(name="churn", before="").replace("0 4 * * 1", "0 4 * * 9"), "schedule: '0 4 * * 9' is no cron"),
        (SPEC.format(name="churn", before="").replace("owner", "ownr"), "ownr: extra inputs are not permitted"),
    ],
)
def test_an_error_names_file_line_and_fix(places: tuple[Path, Path], text: str, problem: str) -> None:
    write(places[1], "churn", text)
    assert problem in problem_of("churn")
    assert loader.load_spec("basket").name == "basket", "the other model loads"


def test_an_error_in_an_imported_module_names_its_line(places: tuple[Path, Path]) -> None:
    (places[1] / "churn/columns.py").write_text("\nCOLUMNS = [1 / 0]\n")
    write(places[1], "churn", "from .columns import COLUMNS\n")
    assert "churn/columns.py, line 2: ZeroDivisionError" in problem_of("churn")


def test_two_folders_of_one_name_are_refused(places: tuple[Path, Path]) -> None:
    write(places[0], "churn")
    assert problem_of("churn").count("has the name of another folder") == 2
    assert loader.load_spec("basket").name == "basket"


@pytest.mark.parametrize("name", ["../basket", "Basket", "my-model", "", "a.b", "1st", "basket\n"])
def test_names_that_cannot_be_a_model_are_refused(places: tuple[Path, Path], name: str) -> None:
    assert "cannot be the name of a model" in problem_of(name)


def test_an_unknown_name_shows_similar_ones_of_many(places: tuple[Path, Path]) -> None:
    for number in range(200):
        write(places[0], f"demand_{number}")
    message = problem_of("demand_71x")
    assert "demand_71" in message
    assert len(message) < 600


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from evergreen.spec import loader; print(loader.model_names())"],
        env=os.environ | {"EVERGREEN_MODELS": f"{tmp_path}:{tmp_path}/gone"},
        capture_output=True,
        text=True,
    )
    assert f"EVERGREEN_MODELS: {tmp_path}/gone is no folder" in process.stderr
