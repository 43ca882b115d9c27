"""The tutorial, executed block by block as it is written, in an empty folder, with the wheel that is released."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from support.tutorials import TUTORIAL, Block, assert_shown, read_blocks

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PASSED_VARIABLES = ("PATH", "HOME", "LANG", "JAVA_HOME")
INSTALLATION = "## Install"
"""The section whose commands the fixture `installed` stands for."""


class Reader:
    """Somebody who does what the page says."""

    def __init__(self, folder: Path, python: Path):
        self.folder = folder / "empty"
        self.folder.mkdir()
        self._folder_file = folder / "folder"  # where the last command has gone to
        variables = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
        self._variables = variables | {"PATH": f"{python.parent}{os.pathsep}{variables['PATH']}"}
        self._output = ""

    def follow(self, block: Block) -> None:
        match block.language:
            case "console":
                self._output = "".join(self.run(line.removeprefix("$ ")) for line in block.text.splitlines())
            case "text":
                assert_shown(block.text, self._output)
            case "python":
                [name] = re.findall(r"\A# (\w+\.py)$", block.text, re.MULTILINE)
                (self.folder / name).write_text(block.text)
            case _:
                raise AssertionError(f"nobody can follow a block of {block.language}")

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f'{command}\npwd > "$0"', self._folder_file],
            cwd=self.folder,
            env=self._variables,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}{done.stderr[-4000:]}"
        self.folder = Path(self._folder_file.read_text().strip())
        return done.stdout


def test_the_tutorial_shows_what_happens(installed: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path, installed)
    try:
        for block in read_blocks(TUTORIAL.read_text()):
            if block.section != INSTALLATION:
                reader.follow(block)
    finally:
        reader.run("evergreen down")
