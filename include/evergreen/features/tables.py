"""What a model's `build` hands back: tables that Spark has yet to compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class FeatureTables:
    """One or more tables that Spark computes in one pass.

    `columns` names each table and its columns. `frame` has those columns and `day`; if there is more than
    one table, its column `table` tells which of them a row belongs to.
    """

    columns: Mapping[str, Sequence[str]]
    frame: DataFrame
