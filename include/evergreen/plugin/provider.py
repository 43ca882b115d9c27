"""Evergreen as a provider of Airflow, so that lineage has its assets: they are datasets of OpenLineage."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return what Airflow asks of a provider: how assets of Evergreen are datasets of OpenLineage."""
    from evergreen import __version__

    return {
        "package-name": "evergreen",
        "name": "Evergreen",
        "description": "Keeps machine-learning models fresh.",
        "versions": [__version__],
        "asset-uris": [
            {
                "schemes": ["evergreen"],
                "handler": "evergreen.plugin.provider.keep_uri",
                "to_openlineage_converter": "evergreen.plugin.provider.convert_asset",
            }
        ],
    }


def keep_uri(uri: Any) -> Any:
    """Return the parts of an asset's URI as they are: all that Evergreen writes are normalized."""
    return uri


def convert_asset(asset: Any, _lineage_context: Any) -> Any:
    """Return the dataset of an asset of Evergreen; None of one that is none."""
    from openlineage.client.event_v2 import Dataset

    from evergreen.lineage_events.places import asset_place

    place = asset_place(asset.uri)
    return Dataset(place.namespace, place.name) if place else None
