"""Clusters of rows for evidence of tests."""

from __future__ import annotations

import numpy as np


def row_clusters(rows: object) -> dict[str, list[str]]:
    """Each of the rows (n,) is a cluster of its own: rows are independent."""
    array = np.asarray(rows, dtype=object)
    return {"row": [str(number) for number in range(array.size if array.ndim == 1 else 0)]}


def day_clusters(rows: int, days: int) -> dict[str, list[str]]:
    """Rows in order, about equally many of each day."""
    return {"day": [f"2013-03-{1 + number * days // rows:02}" for number in range(rows)]}
