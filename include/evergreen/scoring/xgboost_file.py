"""What a model file of XGBoost holds, and whether its parts fit together.

XGBoost itself follows any number in its file, also out of its memory: a file from a pod is checked before it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evergreen.scoring.trees import MAX_CATEGORY, category_problem, split_problem
from evergreen.scoring.ubjson import parse_ubjson

_LEAF = -1
_NO_PARENT = (2**31 - 1, -1)
_BOOSTERS = ("gbtree", "dart", "gblinear")
_MAX_OUTPUTS = 1 << 16
_MAX_FEATURES = 1 << 20
_MAX_CATEGORY_BITS = 1 << 31  # of all splits of a file, 256 MiB


@dataclass(frozen=True)
class XGBoostFile:
    """The parts that scoring needs to know."""

    booster: str
    """`gbtree`, `dart` or `gblinear`."""
    objective: str
    attributes: Mapping[str, str]
    rounds: int
    feature_types: tuple[str, ...]
    """By feature; empty if the file names none. `c` is a category."""
    categories: tuple[pa.Array | None, ...]
    """By feature: its categories in the order of their codes; None for a number. Empty if there are none."""


def parse_xgboost(data: bytes) -> XGBoostFile:
    """Return what the file holds.

    Raises:
        ValueError: it is no model of XGBoost, or a part of it points out of it.
    """
    document = parse_ubjson(data)
    try:
        return _parse_learner(document["learner"])
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"is no model of XGBoost ({type(error).__name__}: {str(error)[:80]})") from None


def _parse_learner(learner: Mapping[str, Any]) -> XGBoostFile:
    parameters = learner["learner_model_param"]
    feature_count = _integer(parameters["num_feature"], _MAX_FEATURES)
    outputs = max(
        _integer(parameters[name], _MAX_OUTPUTS) for name in ("num_class", "num_target") if name in parameters
    )
    gradient_booster = learner["gradient_booster"]
    booster = gradient_booster["name"]
    if booster not in _BOOSTERS:
        raise ValueError("has a booster of no known name")
    feature_types = _texts(learner.get("feature_types", []))
    if feature_types and len(feature_types) != feature_count:
        raise ValueError("has types for another number of features")
    categories: tuple[pa.Array | None, ...] = ()
    if booster == "gblinear":
        model = gradient_booster["model"]
        if len(model["weights"]) != (feature_count + 1) * max(outputs, 1):
            raise ValueError("has another number of weights than features")
        rounds = int(model.get("boosted_rounds", 0))
    else:
        model = gradient_booster["model" if booster == "gbtree" else "gbtree"]
        model = model if booster == "gbtree" else model["model"]
        rounds = _check_trees(model, feature_count, max(outputs, 1))
        if booster == "dart" and len(gradient_booster["weight_drop"]) != len(model["trees"]):
            raise ValueError("has weights for another number of trees")
        categories = _parse_categories(model.get("cats", {}), feature_count)
    return XGBoostFile(
        booster=booster,
        objective=str(learner["objective"]["name"]),
        attributes={str(name): str(value) for name, value in learner.get("attributes", {}).items()},
        rounds=rounds,
        feature_types=feature_types,
        categories=categories,
    )


def _check_trees(model: Mapping[str, Any], feature_count: int, outputs: int) -> int:
    """Check all trees; return the number of rounds that made them."""
    trees, groups = model["trees"], _array(model["tree_info"])
    count = _integer(model["gbtree_model_param"]["num_trees"], 1 << 31)
    if not len(trees) == len(groups) == count:
        raise ValueError("has another number of trees than it says")
    if outputs > max(1, count):
        raise ValueError("has more outputs than trees")
    if count and (groups.min() < 0 or groups.max() >= outputs):
        raise ValueError("has a tree for an output that it does not have")
    bits = 0
    for number, tree in enumerate(trees):
        if problem := _tree_problem(tree, feature_count):
            raise ValueError(f"has a tree, number {number}, that {problem}")
        bits += _count_category_bits(tree)
        if bits > _MAX_CATEGORY_BITS:
            raise ValueError(f"has sets of categories of more than {_MAX_CATEGORY_BITS:,} bits")
    per_round = outputs * max(1, _integer(model["gbtree_model_param"].get("num_parallel_tree", "1"), 1 << 31))
    if "iteration_indptr" not in model:
        return count // per_round
    ends = _array(model["iteration_indptr"])
    if not len(ends) or ends[0] != 0 or ends[-1] != count or (np.diff(ends) < 0).any():
        raise ValueError("has rounds that do not add up to its trees")
    return len(ends) - 1


def _tree_problem(tree: Mapping[str, Any], feature_count: int) -> str | None:
    parameters = tree["tree_param"]
    count = _integer(parameters["num_nodes"], 1 << 31)
    if _integer(parameters["size_leaf_vector"], 1 << 31) > 1:
        return 'has several numbers in a leaf: train with multi_strategy="one_output_per_tree"'
    if _integer(parameters["num_feature"], _MAX_FEATURES) != feature_count:
        return "is of another number of features"
    left_children, right_children, features = (
        _array(tree[name]) for name in ("left_children", "right_children", "split_indices")
    )
    kinds = _array(tree.get("split_type", np.zeros(count, np.uint8)))
    other_arrays = [
        tree[name] for name in ("split_conditions", "default_left", "base_weights", "parents", "sum_hessian")
    ]
    if count < 1 or any(len(part) != count for part in (left_children, right_children, features, kinds, *other_arrays)):
        return "has another number of nodes than it says"
    splits = left_children != _LEAF
    numbers = np.flatnonzero(splits)
    if ((right_children != _LEAF) != splits).any():
        return "has a split with one side"
    if problem := split_problem(
        numbers, left_children[splits], right_children[splits], features[splits], count, feature_count
    ):
        return problem
    parents = _array(tree["parents"])
    for children in (left_children, right_children):
        if not np.array_equal(parents[children[splits]], numbers):
            return "has a node with another parent than the one that leads to it"
    # Of the root, and of nodes that were pruned.
    if parents[0] not in _NO_PARENT or not (((parents >= 0) & (parents < count)) | np.isin(parents, _NO_PARENT)).all():
        return "has a node with a parent that it does not have"
    if not np.isin(kinds, (0, 1)).all():
        return "has a split of no known type"
    names = ("categories_nodes", "categories_segments", "categories_sizes", "categories")
    nodes, starts, sizes, categories = (_array(tree.get(name, [])) for name in names)
    if not np.array_equal(nodes, np.flatnonzero(kinds == 1)):
        return "has categories of other nodes than splits by categories"
    if len(nodes) != len(starts):
        return "has a set of categories without a start"
    if len(categories) and (categories.min() < 0 or categories.max() >= MAX_CATEGORY):
        return "has a category of no valid number"
    if len(sizes) and sizes.min() < 1:
        return "has a set of categories that is empty"
    return category_problem(starts, sizes, len(categories))


def _count_category_bits(tree: Mapping[str, Any]) -> int:
    """Return the bits that XGBoost takes for the sets of categories: up to the highest one of each split."""
    starts, categories = _array(tree.get("categories_segments", [])), _array(tree.get("categories", []))
    if not len(starts):
        return 0
    return int(np.maximum.reduceat(categories.astype(np.int64), starts.astype(np.int64)).sum()) + len(starts)


def _parse_categories(container: Mapping[str, Any], feature_count: int) -> tuple[pa.Array | None, ...]:
    encodings = container.get("enc", [])
    if not len(encodings):
        return ()
    if len(encodings) != feature_count:
        raise ValueError("has categories for another number of features")
    parsed = tuple(map(_parse_encoding, encodings))
    ends = _array(container["feature_segments"])
    lengths = [0 if values is None else len(values) for values in parsed]
    if not np.array_equal(ends, np.concatenate([[0], np.cumsum(lengths)])):
        raise ValueError("has categories that do not add up")
    order = _array(container["sorted_idx"])
    expected = np.concatenate([np.arange(0), *(np.arange(length) for length in lengths)])
    actual = np.concatenate([np.arange(0), *(np.sort(part) for part in np.split(order, ends[1:-1]))])
    if not np.array_equal(actual, expected):
        raise ValueError("has categories in no order")
    return parsed


def _parse_encoding(encoding: Mapping[str, Any]) -> pa.Array | None:
    """Return the categories of a feature: text, or numbers; None if it has none."""
    values = _array(encoding["values"])
    if "offsets" not in encoding:
        return pa.array(values) if len(values) else None
    offsets = _array(encoding["offsets"])
    if not len(offsets):
        return None
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        raise ValueError("has a category that is not in the file")
    buffers = [None, pa.py_buffer(offsets.astype(np.int32).tobytes()), pa.py_buffer(values.astype(np.int8).tobytes())]
    texts = pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raise ValueError(
            "has a category that is not UTF-8: XGBoost cuts categories of a pandas frame that are not ASCII; train "
            "with `Categories` of evergreen.training.categories"
        ) from None
    return texts


def _integer(text: str, below: int) -> int:
    """Return the number that XGBoost has written as text."""
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 20 and int(text) < below):
        raise ValueError(f"has a number that is none, {str(text)[:40]!r}")
    return int(text)


def _array(values: Any) -> NDArray[Any]:
    """Return an array of whole numbers, which XGBoost writes as a typed array, or as a list of values."""
    array = np.asarray(values if len(values) else np.zeros(0, np.int64))
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError("has numbers where there are none")
    return array


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("has names that are no text")
    return tuple(values)
