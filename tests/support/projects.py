"""A repository with DAG files for more models than those that ship."""

from __future__ import annotations

from pathlib import Path

from evergreen.settings import REPOSITORY

_SHARED = ("feature_repo", "trainer", ".trainer", "plugins")


def make_project(folder: Path, *models: str) -> Path:
    """Return a folder with the DAG files of the models that ship and of `models`; all else is this repository's."""
    (folder / "dags").mkdir(parents=True)
    for name in _SHARED:
        (folder / name).symlink_to(REPOSITORY / name)
    text = (REPOSITORY / "dags/flight_delay.py").read_text()
    for model in ("flight_delay", "flight_delay_net", *models):
        (folder / "dags" / f"{model}.py").write_text(text.replace("flight_delay", model))
    return folder
