"""Compares what servers have logged of each period with what the offline store, the model and its training set give.

    serving/flight_delay/                        a dataset
        _manifests/reference=3f9a….json          of a champion: bins of its inputs, and histograms of its training set
        _manifests/day=2013-03-01.json           of a period: what its log shows, and histograms of the inputs in it
        _manifests/attempts=3f9a….json           of a champion: periods that could not be compared (`served_attempts`)

A log grows, and may come late: a period is compared again when its files are others. Of a period `LOG_SAMPLE_ROWS`
rows are compared, those whose ids have the smallest hash, so each run takes the same ones, and the cost is bounded.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from evergreen.errors import DatasetError, EvergreenError, ScoringError, first_line, validation_problem
from evergreen.feature_store.logged_requests import join_as_learned, partitions_in_reach
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.features.inputs import published_manifests, published_periods
from evergreen.features.staleness import first_period_in_reach
from evergreen.ingest.databases import open_database
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.ledger import ChampionTenure, LedgerState
from evergreen.monitoring.effect_sizes import FloatValues
from evergreen.monitoring.histogram_files import Counted, read_histograms, write_histograms
from evergreen.monitoring.histograms import Histogram, count_by_bin
from evergreen.monitoring.period_rows import RegisteredModels
from evergreen.monitoring.served_answers import write_answers
from evergreen.monitoring.served_attempts import ComparisonAttempts
from evergreen.monitoring.served_reference import (
    SERVED,
    ServedReference,
    find_served_reference,
    publish_served_reference,
    read_served_reference,
    reference_partition,
    serving_dataset,
)
from evergreen.monitoring.serving_logs import (
    ID,
    TIME,
    LogFile,
    LoggedPeriod,
    LogSchema,
    fetch_log_files,
    iter_problems,
    list_log_files,
    log_columns,
    read_period,
    shorten,
    size_problem,
)
from evergreen.monitoring.skew import describe_row, find_differences, find_other_predictions, value_text
from evergreen.scoring.predictions import TableScorer
from evergreen.spec import Frozen, NonEmptyStr, Period
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.storage import Sha256
from evergreen.window import RunReason, Window

LOG_SAMPLE_ROWS = 10_000
"""Of a period, at most."""
COMPARING_SECONDS = 300.0
"""After which a run begins with no further period."""
MAX_SCORING_CALLS = 1000
"""Of a period, to tell the rows that a model refuses from the others."""
MAX_FOREIGN = 20
"""Files of a period that are named."""

PREDICTIONS_FILE = "predictions"
"""Of a period: the sampled predictions, in columns as batch predictions have them."""

ANSWERS_FILE = "answers"
"""Of a period: what was answered by any model, for labels that come by id (`served_answers`)."""

_CODE = (
    "evergreen.feature_store.logged_requests",
    *(
        f"evergreen.monitoring.{name}"
        for name in ("histograms", "served_answers", "served_periods", "served_reference", "serving_logs", "skew")
    ),
)
_LOGGED, _HISTOGRAMS = "logged", "histograms"
_EXPIRED_TTLS = 3  # how far back a row that has expired is looked for
_MAX_IDS = 5  # of rows whose prediction is another
_CAUSES = {
    "early": "the server had the row before `served_after` lets it be there",
    "expired": "the row is older than the view's ttl, and the server did not leave it out",
    "late": "the value of one period earlier: the online store was behind",
    "absent": "the server had no value: the key was not in the online store",
    "other": "no row of the offline store explains it",
}

log = logging.getLogger(__name__)


class ColumnSkew(Frozen):
    """A feature of which some rows of a period differ from the offline store."""

    column: NonEmptyStr
    rows: int = Field(description="that differ")
    causes: Mapping[str, int] = Field(description="rows by what may have caused it")
    example: NonEmptyStr = Field(description="the first one by its id")


class PredictionSkew(Frozen, allow_inf_nan=False):
    """How far logged predictions are from what the model gives for the logged inputs."""

    rows: int = Field(description="that were compared")
    differing: int
    largest: float | None = Field(None, description="the largest difference; None: there is no number")
    ids: tuple[str, ...] = Field((), description="the first prediction ids that differ")


class ServedPeriod(Frozen, allow_inf_nan=False):
    """What the log of a period shows of the champion."""

    period: Period
    champion_version: NonEmptyStr
    champion_content: Sha256
    rows: int = Field(description="predictions of the champion, each id once")
    duplicates: int = Field(description="further rows with the same ids")
    other_models: Mapping[str, int] = Field(description="rows of other models, by version")
    sampled: int = Field(description="rows that were compared")
    features: tuple[str, ...] = Field(description="that were compared with the offline store")
    skew: tuple[ColumnSkew, ...] = Field((), description="those of which some rows differ, most first")
    prediction: PredictionSkew | None = Field(None, description="None: they were not compared")
    foreign: tuple[str, ...] = Field((), description="files that are left out, each with why")
    foreign_files: int = Field(0, description="their number")
    problems: tuple[str, ...] = ()
    has_all_answers: bool = Field(True, description="whether what was answered is kept of all ids, not of some of them")


class PublishedLog(NamedTuple):
    """What is published of a period."""

    manifest: Manifest
    served: ServedPeriod
    histograms: Counted


def compare_new_logs(
    model: ModelSpec,
    state: LedgerState,
    tenure: ChampionTenure,
    end: str,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Publish what the logs of periods before `end` show, as far as that is new, and return what cannot be compared.

    Those with features and without a published result come first, the oldest of them first: alarms follow from the days
    so far, and those that a backlog adds are later ones. What has failed before comes last. A run begins with none
    after `COMPARING_SECONDS`. What fails of one period is named, and the others are compared nevertheless. Without a
    log nothing costs anything.
    """
    calendar, refused = feature_spec(model).calendar, list[str]()
    try:
        files = list_log_files(model.name, tenure.as_of, end, refused)
    except Exception as error:  # of any class: a store of others
        log.warning("the serving log cannot be listed", exc_info=error)
        return [f"serving log: it cannot be listed: {first_line(error)}"]
    problems = [f"serving log: {problem}" for problem in refused]
    if not files:
        return problems
    too_large = {period: text for period, items in files.items() if (text := size_problem(items))}
    problems += [f"serving log: {period}: it is not compared: {text}" for period, text in too_large.items()]
    files = {period: items for period, items in files.items() if period not in too_large}
    features = published_manifests(model, sorted(files))
    if absent := [period for period in files if period not in features]:
        problems.append(f"serving log: {calendar.describe(absent)}: no features are published to compare with")
    if not features:
        return problems
    reference = find_served_reference(model, state, tenure)
    if reference and not _find_due(model, tenure, reference, files, features):
        return [*problems, *(f"serving log: {problem}" for problem in reference.problems)]
    with RegisteredModels(model) as models:  # a download
        try:
            folder, inputs = models.open(tenure.content)
            reference = publish_served_reference(model, state, tenure, inputs)
            comparison = _LogComparison(model, state, tenure, folder, inputs, reference)
        except Exception as error:  # of any class: registry, training set
            log.warning("the serving log is not compared", exc_info=error)
            version = state.name_of(tenure.content, tenure.version)
            return [*problems, f"serving log: it is not compared with version {version}: {first_line(error)}"]
        problems += [f"serving log: {problem}" for problem in reference.problems]
        due = _find_due(model, tenure, reference, files, features)
        is_published = {period: comparison.dataset.manifest(datasets.period_partition(period)) for period in due}
        attempts = ComparisonAttempts(comparison.dataset, tenure.content, due)
        order = sorted(due, key=lambda name: (name in attempts.failed, is_published[name] is not None, name))
        begun, failed = clock(), dict[str, list[str]]()
        for number, period in enumerate(order):
            if clock() - begun >= COMPARING_SECONDS:
                problems.append(f"serving log: {len(order) - number:,} more periods are compared by the next runs")
                break
            try:
                attempts.begin(period)
                comparison.publish(period, files[period], due[period])
                attempts.end(period)
            except Exception as error:  # of any class: files of others, the store, libraries of models
                if not isinstance(error, EvergreenError):
                    log.warning("the log of %s cannot be compared", period, exc_info=error)
                failed.setdefault(shorten(first_line(error)), []).append(period)
        attempts.close()
    problems += [
        f"serving log: {calendar.describe(sorted(periods))}: it cannot be compared: {text}"
        for text, periods in failed.items()
    ]
    return problems


