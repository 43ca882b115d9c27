"""Which periods of a log could not be compared with a champion, so that the others come before them.

What is known is published before a period is begun: one that ends the task, by its time or its memory, has failed, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evergreen.lake.datasets import Dataset
from evergreen.lake.fingerprints import compute_fingerprint

_DIGITS = 16


class ComparisonAttempts:
    """The periods that were begun and not published, as the partition `attempts=…` of a dataset says."""

    def __init__(self, dataset: Dataset, champion: str, due: Mapping[str, Mapping[str, Any]]):
        """Read what earlier runs have published.

        Args:
            dataset: that results are published in.
            champion: the hash of its files.
            due: by period, what its result would follow from: if that is something else by now, it has not failed.
        """
        self._dataset, self._champion = dataset, champion
        self._partition = f"attempts={champion[:_DIGITS]}"
        self._due = {period: compute_fingerprint(dict(inputs)) for period, inputs in due.items()}
        published = dataset.manifest(self._partition)
        self._is_published = published is not None
        is_own = published is not None and published.inputs["champion"] == champion
        begun = published.inputs["begun"] if published and is_own else {}
        self.failed = {period for period, fingerprint in begun.items() if self._due.get(period) == fingerprint}

    def begin(self, period: str) -> None:
        """Publish that a period is begun."""
        self.failed.add(period)
        self._publish()

    def end(self, period: str) -> None:
        """Forget a period, which is published; `close` makes it last."""
        self.failed.discard(period)

    def close(self) -> None:
        """Publish which periods have failed."""
        if self._is_published:
            self._publish()

    def _publish(self) -> None:
        inputs = {"champion": self._champion, "begun": {period: self._due[period] for period in sorted(self.failed)}}
        self._dataset.publish(self._partition, compute_fingerprint(inputs), {}, inputs)
        self._is_published = True
