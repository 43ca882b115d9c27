"""The Feast repository: opened with this process's settings, and applied when its definitions change."""

from __future__ import annotations

import os
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureStore, FeatureView

from evergreen import lake
from evergreen.settings import settings

_STORES = {"asof": "evergreen.store.asof.AsofOfflineStore", "spark": "spark"}


@cache
def feature_store() -> FeatureStore:
    """The feature store of this process, with the definitions in the repository applied.

    Applying is safe beside other processes: the registry is a database, and equal definitions change
    nothing in it.
    """
    now = settings()
    now.home.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "EVERGREEN_FEAST_REGISTRY": now.feast_registry,
        "EVERGREEN_ONLINE_STORE": now.online_store,
        "EVERGREEN_OFFLINE_STORE_TYPE": _STORES[now.offline_store],
    }
    store = FeatureStore(repo_path=str(now.feature_repo))
    store.apply(list(_defined()))
    return store


def _defined() -> Iterator[Any]:
    """What the repository's files define. (Feast's own parser finds them only from one working directory.)"""
    for file in _files():
        for value in runpy.run_path(str(file)).values():
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Entity | FeatureView | FeatureService):
                    yield item


def _files() -> list[Path]:
    return sorted(settings().feature_repo.glob("*.py"))


def definitions() -> dict[str, str]:
    """Hash of each file that defines features."""
    return {file.name: lake.sha256(file) for file in _files()}
