"""The labelled rows of a period as evidence: with what was predicted then, or what a champion predicts for them."""
# ruff: noqa: S608 - names are quoted or made here, and literals are quoted

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import ChangedPredictionError, EvergreenError, ScoringError, first_line
from evergreen.evaluation.collect import score_file
from evergreen.evaluation.labels import write_labels
from evergreen.evaluation.row_files import (
    EvidenceFile,
    RowColumn,
    iter_tables,
    predictions_array,
    predictions_type,
    read_values,
    write_column,
    write_rows,
)
from evergreen.evaluation.rows import NO_SEASONAL_FILE, column_problem, write_clusters
from evergreen.evaluation.target_days import write_targets
from evergreen.feature_store.labelled_examples import open_labelled_examples
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.feature_store.seasonal_columns import SCALE_COLUMN
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion, StreamedColumn
from evergreen.ingest.databases import open_database, parquet_rows, quote_name, quote_text
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.scoring.predictions import SCORING_BATCH_ROWS
from evergreen.settings import settings
from evergreen.spec.gates import MetricGate
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window

_PREDICTIONS_FILE = "predictions"
_MODEL_COLUMNS = frozenset({"model_version", "model_content", "labels_until", "features_content"})
_MATCH_ROWS = 131_072
_JOIN_ROWS = 16 * SCORING_BATCH_ROWS  # each join reads the features anew
_CLUSTER, _COLUMN = "cluster:", "column:"  # prefixes of columns of the rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InForce:
    """The model whose predictions a period had."""

    version: str
    content: str
    predictions: Manifest | None = None


class PeriodRows(NamedTuple):
    """The labelled rows of a period that have a prediction, their number, and what is wrong with some."""

    evidence: Evidence
    size: int
    problems: list[str]


class RegisteredModels:
    """Models of the registry, by content: each is downloaded and verified once, for as long as the context lasts.

    One that cannot be opened, or predicts something else than the spec declares, is not tried again.
    """

    def __init__(self, model: ModelSpec):
        self._model, self._stack = model, ExitStack()
        self._opened = dict[str, tuple[Path, ModelInputs]]()
        self._problems = dict[str, EvergreenError]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def score(self, content: str, examples: Manifest, rows: Path, folder: Path) -> RowColumn:
        """Write the predictions for the file `rows` of `examples`, by the model of this content.

        Raises:
            ScoringError, ChangedPredictionError: the model cannot be opened, or predicts something else.
            MissingInputsError: columns that it has learned from can no longer be made.
        """
        model_folder, inputs = self.open(content)
        if inputs.changed_columns(examples):
            rows = self._write_own_inputs(examples, rows, inputs, folder / "own_inputs.parquet")
        target = folder / "candidate.parquet"
        return score_file(model_folder, rows, inputs.column_names, target, self._model.prediction_type)

    def open(self, content: str) -> tuple[Path, ModelInputs]:
        """Return the folder of the model with this content, and what it has learned from.

        Raises:
            ScoringError, ChangedPredictionError: as `score`.
        """
        if problem := self._problems.get(content):
            raise problem
        if content not in self._opened:
            try:
                self._opened[content] = self._download(content)
            except (ScoringError, ChangedPredictionError) as error:
                self._problems[content] = error
                raise
        return self._opened[content]

    def _download(self, content: str) -> tuple[Path, ModelInputs]:
        from evergreen.registry import versions

        try:
            versions.check_server_accepts_connections()
            model_folder, _ = self._stack.enter_context(versions.open_model(self._model.name, content))
            inputs = versions.read_model_inputs(model_folder)
        except Exception as error:  # of any class: registry, store of artifacts, network
            log.warning("the model cannot be opened", exc_info=error)
            raise ScoringError(first_line(error)) from None
        if problem := inputs.prediction_problem(self._model.prediction_type):
            raise ChangedPredictionError(problem)
        return model_folder, inputs

    def _write_own_inputs(self, examples: Manifest, rows: Path, inputs: ModelInputs, target: Path) -> Path:
        """Write the inputs of a model as it learned them."""
        from evergreen.feature_store.champion_inputs import recreate_inputs

        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for table in iter_tables(rows, batch_rows=_JOIN_ROWS):
                own_inputs = recreate_inputs(self._model, examples, table, inputs)
                writer = writer or stack.enter_context(pq.ParquetWriter(target, own_inputs.schema))
                writer.write_table(own_inputs)
        return target


