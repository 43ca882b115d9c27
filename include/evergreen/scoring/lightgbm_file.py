"""What a text file of LightGBM holds, and whether its parts fit together.

LightGBM reads trees at the places that the head of the file names, and follows their numbers wherever they lead: a file
from a pod is checked before it is loaded. Each line is on a list of those that `save_model` writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen.scoring.trees import MAX_CATEGORY, category_problem, split_problem
from evergreen.training.categories import UNSEEN_ATTRIBUTE
from evergreen.training.target_transform import TRANSFORM_ATTRIBUTE

_END = b"end of trees\n"
_CATEGORIES = "pandas_categorical:"
_HEAD_FLAGS = {"tree", "average_output"}
_OWN_KEYS = (UNSEEN_ATTRIBUTE, TRANSFORM_ATTRIBUTE)  # which LightGBM skips
_HEAD_KEYS = {
    *("version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective"),
    *("feature_names", "monotone_constraints", "feature_infos", "tree_sizes"),
    *_OWN_KEYS,
}
# Of what follows the trees. LightGBM does not survive a line of parameters of another form.
_PARAMETER = re.compile(r'\[[a-z0-9_]+: [^"\\\n]*\]|')
_SECTION_LINES = {"parameters:", "end of parameters", "parser:", "end of parser"}
_OBJECTIVE_OPTION = re.compile(r"sqrt|(sigmoid|tweedie_variance_power):[0-9]{1,30}(\.[0-9]{1,30})?(e[-+]?[0-9]{1,3})?")
_MULTICLASS_OBJECTIVES = {"multiclass", "multiclassova"}
_OBJECTIVES = {
    *("regression", "regression_l1", "huber", "fair", "poisson", "quantile", "mape", "gamma", "tweedie"),
    *("binary", "cross_entropy", "cross_entropy_lambda", "lambdarank", "rank_xendcg", "custom", "none"),
    *_MULTICLASS_OBJECTIVES,
}
# Numbers as LightGBM writes them. It reads others than Python does: a part that it cannot read may keep it reading for
# ever. Possessive, or a line of many numbers would take many times its size in memory.
_INTEGER = r"-?[0-9]{1,10}+"
_FLOAT = r"-?(?:[0-9]{1,30}+(?:\.[0-9]{1,30}+)?(?:e[-+]?[0-9]{1,3}+)?|inf|nan)"
_INTEGERS = re.compile(f"(?:{_INTEGER}(?: {_INTEGER})*+)?")
_FLOATS = re.compile(f"(?:{_FLOAT}(?: {_FLOAT})*+)?")
_SPLIT_KEYS = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
# Read and never used to predict.
_COUNT_KEYS = ("leaf_count", "internal_count")
_STATISTICS_KEYS = ("split_gain", "leaf_weight", "internal_value", "internal_weight", *_COUNT_KEYS)
_TREE_KEYS = {
    *("num_leaves", "num_cat", "leaf_value", "cat_boundaries", "cat_threshold", "is_linear", "shrinkage"),
    *_SPLIT_KEYS,
    *_STATISTICS_KEYS,
}
_MAX_NUMBER = 1 << 30
_MAX_FEATURES = 1 << 20
_BITS = 32  # of a word of cat_threshold


@dataclass(frozen=True)
class LightGBMFile:
    """The parts that scoring needs to know."""

    feature_names: tuple[str, ...]
    categories: Mapping[str, pa.Array]
    """By column: its categories in the order of their codes. A column of codes has none."""
    unseen_categories: str | None
    target_transform: str | None


def parse_lightgbm(data: bytes) -> LightGBMFile:
    """Return what the file holds.

    Raises:
        ValueError: it has a line that LightGBM does not write, or a part of it points out of it.
    """
    start = data.find(b"\nTree=0\n") + 1
    end = data.find(_END)
    if not data.startswith(b"tree\n") or end < 0 or b"\0" in data or b"\r" in data:
        raise ValueError("is no text file of LightGBM")
    start = start if 0 < start < end else end
    head = _parse_head(data[:start].decode())
    feature_names = tuple(head["feature_names"].split(" "))
    feature_count = _number(head["max_feature_idx"], _MAX_FEATURES) + 1
    if not len(set(feature_names)) == len(feature_names) == len(head["feature_infos"].split(" ")) == feature_count:
        raise ValueError("names another number of features than it has")
    _check_trees(data[start:end], head, feature_count)
    tail = data[end + len(_END) :].decode()
    _check_parameters(tail)
    return LightGBMFile(
        feature_names=feature_names,
        categories=_parse_categories(tail, feature_names),
        unseen_categories=head.get(UNSEEN_ATTRIBUTE),
        target_transform=head.get(TRANSFORM_ATTRIBUTE),
    )


def _parse_head(text: str) -> dict[str, str]:
    head = _parse_lines(text, _HEAD_KEYS, _HEAD_FLAGS)
    for key, value in head.items():
        if key != "feature_names" and not value.isascii():
            raise ValueError(f"has letters in {key} that LightGBM does not write")
    if missing := _HEAD_KEYS - {"objective", "monotone_constraints", *_OWN_KEYS} - head.keys():
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    if head["version"] != "v4":
        raise ValueError(f"is of version {head['version'][:20]!r} and not v4: write it with LightGBM 4")
    _integers(head.get("monotone_constraints", ""))
    return head


def _parse_lines(text: str, keys: set[str], flags: set[str]) -> dict[str, str]:
    lines: dict[str, str] = {}
    for line in filter(None, text.split("\n")):
        key, equals, value = line.partition("=")
        if key not in (keys if equals else flags) or key in lines or "=" in value:
            raise ValueError(f"has the line {line[:60]!r}, which LightGBM does not write, or not twice")
        lines[key] = value
    return lines


def _check_trees(data: bytes, head: Mapping[str, str], feature_count: int) -> None:
    sizes = _integers(head["tree_sizes"])
    outputs = _number(head["num_tree_per_iteration"], _MAX_NUMBER)
    if outputs < 1 or outputs != _number(head["num_class"], _MAX_NUMBER) or len(sizes) % outputs:
        raise ValueError("has another number of trees than outputs")
    if outputs > max(1, len(sizes)):
        raise ValueError("has more outputs than trees")
    _check_objective(head.get("objective", "none"), outputs)
    if (sizes < 1).any() or sizes.sum() != len(data):
        raise ValueError("has trees of other sizes than its head says")
    for number, (begin, size) in enumerate(zip(np.cumsum(sizes) - sizes, sizes, strict=True)):
        first, _, block = data[begin : begin + size].decode("ascii").partition("\n")
        if first != f"Tree={number}" or not block.endswith("\n\n"):
            raise ValueError("has trees of other sizes than its head says")
        if problem := _tree_problem(_parse_lines(block, _TREE_KEYS, set()), feature_count):
            raise ValueError(f"has a tree, number {number}, that {problem}")


def _check_objective(text: str, outputs: int) -> None:
    """Check that the objective writes as many numbers per row as there are outputs: nothing else keeps it from more."""
    name, *options = text.split(" ")
    if name not in _OBJECTIVES:
        raise ValueError(f"has an objective of no known form, {text[:40]!r}")
    declared = [option for option in options if option.startswith("num_class:")]
    if declared != ([f"num_class:{outputs}"] if name in _MULTICLASS_OBJECTIVES else []):
        raise ValueError("has an objective of another number of outputs")
    if outputs > 1 and name not in {*_MULTICLASS_OBJECTIVES, "custom", "none"}:
        raise ValueError("has an objective of another number of outputs")
    if not all(_OBJECTIVE_OPTION.fullmatch(option) for option in options if option not in declared):
        raise ValueError(f"has an objective of no known form, {text[:40]!r}")


def _tree_problem(tree: Mapping[str, str], feature_count: int) -> str | None:
    if missing := _TREE_KEYS - {"cat_boundaries", "cat_threshold", "is_linear"} - tree.keys():
        return f"lacks {', '.join(sorted(missing))}"
    if tree.get("is_linear", "0") != "0":
        return "has linear models in its leaves: train with linear_tree=False"
    leaves = _number(tree["num_leaves"], _MAX_NUMBER)
    features, kinds, left_children, right_children = (
        _integers(tree[key]) for key in ("split_feature", "decision_type", "left_child", "right_child")
    )
    thresholds, values = _floats(tree["threshold"]), _floats(tree["leaf_value"])
    if (
        leaves < 1
        or len(_floats(tree["shrinkage"])) != 1
        or len(values) != leaves
        or any(len(p) != leaves - 1 for p in (features, kinds, left_children, right_children, thresholds))
    ):
        return "has another number of nodes than it says"
    for key in _STATISTICS_KEYS:
        length = len((_integers if key in _COUNT_KEYS else _floats)(tree[key]))
        # LightGBM reads the weights of leaves also where there are none.
        is_optional = key != "leaf_weight" or leaves == 1
        if length != (leaves if key.startswith("leaf") else leaves - 1) and not (is_optional and length == 0):
            return "has another number of nodes than it says"
    # A leaf is written as -1 minus its number. Here the leaves come after the splits.
    left_children, right_children = (
        np.where(side < 0, leaves - 2 - side, side) for side in (left_children, right_children)
    )
    if problem := split_problem(
        np.arange(leaves - 1), left_children, right_children, features, 2 * leaves - 1, feature_count
    ):
        return problem
    if len(kinds) and (kinds.min() < 0 or kinds.max() > 15):
        return "has a split of no known type"
    return _category_split_problem(tree, thresholds[(kinds & 1) == 1])


def _category_split_problem(tree: Mapping[str, str], chosen: NDArray[Any]) -> str | None:
    count = _number(tree["num_cat"], _MAX_NUMBER)
    ends, words = _integers(tree.get("cat_boundaries", "")), _integers(tree.get("cat_threshold", ""))
    if count and (len(ends) != count + 1 or len(words) > count * MAX_CATEGORY // _BITS):
        return "has a set of categories that is not in the file"
    if not ((chosen >= 0) & (chosen < count) & (chosen == np.floor(chosen))).all():
        return "has a split by categories without categories"
    if not count:
        return None if not tree.keys() & {"cat_boundaries", "cat_threshold"} else "has categories of no split"
    if len(words) and (words.min() < 0 or words.max() >= 1 << _BITS):
        return "has a category of no valid number"
    return category_problem(ends[:-1], np.diff(ends), len(words))


def _check_parameters(text: str) -> None:
    """Check the parameters of training, which LightGBM reads again, of what follows the trees."""
    importances, has_start, rest = text.partition("\nparameters:\n")
    parameters, has_end, categories = rest.partition("end of parameters\n")
    if bool(has_start) != bool(has_end) or _SECTION_LINES & {*importances.split("\n"), *categories.split("\n")}:
        raise ValueError("has parameters without an end")
    for line in parameters.split("\n"):
        if not _PARAMETER.fullmatch(line):
            raise ValueError(f"has the parameter {line[:60]!r}, which LightGBM does not write")


def _parse_categories(text: str, feature_names: tuple[str, ...]) -> dict[str, pa.Array]:
    """Return the categories by column, of what follows the trees."""
    position = text.rfind(_CATEGORIES)
    line = text[position:].removeprefix(_CATEGORIES).strip() if position >= 0 else "null"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("has categories that are no JSON") from None
    if not values:
        return {}
    numbers = re.findall(r"^\[categorical_feature: ([0-9,]*)\]$", text, re.MULTILINE)
    columns = [int(number) for number in numbers[0].split(",") if number] if len(numbers) == 1 else []
    if not isinstance(values, list) or len(values) != len(columns) or columns != sorted(set(columns)):
        raise ValueError("has categories for another number of columns than it names")
    if columns[-1] >= len(feature_names):
        raise ValueError("has categories of a column that it does not have")
    try:
        arrays = [pa.array(column) for column in values]
    except (pa.ArrowException, TypeError, OverflowError):
        raise ValueError("has categories of several types in a column") from None
    if any(array.null_count or pa.types.is_nested(array.type) or len(array) > MAX_CATEGORY for array in arrays):
        raise ValueError("has categories that are neither text nor numbers")
    return {feature_names[number]: array for number, array in zip(columns, arrays, strict=True)}


def _number(text: str, below: int) -> int:
    """Return a whole number that is not negative."""
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < below):
        raise ValueError(f"has a number that is none, {text[:40]!r}")
    return int(text)


def _integers(text: str) -> NDArray[np.int64]:
    return _parse_numbers(text, _INTEGERS, np.int64)


def _floats(text: str) -> NDArray[np.float64]:
    return _parse_numbers(text, _FLOATS, np.float64)


def _parse_numbers(text: str, form: re.Pattern[str], dtype: type[Any]) -> NDArray[Any]:
    if not form.fullmatch(text):
        raise ValueError("has numbers where there are none")
    return np.fromstring(text, dtype, sep=" ") if text else np.zeros(0, dtype)
