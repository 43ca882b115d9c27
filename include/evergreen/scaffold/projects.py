"""The skeleton of a project: what `evergreen` and Airflow need before there is a model."""

from __future__ import annotations

import shlex
from configparser import ConfigParser, Error
from pathlib import Path

from evergreen.scaffold.rendering import template_environment

_TEMPLATES = {
    "models/.gitkeep": "",
    "{dags}/.gitkeep": "",
    "feature_repo/feature_store.yaml": "feature_store.yaml",
    "tests/conftest.py": "conftest.py.j2",
    ".gitignore": "gitignore.j2",
    ".env": "env.j2",
    "README.md": "README.md.j2",
}
KEPT_ADVICE = {
    ".gitignore": "add the lines `.evergreen` and `.env`: data and settings of one machine",
    ".env": "add EVERGREEN_PROJECT, the folder as Airflow's processes see it",
}
"""What to do about a file that was there."""


def project_files(project: Path) -> dict[str, str]:
    """Return the files of a project's skeleton, by path relative to it."""
    dags = dags_folder(project)
    values = {"project": str(project), "quoted_project": shlex.quote(str(project)), "dags": dags}
    environment = template_environment()
    return {
        path.format(dags=dags): environment.get_template(f"project/{template}").render(values) if template else ""
        for path, template in _TEMPLATES.items()
    }


def dags_folder(project: Path) -> str:
    """Return the folder of DAG files, relative to the project: the one that its airflow.cfg names, or `dags`."""
    file = project / "airflow.cfg"
    parser = ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(file.read_text())
        named = parser.get("core", "dags_folder", fallback="dags")
        return (project / named).resolve().relative_to(project.resolve()).as_posix()
    except (OSError, Error, UnicodeDecodeError, ValueError):  # there is none, or it names a folder elsewhere
        return "dags"
