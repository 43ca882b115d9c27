"""Which periods a run scores, and with which model: pure functions of what is published and of the ledger."""

from __future__ import annotations

import numpy as np
import pytest

from evergreen.batch_predictions import (
    ScoringModel,
    ScoringPeriods,
    find_scoring_model,
    prediction_columns,
    scoring_problem,
    select_scoring_periods,
)
from evergreen.ledger import LedgerState, PromotionsFrozen
from support.ledger_events import THREE_CHAMPIONS, append_event, build_state, content, day, loss, release, rollback

pytestmark = pytest.mark.unit

PERIODS = [day(number) for number in range(5)]
SECOND = ScoringModel("2", content(20), day(13))


def test_the_champion_by_the_ledger_scores() -> None:
    assert find_scoring_model(LedgerState()) is None
    state = build_state(*THREE_CHAMPIONS[:4])
    assert find_scoring_model(state) == SECOND
    frozen = append_event(state, PromotionsFrozen(reason="stocktaking"))
    assert find_scoring_model(frozen) == SECOND, "a freeze stops promotions"
    assert find_scoring_model(append_event(state, rollback("1", "2"))) == ScoringModel("1", content(10), day(3))
    assert find_scoring_model(append_event(state, loss("2", None))) is None


def test_a_planned_model_scores_unless_it_was_found_wrong() -> None:
    state = build_state(*THREE_CHAMPIONS[:4])
    assert scoring_problem(state, SECOND) is None
    assert scoring_problem(build_state(*THREE_CHAMPIONS), SECOND) is None, "a better one came meanwhile"
    barred = append_event(state, rollback("1", "2"))
    assert scoring_problem(barred, SECOND) == "version 2 was rolled back"
    assert scoring_problem(append_event(barred, release("2")), SECOND) is None
    assert scoring_problem(append_event(state, loss("2", "1")), SECOND) == "version 2 was lost"


def test_a_period_is_scored_once() -> None:
    features = {PERIODS[0]: "a", PERIODS[1]: "b", PERIODS[2]: "changed"}
    predicted = {PERIODS[1]: "b", PERIODS[2]: "c", PERIODS[3]: "expired features"}
    assert select_scoring_periods(PERIODS, features, predicted, rescore=False) == ScoringPeriods(
        due=(PERIODS[0],),
        unchanged=(PERIODS[1], PERIODS[3]),
        outdated=(PERIODS[2],),
        unpublished=(PERIODS[4],),
    )
    assert select_scoring_periods(PERIODS, features, predicted, rescore=True) == ScoringPeriods(
        due=tuple(PERIODS[:3]), unpublished=tuple(PERIODS[3:])
    )


def test_each_output_of_a_model_is_a_column() -> None:
    assert list(prediction_columns(np.array([0.1, 0.2]))) == ["prediction"]
    columns = prediction_columns(np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]))
    assert {name: values.tolist() for name, values in columns.items()} == {
        "prediction_0": [0.1, 0.2, 0.3],
        "prediction_1": [0.9, 0.8, 0.7],
    }
