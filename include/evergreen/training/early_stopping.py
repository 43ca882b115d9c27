"""Early stopping of XGBoost: a model's file ends with the round that was best.

XGBoost keeps the rounds after it, and the number of the best one as an attribute that only some readers heed: MLflow's
do not. What is left out of the file is used by nobody. LightGBM's own `save_model` does the same.

xgboost is imported where it is used: Airflow's processes import this package, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xgboost

XGBOOST_FILE = "model.ubj"

_BEST_ITERATION = "best_iteration"
_NO_CATEGORIES = '"cats":{"enc":[],"feature_segments":[],"sorted_idx":[]}'


def count_best_rounds(booster: xgboost.Booster) -> int | None:
    """Return how many rounds there are up to the best one; None if training did not look for it.

    None for a linear model, too: its rounds change the same weights, and only those of the last one are kept.

    Raises:
        ValueError: its attribute is no number of a round.
    """
    text = booster.attr(_BEST_ITERATION)
    if text is None or json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] == "gblinear":
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) >= booster.num_boosted_rounds():
        raise ValueError(f"has the best round {text[:20]!r} of {booster.num_boosted_rounds():,}")
    return int(text) + 1


def cut_to_best_round(file: Path) -> None:
    """Write the model in `file` (`model.ubj`) again without the rounds after the best one, if it has some.

    The trainer's process does this for each `model.ubj` that `fit` leaves.

    Raises:
        ValueError: the attribute for the best round is invalid.
        xgboost.core.XGBoostError: the file cannot be read.
    """
    import xgboost

    booster = xgboost.Booster(model_file=file)
    rounds = count_best_rounds(booster)
    if rounds is None or rounds == booster.num_boosted_rounds():
        return
    cut = booster[:rounds]
    # A slice loses the categories (XGBoost 3.2), without an error: the same text would then get other codes.
    document = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]
    categories = document.get("gbtree", document)["model"].get("cats", {})
    if categories.get("enc"):
        text = cut.save_raw("json").decode()
        whole = text.replace(_NO_CATEGORIES, f'"cats":{json.dumps(categories)}', 1)
        if whole == text:
            raise ValueError(
                "keeps its categories in a place that is not known: this version of XGBoost is not supported"
            )
        cut = xgboost.Booster(model_file=bytearray(whole.encode()))
    cut.set_attr(**booster.attributes())
    cut.save_model(file)
