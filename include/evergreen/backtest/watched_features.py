"""Features of the dates of a backtest, as they are published now. Importing this module loads no engine."""

from __future__ import annotations

from collections.abc import Mapping

from evergreen.backtest.cache import BacktestCandidate
from evergreen.features.inputs import published_manifests
from evergreen.lake import datasets
from evergreen.lake.datasets import Manifest
from evergreen.spec.model import ModelSpec


def find_features(
    model: ModelSpec, candidates: Mapping[str, BacktestCandidate]
) -> tuple[dict[str, Manifest], list[str]]:
    """Return the published features of all dates by period, and the periods that others were learned from.

    Those have been published again, or removed, since the first training set that has them was made.
    """
    learned = dict[str, str]()
    for _, candidate in sorted(candidates.items()):
        for partition, content in candidate.training_set.inputs["features"].items():
            learned.setdefault(datasets.partition_period(partition), content)
    published = published_manifests(model, sorted(learned))
    unchanged = {period: item for period, item in published.items() if item.content_hash == learned[period]}
    return unchanged, [period for period in learned if period not in unchanged]
