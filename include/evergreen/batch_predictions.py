"""The champion's predictions of whole periods: which periods are scored, by which model, and how they are published.

::

    predictions/flight_delay/
        _manifests/day=2013-03-01.json
        predictions/day=2013-03-01/3f9a….parquet    a row for each example, whether or not its label is known

A period keeps the predictions that were made for it, as a request that was answered keeps its answer: neither a new
champion nor corrected features change them, unless `rescore` asks for it. Each row names the model that made it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen import ledger
from evergreen.errors import Fault, InputsChangedError, MissingInputsError, RawDataError, ScoringError, SpecError
from evergreen.features.inputs import published_manifests
from evergreen.lake import datasets, tables
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.ledger import LedgerState
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window

if TYPE_CHECKING:
    import pyarrow as pa

    from evergreen.scoring.predictions import TableScorer

PREDICTIONS_TABLE = "predictions"

_TIME_COLUMN = "event_timestamp"
_MODEL_COLUMNS = ("model_version", "model_content", "labels_until", "features_content")
_MAX_LOST_STAGES = 3  # after which a missing file is not due to other runs
_PREDICTION_COLUMN = re.compile(r"prediction(_\d+)?")
_JOIN_ROWS = 2**20  # of a model whose features have changed: each join reads them anew

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringModel:
    """The model that a run scores with: the champion by the ledger when the run was planned.

    Attributes:
        version: its name in the registry at that time.
        content: the hash of its files.
        labels_until: it has learned from no label of this period or later.
    """

    version: str
    content: str
    labels_until: str


@dataclass(frozen=True)
class ScoringPeriods:
    """What a run does with each of its periods.

    Attributes:
        due: are scored.
        unchanged: keep their predictions.
        outdated: keep their predictions, and were published again since.
        unpublished: have no features yet.
    """

    due: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    unpublished: tuple[str, ...] = ()


def open_predictions(model: str) -> Dataset:
    """Return the dataset with the predictions of a model."""
    return datasets.open_dataset(f"predictions/{model}")


def find_scoring_model(state: LedgerState) -> ScoringModel | None:
    """Return the champion, or None if there is none. A freeze changes nothing: it stops promotions."""
    tenure = state.champion_tenure
    if tenure is None:
        return None
    return ScoringModel(state.name_of(tenure.content, tenure.version), tenure.content, tenure.labels_until)


def scoring_problem(state: LedgerState, model: ScoringModel) -> str | None:
    """Return why a run may not score with the model that it was planned with any more, or None.

    A model that another has replaced by its evidence was right for the run; one that was rolled back or lost is not.
    """
    if model.content in state.barred_contents:
        return f"version {model.version} was rolled back"
    if model.content in state.lost_contents:
        return f"version {model.version} was lost"
    return None


def select_scoring_periods(
    periods: Sequence[str], features: Mapping[str, str], predicted: Mapping[str, str], *, rescore: bool
) -> ScoringPeriods:
    """Return what a run does with each of its `periods`.

    Args:
        periods: in order.
        features: content of the published features of each period that has some.
        predicted: content of the features that the published predictions of a period were made from.
        rescore: whether periods with predictions are scored again.
    """
    due, unchanged, outdated, unpublished = list[str](), list[str](), list[str](), list[str]()
    for period in periods:
        if period in predicted and not rescore:
            group = unchanged if features.get(period, predicted[period]) == predicted[period] else outdated
        else:
            group = due if period in features else unpublished
        group.append(period)
    return ScoringPeriods(tuple(due), tuple(unchanged), tuple(outdated), tuple(unpublished))


def plan_scoring(model: ModelSpec, window: Window, *, rescore: bool) -> ScoringPeriods:
    """Return what a run does with each period of its window; reads manifests only.

    Raises:
        RawDataError: somebody asked for periods that have no published features; all are named. Where the clock or an
            event asks, they are left out: their publication starts a run.
    """
    predictions = open_predictions(model.name)
    published = predictions.read_manifests([datasets.period_partition(period) for period in window.periods])
    features = {period: item.content_hash for period, item in published_manifests(model, window.periods).items()}
    predicted = {
        datasets.partition_period(item.partition): item.inputs["features"][item.partition] for item in published
    }
    periods = select_scoring_periods(window.periods, features, predicted, rescore=rescore)
    if periods.unpublished and window.run_reason in (RunReason.MANUAL, RunReason.BACKFILL):
        fix = f"run {model.feature_model}.features for these periods first"
        faults = [
            Fault(datasets.period_partition(period), "has no published features", fix) for period in periods.unpublished
        ]
        raise RawDataError(f"predictions of {model.name}", faults)
    return periods


def publish_predictions(
    model: ModelSpec, periods: Sequence[str], scoring_model: ScoringModel, *, rescore: bool
) -> dict[str, Manifest]:
    """Score the examples of each of `periods`, publish their predictions, and return the manifests by period.

    The model is verified by its content. It gets its own inputs where the features have changed since it learned. What
    is published stays as it is, unless `rescore` is true; so of two runs at once the first one wins, and a run that was
    killed goes on where it was.

    Raises:
        InputsChangedError: the model was rolled back or lost since the run was planned, or features were republished.
        RawDataError, StaleFeaturesError: features are missing, or mixed.
        RegistryError, ScoringError, SignatureError: the model cannot be loaded, or cannot score the examples.
        SpecError: columns of the examples cannot be published.
    """
    from evergreen.registry import versions

    manifests: dict[str, Manifest] = {}
    with versions.open_model(model.name, scoring_model.content) as (folder, _):
        scorer = _PeriodScorer(model, scoring_model, folder)
        for period in periods:
            if problem := scoring_problem(ledger.read_state(model.name), scoring_model):
                raise InputsChangedError(f"{problem} since this run was planned: clear it from its plan task on")
            manifests[period] = scorer.publish(period, rescore=rescore)
    tables.follow_publication(open_predictions(model.name), [manifest.partition for manifest in manifests.values()])
    return manifests


class _PeriodScorer:
    """Scores periods with one model, whose verified files are in a folder."""

    def __init__(self, model: ModelSpec, scoring_model: ScoringModel, folder: Path):
        from evergreen.evaluation.collect import evidence_code
        from evergreen.registry import versions

        self._model, self._scoring_model, self._folder = model, scoring_model, folder
        self._model_inputs = versions.read_model_inputs(folder)
        self._code = evidence_code() | code_of((__name__,))

    def publish(self, period: str, *, rescore: bool) -> Manifest:
        """Publish the predictions of a period, unless it has some that stay."""
        for _ in range(_MAX_LOST_STAGES):
            try:
                return self._publish(period, rescore=rescore)
            except FileNotFoundError as error:
                # Another attempt with the same inputs is done with the period, and has removed all that was staged for
                # them. What it found or left there may be another run's by now, so nothing is known but what is there.
                log.info("%s: looking again at what is published: %s", period, error)
        return self._publish(period, rescore=rescore)

    def _publish(self, period: str, *, rescore: bool) -> Manifest:
        """Publish the predictions of a period, unless it has some that stay.

        Raises:
            FileNotFoundError: what was staged has been removed meanwhile, or a file of the features is missing.
        """
        from evergreen.feature_store.scoring_examples import open_scoring_examples, scoring_inputs
        from evergreen.spec.loader import feature_spec

        model, dataset = self._model, open_predictions(self._model.name)
        calendar, partition = feature_spec(model).calendar, datasets.period_partition(period)
        if not rescore and (published := dataset.manifest(partition)):
            log.info("%s keeps the predictions of version %s", period, published.inputs["model"]["version"])
            return published
        window = Window.from_range(period, calendar.shift(period, 1), RunReason.MANUAL, calendar)
        example_inputs = scoring_inputs(model, window)
        inputs = {
            **example_inputs,
            "model": asdict(self._scoring_model) | self._describe_prediction(),
            "columns": _requested_columns(model),
            "code": example_inputs["code"] | self._code,
        }
        fingerprint = compute_fingerprint(inputs)
        if published := dataset.find(partition, fingerprint):
            return published
        with open_scoring_examples(model, window, example_inputs, dataset) as (rows, examples):
            files = {PREDICTIONS_TABLE: dataset.stage(partition, fingerprint) / f"{PREDICTIONS_TABLE}.parquet"}
            _write_batches(files[PREDICTIONS_TABLE], self._predict(rows, examples))
        manifest = dataset.publish(partition, fingerprint, files, inputs, keeps_published=not rescore)
        count, version = manifest.files[PREDICTIONS_TABLE].rows, manifest.inputs["model"]["version"]
        log.info("%s: %s predictions by version %s", period, count, version)
        return manifest

    def _describe_prediction(self) -> dict[str, Any]:
        """Return what each of several numbers means; nothing of a single one."""
        prediction = self._model_inputs.prediction
        return {"prediction": prediction.model_dump(mode="json")} if prediction and prediction.outputs else {}

    def _predict(self, rows: Path, examples: Manifest) -> Iterator[pa.Table]:
        """Yield the predictions of the examples in the file `rows`, in order; of no example, a table without rows."""
        from evergreen.evaluation.row_files import iter_tables
        from evergreen.feature_store.champion_inputs import recreate_inputs
        from evergreen.scoring.predictions import TableScorer

        schema = examples.files["holdout"].schema or {}
        columns = _published_columns(self._model, examples, list(schema))
        names, changed = self._model_inputs.column_names, self._model_inputs.changed_columns(examples)
        if changed:
            log.info("Features have changed; made as the model learned them: %s", ", ".join(changed))
        prediction = self._model_inputs.prediction  # the spec may have changed since it learned
        scorer = TableScorer(self._folder, names if changed else list(schema), names, prediction)
        version = self._scoring_model.version
        constants = {
            "model_version": version,
            "model_content": self._scoring_model.content,
            "labels_until": self._scoring_model.labels_until,
            "features_content": examples.inputs["features"][examples.partition],
        }
        for table in iter_tables(rows, batch_rows=_JOIN_ROWS) if changed else iter_tables(rows):
            try:
                inputs = recreate_inputs(self._model, examples, table, self._model_inputs) if changed else table
            except MissingInputsError as error:
                raise ScoringError(
                    f"inputs of version {version} can no longer be made: {error}; bring them back, or score when a "
                    "model that has learned without them is champion"
                ) from None
            yield from _predict_table(table.select(columns), inputs, scorer, constants)


def _predict_table(
    keys: pa.Table, inputs: pa.Table, scorer: TableScorer, constants: Mapping[str, str]
) -> Iterator[pa.Table]:
    """Yield `keys` with the predictions for `inputs`, row by row, and the columns that are the same for all rows."""
    import pyarrow as pa

    from evergreen.scoring.predictions import SCORING_BATCH_ROWS

    for first in range(0, max(keys.num_rows, 1), SCORING_BATCH_ROWS):
        batch = keys.slice(first, SCORING_BATCH_ROWS)
        scores = scorer.score(inputs.slice(first, SCORING_BATCH_ROWS))
        for name, values in prediction_columns(scores).items():
            batch = batch.append_column(name, pa.array(values, pa.float64()))
        for name, value in constants.items():
            batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
        yield batch


def prediction_columns(scores: Any) -> dict[str, Any]:
    """Return the columns of a model's output by name: `prediction`, or of several per row `prediction_0`, ….

    `scores` has the shape (n,) or (n, k); the manifest has the classes or quantiles in the same order.
    """
    if scores.ndim == 1:
        return {"prediction": scores}
    return {f"prediction_{number}": scores[:, number] for number in range(scores.shape[1])}


def _requested_columns(model: ModelSpec) -> list[str]:
    """Return the columns of the spec, and those without which a forecast does not say what it is of."""
    return [*(model.forecast.columns if model.forecast else ()), *(model.score.columns if model.score else ())]


def _published_columns(model: ModelSpec, examples: Manifest, names: Sequence[str]) -> list[str]:
    """Return the columns of the examples that predictions are published with: keys, those of the spec, the time."""
    keys = [
        definition["key_columns"].get(key, key)
        for definition in examples.inputs["definitions"].values()
        for key in definition["keys"]
    ]
    columns = list(dict.fromkeys([*keys, *_requested_columns(model), _TIME_COLUMN]))
    faults = [
        Fault("score.columns", f"{name} is no column of the examples", f"they have {', '.join(names)}")
        for name in columns
        if name not in names
    ]
    own_names = {*_MODEL_COLUMNS, examples.partition.partition("=")[0], "day", datasets.PERIOD_COLUMN}
    faults += [
        Fault(
            "score.columns", f"{name} is the name of a column that predictions have anyway", "leave it out, or rename"
        )
        for name in columns
        if name in own_names or _PREDICTION_COLUMN.fullmatch(name)
    ]
    if faults:
        raise SpecError(f"model {model.name}", faults)
    return columns


def _write_batches(file: Path, batches: Iterator[pa.Table]) -> None:
    import pyarrow.parquet as pq

    first = next(batches)
    with pq.ParquetWriter(file, first.schema) as writer:
        writer.write_table(first)
        for batch in batches:
            writer.write_table(batch)
