"""What is known of each holdout row besides its predictions: its group, and what a trivial model says of it."""

# ruff: noqa: S608 - an expression of a spec is SQL on purpose; it runs where it can reach nothing but the rows.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evergreen.gates.evidence import MissingEvidence

_ROW_COLUMN = "evergreen_row"


def compute_groups(table: pa.Table, expressions: Sequence[str]) -> dict[str, list[str | None] | MissingEvidence]:
    """Per expression the group of each row of `table`, (n,), as text; None where it is null.

    An expression is the name of a column, or SQL (DuckDB's) over the columns. Timestamps in it are in UTC. It may
    not change the number of rows.
    """
    if not expressions:
        return {}
    # In memory, and without a way to files or settings: a spec can ask about the rows, and about nothing else.
    with duckdb.connect(config={"enable_external_access": "false", "python_enable_replacements": "false"}) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("holdout", table.append_column(_ROW_COLUMN, pa.array(np.arange(table.num_rows))))
        con.execute("SET lock_configuration = true")
        return {expression: _compute_group(con, table, expression) for expression in expressions}


def _compute_group(
    con: duckdb.DuckDBPyConnection, table: pa.Table, expression: str
) -> list[str | None] | MissingEvidence:
    named = '"' + expression.replace('"', '""') + '"' if expression in table.column_names else expression
    try:
        # Ordered here: an expression with a window function gives the rows in an order of its own.
        found: pa.Table = con.sql(
            f"SELECT CAST(({named}) AS VARCHAR) AS found FROM holdout ORDER BY {_ROW_COLUMN}"
        ).to_arrow_table()
    except duckdb.Error as error:
        return MissingEvidence(
            f"{expression!r} cannot be computed for the holdout: {_first_sentence(error)}; {_describe_columns(table)}"
        )
    if found.num_rows != table.num_rows:
        return MissingEvidence(
            f"{expression!r} gives {found.num_rows} values for {table.num_rows} rows: one for each is needed"
        )
    return found["found"].to_pylist()


def compute_baselines(
    table: pa.Table, train_file: Path, names: Sequence[str]
) -> dict[str, NDArray[np.float64] | MissingEvidence]:
    """Per name the predictions of a trivial model for each row of `table`, (n,).

    `prior` predicts the mean label of the Parquet file `train`. Any other name is a column that is taken as the
    prediction, and the prior where it is missing.
    """
    if not names:
        return {}
    label = pq.read_table(train_file, columns=["label"])["label"]
    prior = pc.mean(label.cast(pa.float64())).as_py()
    return {name: _compute_baseline(table, name, prior) for name in names}


def _compute_baseline(table: pa.Table, name: str, prior: float | None) -> NDArray[np.float64] | MissingEvidence:
    if prior is None:
        return MissingEvidence(f"no row to learn the {name} baseline's prior from: the training rows are none")
    if name == "prior":
        return np.full(table.num_rows, prior)
    if name not in table.column_names:
        return MissingEvidence(f"the baseline {name!r} is no column of the holdout; {_describe_columns(table)}")
    try:
        values = table[name].cast(pa.float64()).to_numpy()
    except pa.ArrowException:
        return MissingEvidence(f"the baseline {name!r} is a column of {table[name].type}, which predicts nothing")
    return np.where(np.isnan(values), prior, values)


def _describe_columns(table: pa.Table) -> str:
    return f"its columns are {', '.join(table.column_names)}"


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(" .!:")
