"""Entities, feature views and the feature service of `flight_delay`: names and types of what it publishes."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64, Int32
from feast.value_type import ValueType

from evergreen.feature_store.repository import feature_source
from evergreen_models.flight_delay.features import DELAY_COLUMNS, DELAY_VIEW_KEYS, WEATHER_COLUMNS

carrier, origin, dest, tailnum = (
    Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in ("carrier", "origin", "dest", "tailnum")
)
_entities = {entity.name: entity for entity in (carrier, origin, dest, tailnum)}


def _view(name: str, keys: tuple[str, ...], ttl: timedelta, schema: list[Field]) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[_entities[key] for key in keys],
        ttl=ttl,
        schema=schema,
        source=feature_source("flight_delay", name),
    )


# No view is `served_after` a time: a server, or a pipeline with periods of an hour, has these values at each full hour.
# From one that is fed once a night, requests would get those of the day before: docs/guides/use-a-champion.md.
# A row holds from its hour until the next. Predictions are made on whole minutes: 59 of them, so that a
# group that saw no flight in the last week has no rates, rather than those of an hour ago.
delay_views = [
    _view(
        name,
        keys,
        timedelta(minutes=59),
        [Field(name=column, dtype=Int32 if column.startswith("flights") else Float64) for column in DELAY_COLUMNS],
    )
    for name, keys in DELAY_VIEW_KEYS.items()
]

origin_weather = _view(
    "origin_weather", ("origin",), timedelta(hours=6), [Field(name=column, dtype=Float64) for column in WEATHER_COLUMNS]
)

# One row at the start of a day, which may last 25 hours.
aircraft = _view("aircraft", ("tailnum",), timedelta(hours=25), [Field(name="aircraft_age", dtype=Int32)])

flight_delay = FeatureService(name="flight_delay", features=[*delay_views, origin_weather, aircraft])
