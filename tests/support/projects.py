"""A repository with DAG files for more models than those that ship, and the latter with a shorter holdout."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import evergreen_models
from evergreen.settings import REPOSITORY
from evergreen.spec import loader

_SHARED = ("trainer", ".trainer", "plugins")


def make_project(folder: Path, *models: str) -> Path:
    """Return a folder with the DAG files of the models that ship and of `models`; all else is this repository's."""
    (folder / "dags").mkdir(parents=True)
    for name in _SHARED:
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "feature_repo").mkdir()  # tests add definitions
    for file in (REPOSITORY / "feature_repo").iterdir():
        (folder / "feature_repo" / file.name).symlink_to(file)
    text = (REPOSITORY / "dags/flight_delay.py").read_text()
    for model in ("flight_delay", "flight_delay_net", *models):
        (folder / "dags" / f"{model}.py").write_text(text.replace("flight_delay", model))
    return folder


@contextmanager
def models_with_short_holdout(folder: Path, days: int) -> Iterator[None]:
    """Use copies in `folder` of the models that ship, judged on `days` days, in this process and in those it starts.

    The other models stay. Two weeks of holdout would leave next to nothing of January to train on; and what is learned
    in ten days beats the prior by less than a week of days can show, so that gate asks for the gain alone. Those days
    decide: no candidate gathers evidence on later ones. A request may take long, as tests share the cores.
    """
    shipped, *others = evergreen_models.__path__
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in folder.glob("*/model.py"):
        text = file.read_text()
        assert '    holdout="14d",\n' in text
        text = text.replace('    holdout="14d",\n', f'    holdout="{days}d",\n    monitor=None,\n')
        text = text.replace('quantity="single_p99_ms", at_most=20.0', 'quantity="single_p99_ms", at_most=2000.0')
        file.write_text(text.replace('baseline="prior")', 'baseline="prior", confidence=0.5)'))
    places, variable = evergreen_models.__path__, os.environ["EVERGREEN_MODELS"]
    os.environ["EVERGREEN_MODELS"] = os.pathsep.join([str(folder), *others])
    evergreen_models.__path__ = [str(folder), *others]
    _forget_models()
    try:
        yield
    finally:
        os.environ["EVERGREEN_MODELS"] = variable
        evergreen_models.__path__ = places
        _forget_models()


def _forget_models() -> None:
    loader.load_spec.cache_clear()
    for name in [name for name in sys.modules if name.startswith("evergreen_models.")]:
        del sys.modules[name]
