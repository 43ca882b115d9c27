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
from evergreen.feature_store.repository import feature_store, locked, mark_online, online_holds
from evergreen.features.inputs import dataset as features_dataset
from evergreen.lake import datasets, fingerprints
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import Model
from evergreen.window import Window, midnight

_RECORD = "held"
_MOMENT = timedelta(microseconds=1)


def materialize(model: Model, window: Window) -> dict[str, str]:
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
    return _bring_up(model, window.timezone, window.as_of)


def rebuild(model: Model) -> dict[str, str]:
    """Write all that the online store should hold, up to where it came before; gives the days written.

    Empty if nothing was ever written to it: then `materialize` is for it.

    Raises:
        SpecError: as `materialize`.
    """
    if not record(model):
        return {}
    return _bring_up(model, feature_spec(model).timezone, _read(model).until, trusting=False)


def _bring_up(model: Model, timezone: str, as_of: datetime, trusting: bool = True) -> dict[str, str]:
    store = feature_store()
    name = _name(model)
    dataset = datasets.dataset(name)
    with locked():
        views = _views(store, model)
        held = _read(model)
        until = max(as_of.astimezone(UTC), held.until)
        now = _Held(until, _published(model, timezone, until, _horizon(views)), _definitions(views))
        trusted = trusting and _is_sure(held, now) and online_holds(store, name, held.fingerprint)
        start = _first_to_write(held.days if trusted else {}, now.days)
        if start is None:
            print(f"online features are those published before {until}: nothing to do as of {as_of}")
            return {}
        names = [view.name for view in views]
        print(f"materializing {', '.join(names)}: from {start} until {until}", flush=True)
        _write(dataset, _Held(until))
        store.materialize(
            # Feast includes both ends. The first moment of `until` belongs to a day that is not in the record.
            start_date=midnight(start, timezone).astimezone(UTC),
            end_date=until - _MOMENT,
            feature_views=names,
        )
        mark_online(store, name, now.fingerprint)
        _write(dataset, now)
    return {"start": start.isoformat(), "end": _day_after(until, timezone).isoformat()}


@dataclass(frozen=True)
class _Held:
    """What the online store holds of one model's features."""

    until: datetime
    days: Mapping[date, str] = field(default_factory=dict)  # content of each
    views: Mapping[str, str] = field(default_factory=dict)  # definition of each

    @property
    def record(self) -> dict[str, Any]:
        days = {day.isoformat(): content for day, content in self.days.items()}
        return {"until": self.until.isoformat(), "days": days, "views": self.views}

    @property
    def fingerprint(self) -> str:
        return fingerprints.fingerprint(self.record)


_NOTHING = _Held(datetime.min.replace(tzinfo=UTC))


def record(model: Model) -> Mapping[str, Any]:
    """What the online store holds of the model's features, as above; empty if nothing was ever written to it."""
    manifest = datasets.dataset(_name(model)).manifest(_RECORD)
    return manifest.inputs if manifest else {}


def _name(model: Model) -> str:
    return f"online/{model.features_of}"


def _read(model: Model) -> _Held:
    told = record(model)
    if not told:
        return _NOTHING
    days = {date.fromisoformat(day): content for day, content in told["days"].items()}
    return _Held(datetime.fromisoformat(told["until"]), days, told["views"])


def _write(dataset: datasets.Dataset, held: _Held) -> None:
    dataset.publish(_RECORD, held.fingerprint, {}, held.record)


def _views(store: FeatureStore, model: Model) -> list[FeatureView]:
    """The views whose data the model's features dataset holds, in the registry's order."""
    tables = feature_spec(model).views
    every = store.list_feature_views()
    views = [view for view in every if view.batch_source and view.batch_source.name in tables]
    listed = {p.name for p in store.get_feature_service(model.feature_service).feature_view_projections}
    if others := sorted(listed & {view.name for view in every} - {view.name for view in views}):
        where = f"feature service {model.feature_service}"
        way_out = f"use a view over one of {', '.join(tables)}"
        what = f"is not over the features of {model.features_of}"
        raise SpecError(
            f"model {model.name}", [Fault(where, f"view {name} {what}", way_out) for name in others]
        )
    return [view for view in views if view.online]


def _definitions(views: Sequence[FeatureView]) -> dict[str, str]:
    return {
        view.name: fingerprints.fingerprint(view.to_proto().spec.SerializeToString(deterministic=True).hex())
        for view in views
    }


def _horizon(views: Sequence[FeatureView]) -> timedelta | None:
    """How long the values of the views hold at most; None: for ever."""
    ttls = [view.ttl for view in views]
    return max((ttl for ttl in ttls if ttl), default=None) if all(ttls) else None


def _published(model: Model, timezone: str, until: datetime, horizon: timedelta | None) -> dict[date, str]:
    """Content of the published days with values that can be served at `until`, in order."""
    published = {
        date.fromisoformat(manifest.partition.removeprefix("day=")): manifest.content
        for manifest in features_dataset(model).manifests()
    }
    return {
        day: content
        for day, content in published.items()
        if midnight(day, timezone) < until
        and (horizon is None or midnight(day + timedelta(1), timezone) > until - horizon)
    }


def _is_sure(held: _Held, now: _Held) -> bool:
    """Whether the days of the record are in the store for every view as it is defined now."""
    return all(held.views.get(view) == definition for view, definition in now.views.items())


def _first_to_write(sure: Mapping[date, str], published: Mapping[date, str]) -> date | None:
    """The day from which the store must be written, or None if it holds all that is published.

    Days of the record that are older than all published ones have left the horizon.
    """
    horizon = min(published, default=date.max)
    rewritten = [day for day in sure if day >= horizon and published.get(day) != sure[day]]
    if rewritten:
        return min(published)
    return min((day for day in published if day not in sure), default=None)


def _day_after(until: datetime, timezone: str) -> date:
    """The first day that begins at `until` or later."""
    local = until.astimezone(ZoneInfo(timezone))
    return local.date() if local.time() == time() else local.date() + timedelta(1)
