"""Trees: categories are part of the file, each reader stops at the best round, and no file leads its library astray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost

from evergreen.errors import ScoringError, TrainingDataError
from evergreen.scoring import formats, predictions, ubjson, xgboost_file
from evergreen.scoring.lightgbm_file import parse_lightgbm
from evergreen.scoring.predictors.categories import CategoryCodes
from evergreen.scoring.trees import MAX_SPLIT_DEPTH, split_problem
from evergreen.scoring.ubjson import parse_ubjson
from evergreen.scoring.xgboost_file import parse_xgboost
from evergreen.training import TrainingRows
from evergreen.training.categories import Categories
from evergreen.training.early_stopping import cut_to_best_round
from evergreen.training.job import Job
from evergreen.training.xgboost_rows import XGBoostRows

pytestmark = pytest.mark.unit

ROWS = 600
COLUMNS = ("size", "store ü", "code")
STORES = ["Nord", 'süd, "West"', "other"]
_GENERATOR = np.random.default_rng(5)
_STORES = np.array(STORES)[_GENERATOR.integers(3, size=ROWS)]
_SIZES = _GENERATOR.normal(size=ROWS)
_LABEL = (_SIZES + 3 * (_STORES == "Nord") + _GENERATOR.normal(size=ROWS) > 0).astype(float)
TABLE = pa.table({"size": _SIZES, "store": _STORES, "code": _GENERATOR.integers(5, size=ROWS), "label": _LABEL})
FEATURES = ("size", "store", "code")


@pytest.fixture
def rows(tmp_path: Path) -> TrainingRows:
    """All rows, in row groups that have other categories first."""
    file = tmp_path / "rows.parquet"
    pq.write_table(TABLE, file, row_group_size=100)
    return TrainingRows(file)


def boosted(rows: TrainingRows, folder: Path, unseen: Any = "error", min_rows: int = 1, **settings: Any) -> Any:
    """Trees of XGBoost that know stores by their names, as `model.ubj`."""
    categories = Categories.find(rows, ["store"], unseen, min_rows)
    job = Job.model_construct(features=FEATURES, label="label")
    data = xgboost.QuantileDMatrix(XGBoostRows(rows, job, categories), enable_categorical=True, nthread=1)
    parameters = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1} | settings
    booster = xgboost.train(parameters, data, 10)
    categories.save_xgboost(booster, folder / "model.ubj")
    return booster


def leaves(rows: TrainingRows, folder: Path, unseen: Any = "missing", min_rows: int = 1, **settings: Any) -> Any:
    """The same of LightGBM, as `model.lgb`."""
    categories = Categories.find(rows, ["store"], unseen, min_rows)
    frame = categories.encode(pa.concat_tables(rows.read(FEATURES))).to_pandas()
    data = lightgbm.Dataset(frame, TABLE["label"].to_numpy())
    booster = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1} | settings, data, 10)
    categories.save_lightgbm(booster, folder / "model.lgb")
    return booster


def score(folder: Path, table: pa.Table) -> np.ndarray:
    predictor = predictions.load_model(folder, threads=1)
    scores = predictor.predict(table.select(list(FEATURES)))
    assert np.array_equal(predictor.prepare_request(table.select(list(FEATURES)))(), scores)
    return scores


BOTH = pytest.mark.parametrize("write", [boosted, leaves])


def categorical(table: pa.Table) -> pd.DataFrame:
    """As a user of the library itself hands it over, with codes of its own."""
    frame = table.select(list(FEATURES)).to_pandas()
    frame["store"] = pd.Categorical(frame["store"], categories=STORES[::-1])
    return frame


@BOTH
def test_stores_are_known_by_their_names(tmp_path: Path, rows: TrainingRows, write: Callable[..., Any]) -> None:
    booster = write(rows, tmp_path)
    frame = categorical(TABLE)
    own = booster.predict(xgboost.DMatrix(frame, enable_categorical=True) if write is boosted else frame)
    assert np.array_equal(score(tmp_path, TABLE), own)
    for part in (TABLE.slice(7, 1), TABLE.slice(100, 50)):  # have some of the stores only
        assert np.array_equal(score(tmp_path, part), own[part_of(part)])
    encoded = TABLE.set_column(1, "store", TABLE["store"].combine_chunks().dictionary_encode())
    assert np.array_equal(score(tmp_path, encoded), own)
    assert len(np.unique(own[TABLE["store"].to_numpy() == "Nord"])) > 1


def test_text_that_xgboost_has_cut_is_refused(tmp_path: Path) -> None:
    """XGBoost 3.2 writes the categories of a pandas frame by their number of characters, not of bytes."""
    frame = pd.DataFrame({"store": pd.Categorical(["É", "Ü"] * 20)})
    data = xgboost.DMatrix(frame, np.resize([0, 1], 40), enable_categorical=True)
    xgboost.train({"objective": "binary:logistic"}, data, 2).save_model(tmp_path / "model.ubj")
    with pytest.raises(ScoringError, match=r"category that is not UTF-8: XGBoost cuts .* train with `Categories`"):
        predictions.load_model(tmp_path, threads=1)


def part_of(part: pa.Table) -> np.ndarray:
    return np.searchsorted(np.arange(ROWS), np.flatnonzero(np.isin(TABLE["size"].to_numpy(), part["size"].to_numpy())))


def one_store(name: str | None) -> pa.Table:
    return TABLE.set_column(1, "store", pa.array([name] * ROWS, pa.string()))


@BOTH
def test_unseen_stores_are_what_the_model_says(tmp_path: Path, rows: TrainingRows, write: Callable[..., Any]) -> None:
    write(rows, tmp_path, "missing")
    missing = score(tmp_path, one_store(None))
    assert np.array_equal(score(tmp_path, one_store("Ost")), missing)
    assert not np.array_equal(score(tmp_path, one_store("Nord")), missing)
    write(rows, tmp_path, "other")
    assert np.array_equal(score(tmp_path, one_store("Ost")), score(tmp_path, one_store("other")))
    write(rows, tmp_path, "error")
    with pytest.raises(ScoringError, match=r"store has categories that are not in the model: 'Ost'$"):
        score(tmp_path, one_store("Ost"))
    assert np.isfinite(score(tmp_path, one_store(None))).all()


@BOTH
def test_a_rare_store_is_another_one(tmp_path: Path, rows: TrainingRows, write: Callable[..., Any]) -> None:
    rare = Categories.find(rows, ["store"], "other", min_rows=ROWS)
    assert rare.values == {"store": ("other",)}
    write(rows, tmp_path, "other", ROWS)
    assert np.array_equal(score(tmp_path, one_store("Nord")), score(tmp_path, one_store("nobody's")))
    with pytest.raises(ValueError, match="rare values would be errors"):
        Categories.find(rows, ["store"], "error", min_rows=2)


def test_what_a_file_does_not_say_is_what_its_library_does(tmp_path: Path, rows: TrainingRows) -> None:
    boosted(rows, tmp_path, "missing").set_attr(unseen_categories=None)
    booster = xgboost.Booster(model_file=tmp_path / "model.ubj")
    booster.set_attr(unseen_categories=None)
    booster.save_model(tmp_path / "model.ubj")
    # XGBoost 3.2 says nothing, and takes it for the next one in its order. If this fails: decision 50 can say less.
    unseen = categorical(TABLE).assign(store=pd.Categorical(["Ost"] * ROWS))
    assert np.array_equal(
        booster.predict(xgboost.DMatrix(unseen, enable_categorical=True)), score(tmp_path, one_store("other"))
    )
    with pytest.raises(ScoringError, match="'Ost'"):
        score(tmp_path, one_store("Ost"))
    (tmp_path / "model.ubj").unlink()
    booster = leaves(rows, tmp_path)
    booster.save_model(tmp_path / "model.lgb")
    own = booster.predict(categorical(TABLE).assign(store=pd.Categorical(["Ost"] * ROWS)))
    assert np.array_equal(score(tmp_path, one_store("Ost")), own)


@BOTH
def test_a_column_of_another_type_is_named(tmp_path: Path, rows: TrainingRows, write: Callable[..., Any]) -> None:
    write(rows, tmp_path)
    table = TABLE.set_column(1, "store", TABLE["code"]).set_column(0, "size", TABLE["store"])
    with pytest.raises(
        ScoringError, match="size is string, not a number; store is int64, and its categories are string"
    ):
        score(tmp_path, table)


def test_numbers_may_be_categories(tmp_path: Path) -> None:
    frame = TABLE.select(list(FEATURES)).drop_columns(["store"]).to_pandas().assign(code=lambda f: f.code * 10)
    frame = frame.assign(code=pd.Categorical(frame.code))
    (tmp_path / "x").mkdir()
    label = TABLE["label"].to_numpy()
    trees = xgboost.train({"nthread": 1}, xgboost.DMatrix(frame, label, enable_categorical=True), 5)
    trees.save_model(tmp_path / "x" / "model.ubj")
    (tmp_path / "l").mkdir()
    other = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(frame, label), 5)
    other.save_model(tmp_path / "l" / "model.lgb")
    table = pa.table({"size": TABLE["size"], "code": pa.array(frame["code"].astype("int16"))})
    for folder, own in (
        ("x", trees.predict(xgboost.DMatrix(frame, enable_categorical=True))),
        ("l", other.predict(frame)),
    ):
        predictor = predictions.load_model(tmp_path / folder)
        assert np.array_equal(predictor.predict(table), own)
        assert [predictor.mlflow_type(name) for name in table.column_names] == ["double", "long"]


@pytest.mark.parametrize(
    ("settings", "outputs"),
    [
        (dict(objective="multi:softprob", num_class=3), 3),
        (dict(objective="reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9]), 3),
        (dict(objective="count:poisson"), None),
        (dict(booster="dart", rate_drop=0.5), None),
        (dict(max_depth=0, max_leaves=4, grow_policy="lossguide", gamma=3.0), None),
        (dict(num_parallel_tree=2, subsample=0.5), None),
    ],
)
def test_each_kind_of_trees_has_its_shape(
    tmp_path: Path, rows: TrainingRows, settings: dict[str, Any], outputs: int | None
) -> None:
    booster = boosted(rows, tmp_path, **settings)
    scores = score(tmp_path, TABLE)
    assert scores.shape == ((ROWS, outputs) if outputs else (ROWS,))
    assert np.array_equal(scores, booster.predict(xgboost.DMatrix(categorical(TABLE), enable_categorical=True)))


@pytest.mark.parametrize(
    ("settings", "outputs"),
    [
        (dict(objective="multiclass", num_class=3), 3),
        (dict(objective="multiclassova", num_class=3), 3),
        (dict(objective="poisson"), None),
        (dict(objective="regression", boosting="dart"), None),
        (dict(boosting="rf", bagging_fraction=0.5, bagging_freq=1), None),
        (dict(min_data_in_leaf=ROWS), None),  # a tree is one leaf
        (dict(objective="regression", reg_sqrt=True), None),
        (dict(objective="cross_entropy", monotone_constraints=[1, 0, -1]), None),
    ],
)
def test_each_kind_of_leaves_has_its_shape(
    tmp_path: Path, rows: TrainingRows, settings: dict[str, Any], outputs: int | None
) -> None:
    booster = leaves(rows, tmp_path, **settings)
    scores = score(tmp_path, TABLE)
    assert scores.shape == ((ROWS, outputs) if outputs else (ROWS,))
    assert np.array_equal(scores, booster.predict(categorical(TABLE)))


def test_a_class_is_no_probability(tmp_path: Path, rows: TrainingRows) -> None:
    boosted(rows, tmp_path, objective="multi:softmax", num_class=3)
    with pytest.raises(ScoringError, match="predicts a class and no probabilities: train with multi:softprob"):
        score(tmp_path, TABLE)


def test_a_line_in_a_leaf_is_refused(tmp_path: Path, rows: TrainingRows) -> None:
    data = lightgbm.Dataset(np.arange(200.0).reshape(100, 2), np.arange(100.0))
    lightgbm.train({"linear_tree": True, "verbose": -1}, data, 2).save_model(tmp_path / "model.lgb")
    with pytest.raises(ScoringError, match="leaf_const|linear"):
        predictions.load_model(tmp_path)


# Early stopping


def stopped_early(folder: Path, table: pa.Table = TABLE, **settings: Any) -> Any:
    """Trees that were trained for some rounds after their best one."""
    categories = Categories({"store": STORES}, "missing")
    data = xgboost.QuantileDMatrix(
        categories.encode(table.select(list(FEATURES))), table["label"].to_numpy(), enable_categorical=True
    )
    noise = xgboost.DMatrix(
        categories.encode(table.select(list(FEATURES))), np.roll(table["label"].to_numpy(), 7), enable_categorical=True
    )
    parameters = {
        "objective": "binary:logistic",
        "max_depth": 3,
        "eta": 0.05,
        "nthread": 1,
        "eval_metric": "auc",
    } | settings
    booster = xgboost.train(parameters, data, 60, evals=[(noise, "noise")], early_stopping_rounds=5, verbose_eval=False)
    categories.save_xgboost(booster, folder / "model.ubj")
    return booster


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(booster="dart", rate_drop=0.3),
        dict(num_parallel_tree=3, subsample=0.6),
        dict(objective="multi:softprob", num_class=2, eval_metric="mlogloss"),
    ],
    ids=str,
)
def test_a_file_ends_with_the_best_round(tmp_path: Path, settings: dict[str, Any]) -> None:
    booster = stopped_early(tmp_path, **settings)
    best = booster.best_iteration + 1
    assert best < booster.num_boosted_rounds()
    with pytest.raises(ScoringError, match=f"goes on for {booster.num_boosted_rounds() - best} rounds after the best"):
        predictions.load_model(tmp_path)
    cut_to_best_round(tmp_path / "model.ubj")
    data = xgboost.DMatrix(categorical(TABLE), enable_categorical=True)
    expected = booster.predict(data, iteration_range=(0, best))
    assert np.array_equal(score(tmp_path, TABLE), expected)
    assert np.array_equal(xgboost.Booster(model_file=tmp_path / "model.ubj").predict(data), expected)
    assert not np.array_equal(booster.predict(data), expected)
    assert np.array_equal(score(tmp_path, one_store("Ost")), score(tmp_path, one_store(None)))  # the rule is kept
    once = (tmp_path / "model.ubj").read_bytes()
    cut_to_best_round(tmp_path / "model.ubj")
    assert (tmp_path / "model.ubj").read_bytes() == once


def test_a_linear_model_has_no_best_round_to_go_back_to(tmp_path: Path) -> None:
    numbers = TABLE.select(["size", "code"]).to_pandas()
    data = xgboost.DMatrix(numbers, TABLE["label"].to_numpy())
    noise = xgboost.DMatrix(numbers, np.roll(TABLE["label"].to_numpy(), 7))
    booster = xgboost.train(
        {"booster": "gblinear", "nthread": 1},
        data,
        50,
        evals=[(noise, "n")],
        early_stopping_rounds=2,
        verbose_eval=False,
    )
    booster.save_model(tmp_path / "model.ubj")
    whole = (tmp_path / "model.ubj").read_bytes()
    cut_to_best_round(tmp_path / "model.ubj")
    assert (tmp_path / "model.ubj").read_bytes() == whole
    predictor = predictions.load_model(tmp_path)
    assert np.array_equal(predictor.predict(TABLE.select(["size", "code"])), booster.predict(data))


def test_lightgbm_leaves_out_the_rounds_itself(tmp_path: Path) -> None:
    frame, label = categorical(TABLE), TABLE["label"].to_numpy()
    data = lightgbm.Dataset(frame, label)
    noise = lightgbm.Dataset(frame, np.roll(label, 7), reference=data)
    stop = lightgbm.early_stopping(5, verbose=False)
    parameters = {"objective": "binary", "metric": "auc", "verbose": -1, "num_threads": 1, "learning_rate": 0.05}
    best = lightgbm.train(parameters, data, 60, valid_sets=[noise], callbacks=[stop]).best_iteration
    booster = lightgbm.train(parameters | {"metric": "None"}, data, best + 5)
    booster.best_iteration = best
    Categories({"store": STORES}, "missing").save_lightgbm(booster, tmp_path / "model.lgb")
    assert np.array_equal(score(tmp_path, TABLE), booster.predict(frame, num_iteration=booster.best_iteration))


@pytest.mark.parametrize("value", ["abc", "-1", "60", "1e3", "٣"])
def test_a_best_round_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    booster = stopped_early(tmp_path)
    booster.set_attr(best_iteration=value)
    booster.save_model(tmp_path / "model.ubj")
    with pytest.raises(ScoringError, match="model.ubj cannot be read: has the best round"):
        predictions.load_model(tmp_path)
    with pytest.raises(ValueError, match="has the best round"):
        cut_to_best_round(tmp_path / "model.ubj")


# Columns and labels


@pytest.mark.parametrize("type_", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_text_is_text_however_it_is_stored(tmp_path: Path, rows: TrainingRows, type_: pa.DataType) -> None:
    file = tmp_path / "other.parquet"
    pq.write_table(TABLE.set_column(1, "store", TABLE["store"].cast(type_)), file, row_group_size=100)
    other = TrainingRows(file)
    assert other.schema.field("store").type == type_
    assert Categories.find(other, ["store"]).values == Categories.find(rows, ["store"]).values
    boosted(rows, tmp_path)
    expected = score(tmp_path, TABLE)
    boosted(other, tmp_path)
    assert np.array_equal(score(tmp_path, pa.concat_tables(other.read(FEATURES))), expected)


def test_a_column_without_a_category_is_named(tmp_path: Path, rows: TrainingRows) -> None:
    file = tmp_path / "empty.parquet"
    for type_ in (pa.string(), pa.null()):
        pq.write_table(TABLE.set_column(1, "store", pa.nulls(ROWS, type_)), file)
        with pytest.raises(ValueError, match="store has no value in any row to learn from, so no category"):
            Categories.find(TrainingRows(file), ["store"])
        assert Categories.find(TrainingRows(file), ["store"], "other").values == {"store": ("other",)}
    with pytest.raises(ValueError, match="store has no value in 600 rows or more"):
        Categories.find(rows, ["store"], "missing", min_rows=ROWS)


def test_no_categories_are_text(tmp_path: Path) -> None:
    frame = categorical(TABLE).assign(store=pd.Categorical([None] * ROWS, categories=[]))
    codes = CategoryCodes({"store": pa.array([])}, "missing")
    assert codes.mlflow_type("store") == "string"
    for column in (TABLE["store"], pa.chunked_array([pa.nulls(ROWS)])):
        assert np.isnan(codes.encode("store", column)).all()
    booster = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(frame, _LABEL), 3)
    booster.save_model(tmp_path / "model.lgb")
    assert np.array_equal(score(tmp_path, TABLE), booster.predict(frame))


@pytest.mark.parametrize("classes", [('süd, "West"', "Nord", "other"), ("other", "nobody's", "Nord", 'süd, "West"')])
def test_a_label_is_the_number_of_its_class(rows: TrainingRows, classes: tuple[str, ...]) -> None:
    job = Job.model_construct(features=("size", "code"), label="store", classes=classes)
    data = xgboost.QuantileDMatrix(XGBoostRows(rows, job), nthread=1)
    assert np.array_equal(data.get_label(), [classes.index(store) for store in TABLE["store"].to_pylist()])
    numbers = Job.model_construct(features=("size",), label="code", classes=(4, 3, 2, 1, 0))
    data = xgboost.QuantileDMatrix(XGBoostRows(rows, numbers), nthread=1)
    assert np.array_equal(data.get_label(), 4 - TABLE["code"].to_numpy())


def test_rows_of_a_job_with_a_weight_have_theirs(rows: TrainingRows) -> None:
    job = Job.model_construct(features=("size", "store"), label="label", weight="code")
    data = xgboost.QuantileDMatrix(
        XGBoostRows(rows, job, Categories.find(rows, ["store"], "error", 1)), enable_categorical=True, nthread=1
    )
    assert np.array_equal(data.get_weight(), TABLE["code"].to_numpy())
    also_input = Job.model_construct(features=("size", "code"), label="label", weight="code")
    assert xgboost.QuantileDMatrix(XGBoostRows(rows, also_input), nthread=1).num_col() == 2


@pytest.mark.parametrize(
    ("label", "classes", "said"),
    [
        ("store", ("Nord", "other"), r"store is 'süd, \"West\"', which is none of the spec's classes"),
        ("code", (0, 1, 2, 3), "code is 4, which is none of the spec's classes"),
        ("store", (0, 1, 2), "store is string, and the spec's classes are int64"),
    ],
)
def test_a_label_of_no_class_is_named(rows: TrainingRows, label: str, classes: Any, said: str) -> None:
    job = Job.model_construct(features=("size",), label=label, classes=classes)
    with pytest.raises(TrainingDataError, match=said):
        xgboost.QuantileDMatrix(XGBoostRows(rows, job), nthread=1)


def test_rows_of_queries_are_not_handed_over_as_rows_of_none(rows: TrainingRows) -> None:
    with pytest.raises(TrainingDataError, match="the job ranks rows by store: read all rows"):
        XGBoostRows(rows, Job.model_construct(features=("size",), label="label", query="store"))


# What MLflow answers


@BOTH
def test_mlflow_predicts_the_same(tmp_path: Path, rows: TrainingRows, write: Callable[..., Any]) -> None:
    write(rows, tmp_path)
    predictor = predictions.load_model(tmp_path)
    flavor = getattr(mlflow, predictor.mlflow_flavor)
    flavor.save_model(path=str(tmp_path / "saved"), **predictor.save_model_arguments())
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    frame = categorical(TABLE)
    if write is leaves:
        assert np.array_equal(loaded.predict(frame), score(tmp_path, TABLE))
    else:  # MLflow hands XGBoost no categories: it refuses them, and never guesses
        with pytest.raises(ValueError, match="enable_categorical"):
            loaded.predict(frame)
        raw = loaded.get_raw_model()
        assert np.array_equal(raw.predict(xgboost.DMatrix(frame, enable_categorical=True)), score(tmp_path, TABLE))
    assert not formats.format_faults(tmp_path / "saved")


# Hostile files


def rewritten(booster: xgboost.Booster, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """The file of a booster after a change of its model and its first tree, by XGBoost itself, which checks little."""
    document = json.loads(booster.save_raw("json"))
    model = document["learner"]["gradient_booster"]["model"]
    change(model, model["trees"][0])
    return bytes(xgboost.Booster(model_file=bytearray(json.dumps(document).encode())).save_raw("ubj"))


def put(name: str, position: int, value: int) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda _, tree: tree[name].__setitem__(position, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("split_indices", 0, 100_000_000), "looks at a feature that the model does not have"),
        (put("left_children", 0, 100_000_000), "leads to a node that it does not have"),
        (put("left_children", 1, 0), "leads to a node that it does not have"),  # for ever
        (put("left_children", 0, 2), "leads to a node on two ways"),
        (put("right_children", 1, 1), "leads to a node on two ways"),
        (
            lambda model, _: model["cats"]["enc"][1].update(offsets=[0, 4, 5, 100_000_000]),
            "category that is not in the",
        ),
        (
            lambda model, _: model["cats"]["enc"][1].update(offsets=[0, -400_000_000, 5, 6]),
            "category that is not in the",
        ),
        (lambda model, _: model["cats"].update(feature_segments=[0, 0, 3_000_000, 3]), "categories that do not add up"),
        (lambda model, _: model["cats"].update(sorted_idx=[0, 100_000_000, 2]), "has categories in no order"),
        (lambda model, _: model["tree_info"].__setitem__(0, 7), "an output that it does not have"),
    ],
)
def test_trees_that_lead_astray_are_refused(
    tmp_path: Path, rows: TrainingRows, change: Callable[[dict[str, Any], dict[str, Any]], object], said: str
) -> None:
    booster = boosted(rows, tmp_path)
    parse_xgboost(rewritten(booster, lambda *_: None))
    (tmp_path / "model.ubj").write_bytes(rewritten(booster, change))
    with pytest.raises(ScoringError, match=said):
        predictions.load_model(tmp_path)


def chain(splits: int) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    """Makes the first tree one of splits of which each leads to the next one, and to a leaf."""
    nodes = 2 * splits + 1
    numbers = np.arange(nodes)
    is_split = (numbers % 2 == 0) & (numbers < nodes - 1)

    def change(_: dict[str, Any], tree: dict[str, Any]) -> None:
        for name in ("split_indices", "split_type", "default_left"):
            tree[name] = [0] * nodes
        for name in ("split_conditions", "base_weights", "loss_changes", "sum_hessian"):
            tree[name] = [0.0] * nodes
        tree |= {name: [] for name in ("categories", "categories_nodes", "categories_segments", "categories_sizes")}
        tree["left_children"] = np.where(is_split, numbers + 1, -1).tolist()
        tree["right_children"] = np.where(is_split, numbers + 2, -1).tolist()
        tree["parents"] = [2**31 - 1, *((numbers[1:] - 1) // 2 * 2).tolist()]
        tree["tree_param"]["num_nodes"] = str(nodes)

    return change


def test_trees_are_no_deeper_than_a_stack(tmp_path: Path, rows: TrainingRows) -> None:
    booster = boosted(rows, tmp_path)
    (tmp_path / "model.ubj").write_bytes(rewritten(booster, chain(MAX_SPLIT_DEPTH)))
    assert np.isfinite(score(tmp_path, TABLE)).all()
    (tmp_path / "model.ubj").write_bytes(rewritten(booster, chain(MAX_SPLIT_DEPTH + 1)))
    with pytest.raises(ScoringError, match="is deeper than 10,000 splits"):
        predictions.load_model(tmp_path)


@pytest.mark.parametrize(
    ("left_children", "right_children", "said"),
    [
        ([1, 3], [2, 4], None),
        ([1, 4], [2, 3], None),
        ([2, 1], [3, 4], "splits that its root does not lead to"),  # the second one leads to itself
        ([3, 1], [2, 4], "splits that its root does not lead to"),
        ([1, 0], [2, 4], "a node that it does not have"),
    ],
)
def test_each_split_is_reached_from_the_root(
    left_children: list[int], right_children: list[int], said: str | None
) -> None:
    sides = np.array(left_children), np.array(right_children)
    problem = split_problem(np.arange(2), *sides, np.zeros(2, int), 5, 1)
    assert problem is None if said is None else problem and said in problem


def document_of(booster: xgboost.Booster) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The file as parsed, and its trees that have splits by categories."""
    document = parse_ubjson(bytes(booster.save_raw("ubj")))
    trees = document["learner"]["gradient_booster"]["model"]["trees"]
    return document, [tree for tree in trees if len(tree["categories_nodes"])]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.update(categories=tree["categories"][:-1]), "is not in the file"),
        (lambda tree: tree.update(categories=[*tree["categories"], 0]), "is not in the file"),
        (lambda tree: tree.update(categories_segments=tree["categories_segments"] * 0 + 1), "in two places"),
        (lambda tree: tree.update(categories_sizes=tree["categories_sizes"] * 0), "a set of categories that is empty"),
        (lambda tree: tree.update(categories=tree["categories"] * 0 + (1 << 24)), "a category of no valid number"),
    ],
)
def test_sets_of_categories_are_apart(
    tmp_path: Path, rows: TrainingRows, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    document, trees = document_of(boosted(rows, tmp_path))
    monkeypatch.setattr(xgboost_file, "parse_ubjson", lambda _: document)
    parse_xgboost(b"")
    change(trees[0])
    with pytest.raises(ValueError, match=said):
        parse_xgboost(b"")


def test_sets_of_categories_fit_into_memory(
    tmp_path: Path, rows: TrainingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, trees = document_of(boosted(rows, tmp_path))
    splits = sum(len(tree["categories_nodes"]) for tree in trees)
    assert splits > 1
    for tree in trees:
        tree["categories"] = tree["categories"] * 0 + ((1 << 24) - 1)
    monkeypatch.setattr(xgboost_file, "parse_ubjson", lambda _: document)
    monkeypatch.setattr(xgboost_file, "_MAX_CATEGORY_BITS", splits << 24)
    parse_xgboost(b"")
    monkeypatch.setattr(xgboost_file, "_MAX_CATEGORY_BITS", (splits << 24) - 1)
    with pytest.raises(ValueError, match="has sets of categories of more than"):
        parse_xgboost(b"")


def test_values_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ubjson, "_MAX_VALUES", 10)
    numbers = b"i\x01a[$U#U\xff" + bytes(255)  # one value
    parse_ubjson(b"{" + numbers + b"i\x01b[" + b"{}" * 8 + b"]}")
    for values in (b"{}" * 9, b"[]" * 9, b"Z" * 9):
        with pytest.raises(ValueError, match="has more than 10 values"):
            parse_ubjson(b"{" + numbers + b"i\x01b[" + values + b"]}")


@pytest.mark.parametrize(
    ("node", "parent", "said"),
    [
        (1, 100_000_000, "another parent than the one that leads to it"),
        (2, 1, "another parent than the one that leads to it"),
        (0, 1, "a parent that it does not have"),
    ],
)
def test_parents_that_lead_astray_are_refused(
    tmp_path: Path, rows: TrainingRows, node: int, parent: int, said: str
) -> None:
    data = bytearray(boosted(rows, tmp_path).save_raw("ubj"))  # XGBoost would not survive to read it
    name = b"parents[$l#L"
    start = data.index(name) + len(name) + 8 + 4 * node
    data[start : start + 4] = parent.to_bytes(4)
    with pytest.raises(ValueError, match=said):
        parse_xgboost(bytes(data))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"{", b"[", "is no UBJSON object"),
        (b"num_nodes", b"num_nodez", "is no model of XGBoost"),
        (b"[$d#L\0\0\0\0", b"[$d#L\x7f\0\0\0", "ends too early"),
        (b"[$d#L\0\0\0\0", b"[$d#L\xff\0\0\0", "negative length"),
        (b"[$d#", b"[$q#", "array of no known type"),
        (b"feature_types", b"feature_names", "'feature_names' twice"),
        (b"SL\0\0\0\0\0\0\0\x06gbtree", b"SL\0\0\0\0\0\0\0\x06gbtreo", "booster of no known name"),
        (b"num_featureSL\0\0\0\0\0\0\0\x013", b"num_featureSL\0\0\0\0\0\0\0\x019", "another number of features"),
        (
            b"\0\x09num_classSL\0\0\0\0\0\0\0\x010",
            b"\0\x09num_classSL\0\0\0\0\0\0\0\x0560000",
            "more outputs than trees",
        ),
    ],
)
def test_bytes_that_lie_are_refused(tmp_path: Path, rows: TrainingRows, old: bytes, new: bytes, said: str) -> None:
    data = bytes(boosted(rows, tmp_path).save_raw("ubj"))
    assert old in data
    with pytest.raises(ValueError, match=said):
        parse_xgboost(data.replace(old, new, 1))


