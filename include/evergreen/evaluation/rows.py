"""Evidence by row of the holdout, besides its predictions: groups, and the predictions of baselines."""

# ruff: noqa: S608 - an expression of a spec is SQL on purpose; it runs where it can reach nothing but the rows.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from evergreen.errors import first_line
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.evaluation.row_files import RowColumn, iter_tables, write_column
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.ingest.databases import open_database, quote_name, quote_text
from evergreen.lake import datasets
from evergreen.lake.datasets import ROW_COLUMN
from evergreen.periods import Calendar
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

_PRIOR = "prior"
_GROUP_BATCH_ROWS = 65_536

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
    if problem := _column_problem(table.column_names, name):
        return problem
    column = _to_names(table[name], name)
    return column if isinstance(column, MissingEvidence) else column.to_pylist()


def write_clusters(file: Path, names: Sequence[str], folder: Path) -> dict[str, RowColumn | MissingEvidence]:
    """Write what `compute_clusters` returns, for the rows of a Parquet file, into files of a folder."""
    columns = pq.read_schema(file).names
    return {
        name: _column_problem(columns, name)
        or _write_column(folder / f"cluster-{n}.parquet", pa.string(), file, name, _to_names)
        for n, name in enumerate(names)
    }


def _column_problem(columns: Sequence[str], name: str) -> MissingEvidence | None:
    return None if name in columns else MissingEvidence(f"{name!r} is no column of the holdout; {_describe(columns)}")


