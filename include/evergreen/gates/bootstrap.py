"""The paired bootstrap: resamples of the rows that two scorers share."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import numpy as np

from evergreen.gates.metrics import FloatArray, Metric

# Numbers per array while resampling: 4 MiB each, whatever the number of rows (up to half a million).
_CHUNK_SIZE = 2**19


def bootstrap_differences(
    metric: Metric, label: FloatArray, candidate: FloatArray, reference: FloatArray, resamples: int
) -> FloatArray:
    """Return the metric of `candidate` minus that of `reference` in each resample: (resamples,), from rows (n,).

    The paired bootstrap (Efron and Tibshirani 1993, "An introduction to the bootstrap", chapters 8 and 13):
    rows are drawn with replacement, the same for both scorers. NaN where the metric does not exist.
    """
    return np.concatenate(
        [
            metric(label, candidate, counts) - metric(label, reference, counts)
            for counts in draw_resample_counts(label.size, resamples, resampling_seed(label, candidate, reference))
        ]
    )


def draw_resample_counts(rows: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Yield how often each row is drawn in each resample, in chunks (k, rows) that add up to `resamples`."""
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_SIZE // rows)
    for start in range(0, resamples, chunk):
        k = min(chunk, resamples - start)
        cells = random.integers(rows, size=(k, rows))
        cells += rows * np.arange(k)[:, None]  # each resample counts in cells of its own
        yield np.bincount(cells.ravel(), minlength=k * rows).reshape(k, rows).astype(np.float64)


def resampling_seed(*columns: FloatArray) -> int:
    """Return a seed that depends on the evidence alone, so that judging again draws the same resamples."""
    digest = sha256()
    for column in columns:
        digest.update(column.astype("<f8").tobytes())
    return int.from_bytes(digest.digest(), "big")