def test_half_a_file_and_more_than_a_file_are_refused(tmp_path: Path, rows: TrainingRows) -> None:
    trees = bytes(boosted(rows, tmp_path).save_raw("ubj"))
    leaves(rows, tmp_path)
    text = (tmp_path / "model.lgb").read_bytes()
    parse_xgboost(trees), parse_lightgbm(text)
    for length in range(0, len(trees), 97):
        with pytest.raises(ValueError, match="."):
            parse_xgboost(trees[:length])
    with pytest.raises(ValueError, match="goes on after its end"):
        parse_xgboost(trees + b"\0")
    for length in range(0, text.index(b"end of trees"), 97):
        with pytest.raises(ValueError, match="."):
            parse_lightgbm(text[:length])
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_xgboost(b"{U\x01a" + b"[" * 100_000)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tree\n", "trees\n", "is no text file of LightGBM"),
        ("version=v4", "version=v9", "not v4"),
        ("version=v4", "version=v4\nloader=os.system", "has the line 'loader=os.system'"),
        ("num_class=1", "num_class=2", "another number of trees than outputs"),
        ("max_feature_idx=2", "max_feature_idx=1", "another number of features"),
        ("objective=binary sigmoid:1", "objective=; rm -rf /", "objective of no known form"),
        ("objective=binary sigmoid:1", "objective=multiclass num_class:100000000", "another number of outputs"),
        ("objective=binary sigmoid:1", "objective=multiclassova num_class:1 num_class:9", "another number of outputs"),
        ("objective=binary sigmoid:1", "objective=binary num_class:9", "another number of outputs"),
        ("objective=binary sigmoid:1", "objective=multiclass", "another number of outputs"),
        ("objective=binary sigmoid:1", "objective=binary sigmoid:0_1", "objective of no known form"),
        ("objective=binary sigmoid:1", "objective=binary  sigmoid:1", "objective of no known form"),
        ("objective=binary sigmoid:1", "objective=future", "objective of no known form"),
        ("[-", "[\N{ARABIC-INDIC DIGIT FIVE}", "letters in feature_infos"),
        ("tree_sizes=", "tree_sizes=+", "numbers where there are none"),
        ("tree_sizes=", "tree_sizes= ", "numbers where there are none"),
        ("tree_sizes=", "tree_sizes=999999999 ", "trees of other sizes"),
        ("tree_sizes=", "tree_sizes=-5 5 ", "trees of other sizes"),
        ("\nTree=1\n", "\nTree=9\n", "trees of other sizes"),
        ("is_linear=0", "is_linear=1", "linear models in its leaves"),
        ("unseen_categories=missing", "unseen_categories=guess", "'guess' about unseen categories"),
        ("unseen_categories=missing", "unseen_categories=other", None),
        ('["Nord"', '[["Nord"]', "neither text nor numbers|several types"),
        ("[categorical_feature: 1]", "[categorical_feature: 7]", "a column that it does not have"),
        ("[categorical_feature: 1]", "[categorical_feature: ]", "another number of columns"),
    ],
)
def test_text_that_lies_is_refused(tmp_path: Path, rows: TrainingRows, old: str, new: str, said: str | None) -> None:
    leaves(rows, tmp_path)
    file = tmp_path / "model.lgb"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    if said is None:
        predictions.load_model(tmp_path)
        return
    with pytest.raises(ScoringError, match=said):
        predictions.load_model(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[boosting: gbdt]", "[boosting gbdt]", r"the parameter '\[boosting gbdt\]'"),  # LightGBM would crash
        ("[boosting: gbdt]", "boosting: gbdt", "the parameter 'boosting: gbdt'"),
        ("[boosting: gbdt]", '[boosting: "gbdt]', "the parameter"),
        ("end of parameters", "end of parametres", "parameters without an end"),
        ("\nparameters:", "\nparametres:", "parameters without an end"),
        ("\nparameters:", "\nparameters:\nparameters:", "the parameter 'parameters:'"),
        ("\nparameters:", "\nparser:\n\nparameters:", "parameters without an end"),
        ("end of parameters\n", "end of parameters\nparameters:\n", "parameters without an end"),
        ("[learning_rate: 0.1]", "[learning_rate: fast]", "model.lgb cannot be read: "),
    ],
)
def test_parameters_that_lie_are_refused(tmp_path: Path, rows: TrainingRows, old: str, new: str, said: str) -> None:
    leaves(rows, tmp_path)
    file = tmp_path / "model.lgb"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ScoringError, match=said):
        predictions.load_model(tmp_path)


