"""Materializing: the newest feature values before an instant go to the online store, where serving reads them.

Feast writes what it is told to: its SQLite store replaces any value by any other, older or not, and its own
watermark begins somewhere else on first use and is lost by a kill. So what the store holds is recorded here:

    online/<features>/_manifests/held.json   {"until": …, "days": {day: content}, "views": {view: definition}}

`until` is the instant up to which values may be in the store; it never goes back. `days` are in it with
exactly that content. Before the store is touched, the record says "anything up to the new `until`, nothing for
sure"; afterwards, what is there. So a kill in between makes everything due again, up to where it would have
come. The store holds the record's fingerprint, and a store that was emptied or restored does not.

`rebuild` writes everything anew, whatever the record says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from feast import FeatureStore, FeatureView

from evergreen.errors import Fault, SpecError
from evergreen.feature_store.repository import (
    feast_lock,
    has_online_marker,
    open_feature_store,
    write_online_marker,
)
from evergreen.features.inputs import features_dataset as features_dataset
from evergreen.lake import datasets, fingerprints
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import Window, midnight

_STATE_PARTITION = "held"
_MICROSECOND = timedelta(microseconds=1)


def materialize_features(model: ModelSpec, window: Window) -> dict[str, str]:
    """Bring the online store up to `window.as_of`, or as far as it came before; gives the days written.

    Due are published days that the store does not hold as they are: new, late, or corrected. From the first
    of them *until the end of what is in the store*, the newest value of each key is written. A value that is
    replaced has either its place in that stretch, and is not newer, or lies before it. When a day that the
    store holds was corrected or removed, the stretch begins at the horizon: a key may have lost its row there,
    and falls back on the one before it. (A key that has no row left at all keeps its value: Feast deletes none.)

    The horizon is the largest TTL of the views before the end, for what is older can never be served; none,
    if a view's values hold for ever. All views of the model's features are written, whoever lists them, so one
    record stands for all models that use them.

    Raises:
        SpecError: the model's service lists views of other features, which this would leave to others.
    """
    return _materialize_until(model, window.timezone, window.as_of)


def rebuild_online_store(model: ModelSpec) -> dict[str, str]:
    """Write all that the online store should hold, up to where it came before; gives the days written.

    Empty if nothing was ever written to it: then `materialize` is for it.

    Raises:
        SpecError: as `materialize`.
    """
    if not materialization_state(model):
        return {}
    return _materialize_until(model, feature_spec(model).timezone, _read_state(model).watermark, trust_state=False)


def _materialize_until(model: ModelSpec, timezone: str, as_of: datetime, trust_state: bool = True) -> dict[str, str]:
    store = open_feature_store()
    name = _dataset_name(model)
    dataset = datasets.open_dataset(name)
    with feast_lock():
        views = _online_views(store, model)
        held = _read_state(model)
        until = max(as_of.astimezone(UTC), held.watermark)
        now = _MaterializationState(
            until,
            _servable_days(model, timezone, until, _ttl_horizon(views)),
            _definition_fingerprints(views),
        )
        trusted = trust_state and _is_current(held, now) and has_online_marker(store, name, held.fingerprint)
        start = _first_day_to_write(held.days if trusted else {}, now.days)
        if start is None:
            print(f"online features are those published before {until}: nothing to do as of {as_of}")
            return {}
        names = [view.name for view in views]
        print(f"materializing {', '.join(names)}: from {start} until {until}", flush=True)
        _write_state(dataset, _MaterializationState(until))
        store.materialize(
            # Feast includes both ends. The first moment of `until` belongs to a day that is not in the record.
            start_date=midnight(start, timezone).astimezone(UTC),
            end_date=until - _MICROSECOND,
            feature_views=names,
        )
        write_online_marker(store, name, now.fingerprint)
        _write_state(dataset, now)
    return {"start": start.isoformat(), "end": _ceil_to_day(until, timezone).isoformat()}


@dataclass(frozen=True)
class _MaterializationState:
    """What the online store holds of one model's features."""

    watermark: datetime
    days: Mapping[date, str] = field(default_factory=dict)  # content of each
    views: Mapping[str, str] = field(default_factory=dict)  # definition of each

    @property
    def as_dict(self) -> dict[str, Any]:
        days = {day.isoformat(): content for day, content in self.days.items()}
        return {"until": self.watermark.isoformat(), "days": days, "views": self.views}

    @property
    def fingerprint(self) -> str:
        return fingerprints.compute_fingerprint(self.as_dict)


