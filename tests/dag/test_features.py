"""Which days other runs wait for, found with few questions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.window import days_between

pytestmark = pytest.mark.dag

DAYS = days_between(date(2013, 1, 1), date(2013, 2, 1))


@settings(deadline=None)  # the first imports Airflow
@given(st.sets(st.sampled_from(DAYS)))
def test_all_and_only_those_that_are_there(there: set[date]) -> None:
    from evergreen.orchestration.dags.features import days_with_runs

    assert days_with_runs(DAYS, lambda some: len(there & set(some))) == sorted(there)


def test_a_backfill_of_all_or_none_takes_one_question() -> None:
    from evergreen.orchestration.dags.features import days_with_runs

    for there in (set(DAYS), set[date]()):
        asked: list[Sequence[date]] = []

        def count(some: Sequence[date], there: set[date] = there, asked: list[Sequence[date]] = asked) -> int:
            asked.append(some)
            return len(there & set(some))

        assert days_with_runs(DAYS, count) == sorted(there)
        assert len(asked) == 1
