"""Training sets: labelled examples, each joined with the features that were known when it was predicted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evergreen.errors import Fault, InputsChangedError, RawDataError
from evergreen.feature_store.repository import open_feature_store
from evergreen.features.inputs import features_dataset as features_dataset
from evergreen.lake import datasets, fingerprints
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import Window


@dataclass(frozen=True)
class HoldoutSplit:
    """The days a model learns from, `start` ≤ day < `holdout`, and is judged on, `holdout` ≤ day < `end`."""

    start: date
    holdout_start: date
    end: date


def split_window(model: ModelSpec, window: Window) -> HoldoutSplit:
    """Divide the window; its last days are the holdout.

    Raises:
        RawDataError: the window is too short to leave a day to learn from.
    """
    holdout = window.end - timedelta(model.holdout_days)
    if holdout <= window.start:
        what = f"only {len(window.days)} days of data, {model.holdout_days} of them for the holdout"
        raise RawDataError(f"{model.name} as of {window.end}", [Fault("window", what, "retrain later")])
    return HoldoutSplit(window.start, holdout, window.end)


def build_training_set(model: ModelSpec, window: Window) -> datasets.Manifest:
    """Publish the files `train`, `holdout` and `recent` for `window`, and give their manifest.

    Each has one row per example, ordered by its time: the columns of the spine and every feature of the
    model's service, named `view__feature`. In `train` and `holdout` an example whose label was not known
    before `window.as_of` is left out. `recent` is what a model has last been asked: all examples of the newest
    day that has such an example, whether or not theirs was known, without `label` and `label_known_at`. It has
    no rows if every label was known.

    Raises:
        RawDataError: days of the window have no published features; all are named.
        InputsChangedError: a day was published anew while it was read.
    """
    parts = split_window(model, window)
    inputs = _training_set_inputs(model, window, parts)
    mark = fingerprints.compute_fingerprint(inputs)
    target, partition = training_set_dataset(model), f"as_of={window.end}"
    if done := target.find(partition, mark):
        print(f"training set as of {window.end} is published already with fingerprint {mark[:12]}")
        return done
    spine = _read_spine(model, window)
    known = _label_is_known(spine, window)
    recent = _newest_day(spine.filter(pc.invert(known)))
    wanted = pc.or_(known, pc.equal(spine["day"], pa.scalar(recent, pa.date32())).fill_null(False))
    labelled = pc.sum(known).as_py() or 0
    print(f"{labelled} labelled examples, {parts.start} until {parts.end}; joining features", flush=True)
    table = _join_features(model, spine.filter(wanted))
    if _training_set_inputs(model, window, parts) != inputs:
        raise InputsChangedError("features were published anew while the training set was read; clear this task")
    known = _label_is_known(table, window)
    in_holdout = pc.greater_equal(table["day"], pa.scalar(parts.holdout_start))
    is_recent = pc.equal(table["day"], pa.scalar(recent, pa.date32())).fill_null(False)
    folder = target.stage(partition, mark)
    files = {}
    for name, rows in (
        ("train", table.filter(pc.and_(known, pc.invert(in_holdout)))),
        ("holdout", table.filter(pc.and_(known, in_holdout))),
        ("recent", table.filter(is_recent).drop_columns(list(_LABEL_COLUMNS))),
    ):
        files[name] = folder / f"{name}.parquet"
        # Row groups are what a trainer reads at a time, and what several of them share.
        pq.write_table(rows, files[name], row_group_size=65_536)
    manifest = target.publish(partition, mark, files, inputs)
    print(", ".join(f"{name}: {file.rows} rows" for name, file in manifest.files.items()))
    return manifest


def changed_feature_partitions(model: ModelSpec, window: Window) -> list[str]:
    """The published days of the window that are new, or were corrected, since the newest training set."""
    sets = training_set_dataset(model)
    newest = sets.partitions()[-1:]
    last = sets.manifest(newest[0]) if newest else None
    seen = last.inputs["features"] if last else {}
    wanted = {datasets.day_partition(day) for day in window.days}
    return [
        manifest.partition
        for manifest in features_dataset(model).manifests()
        if manifest.partition in wanted and seen.get(manifest.partition) != manifest.content_hash
    ]


def training_set_dataset(model: ModelSpec) -> datasets.Dataset:
    return datasets.open_dataset(f"training_sets/{model.name}")


def model_input_columns(model: ModelSpec) -> tuple[str, ...]:
    """Inputs of the model, in the order it is given them: what comes with the request, then the features."""
    service = open_feature_store().get_feature_service(model.feature_service)
    joined = [
        f"{projection.name_to_use()}__{feature.name}"
        for projection in service.feature_view_projections
        for feature in projection.features
    ]
    return (*model.request_columns, *joined)


def _training_set_inputs(model: ModelSpec, window: Window, split: HoldoutSplit) -> dict[str, Any]:
    wanted = {datasets.day_partition(day) for day in window.days}
    published = {m.partition: m.content_hash for m in features_dataset(model).manifests() if m.partition in wanted}
    if missing := sorted(wanted - published.keys()):
        way_out = f"run {model.feature_model}.features for these days first"
        raise RawDataError(
            f"{model.name} as of {window.end}",
            [Fault(day, "has no published features", way_out) for day in missing],
        )
    return {
        "as_of": window.end.isoformat(),
        "start": split.start.isoformat(),
        "holdout": split.holdout_start.isoformat(),
        "label": model.label,
        "service": model.feature_service,
        "features": published,
        "definitions": _view_definitions(model),
        "offline_store": settings().offline_store,
        "known_before": window.as_of.isoformat(),
        "code": training_set_code(),
    }


def training_set_code() -> dict[str, str]:
    """Return what training sets depend on besides features, the window and the definitions of views."""
    return fingerprints.code_of((__name__, "evergreen.feature_store.offline_store"), ("feast", "duckdb", "pyarrow"))


def _view_definitions(model: ModelSpec) -> dict[str, Any]:
    """The views of the model's service, in all that their answers depend on."""
    store = open_feature_store()
    projections = store.get_feature_service(model.feature_service).feature_view_projections
    views = {projection.name_to_use(): store.get_feature_view(projection.name) for projection in projections}
    return {
        projection.name_to_use(): {
            "view": projection.name,
            "keys": sorted(column.name for column in views[projection.name_to_use()].entity_columns),
            "ttl": str(views[projection.name_to_use()].ttl),
            "features": {feature.name: str(feature.dtype) for feature in projection.features},
        }
        for projection in projections
    }