_EMPTY_STATE = _MaterializationState(datetime.min.replace(tzinfo=UTC))


def materialization_state(model: ModelSpec) -> Mapping[str, Any]:
    """What the online store holds of the model's features, as above; empty if nothing was ever written to it."""
    manifest = datasets.open_dataset(_dataset_name(model)).manifest(_STATE_PARTITION)
    return manifest.inputs if manifest else {}


def _dataset_name(model: ModelSpec) -> str:
    return f"online/{model.feature_model}"


def _read_state(model: ModelSpec) -> _MaterializationState:
    told = materialization_state(model)
    if not told:
        return _EMPTY_STATE
    days = {date.fromisoformat(day): content for day, content in told["days"].items()}
    return _MaterializationState(datetime.fromisoformat(told["until"]), days, told["views"])


def _write_state(dataset: datasets.Dataset, state: _MaterializationState) -> None:
    dataset.publish(_STATE_PARTITION, state.fingerprint, {}, state.as_dict)


def _online_views(store: FeatureStore, model: ModelSpec) -> list[FeatureView]:
    """The views whose data the model's features dataset holds, in the registry's order."""
    tables = feature_spec(model).views
    every = store.list_feature_views()
    views = [view for view in every if view.batch_source and view.batch_source.name in tables]
    listed = {p.name for p in store.get_feature_service(model.feature_service).feature_view_projections}
    if others := sorted(listed & {view.name for view in every} - {view.name for view in views}):
        where = f"feature service {model.feature_service}"
        way_out = f"use a view over one of {', '.join(tables)}"
        what = f"is not over the features of {model.feature_model}"
        raise SpecError(f"model {model.name}", [Fault(where, f"view {name} {what}", way_out) for name in others])
    return [view for view in views if view.online]


def _definition_fingerprints(views: Sequence[FeatureView]) -> dict[str, str]:
    return {
        view.name: fingerprints.compute_fingerprint(view.to_proto().spec.SerializeToString(deterministic=True).hex())
        for view in views
    }


def _ttl_horizon(views: Sequence[FeatureView]) -> timedelta | None:
    """How long the values of the views hold at most; None: for ever."""
    ttls = [view.ttl for view in views]
    return max((ttl for ttl in ttls if ttl), default=None) if all(ttls) else None


def _servable_days(model: ModelSpec, timezone: str, watermark: datetime, horizon: timedelta | None) -> dict[date, str]:
    """Content of the published days with values that can be served at `until`, in order."""
    published = {
        date.fromisoformat(manifest.partition.removeprefix("day=")): manifest.content_hash
        for manifest in features_dataset(model).manifests()
    }
    return {
        day: content
        for day, content in published.items()
        if midnight(day, timezone) < watermark
        and (horizon is None or midnight(day + timedelta(1), timezone) > watermark - horizon)
    }


def _is_current(state: _MaterializationState, target: _MaterializationState) -> bool:
    """Whether the days of the record are in the store for every view as it is defined now."""
    return all(state.views.get(view) == definition for view, definition in target.views.items())


def _first_day_to_write(written_days: Mapping[date, str], servable_days: Mapping[date, str]) -> date | None:
    """The day from which the store must be written, or None if it holds all that is published.

    Days of the record that are older than all published ones have left the horizon.
    """
    horizon = min(servable_days, default=date.max)
    rewritten = [day for day in written_days if day >= horizon and servable_days.get(day) != written_days[day]]
    if rewritten:
        return min(servable_days)
    return min((day for day in servable_days if day not in written_days), default=None)


def _ceil_to_day(instant: datetime, timezone: str) -> date:
    """The first day that begins at `until` or later."""
    local = instant.astimezone(ZoneInfo(timezone))
    return local.date() if local.time() == time() else local.date() + timedelta(1)
