"""Models of XGBoost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen.errors import ScoringError
from evergreen.scoring.predictors.base import (
    Contributions,
    Predictor,
    check_contributions,
    check_transform,
    scoring_error,
    stable_message,
    to_float32,
)
from evergreen.scoring.predictors.categories import CategoryCodes
from evergreen.scoring.xgboost_file import parse_xgboost
from evergreen.training.categories import UNSEEN_ATTRIBUTE
from evergreen.training.early_stopping import count_best_rounds
from evergreen.training.target_transform import TRANSFORM_ATTRIBUTE, undo_transform


class XGBoostPredictor(Predictor):
    """Trees, or a linear model, in UBJSON.

    Inputs are numbers, a missing one is NaN; or categories, whose mapping to codes is part of the file. The file ends
    with the best round where training stopped early, so that each reader predicts the same.
    """

    library = "xgboost"
    mlflow_flavor = "xgboost"
    is_positional = True

    def __init__(self, file: Path, threads: int | None = None):
        import xgboost

        super().__init__(file, threads)
        try:
            self._booster = xgboost.Booster({"nthread": threads} if threads else None, model_file=file)
            best_rounds = count_best_rounds(self._booster)
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise ScoringError(f"{file.name} cannot be read: {stable_message(error, file)}") from None
        self.input_columns = tuple(self._booster.feature_names or ())
        rounds = self._booster.num_boosted_rounds()
        if best_rounds and best_rounds < rounds:
            raise ScoringError(
                f"{file.name} goes on for {rounds - best_rounds} rounds after the best one, which other readers of the "
                "file would use: train it again, or write it by `evergreen.training.early_stopping.cut_to_best_round`"
            )
        if self._objective() == "multi:softmax":
            raise ScoringError(f"{file.name} predicts a class and no probabilities: train with multi:softprob")
        try:
            self.target_transform = check_transform(self._booster.attr(TRANSFORM_ATTRIBUTE))
            self._codes = CategoryCodes(self._categories(file), self._booster.attr(UNSEEN_ATTRIBUTE) or "error")
        except ValueError as error:
            raise ScoringError(f"{file.name} {error}") from None

    def predict(self, table: pa.Table) -> NDArray[Any]:
        import xgboost

        rows = self._to_rows(table)
        try:
            output = self._booster.predict(xgboost.DMatrix(rows, feature_names=table.column_names))
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise scoring_error(self._file, stable_message(error, self._file)) from None
        return undo_transform(self.target_transform, output) if self.target_transform else output

    def contributions(self, table: pa.Table) -> Contributions:
        import xgboost

        rows = xgboost.DMatrix(self._to_rows(table), feature_names=table.column_names)
        try:
            parts = self._booster.predict(rows, pred_contribs=True, strict_shape=True)
            score = self._booster.predict(rows, output_margin=True, strict_shape=True)
        except (xgboost.core.XGBoostError, ValueError) as error:
            problem = stable_message(error, self._file)
            raise ScoringError(f"{self._file.name}: XGBoost computes no contributions: {problem}") from None
        return check_contributions(self._file, parts, score)

    def gains(self) -> Mapping[str, float] | None:
        import xgboost

        try:
            gains = self._booster.get_score(importance_type="total_gain")
        except xgboost.core.XGBoostError:  # of a linear model
            return None
        return {name: float(np.sum(gain)) for name, gain in gains.items()}

    def prepare_request(self, table: pa.Table) -> Callable[[], object]:
        rows, transform = self._to_rows(table), self.target_transform
        if transform:
            return lambda: undo_transform(transform, self._booster.inplace_predict(rows))
        return partial(self._booster.inplace_predict, rows)

    def mlflow_type(self, name: str) -> str:
        return self._codes.mlflow_type(name) if name in self._codes else "double"

    def save_model_arguments(self) -> Mapping[str, Any]:
        return {"xgb_model": self._booster, "model_format": "ubj"}

    @classmethod
    def pip_requirement(cls, environment: Mapping[str, str]) -> str:
        # Wheels with and without CUDA have two names; the server chooses one.
        for name in ("xgboost-cpu", "xgboost"):
            if name in environment:
                return f"xgboost=={environment[name]}"
        import xgboost

        return f"xgboost=={xgboost.__version__}"

    def _objective(self) -> str:
        config = json.loads(self._booster.save_config())
        return str(config["learner"]["learner_train_param"]["objective"])

    def _categories(self, file: Path) -> dict[str, pa.Array]:
        """Return the categories of each column that has some."""
        if "c" not in (self._booster.feature_types or ()) or not self.input_columns:
            return {}
        categories = parse_xgboost(file.read_bytes()).categories
        return {
            name: values for name, values in zip(self.input_columns, categories, strict=False) if values is not None
        }

    def _to_rows(self, table: pa.Table) -> NDArray[np.float32]:
        """Return what the library itself makes of the columns of an Arrow table. pandas has other nulls."""
        columns = self._codes.encode_columns(table, to_float32, self._file)
        return np.column_stack(columns)
