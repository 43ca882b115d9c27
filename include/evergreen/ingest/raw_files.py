"""Where raw files are delivered: one per source and day."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from evergreen.lake.datasets import day_partition
from evergreen.settings import settings


def raw_folder() -> Path:
    """Where raw drops are delivered."""
    return settings().lake / "raw"


def raw_file(source: str, day: date | None = None) -> Path:
    """Where the raw drop of `source` lies: one file per day, or one for all days if `day` is None."""
    folder = raw_folder() / source
    return (folder / day_partition(day) if day else folder) / f"{source}.parquet"
