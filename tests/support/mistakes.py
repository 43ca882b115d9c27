"""Common mistakes, each one edit of a model as `evergreen new` writes it, and what `evergreen check` says of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from evergreen.cli.check.locations import ModelFault
from support.scaffolds import Project, make_project, order_lines
from support.small_models import UseModels, forget_model

MODEL = "margin"
SPEC, FEATURES, TRAIN = (f"models/{MODEL}/{name}.py" for name in ("model", "features", "train"))
RULES, FEAST = f"models/{MODEL}/expectations.py", f"feature_repo/{MODEL}.py"


class Mistake(NamedTuple):
    """An edit of a file, and the one fault that it is."""

    file: str
    old: str
    new: str
    """Instead of `old`; if both are empty, the file is removed."""
    problem: str
    """What is there, and what may be there."""
    fix: str
    line: str | None
    """Text in the line of the fault; None if it is about a whole file."""


def write_model(folder: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels, days: int = 8) -> Project:
    """Write the model, and deliver its raw data, from 2026-03-02 on."""
    project = make_project(folder, monkeypatch, use_models)
    sample = folder.with_suffix(".parquet")
    pq.write_table(order_lines(days=days), sample)
    project.new(MODEL, sample, "--label", "loss", "--deliver")
    return project


def make_mistake(project: Project, mistake: Mistake) -> None:
    file = project.folder / mistake.file
    if not mistake.old:
        file.unlink()
    else:
        text = file.read_text()
        assert text.count(mistake.old) == 1, text
        file.write_text(text.replace(mistake.old, mistake.new))
    forget_model(MODEL)


def assert_is_named(project: Project, mistake: Mistake, faults: list[ModelFault]) -> None:
    """Check that the mistake is one fault, with its file, its line, and a fix."""
    [fault] = faults
    assert mistake.problem in fault.problem
    assert mistake.fix in fault.fix
    assert fault.fix, "says what to do"
    file = project.folder / mistake.file
    assert fault.file == file
    if mistake.line is None:
        assert fault.line is None
    else:
        assert fault.line
        assert mistake.line in file.read_text().splitlines()[fault.line - 1]
