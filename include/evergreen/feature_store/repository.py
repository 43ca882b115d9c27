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
from evergreen.feature_store.online_backends import online_store
from evergreen.lake import fingerprints
from evergreen.settings import settings

_STORES = {"asof": "evergreen.feature_store.offline_store.AsofOfflineStore", "spark": "spark"}
_APPLIED = "evergreen_definitions"  # what is applied, in the registry and in the online store


@cache
def feature_store() -> FeatureStore:
    """The feature store of this process, with the definitions in the repository applied.

    They are applied when the registry, or the online store, was not last given exactly these. Opening takes
    no lock then and writes nothing. Two deployments that take turns on one registry apply each time.
    """
    settings().home.mkdir(parents=True, exist_ok=True)
    wanted = _fingerprint()
    if store := _open_applied(wanted):
        return store
    with locked():
        return _open_applied(wanted) or _apply(wanted)


def locked() -> AbstractContextManager[None]:
    """Alone with registry and online store: whoever changes one of them holds this, for as long as it takes.

    Materializing writes back the definitions it has read, so it must not overlap with applying others. The lock
    lies in the lake, beside the record of what the online store holds: who shares the one shares the other.
    """
    return storage.locked(settings().lake / "online" / "feast.lock")


def online_holds(store: FeatureStore, name: str, mark: str) -> bool:
    """Whether `mark` is what `mark_online` last left under `name` in the online store.

    An online store that was emptied, or restored from a backup, does not hold the mark.
    """
    return online_store(settings().online_store).mark(_named(store, name)) == mark


def mark_online(store: FeatureStore, name: str, mark: str) -> None:
    """Leave `mark` under `name` in the online store.

    Raises:
        Emptied: nothing was applied to it: what has taken the place of the store that this process wrote to is not
            marked as holding what was written to the other.
    """
    online_store(settings().online_store).set_mark(_named(store, name), mark)


def _named(store: FeatureStore, name: str) -> str:
    return f"{store.project}:{name}"


def variables() -> Mapping[str, str]:
    """What the configuration of the repository leaves to the environment, from the settings."""
    now = settings()
    return {
        "EVERGREEN_FEAST_REGISTRY": now.feast_registry,
        "EVERGREEN_FEAST_ONLINE_STORE": json.dumps(online_store(now.online_store).for_feast()),
        "EVERGREEN_FEAST_OFFLINE_STORE": _STORES[now.offline_store],
    }


def _open() -> FeatureStore:
    """The feature store as its configuration says, whose variables only need to be there while it is read."""
    before = dict(os.environ)
    os.environ |= variables()
    try:
        return FeatureStore(repo_path=str(settings().feature_repo))
    finally:
        for name in variables():
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _open_applied(wanted: str) -> FeatureStore | None:
    """The feature store, or None if other definitions than `wanted`, or none, are applied to it."""
    store = _open()
    store.config.registry.schema_mode = "verify"  # two processes that create its tables at once fail
    try:
        applied = store.registry.get_project_metadata(store.project, _APPLIED)
    except FeastRegistrySchemaError:
        return None
    return store if applied == wanted and online_holds(store, _APPLIED, wanted) else None


def _apply(wanted: str) -> FeatureStore:
    """The feature store with the definitions applied; only then are registry and online store marked."""
    store = _open()
    defined = list(_defined())
    store.apply(defined)
    names = {type_: {item.name for item in defined if isinstance(item, type_)} for type_ in _REMOVED}
    for service in store.list_feature_services():
        if service.name not in names[FeatureService]:
            store.delete_feature_service(service.name)
    for view in store.list_all_feature_views():
        if view.name not in names[BaseFeatureView]:
            store.delete_feature_view(view.name)
    online_store(settings().online_store).prepare()
    mark_online(store, _APPLIED, wanted)
    registry: Any = store.registry
    registry.set_project_metadata(store.project, _APPLIED, wanted)
    print(
        f"applied the feature definitions {wanted[:12]}: {', '.join(file.name for file in _files())}",
        flush=True,
    )
    return store


# Entities and data sources that nothing uses any more may stay: nobody can be misled by them.
_REMOVED = (FeatureService, BaseFeatureView)


def _defined() -> Iterator[Any]:
    """What the repository's files define. (Feast's own parser finds them only from one working directory.)"""
    for file in _files():
        for value in runpy.run_path(str(file)).values():
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Entity | BaseFeatureView | FeatureService):
                    yield item


def _files() -> list[Path]:
    return sorted(settings().feature_repo.glob("*.py"))


def _fingerprint() -> str:
    """Of everything that the definitions are made from. Reading it is cheap: running the files imports Spark."""
    now = settings()
    models = [
        (str(file.relative_to(folder)), storage.sha256(file))
        for folder in import_module("evergreen_models").__path__
        for file in sorted(Path(folder).rglob("*.py"))
    ]
    return fingerprints.fingerprint(
        {
            "files": {file.name: storage.sha256(file) for file in _files()},
            "configuration": storage.sha256(now.feature_repo / "feature_store.yaml"),
            "models": models,
            "sources": {"lake": str(now.lake), "offline_store": now.offline_store},
            "code": fingerprints.code(("evergreen.feature_store.data_source", __name__), ("feast",)),
        }
    )
