"""The Feast repository: opened with this process's settings, and applied when its definitions change.

Each model that builds features has a Feast project of its own, which has its name, and which `<model>.py` in the
repository defines completely: what the file no longer defines is deleted from the registry. So an error in one file, or
a name that two teams use, does not affect other models. Values in the online store stay, and become valid again if the
definition comes back.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import evergreen.feature_store.feast_import  # noqa: F401 - before Feast

# isort: split
from feast import FeatureService, FeatureStore, FileSource
from feast.base_feature_view import BaseFeatureView
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.infra.registry.sql import FeastRegistrySchemaError

from evergreen import storage
from evergreen.feature_store.database_locks import database_lock
from evergreen.feature_store.online_backends import RedisBackend, SqliteBackend, online_backend
from evergreen.features.definitions import definitions_file, load_definitions
from evergreen.features.served_after import ServedAfter
from evergreen.lake import fingerprints
from evergreen.lake.datasets import lake_root
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec, locate_errors

_OFFLINE_STORE = "evergreen.feature_store.offline_store.AsofOfflineStore"
_DEFINITIONS_KEY = "evergreen_definitions"  # fingerprint of what is applied, in the registry and in the online store

log = logging.getLogger(__name__)


def feature_source(feature_model: str, view: str, served_after: str | None = None) -> DataSource:
    """Return the source of `view` as the model `feature_model` publishes it: in the lake, read by manifests.

    With `served_after`, a length of time such as `6h`, a training row has only rows of periods that had ended so long
    before it: those that were in the online store by then. Without, rows count from their event timestamp on.

    Raises:
        ValueError: `served_after` is no length of time.
    """
    tags = None
    if served_after is not None:
        tags = ServedAfter.declare(served_after, feature_spec(load_spec(feature_model)).calendar).to_tags()
    return table_source(feature_model, view, tags)


def table_source(feature_model: str, table: str, tags: Mapping[str, str] | None = None) -> DataSource:
    """Return the source of a published table, with the tags of `ServedAfter` if its rows are served later."""
    return FileSource(
        name=table,
        path=str(lake_root() / "features" / feature_model / table),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        tags=dict(tags) if tags else None,
    )


def without_serving_delay(source: DataSource) -> DataSource:
    """Return a source whose rows count from their event timestamp on, whatever it declares."""
    changed = copy(source)
    changed.tags = {}
    return changed


@cache
def open_feature_store(feature_model: str) -> FeatureStore:
    """Return the feature store with the project of `feature_model`, and its definitions applied.

    They are applied if the registry, or the online store, was not last given exactly these. Otherwise opening takes no
    lock and writes nothing. Two deployments that share one registry apply theirs in turn each time.

    Raises:
        SpecError: see `load_definitions`.
    """
    settings().home.mkdir(parents=True, exist_ok=True)
    file = definitions_file(feature_model)
    fingerprint = _definitions_fingerprint(feature_model, file)
    if store := _open_if_applied(feature_model, fingerprint):
        return store
    # One at a time, whichever project it is: two processes that create the registry's tables at once fail.
    with _shared_lock("registry"), feast_lock(feature_model):
        return _open_if_applied(feature_model, fingerprint) or _apply_definitions(feature_model, file, fingerprint)


def feast_lock(feature_model: str) -> AbstractContextManager[None]:
    """Lock a project's part of registry and online store, for as long as one of them is changed.

    Materialization writes back the definitions that it read, so it must not overlap with applying others. The lock is
    in the lake, beside the state of the online store: deployments that share one share the other. With a lake in an
    object store, which has no locks, it is one of the database that holds Feast's registry.
    """
    return _shared_lock(feature_model)


def _shared_lock(name: str) -> AbstractContextManager[None]:
    root = lake_root()
    if storage.is_local(root):
        return storage.file_lock(root / "online" / f"{name}.lock")
    return database_lock(settings().feast_registry.get_secret_value(), f"{root}/online/{name}")


def has_online_marker(store: FeatureStore, name: str, marker: str) -> bool:
    """Return whether `marker` was the last one written under `name` to the online store.

    An online store that was emptied, or restored from a backup, does not have the marker.
    """
    return online_backend_of(store.project).read_marker(f"{store.project}:{name}") == marker


def write_online_marker(store: FeatureStore, name: str, marker: str) -> None:
    """Write `marker` under `name` to the online store.

    Raises:
        OnlineStoreResetError: no definitions were applied to this store, so it replaced the one that was written to.
    """
    online_backend_of(store.project).write_marker(f"{store.project}:{name}", marker)


def feast_variables(feature_model: str) -> Mapping[str, str]:
    """Return the environment variables that feature_store.yaml refers to, from the settings."""
    current = settings()
    return {
        "EVERGREEN_FEAST_PROJECT": feature_model,
        "EVERGREEN_FEAST_REGISTRY": current.feast_registry.get_secret_value(),
        "EVERGREEN_FEAST_ONLINE_STORE": json.dumps(online_backend_of(feature_model).feast_config()),
        "EVERGREEN_FEAST_OFFLINE_STORE": _OFFLINE_STORE,
    }


def online_backend_of(feature_model: str) -> SqliteBackend | RedisBackend:
    """Return the online store in use, as Feast's project of these features has it."""
    return online_backend(settings().online_store.get_secret_value(), feature_model)


