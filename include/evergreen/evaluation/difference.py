"""Where served feature values differ from those that a model would have been trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from evergreen.gates.evidence import OnlineSample

_RELATIVE_TOLERANCE = 1e-6
"""Relative: single precision on one side is no difference."""


def compare_feature_values(
    entities: Sequence[Mapping[str, Any]],
    offline: Mapping[str, Sequence[Any]],
    online: Mapping[str, Sequence[Any]],
    as_of: datetime,
) -> OnlineSample:
    """Hold each value of `offline`, (n,) per feature, against the one of `online`; one that is absent is none."""
    different, example = 0, ""
    for name, values in offline.items():
        for entity, ours, served in zip(entities, values, online.get(name, [None] * len(entities)), strict=True):
            if values_equal(ours, served):
                continue
            different += 1
            if not example:
                who = ", ".join(f"{key}={value}" for key, value in entity.items())
                example = f"{name} of {who} is {_describe_value(served)} online, {_describe_value(ours)} offline as of {as_of}"
    return OnlineSample(sum(map(len, offline.values())), different, example)


def values_equal(left: Any, right: Any) -> bool:
    """Equal, both none (NaN is none), or numbers that single precision cannot tell apart."""
    if _is_missing(left) or _is_missing(right):
        return _is_missing(left) and _is_missing(right)
    if isinstance(left, float | int) and isinstance(right, float | int):
        return math.isclose(left, right, rel_tol=_RELATIVE_TOLERANCE)
    return bool(left == right)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _describe_value(value: Any) -> str:
    return "nothing" if _is_missing(value) else repr(value)