def read_served(
    model: ModelSpec, content: str, problems: list[str], *, start: str = ""
) -> tuple[ServedReference | None, dict[str, PublishedLog]]:
    """Return a champion's reference and what is published of the periods from `start` on, oldest first.

    What cannot be read is added to `problems`.
    """
    dataset, key = serving_dataset(model.name), feature_spec(model).calendar.partition_key
    if not dataset.exists():
        return None, {}
    reference = None
    periods: dict[str, PublishedLog] = {}
    try:
        manifest = dataset.manifest(reference_partition(content))
        if manifest and manifest.inputs["champion"] == content:
            reference = read_served_reference(dataset, manifest)
    except (DatasetError, OSError, KeyError, ValueError) as error:
        problems.append(f"serving log: its reference cannot be read: {first_line(error)}")
    for name in dataset.partitions(f"{key}={datasets.file_name_of_period(start)}" if start else key):
        if not name.startswith(f"{key}="):
            continue
        try:
            manifest = dataset.manifest(name)
            if manifest is None or manifest.inputs["champion"] != content:
                continue
            served = read_served_period(dataset, manifest)
            counted = read_histograms(dataset.file_path(manifest, _HISTOGRAMS))
            periods[datasets.partition_period(name)] = PublishedLog(manifest, served, counted.get(served.period, {}))
        except ValidationError as error:
            problems.append(f"serving log: {name} is damaged: {validation_problem(error)}")
        except (DatasetError, OSError, KeyError, ValueError) as error:
            problems.append(f"serving log: {name} cannot be read: {first_line(error)}")
    return reference, dict(sorted(periods.items()))