def _open_store(feature_model: str) -> FeatureStore:
    """Open the store as configured. The variables only need to be set while Feast reads its configuration."""
    variables = feast_variables(feature_model)
    saved = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ |= variables
    try:
        return FeatureStore(repo_path=str(settings().feature_repo))
    finally:
        for name in variables:
            del os.environ[name]
        os.environ |= saved


def _open_if_applied(feature_model: str, fingerprint: str) -> FeatureStore | None:
    """Return the store, or None if other definitions, or none, are applied to it."""
    store = _open_store(feature_model)
    store.config.registry.schema_mode = "verify"  # two processes that create its tables at once fail
    try:
        applied = store.registry.get_project_metadata(store.project, _DEFINITIONS_KEY)
    except FeastRegistrySchemaError:
        return None
    return store if applied == fingerprint and has_online_marker(store, _DEFINITIONS_KEY, fingerprint) else None


def _apply_definitions(feature_model: str, file: Path, fingerprint: str) -> FeatureStore:
    """Apply the definitions; registry and online store are marked only after that."""
    definitions = load_definitions(feature_model)
    store = _open_store(feature_model)
    store.apply(definitions)
    # Entities and data sources that nothing uses any more may stay: they mislead nobody.
    services = {item.name for item in definitions if isinstance(item, FeatureService)}
    views = {item.name for item in definitions if isinstance(item, BaseFeatureView)}
    for name in {service.name for service in store.list_feature_services()} - services:
        store.delete_feature_service(name)
    for name in {view.name for view in store.list_all_feature_views()} - views:
        store.delete_feature_view(name)
    online_backend_of(feature_model).prepare_markers()
    write_online_marker(store, _DEFINITIONS_KEY, fingerprint)
    registry: Any = store.registry
    registry.set_project_metadata(store.project, _DEFINITIONS_KEY, fingerprint)
    log.info("applied the feature definitions of %s: %s", feature_model, file)
    return store


def _definitions_fingerprint(feature_model: str, file: Path) -> str:
    """Hash everything that the definitions are made from. Reading it is cheap: running the file imports Spark."""
    current = settings()
    model = load_spec(feature_model)
    with locate_errors(feature_model, file, "correct it"):
        code = fingerprints.code_of_file(file, model.code_packages)
    calendar = feature_spec(model).calendar  # part of what sources declare about serving
    return fingerprints.compute_fingerprint(
        {
            "file": code,
            "configuration": storage.file_sha256(current.feature_repo / "feature_store.yaml"),
            "sources": {"lake": str(current.lake), "period": calendar.period, "timezone": calendar.timezone},
            "code": fingerprints.code_of((__name__,), ("feast",)),
        }
    )
