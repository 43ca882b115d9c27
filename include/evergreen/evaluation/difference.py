"""Where served feature values differ from those that a model would have been trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from evergreen.gates.evidence import OnlineSample

_CLOSE = 1e-6
"""Relative: single precision on one side is no difference."""


def compare(
    entities: Sequence[Mapping[str, Any]],
    offline: Mapping[str, Sequence[Any]],
    online: Mapping[str, Sequence[Any]],
    moment: datetime,
) -> OnlineSample:
    """Hold each value of `offline`, (n,) per feature, against the one of `online`; one that is absent is none."""
    different, example = 0, ""
    for name, values in offline.items():
        for entity, ours, served in zip(
            entities, values, online.get(name, [None] * len(entities)), strict=True
        ):
            if same(ours, served):
                continue
            different += 1
            if not example:
                who = ", ".join(f"{key}={value}" for key, value in entity.items())
                example = f"{name} of {who} is {_told(served)} online, {_told(ours)} offline as of {moment}"
    return OnlineSample(sum(map(len, offline.values())), different, example)


def same(one: Any, other: Any) -> bool:
    """Equal, both none (NaN is none), or numbers that single precision cannot tell apart."""
    if _is_none(one) or _is_none(other):
        return _is_none(one) and _is_none(other)
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=_CLOSE)
    return bool(one == other)


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _told(value: Any) -> str:
    return "nothing" if _is_none(value) else repr(value)