def test_a_file_without_parameters_is_read(tmp_path: Path) -> None:
    numbers = TABLE.select(["size", "code"])
    booster = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(numbers.to_pandas(), _LABEL), 3)
    head, _, rest = booster.model_to_string().partition("\nparameters:\n")
    (tmp_path / "model.lgb").write_text(head + rest.partition("end of parameters\n")[2])
    assert np.array_equal(predictions.load_model(tmp_path).predict(numbers), booster.predict(numbers.to_pandas()))


def with_tree_line(text: str, key: str, change: Callable[[list[str]], list[str]]) -> str:
    """Return the text of a file with other numbers in a line of its first tree, whose size is right."""
    head, first, rest = text.partition("Tree=0\n")
    tree, separator, rest = rest.partition("\n\n\n")
    lines = dict(line.split("=") for line in tree.split("\n"))
    lines[key] = " ".join(change(lines[key].split(" ")))
    changed = "\n".join(f"{name}={content}" for name, content in lines.items())
    size = len(first) + len(tree) + len(separator)
    assert f"tree_sizes={size} " in head
    head = head.replace(f"tree_sizes={size}", f"tree_sizes={size + len(changed.encode()) - len(tree)}")
    return head + first + changed + separator + rest


def test_weights_of_leaves_are_there(tmp_path: Path, rows: TrainingRows) -> None:
    leaves(rows, tmp_path)
    file = tmp_path / "model.lgb"
    file.write_text(with_tree_line(file.read_text(), "leaf_weight", lambda _: []))
    with pytest.raises(ScoringError, match="another number of nodes than it says"):  # LightGBM would abort
        predictions.load_model(tmp_path)


