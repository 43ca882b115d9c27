"""The features that the offline store gives for requests that a server has answered, as its model learned them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pyarrow as pa

from evergreen.feature_store.champion_inputs import view_as_learned
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.feature_store.repository import open_feature_store, without_serving_delay
from evergreen.feature_store.retrieval import restrict_partitions
from evergreen.feature_store.training_sets import join_views
from evergreen.features.staleness import periods_in_reach
from evergreen.lake import datasets
from evergreen.spec.model import ModelSpec
from evergreen.window import Window


def partitions_in_reach(model: ModelSpec, window: Window, inputs: ModelInputs, ttls: int = 1) -> list[str]:
    """Return the partitions of features that requests in `window` may have values of, that many TTLs back."""
    periods = periods_in_reach(model, window, [ttls * view.ttl_seconds for view in inputs.views.values()])
    published = set(datasets.open_dataset(f"features/{inputs.feature_model}").partitions())
    return [name for name in map(datasets.period_partition, periods) if name in published]


def join_as_learned(
    model: ModelSpec,
    inputs: ModelInputs,
    requests: pa.Table,
    partitions: Sequence[str],
    *,
    counts_at_once: bool = False,
    holds_for_ever: bool = False,
) -> pa.Table:
    """Return the features of `inputs`, named `view__feature`, for each of `requests` (n,), in their order.

    Args:
        model: whose inputs they are.
        inputs: as the model has learned them.
        requests: with `event_timestamp` and the columns that views are joined by.
        partitions: of the features, all that may be read.
        counts_at_once: rows count from their timestamp on, whatever `served_after` says.
        holds_for_ever: rows never expire.

    Raises:
        RetrievalError: a table has no such column any more, or keys cannot be compared.
    """
    features: dict[str, list[str]] = {}
    for column in inputs.column_names:
        if place := inputs.find_feature(column):
            features.setdefault(place[0], []).append(place[1])
    views = []
    for name, names in features.items():
        view = view_as_learned(name, inputs, names)
        if counts_at_once and view.batch_source:
            view.batch_source = without_serving_delay(view.batch_source)
        if holds_for_ever:
            view.ttl = timedelta(0)
        views.append(view)
    if not views:
        return requests
    references = [f"{name}:{feature}" for name, names in features.items() for feature in names]
    with restrict_partitions(partitions):
        return join_views(open_feature_store(model.feature_model), views, references, requests)
