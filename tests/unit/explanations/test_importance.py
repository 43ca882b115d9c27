"""Importance finds the input that matters, of each format, and names what it could not measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from evergreen.errors import ScoringError
from evergreen.explanations.importance import Limits, group_inputs, measure_model, permute_inputs
from evergreen.explanations.importance_record import ModelImportance
from evergreen.scoring.predictions import TableScorer
from evergreen.scoring.predictors.base import check_contributions
from evergreen.spec.prediction_type import PredictionType
from evergreen.training.sklearn_onnx import pipeline_frame, save_pipeline

pytestmark = pytest.mark.unit

ROWS = 1500
_RANDOM = np.random.default_rng(11)
SHOPS = np.array(["Nord", "South, West", "-"])
TABLE = pa.table(
    {
        "size": _RANDOM.normal(size=ROWS),
        "shop": SHOPS[_RANDOM.integers(3, size=ROWS)],
        "noise": _RANDOM.normal(size=ROWS),
    }
)
_SCORE = 2 * TABLE["size"].to_numpy() + 2 * (TABLE["shop"].to_numpy() == "Nord")
LABEL = (_SCORE + _RANDOM.normal(size=ROWS) > 0).astype(float)
CLASSES = (LABEL + (_SCORE > 2)).astype(float)
COLUMNS = tuple(TABLE.column_names)
THREE = PredictionType(kind="multiclass", classes=("low", "middle", "high"))


def frame() -> pd.DataFrame:
    return TABLE.to_pandas().assign(shop=lambda rows: rows["shop"].astype("category"))


def save_xgboost(folder: Path, label: Any = LABEL, **settings: Any) -> None:
    data = xgboost.DMatrix(frame(), label=label, enable_categorical=True)
    settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1} | settings
    xgboost.train(settings, data, 25).save_model(folder / "model.ubj")


def save_lightgbm(folder: Path, label: Any = LABEL, **settings: Any) -> None:
    settings = {"objective": "binary", "num_leaves": 8, "num_threads": 1, "verbose": -1} | settings
    data = lightgbm.Dataset(frame(), label)
    lightgbm.train(settings, data, 25).save_model(folder / "model.lgb")


def save_onnx(folder: Path, label: Any = LABEL) -> None:
    steps = make_column_transformer((OneHotEncoder(), ["shop"]), remainder="passthrough")
    save_pipeline(make_pipeline(steps, LogisticRegression()).fit(pipeline_frame(TABLE), label), TABLE, folder)


def auc(scores: Any) -> float:
    return float(roc_auc_score(LABEL, scores))


def measure(folder: Path, prediction: PredictionType | None = None, **options: Any) -> ModelImportance:
    scorer = TableScorer(folder, COLUMNS, COLUMNS, prediction)
    arguments: dict[str, Any] = {
        "score": scorer.score,
        "metric": auc,
        "table": TABLE,
        "groups": {},
        "higher_is_better": True,
        "seed": 3,
    }
    return measure_model(scorer.predictor, **arguments | options)


@pytest.mark.parametrize("save", [save_xgboost, save_lightgbm, save_onnx])
def test_inputs_that_matter_come_before_noise(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path)
    measured = measure(tmp_path)
    size, shop, noise = measured.inputs
    assert measured.problems == ()
    assert measured.metric == pytest.approx(auc(TableScorer(tmp_path, COLUMNS, COLUMNS).score(TABLE)))
    assert [item.name for item in measured.inputs] == list(COLUMNS)
    assert size.permutation is not None
    assert shop.permutation is not None
    assert noise.permutation is not None
    assert size.permutation > shop.permutation > 0.02
    assert abs(noise.permutation) < 0.02
    assert size.deviation
    assert 0 < size.deviation < size.permutation
    if save is save_onnx:
        assert all(item.gain is None and item.contribution is None for item in measured.inputs)
        return
    assert sum(item.gain or 0 for item in measured.inputs) == pytest.approx(1)
    for name in ("gain", "contribution"):
        values = [getattr(item, name) for item in measured.inputs]
        assert values[0] > values[1] > values[2]
    assert measured.explained_rows == ROWS
    assert measure(tmp_path, limits=Limits(permutations=1, explained_rows=100)).explained_rows == 100


@pytest.mark.parametrize(
    ("save", "settings"),
    [
        (save_xgboost, {"objective": "multi:softprob", "num_class": 3}),
        (save_lightgbm, {"objective": "multiclass", "num_class": 3}),
        (save_onnx, {}),
    ],
)
def test_several_classes(save: Callable[..., None], settings: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path, CLASSES, **settings)
    measured = measure(tmp_path, THREE, metric=lambda scores: float(log_loss(CLASSES, scores)), higher_is_better=False)
    size, shop, noise = (item.permutation for item in measured.inputs)
    assert measured.problems == ()
    assert size is not None
    assert shop is not None
    assert noise is not None
    assert size > shop > 0.1
    assert noise < 0.1
    if save is not save_onnx:
        contributions = [item.contribution or 0 for item in measured.inputs]
        assert contributions[0] > contributions[1] > contributions[2] > 0


def test_the_columns_of_a_group_are_permuted_together(tmp_path: Path) -> None:
    """Each of two copies of a column says what the other one says, so neither matters alone."""
    table = TABLE.append_column("size_again", TABLE["size"])

    def score(rows: pa.Table) -> Any:
        return np.maximum(rows["size"].to_numpy(), rows["size_again"].to_numpy())

    def drops(groups: dict[str, list[str]]) -> dict[str, float]:
        inputs = group_inputs(table.column_names, groups)
        found = permute_inputs(score, auc, table, inputs, True, 1, Limits(permutations=2))
        return {name: float(np.mean(values)) for name, values in found.items()}

    alone, together = drops({}), drops({"both": ["size", "size_again"]})
    assert list(together) == ["both", "shop", "noise"]
    assert together["both"] == pytest.approx(auc(score(table)) - 0.5, abs=0.03)
    assert together["both"] > 1.2 * max(alone["size"], alone["size_again"])
    assert together["noise"] == 0


def test_a_view_stands_for_its_features() -> None:
    columns = ["weather__wind", "distance", "weather__rain", "weather_at_night__wind"]
    assert group_inputs(columns, {"sky": ["weather", "absent"]}) == {
        "sky": ["weather__wind", "weather__rain"],
        "distance": ["distance"],
        "weather_at_night__wind": ["weather_at_night__wind"],
    }


def test_the_same_seed_gives_the_same_numbers_and_another_others(tmp_path: Path) -> None:
    save_xgboost(tmp_path)
    assert measure(tmp_path) == measure(tmp_path)
    assert measure(tmp_path) != measure(tmp_path, seed=4)


def test_what_there_was_no_time_for_is_named(tmp_path: Path) -> None:
    save_xgboost(tmp_path)
    ticks: Iterator[int] = iter(range(1000))
    measured = measure(tmp_path, limits=Limits(seconds=2, clock=lambda: next(ticks)))
    assert [item.permutation is not None for item in measured.inputs] == [True, True, False]
    assert [item.deviation for item in measured.inputs] == [None] * 3
    assert measured.problems == ("1 of 3 inputs were not permuted within 2 s",)
    assert measured.explained_rows == 32 + 64
    assert all(item.contribution for item in measured.inputs)


def test_errors_of_a_model_and_of_a_metric_are_problems(tmp_path: Path) -> None:
    save_xgboost(tmp_path)

    def fail(scores: Any) -> float:
        raise ZeroDivisionError("no such day")

    measured = measure(tmp_path, metric=fail)
    assert measured.problems == ("nothing was permuted: ZeroDivisionError: no such day",)
    assert all(item.permutation is None and item.gain for item in measured.inputs)
    assert measure(tmp_path, metric=lambda _: None).problems == (
        "nothing was permuted: ValueError: the metric does not exist for these rows",
    )
    broken = measure(tmp_path, table=TABLE.set_column(1, "shop", pa.array(np.arange(ROWS))))
    assert [problem.partition(":")[0] for problem in broken.problems] == [
        "nothing was permuted",
        "there are no contributions",
    ]
    assert all("shop is int64, and its categories are string" in problem for problem in broken.problems)


@pytest.mark.parametrize(
    ("save", "settings"),
    [
        (save_xgboost, {}),
        (save_xgboost, {"booster": "dart", "rate_drop": 0.3}),
        (save_xgboost, {"objective": "count:poisson"}),
        (save_xgboost, {"objective": "multi:softprob", "num_class": 2}),
        (save_xgboost, {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]}),
        (save_lightgbm, {}),
        (save_lightgbm, {"boosting": "dart"}),
        (save_lightgbm, {"objective": "poisson"}),
        (save_lightgbm, {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
        (save_lightgbm, {"objective": "multiclass", "num_class": 2}),
    ],
)
def test_contributions_add_up_to_the_score(save: Callable[..., None], settings: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path, **settings)
    predictor = TableScorer(tmp_path, COLUMNS, COLUMNS, None).predictor
    rows = TABLE.slice(0, 50)
    parts = predictor.contributions(rows)
    assert parts is not None
    assert parts.values.shape[::2] == (50, len(COLUMNS))
    assert parts.values.sum(axis=2) + parts.base == pytest.approx(parts.score, abs=1e-4)
    assert np.abs(parts.values).max() > 0.05
    predicted = predictor.predict(rows).reshape(50, -1)
    objective = settings.get("objective", "binary")
    if objective == "binary":
        assert 1 / (1 + np.exp(-parts.score)) == pytest.approx(predicted, abs=1e-5)
    elif "poisson" in objective:
        assert np.exp(parts.score) == pytest.approx(predicted, rel=1e-4)
    elif "quantile" in objective:
        assert parts.score == pytest.approx(predicted, abs=1e-5)
    else:
        shares = np.exp(parts.score)
        assert shares / shares.sum(axis=1, keepdims=True) == pytest.approx(predicted, abs=1e-5)


def test_a_linear_model_has_contributions_and_no_splits(tmp_path: Path) -> None:
    data = xgboost.DMatrix(TABLE.select(["size", "noise"]).to_pandas(), label=_SCORE)
    xgboost.train({"booster": "gblinear", "nthread": 1}, data, 10).save_model(tmp_path / "model.ubj")
    columns = ("size", "noise")
    predictor = TableScorer(tmp_path, columns, columns).predictor
    assert predictor.gains() is None
    parts = predictor.contributions(TABLE.select(list(columns)))
    assert parts is not None
    assert parts.values.sum(axis=2) + parts.base == pytest.approx(parts.score, abs=1e-4)


def test_parts_that_do_not_add_up_are_refused() -> None:
    parts, score = np.array([[[1.0, 2.0, 0.5]]]), np.array([[3.5]])
    assert check_contributions(Path("model.ubj"), parts, score).base.tolist() == [[0.5]]
    with pytest.raises(ScoringError, match=r"model\.ubj: the contributions .* do not add up to its predictions"):
        check_contributions(Path("model.ubj"), parts, score + 0.1)


def test_a_group_with_the_name_of_another_input_is_named(tmp_path: Path) -> None:
    save_xgboost(tmp_path)

    def problems(**groups: list[str]) -> tuple[str, ...]:
        limits = Limits(permutations=1, explained_rows=1, clock=lambda: 0.0)
        return measure(tmp_path, groups=groups, limits=limits).problems

    [problem] = problems(noise=["size"])
    assert problem.startswith("input_groups: noise is also the name of an input that it does not list")
    assert problems(noise=["size", "noise"]) == problems(noise=["size"], rest=["noise"]) == ()
    assert problems(noise=["absent"]) == (
        "input_groups: noise names absent, which is no input of this model and no view of one",
    )


def test_a_group_of_what_is_no_input_is_named(tmp_path: Path) -> None:
    save_xgboost(tmp_path)
    measured = measure(tmp_path, groups={"both": ["size", "sise"], "other": ["noise"]}, limits=Limits(permutations=1))
    assert measured.problems == ("input_groups: both names sise, which is no input of this model and no view of one",)
    assert [item.name for item in measured.inputs] == ["both", "shop", "other"]
