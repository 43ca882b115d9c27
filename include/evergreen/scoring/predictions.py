"""Predictions of a candidate, or of a registered version, for rows of a training set."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen.errors import ScoringError
from evergreen.lake import datasets
from evergreen.scoring import formats, predictors
from evergreen.scoring.predictors import Predictor
from evergreen.spec.model import Model

ROWS_AT_ONCE = 65_536


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

    Raises:
        ScoringError: no model that `load` gives, `table` lacks one of its columns or has one that it cannot take,
            or it does not give one number per row.
    """
    predictor = load(folder)
    if missing := sorted(set(features) - set(table.column_names)):
        raise ScoringError(f"the holdout lacks {', '.join(missing)}, inputs of the model")
    predictor.expect(features)
    inputs = table.select(list(features))
    # In parts: a network needs many times its input while it computes.
    parts = [
        _probabilities(predictor, inputs.slice(start, ROWS_AT_ONCE))
        for start in range(0, inputs.num_rows, ROWS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _probabilities(predictor: Predictor, inputs: pa.Table) -> NDArray[np.float64]:
    found = predictor.predict(inputs)
    if found.shape not in ((inputs.num_rows,), (inputs.num_rows, 1)):
        raise ScoringError(
            f"the model gives {list(found.shape)} numbers for {inputs.num_rows} rows, not one for each"
        )
    scores = found.reshape(-1).astype(np.float64)
    if lost := int(np.count_nonzero(~np.isfinite(scores))):
        raise ScoringError(f"the model gives NaN or infinity for {lost:,} of {scores.size:,} rows")
    return scores


def score_candidate(model: Model, candidate: datasets.Manifest, table: pa.Table) -> NDArray[np.float64]:
    """Scores (n,) of `table` by a published candidate.

    Raises:
        ScoringError: as `score`.
    """
    with candidate_folder(model, candidate) as folder:
        return score(folder, table, tuple(candidate.inputs["features"]))


def model_file(folder: Path) -> Path:
    """The file of the model in `folder`, which is what its name says.

    Raises:
        ScoringError: it holds none of a known format, or several, or one that may not be loaded.
    """
    found = [folder / name for name in predictors.BY_NAME if (folder / name).exists()]
    if not found:
        raise ScoringError(
            f"its folder holds no {' or '.join(predictors.BY_NAME)}: nothing that can be scored"
        )
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise ScoringError(f"its folder holds {names}, not one model: train it so that it leaves one")
    if problem := formats.problem(found[0].resolve()):
        raise ScoringError(f"{found[0].name} {problem[0]} → {problem[1]}")
    return found[0]


def load(folder: Path) -> Predictor:
    """The model in `folder`.

    Raises:
        ScoringError: as `model_file`, or it cannot be read.
    """
    return predictors.load(model_file(folder))


@contextmanager
def candidate_folder(model: Model, candidate: datasets.Manifest) -> Iterator[Path]:
    """The candidate's files under their own names: a published file is named by its content."""
    from evergreen.training import candidates

    source = candidates.dataset(model)
    with tempfile.TemporaryDirectory() as scratch:
        for name in candidate.files:
            (Path(scratch) / name).symlink_to(source.path(candidate, name).resolve())
        yield Path(scratch)
