"""The site of the documentation builds without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.documents import DOCS

pytestmark = pytest.mark.integration


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", DOCS, tmp_path / "html"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert process.returncode == 0, process.stderr
    settings = (tmp_path / "html/reference/settings.html").read_text()
    assert "EVERGREEN_MAX_DAYS_PER_RUN" in settings
