"""Compute the features of many days in one job (Spark), in folders that no reader looks into.

A day is computed once: its folder is found by its fingerprint, also when the run that built it died before
publishing it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from datetime import date
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql.pandas.types import from_arrow_schema

from evergreen.features import FeatureTables, inputs, spark
from evergreen.features.definitions import DeclaredTypes, declared_types
from evergreen.features.inputs import FingerprintsByDay
from evergreen.features.row_order import order_rows
from evergreen.features.types import cast_columns
from evergreen.lake import datasets
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

log = logging.getLogger(__name__)


def build_features(model: ModelSpec, fingerprints: FingerprintsByDay) -> dict[str, str]:
    """Compute the features of days that are not built yet, and return the folder of each unpublished day."""
    dataset = inputs.features_dataset(model)
    folders: dict[str, str] = {}
    missing_days = []
    for day, fingerprint in fingerprints.items():
        if inputs.find_published_day(model, day, fingerprint):
            log.info("%s: published already with fingerprint %s, nothing to do", day, fingerprint[:12])
        elif cached := dataset.find_cached(datasets.day_partition(day), fingerprint):
            log.info("%s: built already with fingerprint %s, not yet published", day, fingerprint[:12])
            folders[day] = str(cached)
        else:
            missing_days.append(day)
    for batch in inputs.split_into_batches(missing_days):
        staged = {day: dataset.stage(datasets.day_partition(day), fingerprints[day]) for day in batch}
        _build_batch(model, staged)
        for day, folder in staged.items():
            folders[day] = str(dataset.cache_staged(datasets.day_partition(day), fingerprints[day], folder))
        if len(batch) < len(missing_days):
            log.info("%s of %s days are built", len(folders.keys() & set(missing_days)), len(missing_days))
    return folders


def _build_batch(model: ModelSpec, staging_folders: Mapping[str, Path]) -> None:
    spec = feature_spec(model)
    days = [date.fromisoformat(day) for day in staging_folders]
    scratch = next(iter(staging_folders.values())).with_suffix(".spark")
    raw_files = inputs.raw_files_for_days(spec, days)
    with spark.spark_session() as session:
        raw = {}
        for source in spec.sources:
            paths = [str(file.path) for file in raw_files if file.source == source.name]
            # All files have passed the same check of columns and types; giving Spark the schema of one spares it
            # a job that reads the footers of all.
            schema = from_arrow_schema(pq.read_schema(paths[0]).remove_metadata(), prefer_timestamp_ntz=False)
            raw[source.name] = session.read.schema(schema).parquet(*paths)
        module = import_module(f"evergreen_models.{model.feature_model}.features")
        types = declared_types(model.feature_model)
        for number, tables in enumerate(module.build(session, raw, days, spec.timezone)):
            log.info("%s: computing %s", inputs.format_days(days), ", ".join(tables.columns))
            _write_tables(tables, scratch / str(number), staging_folders, types)
    shutil.rmtree(scratch)


def _write_tables(
    tables: FeatureTables, scratch: Path, staging_folders: Mapping[str, Path], types: DeclaredTypes
) -> None:
    """Compute the tables with Spark, in any number of files, and stage one file per table and day.

    Columns get the types that Feast declares. One with values that would change stays as it is, for `validate_features`
    to report: the other days of the batch may have none.

    Staged rows are in the order of `row_order`, so the bytes do not depend on how Spark divided the work.
    """
    several = len(tables.columns) > 1
    tables.frame.write.partitionBy(*(["table", "day"] if several else ["day"])).parquet(str(scratch))
    for name, columns in tables.columns.items():
        for day, folder in staging_folders.items():
            partition = (scratch / f"table={name}" if several else scratch) / f"day={day}"
            if partition.exists():
                table = pq.read_table(partition, columns=list(columns), partitioning=None)
            else:  # a day without rows is a table without rows
                table = tables.frame.select(*columns).limit(0).toArrow()
            table, _ = cast_columns(table, types.get(name, {}))
            pq.write_table(order_rows(table).replace_schema_metadata(), folder / f"{name}.parquet")