@contextmanager
def open_period(
    model: ModelSpec,
    gates: Sequence[MetricGate],
    period: str,
    in_force: InForce,
    models: RegisteredModels,
    known_before: datetime,
    dataset: Dataset,
) -> Iterator[PeriodRows]:
    """Yield the rows of a period whose label was known before an instant, as the metrics of `gates` need them."""
    calendar = feature_spec(model).calendar
    window = Window.from_range(period, calendar.shift(period, 1), RunReason.MANUAL, calendar)
    with open_labelled_examples(model, window, dataset, known_before) as (rows, seasonal, examples):
        folder, problems, files = rows.parent, list[str](), [rows, *([seasonal] if seasonal else [])]
        if in_force.predictions:
            scores, files, problems = _match_predictions(model, in_force.predictions, files, folder)
        else:
            scores = models.score(in_force.content, examples, rows, folder)
        count = pq.read_metadata(files[0]).num_rows
        yield PeriodRows(read_row_evidence(model, gates, scores, files, folder), count, problems)


@contextmanager
def open_pair(
    model: ModelSpec,
    gate: MetricGate,
    period: str,
    contents: tuple[str, str],
    models: RegisteredModels,
    known_before: datetime,
    dataset: Dataset,
) -> Iterator[PeriodRows]:
    """Yield the rows of a period with the predictions of two models, as candidate and as champion of the evidence.

    Both score the same rows with the same features, whatever was published when these were others.
    """
    calendar = feature_spec(model).calendar
    window = Window.from_range(period, calendar.shift(period, 1), RunReason.MANUAL, calendar)
    with open_labelled_examples(model, window, dataset, known_before) as (rows, seasonal, examples):
        folder, scores = rows.parent, list[RowColumn]()
        for number, content in enumerate(contents):
            place = folder / f"model-{number}"
            place.mkdir()
            scores.append(models.score(content, examples, rows, place))
        files = [rows, *([seasonal] if seasonal else [])]
        evidence = read_row_evidence(model, [gate], scores[0], files, folder, champion=scores[1])
        yield PeriodRows(evidence, pq.read_metadata(rows).num_rows, [])


