"""What the online store answers to a request, with the moment of each value: Feast serves a value whatever its age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from feast import FeatureService, FeatureStore
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.online_response import OnlineResponse

from evergreen.feature_store.repository import open_feature_store
from evergreen.spec.model import ModelSpec


class OnlineValue(NamedTuple):
    """A value of the online store; None and no timestamp if the store has no row of the key."""

    value: Any
    event_timestamp: datetime | None = None

    def is_expired(self, as_of: datetime, ttl: timedelta | None) -> bool:
        """Return whether the row is older than `ttl` at `as_of`, so that a point-in-time join finds nothing."""
        if not ttl or self.event_timestamp is None:
            return False
        return self.event_timestamp < as_of - ttl


OnlineColumns = Mapping[str, Sequence[OnlineValue]]
"""The values (n,) of each feature `view__feature`."""


def feature_ttls(store: FeatureStore, service: FeatureService) -> dict[str, timedelta | None]:
    """Return the TTL of the view of each feature `view__feature` of a service; None: values never expire."""
    return {
        f"{view.name_to_use()}__{feature.name}": store.get_feature_view(view.name).ttl or None
        for view in service.feature_view_projections
        for feature in view.features
    }


def ask_online_store(store: FeatureStore, service: FeatureService, keys: Sequence[Mapping[str, Any]]) -> OnlineResponse:
    """Return Feast's answer for each of `keys`, (n,) join keys by name; empty ones if no view has any."""
    rows = [dict(row) or {DUMMY_ENTITY_ID: DUMMY_ENTITY_VAL} for row in keys]  # Feast counts the values of a column
    return store.get_online_features(service, rows, full_feature_names=True)


def read_online_values(
    store: FeatureStore, service: FeatureService, keys: Sequence[Mapping[str, Any]]
) -> dict[str, list[OnlineValue]]:
    """Return the features of each of `keys`, (n,) join keys by name."""
    response = ask_online_store(store, service, keys)
    values = response.to_dict()
    columns = zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True)
    timestamps = {
        name: [stamp.ToDatetime(UTC) if stamp.seconds else None for stamp in column.event_timestamps]
        for name, column in columns
    }
    names = feature_ttls(store, service)
    return {name: list(map(OnlineValue, values[name], timestamps[name])) for name in names if name in values}


def read_online_features(model: ModelSpec, keys: Sequence[Mapping[str, Any]], as_of: datetime) -> dict[str, list[Any]]:
    """Return what a request at `as_of` gets: the values (n,) of each feature `view__feature` of the model's service.

    A value is None if it is older than the TTL of its view, as in a training set. Feast itself would serve it for ever.
    """
    store = open_feature_store(model.feature_model)
    service = store.get_feature_service(model.feature_service)
    ttls = feature_ttls(store, service)
    return {
        name: [None if value.is_expired(as_of, ttls[name]) else value.value for value in values]
        for name, values in read_online_values(store, service, keys).items()
    }
