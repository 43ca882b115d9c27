"""By when a model has to be fresh: functions of its spec, its ledger, and the periods that are published.

All but the one that lists these periods are pure. Nothing here needs a run: what is late is late whether or not a DAG
was ever started.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from evergreen.features.inputs import published_periods
from evergreen.ledger import LedgerState
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import FeatureSpec, ModelSpec


def list_recent_periods(model: ModelSpec, now: datetime, limit: int) -> list[str]:
    """Return those of the `limit` periods before `now` that are published, in order; if none is, the newest older one.

    Then the names of all periods are listed: a page of 1000 is one request.
    """
    spec = feature_spec(model)
    start = max(spec.first_period, spec.calendar.shift(spec.calendar.period_at(now), -limit))
    return published_periods(model, start) or published_periods(model)[-1:]


def features_due(spec: FeatureSpec, newest: str | None) -> datetime | None:
    """Return when the period after `newest`, the newest one that is published, has to be published at the latest.

    With None as `newest`, none is published, and the first period is due. None if the spec sets no `fresh_within`, or
    if no period follows. Days and weeks of `fresh_within` have 24 hours a day.
    """
    if spec.fresh_within is None:
        return None
    expected = spec.calendar.shift(newest, 1) if newest else spec.first_period
    if spec.end_period and expected >= spec.end_period:
        return None
    return spec.calendar.end(expected) + spec.fresh_within.length


def champion_due(model: ModelSpec, state: LedgerState) -> datetime | None:
    """Return when another champion, with newer data, is needed at the latest; without a champion, an instant long ago.

    None if the spec sets no `fresh_within`, or if the champion has all data that there will ever be.
    """
    if model.fresh_within is None:
        return None
    spec = feature_spec(model)
    data_until = state.champion_as_of or spec.first_period
    if spec.end_period and data_until >= spec.end_period:
        return None
    return spec.calendar.start(data_until) + model.fresh_within.length


def find_missing_periods(published: Sequence[str], spec: FeatureSpec, now: datetime) -> list[str]:
    """Return the periods after the first of `published` that are over at `now`, have data, and are not published."""
    calendar = spec.calendar
    current = calendar.period_at(now)
    end = min(current, spec.end_period or current)
    if not published or published[0] >= end:
        return []
    return sorted(set(calendar.periods_between(published[0], end)) - set(published))


def count_gaps(published: Sequence[str], spec: FeatureSpec) -> int:
    """Return how many periods are not published between the first and the last of `published`, which are in order.

    What comes after the last is not there yet: whether it is late, `features_due` says.
    """
    return spec.calendar.count(published[0], published[-1]) + 1 - len(published) if published else 0
