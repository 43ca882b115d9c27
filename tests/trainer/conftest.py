"""Tests that need PyTorch. They run in the environment that trains: .trainer/bin/python -m pytest tests/trainer"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from support.training_data import table, write

if find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file whose windows hold two row groups, so that batches start in one window and end in the next."""
    return write(table(4_000), tmp_path_factory.mktemp("data") / "train.parquet", group_rows=450)
