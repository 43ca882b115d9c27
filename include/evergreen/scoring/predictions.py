"""Predicts rows of a training set with a candidate, or with a registered version."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen.errors import ScoringError
from evergreen.lake import datasets
from evergreen.scoring import formats, predictors
from evergreen.scoring.predictors import Predictor
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import PredictionType
from evergreen.training import candidates

SCORING_BATCH_ROWS = 65_536
SCORING_CODE = (
    "evergreen.scoring",
    # Of training, the code that predictions are computed with, too.
    *("evergreen.training.categories", "evergreen.training.early_stopping", "evergreen.training.target_transform"),
)
"""The packages and modules whose code decides a prediction, for `evergreen.lake.fingerprints.code_of`."""


@dataclass(frozen=True)
class Champion:
    """The champion by the ledger when the run was planned: the only one that the run compares with."""

    version: str
    labels_until: str
    """It was trained on no label of this day or later."""
    content: str = ""
    """The hash of its files by the ledger; empty for one that was never registered, such as that of a backtest."""
    accepted_change: str | None = None
    """Who has accepted that its inputs can no longer be made, and why; None if nobody has."""

    def overlap_problem(self, holdout_start: str) -> str | None:
        """Return why it cannot be judged on a holdout that starts on this day, or None."""
        if self.labels_until <= holdout_start:
            return None
        return (
            f"version {self.version} has seen labels until {self.labels_until}, "
            f"the holdout starts {holdout_start}: it would be judged on what it learned"
        )


class TableScorer:
    """A model that is loaded once, to score tables of the same columns one after the other."""

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        feature_names: tuple[str, ...],
        prediction: PredictionType | None = None,
    ) -> None:
        """Load the model in `folder`, for tables that have `columns`; without a `prediction`, it is a single number.

        Raises:
            ScoringError: it cannot be loaded, or takes other inputs.
        """
        self.predictor = load_model(folder)
        if missing := sorted(set(feature_names) - set(columns)):
            raise ScoringError(f"the holdout lacks {', '.join(missing)}, inputs of the model")
        self.predictor.check_columns(feature_names)
        self._feature_names = list(feature_names)
        self._prediction = prediction or PredictionType(kind="binary")

    def score(self, table: pa.Table) -> NDArray[np.float64]:
        """Return the prediction for each row, of a batch that fits in memory many times.

        It is (n,), or (n, outputs) of a kind with several numbers per row.

        Raises:
            ScoringError: the table has a column of a wrong type, or the model does not return the numbers of its kind.
        """
        rows, outputs = table.num_rows, len(self._prediction.outputs)
        shape = (rows, outputs) if outputs else (rows,)
        if not rows:
            return np.empty(shape)
        output = self.predictor.predict(table.select(self._feature_names))
        if output.shape not in ({shape} if outputs else {shape, (rows, 1)}):
            expected = f"{self._prediction.describe_outputs()}, for each" if outputs else "one for each"
            hint = ""
            if outputs == 2 and output.ndim == 1 and self.predictor.library == "onnxruntime":
                # Of a graph with several outputs this is the probability of the second class.
                hint = ": declare the kind `binary`, or let the graph return its probabilities and nothing beside them"
            raise ScoringError(f"the model returns {list(output.shape)} numbers for {rows} rows, not {expected}{hint}")
        scores: NDArray[np.float64] = output.reshape(shape).astype(np.float64)
        if invalid := int(np.count_nonzero(~np.isfinite(scores).reshape(rows, -1).all(axis=1))):
            raise ScoringError(f"the model returns NaN or infinity for {invalid:,} of {rows:,} rows")
        return scores


def score_table(
    folder: Path, table: pa.Table, feature_names: tuple[str, ...], prediction: PredictionType | None = None
) -> NDArray[np.float64]:
    """Return the predictions for the rows of `table`, as `TableScorer.score`, by the model in `folder`.

    Raises:
        ScoringError: the model cannot be loaded, `table` lacks one of its columns or has one of another type, or it
            does not return the numbers of its kind for each row.
    """
    scorer = TableScorer(folder, table.column_names, feature_names, prediction)
    # In batches: a network needs many times its input while it computes.
    starts = range(0, table.num_rows, SCORING_BATCH_ROWS)
    return np.concatenate([scorer.score(table.slice(n, SCORING_BATCH_ROWS)) for n in starts or [0]])


def score_candidate(model: ModelSpec, candidate: datasets.Manifest, table: pa.Table) -> NDArray[np.float64]:
    """Return the predictions for `table` by a published candidate; raises a ScoringError as `score_table` does."""
    with candidate_folder(model, candidate) as folder:
        return score_table(folder, table, tuple(candidate.inputs["features"]), model.prediction_type)


def model_file(folder: Path) -> Path:
    """Return the file of the model in `folder`, with content that matches its name.

    Raises:
        ScoringError: there is no file of a known format, or several, or one that is not allowed.
    """
    names = [name for name in predictors.PREDICTORS if (folder / name).exists()]
    if not names:
        raise ScoringError(f"its folder holds no {' or '.join(predictors.PREDICTORS)}: no model that can predict")
    if len(names) > 1:
        raise ScoringError(f"its folder holds {' and '.join(names)}, not one model: let train.py write one of them")
    if problem := formats.format_problem((folder / names[0]).resolve()):
        raise ScoringError(f"{names[0]} {problem[0]} → {problem[1]}")
    return folder / names[0]


def load_model(folder: Path, threads: int | None = None) -> Predictor:
    """Load the model in `folder`, to predict on this many threads; None leaves their number to the library.

    Raises:
        ScoringError: as in `model_file`, or it cannot be read.
    """
    file = model_file(folder)
    return predictors.PREDICTORS[file.name](file, threads)


def model_identity(candidate: datasets.Manifest) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what a verdict on the candidate is about: the SHA-256 of the model's files, and its input columns."""
    files = {name: file.sha256 for name, file in candidate.files.items() if name in predictors.PREDICTORS}
    return files, tuple(candidate.inputs["features"])


@contextmanager
def candidate_folder(model: ModelSpec, candidate: datasets.Manifest) -> Iterator[Path]:
    """Yield a folder with the candidate's files under their own names: a published file is named by its content."""
    source = candidates.candidate_dataset(model)
    with tempfile.TemporaryDirectory() as scratch:
        for name in candidate.files:
            (Path(scratch) / name).symlink_to(source.file_path(candidate, name).resolve())
        yield Path(scratch)
