"""Which values count as equal, and which predictions as those of the model."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evergreen.monitoring.skew import find_differences, find_other_predictions, value_text

pytestmark = pytest.mark.unit

NAN = float("nan")


def differing(served: Any, offline: Any) -> list[bool]:
    found = find_differences(pa.table({"x": served}), pa.table({"x": offline}), ["x"])
    return found[0].differs.tolist() if found else [False] * len(served)


@pytest.mark.parametrize(
    ("served", "offline", "expected"),
    [
        (pa.array([0.1, 1.0, None, NAN]), pa.array([np.float32(0.1), 1.1, NAN, None]), [False, True, False, False]),
        (pa.array([1.0, None, 3.0]), pa.array([1, 2, None], pa.int64()), [False, True, True]),
        (pa.array([np.inf, -np.inf, np.inf]), pa.array([np.inf, np.inf, 1.0]), [False, True, True]),
        (pa.array([0.0, 1e300]), pa.array([1e-12, 1e300]), [True, False]),
        (pa.array([2**63 + 1, 5], pa.uint64()), pa.array([1.0, 5.0]), [True, False]),
        (pa.array(["a", None, "ä"]), pa.array(["a", "b", "a"]), [False, True, True]),
        (pa.array([True, False]), pa.array([True, True]), [False, True]),
        (pa.array([None, None]), pa.array([None, 1.0]), [False, True]),
        (pa.array([None, None]), pa.array([None, "x"]), [False, True]),
        (
            pa.array([datetime(2013, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC")),
            pa.array([datetime(2013, 1, 1, tzinfo=UTC), None], pa.timestamp("ns", "UTC")),
            [False, True],
        ),
        (pa.array([], pa.float64()), pa.array([], pa.float64()), []),
    ],
)
def test_values_are_equal_in_single_precision(served: Any, offline: Any, expected: list[bool]) -> None:
    assert differing(served, offline) == expected


def test_it_is_known_which_side_lacks_a_value() -> None:
    served, offline = pa.table({"x": [1.0, None, 2.0]}), pa.table({"x": [None, 1.0, 3.0]})
    (difference,) = find_differences(served, offline, ["x"])
    assert difference.only_served.tolist() == [True, False, False]
    assert difference.only_offline.tolist() == [False, True, False]


def test_predictions_differ_beyond_rounding_and_where_there_is_none() -> None:
    computed = np.array([0.5, 0.5, 0.5, 1e-9])
    assert find_other_predictions(np.array([0.50001, 0.51, np.nan, 0.0]), computed).tolist() == [
        False, True, True, False
    ]  # fmt: skip
    several = np.array([[0.2, 0.8], [0.3, 0.7]])
    assert find_other_predictions(several + np.array([[0, 0], [0, 0.1]]), several).tolist() == [False, True]


def test_values_are_shown_short_and_on_one_line() -> None:
    table = pa.table({"x": ["<b>\n" * 100, None]})
    assert value_text(table, "x", 1) == "nothing"
    assert len(value_text(table, "x", 0)) == 41
    assert "\n" not in value_text(table, "x", 0)
