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
from evergreen.spec.model import ModelSpec

SCORING_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Champion:
    """The version that held the alias when the run was planned; the run judges against it and no other."""

    version: str
    labels_until: date
    """It has seen no label of this day or later."""

    def overlap_problem(self, holdout_start: date) -> str | None:
        """Why it cannot be judged on a holdout that starts on this day; None if it can."""
        if self.labels_until <= holdout_start:
            return None
        return (
            f"version {self.version} has seen labels until {self.labels_until}, "
            f"the holdout starts {holdout_start}: it would be judged on what it learned"
        )


def score_table(folder: Path, table: pa.Table, feature_names: tuple[str, ...]) -> NDArray[np.float64]:
    """Probability of the label for each row of `table`, shape (n,), by the model in `folder`.

    Raises:
        ScoringError: no model that `load` gives, `table` lacks one of its columns or has one that it cannot take,
            or it does not give one number per row.
    """
    predictor = load_model(folder)
    if missing := sorted(set(feature_names) - set(table.column_names)):
        raise ScoringError(f"the holdout lacks {', '.join(missing)}, inputs of the model")
    predictor.check_columns(feature_names)
    inputs = table.select(list(feature_names))
    # In parts: a network needs many times its input while it computes.
    parts = [
        _predict_batch(predictor, inputs.slice(start, SCORING_BATCH_ROWS))
        for start in range(0, inputs.num_rows, SCORING_BATCH_ROWS)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _predict_batch(predictor: Predictor, inputs: pa.Table) -> NDArray[np.float64]:
    found = predictor.predict(inputs)
    if found.shape not in ((inputs.num_rows,), (inputs.num_rows, 1)):
        raise ScoringError(f"the model gives {list(found.shape)} numbers for {inputs.num_rows} rows, not one for each")
    scores = found.reshape(-1).astype(np.float64)
    if lost := int(np.count_nonzero(~np.isfinite(scores))):
        raise ScoringError(f"the model gives NaN or infinity for {lost:,} of {scores.size:,} rows")
    return scores


def score_candidate(model: ModelSpec, candidate: datasets.Manifest, table: pa.Table) -> NDArray[np.float64]:
    """Scores (n,) of `table` by a published candidate.

    Raises:
        ScoringError: as `score`.
    """
    with candidate_folder(model, candidate) as folder:
        return score_table(folder, table, tuple(candidate.inputs["features"]))


def model_file(folder: Path) -> Path:
    """The file of the model in `folder`, which is what its name says.

    Raises:
        ScoringError: it holds none of a known format, or several, or one that may not be loaded.
    """
    found = [folder / name for name in predictors.PREDICTORS if (folder / name).exists()]
    if not found:
        raise ScoringError(f"its folder holds no {' or '.join(predictors.PREDICTORS)}: nothing that can be scored")
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise ScoringError(f"its folder holds {names}, not one model: train it so that it leaves one")
    if problem := formats.format_problem(found[0].resolve()):
        raise ScoringError(f"{found[0].name} {problem[0]} → {problem[1]}")
    return found[0]


def load_model(folder: Path) -> Predictor:
    """The model in `folder`.

    Raises:
        ScoringError: as `model_file`, or it cannot be read.
    """
    return predictors.load_predictor(model_file(folder))


@contextmanager
def candidate_folder(model: ModelSpec, candidate: datasets.Manifest) -> Iterator[Path]:
    """The candidate's files under their own names: a published file is named by its content."""
    from evergreen.training import candidates

    source = candidates.candidate_dataset(model)
    with tempfile.TemporaryDirectory() as scratch:
        for name in candidate.files:
            (Path(scratch) / name).symlink_to(source.file_path(candidate, name).resolve())
        yield Path(scratch)
