"""Evidence by row of the holdout, besides its predictions: groups, and the predictions of baselines."""

# ruff: noqa: S608 - an expression of a spec is SQL on purpose; it runs where it can reach nothing but the rows.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from evergreen.errors import first_line
from evergreen.evaluation.labels import class_numbers, compute_labels
from evergreen.evaluation.requirements import EvidenceRequirements
from evergreen.evaluation.row_files import (
    RowColumn,
    iter_tables,
    predictions_array,
    predictions_type,
    read_numbers,
    write_column,
    write_converted_column,
)
from evergreen.evaluation.target_days import compute_targets
from evergreen.feature_store.seasonal_columns import NAIVE_COLUMN, SCALE_COLUMN, SEASONAL_FILE
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion
from evergreen.ingest.databases import open_database, quote_name, quote_text
from evergreen.lake import datasets
from evergreen.lake.datasets import ROW_COLUMN
from evergreen.periods import Calendar
from evergreen.spec.gates import PRIOR_BASELINE
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import PredictionType

_GROUP_BATCH_ROWS = 65_536
_QUANTILE_ROWS = 2**20

NO_SEASONAL_FILE = MissingEvidence(f"the examples have no file `{SEASONAL_FILE}`: build them again")

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
    seasonal: pa.Table | None = None,
) -> Evidence:
    """Return the evidence for `backtest_gates`: predictions for the rows of `holdout`, first ≤ period < end.

    `train_file` is the Parquet file that the candidate learned from; `seasonal`, of a forecast, the file of that name
    of the training set, with as many rows as `holdout`.
    """
    requirements = EvidenceRequirements.from_gates(model.gates, model.clusters)
    return Evidence(
        label=compute_labels(holdout["label"], model.prediction_type),
        candidate=candidate,
        champion=champion,
        holdout=holdout_periods,
        days=feature_spec(model).calendar.dates(*holdout_periods),
        label_counts=label_counts,
        clusters=compute_clusters(holdout, requirements.clusters) | compute_targets(model, holdout),
        groups=compute_groups(holdout, requirements.groups),
        baselines=compute_baselines(
            holdout, train_file, requirements.baselines, model.prediction_type, seasonal, model.weight
        ),
        columns={name: read_column(holdout, name) for name in requirements.columns},
        queries=_compute_cluster(holdout, model.query) if model.query else MissingEvidence("the model ranks nothing"),
        prediction_type=model.prediction_type,
        weights=read_column(holdout, model.weight) if model.weight else None,
        **_forecast_evidence(model, holdout, seasonal),
    )


def _forecast_evidence(model: ModelSpec, holdout: pa.Table, seasonal: pa.Table | None) -> dict[str, Any]:
    """Return the evidence that only a forecast has, by its name."""
    if model.forecast is None:
        return {}
    scales = NO_SEASONAL_FILE if seasonal is None else read_numbers(seasonal[SCALE_COLUMN])
    return {"horizons": read_column(holdout, model.forecast.horizon), "scales": scales}


def read_column(holdout: pa.Table, name: str) -> Any:
    """Return the values (n,) of a column, as `Evidence.columns` has them."""
    if problem := column_problem(holdout.column_names, name):
        return problem
    column = holdout[name]
    return column.to_pylist() if pa.types.is_string(column.type) else read_numbers(column)


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
    if problem := column_problem(table.column_names, name):
        return problem
    column = _to_names(table[name], name)
    return column if isinstance(column, MissingEvidence) else column.to_pylist()


def write_clusters(file: Path, names: Sequence[str], folder: Path) -> dict[str, RowColumn | MissingEvidence]:
    """Write what `compute_clusters` returns, for the rows of a Parquet file, into files of a folder."""
    columns = pq.read_schema(file).names
    return {
        name: column_problem(columns, name)
        or write_converted_column(folder / f"cluster-{n}.parquet", pa.string(), file, name, _to_names)
        for n, name in enumerate(names)
    }


def column_problem(columns: Sequence[str], name: str) -> MissingEvidence | None:
    """Return that the holdout has no such column, or None if it has."""
    return None if name in columns else MissingEvidence(f"{name!r} is no column of the holdout; {_describe(columns)}")


