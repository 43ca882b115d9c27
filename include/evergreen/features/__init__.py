"""The steps that turn raw periods into published features: `validate_raw_files → build → validate_features → publish`.

Each is a function over periods that runs from a task, a test or a notebook, and may run again or twice at once:
periods that are published or built already are recognized by their fingerprint and not computed again.

    inputs      what the features of a period depend on, and the fingerprint of that
    staleness   which published periods other code, parameters or registers have made
    planning    which periods a run publishes, and which run builds each when several need it
    checks      raw files and built features against expectations (Great Expectations)
    build       the features of many periods in one job (Spark)
    row_order   the order of rows in a published file
    steps       faulty periods are left out, and reported when the others are published
    pipeline    publishing, and all steps in one call
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class FeatureTables:
    """One or more tables that Spark computes in one pass; the `build` function of a model yields them.

    `columns` maps the name of each table to its columns. `frame` has those columns and
    the one that names the period of each row: `day` if periods are days or weeks, else `period`. If there is more
    than one table, the column `table` of `frame` names the table of each row.
    """

    columns: Mapping[str, Sequence[str]]
    frame: DataFrame
