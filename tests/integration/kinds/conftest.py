"""A home with a registry that has no models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def home(home: Path, empty_database: Path) -> Path:
    home.mkdir()
    shutil.copy(empty_database, home)
    return home
