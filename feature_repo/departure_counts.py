"""Entities, feature views and the feature service of `departure_counts`: names and types of what it publishes."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64, Int32
from feast.value_type import ValueType

from evergreen.feature_store.repository import feature_source
from evergreen_models.departure_counts.features import RECENT_COLUMNS, WEATHER_COLUMNS

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)


def _view(name: str, ttl: timedelta, schema: list[Field]) -> FeatureView:
    return FeatureView(
        name=name, entities=[origin], ttl=ttl, schema=schema, source=feature_source("departure_counts", name)
    )


recent_departures = _view(
    "recent_departures", timedelta(minutes=59), [Field(name=column, dtype=Int32) for column in RECENT_COLUMNS]
)
airport_weather = _view(
    "airport_weather", timedelta(hours=6), [Field(name=column, dtype=Float64) for column in WEATHER_COLUMNS]
)
departure_counts = FeatureService(name="departure_counts", features=[recent_departures, airport_weather])
