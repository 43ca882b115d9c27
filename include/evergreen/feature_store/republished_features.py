"""Reads features again that were published again meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable

from evergreen.errors import InputsChangedError
from evergreen.lake.datasets import Manifest

_MAX_READS = 3

log = logging.getLogger(__name__)


class RepublishedError(InputsChangedError):
    """Features were republished while examples were read. Nothing was made of them yet, so they may be read again."""

    def __init__(self) -> None:
        super().__init__(f"features were republished {_MAX_READS} times while they were read; clear this task")


def read_again_if_republished(build: Callable[[], Manifest]) -> Manifest:
    """Return what `build` publishes: with the features that are published then, if they changed while it read them.

    A training set is named by the content that it was made from, and nothing of the run depends on it before it is
    published, so the next one is as good as if the task had started a moment later.
    """
    for number in range(1, _MAX_READS):
        try:
            return build()
        except RepublishedError:
            log.info("features were republished while they were read: read again, %s of %s", number + 1, _MAX_READS)
    return build()
