"""By when features and champions have to be fresh."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from evergreen.errors import SpecError
from evergreen.ledger import LedgerState
from evergreen.promotion.freshness import champion_due, count_gaps, features_due, find_missing_periods
from evergreen.spec.model import FeatureSpec, ModelSpec, RawSource
from support.ledger_events import build_state, promotion, registration, verdict_event

pytestmark = pytest.mark.unit


def feature_spec(**fields: object) -> FeatureSpec:
    source = RawSource(name="sales", columns={"till": "int64"})
    defaults = dict(timezone="UTC", first_day="2024-01-01", sources=(source,), views=("takings",), spine="receipts")
    return FeatureSpec(**{**defaults, **fields})


def model(features: FeatureSpec, **fields: object) -> ModelSpec:
    gate = dict(kind="threshold", metric="rmse", at_most=1.0)
    defaults = dict(owner="ada", feature_service="tills", schedule="0 0 * * 1", train="4w", holdout="2w")
    return ModelSpec(name="tills", features=features, gates=[gate], **{**defaults, **fields})


@pytest.mark.parametrize(
    ("period", "timezone", "newest", "due"),
    [
        ("1d", "UTC", "2024-01-05", datetime(2024, 1, 7, 6)),
        ("1d", "UTC", None, datetime(2024, 1, 2, 6)),
        # The clocks go forward on 31 March: that day has 23 hours.
        ("1d", "Europe/Berlin", "2024-03-30", datetime(2024, 4, 1, 4)),
        ("1w", "UTC", "2024-01-08", datetime(2024, 1, 22, 6)),
        ("1h", "UTC", "2024-01-05T22:00Z", datetime(2024, 1, 6, 6)),
        ("15min", "Asia/Kolkata", "2024-01-05T22:00Z", datetime(2024, 1, 6, 4, 30)),
    ],
)
def test_the_next_period_is_due_after_its_end(period: str, timezone: str, newest: str | None, due: datetime) -> None:
    spec = feature_spec(period=period, timezone=timezone, fresh_within="6h")
    assert features_due(spec, newest) == due.replace(tzinfo=UTC)


def test_nothing_is_due_without_a_limit_or_after_the_last_day() -> None:
    assert features_due(feature_spec(), "2024-01-05") is None
    ended = feature_spec(fresh_within="1d", last_day="2024-01-06")
    assert features_due(ended, "2024-01-05") == datetime(2024, 1, 8, tzinfo=UTC)
    assert features_due(ended, "2024-01-06") is None


def test_a_champion_is_due_when_its_data_is_too_old() -> None:
    state = build_state(verdict_event(10), registration("1", 1), promotion("1", 10, 1))
    features = feature_spec(first_day="2012-01-01")
    assert champion_due(model(features), state) is None
    assert champion_due(model(features, fresh_within="36h"), state) == datetime(2013, 1, 12, 12, tzinfo=UTC)
    ended = feature_spec(first_day="2012-01-01", last_day="2013-01-10")
    assert champion_due(model(ended, fresh_within="36h"), state) is None  # it has all data


def test_a_model_without_a_champion_is_late_from_its_first_day_on() -> None:
    due = champion_due(model(feature_spec(), fresh_within="1w"), LedgerState())
    assert due == datetime(2024, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize("value", ["0d", "soon", "-1d", 3])
@pytest.mark.parametrize("field", ["fresh_within", "deadline"])
def test_a_limit_that_is_no_length_of_time_is_refused(field: str, value: object) -> None:
    with pytest.raises(SpecError, match=field):
        model(feature_spec(), **{field: value})


def test_periods_that_are_not_over_or_have_no_data_are_not_missing() -> None:
    spec = feature_spec(period="1w")
    published = ["2024-01-01", "2024-01-15"]
    assert find_missing_periods(published, spec, datetime(2024, 1, 24, tzinfo=UTC)) == ["2024-01-08"]
    assert find_missing_periods(published, spec, datetime(2024, 1, 31, tzinfo=UTC)) == ["2024-01-08", "2024-01-22"]
    assert find_missing_periods([], spec, datetime(2024, 1, 31, tzinfo=UTC)) == []
    ended = spec.model_copy(update={"last_day": datetime(2024, 1, 21).date()})
    assert find_missing_periods(published, ended, datetime(2025, 1, 1, tzinfo=UTC)) == ["2024-01-08"]
    assert find_missing_periods(["2024-01-29"], spec, datetime(2024, 1, 31, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    ("period", "published", "gaps"),
    [
        ("1d", [], 0),
        ("1d", ["2024-01-05"], 0),
        ("1d", ["2024-01-05", "2024-01-06"], 0),
        ("1d", ["2024-01-05", "2024-01-07", "2024-01-10"], 3),
        ("1w", ["2024-01-01", "2024-01-15"], 1),
        ("6h", ["2024-01-01T18:00Z", "2024-01-02T06:00Z"], 1),
    ],
)
def test_only_what_a_later_period_follows_is_a_gap(period: str, published: list[str], gaps: int) -> None:
    assert count_gaps(published, feature_spec(period=period)) == gaps
