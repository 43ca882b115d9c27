"""Projects and models that `evergreen init` and `evergreen new` write, and samples to write them from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.settings import settings
from support.small_models import forget_model

START = datetime(2026, 3, 2, 6, tzinfo=UTC)  # a Monday


class Project:
    """A project of its own, that the settings of this process name."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *arguments: str | Path, code: int = 0) -> Result:
        """Run a command of `evergreen`."""
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result

    def new(self, model: str, sample: Path | str, *arguments: str, code: int = 0) -> Result:
        """Write a model from a sample."""
        result = self.run("new", model, "--from", sample, "--owner", "shop", *arguments, code=code)
        forget_model(model)
        return result


def make_project(folder: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]) -> Project:
    """Write the skeleton of a project, and let this process use it, and no other model."""
    project = Project(folder)
    project.run("init", folder)
    monkeypatch.setenv("EVERGREEN_PROJECT", str(folder))
    monkeypatch.delenv("EVERGREEN_FEATURE_REPO", raising=False)
    monkeypatch.delenv("EVERGREEN_HOME", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    use_models(folder / "models", only=True)
    settings.cache_clear()
    return project


def order_lines(days: int = 30, rows_per_day: int = 120, seed: int = 19) -> pa.Table:
    """Return order lines of a shop: names as people write them, nulls, a leak, and a label that can be learned."""
    random, count = np.random.default_rng(seed), days * rows_per_day
    seconds = np.sort(random.choice(days * 86_400, count, replace=False))
    price, discount = random.uniform(1, 80, count), random.choice([0.0, 0.2, 0.5], count)
    store = random.choice(["Köln Süd", 'O"Fallon', "東京", "Łódź"], count)
    profit = (0.3 - discount + 0.15 * (store == "東京") + random.normal(0, 0.1, count)) * price
    columns: dict[str, Any] = {
        "Line ID": [f"L{number:06}" for number in range(count)],
        "sold at": pa.array([START + timedelta(seconds=int(s)) for s in seconds], pa.timestamp("ns", "Europe/Berlin")),
        "Store": store,
        "article_no": random.integers(1000, 1040, count),
        "select": random.choice(["web", "app", None], count),  # a word of SQL
        "Price €": price,
        'it\'s `odd`, \\ "quoted"': random.integers(0, 9, count).astype("int16"),
        "rabatt": discount,
        "gift": random.random(count) < 0.1,
        "notes": [None] * count,
        "profit": profit,
        "loss": np.where(profit < 0, "yes", "no"),
    }
    return pa.table(columns)
