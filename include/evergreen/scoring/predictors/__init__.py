"""Loads models and predicts: one class per file format, chosen by the name of the model's file.

To add a format, add a class here and a check of its files in `evergreen.scoring.formats`.
"""

from collections.abc import Mapping

from evergreen.scoring.predictors.base import Contributions, Predictor
from evergreen.scoring.predictors.lightgbm_predictor import LightGBMPredictor
from evergreen.scoring.predictors.onnx_predictor import OnnxPredictor
from evergreen.scoring.predictors.xgboost_predictor import XGBoostPredictor

PREDICTORS: Mapping[str, type[Predictor]] = {
    "model.ubj": XGBoostPredictor,
    "model.lgb": LightGBMPredictor,
    "model.onnx": OnnxPredictor,
}

__all__ = ["PREDICTORS", "Contributions", "Predictor"]