_LABEL_COLUMNS = ("label", "label_known_at")  # columns that nobody has when a prediction is made


def _read_spine(model: ModelSpec, window: Window) -> pa.Table:
    """All examples of the window, with their day."""
    published = features_dataset(model)
    tables = []
    for day in window.days:
        manifest = published.manifest(datasets.day_partition(day))
        assert manifest is not None  # _inputs has found all days
        table = pq.read_table(published.file_path(manifest, feature_spec(model).spine), partitioning=None)
        tables.append(table.append_column("day", pa.array([day] * table.num_rows, pa.date32())))
    return pa.concat_tables(tables).rename_columns({model.label: "label"})


def _label_is_known(examples: pa.Table, window: Window) -> pa.ChunkedArray:
    """Whether the label was known before `as_of`, for each example."""
    in_time = pc.less(examples["label_known_at"], pa.scalar(window.as_of)).fill_null(False)
    return pc.and_(pc.is_valid(examples["label"]), in_time)


def _newest_day(examples: pa.Table) -> date | None:
    return pc.max(examples["day"]).as_py()


def _join_features(model: ModelSpec, spine: pa.Table) -> pa.Table:
    """`spine` with all features, ordered by time. Its own columns come out as they went in.

    They pass through pandas on their way through Feast, where an integer that is missing somewhere makes its
    whole column floating: so only the features are taken from the answer, by the number of their row.
    """
    asked = spine.drop_columns(list(_LABEL_COLUMNS)).append_column(
        datasets.ROW_COLUMN, pa.array(range(spine.num_rows), pa.int64())
    )
    table = historical_features(model, asked)
    joined = spine.take(table[datasets.ROW_COLUMN])
    for name in sorted(set(table.column_names) - set(asked.column_names)):
        joined = joined.append_column(name, table[name])
    return joined.sort_by([(name, "ascending") for name in ("event_timestamp", *_key_columns(spine))])


def historical_features(model: ModelSpec, entities: pa.Table) -> pa.Table:
    """`entities` (join keys and `event_timestamp`), and the features of the model's service at these instants.

    One row for each of theirs, in any order; features are named `view__feature`.
    """
    store = open_feature_store()
    service = store.get_feature_service(model.feature_service)
    if settings().offline_store == "spark":
        _register_spark_views(model, [p.name for p in service.feature_view_projections])
    job = store.get_historical_features(
        entity_df=entities.to_pandas(date_as_object=True), features=service, full_feature_names=True
    )
    table = job.to_arrow()
    if table.num_rows != entities.num_rows:
        raise AssertionError(f"the point-in-time join gave {table.num_rows} rows for {entities.num_rows} examples")
    return table


def _key_columns(spine: pa.Table) -> list[str]:
    return [field.name for field in spine.schema if pa.types.is_string(field.type)]


def _register_spark_views(model: ModelSpec, views: list[str]) -> None:
    """Give the Spark store, in this process's session, the published files under each view's name."""
    from pyspark.sql import SparkSession

    session = SparkSession.builder.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    root = features_dataset(model).root
    for view in views:
        files = datasets.published_files(str(root / view)) or []
        session.read.parquet(*files).createOrReplaceTempView(view)
