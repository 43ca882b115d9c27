"""When a served value is another than the one learned from."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from evergreen.evaluation.serving_inputs import compare_feature_values, values_equal

pytestmark = pytest.mark.unit

NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, None),
        (None, NAN),
        (NAN, None),
        (3, 3.0),
        (0.1, float(np.float32(0.1))),
        ("a", "a"),
        (True, True),
    ],
)
def test_the_same(one: object, other: object) -> None:
    assert values_equal(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0, None),
        (NAN, 0.0),
        (1.0, 1.00001),
        (0.0, 1e-9),
        (1_000_000, 1_000_002),
        ("1", 1),
        ("a", "A"),
        ("", None),
    ],
)
def test_not_the_same(one: object, other: object) -> None:
    assert not values_equal(one, other)
    assert not values_equal(other, one)


def test_differences_are_counted_and_the_first_is_told() -> None:
    entities = [{"dest": "ATL", "origin": "JFK"}, {"dest": "BOS", "origin": "LGA"}]
    offline = {"flights": [1, 2], "rate": [None, 0.5], "gone": [None, 3]}
    online = {"rate": [0.25, 0.5], "flights": [1, 2]}
    found = compare_feature_values(entities, offline, online, datetime(2013, 1, 18, 4, tzinfo=UTC))
    assert (found.value_count, found.mismatch_count) == (6, 2)
    assert found.first_mismatch == (
        "rate of dest=ATL, origin=JFK is 0.25 online, nothing offline as of 2013-01-18 04:00:00+00:00"
    )