def read_served_period(dataset: Dataset, manifest: Manifest) -> ServedPeriod:
    """Return what is published of a period with this manifest."""
    return ServedPeriod.model_validate_json(dataset.file_path(manifest, _LOGGED).read_bytes())


def _find_due(
    model: ModelSpec,
    tenure: ChampionTenure,
    reference: ServedReference,
    files: Mapping[str, Sequence[LogFile]],
    features: Mapping[str, Manifest],
) -> dict[str, dict[str, Any]]:
    """Return what the results of periods with `features` follow from, of those that are not published like that.

    Files are known by their sizes and times: they are not read again in each run. What was compared with features that
    have expired since stays, unless its files are others: with those that are left it would show a false skew.
    """
    dataset, due = serving_dataset(model.name), dict[str, dict[str, Any]]()
    code = code_of(_CODE, ("duckdb", "pyarrow"))
    reach = _describe_reach(model, reference, sorted(features))
    for period in features:
        described = {
            "champion": tenure.content,
            "reference": reference.manifest.content_hash,
            "reach": reach[period],
            "files": compute_fingerprint([[file.path, file.size, file.changed_at] for file in files[period]]),
            "code": code,
        }
        partition = datasets.period_partition(period)
        fingerprint = compute_fingerprint(described)
        published = dataset.manifest(partition)
        if published and _has_expired_features(published.inputs, described):
            fingerprint = published.fingerprint
        if dataset.find(partition, fingerprint) is None:
            due[period] = described
    return due


