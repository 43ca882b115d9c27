"""Models of LightGBM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen.errors import ScoringError
from evergreen.scoring.lightgbm_file import parse_lightgbm
from evergreen.scoring.predictors.base import (
    Contributions,
    Predictor,
    check_contributions,
    check_transform,
    scoring_error,
    stable_message,
    to_float64,
)
from evergreen.scoring.predictors.categories import CategoryCodes
from evergreen.training.target_transform import undo_transform


class LightGBMPredictor(Predictor):
    """Trees in LightGBM's text format.

    Inputs are numbers, a missing one is NaN; or categories, whose mapping to codes is part of the file. An unseen one
    is missing, as LightGBM itself has it, unless the file says otherwise.
    """

    library = "lightgbm"
    mlflow_flavor = "lightgbm"
    is_positional = True

    def __init__(self, file: Path, threads: int | None = None):
        import lightgbm

        super().__init__(file, threads)
        data = file.read_bytes()
        try:
            content = parse_lightgbm(data)
            self.target_transform = check_transform(content.target_transform)
            self._codes = CategoryCodes(content.categories, content.unseen_categories or "missing")
        except ValueError as error:
            raise ScoringError(f"{file.name} {error}") from None
        try:
            self._booster = lightgbm.Booster(model_str=data.decode())
        except (lightgbm.basic.LightGBMError, ValueError, KeyError, TypeError) as error:  # also of its parameters
            raise ScoringError(f"{file.name} cannot be read: {stable_message(error, file)}") from None
        self.input_columns = content.feature_names
        # Of a random forest: its raw score and its contributions are sums all the same.
        self._averaged_rounds = self._booster.current_iteration() if b"\naverage_output\n" in data else 1
        self._threads = threads or 0  # 0: as many as there are cores

    def predict(self, table: pa.Table) -> NDArray[Any]:
        import lightgbm

        rows = self._to_rows(table)
        try:
            output = np.asarray(self._booster.predict(rows, num_threads=self._threads))
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise scoring_error(self._file, stable_message(error, self._file)) from None
        return undo_transform(self.target_transform, output) if self.target_transform else output

    def contributions(self, table: pa.Table) -> Contributions:
        import lightgbm

        rows = self._to_rows(table)
        try:
            parts = np.asarray(self._booster.predict(rows, pred_contrib=True, num_threads=self._threads))
            score = np.asarray(self._booster.predict(rows, raw_score=True, num_threads=self._threads))
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            problem = stable_message(error, self._file)
            raise ScoringError(f"{self._file.name}: LightGBM computes no contributions: {problem}") from None
        # One output after the other, each with its columns and its base.
        parts = parts.reshape(len(rows), -1, rows.shape[1] + 1) / self._averaged_rounds
        return check_contributions(self._file, parts, score.reshape(len(rows), -1) / self._averaged_rounds)

    def gains(self) -> Mapping[str, float]:
        gains = self._booster.feature_importance("gain")
        return {name: float(gain) for name, gain in zip(self.input_columns, gains, strict=True) if gain}

    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        predict = partial(self._booster.predict, self._to_rows(table), num_threads=self._threads)
        transform = self.target_transform
        return (lambda: undo_transform(transform, np.asarray(predict()))) if transform else predict

    def mlflow_type(self, name: str) -> str:
        return self._codes.mlflow_type(name) if name in self._codes else "double"

    def save_model_arguments(self) -> Mapping[str, Any]:
        return {"lgb_model": self._booster}

    @classmethod
    def pip_requirement(cls, environment: Mapping[str, str]) -> str:
        return f"lightgbm=={environment.get('lightgbm') or version('lightgbm')}"

    def _to_rows(self, table: pa.Table) -> NDArray[np.float64]:
        """Return the columns as LightGBM takes them: numbers of 64 bits, categories by their codes."""
        columns = self._codes.encode_columns(table, to_float64, self._file)
        return np.column_stack(columns).astype(np.float64)
