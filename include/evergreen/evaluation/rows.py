"""Evidence by row of the holdout, besides its predictions: groups, and the predictions of baselines."""

# ruff: noqa: S608 - an expression of a spec is SQL on purpose; it runs where it can reach nothing but the rows.

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from evergreen.errors import first_line
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.ingest.databases import quote_name
from evergreen.lake import datasets
from evergreen.lake.datasets import ROW_COLUMN
from evergreen.periods import Calendar
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

LabelCounts = dict[str, tuple[int, int]]
"""`Evidence.label_counts`."""


def historical_evidence(
    model: ModelSpec,
    holdout: pa.Table,
    train_file: Path,
    candidate: ArrayLike,
    champion: ArrayLike | NoChampion | MissingEvidence,
    holdout_periods: tuple[str, str],
    label_counts: LabelCounts,
) -> Evidence:
    """Return the evidence for `backtest_gates`: scores (n,) of the rows of `holdout`, first ≤ period < end.

    `train_file` is the Parquet file that the candidate learned from.
    """
    requirements = EvidenceRequirements.from_gates(model.gates, model.clusters)
    return Evidence(
        label=holdout["label"].to_numpy(),
        candidate=candidate,
        champion=champion,
        holdout=holdout_periods,
        days=feature_spec(model).calendar.dates(*holdout_periods),
        label_counts=label_counts,
        clusters=compute_clusters(holdout, requirements.clusters),
        groups=compute_groups(holdout, requirements.groups),
        baselines=compute_baselines(holdout, train_file, requirements.baselines),
    )


def read_label_counts(file: Path) -> LabelCounts:
    """Read the file `label_counts` of a training set."""
    table = pq.read_table(file)
    counts = zip(table["rows"].to_pylist(), table["labelled"].to_pylist(), strict=True)
    return dict(zip(map(str, table["day"].to_pylist()), counts, strict=True))


def labelled_periods(training_set: datasets.Manifest, label_counts: LabelCounts, calendar: Calendar) -> tuple[str, str]:
    """Return the periods first ≤ period < end of a holdout, without the days at its end that have no label yet.

    A day without a labelled row is not used: a later holdout has its rows for the first time.
    """
    start, end = (training_set.inputs[name] for name in ("holdout", "holdout_end"))
    last = max((date.fromisoformat(day) for day, (_, labelled) in label_counts.items() if labelled), default=None)
    return start, min(end, calendar.first_of(last + timedelta(1))) if last else end


def compute_clusters(table: pa.Table, names: Sequence[str]) -> dict[str, list[str | None] | MissingEvidence]:
    """Return, for each name, the cluster of each row of `table`, (n,), as text; None where the column is null.

    `day` is the day, in the time zone of the features, on which the row's period begins. Any other name is a column.
    """
    return {name: _compute_cluster(table, name) for name in names}


def _compute_cluster(table: pa.Table, name: str) -> list[str | None] | MissingEvidence:
    if name not in table.column_names:
        return MissingEvidence(f"{name!r} is no column of the holdout; {_columns(table)}")
    try:
        names: list[str | None] = table[name].cast(pa.string()).to_pylist()
    except pa.ArrowException:
        return MissingEvidence(f"{name!r} is a column of {table[name].type}, which names nothing")
    return names


def compute_groups(table: pa.Table, expressions: Sequence[str]) -> dict[str, list[str | None] | MissingEvidence]:
    """Return, for each expression, the group of each row of `table`, (n,), as text; None where it is null.

    An expression is the name of a column, or SQL (DuckDB's) over the columns, with timestamps in UTC. It may not
    change the number of rows.
    """
    if not expressions:
        return {}
    # In memory, and without a way to files or settings: a spec can query the rows, and nothing else.
    with duckdb.connect(config={"enable_external_access": "false", "python_enable_replacements": "false"}) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("holdout", table.append_column(ROW_COLUMN, pa.array(np.arange(table.num_rows))))
        con.execute("SET lock_configuration = true")
        return {expression: _compute_group(con, table, expression) for expression in expressions}


def _compute_group(
    con: duckdb.DuckDBPyConnection, table: pa.Table, expression: str
) -> list[str | None] | MissingEvidence:
    sql = quote_name(expression) if expression in table.column_names else expression
    try:
        # Ordered here: an expression with a window function returns the rows in an order of its own.
        query = con.sql(f"SELECT CAST(({sql}) AS VARCHAR) AS name FROM holdout ORDER BY {ROW_COLUMN}")
        names: list[str | None] = query.to_arrow_table()["name"].to_pylist()
    except duckdb.Error as error:
        problem = first_line(error).rstrip(" .!:")
        return MissingEvidence(f"{expression!r} cannot be computed for the holdout: {problem}; {_columns(table)}")
    if len(names) != table.num_rows:
        return MissingEvidence(
            f"{expression!r} returns {len(names)} values for {table.num_rows} rows: one for each is needed"
        )
    return names


def compute_baselines(
    table: pa.Table, train_file: Path, names: Sequence[str]
) -> dict[str, NDArray[np.float64] | MissingEvidence]:
    """Return, for each name, the predictions (n,) of a trivial model for the rows of `table`.

    `prior` predicts the mean label of the Parquet file `train_file`. Any other name is a column that is taken as the
    prediction, and the prior where it is missing.
    """
    if not names:
        return {}
    label = pq.read_table(train_file, columns=["label"])["label"]
    prior = pc.mean(label.cast(pa.float64())).as_py()
    return {name: _compute_baseline(table, name, prior) for name in names}


def _compute_baseline(table: pa.Table, name: str, prior: float | None) -> NDArray[np.float64] | MissingEvidence:
    if prior is None:
        return MissingEvidence(f"the {name} baseline has no prior: there are no training rows")
    if name == "prior":
        return np.full(table.num_rows, prior)
    if name not in table.column_names:
        return MissingEvidence(f"the baseline {name!r} is no column of the holdout; {_columns(table)}")
    try:
        values = table[name].cast(pa.float64()).to_numpy()
    except pa.ArrowException:
        return MissingEvidence(f"the baseline {name!r} is a column of {table[name].type}, which predicts nothing")
    return np.where(np.isnan(values), prior, values)


def _columns(table: pa.Table) -> str:
    return f"its columns are {', '.join(table.column_names)}"
