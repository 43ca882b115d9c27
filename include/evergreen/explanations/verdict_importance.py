"""The importance of inputs of the models that a verdict is about, measured on rows of its evaluation.

It is measured when the verdict is recorded, and stored beside the gate report, which shows it. So nothing that goes
wrong here, and no time that it takes, changes a verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from evergreen import storage
from evergreen.evaluation import evaluation_dataset
from evergreen.evaluation.collect import COLUMN_PREFIX, GROUP_PREFIX
from evergreen.evaluation.requirements import first_metric_gate
from evergreen.evaluation.row_files import iter_tables, read_numbers, read_values
from evergreen.explanations.importance import Limits, MetricOfScores, measure_model
from evergreen.explanations.importance_record import ModelImportance, VerdictImportance
from evergreen.gates.evidence import Evidence, NoChampion
from evergreen.gates.judged_rows import open_rows
from evergreen.gates.metrics import FloatArray
from evergreen.lake import datasets
from evergreen.scoring.predictions import TableScorer, candidate_folder
from evergreen.spec.gates import MetricGate
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath

MAX_ROWS = 5_000
"""Of the holdout, on which importance is measured."""
_MIN_ROWS = 500
_MAX_PREDICTIONS = 500_000  # of one model: rows are fewer where inputs are many
_NUMBERS_OF_ROWS = ("weights", "horizons", "scales")  # fields of `Evidence` that a metric may need besides labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredModel:
    """A model to measure.

    Attributes:
        rows: file with its input columns, a row for each row of the evaluation's `scores`.
        open: returns a context with the folder of its files, and its input columns.
    """

    rows: Path
    open: Callable[[], AbstractContextManager[tuple[Path, tuple[str, ...]]]]


def importance_file(report: UPath | Path) -> UPath | Path:
    """Return the file beside a gate report."""
    return report.with_suffix(".importance.json")


def record_importance(
    model: ModelSpec,
    report: UPath | Path,
    evaluation: datasets.Manifest,
    source: datasets.Dataset,
    examples: datasets.Manifest,
    candidate: datasets.Manifest | None,
) -> None:
    """Measure the models of an evaluation on its `examples`, of the dataset `source`, unless that is recorded.

    Without a `candidate`, that is a registered version: the challenger at a later look. Never raises: what cannot be
    measured is in the record, or in the log.
    """
    file = importance_file(report)
    try:
        if storage.file_exists(file):
            return
        holdout = source.file_path(examples, "holdout")
        models = _models_of(model, evaluation, holdout, candidate)
        record = measure_importance(model, evaluation, models)
        data = (record.model_dump_json(indent=1) + "\n").encode()
        storage.replace_version(file, data, None)  # of two at once the first stays: the report may show it already
    except Exception:
        log.warning("the importance of inputs could not be measured; the verdict stands", exc_info=True)


def read_importance(report: UPath | Path) -> VerdictImportance | None:
    """Return what is recorded for a gate report; None if nothing is, or if it is damaged."""
    file = importance_file(report)
    stored = storage.read_version(file)
    try:
        return VerdictImportance.model_validate_json(stored.data) if stored else None
    except ValidationError as error:
        log.warning("%s: is no importance of inputs: %s", file, error)
        return None


def measure_importance(
    model: ModelSpec,
    evaluation: datasets.Manifest,
    models: Mapping[str, MeasuredModel],
    limits: Limits | None = None,
) -> VerdictImportance:
    """Measure models on the same rows of the holdout: at most `MAX_ROWS`, or fewer of many inputs.

    Of a ranking, whole queries are chosen. The rows depend on the seed of the spec only.
    """
    limits = limits or Limits()
    scores = evaluation_dataset(model).file_path(evaluation, "scores")
    columns = max((len(pq.read_schema(measured.rows)) for measured in models.values()), default=1)
    size = min(MAX_ROWS, max(_MIN_ROWS, _MAX_PREDICTIONS // (columns * limits.permutations)))
    names = pq.read_schema(scores).names
    has_queries = model.query is not None and "queries" in names
    rows = choose_queries(scores, size, model.seed) if has_queries else choose_rows(scores, size, model.seed)
    gate = first_metric_gate(model)
    fields = [name for name in names if name in _NUMBERS_OF_ROWS or (gate and _is_of_function(gate, name))]
    evidence = read_rows(scores, rows, ["label", *fields, *(["queries"] if has_queries else [])])
    metric = _holdout_metric(model, gate, evidence) if gate else None
    measured = {
        role: _measure(model, scored, rows, metric, gate.scale.higher_is_better if gate else True, limits)
        for role, scored in models.items()
    }
    return VerdictImportance(gate=gate.name if gate else None, rows=len(rows), models=measured)


def _measure(
    model: ModelSpec,
    measured: MeasuredModel,
    rows: NDArray[np.int64],
    metric: MetricOfScores | None,
    higher_is_better: bool,
    limits: Limits,
) -> ModelImportance:
    try:
        with measured.open() as (folder, columns):
            table = read_rows(measured.rows, rows, columns)
            scorer = TableScorer(folder, columns, columns, model.prediction_type)
            return measure_model(
                scorer.predictor,
                scorer.score,
                metric,
                table,
                model.input_groups,
                higher_is_better,
                model.seed,
                limits,
            )
    except Exception as error:  # of the registry, the files, or a library: the other model is still measured
        log.warning("the importance of inputs of one model could not be measured", exc_info=True)
        return ModelImportance(inputs=(), problems=(f"nothing could be measured: {type(error).__name__}: {error}",))


def choose_rows(file: Path, size: int, seed: int) -> NDArray[np.int64]:
    """Return the positions of at most `size` rows of a Parquet file, in order."""
    count = pq.read_metadata(file).num_rows
    if count <= size:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False, shuffle=False))


def choose_queries(file: Path, size: int, seed: int) -> NDArray[np.int64]:
    """Return the positions of all rows of some queries, in order: at most `size` rows, or those of one query.

    Queries come in the order of a hash of their names: which ones are chosen does not depend on the others.
    """
    places, digests, first = np.empty(0, np.int64), np.empty(0, np.uint64), 0
    for table in iter_tables(file, ["queries"]):
        codes = table["queries"].combine_chunks().dictionary_encode()
        by_code = np.array([_hash_name(name, seed) for name in codes.dictionary.to_pylist()] or [0], dtype=np.uint64)
        places = np.concatenate([places, np.arange(first, first + table.num_rows)])
        digests = np.concatenate([digests, by_code[codes.indices.fill_null(0).to_numpy(zero_copy_only=False)]])
        first += table.num_rows
        if digests.size > size:  # what comes after so many rows is not chosen, whatever follows
            is_candidate = digests <= np.partition(digests, size)[size]
            places, digests = places[is_candidate], digests[is_candidate]
    order = np.argsort(digests, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(digests[order])) + 1, order.size)  # of each query
    whole = ends[ends <= size]
    return np.sort(places[order[: whole[-1] if whole.size else ends[0]]])


def _hash_name(name: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())


def read_rows(file: Path, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Return these rows of a Parquet file, by their positions in order."""
    parts, first = list[pa.Table](), 0
    for table in iter_tables(file, columns):
        begin, end = np.searchsorted(rows, [first, first + table.num_rows])
        if begin < end or not parts:
            parts.append(table.take(rows[begin:end] - first))
        first += table.num_rows
    return pa.concat_tables(parts).combine_chunks()


