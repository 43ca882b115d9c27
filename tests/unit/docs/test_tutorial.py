"""What of the tutorial needs no engine: the model that it writes, and how output is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.scaffolds import make_project
from support.tutorials import TUTORIAL, assert_shown, read_blocks

pytestmark = pytest.mark.unit


def test_the_command_of_the_page_writes_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]
) -> None:
    blocks = list(read_blocks(TUTORIAL.read_text()))
    [command] = [
        line.split() for block in blocks for line in block.text.splitlines() if line.startswith("$ evergreen new")
    ]
    shown = next(block.text for block in blocks if block.section == "## Write a model" and block.language == "text")
    project = make_project(tmp_path / "rain", monkeypatch, use_models)
    monkeypatch.chdir(project.folder)
    project.run("tutorial-data")
    assert_shown(shown, project.run(*command[2:]).output)


@pytest.mark.parametrize(
    ("expected", "is_shown"),
    [
        ("a gate  1.25 ✓", True),
        ("a gate 9.99 ✓\nchampion: version 2", True),
        ("a gate … ✓\n…\nchampion: …", True),
        ("a gate 1.25 ✗", False),
        ("champion: version 1", False),
        ("champion: version 2\na gate 1.25 ✓", False),
        ("a gate 1 ✓", False),
    ],
)
def test_output_is_compared_but_for_decimals(expected: str, is_shown: bool) -> None:
    output = "│ a gate │ −0.73 │ ✓ │\nmore\nchampion: version 2\n"
    if is_shown:
        assert_shown(expected, output)
    else:
        with pytest.raises(AssertionError):
            assert_shown(expected, output)