def _to_names(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray | MissingEvidence:
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return MissingEvidence(f"{name!r} is a column of {column.type}, which names nothing")


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
    table: pa.Table,
    train_file: Path,
    names: Sequence[str],
    prediction: PredictionType | None = None,
    seasonal: pa.Table | None = None,
    weight: str | None = None,
) -> dict[str, NDArray[np.float64] | MissingEvidence]:
    """Return, for each name, the predictions of a trivial model for the rows of `table`.

    `prior` predicts what `_training_prior` returns of the Parquet file `train_file`; of a forecast the seasonal naive
    forecast, of a table with as many rows, where there is one. Any other name is a column that is taken as the
    prediction, and the prior where it is missing.
    """
    if not names:
        return {}
    prior = _training_prior(train_file, prediction, weight)
    naive = seasonal[NAIVE_COLUMN] if seasonal is not None else None
    return {name: _compute_baseline(table, name, prior, prediction, naive) for name in names}


def write_baselines(
    file: Path,
    train_file: Path,
    names: Sequence[str],
    folder: Path,
    prediction: PredictionType | None = None,
    seasonal: Path | None = None,
    weight: str | None = None,
) -> dict[str, RowColumn | MissingEvidence]:
    """Write what `compute_baselines` returns, for the rows of a Parquet file, into files of a folder."""
    if not names:
        return {}
    prior, columns = _training_prior(train_file, prediction, weight), pq.read_schema(file).names
    return {
        name: _baseline_problem(columns, name, prior)
        or write_converted_column(
            folder / f"baseline-{n}.parquet",
            predictions_type(len(prediction.outputs) if prediction else 0),
            file,
            columns[0] if name == PRIOR_BASELINE else name,  # any column has as many rows as the prior
            _baseline_converter(prior, prediction, seasonal, is_prior=name == PRIOR_BASELINE),
        )
        for n, name in enumerate(names)
    }


def _baseline_converter(
    prior: Any, prediction: PredictionType | None, seasonal: Path | None, *, is_prior: bool
) -> Callable[[pa.ChunkedArray, str], pa.Array | MissingEvidence]:
    """Return what makes predictions of batches of a column, which come in order."""
    naive = iter_tables(seasonal, [NAIVE_COLUMN]) if seasonal else None

    def convert(column: pa.ChunkedArray, name: str) -> pa.Array | MissingEvidence:
        priors = _row_priors(prior, len(column), next(naive)[NAIVE_COLUMN] if naive else None)
        return _to_baseline(column, name, priors=priors, prediction=prediction, is_prior=is_prior)

    return convert


def _row_priors(prior: Any, rows: int, naive: pa.ChunkedArray | None) -> NDArray[np.float64]:
    """Return the trivial model's prediction of each row, (n,) or (n, outputs): `prior`, or the naive one."""
    priors: NDArray[np.float64] = np.broadcast_to(prior, (rows, *np.shape(prior)))
    if naive is None:
        return priors
    values = read_numbers(naive)
    return np.where(np.isnan(values), priors, values)


_Prior = float | NDArray[np.float64] | MissingEvidence | None


def _training_prior(train_file: Path, prediction: PredictionType | None, weight: str | None = None) -> _Prior:
    """Return the mean label, the share of each class, or the quantiles of the labels; None if there are no labels.

    Each row counts as often as the column `weight` says. Quantiles of more labels than `_QUANTILE_ROWS` are those of an
    even sample; with weights, they are labels: the first whose weight and that of all below reach the quantile.
    """
    if prediction and prediction.classes:
        return _class_shares(train_file, prediction, weight)
    if prediction and prediction.quantiles:
        return _label_quantiles(train_file, prediction, weight)
    if prediction and prediction.kind == "ranking":
        return float(np.finfo(np.float64).min)  # what has no value ranks last
    total, count = 0.0, 0.0
    for table in iter_tables(train_file, _label_columns(weight)):
        label = table["label"].cast(pa.float64())
        if weight:
            values, weights = label.to_numpy(), _row_weights(table, weight)
            is_known = ~np.isnan(values)
            count += float(weights[is_known].sum())
            total += float((values * weights)[is_known].sum())
        else:
            count += len(label) - label.null_count
            total += pc.sum(label).as_py() or 0.0
    return total / count if count else None


def _label_columns(weight: str | None) -> list[str]:
    return ["label", weight] if weight else ["label"]


def _row_weights(table: pa.Table, weight: str | None) -> NDArray[np.float64]:
    """Return the weights (n,) of training rows, which were checked when the training set was built; or 1 for each."""
    if weight is None:
        return np.ones(table.num_rows)
    weights: NDArray[np.float64] = table[weight].cast(pa.float64()).to_numpy()
    return weights