def _is_of_function(gate: MetricGate, name: str) -> bool:
    """Return whether a function of the model folder, if it is the gate's metric, gets this column of `scores`."""
    is_column = name.startswith(COLUMN_PREFIX) and name.removeprefix(COLUMN_PREFIX) in gate.columns
    return ":" in gate.metric and (is_column or name.startswith(GROUP_PREFIX))


def _holdout_metric(model: ModelSpec, gate: MetricGate, rows: pa.Table) -> MetricOfScores:
    """Return the gate's metric of predictions for these rows, of any number of rows."""
    label = read_numbers(rows["label"])
    queries = rows["queries"].to_pylist() if "queries" in rows.column_names else ()
    fields: dict[str, Any] = {name: read_numbers(rows[name]) for name in _NUMBERS_OF_ROWS if name in rows.column_names}
    for field, prefix in (("groups", GROUP_PREFIX), ("columns", COLUMN_PREFIX)):
        named = [name for name in rows.column_names if name.startswith(prefix)]
        fields[field] = {name.removeprefix(prefix): read_values(rows[name]) for name in named}
    measured = Evidence(label, label, NoChampion(), queries=queries, prediction_type=model.prediction_type, **fields)
    gate = gate.model_copy(update={"min_rows": 0})

    def compute(scores: FloatArray) -> float | None:
        evidence = replace(measured, candidate=scores)
        judged = open_rows(gate, evidence)
        if faults := judged.faults():
            raise ValueError("; ".join(faults))
        value = judged.metric("candidate")
        return None if value is None else float(value.value)

    return compute


def _models_of(
    model: ModelSpec, evaluation: datasets.Manifest, holdout: Path, candidate: datasets.Manifest | None
) -> dict[str, MeasuredModel]:
    """Return the models whose scores the evaluation has."""
    dataset = evaluation_dataset(model)
    scored = pq.read_schema(dataset.file_path(evaluation, "scores")).names
    models: dict[str, MeasuredModel] = {}
    for role in ("candidate", "champion"):
        if role not in scored:
            continue
        own_inputs = f"{role}_inputs"
        rows = dataset.file_path(evaluation, own_inputs) if own_inputs in evaluation.files else holdout
        if role == "candidate" and candidate:
            models[role] = MeasuredModel(rows, partial(_open_candidate, model, candidate))
        else:
            models[role] = MeasuredModel(rows, partial(_open_version, model, evaluation.inputs[role]["content"]))
    return models


@contextmanager
def _open_candidate(model: ModelSpec, candidate: datasets.Manifest) -> Iterator[tuple[Path, tuple[str, ...]]]:
    with candidate_folder(model, candidate) as folder:
        yield folder, tuple(candidate.inputs["features"])


@contextmanager
def _open_version(model: ModelSpec, content: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    from evergreen.registry import versions  # it loads MLflow

    with versions.open_model(model.name, content) as (folder, _):
        yield folder, versions.read_model_inputs(folder).column_names