def _to_names(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray | MissingEvidence:
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return MissingEvidence(f"{name!r} is a column of {column.type}, which names nothing")


def _write_column(
    target: Path,
    type_: pa.DataType,
    file: Path,
    name: str,
    convert: Callable[[pa.ChunkedArray, str], pa.ChunkedArray | pa.Array | MissingEvidence],
) -> RowColumn | MissingEvidence:
    """Write what becomes of a column of the file, unless something in it cannot be converted."""
    problems: list[MissingEvidence] = []

    def batches() -> Iterator[pa.ChunkedArray | pa.Array]:
        for table in iter_tables(file, [name]):
            values = convert(table[name], name)
            if isinstance(values, MissingEvidence):
                problems.append(values)
                return
            yield values

    column = write_column(target, type_, batches())
    return problems[0] if problems else column


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
    sql = _group_sql(table.column_names, expression)
    try:
        # Ordered here: an expression with a window function returns the rows in an order of its own.
        query = con.sql(f"SELECT CAST(({sql}) AS VARCHAR) AS name FROM holdout ORDER BY {ROW_COLUMN}")
        names: list[str | None] = query.to_arrow_table()["name"].to_pylist()
    except duckdb.Error as error:
        return _group_problem(expression, error, table.column_names)
    if len(names) != table.num_rows:
        return MissingEvidence(
            f"{expression!r} returns {len(names)} values for {table.num_rows} rows: one for each is needed"
        )
    return names


def _group_sql(columns: Sequence[str], expression: str) -> str:
    return quote_name(expression) if expression in columns else expression


def _group_problem(expression: str, error: duckdb.Error, columns: Sequence[str]) -> MissingEvidence:
    problem = first_line(error).rstrip(" .!:")
    return MissingEvidence(f"{expression!r} cannot be computed for the holdout: {problem}; {_describe(columns)}")


def write_groups(file: Path, expressions: Sequence[str], folder: Path) -> dict[str, RowColumn | MissingEvidence]:
    """Write what `compute_groups` returns, for the rows of a Parquet file, into files of a folder."""
    if not expressions:
        return {}
    columns, rows = pq.read_schema(file).names, pq.read_metadata(file).num_rows
    link = folder / "rows.parquet"  # a path that means no pattern, as what is allowed to be read must be
    link.symlink_to(file.resolve())
    source = f"read_parquet({quote_text(str(link))}, hive_partitioning = false, file_row_number = true)"
    with open_database() as con:
        # A spec can query the rows, and nothing else.
        con.execute(f"SET allowed_paths = [{quote_text(str(link))}]")
        con.execute("SET enable_external_access = false")
        con.execute("SET python_enable_replacements = false")
        con.execute(
            f"CREATE VIEW holdout AS SELECT * EXCLUDE (file_row_number), file_row_number AS {ROW_COLUMN} FROM {source}"
        )
        # The statistics of a file leave NaN out, and DuckDB would take it that there are none.
        con.execute("SET disabled_optimizers = 'statistics_propagation'")
        con.execute("SET lock_configuration = true")
        return {
            expression: _write_group(con, folder / f"group-{n}.parquet", columns, rows, expression)
            for n, expression in enumerate(expressions)
        }


def _write_group(
    con: duckdb.DuckDBPyConnection, target: Path, columns: Sequence[str], rows: int, expression: str
) -> RowColumn | MissingEvidence:
    sql = f"SELECT CAST(({_group_sql(columns, expression)}) AS VARCHAR) AS name, {ROW_COLUMN} AS number FROM holdout"
    # Rows come in their order, unless the expression has a window function or a query. Only then are they sorted.
    for query in (sql, f"{sql} ORDER BY {ROW_COLUMN}"):
        count, is_ordered = 0, True

        def batches(query: str = query) -> Iterator[pa.Array]:
            nonlocal count, is_ordered
            for batch in con.sql(query).to_arrow_reader(_GROUP_BATCH_ROWS):
                numbers = batch.column("number").to_numpy()
                is_ordered = bool(np.array_equal(numbers, np.arange(count, count + numbers.size)))
                if not is_ordered:
                    return
                count += numbers.size
                yield batch.column("name")

        try:
            column = write_column(target, pa.string(), batches())
        except duckdb.Error as error:
            return _group_problem(expression, error, columns)
        if is_ordered and count == rows:
            return column
    values = con.sql(f"SELECT count(*) FROM ({sql})").fetchall()[0][0]
    return MissingEvidence(f"{expression!r} returns {values} values for {rows} rows: one for each is needed")


def compute_baselines(
    table: pa.Table, train_file: Path, names: Sequence[str]
) -> dict[str, NDArray[np.float64] | MissingEvidence]:
    """Return, for each name, the predictions (n,) of a trivial model for the rows of `table`.

    `prior` predicts the mean label of the Parquet file `train_file`. Any other name is a column that is taken as the
    prediction, and the prior where it is missing.
    """
    if not names:
        return {}
    prior = _training_prior(train_file)
    return {name: _compute_baseline(table, name, prior) for name in names}


def write_baselines(
    file: Path, train_file: Path, names: Sequence[str], folder: Path
) -> dict[str, RowColumn | MissingEvidence]:
    """Write what `compute_baselines` returns, for the rows of a Parquet file, into files of a folder."""
    if not names:
        return {}
    prior, columns = _training_prior(train_file), pq.read_schema(file).names
    return {
        name: _baseline_problem(columns, name, prior)
        or _write_column(
            folder / f"baseline-{n}.parquet",
            pa.float64(),
            file,
            columns[0] if name == _PRIOR else name,  # any column has as many rows as the prior
            partial(_to_baseline, prior=prior or 0.0, is_prior=name == _PRIOR),
        )
        for n, name in enumerate(names)
    }


def _training_prior(train_file: Path) -> float | None:
    """Return the mean label; None if there are no labels."""
    total, count = 0.0, 0
    for table in iter_tables(train_file, ["label"]):
        label = table["label"].cast(pa.float64())
        count += len(label) - label.null_count
        total += pc.sum(label).as_py() or 0.0
    return total / count if count else None


def _compute_baseline(table: pa.Table, name: str, prior: float | None) -> NDArray[np.float64] | MissingEvidence:
    if problem := _baseline_problem(table.column_names, name, prior):
        return problem
    assert prior is not None  # a problem
    if name == _PRIOR:
        return np.full(table.num_rows, prior)
    column = _to_baseline(table[name], name, prior=prior)
    return column if isinstance(column, MissingEvidence) else column.to_numpy()


def _baseline_problem(columns: Sequence[str], name: str, prior: float | None) -> MissingEvidence | None:
    if prior is None:
        return MissingEvidence(f"the {name} baseline has no prior: there are no training rows")
    if name == _PRIOR or name in columns:
        return None
    return MissingEvidence(f"the baseline {name!r} is no column of the holdout; {_describe(columns)}")


def _to_baseline(
    column: pa.ChunkedArray, name: str, *, prior: float, is_prior: bool = False
) -> pa.Array | MissingEvidence:
    if is_prior:
        return pa.array(np.full(len(column), prior))
    try:
        values = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException:
        return MissingEvidence(f"the baseline {name!r} is a column of {column.type}, which predicts nothing")
    return pa.array(np.where(np.isnan(values), prior, values))


def _describe(columns: Sequence[str]) -> str:
    return f"its columns are {', '.join(columns)}"
