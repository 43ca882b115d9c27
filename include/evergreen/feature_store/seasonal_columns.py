"""The file of a training set or look with the seasonal naive forecast of each row of its holdout."""

from __future__ import annotations

from pathlib import Path

from evergreen.lake import datasets

SEASONAL_FILE = "seasonal"
NAIVE_COLUMN, SCALE_COLUMN = "naive", "scale"


def seasonal_file(dataset: datasets.Dataset, examples: datasets.Manifest) -> Path | None:
    """Return the file; None of models of another kind than forecasts."""
    return dataset.file_path(examples, SEASONAL_FILE) if SEASONAL_FILE in examples.files else None
