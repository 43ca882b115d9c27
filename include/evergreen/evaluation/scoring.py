"""Predictions of a candidate, or of a registered version, for rows of a training set."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen import lake
from evergreen.errors import ScoringError
from evergreen.model import Model

if TYPE_CHECKING:
    import xgboost


@dataclass(frozen=True)
class Champion:
    """The version that held the alias when the run was planned; the run judges against it and no other."""

    version: str
    seen_until: date
    """It has seen no label of this day or later."""

    def has_seen(self, holdout_starts: date) -> str | None:
        """Why it cannot be judged on a holdout that starts on this day; None if it can."""
        if self.seen_until <= holdout_starts:
            return None
        return (
            f"version {self.version} has seen labels until {self.seen_until}, "
            f"the holdout starts {holdout_starts}: it would be judged on what it learned"
        )


def score(folder: Path, table: pa.Table, features: tuple[str, ...]) -> NDArray[np.float64]:
    """Probability of the label for each row of `table`, shape (n,), by the model in `folder`.

    Only formats that cannot run code on loading are known.

    Raises:
        ScoringError: no known model file, unreadable, or the table lacks one of its columns.
    """
    file = model_file(folder)
    if missing := sorted(set(features) - set(table.column_names)):
        raise ScoringError(f"the holdout lacks {', '.join(missing)}, inputs of the model in {folder.name}")
    import xgboost

    try:
        booster = xgboost.Booster(model_file=file)
        data = xgboost.DMatrix(table.select(list(features)).to_pandas())
        return np.asarray(booster.predict(data), dtype=np.float64)
    except (xgboost.core.XGBoostError, ValueError) as error:
        raise ScoringError(f"{file.name} cannot score the holdout: {str(error).splitlines()[0]}") from None


def score_candidate(model: Model, candidate: lake.Manifest, table: pa.Table) -> NDArray[np.float64]:
    """Scores (n,) of `table` by a published candidate.

    Raises:
        ScoringError: as `score`.
    """
    with candidate_folder(model, candidate) as folder:
        return score(folder, table, tuple(candidate.inputs["features"]))


def model_file(folder: Path) -> Path:
    """The file of the model in `folder`.

    Raises:
        ScoringError: it holds none of a known format.
    """
    file = folder / "model.ubj"
    if not file.exists():
        raise ScoringError(f"{folder} holds no model.ubj: no model that can be scored")
    return file


def load(folder: Path) -> xgboost.Booster:
    """The model in `folder`.

    Raises:
        ScoringError: it holds none, or it cannot be read.
    """
    import xgboost

    file = model_file(folder)
    try:
        return xgboost.Booster(model_file=file)
    except (xgboost.core.XGBoostError, ValueError) as error:
        raise ScoringError(f"{file.name} cannot be read: {str(error).splitlines()[0]}") from None


@contextmanager
def candidate_folder(model: Model, candidate: lake.Manifest) -> Iterator[Path]:
    """The candidate's files under their own names: a published file is named by its content."""
    from evergreen.training import local

    source = local.dataset(model)
    with tempfile.TemporaryDirectory() as scratch:
        for name in candidate.files:
            (Path(scratch) / name).symlink_to(source.path(candidate, name).resolve())
        yield Path(scratch)
