"""Which forecasts are about one day, or made on one: they differ together, whatever the period of their rows.

Forecasts of neighbouring origins overlap, as do multi-step returns (Hansen and Hodrick 1980, Journal of Political
Economy 88:829-853): those for three periods ahead, made on neighbouring days, have two target days in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evergreen.evaluation.row_files import RowColumn, iter_tables, write_column
from evergreen.gates.evidence import MissingEvidence
from evergreen.lake.datasets import PERIOD_COLUMN
from evergreen.spec.gates import DAY_CLUSTER, ORIGIN_CLUSTER, TARGET_CLUSTER
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec


def compute_targets(model: ModelSpec, holdout: pa.Table) -> dict[str, list[str | None] | MissingEvidence]:
    """Return the day that each row (n,) of a forecast is about, by the name of its clusters; else nothing.

    It is the day, in the time zone of the features, on which the period begins that is `horizon` after the row's: as
    `day` is that of the row's own period. Where that is the target's, it is the day of the origin, `horizon` before it.
    A forecast whose days are no clusters has none.
    """
    if not _has_targets(model):
        return {}
    targets = _target_days(model, holdout)
    return {_cluster(model): targets if isinstance(targets, MissingEvidence) else targets.to_pylist()}


def write_targets(model: ModelSpec, holdout: Path, folder: Path) -> dict[str, RowColumn | MissingEvidence]:
    """Write what `compute_targets` returns, for the rows of a Parquet file, into a file of a folder."""
    if not _has_targets(model):
        return {}
    problems: list[MissingEvidence] = []

    def batches() -> Iterator[pa.Array]:
        names = [name for name in _columns(model) if name in pq.read_schema(holdout).names]
        for table in iter_tables(holdout, names):
            targets = _target_days(model, table)
            if isinstance(targets, MissingEvidence):
                problems.append(targets)
                return
            yield targets

    column = write_column(folder / "target-days.parquet", pa.string(), batches())
    return {_cluster(model): problems[0] if problems else column}


def _has_targets(model: ModelSpec) -> bool:
    return model.forecast is not None and DAY_CLUSTER in model.clusters


def _is_of_targets(model: ModelSpec) -> bool:
    """Return whether the period of a row is that of its label."""
    return model.forecast is not None and model.forecast.row_period == "target"


def _cluster(model: ModelSpec) -> str:
    return ORIGIN_CLUSTER if _is_of_targets(model) else TARGET_CLUSTER


def _columns(model: ModelSpec) -> tuple[str, ...]:
    assert model.forecast
    return PERIOD_COLUMN, "day", model.forecast.horizon


def _target_days(model: ModelSpec, table: pa.Table) -> pa.Array | MissingEvidence:
    """Return the days (n,) that rows are about, or of their origins, or why they are not known."""
    period, day, horizon = _columns(model)
    own_period = period if period in table.column_names else day
    for name in (own_period, horizon):
        if name not in table.column_names:
            return MissingEvidence(f"{name!r} is no column of the holdout")
    periods, horizons = table[own_period], table[horizon]
    try:
        horizons = horizons.cast(pa.int64())
    except pa.ArrowException:
        return MissingEvidence(f"{horizon!r} is a column of {horizons.type}, not of whole numbers")
    if nulls := pc.sum(pc.or_(pc.is_null(periods), pc.is_null(horizons))).as_py():
        return MissingEvidence(f"{nulls:,} of {table.num_rows:,} rows have no {own_period} or {horizon}")
    # Of few different periods and horizons each: every pair is looked up once.
    (starts, start_codes), (steps, step_codes) = map(_encode, (periods.cast(pa.string()), horizons))
    sign = -1 if _is_of_targets(model) else 1
    pairs, places = np.unique(start_codes * max(len(steps), 1) + step_codes, return_inverse=True)
    calendar = feature_spec(model).calendar
    try:
        days = [
            str(calendar.date_of(calendar.shift(starts[pair // len(steps)], sign * steps[pair % len(steps)])))
            for pair in pairs.tolist()
        ]
    except OverflowError:
        return MissingEvidence(f"{horizon!r} has numbers of periods that no calendar has")
    return pa.array(days, pa.string()).take(pa.array(places.ravel()))


def _encode(column: pa.ChunkedArray) -> tuple[list[Any], NDArray[np.int64]]:
    """Return the different values of a column without nulls, and the number of that of each row."""
    values = column.unique()
    return values.to_pylist(), pc.index_in(column, values).to_numpy().astype(np.int64)
