"""Training sets: labelled examples, each joined with the features that were known when it was predicted."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore, FeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.provider import get_provider

from evergreen.errors import Fault, InputsChangedError, RawDataError, SpecError, StaleFeaturesError
from evergreen.feature_store.duckdb_examples import DuckDBExamples
from evergreen.feature_store.examples import Examples, LabelCount, Selection
from evergreen.feature_store.model_inputs import ViewDefinition
from evergreen.feature_store.offline_store import open_scratch_database
from evergreen.feature_store.repository import open_feature_store
from evergreen.feature_store.republished_features import RepublishedError, read_again_if_republished
from evergreen.feature_store.retrieval import entity_frame, read_table, restrict_partitions
from evergreen.feature_store.row_weights import check_weights
from evergreen.feature_store.seasonal_columns import SEASONAL_FILE
from evergreen.feature_store.seasonal_naive import seasonal_inputs, write_seasonal_naive
from evergreen.features.inputs import features_dataset, published_manifests, published_periods
from evergreen.features.served_after import ServedAfter
from evergreen.features.staleness import find_mixed_features, periods_in_reach
from evergreen.features.types import is_model_input
from evergreen.lake import datasets, fingerprints
from evergreen.lake.exchange import open_exchange
from evergreen.periods import Calendar
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPeriods:
    """How a retrain uses its periods: to train before `train_end`, to judge from `holdout_start` to `holdout_end`.

    Both ends are exclusive. Labels of the periods between, and after, may not be complete: those that came early are of
    other rows than those that come late.
    """

    train_end: str
    holdout_start: str
    holdout_end: str

    @classmethod
    def from_window(cls, model: ModelSpec, window: Window) -> Self:
        """Return the periods of `window`, whose end is the run's `as_of`.

        Raises:
            RawDataError: the window is too short to leave a period to train on.
        """
        calendar = window.calendar
        end = calendar.period_before(window.end, model.label_delay)
        start = calendar.period_before(end, model.holdout)
        periods = cls(calendar.period_before(start, model.label_delay), start, end)
        if periods.train_end <= window.start:
            used = f"{model.holdout} of them for the holdout"
            if model.label_delay:
                used += f", {model.label_delay} each for labels to arrive after it and before it"
            problem = f"only {len(window.periods)} {calendar.unit}s of data, {used}"
            raise RawDataError(f"{model.name} as of {window.end}", [Fault("window", problem, "retrain later")])
        return periods


def build_training_set(model: ModelSpec, window: Window) -> datasets.Manifest:
    """Publish the files `train`, `holdout`, `recent` and `label_counts` for `window`, and return their manifest.

    The first three have one row per example, ordered by time: the columns of the spine and every feature of the model's
    service, named `view__feature`. `train` has examples whose label was known before the holdout began: those that a
    model deployed then could have learned from. `holdout` has those whose label was known before `window.as_of`, and
    that were predicted when the model could have been: see `_first_prediction`.
    `recent` holds the newest requests: all examples of the newest day that has one without a known label, without the
    columns `label` and `label_known_at`. It is empty if every label was known. `label_counts` has, by day of the
    holdout, the number of its examples (`rows`) and of those with a known label (`labelled`). Of a forecast, there is
    `seasonal`, too (`seasonal_naive`).

    Raises:
        RawDataError: periods of the window have no published features; or weights, series or horizons are no such. All
            are named.
        StaleFeaturesError: periods of the window were made by other code, parameters or registers than its newest.
        SpecError: columns have types that do not fit together, or that a model does not take.
        InputsChangedError: periods were republished each time that they were read.
    """
    return read_again_if_republished(lambda: _build_training_set(model, window))


def _build_training_set(model: ModelSpec, window: Window) -> datasets.Manifest:
    inputs = _training_set_inputs(model, window)
    fingerprint = fingerprints.compute_fingerprint(inputs)
    dataset, partition = training_set_dataset(model), f"as_of={datasets.file_name_of_period(window.end)}"
    if published := dataset.find(partition, fingerprint):
        log.info("training set as of %s is already published with fingerprint %.12s", window.end, fingerprint)
        return published
    periods = TrainingPeriods.from_window(model, window)
    with open_examples(model, window.periods, dataset) as examples:
        counts = examples.count_labels(window.as_of)
        made_from = _first_prediction(model, window.calendar, periods.holdout_start)
        count = examples.select(_select_files(periods, window, counts, made_from))
        if made_from:
            counts = examples.count_labels(window.as_of, made_from)
        log.info("%s examples of %s until %s; joining features", count, window.start, window.end)
        join_features(model, examples, inputs)
        if _training_set_inputs(model, window) != inputs:
            raise RepublishedError
        return _publish_examples(model, dataset, partition, fingerprint, examples, counts, periods, inputs)


def look_end(model: ModelSpec, window: Window, start: str) -> str:
    """Return the period before which all periods from `start` on have published features, and complete labels.

    Those at the end may not be published yet. One that is missing before others is a fault: `build_look_set` names it.
    """
    calendar = window.calendar
    complete = list(calendar.periods_between(start, calendar.period_before(window.end, model.label_delay)))
    published = published_manifests(model, complete)
    present = [period for period in complete if period in published]
    return calendar.shift(present[-1], 1) if present else start


def build_look_set(model: ModelSpec, window: Window, start: str, end: str) -> datasets.Manifest:
    """Publish the files `holdout` and `label_counts` for `start` ≤ period < `end`, and return their manifest.

    They are as in a training set, with labels that were known before `window.as_of`: what a look compares two models on
    that have learned from none of these periods.

    Raises:
        RawDataError: periods have no published features; all are named.
        StaleFeaturesError: periods were made by other code, parameters or registers than the newest one.
        InputsChangedError: periods were republished each time that they were read.
    """
    return read_again_if_republished(lambda: _build_look_set(model, window, start, end))


def _build_look_set(model: ModelSpec, window: Window, start: str, end: str) -> datasets.Manifest:
    periods = TrainingPeriods(train_end=start, holdout_start=start, holdout_end=end)
    needed = tuple(window.calendar.periods_between(start, end))
    window = Window.from_range(start, window.end, window.run_reason, window.calendar)
    inputs = example_inputs(model, window, periods, needed) | _kind_inputs(model, start, end)
    fingerprint = fingerprints.compute_fingerprint(inputs)
    dataset, partition = look_dataset(model), _look_partition(start, window.end)
    if published := dataset.find(partition, fingerprint):
        log.info("examples of this look are already published with fingerprint %.12s", fingerprint)
        return published
    with open_examples(model, needed, dataset) as examples:
        made_from = _first_prediction(model, window.calendar, start)
        counts = examples.count_labels(window.as_of, made_from)
        count = examples.select({"holdout": Selection(start, end, window.as_of, made_from)})
        log.info("%s examples of %s until %s; joining features", count, start, end)
        join_features(model, examples, inputs)
        if example_inputs(model, window, periods, needed) | _kind_inputs(model, start, end) != inputs:
            raise RepublishedError
        return _publish_examples(model, dataset, partition, fingerprint, examples, counts, periods, inputs)


def _look_partition(start: str, end: str) -> str:
    return f"since={datasets.file_name_of_period(start)}_as_of={datasets.file_name_of_period(end)}"


def look_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"looks/{model.name}")


def periods_to_read(model: ModelSpec, window: Window) -> list[str]:
    """Return the periods whose features a training set of `window` may have, by the TTLs of its views."""
    if all(period >= window.start for period in published_periods(model)[:1]):
        return list(window.periods)
    return periods_in_reach(model, window, [view["ttl_seconds"] for view in _view_definitions(model).values()])


def changed_feature_partitions(model: ModelSpec, manifests: Iterable[datasets.Manifest]) -> list[str]:
    """Return which published periods of features are new, or were corrected, since the newest training set."""
    newest = newest_training_set(model)
    used = newest.inputs["features"] if newest else {}
    return [manifest.partition for manifest in manifests if used.get(manifest.partition) != manifest.content_hash]


def newest_training_set(model: ModelSpec) -> datasets.Manifest | None:
    """Return the manifest of the training set of the newest period; None if there is none."""
    return training_set_dataset(model).newest()


def training_set_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"training_sets/{model.name}")


def model_input_columns(model: ModelSpec) -> tuple[str, ...]:
    """Return the inputs of the model in its order: the columns of the request, then the features."""
    service = open_feature_store(model.feature_model).get_feature_service(model.feature_service)
    features = [
        f"{projection.name_to_use()}__{feature.name}"
        for projection in service.feature_view_projections
        for feature in projection.features
    ]
    return (*model.request_columns, *features)


def join_views(
    store: FeatureStore, views: Sequence[FeatureView], references: list[str], entities: pa.Table
) -> pa.Table:
    """Return the features `references` (`view:feature`) of views.

    The views need not be in Feast's registry. One row for each of `entities`, in their order; features are named
    `view__feature`.
    """
    numbered = entities.append_column(datasets.ROW_COLUMN, pa.array(range(entities.num_rows), pa.int64()))
    job = get_provider(store.config).get_historical_features(
        store.config,
        list(views),
        references,
        entity_frame(numbered),
        store.registry,
        store.project,
        full_feature_names=True,
    )
    table = read_table(job)
    if table.num_rows != entities.num_rows:
        raise AssertionError(f"the point-in-time join returned {table.num_rows} rows for {entities.num_rows} examples")
    return table.sort_by(datasets.ROW_COLUMN)


def training_set_code() -> dict[str, str]:
    """Return what training sets depend on besides features, the window and the definitions of views."""
    return fingerprints.code_of((__name__, "evergreen.feature_store.offline_store"), ("feast", "duckdb", "pyarrow"))


def _publish_examples(
    model: ModelSpec,
    dataset: datasets.Dataset,
    partition: str,
    fingerprint: str,
    examples: Examples,
    counts: Sequence[LabelCount],
    periods: TrainingPeriods,
    inputs: dict[str, Any],
) -> datasets.Manifest:
    staged = dataset.stage(partition, fingerprint)
    redundant = [datasets.PERIOD_COLUMN] if feature_spec(model).calendar.partition_key == "day" else []
    files = examples.write_files(staged, redundant) | {"label_counts": staged / "label_counts.parquet"}
    pq.write_table(_sum_label_counts(counts, periods), files["label_counts"])
    if model.weight:
        check_weights(model, {name: files[name] for name in ("train", "holdout") if name in files})
    if model.forecast:
        files[SEASONAL_FILE] = write_seasonal_naive(
            model, files["holdout"], inputs, staged / f"{SEASONAL_FILE}.parquet"
        )
    manifest = dataset.publish(partition, fingerprint, files, inputs)
    log.info("%s", ", ".join(f"{name}: {file.rows} rows" for name, file in manifest.files.items()))
    return manifest


def _training_set_inputs(model: ModelSpec, window: Window) -> dict[str, Any]:
    periods = TrainingPeriods.from_window(model, window)
    inputs = example_inputs(model, window, periods, window.periods)
    return inputs | _kind_inputs(model, periods.holdout_start, periods.holdout_end)


def _kind_inputs(model: ModelSpec, holdout_start: str, holdout_end: str) -> dict[str, Any]:
    """Return what examples depend on besides features, for models that declare a forecast or weights."""
    weight = {"weight": model.weight} if model.weight else {}
    return seasonal_inputs(model, holdout_start, holdout_end) | weight


def example_inputs(
    model: ModelSpec, window: Window, periods: TrainingPeriods, needed_periods: Sequence[str]
) -> dict[str, Any]:
    """Return what examples of `needed_periods` depend on; features of all periods of the window may be in reach."""
    published = published_manifests(model, periods_to_read(model, window))
    if missing := [period for period in needed_periods if period not in published]:
        fix = f"run {model.feature_model}.features for these periods first"
        faults = [Fault(datasets.period_partition(period), "has no published features", fix) for period in missing]
        raise RawDataError(f"{model.name} as of {window.end}", faults)
    if (mixed := find_mixed_features(model, published)).periods:
        fix = "clear this run from its plan task on"  # it rebuilds them, or says how to
        faults = mixed.faults(fix if needed_periods == window.periods else f"{mixed.rebuild_fix}, then {fix}")
        raise StaleFeaturesError(f"{model.name} as of {window.end}: features differ from the newest period's", faults)
    return {
        "as_of": window.end,
        **spec_inputs(model, window, periods),
        "features": _contents(published[period] for period in window.periods if period in published),
        "earlier_features": _contents(manifest for period, manifest in published.items() if period < window.start),
        "definitions": _view_definitions(model),
        "known_before": window.as_of.isoformat(),
        "code": training_set_code(),
    }


def spec_inputs(model: ModelSpec, window: Window, periods: TrainingPeriods) -> dict[str, Any]:
    """Return what examples depend on of the spec and of the window."""
    return {
        "start": window.start,
        "train_end": periods.train_end,
        "holdout": periods.holdout_start,
        "holdout_end": periods.holdout_end,
        "label": model.label,
        "service": model.feature_service,
        "feature_model": model.feature_model,
    }


def _contents(manifests: Iterable[datasets.Manifest]) -> dict[str, str]:
    return {manifest.partition: manifest.content_hash for manifest in manifests}


def _view_definitions(model: ModelSpec) -> dict[str, Any]:
    """Return the `ViewDefinition` of each view of the service, by the first part of the names of its columns."""
    store = open_feature_store(model.feature_model)
    definitions = {}
    for projection in store.get_feature_service(model.feature_service).feature_view_projections:
        view = store.get_feature_view(projection.name)
        definition = ViewDefinition(
            table=view.batch_source.name if view.batch_source else view.name,
            keys={
                column.name: column.dtype.to_value_type().name
                for column in sorted(view.entity_columns, key=lambda column: column.name)
                if column.name != DUMMY_ENTITY_ID
            },
            key_columns=dict(projection.join_key_map),
            ttl_seconds=view.ttl.total_seconds() if view.ttl else 0,
            features={feature.name: feature.dtype.to_value_type().name for feature in projection.features},
            served_after=ServedAfter.from_tags(view.batch_source.tags if view.batch_source else None),
        )
        definitions[projection.name_to_use()] = definition.model_dump(mode="json")
    return definitions


@contextmanager
def open_examples(model: ModelSpec, periods: Sequence[str], dataset: datasets.Dataset) -> Iterator[Examples]:
    """Open all examples of these periods, in the engine that is to join them; what it writes goes with the context.

    Where Spark sees the files of tasks, it writes to a folder of `dataset`.

    Raises:
        InputsChangedError: features have expired meanwhile.
        SpecError: columns have types that do not fit together, or that trainer and scorer read differently.
    """
    published, spec = features_dataset(model), feature_spec(model)
    manifests = published.read_manifests([datasets.period_partition(period) for period in periods])
    if len(manifests) < len(periods):  # _training_set_inputs has found all of them
        raise InputsChangedError(
            f"{model.feature_model}: features of {len(periods) - len(manifests)} of {len(periods)} periods have "
            "expired while this task read them: clear this run from its plan task on"
        )
    source = model.name, spec.spine, model.label
    with ExitStack() as stack:
        examples: Examples
        if _joins_with_spark(model, manifests):
            from evergreen.feature_store import spark_examples  # it loads Spark

            # Not in the folder of the partition: an attempt that publishes it meanwhile removes that.
            scratch = dataset.stage("spark", uuid.uuid4().hex)
            stack.callback(shutil.rmtree, scratch.parent, ignore_errors=True)
            exchange = stack.enter_context(open_exchange(scratch / "exchange"))
            log.info("Spark joins examples and features; its rows are read from %s", exchange.folder)
            files = spark_examples.provide_files(exchange, published, spec.spine, manifests)
            examples = spark_examples.SparkExamples.from_files(
                stack.enter_context(spark_examples.open_join_session()),
                *source,
                dict(zip(periods, files, strict=True)),
                spec.calendar,
                exchange,
            )
        else:
            con = stack.enter_context(open_scratch_database(open_feature_store(model.feature_model).config))
            paths = [published.file_path(manifest, spec.spine) for manifest in manifests]
            examples = DuckDBExamples.from_files(con, *source, dict(zip(periods, paths, strict=True)), spec.calendar)
        if faults := list(_request_faults(model, examples.schema)):
            raise SpecError(f"model {model.name}", faults)
        yield examples


def _joins_with_spark(model: ModelSpec, manifests: Iterable[datasets.Manifest]) -> bool:
    """Return whether Spark joins examples of these features: by the setting, or by the number of their rows."""
    engine = settings().training_set_engine
    if isinstance(engine, str):
        return engine == "spark"
    tables = {feature_spec(model).spine, *(view["table"] for view in _view_definitions(model).values())}
    rows = sum(file.rows or 0 for manifest in manifests for name, file in manifest.files.items() if name in tables)
    log.info("%s rows of examples and features; Spark joins them from %s rows on", rows, engine)
    return rows >= engine


def _request_faults(model: ModelSpec, schema: pa.Schema) -> Iterator[Fault]:
    """Yield a fault for each column of the request that is learned in another way than it is scored."""
    for name in model.request_columns:
        if name in schema.names and not is_model_input(schema.field(name).type):
            problem = f"{name} is {schema.field(name).type}, which trainers and scorers do not read alike"
            yield Fault("request_columns", problem, "let features.py return an integer, a float, a boolean or text")


def _first_prediction(model: ModelSpec, calendar: Calendar, holdout_start: str) -> datetime | None:
    """Return the instant from which on predictions count in a holdout; None if that follows from their periods.

    A model has learned from labels that were known when its holdout starts. So it could not have made a forecast before
    that, of a period in the holdout: it would know what was the future then.
    """
    is_of_targets = model.forecast is not None and model.forecast.row_period == "target"
    return calendar.start(holdout_start) if is_of_targets else None


def _select_files(
    periods: TrainingPeriods, window: Window, counts: Sequence[LabelCount], made_from: datetime | None = None
) -> dict[str, Selection]:
    """Return which examples each file of a training set has, given the labels that were known before `window.as_of`."""
    return {
        "train": Selection("", periods.train_end, window.calendar.start(periods.holdout_start)),
        "holdout": Selection(periods.holdout_start, periods.holdout_end, window.as_of, made_from),
        "recent": _select_recent(counts, window.calendar),
    }


def _select_recent(counts: Sequence[LabelCount], calendar: Calendar) -> Selection:
    """Return all examples of the newest day that has one without a known label; none if there is no such day."""
    newest = max((count.day for count in counts if count.labelled < count.rows), default=None)
    periods = [count.period for count in counts if count.day == newest]
    return Selection(periods[0], calendar.shift(periods[-1], 1)) if periods else Selection("", "")


def _sum_label_counts(counts: Iterable[LabelCount], periods: TrainingPeriods) -> pa.Table:
    """Return the number of examples, and of those with a known label, of each day of the holdout, in order."""
    days: dict[date, tuple[int, int]] = {}
    for count in counts:
        if periods.holdout_start <= count.period < periods.holdout_end:
            rows, labelled = days.get(count.day, (0, 0))
            days[count.day] = rows + count.rows, labelled + count.labelled
    schema = pa.schema([("day", pa.date32()), ("rows", pa.int64()), ("labelled", pa.int64())])
    columns = zip(*((day, *days[day]) for day in sorted(days)), strict=True) if days else ([], [], [])
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def join_features(model: ModelSpec, examples: Examples, inputs: Mapping[str, Any]) -> None:
    """Join all features of the periods that `inputs` name.

    A later period may have rows about an earlier time, which nobody knew then; so a backfilled run, and the same run a
    year later, read the same rows.
    """
    with restrict_partitions([*inputs["earlier_features"], *inputs["features"]]):
        store = open_feature_store(model.feature_model)
        projections = store.get_feature_service(model.feature_service).feature_view_projections
        views = [store.get_feature_view(projection.name).with_projection(projection) for projection in projections]
        references = [
            f"{projection.name_to_use()}:{feature.name}"
            for projection in projections
            for feature in projection.features
        ]
        examples.join(store.config, views, references)
