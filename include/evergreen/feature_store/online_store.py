"""Materialization: writes the newest feature values before an instant to the online store, where serving reads them.

Feast writes whatever it is told to: its SQLite store replaces any value by any other, older or not, and its own
watermark starts elsewhere on first use and is lost by a kill. So the content of the store is recorded in the lake:

    online/<features>/_manifests/state.json  {"watermark": …, "periods": {period: content}, "views": {view: definition}}

Values up to `watermark` may be in the store; it never goes back. Those of `periods` are in it with just that content.
Before the store is written, the state says "anything up to the new watermark, nothing for certain"; afterwards, what is
there. So a kill in between makes everything due again, up to where it would have come. The store holds the state's
fingerprint as a marker; a store that was emptied or restored from a backup does not.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.provider import get_provider
from pydantic import Field

from evergreen.errors import EvergreenError, Fault, FeatureError, SpecError, StaleFeaturesError
from evergreen.feature_store.offline_store import RetrievalError, earliest_timestamp
from evergreen.feature_store.online_encoding import OnlineColumn
from evergreen.feature_store.online_writes import OnlineRows, write_online_rows
from evergreen.feature_store.repository import (
    feast_lock,
    has_online_marker,
    online_backend_of,
    open_feature_store,
    write_online_marker,
)
from evergreen.feature_store.retrieval import read_table_in_batches, restrict_partitions
from evergreen.features.inputs import published_manifests, published_periods
from evergreen.features.staleness import find_stale_features
from evergreen.features.types import SUPPORTED_TYPES, cast_columns, find_cast_problems
from evergreen.lake import datasets, fingerprints
from evergreen.periods import Calendar
from evergreen.spec import Frozen
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import Window

_STATE_PARTITION = "state"
_AFTER_ALL = "9999-12-31"
_MICROSECOND = timedelta(microseconds=1)
_BATCH_ROWS = 10_000  # of a transaction or pipeline

log = logging.getLogger(__name__)


def materialize_features(model: ModelSpec, window: Window) -> dict[str, str]:
    """Bring the online store up to `window.as_of`, or as far as it came before; return the periods written.

    Published periods are due that the store does not hold as they are: new, late, or corrected ones. From the first of
    them *until the end of what is in the store*, the newest value of each key is written. A value that is replaced is
    either from that stretch, and is not newer, or from before it. If a period that the store holds was corrected or
    removed, the stretch starts at the horizon: a key may have lost its row there, and gets the one before it. (A key
    that has no row left at all keeps its value: Feast deletes none.)

    The horizon is the largest TTL of the views before the end, because older values can never be served; none, if a
    view's values never expire. All views of the model's features are written, whichever service lists them, so one
    state covers all models that use them.

    Raises:
        SpecError: the model's service lists views of other features, which would not be written.
        StaleFeaturesError: published values cannot be read as the views declare them, and some are of periods that
            other code, parameters or registers have made than would make them now.
        RetrievalError, FeatureError: they cannot be read, and none of them is stale.
    """
    return _materialize_until(model, window.calendar, window.as_of)


def periods_to_load(model: ModelSpec, window: Window) -> list[str]:
    """Return the published periods that `materialize_features` may read; some may be after `window`.

    Raises:
        SpecError: see `materialize_features`.
    """
    views = _online_views(open_feature_store(model.feature_model), model)
    watermark = max(window.as_of.astimezone(UTC), _read_state(model).watermark)
    servable = _servable_periods(model, window.calendar, watermark, views) if views else []
    return _periods_to_read(model, window.calendar, servable[0], watermark) if servable else []


def rebuild_online_store(model: ModelSpec) -> dict[str, str]:
    """Write everything that the online store should hold, up to its watermark; return the periods written.

    Returns an empty dict if nothing was ever materialized: use `materialize_features` then, which raises the same.
    """
    if not materialization_state(model):
        return {}
    return _materialize_until(model, feature_spec(model).calendar, _read_state(model).watermark, trust_state=False)


def materialization_state(model: ModelSpec) -> Mapping[str, Any]:
    """Return the recorded state (see the module), or an empty dict if nothing was ever materialized."""
    manifest = datasets.open_dataset(_dataset_name(model)).manifest(_STATE_PARTITION)
    return manifest.inputs if manifest else {}


class _MaterializationState(Frozen):
    watermark: datetime = datetime.min.replace(tzinfo=UTC)
    periods: dict[str, str] = Field(default_factory=dict)  # content hash of each
    views: dict[str, str] = Field(default_factory=dict)  # definition of each

    @property
    def fingerprint(self) -> str:
        return fingerprints.compute_fingerprint(self.model_dump(mode="json"))


def _materialize_until(
    model: ModelSpec, calendar: Calendar, as_of: datetime, trust_state: bool = True
) -> dict[str, str]:
    store = open_feature_store(model.feature_model)
    name = _dataset_name(model)
    dataset = datasets.open_dataset(name)
    with feast_lock(model.feature_model):
        views = _online_views(store, model)
        state = _read_state(model)
        watermark = max(as_of.astimezone(UTC), state.watermark)
        periods = {
            period: manifest.content_hash
            for period, manifest in published_manifests(
                model, _servable_periods(model, calendar, watermark, views)
            ).items()
        }
        specs = {view.name: view.to_proto().spec.SerializeToString(deterministic=True) for view in views}
        definitions = {name: fingerprints.compute_fingerprint(spec.hex()) for name, spec in specs.items()}
        target = _MaterializationState(watermark=watermark, periods=periods, views=definitions)
        is_current = all(state.views.get(view) == definition for view, definition in target.views.items())
        is_trusted = trust_state and is_current and has_online_marker(store, name, state.fingerprint)
        start = _first_period_to_write(state.periods if is_trusted else {}, periods)
        if start is None:
            log.info("online features are those published before %s: nothing to do as of %s", watermark, as_of)
            return {}
        view_names = [view.name for view in views]
        log.info("materializing %s: from %s until %s", ", ".join(view_names), start, watermark)
        _write_state(dataset, _MaterializationState(watermark=watermark))
        read = _periods_to_read(model, calendar, start, watermark)
        try:
            if start != min(periods):
                start = max(min(periods), _first_period_that_changes(store, views, calendar, start, periods))
                read = _periods_to_read(model, calendar, start, watermark)
            with restrict_partitions([datasets.period_partition(period) for period in read]):
                for view in views:
                    # Feast includes both ends. The watermark itself belongs to a period that is not in the state.
                    _write_view(store, view, calendar.start(start), watermark - _MICROSECOND)
        except (RetrievalError, FeatureError) as error:
            _raise_if_stale(model, read, error)
            raise
        write_online_marker(store, name, target.fingerprint)
        _write_state(dataset, target)
    return {"start": start, "end": calendar.shift(calendar.period_at(watermark - _MICROSECOND), 1)}


def _first_period_that_changes(
    store: FeatureStore, views: Sequence[FeatureView], calendar: Calendar, start: str, periods: Collection[str]
) -> str:
    """Return `start`, or an earlier period that rows of `periods` from `start` on say something about."""
    unwritten = [datasets.period_partition(period) for period in periods if period >= start]
    with restrict_partitions(unwritten):
        earliest = [earliest_timestamp(store.config, view.batch_source) for view in views if view.batch_source]
    return min([start, *(calendar.period_at(timestamp) for timestamp in earliest if timestamp)])


def _periods_to_read(model: ModelSpec, calendar: Calendar, start: str, watermark: datetime) -> list[str]:
    """Return the published periods whose rows may be of `start` or later, and that have begun before the watermark.

    A row may be stamped up to one period after its own, such as at the midnight that ends its day.
    """
    read_from = calendar.shift(start, -1)
    return [period for period in published_periods(model, read_from) if calendar.start(period) < watermark]


def _raise_if_stale(model: ModelSpec, periods: Sequence[str], error: RetrievalError | FeatureError) -> None:
    """Raise a StaleFeaturesError that says so instead of `error`, if some of these published periods are stale."""
    try:
        stale = find_stale_features(model, published_manifests(model, periods))
    except (EvergreenError, ImportError):  # `error` is what is to be known
        return
    if not stale.periods:
        return
    count = f"{len(stale.periods)} of the {len(stale.published)} {stale.calendar.unit}s that it reads are stale"
    causes = [Fault(fault.location, fault.problem) for fault in error.faults]
    raise StaleFeaturesError(
        f"the online store of {model.feature_model} cannot be loaded: {count}",
        [*stale.faults(f"{stale.rebuild_fix}, then clear this task"), *causes],
    ) from error


def _write_view(store: FeatureStore, view: FeatureView, start: datetime, end: datetime) -> None:
    """Write the newest value of each key from `start` to `end`.

    As `FeatureStore.materialize` does, whose values pass through pandas: there, a nullable integer is a float. Values
    are encoded by column and not by row.

    Raises:
        FeatureError: published values are not of the types that Feast declares; nothing of the view was written.
    """
    provider, source = get_provider(store.config), view.batch_source
    assert source is not None  # _online_views takes no others
    raw_names = {mapped: raw for raw, mapped in source.field_mapping.items()}
    entity_columns = sorted(view.entity_columns, key=lambda column: column.name)  # as in an encoded key
    keys = {column.name: column.dtype for column in entity_columns if column.name != DUMMY_ENTITY_ID}
    features = {column.name: column.dtype for column in view.features}
    job = provider.offline_store.pull_latest_from_table_or_query(
        store.config,
        source,
        [raw_names.get(name, name) for name in keys],
        [raw_names.get(name, name) for name in features],
        source.timestamp_field,
        source.created_timestamp_column,
        start,
        end,
    )
    columns = {name: SUPPORTED_TYPES[str(dtype)] for name, dtype in {**keys, **features}.items()}
    types = {name: column.arrow for name, column in columns.items()}
    in_key_order = online_backend_of(store.project).wants_key_order
    batches = _read_batches(job, source, in_key_order)
    first = next(batches)
    if any(str(first.schema.field(name).type) != arrow_type for name, arrow_type in types.items()):
        if problems := find_cast_problems(chain([first], batches), types):
            fix = "build its periods again, or declare another type"
            faults = [Fault(f"{view.name}.{name}", problem, fix) for name, problem in problems.items()]
            raise FeatureError(f"features of {store.project}", faults)
        # Once more: nothing is written before all of it has been seen.
        batches = _read_batches(job, source, in_key_order)
    for batch in batches:
        table, _ = cast_columns(batch, types)
        table = table.filter(pc.field(source.timestamp_field).is_valid())
        for name in keys:  # nobody can ask for a key that is null
            table = table.filter(pc.field(name).is_valid())
        if not table.num_rows:
            continue
        online = {name: OnlineColumn(table[name], column.online) for name, column in columns.items()}
        key_columns, values = ({name: online[name] for name in names} for names in (keys, features))
        write_online_rows(store, view, OnlineRows(key_columns, table[source.timestamp_field], values))


def _read_batches(job: RetrievalJob, source: DataSource, in_key_order: bool) -> Iterator[pa.Table]:
    """Return the rows of a retrieval with the names that its view has for them; the first table has no rows."""
    for table in read_table_in_batches(job, _BATCH_ROWS, in_key_order):
        yield table.rename_columns([source.field_mapping.get(name, name) for name in table.column_names])


def _dataset_name(model: ModelSpec) -> str:
    return f"online/{model.feature_model}"


def _read_state(model: ModelSpec) -> _MaterializationState:
    return _MaterializationState.model_validate(materialization_state(model))


def _write_state(dataset: datasets.Dataset, state: _MaterializationState) -> None:
    dataset.publish(_STATE_PARTITION, state.fingerprint, {}, state.model_dump(mode="json"))


def _online_views(store: FeatureStore, model: ModelSpec) -> list[FeatureView]:
    """Return the online views over the model's features dataset, in the registry's order."""
    tables = feature_spec(model).views
    all_views = store.list_feature_views()
    views = [view for view in all_views if view.batch_source and view.batch_source.name in tables]
    listed = {p.name for p in store.get_feature_service(model.feature_service).feature_view_projections}
    if foreign := sorted(listed & {view.name for view in all_views} - {view.name for view in views}):
        problem = f"is not over the features of {model.feature_model}"
        fix = f"use a view over one of {', '.join(tables)}"
        service = f"feature service {model.feature_service}"
        raise SpecError(f"model {model.name}", [Fault(service, f"view {name} {problem}", fix) for name in foreign])
    return [view for view in views if view.online]


def _servable_periods(
    model: ModelSpec, calendar: Calendar, watermark: datetime, views: Sequence[FeatureView]
) -> list[str]:
    """Return the published periods with values that can be served at the watermark, in order."""
    ttls = [view.ttl for view in views if view.ttl]
    start = watermark - max(ttls) if ttls and len(ttls) == len(views) else None
    return [
        period
        for period in published_periods(model, calendar.period_at(start) if start else None)
        if calendar.start(period) < watermark and (start is None or calendar.end(period) > start)
    ]


def _first_period_to_write(written_periods: Mapping[str, str], servable_periods: Mapping[str, str]) -> str | None:
    """Return the period from which the store must be written, or None if it holds everything that is published.

    Written periods before all servable ones have left the horizon.
    """
    horizon = min(servable_periods, default=_AFTER_ALL)
    if any(
        period >= horizon and servable_periods.get(period) != content for period, content in written_periods.items()
    ):
        return horizon
    return min((period for period in servable_periods if period not in written_periods), default=None)
