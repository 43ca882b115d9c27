"""Namespace and name of each dataset, by OpenLineage's rules for them: those of the store that it is in.

So a raw file has the same name in the events of the job that delivers it, and features in those of who reads them.
Importing this module loads neither OpenLineage nor an engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from evergreen.ingest.path_templates import PeriodTemplate, source_template
from evergreen.lake.datasets import lake_path
from evergreen.registry.tracking import tracking_uri
from evergreen.settings import redact_url, settings
from evergreen.spec.model import FeatureSpec, RawSource
from evergreen.spec.origins import RawFiles, RawQuery, RawTable

_SCHEMES = {"s3a": "s3", "gcs": "gs", "postgresql": "postgres"}


class Place(NamedTuple):
    """Where a dataset is: the store, and its name there."""

    namespace: str
    name: str

    def child(self, name: str) -> Place:
        """Return the place of a part of it."""
        return Place(self.namespace, f"{self.name}/{name}")


def place_at(location: str) -> Place:
    """Return the place of a file or folder: a path on this machine, or the URI of an object store."""
    scheme, separator, _ = location.partition("://")
    if not separator or scheme == "file":
        return Place("file", str(Path(location.removeprefix("file://")).absolute()))
    store = urlsplit(redact_url(location))
    return Place(f"{_normalize_scheme(scheme)}://{store.netloc}", store.path.strip("/"))


def lake_place(dataset: str) -> Place:
    """Return the place of a dataset of the lake, such as `features/flight_delay`."""
    return place_at(str(lake_path(dataset)))


def ledger_place(model: str) -> Place:
    """Return the place of the ledger of a model."""
    return place_at(settings().ledger).child(model)


def raw_place(spec: FeatureSpec, source: RawSource) -> Place:
    """Return the place of the raw data of a source: the folder of all its periods, or the table; a query is named so.

    A query has the name of its source, in the database that it asks.
    """
    origin = source.origin
    if isinstance(origin, RawFiles):
        template = source_template(source.name, origin, None if source.is_register else spec.calendar.partition_key)
        folders = PeriodTemplate(template).fixed_folders
        is_file = source.is_register and not origin.has_parts
        path = template if is_file else folders
        return place_at(f"{settings().raw}/{path}".rstrip("/"))
    if isinstance(origin, RawQuery):
        return _database_place(origin.connection, source.name)
    return _table_place(origin)


def _table_place(table: RawTable) -> Place:
    if table.catalog:
        return _database_place(table.catalog, table.location)
    is_whole = "://" in table.location or table.location.startswith("/")
    return place_at(table.location if is_whole else f"{settings().raw}/{table.location}")


def _database_place(connection: str, name: str) -> Place:
    address = settings().connections.get(connection)
    if address is None:
        return Place(connection, name)
    url = urlsplit(redact_url(address.get_secret_value()))
    database = url.path.strip("/")
    return Place(f"{_normalize_scheme(url.scheme)}://{url.netloc}", f"{database}.{name}" if database else name)


def online_store_place(feature_model: str) -> Place:
    """Return the place of the online features of a model."""
    return place_at(settings().online_store.get_secret_value()).child(feature_model)


def registered_model_place(model: str) -> Place:
    """Return the place of a model in MLflow. A version of it is a version of this dataset."""
    url = urlsplit(redact_url(tracking_uri().get_secret_value()))
    if url.scheme in ("http", "https"):
        return Place(f"mlflow://{url.netloc}", model)
    return Place(f"mlflow+{_normalize_scheme(url.scheme)}://{url.netloc}{url.path}", model)


def champion_place(model: str) -> Place:
    """Return the place of the version that is served, as MLflow names it by the alias."""
    place = registered_model_place(model)
    return place._replace(name=f"{place.name}@champion")


def asset_place(uri: str) -> Place | None:
    """Return the place of what an asset of Evergreen stands for: `evergreen://features/<model>`; None of others.

    Raw data of a model is of several sources, so `evergreen://raw/<model>` stands for the folder of all of them.
    """
    parts = urlsplit(uri)
    name = parts.path.strip("/")
    if parts.scheme != "evergreen" or not name:
        return None
    if parts.netloc == "raw":
        return place_at(settings().raw)
    return lake_place(f"{parts.netloc}/{name}")


def _normalize_scheme(scheme: str) -> str:
    name = scheme.partition("+")[0]
    return _SCHEMES.get(name, name)