def _describe_reach(
    model: ModelSpec, reference: ServedReference, periods: Sequence[str]
) -> dict[str, dict[str, str | None]]:
    """Return of each period which features its requests may have: the first partition, and a hash of the content."""
    calendar = feature_spec(model).calendar
    ttls = [_EXPIRED_TTLS * ttl for ttl in reference.manifest.inputs.get("ttls", [0])]
    first = first_period_in_reach(calendar, periods[0], ttls)
    published = [period for period in published_periods(model, first) if period <= periods[-1]]
    hashes = {period: manifest.content_hash for period, manifest in published_manifests(model, published).items()}
    reach = {}
    for period in periods:
        first = first_period_in_reach(calendar, period, ttls) or ""
        content = {name: value for name, value in hashes.items() if first <= name <= period}
        reach[period] = {"first": min(content, default=None), "content": compute_fingerprint(content)}
    return reach


def _has_expired_features(published: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
    """Return whether features that a published result was compared with have expired, and its log is the same."""
    if any(published[name] != described[name] for name in ("champion", "files")) or "reach" not in published:
        return False
    first_then, first_now = (inputs["reach"]["first"] for inputs in (published, described))
    return first_then is not None and (first_now is None or first_then < first_now)


class _LogComparison:
    """Compares periods with one champion, whose verified files are in a folder."""

    def __init__(
        self,
        model: ModelSpec,
        state: LedgerState,
        tenure: ChampionTenure,
        folder: Path,
        inputs: ModelInputs,
        reference: ServedReference,
    ):
        self.dataset = serving_dataset(model.name)
        self._model, self._tenure, self._folder, self._inputs = model, tenure, folder, inputs
        self._version = state.name_of(tenure.content, tenure.version)
        prediction = inputs.prediction
        self._schema: LogSchema = log_columns(inputs, len(prediction.outputs) if prediction else 0)
        self._reference = reference

    def publish(self, period: str, files: Sequence[LogFile], inputs: dict[str, Any]) -> ServedPeriod:
        """Compare a period, and publish what that shows."""
        partition, fingerprint = datasets.period_partition(period), compute_fingerprint(inputs)
        staged = self.dataset.stage(partition, fingerprint)
        answers = staged / f"{ANSWERS_FILE}.parquet"
        served, counted, predictions = self._compare(period, files, answers)
        named = {_LOGGED: staged / f"{_LOGGED}.json", _HISTOGRAMS: staged / f"{_HISTOGRAMS}.parquet"}
        named[_LOGGED].write_text(served.model_dump_json(indent=1) + "\n")
        write_histograms(named[_HISTOGRAMS], {period: counted})
        named[ANSWERS_FILE] = answers
        named[PREDICTIONS_FILE] = staged / f"{PREDICTIONS_FILE}.parquet"
        pq.write_table(predictions, named[PREDICTIONS_FILE])
        self.dataset.publish(partition, fingerprint, named, inputs)
        log.info("%s: %s logged predictions, %s of them compared", period, served.rows, served.sampled)
        return served

    def _compare(self, period: str, files: Sequence[LogFile], answers: Path) -> tuple[ServedPeriod, Counted, pa.Table]:
        """Return what a period shows, and write what was answered in it to the file `answers`."""
        calendar = feature_spec(self._model).calendar
        with tempfile.TemporaryDirectory() as scratch, open_database() as database:
            paths, refused = fetch_log_files(self._model.name, files, Path(scratch))
            bounds = calendar.start(period), calendar.end(period)
            logged = read_period(database, paths, self._schema, self._tenure.content, *bounds, LOG_SAMPLE_ROWS)
            problems = [*self._schema.problems, *iter_problems(logged)]
            accepted = {name: paths[name] for name in logged.accepted}
            has_all, damaged = write_answers(database, accepted, self._schema, bounds, answers)
            problems += damaged
            skew, features, prediction = list[ColumnSkew](), list[str](), None
            counted: Counted = {}
            if logged.sample is not None:
                sampled = Path(scratch) / "sample.parquet"
                pq.write_table(logged.sample, sampled)
                counts = count_by_bin(database, self._reference.bins, {period: sampled})[period]
                counted = {SERVED: Histogram(counts[0], 0, np.zeros(0, np.int64)), **counts[1]}
                features = [name for name in self._inputs.column_names if self._inputs.find_feature(name)]
                skew = self._compare_features(period, logged.sample, features)
                try:
                    prediction = self._compare_predictions(logged.sample, problems)
                except Exception as error:  # of any class: libraries of models, with values of others
                    log.warning("predictions of %s are not compared", period, exc_info=error)
                    problems.append(f"predictions are not compared: {shorten(first_line(error))}")
            names = [column.name for column in self._schema.predictions]
            no_rows = pa.table({name: pa.array([], pa.float64()) for name in names})
            predictions = no_rows if logged.sample is None else logged.sample.select(names)
        served = self._describe(period, logged, refused, features, skew, prediction, problems)
        return served.model_copy(update={"has_all_answers": has_all}), counted, predictions

    def _describe(
        self,
        period: str,
        logged: LoggedPeriod,
        refused: Sequence[str],
        features: Sequence[str],
        skew: Sequence[ColumnSkew],
        prediction: PredictionSkew | None,
        problems: Sequence[str],
    ) -> ServedPeriod:
        foreign = (*refused, *logged.foreign)
        return ServedPeriod(
            period=period,
            champion_version=self._version,
            champion_content=self._tenure.content,
            rows=logged.rows,
            duplicates=logged.duplicates,
            other_models=logged.other_models,
            sampled=logged.sample.num_rows if logged.sample is not None else 0,
            features=tuple(features),
            skew=tuple(skew),
            prediction=prediction,
            foreign=foreign[:MAX_FOREIGN],
            foreign_files=len(foreign),
            problems=tuple(problems),
        )

    def _compare_features(self, period: str, sample: pa.Table, features: Sequence[str]) -> list[ColumnSkew]:
        if not features:
            return []
        calendar = feature_spec(self._model).calendar
        window = Window.from_range(period, calendar.shift(period, 1), RunReason.MANUAL, calendar)
        partitions = partitions_in_reach(self._model, window, self._inputs)
        requests = sample.select([TIME, *(column.name for column in self._schema.keys)])
        requests = requests.rename_columns(["event_timestamp", *requests.column_names[1:]])
        offline = join_as_learned(self._model, self._inputs, requests, partitions)
        differences = find_differences(sample, offline, features)
        if not differences:
            return []
        rows = np.flatnonzero(np.any([difference.differs for difference in differences], axis=0))
        explained = self._explain(sample.take(rows), requests.take(rows), window)
        names = {ID: "id", TIME: "at"} | {column.name: column.name for column in self._schema.keys}
        skew = []
        for difference in differences:
            column, first = difference.column, int(np.flatnonzero(difference.differs)[0])
            unexplained, causes = difference.differs[rows], dict[str, int]()
            for cause, is_explained in explained.items():
                causes[cause] = int((unexplained & is_explained[column]).sum())
                unexplained &= ~is_explained[column]
            causes["absent"] = int((unexplained & difference.only_offline[rows]).sum())
            causes["other"] = int(unexplained.sum()) - causes["absent"]
            ranked = sorted(((count, _CAUSES[cause]) for cause, count in causes.items() if count), reverse=True)
            values = f"{value_text(sample, column, first)} served, {value_text(offline, column, first)} offline"
            example = f"{values}, of {describe_row(sample, first, names)}"
            named = {text: count for count, text in ranked}
            skew.append(ColumnSkew(column=column, rows=int(difference.differs.sum()), causes=named, example=example))
        return sorted(skew, key=lambda item: (-item.rows, item.column))

    def _explain(self, sample: pa.Table, requests: pa.Table, window: Window) -> dict[str, dict[str, np.ndarray]]:
        """Return for each cause in which rows (n,) of a column the served value would be the offline one by it."""
        length = window.calendar.end(window.start) - window.calendar.start(window.start)
        earlier = pa.array(
            [instant - length for instant in requests["event_timestamp"].to_pylist()],
            requests.schema.field("event_timestamp").type,
        )
        earlier_requests = requests.set_column(0, "event_timestamp", earlier)
        joins: dict[str, tuple[pa.Table, dict[str, bool]]] = {
            "early": (requests, {"counts_at_once": True}),
            "expired": (requests, {"counts_at_once": True, "holds_for_ever": True}),
            "late": (earlier_requests, {}),
        }
        partitions = partitions_in_reach(self._model, window, self._inputs, _EXPIRED_TTLS)
        explained = {}
        columns = [name for name in self._inputs.column_names if self._inputs.find_feature(name)]
        for cause, (rows, options) in joins.items():
            offline = join_as_learned(self._model, self._inputs, rows, partitions, **options)
            differing = {item.column: item.differs for item in find_differences(sample, offline, columns)}
            explained[cause] = {
                name: ~differing[name] if name in differing else np.ones(sample.num_rows, bool) for name in columns
            }
        return explained

    def _compare_predictions(self, sample: pa.Table, problems: list[str]) -> PredictionSkew | None:
        names = self._inputs.column_names
        if infinite := _infinite_rows(sample, names):
            problems.append(f"{len(infinite):,} rows have infinite inputs: their predictions are not compared")
            sample = sample.take(sorted(set(range(sample.num_rows)) - infinite))
        if not sample.num_rows:
            return None
        if lacking := [name for name in names if name not in sample.column_names]:
            raise ScoringError(f"the log has no {', '.join(lacking)}")
        scorer = TableScorer(self._folder, sample.column_names, names, self._inputs.prediction)
        scored, computed, reason = score_what_can_be(scorer.score, sample.select(list(names)))
        if not scored.size:
            raise ScoringError(reason)
        if left_out := sample.num_rows - scored.size:
            problems.append(f"{left_out:,} rows are not scored: the model refuses them, or rows beside them: {reason}")
            sample = sample.take(scored)
        columns = [sample[column.name].to_numpy(zero_copy_only=False) for column in self._schema.predictions]
        logged = np.column_stack([column.astype(np.float64) for column in columns]).reshape(computed.shape)
        differs = find_other_predictions(logged, computed)
        sizes = np.abs(logged - computed)[differs]
        finite = sizes[np.isfinite(sizes)]
        return PredictionSkew(
            rows=sample.num_rows,
            differing=int(differs.sum()),
            largest=float(finite.max()) if finite.size else None,
            ids=tuple(shorten(sample[ID][int(row)].as_py()) for row in np.flatnonzero(differs)[:_MAX_IDS]),
        )


def score_what_can_be(
    score: Callable[[pa.Table], FloatValues], table: pa.Table
) -> tuple[NDArray[np.intp], FloatValues, str]:
    """Return which rows of a table (n,) a model scores, their predictions, and why it does not score the others.

    Rows that are refused together are scored in halves, until `MAX_SCORING_CALLS` were made: after that, what has not
    been scored is left out.
    """
    parts, waiting, reason, calls = list[tuple[int, FloatValues]](), deque([(0, table.num_rows)]), "", 0
    while waiting and calls < MAX_SCORING_CALLS:
        start, count = waiting.popleft()
        calls += 1
        try:
            parts.append((start, score(table.slice(start, count))))
        except Exception as error:  # of any class: libraries of models, with values of others
            reason = reason or shorten(first_line(error))
            if count > 1:
                waiting += [(start, count // 2), (start + count // 2, count - count // 2)]
    parts.sort(key=lambda part: part[0])
    rows = [np.arange(start, start + len(values)) for start, values in parts]
    no_rows = np.zeros(0, np.intp)
    return np.concatenate([no_rows, *rows]), np.concatenate([values for _, values in parts] or [np.zeros(0)]), reason


def _infinite_rows(sample: pa.Table, columns: Sequence[str]) -> set[int]:
    """Return the numbers of rows that have an infinite value: some libraries of models refuse all rows then."""
    rows: set[int] = set()
    for name in columns:
        if name in sample.column_names and pa.types.is_floating(sample.schema.field(name).type):
            values = sample[name].to_numpy(zero_copy_only=False).astype(np.float64)
            rows |= set(map(int, np.flatnonzero(np.isinf(values))))
    return rows
