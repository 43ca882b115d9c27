"""The Feast repository: opened with this process's settings, and applied when its definitions change.

The repository's files are the whole truth about Feast's project: what they no longer define is taken out of
the registry. Values in the online store stay, and are right again should the definition come back.
"""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureStore
from feast.base_feature_view import BaseFeatureView
from feast.infra.registry.sql import FeastRegistrySchemaError

from evergreen import storage
from evergreen.feature_store.online_backends import online_backend
from evergreen.lake import fingerprints
from evergreen.settings import settings

_OFFLINE_STORE_TYPES = {"asof": "evergreen.feature_store.offline_store.AsofOfflineStore", "spark": "spark"}
_DEFINITIONS_KEY = "evergreen_definitions"  # what is applied, in the registry and in the online store


@cache
def open_feature_store() -> FeatureStore:
    """The feature store of this process, with the definitions in the repository applied.

    They are applied when the registry, or the online store, was not last given exactly these. Opening takes
    no lock then and writes nothing. Two deployments that take turns on one registry apply each time.
    """
    settings().home.mkdir(parents=True, exist_ok=True)
    wanted = _definitions_fingerprint()
    if store := _open_if_applied(wanted):
        return store
    with feast_lock():
        return _open_if_applied(wanted) or _apply_definitions(wanted)


def feast_lock() -> AbstractContextManager[None]:
    """Alone with registry and online store: whoever changes one of them holds this, for as long as it takes.

    Materializing writes back the definitions it has read, so it must not overlap with applying others. The lock
    lies in the lake, beside the record of what the online store holds: who shares the one shares the other.
    """
    return storage.file_lock(settings().lake / "online" / "feast.lock")


def has_online_marker(store: FeatureStore, name: str, marker: str) -> bool:
    """Whether `mark` is what `mark_online` last left under `name` in the online store.

    An online store that was emptied, or restored from a backup, does not hold the mark.
    """
    return online_backend(settings().online_store).read_marker(_marker_key(store, name)) == marker


def write_online_marker(store: FeatureStore, name: str, marker: str) -> None:
    """Leave `mark` under `name` in the online store.

    Raises:
        Emptied: nothing was applied to it: what has taken the place of the store that this process wrote to is not
            marked as holding what was written to the other.
    """
    online_backend(settings().online_store).write_marker(_marker_key(store, name), marker)


def _marker_key(store: FeatureStore, name: str) -> str:
    return f"{store.project}:{name}"


def feast_variables() -> Mapping[str, str]:
    """What the configuration of the repository leaves to the environment, from the settings."""
    now = settings()
    return {
        "EVERGREEN_FEAST_REGISTRY": now.feast_registry,
        "EVERGREEN_FEAST_ONLINE_STORE": json.dumps(online_backend(now.online_store).feast_config()),
        "EVERGREEN_FEAST_OFFLINE_STORE": _OFFLINE_STORE_TYPES[now.offline_store],
    }


def _open_store() -> FeatureStore:
    """The feature store as its configuration says, whose variables only need to be there while it is read."""
    before = dict(os.environ)
    os.environ |= feast_variables()
    try:
        return FeatureStore(repo_path=str(settings().feature_repo))
    finally:
        for name in feast_variables():
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _open_if_applied(fingerprint: str) -> FeatureStore | None:
    """The feature store, or None if other definitions than `wanted`, or none, are applied to it."""
    store = _open_store()
    store.config.registry.schema_mode = "verify"  # two processes that create its tables at once fail
    try:
        applied = store.registry.get_project_metadata(store.project, _DEFINITIONS_KEY)
    except FeastRegistrySchemaError:
        return None
    return store if applied == fingerprint and has_online_marker(store, _DEFINITIONS_KEY, fingerprint) else None


def _apply_definitions(fingerprint: str) -> FeatureStore:
    """The feature store with the definitions applied; only then are registry and online store marked."""
    store = _open_store()
    defined = list(_load_definitions())
    store.apply(defined)
    names = {type_: {item.name for item in defined if isinstance(item, type_)} for type_ in _PRUNED_TYPES}
    for service in store.list_feature_services():
        if service.name not in names[FeatureService]:
            store.delete_feature_service(service.name)
    for view in store.list_all_feature_views():
        if view.name not in names[BaseFeatureView]:
            store.delete_feature_view(view.name)
    online_backend(settings().online_store).prepare_markers()
    write_online_marker(store, _DEFINITIONS_KEY, fingerprint)
    registry: Any = store.registry
    registry.set_project_metadata(store.project, _DEFINITIONS_KEY, fingerprint)
    print(
        f"applied the feature definitions {fingerprint[:12]}: {', '.join(file.name for file in _definition_files())}",
        flush=True,
    )
    return store


# Entities and data sources that nothing uses any more may stay: nobody can be misled by them.
_PRUNED_TYPES = (FeatureService, BaseFeatureView)


def _load_definitions() -> Iterator[Any]:
    """What the repository's files define. (Feast's own parser finds them only from one working directory.)"""
    for file in _definition_files():
        for value in runpy.run_path(str(file)).values():
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Entity | BaseFeatureView | FeatureService):
                    yield item


def _definition_files() -> list[Path]:
    return sorted(settings().feature_repo.glob("*.py"))


def _definitions_fingerprint() -> str:
    """Of everything that the definitions are made from. Reading it is cheap: running the files imports Spark."""
    now = settings()
    models = [
        (str(file.relative_to(folder)), storage.file_sha256(file))
        for folder in import_module("evergreen_models").__path__
        for file in sorted(Path(folder).rglob("*.py"))
    ]
    return fingerprints.compute_fingerprint(
        {
            "files": {file.name: storage.file_sha256(file) for file in _definition_files()},
            "configuration": storage.file_sha256(now.feature_repo / "feature_store.yaml"),
            "models": models,
            "sources": {"lake": str(now.lake), "offline_store": now.offline_store},
            "code": fingerprints.code_of(("evergreen.feature_store.data_source", __name__), ("feast",)),
        }
    )
