"""A home with a registry that has no models, for the conftest of a folder of integration tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def home(home: Path, empty_database: Path) -> Path:
    home.mkdir()
    shutil.copy(empty_database, home)
    return home