@pytest.mark.parametrize(
    ("objective", "settings", "label"),
    [
        *((name, {}, "share") for name in ("regression", "regression_l1", "huber", "fair", "poisson", "quantile")),
        *((name, {}, "share") for name in ("mape", "gamma", "tweedie", "cross_entropy", "cross_entropy_lambda")),
        ("regression", {"zero_as_missing": True}, "share"),
        ("regression", {"use_quantized_grad": True}, "share"),
        ("binary", {"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1}, "class"),
        ("lambdarank", {}, "class"),
        ("rank_xendcg", {}, "class"),
        ("multiclass", {"num_class": 2, "boosting": "dart"}, "class"),
        (lambda predictions_, _: (predictions_ - 0.3, np.ones_like(predictions_)), {"num_class": 3}, "share"),
    ],
)
def test_each_objective_that_lightgbm_trains_is_read(objective: Any, settings: dict[str, Any], label: str) -> None:
    sizes = np.where(_SIZES > 1, np.nan, _SIZES)
    data = np.column_stack([sizes, TABLE["code"].to_numpy(), _SIZES * 1e-300])
    labels = _LABEL if label == "class" else 1 / (1 + np.exp(-_SIZES))
    group = [ROWS // 10] * 10 if objective in ("lambdarank", "rank_xendcg") else None
    rows = lightgbm.Dataset(data, labels, group=group, categorical_feature=[1])
    booster = lightgbm.train({"objective": objective, "verbose": -1, "num_threads": 1} | settings, rows, 3)
    assert len(parse_lightgbm(booster.model_to_string().encode()).feature_names) == 3


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("split_feature", "999999999", "looks at a feature that the model does not have"),
        ("split_feature", "-1", "looks at a feature that the model does not have"),
        ("split_feature", "os", "numbers where there are none"),
        ("left_child", "999999999", "leads to a node that it does not have"),
        ("left_child", "-999999999", "leads to a node that it does not have"),
        ("left_child", "0", "leads to a node that it does not have"),  # for ever
        ("decision_type", "99", "a split of no known type"),
        ("num_leaves", "3", "another number of nodes than it says"),
        ("num_leaves", "99999999999", "a number that is none"),
        ("leaf_value", "0.5 0.5", "another number of nodes than it says"),
        ("num_cat", "0", "split by categories without categories"),
        ("cat_boundaries", "0 999999999", "a set of categories that is not in the file"),
        ("cat_threshold", "-1", "a category of no valid number"),
        # What Python reads and LightGBM does not, or otherwise.
        ("left_child", "0_2", "numbers where there are none"),
        ("left_child", "+2", "numbers where there are none"),
        ("left_child", "1\t", "numbers where there are none"),
        ("left_child", " 2", "numbers where there are none"),
        ("left_child", "2 ", "numbers where there are none"),
        ("left_child", "99999999999", "numbers where there are none"),
        ("split_feature", "\N{ARABIC-INDIC DIGIT ONE}", "is no text|ascii"),
        ("leaf_count", "1.5", "numbers where there are none"),
        ("leaf_value", "infinity", "numbers where there are none"),
        ("leaf_value", "1_0.5", "numbers where there are none"),
        ("leaf_value", "1e99999", "numbers where there are none"),
        ("leaf_value", ".5", "numbers where there are none"),
        ("shrinkage", "", "another number of nodes"),
        ("num_cat", "1073741823", "a set of categories that is not in the file"),
    ],
)
def test_leaves_that_lead_astray_are_refused(
    tmp_path: Path, rows: TrainingRows, key: str, value: str, said: str
) -> None:
    leaves(rows, tmp_path)
    file = tmp_path / "model.lgb"
    assert "num_cat=0" not in file.read_text().partition("Tree=1")[0]
    file.write_text(with_tree_line(file.read_text(), key, lambda line: [*line[:-1], value]))
    with pytest.raises(ScoringError, match=said):
        predictions.load_model(tmp_path)
