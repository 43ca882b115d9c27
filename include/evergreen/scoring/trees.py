"""What must hold of the nodes of a tree, so that a library that trusts its file follows no link out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CATEGORY = 1 << 24
"""Trees know categories by numbers below this one, which are floats of 32 bits on their way."""


MAX_SPLIT_DEPTH = 10_000
"""Splits on the way to a leaf. Libraries recurse, and their stack ends some ten times deeper; trees that are trained
are of tens of splits, and without a limit of depth of some hundreds."""


def split_problem(
    nodes: NDArray[Any],
    left_children: NDArray[Any],
    right_children: NDArray[Any],
    features: NDArray[Any],
    node_count: int,
    feature_count: int,
) -> str | None:
    """Return what is wrong with the splits of a binary tree, or None.

    Args:
        nodes: the number of each split among all nodes; the root has number 0.
        left_children: the node that each split leads to on one side, by number.
        right_children: the same on the other side.
        features: the feature that each split looks at.
        node_count: splits and leaves.
        feature_count: of the model.
    """
    if not len(nodes) == len(left_children) == len(right_children) == len(features):
        return "has splits without a side or a feature"
    if len(features) and (features.min() < 0 or features.max() >= feature_count):
        return "looks at a feature that the model does not have"
    children = np.concatenate([left_children, right_children])
    if len(children) and (children.min() < 1 or children.max() >= node_count):
        return "leads to a node that it does not have"
    # Each node has one way to it at most, and the root none: then no way from the root comes back to where it was.
    if len(children) != len(np.unique(children)):
        return "leads to a node on two ways"
    return _depth_problem(nodes, left_children, right_children, node_count)


def _depth_problem(
    nodes: NDArray[Any], left_children: NDArray[Any], right_children: NDArray[Any], node_count: int
) -> str | None:
    """Return what is wrong with the ways from the root, none of which comes back to where it was."""
    split_of_node = np.full(node_count, -1)
    split_of_node[nodes] = np.arange(len(nodes))
    level, depth, count = split_of_node[:1], 0, 0
    while len(level := level[level >= 0]):
        depth += 1
        if depth > MAX_SPLIT_DEPTH:
            return f"is deeper than {MAX_SPLIT_DEPTH:,} splits"
        count += len(level)
        level = split_of_node[np.concatenate([left_children[level], right_children[level]])]
    # Splits out of reach may lead to one another for ever.
    return None if count == len(nodes) else "has splits that its root does not lead to"


def category_problem(starts: NDArray[Any], sizes: NDArray[Any], length: int) -> str | None:
    """Return what is wrong with sets of categories that are parts of one array of this length, one after the other."""
    if len(starts) != len(sizes):
        return "has a set of categories without an end"
    if len(sizes) and (sizes.min() < 0 or sizes.max() > length):
        return "has a set of categories that is not in the file"
    sizes = sizes.astype(np.int64)
    if sizes.sum() != length or not np.array_equal(starts, np.cumsum(sizes) - sizes):
        return "has a set of categories that is not in the file, or in two places"
    return None
