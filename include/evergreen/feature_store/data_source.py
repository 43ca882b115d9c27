"""Where Feast finds published features: one data source per view of the lake."""

from __future__ import annotations

from feast import FileSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource

from evergreen.settings import settings


def feature_source(features_of: str, view: str) -> DataSource:
    """The source of `view` as the model `features_of` publishes it, for the configured offline store.

    Evergreen's own store reads the lake's manifests. Spark is given a temporary view of the same name,
    over the same published files (see `evergreen.feature_store.training_sets`).
    """
    if settings().offline_store == "spark":
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        return SparkSource(name=view, table=view, timestamp_field="event_timestamp")
    path = settings().lake / "features" / features_of / view
    return FileSource(name=view, path=str(path), file_format=ParquetFormat(), timestamp_field="event_timestamp")