def _class_shares(train_file: Path, prediction: PredictionType, weight: str | None) -> _Prior:
    counts = np.zeros(len(prediction.classes))
    for labels in iter_tables(train_file, _label_columns(weight)):
        table = labels.filter(labels["label"].is_valid())
        weights = _row_weights(table, weight)
        numbers = class_numbers(table["label"], prediction)
        if isinstance(numbers, MissingEvidence):
            return MissingEvidence(f"of the training rows {numbers.problem}")
        counts += np.bincount(numbers.to_numpy().astype(np.intp), weights, minlength=counts.size)
    return counts / counts.sum() if counts.any() else None


def _label_quantiles(train_file: Path, prediction: PredictionType, weight: str | None) -> _Prior:
    stride = max(-(-pq.read_metadata(train_file).num_rows // _QUANTILE_ROWS), 1)
    first, sample, sampled_weights = 0, [np.empty(0)], [np.empty(0)]
    for table in iter_tables(train_file, _label_columns(weight)):
        weights = _row_weights(table, weight)
        label = table["label"].cast(pa.float64()).to_numpy()
        sample.append(label[-first % stride :: stride].copy())
        sampled_weights.append(weights[-first % stride :: stride].copy())
        first += label.size
    labels, weights = np.concatenate(sample), np.concatenate(sampled_weights)
    is_known = ~np.isnan(labels)
    labels, weights = labels[is_known], weights[is_known]
    if weight:
        # numpy has weights for this method only.
        return (
            np.quantile(labels, prediction.quantiles, weights=weights, method="inverted_cdf") if weights.any() else None
        )
    return np.quantile(labels, prediction.quantiles) if labels.size else None


def _compute_baseline(
    table: pa.Table, name: str, prior: _Prior, prediction: PredictionType | None, naive: pa.ChunkedArray | None
) -> NDArray[np.float64] | MissingEvidence:
    if problem := _baseline_problem(table.column_names, name, prior):
        return problem
    column = table[table.column_names[0] if name == PRIOR_BASELINE else name]
    priors = _row_priors(prior, len(column), naive)
    baseline = _to_baseline(column, name, priors=priors, prediction=prediction, is_prior=name == PRIOR_BASELINE)
    return baseline if isinstance(baseline, MissingEvidence) else read_numbers(baseline)


def _baseline_problem(columns: Sequence[str], name: str, prior: _Prior) -> MissingEvidence | None:
    if isinstance(prior, MissingEvidence):
        return MissingEvidence(f"the {name} baseline has no prior: {prior.problem}")
    if prior is None:
        return MissingEvidence(f"the {name} baseline has no prior: there are no training rows")
    if name == PRIOR_BASELINE or name in columns:
        return None
    return MissingEvidence(f"the baseline {name!r} is no column of the holdout; {_describe(columns)}")


def _to_baseline(
    column: pa.ChunkedArray,
    name: str,
    *,
    priors: NDArray[np.float64],
    prediction: PredictionType | None,
    is_prior: bool,
) -> pa.Array | MissingEvidence:
    """Return the predictions for the rows of a column, of which `priors` are those of the trivial model."""
    if is_prior:
        return predictions_array(np.ascontiguousarray(priors))
    if prediction and prediction.classes:
        return _certain_classes(column, name, priors, prediction)
    try:
        values = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException:
        return MissingEvidence(f"the baseline {name!r} is a column of {column.type}, which predicts nothing")
    if priors.ndim == 2:
        values = values[:, None]
    return predictions_array(np.where(np.isnan(values), priors, values))


def _certain_classes(
    column: pa.ChunkedArray, name: str, priors: NDArray[np.float64], prediction: PredictionType
) -> pa.Array | MissingEvidence:
    """Return a probability of 1 for the class that the column names, and the priors where it is null."""
    numbers = class_numbers(column.drop_null(), prediction)
    if isinstance(numbers, MissingEvidence):
        return MissingEvidence(f"the baseline {name!r} predicts no class: its {numbers.problem}")
    predictions = np.array(priors)
    rows = np.flatnonzero(column.is_valid().to_numpy())
    predictions[rows] = 0.0
    predictions[rows, numbers.to_numpy().astype(np.intp)] = 1.0
    return predictions_array(predictions)


def _describe(columns: Sequence[str]) -> str:
    return f"its columns are {', '.join(columns)}"
