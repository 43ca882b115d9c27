"""When a candidate becomes champion."""

from __future__ import annotations

from datetime import date

import pytest

from evergreen.gates import Record, Verdict, decide
from evergreen.promotion import decide as promotion
from evergreen.window import Origin

pytestmark = pytest.mark.unit

OLD, NEW = date(2013, 3, 1), date(2013, 3, 8)


def verdict(passed: bool) -> Verdict:
    return decide(
        [
            Record(
                gate="auc",
                outcome="passed" if passed else "failed",
                candidate=0.7,
                champion=None,
                interval=None,
                threshold=0.6,
                rows=1000,
                reason="auc 0.7",
            )
        ]
    )


@pytest.mark.parametrize(
    ("passed", "as_of", "champion", "origin", "promoted", "because"),
    [
        (True, NEW, None, Origin.SCHEDULE, True, "passed"),
        (True, NEW, OLD, Origin.MANUAL, True, "passed"),
        (True, OLD, NEW, Origin.MANUAL, False, "not newer"),
        (True, NEW, NEW, Origin.SCHEDULE, False, "not newer"),
        (True, NEW, OLD, Origin.BACKFILL, False, "backfill"),
        (True, NEW, None, Origin.BACKFILL, False, "backfill"),
        (False, NEW, None, Origin.SCHEDULE, False, "auc"),
    ],
)
def test_promotion(
    passed: bool, as_of: date, champion: date | None, origin: Origin, promoted: bool, because: str
) -> None:
    decision = promotion(verdict(passed), as_of, champion, origin)
    assert decision.promote is promoted
    assert because in decision.reason