def read_row_evidence(
    model: ModelSpec,
    gates: Sequence[MetricGate],
    scores: RowColumn,
    files: Sequence[Path],
    folder: Path,
    champion: RowColumn | None = None,
) -> Evidence:
    """Return evidence about the rows of `files`: examples, and of a forecast its seasonal columns."""
    rows, *seasonal = files
    existing = pq.read_schema(rows).names

    def find(name: str) -> RowColumn | MissingEvidence:
        return column_problem(existing, name) or RowColumn(rows, name)

    values: dict[str, RowColumn | MissingEvidence] = {
        "candidate": scores,
        "label": write_labels(rows, model.prediction_type, folder),
        **({"champion": champion} if champion else {}),
    }
    clusters = write_clusters(rows, model.clusters, folder) | write_targets(model, rows, folder)
    values |= {_CLUSTER + name: cluster for name, cluster in clusters.items()}
    values |= {_COLUMN + name: find(name) for name in sorted({name for gate in gates for name in gate.columns})}
    if model.weight:
        values["weights"] = find(model.weight)
    if model.query:
        queries = folder / "queries"  # the query may be a cluster as well
        queries.mkdir()
        values["queries"] = write_clusters(rows, [model.query], queries)[model.query]
    if model.forecast:
        values["horizons"] = find(model.forecast.horizon)
        values["scales"] = RowColumn(seasonal[0], SCALE_COLUMN) if seasonal else NO_SEASONAL_FILE
    fields = values | _read_rows(
        model, {name: value for name, value in values.items() if isinstance(value, RowColumn)}, folder
    )
    nested: dict[str, Any] = {
        field: {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
        for field, prefix in (("clusters", _CLUSTER), ("columns", _COLUMN))
    }
    plain: dict[str, Any] = {name: value for name, value in fields.items() if not name.startswith((_CLUSTER, _COLUMN))}
    return Evidence(**{"champion": NoChampion(), **plain}, prediction_type=model.prediction_type, **nested)


def _read_rows(model: ModelSpec, columns: Mapping[str, RowColumn], folder: Path) -> dict[str, Any]:
    """Return these columns in memory, or to be read in batches where a task should not keep them."""
    file = write_rows(folder / "rows.parquet", columns)
    outputs = len(model.prediction_type.outputs) if model.prediction_type else 0
    if pq.read_metadata(file).num_rows * max(outputs, 1) > settings().exact_rows:
        rows = EvidenceFile(file)
        return {name: StreamedColumn(rows, name) for name in columns}
    table = pq.read_table(file)
    return {name: read_values(table[name]) for name in columns}


def _match_predictions(
    model: ModelSpec, predictions: Manifest, files: Sequence[Path], folder: Path
) -> tuple[RowColumn, list[Path], list[str]]:
    """Return the published predictions of labelled rows, the files with these rows only, and what is left out.

    Rows are the same if all columns are that predictions are published with: keys, times, and those of the spec.

    Raises:
        ScoringError: they are not of the kind that the spec declares now.
    """
    source = datasets.open_dataset(f"predictions/{model.name}").file_path(predictions, _PREDICTIONS_FILE)
    prediction, names = model.prediction_type, pq.read_schema(source).names
    outputs = [f"prediction_{number}" for number in range(len(prediction.outputs))] if prediction else []
    values, declared = outputs or ["prediction"], predictions.inputs["model"].get("prediction")
    if absent := [name for name in values if name not in names]:
        raise ScoringError(f"the published predictions have no {', '.join(absent)}: they are of another kind")
    if outputs and prediction and declared != prediction.model_dump(mode="json"):
        raise ScoringError("the published predictions are of other classes or quantiles than the spec declares")
    examples = pq.read_schema(files[0]).names
    keys = [name for name in names if name in examples and name not in _MODEL_COLUMNS]
    listed, terms = ", ".join(map(quote_name, keys)), ", ".join(map(quote_name, values))
    with open_database() as con:
        # Names of columns come from users, so the table has names of its own.
        named = [f"{quote_name(key)} AS key_{number}" for number, key in enumerate(keys)]
        named += [f"any_value({quote_name(name)}) AS value_{number}" for number, name in enumerate(values)]
        con.execute(
            f"CREATE TABLE predicted AS SELECT {', '.join(named)}, count(DISTINCT ({terms})) AS differing "
            f"FROM {parquet_rows(source)} GROUP BY {listed}"
        )
        matching = " AND ".join(f"e.{quote_name(key)} IS NOT DISTINCT FROM p.key_{n}" for n, key in enumerate(keys))
        selected = ", ".join(f"value_{number}" for number in range(len(values)))
        con.execute(
            f"CREATE TABLE matched AS SELECT e.file_row_number AS number, p.differing, {selected} "
            f"FROM {_numbered_rows(files[0])} e LEFT JOIN predicted p ON {matching}"
        )
        counts = "count(*), count(*) FILTER (differing IS NULL), count(*) FILTER (differing > 1)"
        [(rows, absent_rows, differing)] = con.sql(f"SELECT {counts} FROM matched").fetchall()
        problems = []
        if absent_rows:
            problems.append(
                f"{absent_rows:,} of {rows:,} labelled rows have no published prediction: they are left out"
            )
        if differing:
            problems.append(
                f"{differing:,} of {rows:,} labelled rows have several predictions: name columns that tell them apart "
                "in `score.columns`; they are left out"
            )
        if absent_rows or differing:
            files = [_write_matched(con, file, folder / f"matched-{n}.parquet") for n, file in enumerate(files)]
        query = f"SELECT {selected} FROM matched WHERE differing = 1 ORDER BY number"

        def batches() -> Iterator[pa.Array]:
            for batch in con.sql(query).to_arrow_reader(_MATCH_ROWS):
                columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
                yield predictions_array(np.column_stack(columns) if outputs else columns[0])

        scores = write_column(folder / "published.parquet", predictions_type(len(outputs)), batches())
    return scores, list(files), problems


def _write_matched(con: duckdb.DuckDBPyConnection, file: Path, target: Path) -> Path:
    """Write the rows of a file that have one prediction, in order."""
    query = (
        f"SELECT e.* EXCLUDE (file_row_number) FROM {_numbered_rows(file)} e "
        "JOIN matched ON file_row_number = number WHERE differing = 1 ORDER BY number"
    )
    schema = pq.read_schema(file)
    with pq.ParquetWriter(target, schema) as writer:
        for batch in con.sql(query).to_arrow_reader(_MATCH_ROWS):
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
    return target


def _numbered_rows(file: Path) -> str:
    return f"read_parquet({quote_text(glob.escape(str(file)))}, hive_partitioning = false, file_row_number = true)"
