"""The Feast repository: opened with this process's settings, and applied when its definitions change.

The repository's files define Feast's project completely: what they no longer define is deleted from the registry.
Values in the online store stay, and become valid again if the definition comes back.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureStore, FileSource
from feast.base_feature_view import BaseFeatureView
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.infra.registry.sql import FeastRegistrySchemaError

from evergreen import storage
from evergreen.feature_store.online_backends import online_backend
from evergreen.lake import fingerprints
from evergreen.settings import settings

_OFFLINE_STORE_TYPES = {"asof": "evergreen.feature_store.offline_store.AsofOfflineStore", "spark": "spark"}
_DEFINITIONS_KEY = "evergreen_definitions"  # fingerprint of what is applied, in the registry and in the online store

log = logging.getLogger(__name__)


def feature_source(feature_model: str, view: str) -> DataSource:
    """Return the source of `view` as the model `feature_model` publishes it, for the configured offline store.

    Evergreen's own store reads the lake's manifests. Spark is given a temporary view of the same name over the same
    published files (see `evergreen.feature_store.training_sets`).
    """
    if settings().offline_store == "spark":
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        return SparkSource(name=view, table=view, timestamp_field="event_timestamp")
    path = settings().lake / "features" / feature_model / view
    return FileSource(name=view, path=str(path), file_format=ParquetFormat(), timestamp_field="event_timestamp")


@cache
def open_feature_store() -> FeatureStore:
    """Return the feature store of this process, with the repository's definitions applied.

    They are applied if the registry, or the online store, was not last given exactly these. Otherwise opening takes no
    lock and writes nothing. Two deployments that share one registry apply theirs in turn each time.
    """
    settings().home.mkdir(parents=True, exist_ok=True)
    fingerprint = _definitions_fingerprint()
    if store := _open_if_applied(fingerprint):
        return store
    with feast_lock():
        return _open_if_applied(fingerprint) or _apply_definitions(fingerprint)


def feast_lock() -> AbstractContextManager[None]:
    """Lock registry and online store, for as long as one of them is changed.

    Materialization writes back the definitions that it read, so it must not overlap with applying others. The lock is
    in the lake, beside the state of the online store: deployments that share one share the other.
    """
    return storage.file_lock(settings().lake / "online" / "feast.lock")


def has_online_marker(store: FeatureStore, name: str, marker: str) -> bool:
    """Return whether `marker` was the last one written under `name` to the online store.

    An online store that was emptied, or restored from a backup, does not have the marker.
    """
    return online_backend(settings().online_store).read_marker(f"{store.project}:{name}") == marker


def write_online_marker(store: FeatureStore, name: str, marker: str) -> None:
    """Write `marker` under `name` to the online store.

    Raises:
        OnlineStoreResetError: no definitions were applied to this store, so it replaced the one that was written to.
    """
    online_backend(settings().online_store).write_marker(f"{store.project}:{name}", marker)


def feast_variables() -> Mapping[str, str]:
    """Return the environment variables that feature_store.yaml refers to, from the settings."""
    current = settings()
    return {
        "EVERGREEN_FEAST_REGISTRY": current.feast_registry,
        "EVERGREEN_FEAST_ONLINE_STORE": json.dumps(online_backend(current.online_store).feast_config()),
        "EVERGREEN_FEAST_OFFLINE_STORE": _OFFLINE_STORE_TYPES[current.offline_store],
    }


def _open_store() -> FeatureStore:
    """Open the store as configured. The variables only need to be set while Feast reads its configuration."""
    variables = feast_variables()
    saved = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ |= variables
    try:
        return FeatureStore(repo_path=str(settings().feature_repo))
    finally:
        for name in variables:
            del os.environ[name]
        os.environ |= saved


def _open_if_applied(fingerprint: str) -> FeatureStore | None:
    """Return the store, or None if other definitions, or none, are applied to it."""
    store = _open_store()
    store.config.registry.schema_mode = "verify"  # two processes that create its tables at once fail
    try:
        applied = store.registry.get_project_metadata(store.project, _DEFINITIONS_KEY)
    except FeastRegistrySchemaError:
        return None
    return store if applied == fingerprint and has_online_marker(store, _DEFINITIONS_KEY, fingerprint) else None


def _apply_definitions(fingerprint: str) -> FeatureStore:
    """Apply the definitions; registry and online store are marked only after that."""
    store = _open_store()
    definitions = list(_load_definitions())
    store.apply(definitions)
    # Entities and data sources that nothing uses any more may stay: they mislead nobody.
    services = {item.name for item in definitions if isinstance(item, FeatureService)}
    views = {item.name for item in definitions if isinstance(item, BaseFeatureView)}
    for name in {service.name for service in store.list_feature_services()} - services:
        store.delete_feature_service(name)
    for name in {view.name for view in store.list_all_feature_views()} - views:
        store.delete_feature_view(name)
    online_backend(settings().online_store).prepare_markers()
    write_online_marker(store, _DEFINITIONS_KEY, fingerprint)
    registry: Any = store.registry
    registry.set_project_metadata(store.project, _DEFINITIONS_KEY, fingerprint)
    files = ", ".join(file.name for file in _definition_files())
    log.info("applied the feature definitions %.12s: %s", fingerprint, files)
    return store


def _load_definitions() -> Iterator[Any]:
    """Return what the repository's files define; Feast's own parser needs them in the working directory."""
    for file in _definition_files():
        for value in runpy.run_path(str(file)).values():
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Entity | BaseFeatureView | FeatureService):
                    yield item


def _definition_files() -> list[Path]:
    return sorted(settings().feature_repo.glob("*.py"))


def _definitions_fingerprint() -> str:
    """Hash everything that the definitions are made from. Reading it is cheap: running the files imports Spark."""
    current = settings()
    models = [
        (str(file.relative_to(folder)), storage.file_sha256(file))
        for folder in import_module("evergreen_models").__path__
        for file in sorted(Path(folder).rglob("*.py"))
    ]
    return fingerprints.compute_fingerprint(
        {
            "files": {file.name: storage.file_sha256(file) for file in _definition_files()},
            "configuration": storage.file_sha256(current.feature_repo / "feature_store.yaml"),
            "models": models,
            "sources": {"lake": str(current.lake), "offline_store": current.offline_store},
            "code": fingerprints.code_of((__name__,), ("feast",)),
        }
    )
